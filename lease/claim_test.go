package lease_test

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

// Alone, a claimant takes the lowest-ordered volume, always, for one Query and
// one write.
func TestClaimTakesTheLowest(t *testing.T) {
	inWorld(t, 20, func(w *world) {
		c := w.claimant("i-me")
		for i := range 20 {
			before := w.memory.Usage()
			l := w.claim(c)
			after := w.memory.Usage()
			if l.Volume() != id(i) || l.Generation() != 1 {
				w.Fatalf("claim %d took %s at generation %d", i, l.Volume(), l.Generation())
			}
			if calls := len(w.store.Calls()); calls != 2*(i+1) {
				w.Fatalf("%d claims made %d calls", i+1, calls)
			}
			if units := after.WriteUnits - before.WriteUnits; units != 2 {
				w.Fatalf("%v write units", units)
			}
			if units := after.ReadUnits - before.ReadUnits; units != 1 {
				w.Fatalf("%v read units", units)
			}
		}
		if _, err := c.Claim(w.Context(), nil); !errors.Is(err, lease.ErrNoFree) {
			w.Errorf("one more: %v", err)
		}
		if n := c.LostRaces(); n != 0 {
			w.Errorf("%d lost races, alone", n)
		}
	})
}

// What a claim writes is what others need to judge it by.
func TestClaimRecord(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		w.set(func(s *lease.Settings) { s.Lease = 2 * time.Minute })
		l := w.claim(w.claimant("i-me"))
		r, now := w.record(0), time.Now().UTC().Truncate(time.Second)
		if r.State != lease.Held || r.Owner != "i-me" || r.Attempt == "" || r.Attempt != l.Attempt() || r.Beat != 0 ||
			r.Lease != 2*time.Minute || r.Phase != lease.Claiming || r.MountPoint != "/mnt/cache" || r.BootID != "boot-i-me" ||
			!r.ClaimedAt.Equal(now) || !r.RenewedAt.Equal(now) || r.FreeSlot != "" {
			w.Errorf("%+v", r)
		}
		if r.SilentAt(now.Add(4*time.Minute+5*time.Second)) || !r.SilentAt(now.Add(4*time.Minute+6*time.Second)) {
			w.Error("silent is twice the lease and five seconds after the renewal")
		}
	})
}

func TestClaimRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(w *world)
		skip    map[string]bool
		want    error
	}{
		"nothing free": {func(w *world) {
			for i := range 2 {
				_, err := w.registry.Drain(w.Context(), id(i))
				w.ok(err)
			}
		}, nil, lease.ErrNoFree},
		"all skipped": {func(*world) {}, map[string]bool{id(0): true, id(1): true}, lease.ErrNoFree},
		"paused":      {func(w *world) { w.set(func(s *lease.Settings) { s.Paused = true }) }, nil, lease.ErrPaused},
		"no zone": {func(w *world) {
			w.memory.Put(lease.Key{Partition: key(0).Partition, Item: "#settings"}, nil)
		}, nil, lease.ErrNoZone},
		"denied": {func(w *world) {
			w.store.Inject(leasetest.All, -1, leasetest.Fault{Fail: leasetest.Denied()})
		}, nil, lease.ErrDenied},
		"claim denied": {func(w *world) {
			w.store.Inject(leasetest.IsClaim, -1, leasetest.Fault{Fail: leasetest.Denied()})
		}, nil, lease.ErrDenied},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 2, func(w *world) {
				c.prepare(w)
				start := time.Now()
				l, err := w.claimant("i-me").Claim(w.Context(), c.skip)
				if !errors.Is(err, c.want) || l != nil {
					w.Errorf("claimed %v, %v; not %v", l, err, c.want)
				}
				if took := time.Since(start); took != 0 {
					w.Errorf("it took %v to say so", took)
				}
				for i := range 2 {
					if r := w.record(i); r.State == lease.Held {
						w.Errorf("%s is held", r.Volume)
					}
				}
			})
		})
	}
}

func TestClaimSkips(t *testing.T) {
	inWorld(t, 4, func(w *world) {
		skip := map[string]bool{id(0): true, id(1): true, id(2): true}
		if l, err := w.claimant("i-me").Claim(w.Context(), skip); err != nil || l.Volume() != id(3) {
			w.Error(l, err)
		} else {
			l.Abandon()
		}
		if len(skip) != 3 {
			w.Errorf("the caller's map was changed: %v", skip)
		}
	})
	inWorld(t, 30, func(w *world) { // what is skipped doesn't widen the choice
		skip := map[string]bool{}
		for i := 20; i < 30; i++ {
			skip[id(i)] = true
		}
		for i := range 10 {
			l, err := w.claimant("i-me").Claim(w.Context(), skip)
			w.ok(err)
			w.Cleanup(l.Abandon)
			if l.Volume() != id(i) {
				w.Errorf("claim %d took %s", i, l.Volume())
			}
		}
	})
}

// Items that were edited by hand, or that a newer version wrote, are passed
// over: they neither stop a claim nor keep it busy, and stay as they are.
func TestClaimPassesOverOddItems(t *testing.T) {
	for name, edit := range map[string]func(w *world, i int){
		"newer schema":         func(w *world, i int) { w.edit(i, lease.Item{"schema": num(2)}) },
		"no generation":        func(w *world, i int) { w.edit(i, nil, "generation") },
		"generation of text":   func(w *world, i int) { w.edit(i, lease.Item{"generation": str("one")}) },
		"drained in the index": func(w *world, i int) { w.edit(i, lease.Item{"state": str("drained")}) },
		"held in the index": func(w *world, i int) {
			w.edit(i, lease.Item{"state": str("held"), "owner": str("i-x"), "attempt": str("x"), "lease_ms": num(60000), "renewed_at": str("2026-01-01T00:00:00Z")})
		},
		"unknown state": func(w *world, i int) { w.edit(i, lease.Item{"state": str("lent")}) },
		"no format":     func(w *world, i int) { w.edit(i, nil, "format") },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 20, func(w *world) {
				var before []lease.Item
				for i := range 19 {
					edit(w, i)
					before = append(before, w.memory.Item(key(i)))
				}
				c := w.claimant("i-me")
				ctx := w.soon(time.Minute)
				l, err := c.Claim(ctx, nil)
				w.ok(err)
				w.Cleanup(l.Abandon)
				if l.Volume() != id(19) {
					w.Errorf("claimed %s", l.Volume())
				}
				if _, err := c.Claim(ctx, nil); !errors.Is(err, lease.ErrNoFree) {
					w.Errorf("one more: %v", err)
				}
				c.Settle()
				for i, item := range before {
					now := w.memory.Item(key(i))
					if name == "no format" { // shows only once it is claimed: then it goes back
						if !reflect.DeepEqual(now["state"], str("free")) || !reflect.DeepEqual(now[lease.FreeSlot], item[lease.FreeSlot]) {
							w.Errorf("item %d didn't go back: %v", i, now)
						}
					} else if !reflect.DeepEqual(now, item) {
						w.Errorf("item %d was changed", i)
					}
				}
				if n := len(w.store.Calls()); n > 150 {
					w.Errorf("%d calls", n)
				}
			})
		})
	}
}

// A claimant that lost a race takes another volume, and none twice.
func TestClaimAfterALostRace(t *testing.T) {
	inWorld(t, 10, func(w *world) {
		a, b := w.claimant("i-a"), w.claimantOn(w.memory, "i-b")
		var other *lease.Lease
		w.store.Inject(func(c leasetest.Call) bool {
			if leasetest.IsClaim(c) && other == nil { // b is faster
				other = w.claim(b)
			}
			return false
		}, -1, leasetest.Fault{})
		l := w.claim(a)
		if l.Volume() == other.Volume() || a.LostRaces() != 1 {
			w.Errorf("%s and %s, %d lost races", l.Volume(), other.Volume(), a.LostRaces())
		}
	})
}

func TestClaimVolume(t *testing.T) {
	inWorld(t, 3, func(w *world) {
		l, err := w.claimant("i-me").ClaimVolume(w.Context(), id(1))
		w.ok(err)
		w.Cleanup(l.Abandon)
		w.state(1, lease.Held, 1)
		_, err = w.claimant("i-other").ClaimVolume(w.Context(), id(1))
		if held, ok := errors.AsType[*lease.StateError](err); !ok || held.Record.Owner != "i-me" {
			w.Errorf("claim what is held: %v", err)
		}
		if _, err = w.claimant("i-me").ClaimVolume(w.Context(), id(7)); !errors.Is(err, lease.ErrNoVolume) {
			w.Errorf("claim what isn't there: %v", err)
		}
	})
}

func TestNewChecksItsConfig(t *testing.T) {
	good := lease.Config{Store: leasetest.NewMemory(), Pool: "ci", Zone: zone, Owner: "i-me"}
	if _, err := lease.New(good); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*lease.Config){
		"store": func(c *lease.Config) { c.Store = nil }, "zone": func(c *lease.Config) { c.Zone = "" },
		"owner": func(c *lease.Config) { c.Owner = "" }, "pool": func(c *lease.Config) { c.Pool = "a/b" },
		"pool like a volume": func(c *lease.Config) { c.Pool = "vol-1" },
	} {
		bad := good
		spoil(&bad)
		if _, err := lease.New(bad); err == nil {
			t.Errorf("a config without a good %s was accepted", name)
		}
	}
}
