package lease_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

// A hundred instances boot at once: everyone gets a volume of its own, for a
// few writes each, where walking the list in step would take fifty.
func TestHerd(t *testing.T) {
	const many = 100
	for name, volumes := range map[string]int{"plenty": 2 * many, "just enough": many} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, volumes, func(w *world) {
				w.store.Latency(5*time.Millisecond, 0.5, rand.New(rand.NewPCG(1, 2)))
				before, start := w.memory.Usage(), time.Now()
				var mu sync.Mutex
				taken := map[string]bool{}
				var last time.Duration
				var wg sync.WaitGroup
				for i := range many {
					wg.Go(func() {
						l, err := w.claimantSeeded(fmt.Sprintf("i-%d", i), uint64(i)).Claim(w.Context(), nil)
						if err != nil {
							w.Error(err)
							return
						}
						defer l.Abandon()
						mu.Lock()
						defer mu.Unlock()
						taken[l.Volume()], last = true, time.Since(start)
					})
				}
				wg.Wait()
				after := w.memory.Usage()
				writes := float64(after.Writes+after.Refused-before.Writes-before.Refused) / many
				t.Logf("%.1f writes and %.1f read units each, the last after %v", writes, (after.ReadUnits-before.ReadUnits)/many, last)
				if len(taken) != many {
					w.Errorf("%d took %d volumes", many, len(taken))
				}
				if writes > 6 {
					w.Errorf("%.1f writes each", writes)
				}
				for i := range volumes {
					if r := w.record(i); (r.State == lease.Held) != taken[r.Volume] || r.Generation > 1 {
						w.Errorf("%+v", r)
					}
				}
			})
		})
	}
}

// With fewer volumes than instances, as many are served as there are volumes,
// and the others learn it soon.
func TestHerdTooLarge(t *testing.T) {
	inWorld(t, 30, func(w *world) {
		w.store.Latency(5*time.Millisecond, 0.5, rand.New(rand.NewPCG(1, 2)))
		var mu sync.Mutex
		served, none := 0, 0
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				l, err := w.claimantSeeded(fmt.Sprintf("i-%d", i), uint64(i)).Claim(w.soon(10*time.Second), nil)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					l.Abandon()
					served++
				case errors.Is(err, lease.ErrNoFree):
					none++
				default:
					w.Error(err)
				}
			})
		}
		wg.Wait()
		if served != 30 || none != 70 {
			w.Errorf("%d were served, %d were told that there is none", served, none)
		}
	})
}

// Instances come and go for a while, with a network that fails now and then: no
// volume ever has two holders, and no generation is used twice.
func TestManyComeAndGo(t *testing.T) {
	inWorld(t, 5, func(w *world) {
		faults := rand.New(rand.NewPCG(3, 4))
		var mu sync.Mutex
		roll := func(n int) func(leasetest.Call) bool {
			return func(c leasetest.Call) bool {
				mu.Lock()
				defer mu.Unlock()
				return leasetest.IsWrite(c) && faults.IntN(n) == 0
			}
		}
		w.store.Inject(roll(10), -1, leasetest.Fault{Lose: true})
		w.store.Inject(roll(10), -1, leasetest.Fault{Fail: leasetest.Unreachable(), Again: leasetest.After(30 * time.Second)})
		w.store.Inject(roll(10), -1, leasetest.Fault{Again: leasetest.After(time.Minute)})
		w.store.Inject(roll(20), -1, leasetest.Fault{Fail: leasetest.Throttled()})
		w.store.Latency(5*time.Millisecond, 0.9, rand.New(rand.NewPCG(1, 2)))

		holders := map[string]string{}
		used := map[string]string{}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(5, uint64(i)))
				c := w.claimantSeeded(fmt.Sprintf("i-%d", i), uint64(i))
				for range 25 {
					l, err := c.Claim(w.soon(time.Duration(r.IntN(400))*time.Millisecond), nil)
					if err != nil {
						time.Sleep(time.Second)
						continue
					}
					token := fmt.Sprint(l.Volume(), " ", l.Generation())
					mu.Lock()
					if other := holders[l.Volume()]; other != "" {
						w.Errorf("%s has %s, and so has %s", other, token, c.Owner)
					}
					if other, twice := used[token]; twice {
						w.Errorf("%s had %s before %s", other, token, c.Owner)
					}
					holders[l.Volume()], used[token] = c.Owner, c.Owner
					mu.Unlock()
					time.Sleep(time.Duration(r.IntN(30)) * time.Second)
					if l.Context().Err() != nil {
						w.Errorf("%s lost %s, that nobody else took", c.Owner, token)
					}
					mu.Lock()
					delete(holders, l.Volume())
					mu.Unlock()
					if err := l.Release(w.Context(), true); err != nil {
						w.Error(err)
					}
				}
				c.Settle()
			})
		}
		wg.Wait()
		w.store.Settle()
		if len(used) < 50 {
			w.Errorf("only %d leases", len(used))
		}
		for i := range 5 {
			if r := w.record(i); r.State != lease.Free {
				w.Errorf("leaked: %+v", r)
			}
		}
	})
}
