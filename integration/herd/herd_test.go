//go:build !race

// Package herd measures what many claimants cost that come at once: the real
// lease code on the memory store, which has a partition's limits, in virtual time,
// with replies that take about 5 ms. All choices are seeded, so a figure is the
// same at each run.
package herd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/volpool/volpool/integration/figure"
	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

const zone = "us-east-1a"

// counted is one claimant's store: it counts the writes.
type counted struct {
	lease.Store
	writes int
}

func (c *counted) Write(ctx context.Context, w lease.Write) (lease.Reply, error) {
	reply, err := c.Store.Write(ctx, w)
	if _, refused := errors.AsType[*lease.ConditionError](err); refused || err == nil {
		c.writes++
	}
	return reply, err
}

// herd is so many claimants on so many free volumes.
type herd struct {
	t                   *testing.T
	contenders, volumes int
	within              time.Duration // they come in this time
	store               *leasetest.Faulty
	memory              *leasetest.Memory
	rng                 *rand.Rand
	writes              []int // of each
	taken               []int // places in the order, as they were taken
	reads               float64
	last                time.Duration
}

func newHerd(t *testing.T, contenders, volumes int, within time.Duration) *herd {
	t.Helper()
	h := &herd{t: t, contenders: contenders, volumes: volumes, within: within, memory: leasetest.NewMemory(), rng: rand.New(rand.NewPCG(1, 2))}
	h.store = leasetest.NewFaulty(h.memory)
	registry := lease.Registry{Store: h.memory}
	if _, err := registry.Init(t.Context(), "ci", lease.DefaultSettings()); err != nil {
		t.Fatal(err)
	}
	for i := range volumes {
		if _, err := registry.Add(t.Context(), "ci", zone, lease.Volume{ID: id(i), SizeGiB: 1, Created: time.UnixMilli(1_700_000_000_000 + int64(i))}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond) // or the partition's units are used up
	}
	time.Sleep(time.Minute)
	h.store.Latency(5*time.Millisecond, 0.5, rand.New(rand.NewPCG(3, 4)))
	return h
}

func id(i int) string { return fmt.Sprintf("vol-%017x", i) }

// run lets them come. claim ends with the place that was taken.
func (h *herd) run(claim func(ctx context.Context, i int, s lease.Store) (int, error)) {
	before, start := h.memory.Usage(), time.Now()
	h.writes = make([]int, h.contenders)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range h.contenders {
		comes := time.Duration(h.rng.Int64N(int64(h.within)))
		wg.Go(func() {
			time.Sleep(comes)
			s := &counted{Store: h.store}
			place, err := claim(h.t.Context(), i, s)
			mu.Lock()
			defer mu.Unlock()
			h.writes[i] = s.writes
			if err != nil {
				h.t.Error(err)
				return
			}
			h.taken, h.last = append(h.taken, place), time.Since(start)
		})
	}
	wg.Wait()
	h.reads = h.memory.Usage().ReadUnits - before.ReadUnits
	if twice := len(h.taken) - len(slices.Compact(slices.Sorted(slices.Values(h.taken)))); twice > 0 {
		h.t.Errorf("%d volumes were taken twice", twice)
	}
}

// claim is the project's.
func claim(t *testing.T) func(ctx context.Context, i int, s lease.Store) (int, error) {
	born := time.Now()
	return func(ctx context.Context, i int, s lease.Store) (int, error) {
		c, err := lease.New(lease.Config{Store: s, Pool: "ci", Zone: zone, Owner: fmt.Sprintf("i-%d", i), MountPoint: "/mnt/cache",
			Elapsed: func() time.Duration { return time.Since(born) }, Rand: rand.New(rand.NewPCG(5, uint64(i)))})
		if err != nil {
			return 0, err
		}
		l, err := c.Claim(ctx, nil)
		if err != nil {
			return 0, err
		}
		l.Abandon()
		return placeOf(l.Volume())
	}
}

func placeOf(volume string) (place int, err error) {
	_, err = fmt.Sscanf(volume, "vol-%x", &place)
	return place, err
}

// walk is what is done without a lease of our kind: read the list, and try one
// volume after the other until one is one's own.
func walk(ctx context.Context, i int, s lease.Store) (int, error) {
	num := func(n string) types.AttributeValue { return &types.AttributeValueMemberN{Value: n} }
	str := func(v string) types.AttributeValue { return &types.AttributeValueMemberS{Value: v} }
	after := "!"
	for {
		page, err := s.List(ctx, lease.List{Partition: lease.Partition("ci", zone), Free: true, After: after, Limit: 100})
		if errors.Is(err, lease.ErrThrottled) {
			time.Sleep(time.Second)
			continue
		}
		if err != nil {
			return 0, err
		}
		for _, item := range page.Items {
			volume := item[lease.SortKey].(*types.AttributeValueMemberS).Value
			after = item[lease.FreeSlot].(*types.AttributeValueMemberS).Value
			err := lease.ErrThrottled
			for errors.Is(err, lease.ErrThrottled) {
				_, err = s.Write(ctx, lease.Write{Key: lease.Key{Partition: lease.Partition("ci", zone), Item: volume},
					If:     []lease.Condition{{Attr: "state", Op: lease.Equal, Value: str("free")}},
					Set:    lease.Item{"state": str("held"), "generation": num("1"), "owner": str(fmt.Sprint(i))},
					Remove: []string{lease.FreeSlot}})
				if errors.Is(err, lease.ErrThrottled) {
					time.Sleep(time.Second)
				}
			}
			if _, refused := errors.AsType[*lease.ConditionError](err); !refused {
				if err != nil {
					return 0, err
				}
				return placeOf(volume)
			}
		}
		if len(page.Items) == 0 {
			return 0, lease.ErrNoFree
		}
	}
}

func (h *herd) perWinner(total float64) float64 { return total / float64(max(1, len(h.taken))) }

func (h *herd) written() float64 {
	sum := 0
	for _, n := range h.writes {
		sum += n
	}
	return h.perWinner(float64(sum))
}

// dense is the share of the claims within the lowest places.
func (h *herd) dense() float64 {
	low := 0
	for _, place := range h.taken {
		if place < h.contenders {
			low++
		}
	}
	return h.perWinner(float64(low))
}

// figures fails the test where one is beyond its limit.
type figures struct{ t *testing.T }

func (f figures) atMost(name string, value float64, unit string, limit float64) {
	f.t.Helper()
	if !figure.AtMost(name, value, unit, limit) {
		f.t.Errorf("%s is %.4g %s, want <= %.4g", name, value, unit, limit)
	}
}

func (f figures) atLeast(name string, value float64, unit string, limit float64) {
	f.t.Helper()
	if !figure.AtLeast(name, value, unit, limit) {
		f.t.Errorf("%s is %.4g %s, want >= %.4g", name, value, unit, limit)
	}
}

// TestFiguresHerd1000: a thousand instances boot within a second.
func TestFiguresHerd1000(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, h := figures{t}, newHerd(t, 1000, 2000, time.Second)
		h.run(claim(t))
		f.atLeast("herd1000.served", float64(len(h.taken)), "instances", 1000)
		f.atMost("herd1000.writes", h.written(), "writes", 2.5)
		f.atMost("herd1000.read_units", h.perWinner(h.reads), "units", 10)
		f.atMost("herd1000.seconds", h.last.Seconds(), "s", 8)
		f.atLeast("herd1000.dense", h.dense(), "of 1", 0.95)
	})
	synctest.Test(t, func(t *testing.T) {
		// All 250 times slower, so that they do not wait for the partition's
		// limits: it would take a minute to compute.
		h := newHerd(t, 1000, 2000, 250*time.Second)
		h.store.Latency(1250*time.Millisecond, 0.5, rand.New(rand.NewPCG(3, 4)))
		h.run(walk)
		figure.Tell("herd1000.walk.writes", h.written(), "writes")
	})
	synctest.Test(t, func(t *testing.T) {
		f, h := figures{t}, newHerd(t, 1000, 2000, 10*time.Millisecond)
		h.run(claim(t))
		f.atMost("herd1000.burst.writes", h.written(), "writes", 5)
		figure.Tell("herd1000.burst.read_units", h.perWinner(h.reads), "units")
		figure.Tell("herd1000.burst.seconds", h.last.Seconds(), "s")
		figure.Tell("herd1000.burst.dense", h.dense(), "of 1")
	})
}

// TestAlone: who comes alone gets the lowest, for one read and one write.
func TestAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHerd(t, 50, 100, time.Minute)
		h.contenders = 1
		for i := range 50 {
			before := h.memory.Usage()
			h.run(claim(t))
			after := h.memory.Usage()
			if h.taken[i] != i || h.writes[0] != 1 || after.Lists-before.Lists != 1 {
				t.Errorf("alone for the %dth time: took the one at %d, for %d writes and %d reads", i, h.taken[i], h.writes[0], after.Lists-before.Lists)
			}
		}
	})
}

// TestFiguresHerd100: as many volumes as claimants, all given back at one moment.
func TestFiguresHerd100(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, h := figures{t}, newHerd(t, 100, 100, time.Millisecond)
		born := time.Now()
		var held []*lease.Lease
		c, err := lease.New(lease.Config{Store: h.memory, Pool: "ci", Zone: zone, Owner: "i-before",
			Elapsed: func() time.Duration { return time.Since(born) }, Rand: rand.New(rand.NewPCG(5, 6))})
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			l, err := c.Claim(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, l)
		}
		one := claim(t)
		for _, l := range held {
			go l.Release(t.Context(), true)
		}
		h.run(func(ctx context.Context, i int, s lease.Store) (int, error) {
			for {
				place, err := one(ctx, i, s)
				if !errors.Is(err, lease.ErrNoFree) {
					return place, err
				}
				time.Sleep(time.Second)
			}
		})
		f.atMost("herd100.writes", h.written(), "writes", 4)
		f.atMost("herd100.writes.max", float64(slices.Max(h.writes)), "writes", 10)
		figure.Tell("herd100.seconds", h.last.Seconds(), "s")
	})
}
