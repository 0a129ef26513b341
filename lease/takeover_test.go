package lease_test

import (
	"testing"
	"time"

	"github.com/volpool/volpool/lease"
)

// Every pair of what EC2 may say, against the table of the design. A row here is
// an owner, and a column a volume.
func TestJudge(t *testing.T) {
	const (
		l = lease.Leave
		n = lease.TakeNow
		s = lease.TakeWhenSilent
		w = lease.WaitForDetach
	)
	volumes := []lease.VolumeState{lease.VolumeGone, lease.VolumeAvailable, lease.VolumeMine, lease.VolumeOwners,
		lease.VolumeLeavingOwner, lease.VolumeElsewhere, lease.VolumeNeither}
	for owner, row := range map[lease.OwnerState][]lease.Verdict{
		//                        gone, available, mine, owner's, leaving, elsewhere, neither
		lease.OwnerGone:         {l, s, s, l, l, l, l},
		lease.OwnerPending:      {l, s, s, l, l, l, l},
		lease.OwnerRunning:      {l, s, s, l, l, l, l},
		lease.OwnerStopping:     {l, s, s, l, l, l, l},
		lease.OwnerStopped:      {l, s, s, l, l, l, l},
		lease.OwnerShuttingDown: {l, s, s, w, w, l, l},
		lease.OwnerTerminated:   {l, n, n, w, w, l, l},
	} {
		for i, want := range row {
			if got := lease.Judge(owner, volumes[i]); got != want {
				t.Errorf("owner %d, volume %d: %d, not %d", owner, volumes[i], got, want)
			}
		}
	}
	// What is not known, now or in a later version, is left alone.
	for owner := lease.OwnerState(-1); owner < 20; owner++ {
		for volume := lease.VolumeState(-1); volume < 20; volume++ {
			known := volume >= 0 && int(volume) < len(volumes)
			if got := lease.Judge(owner, volume); !known && got != l {
				t.Errorf("owner %d, volume %d: %d", owner, volume, got)
			}
		}
	}
}

// A lease is silent twice its own time and five seconds after its last renewal,
// and only while it is held.
func TestSilent(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		lease, age time.Duration
		state      lease.State
		want       bool
	}{
		{time.Minute, 125 * time.Second, lease.Held, false},
		{time.Minute, 125*time.Second + 1, lease.Held, true},
		{time.Hour, time.Hour, lease.Held, false},
		{10 * time.Second, 26 * time.Second, lease.Held, true},
		{time.Minute, -time.Hour, lease.Held, false},
		{time.Minute, time.Hour, lease.Free, false},
		{time.Minute, time.Hour, lease.Quarantined, false},
	} {
		r := lease.Record{State: c.state, Lease: c.lease, RenewedAt: now.Add(-c.age)}
		if got := r.SilentAt(now); got != c.want {
			t.Errorf("%+v: silent %v", c, got)
		}
	}
}

// A taker takes exactly what it observed: one beat of the old holder, a drain, or
// another taker in between, and it fails.
func TestTakeOver(t *testing.T) {
	for name, c := range map[string]struct {
		between func(w *world, old *lease.Lease)
		taken   bool
	}{
		"nothing":  {func(*world, *lease.Lease) {}, true},
		"a beat":   {func(w *world, old *lease.Lease) { w.ok(old.Renew(w.Context())) }, false},
		"released": {func(w *world, old *lease.Lease) { w.ok(old.Release(w.Context(), true)) }, false},
		"drained": {func(w *world, _ *lease.Lease) {
			_, err := w.registry.Drain(w.Context(), id(0))
			w.ok(err)
		}, false},
		"another taker": {func(w *world, _ *lease.Lease) {
			l, err := w.claimant("i-third").TakeOver(w.Context(), w.record(0))
			w.ok(err)
			w.Cleanup(l.Abandon)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(w *world) {
				old := w.claim(w.claimant("i-old"))
				taker := w.claimant("i-new")
				held, _, now, err := taker.Held(w.Context())
				if err != nil || len(held) != 1 || now.IsZero() {
					w.Fatal(held, now, err)
				}
				c.between(w, old)
				before := w.record(0)
				l, err := taker.TakeOver(w.Context(), held[0])
				if (err == nil) != c.taken {
					w.Fatal(err)
				}
				if !c.taken {
					taker.Settle()
					if !lease.IsRaceLost(err) || w.record(0) != before {
						w.Errorf("%v; %+v", err, w.record(0))
					}
					return
				}
				w.Cleanup(l.Abandon)
				if r := w.record(0); r.Owner != "i-new" || r.Generation != 2 || l.Generation() != 2 {
					w.Errorf("%+v", r)
				}
			})
		})
	}
}

// A restarted process re-adopts its own lease, and nobody else's; its former
// self then changes nothing.
func TestReadopt(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		w.set(func(s *lease.Settings) { s.Lease = 2 * time.Minute })
		old := w.claim(w.claimant("i-me"))
		seen := w.record(0)
		if _, err := w.claimant("i-other").Readopt(w.Context(), seen); err == nil {
			w.Error("another instance re-adopted it")
		}
		if _, err := w.claimant("i-other").TakeOver(w.Context(), lease.Record{Pool: "ci", Zone: zone, Volume: id(0), State: lease.Held, Attempt: "x"}); !lease.IsRaceLost(err) {
			w.Errorf("take over what was never observed: %v", err)
		}
		l, err := w.claimant("i-me").Readopt(w.Context(), seen)
		w.ok(err)
		w.Cleanup(l.Abandon)
		if r := w.record(0); r.Generation != 2 || r.Attempt == seen.Attempt || r.Owner != "i-me" || r.Lease != 2*time.Minute {
			w.Errorf("%+v", r)
		}
		after := w.record(0)
		w.ok(old.Release(w.Context(), true))
		if w.record(0) != after {
			w.Errorf("its former self changed the record to %+v", w.record(0))
		}
	})
}

// Held reads what is held and quarantined, 200 at most, from a place that
// differs between takers.
func TestHeld(t *testing.T) {
	inWorld(t, 300, func(w *world) {
		for i := range 300 {
			state := lease.Item{"state": str("held"), "owner": str("i-x"), "attempt": str("x"), "lease_ms": num(60000), "renewed_at": str("2026-01-01T00:00:00Z")}
			if i%3 == 0 {
				state = lease.Item{"state": str("quarantined")}
			}
			w.edit(i, state, lease.FreeSlot)
		}
		w.edit(7, lease.Item{"schema": num(9)})
		held, quarantined, _, err := w.claimant("i-me").Held(w.Context())
		w.ok(err)
		if n := len(held) + len(quarantined); n < 199 || n > 200 || len(quarantined) < 60 {
			w.Errorf("%d held, %d quarantined", len(held), len(quarantined))
		}
	})
}
