package leasetest

import (
	"context"
	"testing"
	"time"

	"github.com/volpool/volpool/lease"
)

// world is a pool of one volume in memory, for the suite to see what the
// protocol writes.
type world struct {
	t         *testing.T
	memory    *Memory
	store     *Faulty
	key       lease.Key
	registry  lease.Registry
	me, other *lease.Claimant
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, memory: NewMemory(), key: lease.Key{Partition: "ci/us-east-1a", Item: "vol-00000000000000001"}}
	w.store = NewFaulty(w.memory)
	w.registry = lease.Registry{Store: w.store}
	w.me, w.other = claimant(t, w.store, "ci", "i-me"), claimant(t, w.store, "ci", "i-other")
	if _, err := w.registry.Init(t.Context(), "ci", lease.DefaultSettings()); err != nil {
		t.Fatal(err)
	}
	if err := w.add(); err != nil {
		t.Fatal(err)
	}
	return w
}

func claimant(t *testing.T, s lease.Store, pool, owner string) *lease.Claimant {
	t.Helper()
	c, err := lease.New(lease.Config{Store: s, Pool: pool, Zone: "us-east-1a", Owner: owner, MountPoint: "/mnt/cache"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (w *world) add() error {
	_, err := w.registry.Add(w.t.Context(), "ci", "us-east-1a", lease.Volume{ID: w.key.Item, SizeGiB: 1, Created: time.Now()})
	return err
}

func (w *world) admin(do func(lease.Registry, context.Context, string) (lease.Record, error)) error {
	_, err := do(w.registry, w.t.Context(), w.key.Item)
	return err
}

func (w *world) claim() *lease.Lease {
	w.t.Helper()
	l, err := w.me.Claim(w.t.Context(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

func (w *world) record() lease.Record {
	w.t.Helper()
	r, err := lease.Decode(w.memory.Item(w.key))
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}
