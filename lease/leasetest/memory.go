// Package leasetest is for testing what is built on package lease: a table in
// memory, a store that fails on demand, and the suite of tests that the memory
// and DynamoDB both pass.
package leasetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/volpool/volpool/lease"
)

// Memory is a table in memory that behaves as DynamoDB does: its conditions, its
// sparse index, its transactions, its clock of whole seconds, what it charges,
// and the limits of a partition. The clock is time.Now's, so that it is virtual
// inside a synctest bubble.
//
// Attribute values are shared with the caller and never changed.
type Memory struct {
	mu         sync.Mutex
	partitions map[string]*partition
	usage      Usage
}

// Usage is what the table was asked for so far.
type Usage struct {
	Writes       int // single writes that were made
	Refused      int // writes and transactions whose condition failed
	Transactions int // that were made
	Reads, Lists int
	Throttled    int
	WriteUnits   float64
	ReadUnits    float64
}

type partition struct {
	items         map[string]lease.Item
	order         []string // their sort keys
	free          []string // slots and sort keys of the free index, joined by slotEnd
	writes, reads bucket
}

// slotEnd sorts below all that a slot is made of.
const slotEnd = "\x00"

// NewMemory returns an empty table.
func NewMemory() *Memory { return &Memory{partitions: map[string]*partition{}} }

// Usage returns what was consumed so far.
func (m *Memory) Usage() Usage {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.usage
}

// Item shows an item as it stands, without charge; nil where there is none.
func (m *Memory) Item(key lease.Key) lease.Item {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.at(key.Partition).items[key.Item])
}

// Put writes an item as a hand in the console would: whole, unconditionally,
// and without charge. nil deletes it.
func (m *Memory) Put(key lease.Key, item lease.Item) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if item = maps.Clone(item); item != nil {
		item[lease.PartitionKey], item[lease.SortKey] = str(key.Partition), str(key.Item)
	}
	m.at(key.Partition).put(key.Item, item)
}

func (m *Memory) at(name string) *partition {
	p := m.partitions[name]
	if p == nil {
		p = &partition{items: map[string]lease.Item{}}
		p.writes, p.reads = newBucket(writeLimit), newBucket(readLimit)
		m.partitions[name] = p
	}
	return p
}

// put keeps the index beside the items.
func (p *partition) put(sort string, item lease.Item) {
	was := p.items[sort]
	if slot, ok := slotOf(was); ok {
		drop(&p.free, slot+slotEnd+sort)
	}
	if slot, ok := slotOf(item); ok {
		insert(&p.free, slot+slotEnd+sort)
	}
	switch {
	case item == nil:
		delete(p.items, sort)
		drop(&p.order, sort)
	case was == nil:
		insert(&p.order, sort)
		fallthrough
	default:
		p.items[sort] = item
	}
}

func slotOf(item lease.Item) (string, bool) {
	slot, ok := item[lease.FreeSlot].(*types.AttributeValueMemberS)
	if !ok {
		return "", false
	}
	return slot.Value, true
}

func insert(sorted *[]string, s string) {
	if at, found := slices.BinarySearch(*sorted, s); !found {
		*sorted = slices.Insert(*sorted, at, s)
	}
}

func drop(sorted *[]string, s string) {
	if at, found := slices.BinarySearch(*sorted, s); found {
		*sorted = slices.Delete(*sorted, at, at+1)
	}
}

// date is the clock of the replies.
func date() time.Time { return time.Now().UTC().Truncate(time.Second) }

func (m *Memory) throttled(op string) error {
	m.usage.Throttled++
	return &lease.StoreError{Op: op, Kind: lease.ErrThrottled, Err: errors.New("the partition's units are used up")}
}

func invalid(op, format string, args ...any) error {
	return &lease.StoreError{Op: op, Kind: lease.ErrTableSchema, Err: fmt.Errorf(format, args...)}
}

// ended is the answer to a caller who has gone.
func ended(ctx context.Context, op string) error {
	if ctx.Err() == nil {
		return nil
	}
	return &lease.StoreError{Op: op, Kind: lease.ErrUnreachable, Err: context.Cause(ctx)}
}

func str(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }
