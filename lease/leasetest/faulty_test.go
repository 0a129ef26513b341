package leasetest_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

// Each fault does to a call what it says: what the caller sees, and what
// happened in the table.
func TestFaults(t *testing.T) {
	for name, c := range map[string]struct {
		fault   leasetest.Fault
		want    error // nil: answered
		takes   time.Duration
		written bool // once the caller has its answer
		later   bool // once all copies have arrived
	}{
		"none":            {leasetest.Fault{}, nil, 0, true, true},
		"reply lost":      {leasetest.Fault{Lose: true}, lease.ErrUnreachable, 0, true, true},
		"before":          {leasetest.Fault{Fail: leasetest.Unreachable()}, lease.ErrUnreachable, 0, false, false},
		"throttled":       {leasetest.Fault{Fail: leasetest.Throttled()}, lease.ErrThrottled, 0, false, false},
		"late":            {leasetest.Fault{Fail: leasetest.Unreachable(), Again: leasetest.After(time.Minute)}, lease.ErrUnreachable, 0, false, true},
		"held":            {leasetest.Fault{Hold: leasetest.After(time.Second)}, nil, time.Second, true, true},
		"held forever":    {leasetest.Fault{Hold: leasetest.Until(nil)}, lease.ErrUnreachable, time.Hour, false, false},
		"reply held":      {leasetest.Fault{HoldReply: leasetest.After(time.Second)}, nil, time.Second, true, true},
		"reply never out": {leasetest.Fault{HoldReply: leasetest.Until(nil)}, lease.ErrUnreachable, time.Hour, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := leasetest.NewMemory()
				f := leasetest.NewFaulty(m)
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				f.Inject(leasetest.IsWrite, 1, c.fault)
				key := lease.Key{Partition: "ci/a", Item: "1"}
				start := time.Now()
				_, err := f.Write(ctx, lease.Write{Key: key, Set: lease.Item{"owner": str("me")}})
				if !errors.Is(err, c.want) || time.Since(start) != c.takes {
					t.Errorf("%v after %v", err, time.Since(start))
				}
				if got := m.Item(key) != nil; got != c.written {
					t.Errorf("written: %v", got)
				}
				f.Settle()
				if got := m.Item(key) != nil; got != c.later {
					t.Errorf("written in the end: %v", got)
				}
				if _, err := f.Write(ctx, lease.Write{Key: key, Set: lease.Item{"owner": str("me")}}); (err == nil) != (ctx.Err() == nil) {
					t.Errorf("the next call, after the fault: %v", err)
				}
			})
		})
	}
}

// An outage lasts until it is ended, and latency is what it was set to.
func TestOutageAndLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := leasetest.NewFaulty(leasetest.NewMemory())
		key := lease.Key{Partition: "ci/a", Item: "1"}
		end := f.Inject(leasetest.All, -1, leasetest.Fault{Fail: leasetest.Unreachable()})
		for range 10 {
			if _, err := f.Read(t.Context(), key); !errors.Is(err, lease.ErrUnreachable) {
				t.Fatal(err)
			}
		}
		end()
		f.Latency(10*time.Millisecond, 0.2, rand.New(rand.NewPCG(1, 2)))
		for range 100 {
			start := time.Now()
			if _, err := f.Read(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took < 8*time.Millisecond || took > 12*time.Millisecond {
				t.Fatal(took)
			}
		}
		if n := len(f.Calls()); n != 110 {
			t.Errorf("%d calls are on record", n)
		}
	})
}
