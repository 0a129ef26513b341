package leasetest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/volpool/volpool/lease"
)

// testProtocol: the protocol, on a store as it is.
func testProtocol(t *testing.T, s lease.Store) {
	t.Run("one volume's life", func(t *testing.T) { testLife(t, s) })
	t.Run("many claim at once", func(t *testing.T) { testMany(t, s) })
	t.Run("two pools want one volume", func(t *testing.T) { testTwoPools(t, s) })
}

// pool makes a pool of new volumes, the oldest first.
func pool(t *testing.T, s lease.Store, volumes int) (name string, ids []string) {
	t.Helper()
	g := lease.Registry{Store: s}
	stamp := time.Now().UnixNano()
	name = fmt.Sprintf("pool-%x-%d", stamp, partitions.Add(1))
	if _, err := g.Init(t.Context(), name, lease.DefaultSettings()); err != nil {
		t.Fatal(err)
	}
	for i := range volumes {
		ids = append(ids, fmt.Sprintf("vol-0%016x", stamp+partitions.Add(1)))
		v := lease.Volume{ID: ids[i], SizeGiB: 1, Created: time.UnixMilli(int64(1000 + i))}
		if _, err := g.Add(t.Context(), name, "us-east-1a", v); err != nil {
			t.Fatal(err)
		}
	}
	return name, ids
}

func testLife(t *testing.T, s lease.Store) {
	ctx, g := t.Context(), lease.Registry{Store: s}
	name, ids := pool(t, s, 2)
	a, b := claimant(t, s, name, "i-a"), claimant(t, s, name, "i-b")
	claim := func(c *lease.Claimant) *lease.Lease {
		t.Helper()
		l, err := c.Claim(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	first, second := claim(a), claim(b)
	if first.Volume() != ids[0] || second.Volume() != ids[1] {
		t.Fatalf("claimed %s, then %s; there are %v", first.Volume(), second.Volume(), ids)
	}
	if _, err := a.Claim(ctx, nil); !errors.Is(err, lease.ErrNoFree) {
		t.Fatalf("a third of two: %v", err)
	}
	if err := errors.Join(first.Confirm(ctx), first.IntendFormat(ctx, "ext4", "uuid"), first.FormatDone(ctx)); err != nil {
		t.Fatal(err)
	}
	if err := first.IntendFormat(ctx, "ext4", "uuid"); !errors.Is(err, lease.ErrFormatted) {
		t.Fatalf("format again: %v", err)
	}
	again, err := claimant(t, s, name, "i-a").Readopt(ctx, first.Record())
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Renew(ctx); !errors.Is(err, lease.ErrLost) {
		t.Fatalf("renew after another process re-adopted: %v", err)
	}
	if _, err := g.Drain(ctx, ids[1]); err != nil {
		t.Fatal(err)
	}
	if err := second.Renew(ctx); err != nil || !second.Record().Draining {
		t.Fatalf("the heartbeat didn't bring the drain: %+v, %v", second.Record(), err)
	}
	if err := errors.Join(again.Release(ctx, true), second.Release(ctx, true)); err != nil {
		t.Fatal(err)
	}
	p, err := g.Pool(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	rs, odd, _, err := g.Volumes(ctx, p)
	if err != nil || len(rs) != 2 || odd != nil {
		t.Fatal(rs, odd, err)
	}
	if r := rs[0]; r.State != lease.Free || r.Generation != 2 || r.Format != lease.FormatDone || r.LastOwner != "i-a" {
		t.Errorf("after its release: %+v", r)
	}
	if r := rs[1]; r.State != lease.Drained || r.Generation != 1 {
		t.Errorf("after its release while draining: %+v", r)
	}
	if l := claim(b); l.Volume() != ids[0] || l.Generation() != 3 {
		t.Errorf("claimed %s at generation %d", l.Volume(), l.Generation())
	} else if err := l.Release(ctx, false); err != nil {
		t.Error(err)
	}
}

func testMany(t *testing.T, s lease.Store) {
	const many = 12
	name, _ := pool(t, s, many)
	var mu sync.Mutex
	taken := map[string]int64{}
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			l, err := claimant(t, s, name, fmt.Sprintf("i-%d", i)).Claim(t.Context(), nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer l.Abandon()
			mu.Lock()
			defer mu.Unlock()
			taken[l.Volume()] = l.Generation()
		})
	}
	wg.Wait()
	if len(taken) != many {
		t.Errorf("%d claimed %d volumes", many, len(taken))
	}
}

func testTwoPools(t *testing.T, s lease.Store) {
	g := lease.Registry{Store: s}
	one, _ := pool(t, s, 0)
	two, _ := pool(t, s, 0)
	id := fmt.Sprintf("vol-0%016x", time.Now().UnixNano()+partitions.Add(1))
	var wg sync.WaitGroup
	errs := map[string]*error{one: new(error), two: new(error)}
	for name, err := range errs {
		wg.Go(func() {
			for { // DynamoDB turns colliding transactions away
				_, *err = g.Add(t.Context(), name, "us-east-1a", lease.Volume{ID: id, SizeGiB: 1, Created: time.UnixMilli(1)})
				if !errors.Is(*err, lease.ErrThrottled) {
					return
				}
			}
		})
	}
	wg.Wait()
	r, err := g.Find(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range errs {
		there, taken := errors.AsType[*lease.RegisteredError](*err)
		if (name == r.Pool) != (*err == nil) || name != r.Pool && (!taken || there.Record.Pool != r.Pool) {
			t.Errorf("it is in %s; add to %s: %v", r.Pool, name, *err)
		}
	}
}
