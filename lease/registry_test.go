package lease_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/volpool/volpool/lease"
)

const poolItem = "#pool"

func TestInit(t *testing.T) {
	inWorld(t, 0, func(w *world) {
		p, err := w.registry.Pool(w.Context(), "ci")
		if err != nil || p.Rev != 1 || p.Zones != nil || p.Settings.Lease != time.Minute || p.Settings.Filesystem != "ext4" {
			w.Errorf("%+v, %v", p, err)
		}
		_, err = w.registry.Init(w.Context(), "ci", lease.Settings{Filesystem: "xfs", Lease: time.Minute, Order: lease.OrderLowest})
		if there, ok := errors.AsType[*lease.PoolExistsError](err); !ok || there.Pool.Settings.Filesystem != "ext4" {
			w.Errorf("init of what is there: %v", err)
		}
		for _, name := range []string{"", "a/b", "vol-1", "vol-00000000000000a00", "-a", "a b", "#pool"} {
			if _, err := w.registry.Init(w.Context(), name, lease.DefaultSettings()); err == nil {
				w.Errorf("a pool was named %q", name)
			}
		}
		if _, err := w.registry.Pool(w.Context(), "none"); !errors.Is(err, lease.ErrNoPool) {
			w.Error(err)
		}
	})
}

// Settings reach every zone's copy with the pool's own, and the next claim.
func TestSet(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		v := volume(1)
		_, err := w.registry.Add(w.Context(), "ci", "us-east-1b", v)
		w.ok(err)
		p, err := w.registry.Set(w.Context(), "ci", func(s *lease.Settings) {
			s.Lease, s.MountOptions, s.Filesystem = 5*time.Minute, []string{"noatime", "discard"}, "xfs"
		})
		w.ok(err)
		if again, err := w.registry.Pool(w.Context(), "ci"); err != nil || again.Rev != p.Rev || again.Settings.Lease != 5*time.Minute || !slices.Equal(again.Zones, []string{zone, "us-east-1b"}) {
			w.Errorf("%+v, then %+v, %v", p, again, err)
		}
		for _, z := range p.Zones {
			c, err := lease.New(lease.Config{Store: w.store, Pool: "ci", Zone: z, Owner: "i-" + z, Elapsed: w.elapsed})
			w.ok(err)
			if l := w.claim(c); l.Record().Lease != 5*time.Minute || !slices.Equal(c.Settings().MountOptions, []string{"noatime", "discard"}) || c.Settings().Filesystem != "xfs" {
				w.Errorf("in %s: %+v, %+v", z, l.Record(), c.Settings())
			}
		}
		for name, bad := range map[string]func(*lease.Settings){
			"filesystem":     func(s *lease.Settings) { s.Filesystem = "ntfs" },
			"short":          func(s *lease.Settings) { s.Lease = 9 * time.Second },
			"long":           func(s *lease.Settings) { s.Lease = time.Hour + time.Second },
			"fraction":       func(s *lease.Settings) { s.Lease = 10*time.Second + time.Millisecond },
			"order":          func(s *lease.Settings) { s.Order = "random" },
			"mount option":   func(s *lease.Settings) { s.MountOptions = []string{"noatime,exec"} },
			"mount option 2": func(s *lease.Settings) { s.MountOptions = []string{"a b"} },
		} {
			before := w.memory.Item(lease.Key{Partition: "ci", Item: poolItem})
			if _, err := w.registry.Set(w.Context(), "ci", bad); err == nil {
				w.Errorf("a bad %s was set", name)
			}
			if after := w.memory.Item(lease.Key{Partition: "ci", Item: poolItem}); len(after) != len(before) || after["rev"] != before["rev"] {
				w.Errorf("a bad %s was written", name)
			}
		}
	})
}

func TestAddRefuses(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		_, err := w.registry.Add(w.Context(), "ci", zone, volume(0))
		if there, ok := errors.AsType[*lease.RegisteredError](err); !ok || there.Record.Pool != "ci" {
			w.Errorf("add again: %v", err)
		}
		_, err = w.registry.Init(w.Context(), "other", lease.DefaultSettings())
		w.ok(err)
		if _, err = w.registry.Add(w.Context(), "other", zone, volume(0)); err == nil {
			w.Error("a volume is in two pools")
		}
		if _, err := w.registry.Add(w.Context(), "none", zone, volume(1)); !errors.Is(err, lease.ErrNoPool) {
			w.Errorf("add to no pool: %v", err)
		}
		for _, bad := range []string{"", "vol-", "vol-0123456789abcdefg", "vol-01234567-9", "i-0123456789abcdef0", "VOL-01234567"} {
			if _, err := w.registry.Add(w.Context(), "ci", zone, lease.Volume{ID: bad}); err == nil {
				w.Errorf("added %q", bad)
			}
		}
		if _, err := w.registry.Find(w.Context(), id(1)); !errors.Is(err, lease.ErrNoVolume) {
			w.Error(err)
		}
	})
}

// What was made from a snapshot has somebody's data on it from the start.
func TestAddFromSnapshot(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		if r := w.record(0); r.Format != lease.FormatNever || r.SizeGiB != 100 || r.Rev != 1 {
			w.Errorf("%+v", r)
		}
		v := volume(1)
		v.FromSnapshot = true
		if r, err := w.registry.Add(w.Context(), "ci", zone, v); err != nil || r.Format != lease.FormatDone {
			w.Errorf("%+v, %v", r, err)
		}
	})
}

// The operator's commands, from every state: what they lead to, or that they
// are refused and change nothing. Each may be given twice.
func TestAdminFromEveryState(t *testing.T) {
	commands := map[string]func(lease.Registry, context.Context, string) (lease.Record, error){
		"drain": lease.Registry.Drain, "undrain": lease.Registry.Undrain, "retire": lease.Registry.Retire,
	}
	const refused = lease.State("refused")
	for from, c := range map[string]struct {
		prepare func(w *world)
		leads   map[string]lease.State
	}{
		"free":        {func(*world) {}, map[string]lease.State{"drain": lease.Drained, "undrain": lease.Free, "retire": lease.Retired}},
		"held":        {func(w *world) { w.claim(w.claimant("i-me")) }, map[string]lease.State{"drain": lease.Held, "undrain": lease.Held, "retire": refused}},
		"quarantined": {func(w *world) { w.ok(w.claim(w.claimant("i-me")).Quarantine(w.Context(), "x")) }, map[string]lease.State{"drain": lease.Drained, "undrain": lease.Free, "retire": lease.Retired}},
		"drained": {func(w *world) {
			_, err := w.registry.Drain(w.Context(), id(0))
			w.ok(err)
		}, map[string]lease.State{"drain": lease.Drained, "undrain": lease.Free, "retire": lease.Retired}},
		"retired": {func(w *world) {
			_, err := w.registry.Retire(w.Context(), id(0))
			w.ok(err)
		}, map[string]lease.State{"drain": refused, "undrain": refused, "retire": lease.Retired}},
	} {
		for name, do := range commands {
			t.Run(name+" "+from, func(t *testing.T) {
				inWorld(t, 1, func(w *world) {
					c.prepare(w)
					before := w.record(0)
					want := c.leads[name]
					for range 2 {
						r, err := do(w.registry, w.Context(), id(0))
						if want == refused {
							if _, ok := errors.AsType[*lease.StateError](err); !ok || w.record(0) != before {
								w.Fatalf("%v; %+v", err, w.record(0))
							}
							continue
						}
						if err != nil || r != w.record(0) {
							w.Fatalf("%+v, %v", r, err)
						}
						if r.State != want || r.Generation != before.Generation || (r.FreeSlot != "") != (want == lease.Free) ||
							r.Draining != (want == lease.Held && name == "drain") {
							w.Errorf("%+v", r)
						}
					}
				})
			})
		}
	}
}

// A retired volume comes back, to its pool or to another, with its generation
// and with what is known of its filesystem.
func TestAddAgain(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		_, err := w.registry.Init(w.Context(), "other", lease.DefaultSettings())
		w.ok(err)
		use := func(pool string) {
			w.Helper()
			c, err := lease.New(lease.Config{Store: w.store, Pool: pool, Zone: zone, Owner: "i-me", Elapsed: w.elapsed})
			w.ok(err)
			l := w.claim(c)
			if l.Record().Format != lease.FormatDone {
				w.ok(l.IntendFormat(w.Context(), "ext4", "uuid-1"))
				w.ok(l.FormatDone(w.Context()))
			}
			w.ok(l.Release(w.Context(), true))
			_, err = w.registry.Retire(w.Context(), id(0))
			w.ok(err)
			if _, err := c.Claim(w.Context(), nil); !errors.Is(err, lease.ErrNoFree) {
				w.Fatalf("claimed a retired volume: %v", err)
			}
		}
		use("ci")
		for i, pool := range []string{"other", "other", "ci", "other", "ci", "ci"} {
			r, err := w.registry.Add(w.Context(), pool, zone, volume(0))
			w.ok(err)
			if r.Pool != pool || r.State != lease.Free || r.Generation != int64(i+1) || r.Format != lease.FormatDone || r.FSUUID != "uuid-1" {
				w.Fatalf("added the %dth time, to %s: %+v", i+2, pool, r)
			}
			if home, err := w.registry.Home(w.Context(), id(0)); err != nil || home != (lease.Home{Pool: pool, Zone: zone}) {
				w.Fatal(home, err)
			}
			use(pool)
		}
	})
}

// Volumes reads all pages, and tells what it cannot read apart.
func TestVolumes(t *testing.T) {
	inWorld(t, 30, func(w *world) {
		w.edit(3, lease.Item{"schema": num(2)})
		for i := range 30 { // more than one page's worth
			w.edit(i, lease.Item{"of_a_newer_version": str(string(make([]byte, 100<<10)))})
		}
		p, err := w.registry.Pool(w.Context(), "ci")
		w.ok(err)
		rs, odd, _, err := w.registry.Volumes(w.Context(), p)
		if err != nil || len(rs) != 29 || len(odd) != 1 {
			w.Errorf("%d, %v, %v", len(rs), odd, err)
		}
	})
}
