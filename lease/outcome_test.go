package lease_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

// Whatever happens to the claim's request or reply, the claimant ends up with
// exactly one volume, the lowest, claimed once.
func TestClaimOfUnknownOutcome(t *testing.T) {
	for name, fault := range map[string]leasetest.Fault{
		"reply lost":           {Lose: true},
		"never sent":           {Fail: leasetest.Unreachable()},
		"throttled":            {Fail: leasetest.Throttled()},
		"late as well":         {Again: leasetest.After(time.Hour)},
		"late only":            {Fail: leasetest.Unreachable(), Again: leasetest.After(10 * time.Millisecond)},
		"late, lost and again": {Lose: true, Again: leasetest.After(time.Minute)},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 3, func(w *world) {
				w.store.Inject(leasetest.IsClaim, 1, fault)
				c := w.claimant("i-me")
				l := w.claim(c)
				w.state(0, lease.Held, 1)
				w.state(1, lease.Free, 0)
				if l.Volume() != id(0) || l.Attempt() != w.record(0).Attempt || c.LostRaces() != 0 {
					w.Errorf("%s, %d lost races", l.Volume(), c.LostRaces())
				}
				w.ok(l.Renew(w.Context()))
				w.ok(l.Release(w.Context(), true))
				w.store.Settle() // copies of the claim that arrive now win nothing
				w.state(0, lease.Free, 1)
			})
		})
	}
}

// A claim that is given up leaves nothing held, also where its request arrives
// after that.
func TestClaimGivenUp(t *testing.T) {
	for name, c := range map[string]struct {
		fault      leasetest.Fault
		generation int64
	}{
		"landed, reply lost":  {leasetest.Fault{Lose: true}, 1},
		"landed, reply stuck": {leasetest.Fault{HoldReply: leasetest.Until(nil)}, 1},
		"never lands":         {leasetest.Fault{Fail: leasetest.Unreachable()}, 1},
		"lands an hour later": {leasetest.Fault{Fail: leasetest.Unreachable(), Again: leasetest.After(time.Hour)}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(w *world) {
				w.store.Inject(leasetest.IsClaim, 1, c.fault)
				w.store.Inject(leasetest.IsClaim, -1, leasetest.Fault{Fail: leasetest.Unreachable()})
				slot := w.record(0).FreeSlot
				claimant := w.claimant("i-me")
				if l, err := claimant.Claim(w.soon(time.Second), nil); err == nil {
					w.Fatal("claimed", l.Volume())
				}
				claimant.Settle()
				w.state(0, lease.Free, c.generation)
				w.store.Settle()
				w.state(0, lease.Free, c.generation)
				if r := w.record(0); r.FreeSlot != slot || r.Uses != 0 || !r.ReleasedAt.IsZero() {
					w.Errorf("a claim that came to nothing changed the volume's place or history: %+v", r)
				}
				for _, call := range w.calls(leasetest.IsBeat) {
					w.Errorf("beat %d of a lease that was given up", call.Beat())
				}
			})
		})
	}
}

// A claim that was cancelled is undone through an outage, and where an operator
// drains the volume meanwhile, it ends drained.
func TestClaimGivenUpMeetsOutageAndDrain(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		w.store.Inject(leasetest.IsClaim, 1, leasetest.Fault{HoldReply: leasetest.Until(nil)})
		end := w.store.Inject(leasetest.IsRelease, -1, leasetest.Fault{Fail: leasetest.Unreachable()})
		c := w.claimant("i-me")
		if _, err := c.Claim(w.soon(time.Second), nil); err == nil {
			w.Fatal("claimed")
		}
		time.Sleep(30 * time.Second)
		w.state(0, lease.Held, 1)
		_, err := w.registry.Drain(w.Context(), id(0))
		w.ok(err)
		end()
		c.Settle()
		w.state(0, lease.Drained, 1)
	})
}

// A claim that was refused because the volume is drained may still be under way
// in a copy: once the volume is free again, the copy must not win.
func TestLateCopyOfARefusedClaim(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		w.store.Inject(func(c leasetest.Call) bool {
			if !leasetest.IsClaim(c) {
				return false
			}
			_, err := w.registry.Drain(w.Context(), id(0))
			w.ok(err)
			return true
		}, 1, leasetest.Fault{Again: leasetest.After(time.Hour)})
		c := w.claimant("i-me")
		if _, err := c.Claim(w.Context(), nil); !errors.Is(err, lease.ErrNoFree) {
			w.Fatal(err)
		}
		c.Settle()
		_, err := w.registry.Undrain(w.Context(), id(0))
		w.ok(err)
		w.store.Settle()
		w.state(0, lease.Free, 1)
	})
}

// Takeovers are sent again as claims are.
func TestTakeOverOfUnknownOutcome(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		w.claim(w.claimant("i-old")).Abandon()
		w.store.Inject(leasetest.IsClaim, 1, leasetest.Fault{Lose: true, Again: leasetest.After(time.Minute)})
		l, err := w.claimant("i-new").TakeOver(w.Context(), w.record(0))
		w.ok(err)
		w.Cleanup(l.Abandon)
		w.state(0, lease.Held, 2)
		w.store.Settle()
		if r := w.record(0); r.Owner != "i-new" || r.Generation != 2 || r.Beat == 0 {
			w.Errorf("after the late copy: %+v", r)
		}
	})
}

// A takeover that is given up frees what it took. A re-adoption that is given up
// does not: the volume may be mounted here.
func TestTakeOverAndReadoptGivenUp(t *testing.T) {
	for name, c := range map[string]struct {
		take func(*lease.Claimant, context.Context, lease.Record) (*lease.Lease, error)
		ends lease.State
	}{
		"take over": {(*lease.Claimant).TakeOver, lease.Free},
		"re-adopt":  {(*lease.Claimant).Readopt, lease.Held},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(w *world) {
				owner := map[lease.State]string{lease.Free: "i-old", lease.Held: "i-me"}[c.ends]
				w.claim(w.claimant(owner)).Abandon()
				claimant := w.claimant("i-me")
				w.store.Inject(leasetest.IsClaim, -1, leasetest.Fault{Lose: true})
				if _, err := c.take(claimant, w.soon(time.Second), w.record(0)); !errors.Is(err, lease.ErrUnreachable) && !errors.Is(err, context.DeadlineExceeded) {
					w.Fatal(err)
				}
				claimant.Settle()
				w.state(0, c.ends, 2)
			})
		})
	}
}

// A release of unknown outcome is sent again, and done where it had landed,
// even when another has claimed the volume since.
func TestReleaseOfUnknownOutcome(t *testing.T) {
	for name, c := range map[string]struct {
		fault      leasetest.Fault
		other      bool // claims it before the release is sent again
		state      lease.State
		generation int64
	}{
		"reply lost":               {leasetest.Fault{Lose: true}, false, lease.Free, 1},
		"never sent":               {leasetest.Fault{Fail: leasetest.Unreachable()}, false, lease.Free, 1},
		"reply lost, then claimed": {leasetest.Fault{Lose: true}, true, lease.Held, 2},
		"late, then claimed":       {leasetest.Fault{Again: leasetest.After(time.Hour)}, true, lease.Held, 2},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(w *world) {
				l := w.claim(w.claimant("i-me"))
				w.store.Inject(leasetest.IsRelease, 1, c.fault)
				if c.other {
					defer time.AfterFunc(10*time.Millisecond, func() { w.claim(w.claimantOn(w.memory, "i-other")) }).Stop()
				}
				w.ok(l.Release(w.Context(), true))
				if cause := context.Cause(l.Context()); !errors.Is(cause, lease.ErrReleased) {
					w.Errorf("the lease ended with %v", cause)
				}
				time.Sleep(time.Second)
				w.store.Settle()
				w.state(0, c.state, c.generation)
				if c.other && w.record(0).Owner != "i-other" {
					w.Errorf("held by %q", w.record(0).Owner)
				}
			})
		})
	}
}

// Where a release cannot be sent within its context, it may be called again.
func TestReleaseAgain(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		l := w.claim(w.claimant("i-me"))
		end := w.store.Inject(leasetest.IsRelease, -1, leasetest.Fault{Fail: leasetest.Unreachable()})
		if err := l.Release(w.soon(5*time.Second), true); !errors.Is(err, lease.ErrUnreachable) {
			w.Fatal(err)
		}
		w.state(0, lease.Held, 1)
		if l.Context().Err() != nil {
			w.Error("the lease ended before it was given back")
		}
		end()
		w.ok(l.Release(w.Context(), true))
		w.ok(l.Release(w.Context(), true))
		w.state(0, lease.Free, 1)
	})
}
