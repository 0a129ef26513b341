package lease_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

const zone = "us-east-1a"

// world is a table with the pool ci in it, on virtual time.
type world struct {
	*testing.T
	memory   *leasetest.Memory
	store    *leasetest.Faulty // on memory
	registry lease.Registry
	born     time.Time
	jump     atomic.Int64 // nanoseconds that Elapsed is ahead: time spent suspended
}

// inWorld runs a test in a synctest bubble, in a world of so many volumes.
func inWorld(t *testing.T, volumes int, run func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, memory: leasetest.NewMemory(), born: time.Now()}
		w.store = leasetest.NewFaulty(w.memory)
		w.registry = lease.Registry{Store: w.memory}
		_, err := w.registry.Init(t.Context(), "ci", lease.DefaultSettings())
		w.ok(err)
		for i := range volumes {
			_, err := w.registry.Add(t.Context(), "ci", zone, volume(i))
			w.ok(err)
			time.Sleep(5 * time.Millisecond) // or the partition's units are used up
		}
		time.Sleep(time.Second) // what the table was asked for until here is forgotten
		run(w)
	})
}

// volume is the i-th oldest.
func volume(i int) lease.Volume {
	return lease.Volume{ID: id(i), SizeGiB: 100, Created: time.UnixMilli(1_700_000_000_000 + int64(i))}
}

func id(i int) string { return fmt.Sprintf("vol-0%016x", 0xa00+i) }

func key(i int) lease.Key { return lease.Key{Partition: lease.Partition("ci", zone), Item: id(i)} }

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) elapsed() time.Duration {
	return time.Since(w.born) + time.Duration(w.jump.Load())
}

// claimant is one on the faulty store.
func (w *world) claimant(owner string) *lease.Claimant {
	w.Helper()
	return w.claimantOn(w.store, owner)
}

func (w *world) claimantOn(s lease.Store, owner string) *lease.Claimant {
	w.Helper()
	return w.newClaimant(s, owner, 1)
}

// claimantSeeded is one of many, each with choices of its own.
func (w *world) claimantSeeded(owner string, seed uint64) *lease.Claimant {
	w.Helper()
	return w.newClaimant(w.store, owner, seed)
}

func (w *world) newClaimant(s lease.Store, owner string, seed uint64) *lease.Claimant {
	w.Helper()
	c, err := lease.New(lease.Config{Store: s, Pool: "ci", Zone: zone, Owner: owner, MountPoint: "/mnt/cache",
		BootID: "boot-" + owner, Elapsed: w.elapsed, Rand: rand.New(rand.NewPCG(7, seed))})
	w.ok(err)
	return c
}

// claim claims, and stops the heartbeat when the test ends.
func (w *world) claim(c *lease.Claimant) *lease.Lease {
	w.Helper()
	l, err := c.Claim(w.Context(), nil)
	w.ok(err)
	w.Cleanup(l.Abandon)
	return l
}

// record is a volume's as it stands in the table.
func (w *world) record(i int) lease.Record {
	w.Helper()
	r, err := lease.Decode(w.memory.Item(key(i)))
	w.ok(err)
	return r
}

// edit changes an item by hand.
func (w *world) edit(i int, set lease.Item, remove ...string) {
	item := w.memory.Item(key(i))
	maps.Copy(item, set)
	for _, attr := range remove {
		delete(item, attr)
	}
	w.memory.Put(key(i), item)
}

// set changes the pool's settings.
func (w *world) set(change func(*lease.Settings)) {
	w.Helper()
	_, err := w.registry.Set(w.Context(), "ci", change)
	w.ok(err)
}

// calls are those that match, of all that the faulty store saw.
func (w *world) calls(match func(leasetest.Call) bool) (found []leasetest.Call) {
	for _, c := range w.store.Calls() {
		if match(c) {
			found = append(found, c)
		}
	}
	return found
}

// state asserts where a volume stands.
func (w *world) state(i int, state lease.State, generation int64) {
	w.Helper()
	if r := w.record(i); r.State != state || r.Generation != generation {
		w.Errorf("%s is %s at generation %d, not %s at %d", r.Volume, r.State, r.Generation, state, generation)
	}
}

// soon is a context that ends after d.
func (w *world) soon(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(w.Context(), d)
	w.Cleanup(cancel)
	return ctx
}

func str(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }
func num(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: fmt.Sprint(n)}
}
func flag(b bool) types.AttributeValue { return &types.AttributeValueMemberBOOL{Value: b} }
