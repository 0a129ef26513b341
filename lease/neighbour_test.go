package lease_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// walk collects the volumes that come after the i-th, until stop says so.
func (w *world) walk(c *lease.Claimant, i int, stop func(lease.Record) bool) (seen []string) {
	w.Helper()
	w.ok(c.Neighbours(w.Context(), id(i), func(r lease.Record, now time.Time) bool {
		if age := time.Since(now); age < 0 || age > time.Second {
			w.Errorf("the time that came with %s is %v off", r.Volume, age)
		}
		seen = append(seen, r.Volume)
		return !stop(r)
	}))
	return seen
}

func never(lease.Record) bool { return false }

func ids(list ...int) (names []string) {
	for _, i := range list {
		names = append(names, id(i))
	}
	return names
}

// A walk goes once round the zone, and shows neither the volume it began at nor
// what is no volume.
func TestNeighbours(t *testing.T) {
	for _, many := range []int{1, 2, 4, 5, 6, 23} {
		inWorld(t, many, func(w *world) {
			c := w.claimant("i-me")
			core, warnings := observer.New(zap.WarnLevel)
			c.Log = zap.New(core)
			for _, from := range []int{0, many / 2, many - 1} {
				var want []int
				for k := 1; k < many; k++ {
					want = append(want, (from+k)%many)
				}
				if got := w.walk(c, from, never); !slices.Equal(got, ids(want...)) {
					w.Errorf("of %d, after %d: %v", many, from, got)
				}
			}
			if warnings.Len() > 0 {
				w.Errorf("%v", warnings.All())
			}
		})
	}
}

// A walk from a volume whose own item is gone shows all the others once.
func TestNeighboursOfNobody(t *testing.T) {
	inWorld(t, 6, func(w *world) {
		w.memory.Put(key(3), nil)
		if got := w.walk(w.claimant("i-me"), 3, never); !slices.Equal(got, ids(4, 5, 0, 1, 2)) {
			w.Errorf("%v", got)
		}
	})
}

// Where the neighbour lives, a walk costs one small Query; and a long one reads
// not many times what it needs.
func TestNeighboursCost(t *testing.T) {
	inWorld(t, 300, func(w *world) {
		c := w.claimant("i-me")
		for _, s := range []struct {
			stop  int
			units float64
			lists int
		}{{1, 1, 1}, {4, 1, 1}, {5, 3, 2}, {60, 12, 3}, {299, 45, 5}} {
			before := w.memory.Usage()
			got := w.walk(c, 0, func(r lease.Record) bool { return r.Volume == id(s.stop) })
			after := w.memory.Usage()
			if len(got) != s.stop {
				w.Errorf("%d shown, to stop at the %d-th", len(got), s.stop)
			}
			if units, lists := after.ReadUnits-before.ReadUnits, after.Lists-before.Lists; units > s.units || lists > s.lists {
				w.Errorf("%d records: %v units in %d requests, more than %v in %d", s.stop, units, lists, s.units, s.lists)
			}
			if d := after.Reads + after.Writes - before.Reads - before.Writes; d != 0 {
				w.Errorf("%d other requests", d)
			}
		}
	})
}

// What is not understood is passed over; a whole fleet of it ends the walk.
func TestNeighboursNotUnderstood(t *testing.T) {
	inWorld(t, 40, func(w *world) {
		c := w.claimant("i-me")
		w.edit(1, lease.Item{"schema": num(2)})
		w.edit(3, lease.Item{"state": str("lent")})
		if got := w.walk(c, 0, func(r lease.Record) bool { return r.Volume == id(5) }); !slices.Equal(got, ids(2, 4, 5)) {
			w.Errorf("%v", got)
		}
		for i := 10; i < 40; i++ {
			w.edit(i, lease.Item{"schema": num(2)})
		}
		if got := w.walk(c, 5, never); !slices.Equal(got, ids(6, 7, 8, 9)) {
			w.Errorf("%v", got)
		}
	})
}

// A walk gets through a lost reply, and ends with its caller's context, also
// while it rests.
func TestNeighboursFaults(t *testing.T) {
	inWorld(t, 500, func(w *world) {
		c := w.claimant("i-me")
		isList := func(c leasetest.Call) bool { return c.List != nil }
		w.store.Inject(isList, 2, leasetest.Fault{Lose: true})
		if got := w.walk(c, 0, func(r lease.Record) bool { return r.Volume == id(2) }); !slices.Equal(got, ids(1, 2)) {
			w.Errorf("%v", got)
		}
		seen, start := 0, time.Now()
		err := c.Neighbours(w.soon(200*time.Millisecond), id(0), func(lease.Record, time.Time) bool { seen++; return true })
		if !errors.Is(err, context.DeadlineExceeded) || seen == 0 || seen == 499 || time.Since(start) > 200*time.Millisecond {
			w.Errorf("%v after %v and %d records", err, time.Since(start), seen)
		}
	})
}

// What the rounds are spread by stays within its bounds and is used in full.
func TestAround(t *testing.T) {
	inWorld(t, 0, func(w *world) {
		c := w.claimant("i-me")
		least, most := time.Hour, time.Duration(0)
		for range 1000 {
			d := c.Around(3*time.Minute, time.Minute)
			least, most = min(least, d), max(most, d)
		}
		if least < 2*time.Minute || least > 125*time.Second || most > 4*time.Minute || most < 235*time.Second {
			w.Errorf("from %v to %v", least, most)
		}
	})
}
