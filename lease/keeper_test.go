package lease_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

// A heartbeat goes out every sixth of the lease, give or take a fifth, costs one
// write unit, and carries DynamoDB's time forward.
func TestBeatInterval(t *testing.T) {
	for _, long := range []time.Duration{10 * time.Second, time.Minute, time.Hour} {
		t.Run(long.String(), func(t *testing.T) {
			inWorld(t, 1, func(w *world) {
				w.set(func(s *lease.Settings) { s.Lease = long })
				w.claim(w.claimant("i-me"))
				before := w.memory.Usage()
				time.Sleep(100 * long / 6)
				beats := w.calls(leasetest.IsBeat)
				var gaps []time.Duration
				for i := range beats[1:] {
					gaps = append(gaps, beats[i+1].At.Sub(beats[i].At))
				}
				low, high := slices.Min(gaps), slices.Max(gaps)
				if every := long / 6; low < every*8/10 || high > every*12/10 || high-low < every/5 {
					w.Errorf("beats are %v to %v apart, of a lease of %v", low, high, long)
				}
				after := w.memory.Usage()
				if n := float64(len(beats)); after.WriteUnits-before.WriteUnits != n || after.ReadUnits != before.ReadUnits {
					w.Errorf("%v beats: from %+v to %+v", n, before, after)
				}
				r := w.record(0)
				if late := time.Since(r.RenewedAt); late < 0 || late > long/6*12/10+time.Second {
					w.Errorf("renewed %v ago, says the record", late)
				}
				if r.Beat != int64(len(beats)) {
					w.Errorf("beat %d after %d beats", r.Beat, len(beats))
				}
			})
		})
	}
}

// No beat is sent twice, whatever happens to it, and each is higher than the
// one before.
func TestNoBeatTwice(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		l := w.claim(w.claimant("i-me"))
		faults := []leasetest.Fault{{}, {Lose: true}, {Fail: leasetest.Unreachable()}, {Fail: leasetest.Throttled()},
			{HoldReply: leasetest.Until(nil)}, {Lose: true, Again: leasetest.After(time.Minute)}}
		for i := range 60 {
			stop := w.store.Inject(leasetest.IsBeat, 1, faults[i%len(faults)])
			time.Sleep(7 * time.Second)
			if i%3 == 0 {
				w.ok(l.Renew(w.Context()))
			}
			stop()
		}
		w.ok(l.Renew(w.Context()))
		last := int64(0)
		for _, c := range w.calls(leasetest.IsBeat) {
			if c.Beat() <= last {
				w.Fatalf("beat %d after %d", c.Beat(), last)
			}
			if !c.Writes[0].Once {
				w.Fatalf("the store may send beat %d again", c.Beat())
			}
			last = c.Beat()
		}
		if last < 60 || w.record(0).Beat != last || l.Context().Err() != nil {
			w.Errorf("the last beat was %d; %+v", last, w.record(0))
		}
		w.store.Settle() // late copies
		if r := w.record(0); r.Beat < last {
			w.Errorf("a late copy turned the beat back to %d", r.Beat)
		}
	})
}

// The lease counts from before the send: the time that the reply took is lost.
func TestLeaseCountsFromBeforeTheSend(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		w.store.Inject(leasetest.IsClaim, 1, leasetest.Fault{HoldReply: leasetest.After(30 * time.Second)})
		w.store.Inject(leasetest.IsBeat, -1, leasetest.Fault{Fail: leasetest.Unreachable()})
		l := w.claim(w.claimant("i-me")) // takes 30 s
		time.Sleep(10*time.Second - time.Nanosecond)
		if l.Danger() {
			w.Error("in danger before two thirds of the lease have passed")
		}
		time.Sleep(time.Nanosecond)
		if !l.Danger() {
			w.Error("not in danger 40 s after the claim was sent")
		}
	})
}

// The same for a heartbeat, whose reply may take up to a sixth of the lease.
func TestRenewalCountsFromBeforeTheSend(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		l := w.claim(w.claimant("i-me"))
		w.store.Inject(leasetest.IsBeat, 1, leasetest.Fault{HoldReply: leasetest.After(9 * time.Second)})
		w.store.Inject(leasetest.IsBeat, -1, leasetest.Fault{Fail: leasetest.Unreachable()})
		w.ok(l.Renew(w.Context()))
		time.Sleep(31 * time.Second) // 40 s since it was sent
		if !l.Danger() {
			w.Error("not in danger 40 s after the last renewal was sent")
		}
	})
}

// Without renewals the lease is in danger at two thirds, and out of it with the
// next renewal; an outage, of an hour here, does not end it.
func TestOutage(t *testing.T) {
	for name, fault := range map[string]leasetest.Fault{
		"unreachable": leasetest.Fault{Fail: leasetest.Unreachable()},
		"throttled":   leasetest.Fault{Fail: leasetest.Throttled()},
		"hanging":     leasetest.Fault{Hold: leasetest.Until(nil)},
		"denied":      leasetest.Fault{Fail: leasetest.Denied()},
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

// Giving back stops the beat first and waits for it: none is sent after the
// release, and none of the lease's goroutines outlives it.
func TestReleaseStopsTheBeat(t *testing.T) {
	for name, give := range map[string]func(*lease.Lease, context.Context) error{
		"release":    func(l *lease.Lease, ctx context.Context) error { return l.Release(ctx, true) },
		"quarantine": func(l *lease.Lease, ctx context.Context) error { return l.Quarantine(ctx, "stuck") },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(w *world) {
				l := w.claim(w.claimant("i-me"))
				gate := make(chan struct{})
				w.store.Inject(leasetest.IsBeat, 1, leasetest.Fault{Hold: leasetest.Until(gate), Again: leasetest.After(5 * time.Minute)})
				time.Sleep(12 * time.Second) // a beat is under way
				if n := len(w.calls(leasetest.IsBeat)); n != 1 {
					w.Fatal(n, "beats")
				}
				w.ok(give(l, w.Context()))
				calls := w.store.Calls()
				if leasetest.IsBeat(calls[len(calls)-1]) {
					w.Error("the release was not the last word")
				}
				after := w.record(0)
				close(gate)
				time.Sleep(10 * time.Minute) // the copy of the beat arrives
				if n := len(w.store.Calls()); n != len(calls) {
					w.Errorf("%d calls after the release", n-len(calls))
				}
				if r := w.record(0); r != after {
					w.Errorf("a late beat changed the record to %+v", r)
				}
				if !errors.Is(context.Cause(l.Context()), lease.ErrReleased) {
					w.Error(context.Cause(l.Context()))
				}
				if err := l.Renew(w.Context()); !errors.Is(err, lease.ErrReleased) {
					w.Errorf("renew after the end: %v", err)
				}
				// synctest.Test itself fails where a goroutine is left.
				synctest.Wait()
			})
		})
	}
}

// A clock that runs 5 % fast does not carry renewed_at away from DynamoDB's
// time, however long the lease is held.
func TestFastClock(t *testing.T) {
	for name, rate := range map[string]float64{"fast": 1.05, "slow": 0.95} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(w *world) {
				c, err := lease.New(lease.Config{Store: w.store, Pool: "ci", Zone: zone, Owner: "i-me",
					Elapsed: func() time.Duration { return time.Duration(float64(w.elapsed()) * rate) }})
				w.ok(err)
				w.claim(c)
				for range 100 {
					time.Sleep(10 * time.Minute)
					r := w.record(0)
					if off := time.Since(r.RenewedAt); off < -2*time.Second || off > 15*time.Second {
						w.Fatalf("the last renewal was %v ago, after %v", off, w.elapsed())
					}
				}
			})
		})
	}
}

// A heartbeat brings a drain to the holder at no cost.
func TestBeatShowsDrain(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		l := w.claim(w.claimant("i-me"))
		_, err := w.registry.Drain(w.Context(), id(0))
		w.ok(err)
		time.Sleep(12 * time.Second)
		if !l.Record().Draining {
			w.Error("the holder doesn't know of the drain")
		}
		for _, c := range w.calls(func(c leasetest.Call) bool { return c.Read != nil }) {
			w.Errorf("read %v", c.Read)
		}
	})
}

// What is noted goes out with the next beat.
func TestNote(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		l := w.claim(w.claimant("i-me"))
		l.Note(lease.Facts{Phase: new(lease.Mounted), UsedPercent: new(int64(61))})
		l.Note(lease.Facts{InodesPercent: new(int64(7))})
		time.Sleep(12 * time.Second)
		if r := w.record(0); r.Phase != lease.Mounted || r.UsedPercent != 61 || r.InodesPercent != 7 {
			w.Errorf("%+v", r)
		}
		l.Note(lease.Facts{UsedPercent: new(int64(62))})
		w.ok(l.Release(w.Context(), true))
		if r := w.record(0); r.Phase != "" || r.UsedPercent != 62 || r.InodesPercent != 7 {
			w.Errorf("%+v", r)
		}
	})
}
