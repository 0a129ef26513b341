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

// stubborn is a store whose heartbeats do not come back before the gate opens,
// whatever becomes of their context.
type stubborn struct {
	lease.Store
	gate chan struct{}
}

func (s stubborn) Write(ctx context.Context, w lease.Write) (lease.Reply, error) {
	if leasetest.IsBeat(leasetest.Call{Writes: []lease.Write{w}}) {
		<-s.gate
	}
	return s.Store.Write(ctx, w)
}

// Nothing is given back while a heartbeat is under way.
func TestReleaseWaitsForTheBeat(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		gate := make(chan struct{})
		l := w.claim(w.claimantOn(stubborn{w.store, gate}, "i-me"))
		time.Sleep(12 * time.Second) // a beat is under way
		done := make(chan error)
		go func() { done <- l.Release(w.Context(), true) }()
		synctest.Wait()
		if n := len(w.calls(leasetest.IsRelease)); n != 0 {
			w.Error("released while a beat is under way")
		}
		close(gate)
		w.ok(<-done)
		w.state(0, lease.Free, 1)
	})
}

// A reply that comes late brings an old Date. It does not turn the clock back.
func TestLateReply(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		l := w.claim(w.claimant("i-me"))
		w.store.Inject(leasetest.IsBeat, 1, leasetest.Fault{HoldReply: leasetest.After(9 * time.Second)})
		late := make(chan error)
		go func() { late <- l.Renew(w.Context()) }()
		time.Sleep(7 * time.Second)
		w.ok(l.Renew(w.Context()))
		w.ok(<-late)
		w.ok(l.Renew(w.Context()))
		if off := time.Since(w.record(0).RenewedAt); off > time.Second {
			w.Errorf("renewed_at is %v behind", off)
		}
	})
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
