package lease_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

// Without renewals the lease is in danger at two thirds, and out of it with the
// next renewal; an outage, of an hour here, does not end it.
func TestOutage(t *testing.T) {
	for name, fault := range map[string]leasetest.Fault{
		"unreachable": {Fail: leasetest.Unreachable()},
		"throttled":   {Fail: leasetest.Throttled()},
		"hanging":     {Hold: leasetest.Until(nil)},
		"denied":      {Fail: leasetest.Denied()},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(w *world) {
				l := w.claim(w.claimant("i-me"))
				end := w.store.Inject(leasetest.IsBeat, -1, fault)
				time.Sleep(40*time.Second - time.Nanosecond)
				if l.Danger() {
					w.Error("in danger before two thirds")
				}
				time.Sleep(time.Nanosecond)
				if !l.Danger() {
					w.Error("not in danger at two thirds")
				}
				tries := len(w.calls(leasetest.IsBeat))
				time.Sleep(time.Hour)
				if err := l.Context().Err(); err != nil {
					w.Errorf("the outage ended the lease: %v", context.Cause(l.Context()))
				}
				if n := len(w.calls(leasetest.IsBeat)) - tries; n < 3600/20 {
					w.Errorf("tried %d times in an hour", n)
				}
				end()
				time.Sleep(25 * time.Second) // a hanging try and the pause after it
				if l.Danger() || w.record(0).SilentAt(time.Now()) {
					w.Error("the outage is over, and it didn't renew")
				}
			})
		})
	}
}

// After a suspend, which no timer notices, the lease renews at once, by
// CLOCK_BOOTTIME, and tells the time that has passed.
func TestSuspend(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		l := w.claim(w.claimant("i-me"))
		time.Sleep(15 * time.Second)
		before := len(w.calls(leasetest.IsBeat))
		w.jump.Store(int64(10 * time.Minute))
		if !l.Danger() {
			w.Error("not in danger after a suspend of ten minutes")
		}
		time.Sleep(2500 * time.Millisecond) // a quarter of the interval
		if n := len(w.calls(leasetest.IsBeat)) - before; n != 1 {
			w.Fatalf("%d beats since", n)
		}
		if l.Danger() {
			w.Error("in danger, though it renewed")
		}
		if r := w.record(0); time.Until(r.RenewedAt) < 9*time.Minute {
			w.Errorf("renewed_at leaves the suspend out: %v", r.RenewedAt)
		}
	})
}

// Taken over while it was suspended, the holder learns it with its next beat:
// its context ends with the cause, and the successor is not disturbed.
func TestLost(t *testing.T) {
	for name, take := range map[string]func(w *world){
		"taken over": func(w *world) {
			l, err := w.claimantOn(w.memory, "i-new").TakeOver(w.Context(), w.record(0))
			w.ok(err)
			w.Cleanup(l.Abandon)
		},
		"freed as abandoned": func(w *world) {
			freed, err := w.claimantOn(w.memory, "i-new").FreeAbandoned(w.Context(), w.record(0))
			if !freed || err != nil {
				w.Fatal(freed, err)
			}
		},
		"re-adopted by itself": func(w *world) {
			l, err := w.claimantOn(w.memory, "i-me").Readopt(w.Context(), w.record(0))
			w.ok(err)
			w.Cleanup(l.Abandon)
		},
		"deleted": func(w *world) { w.memory.Put(key(0), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(w *world) {
				l := w.claim(w.claimant("i-me"))
				take(w)
				after := w.memory.Item(key(0))
				time.Sleep(12 * time.Second)
				lost, ok := errors.AsType[*lease.LostError](context.Cause(l.Context()))
				if !ok || !errors.Is(lost, lease.ErrLost) || lost.Volume != id(0) || lost.Generation != 1 {
					w.Fatalf("the lease ended with %v", context.Cause(l.Context()))
				}
				if after != nil && lost.Now.Generation != w.record(0).Generation {
					w.Errorf("lost to %+v", lost.Now)
				}
				if !l.Danger() {
					w.Error("a lost lease is not in danger")
				}
				for what, err := range map[string]error{"renew": l.Renew(w.Context()), "confirm": l.Confirm(w.Context()),
					"intend to format": l.IntendFormat(w.Context(), "ext4", "uuid"), "format done": l.FormatDone(w.Context())} {
					if !errors.Is(err, lease.ErrLost) {
						w.Errorf("%s: %v", what, err)
					}
				}
				beats := len(w.calls(leasetest.IsBeat))
				time.Sleep(time.Minute)
				if n := len(w.calls(leasetest.IsBeat)); n != beats {
					w.Errorf("%d beats after the loss", n-beats)
				}
				w.ok(l.Release(w.Context(), true)) // there is nothing to give back
				if after != nil {
					if r := w.record(0); r.LastOwner == "i-me" {
						w.Errorf("the release of a lost lease changed %+v", r)
					}
				}
			})
		})
	}
}

// An item that was edited by hand so that it cannot be understood is no loss:
// the mount stays, the keeper goes on.
func TestOddItemIsNoLoss(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		l := w.claim(w.claimant("i-me"))
		w.edit(0, lease.Item{"schema": num(2)})
		time.Sleep(time.Minute)
		if l.Context().Err() != nil {
			w.Error(context.Cause(l.Context()))
		}
		if !l.Danger() {
			w.Error("not in danger, though it cannot renew")
		}
		w.edit(0, lease.Item{"schema": num(1)})
		time.Sleep(12 * time.Second)
		if l.Danger() {
			w.Error("the item is as it was, and it didn't renew")
		}
	})
}
