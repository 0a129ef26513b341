package lease_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

// Two operators at once: each change is made on what it was decided on.
func TestTwoOperators(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		_, err := w.registry.Init(w.Context(), "other", lease.DefaultSettings())
		w.ok(err)
		_, err = w.registry.Retire(w.Context(), id(0))
		w.ok(err)
		slow := lease.Registry{Store: w.store}
		// Each time that slow has read and is about to write, quick is faster.
		quick := func(do func()) {
			done := false
			w.store.Inject(func(c leasetest.Call) bool {
				if leasetest.IsWrite(c) && !done {
					done = true
					do()
				}
				return false
			}, -1, leasetest.Fault{})
		}
		quick(func() {
			_, err := w.registry.Add(w.Context(), "other", zone, volume(0))
			w.ok(err)
		})
		_, err = slow.Add(w.Context(), "ci", zone, volume(0))
		if there, ok := errors.AsType[*lease.RegisteredError](err); !ok || there.Record.Pool != "other" {
			w.Fatalf("both moved it: %v", err)
		}
		quick(func() {
			_, err := w.registry.Retire(w.Context(), id(0))
			w.ok(err)
		})
		if _, err := slow.Drain(w.Context(), id(0)); err == nil {
			w.Error("drained what was retired meanwhile")
		}
		quick(func() { w.set(func(s *lease.Settings) { s.Paused = true }) })
		if _, err := slow.Set(w.Context(), "ci", func(s *lease.Settings) { s.Lease = 2 * time.Minute }); err != nil {
			w.Error(err)
		}
		if p, err := w.registry.Pool(w.Context(), "ci"); err != nil || !p.Settings.Paused || p.Settings.Lease != 2*time.Minute {
			w.Errorf("one operator's change is lost: %+v, %v", p, err)
		}
	})
}

// Two operators add volumes in two new zones at once: the pool knows both.
func TestTwoNewZones(t *testing.T) {
	inWorld(t, 0, func(w *world) {
		var wg sync.WaitGroup
		for i, z := range []string{"us-east-1a", "us-east-1b", "us-east-1c"} {
			wg.Go(func() {
				if _, err := w.registry.Add(w.Context(), "ci", z, volume(i)); err != nil {
					w.Error(err)
				}
			})
		}
		wg.Wait()
		p, err := w.registry.Pool(w.Context(), "ci")
		if err != nil || len(p.Zones) != 3 {
			w.Errorf("%+v, %v", p, err)
		}
		rs, odd, now, err := w.registry.Volumes(w.Context(), p)
		if err != nil || len(rs) != 3 || odd != nil || now.IsZero() {
			w.Errorf("%d, %v, %v, %v", len(rs), odd, now, err)
		}
	})
}

// Claimed between an operator's look and write, the volume stays held.
func TestDrainMeetsClaim(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		var l *lease.Lease
		w.store.Inject(func(c leasetest.Call) bool {
			if leasetest.IsWrite(c) && l == nil {
				l = w.claim(w.claimantOn(w.memory, "i-me"))
			}
			return false
		}, -1, leasetest.Fault{})
		r, err := (lease.Registry{Store: w.store}).Drain(w.Context(), id(0))
		if err != nil || r.State != lease.Held || !r.Draining {
			w.Errorf("%+v, %v", r, err)
		}
	})
}
