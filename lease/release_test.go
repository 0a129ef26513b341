package lease_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

// A release puts the volume back where it was, with what is known of it.
func TestRelease(t *testing.T) {
	inWorld(t, 2, func(w *world) {
		slot := w.record(0).FreeSlot
		l := w.claim(w.claimant("i-me"))
		l.Note(lease.Facts{Clean: new(true), Uses: new(int64(1)), FSType: new("ext4")})
		time.Sleep(time.Minute)
		w.ok(l.Release(w.Context(), true))
		r, now := w.record(0), time.Now().UTC().Truncate(time.Second)
		if r.State != lease.Free || r.FreeSlot != slot || r.Owner != "" || r.LastOwner != "i-me" || r.Phase != "" || r.BootID != "" ||
			!r.Clean || r.Uses != 1 || r.FSType != "ext4" || now.Sub(r.ReleasedAt).Abs() > time.Second {
			w.Errorf("%+v", r)
		}
		if l := w.claim(w.claimant("i-me")); l.Volume() != id(0) || l.Generation() != 2 {
			w.Errorf("the next claim took %s at generation %d", l.Volume(), l.Generation())
		}
	})
}

// In a pool of the order recent, the volume released last is claimed first, and
// also by a process that re-adopted it and never claimed.
func TestReleaseRecentFirst(t *testing.T) {
	inWorld(t, 5, func(w *world) {
		w.set(func(s *lease.Settings) { s.Order = lease.OrderRecent })
		var leases []*lease.Lease
		for range 5 {
			leases = append(leases, w.claim(w.claimant("i-me")))
		}
		last := leases[3]
		leases[3] = leases[4]
		for _, l := range leases[:4] {
			w.ok(l.Release(w.Context(), true))
			time.Sleep(time.Second)
		}
		last.Abandon()
		again, err := w.claimant("i-me").Readopt(w.Context(), last.Record())
		w.ok(err)
		w.ok(again.Release(w.Context(), true))
		for _, want := range []string{last.Volume(), leases[3].Volume(), leases[2].Volume(), leases[1].Volume(), leases[0].Volume()} {
			if got := w.claim(w.claimant("i-me")).Volume(); got != want {
				w.Errorf("claimed %s, not %s", got, want)
			}
		}
	})
}

// A release while an operator drains ends drained, whether the holder knows of
// it or not; and free where the drain was taken back.
func TestReleaseWhileDraining(t *testing.T) {
	for name, c := range map[string]struct {
		known, undrained bool
		state            lease.State
	}{
		"not known":         {false, false, lease.Drained},
		"known":             {true, false, lease.Drained},
		"known, taken back": {true, true, lease.Free},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(w *world) {
				l := w.claim(w.claimant("i-me"))
				_, err := w.registry.Drain(w.Context(), id(0))
				w.ok(err)
				if c.known {
					w.ok(l.Renew(w.Context()))
				}
				if c.undrained {
					_, err := w.registry.Undrain(w.Context(), id(0))
					w.ok(err)
				}
				w.ok(l.Release(w.Context(), true))
				w.state(0, c.state, 1)
				if r := w.record(0); r.Draining || (r.FreeSlot != "") != (c.state == lease.Free) {
					w.Errorf("%+v", r)
				}
			})
		})
	}
}

// Each failure doubles the time that a volume stays out, from a minute up to
// six hours; a use that went well starts it at the bottom again.
func TestQuarantineDoubles(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		c := w.claimant("i-me")
		quarantine := func(want time.Duration, failures int64) {
			w.Helper()
			l := w.claim(c)
			w.ok(l.Quarantine(w.Context(), "stuck in attaching"))
			r := w.record(0)
			if got := time.Until(r.QuarantinedUntil); (got-want).Abs() > time.Second || r.Failures != failures {
				w.Errorf("quarantined for %v after %d failures, not %v after %d", got, r.Failures, want, failures)
			}
			if r.State != lease.Quarantined || r.FreeSlot != "" || r.Owner != "" || r.LastError != "stuck in attaching" {
				w.Errorf("%+v", r)
			}
			if _, err := c.Claim(w.Context(), nil); !errors.Is(err, lease.ErrNoFree) {
				w.Fatalf("claimed while quarantined: %v", err)
			}
			freed, err := c.EndQuarantine(w.Context(), r)
			if !freed || err != nil {
				w.Fatal(freed, err)
			}
		}
		for i, minutes := range []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360} {
			quarantine(time.Duration(minutes)*time.Minute, int64(i+1))
		}
		w.ok(w.claim(c).Release(w.Context(), false)) // came to nothing: proves nothing
		quarantine(6*time.Hour, 12)
		w.ok(w.claim(c).Release(w.Context(), true))
		if r := w.record(0); r.Failures != 0 || r.LastError != "" || !r.QuarantinedUntil.IsZero() {
			w.Errorf("after a good use: %+v", r)
		}
		quarantine(time.Minute, 1)
	})
}

// The end of a quarantine is conditional on what was seen, and never passes a
// drain.
func TestEndQuarantine(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		l := w.claim(w.claimant("i-me"))
		_, err := w.registry.Drain(w.Context(), id(0))
		w.ok(err)
		w.ok(l.Quarantine(w.Context(), "stuck"))
		c, seen := w.claimant("i-other"), w.record(0)
		for _, want := range []bool{true, false} { // the second finds it changed
			if freed, err := c.EndQuarantine(w.Context(), seen); freed != want || err != nil {
				w.Error(freed, err)
			}
			w.state(0, lease.Drained, 1)
		}
	})
}

// Undraining a quarantined volume takes the mark off and sets it free.
func TestUndrainQuarantined(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		l := w.claim(w.claimant("i-me"))
		_, err := w.registry.Drain(w.Context(), id(0))
		w.ok(err)
		w.ok(l.Quarantine(w.Context(), "stuck"))
		r, err := w.registry.Undrain(w.Context(), id(0))
		if err != nil || r.State != lease.Free || r.Draining || r.FreeSlot == "" {
			w.Errorf("%+v, %v", r, err)
		}
	})
}

// The longest reason leaves an item that a heartbeat writes for one unit.
func TestItemStaysWithinOneUnit(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		c, err := lease.New(lease.Config{Store: w.store, Pool: "ci", Zone: "us-east-1a", Owner: "i-0123456789abcdef0", Elapsed: w.elapsed,
			MountPoint: "/srv/a/rather/long/mount/point", BootID: "01234567-89ab-cdef-0123-456789abcdef"})
		w.ok(err)
		l := w.claim(c)
		w.ok(l.IntendFormat(w.Context(), "ext4", "01234567-89ab-cdef-0123-456789abcdef"))
		w.ok(l.Quarantine(w.Context(), strings.Repeat("ä", 500)))
		if n := len(w.record(0).LastError); n > 200 {
			w.Errorf("last_error has %d bytes", n)
		}
		_, err = c.EndQuarantine(w.Context(), w.record(0))
		w.ok(err)
		l = w.claim(c)
		l.Note(lease.Facts{Phase: new(lease.Releasing), UsedPercent: new(int64(100)), InodesPercent: new(int64(100)), Uses: new(int64(1 << 40))})
		before := w.memory.Usage().WriteUnits
		w.ok(l.Renew(w.Context()))
		if units := w.memory.Usage().WriteUnits - before; units != 1 {
			w.Errorf("a heartbeat costs %v units", units)
		}
	})
}

// What is formatted for good is not formatted again, and the refusal is no loss.
func TestFormat(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		l := w.claim(w.claimant("i-me"))
		w.store.Inject(leasetest.IsBeat, 1, leasetest.Fault{Lose: true, Again: leasetest.After(time.Hour)})
		w.ok(l.IntendFormat(w.Context(), "ext4", "uuid")) // its first reply is lost
		if r := w.record(0); r.Format != lease.FormatBegun || r.FSType != "ext4" || r.FSUUID != "uuid" {
			w.Errorf("%+v", r)
		}
		w.ok(l.FormatDone(w.Context()))
		if err := l.IntendFormat(w.Context(), "xfs", "other"); !errors.Is(err, lease.ErrFormatted) {
			w.Error(err)
		}
		if l.Context().Err() != nil {
			w.Error("the refusal ended the lease")
		}
		w.store.Settle() // the late copy of the intention
		if r := w.record(0); r.Format != lease.FormatDone || r.FSType != "ext4" {
			w.Errorf("%+v", r)
		}
	})
}

// Confirm tells that the filesystem is in use from here on.
func TestConfirm(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		w.edit(0, lease.Item{"clean": flag(true)})
		l := w.claim(w.claimant("i-me"))
		if !w.record(0).Clean {
			w.Fatal("not clean before")
		}
		w.store.Inject(leasetest.IsBeat, 3, leasetest.Fault{Fail: leasetest.Unreachable()})
		w.ok(l.Confirm(w.Context()))
		if r := w.record(0); r.Clean || r.Beat == 0 {
			w.Errorf("%+v", r)
		}
		w.store.Inject(leasetest.IsBeat, -1, leasetest.Fault{Fail: leasetest.Unreachable()})
		if err := l.Confirm(w.soon(time.Second)); err == nil {
			w.Error("confirmed in an outage")
		}
	})
}
