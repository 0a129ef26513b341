package lease

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// Store is the four calls the protocol makes. [DynamoDB] is the real one;
// package leasetest has one in memory and the suite that both pass.
//
// A failed condition is a [*ConditionError]; every other error leaves the
// outcome of a write unknown, and wraps one of the sentinels below.
type Store interface {
	// Write changes one item where its conditions hold, and returns it as it
	// is afterwards.
	Write(ctx context.Context, w Write) (Reply, error)
	// WriteAll makes all of the writes or none. It returns no items.
	WriteAll(ctx context.Context, ws []Write) (Reply, error)
	// Read reads one item, strongly consistent. A missing item is nil.
	Read(ctx context.Context, key Key) (Reply, error)
	// List reads a partition, or its part of the free index, in order and
	// strongly consistent.
	List(ctx context.Context, in List) (Page, error)
}

// Item is one item of the table.
type Item = map[string]types.AttributeValue

// Key names an item.
type Key struct{ Partition, Item string }

// Op compares an attribute with a value.
type Op int

// The comparisons that the protocol's conditions need. As in DynamoDB, an
// absent attribute equals nothing, is less than nothing, and differs from all.
const (
	Equal Op = iota
	NotEqual
	Less
	Absent
)

// Condition is one clause of a write's condition.
type Condition struct {
	Attr  string
	Op    Op
	Value types.AttributeValue // nil for Absent
}

// Write is a conditional change of one item: all clauses of If must hold.
type Write struct {
	Key    Key
	If     []Condition
	Set    Item
	Remove []string
	// Once forbids the store to send the write a second time by itself. A
	// heartbeat is never sent again: each try is the next beat.
	Once bool
}

// List asks for a partition's items in the order of the sort key, or of the
// free slot where Free is set, beginning after After.
type List struct {
	Partition string
	Free      bool
	After     string
	Limit     int32
}

// Reply is what one call brought.
type Reply struct {
	Item  Item
	Time  time.Time // DynamoDB's own clock; zero where the reply had none
	Units float64   // capacity consumed
}

// Page is a part of a list, in order.
type Page struct {
	Items []Item
	More  bool
	Time  time.Time
	Units float64
}

// ConditionError is a write whose condition did not hold, with the item that
// stood in the way: nil where there is none.
type ConditionError struct {
	Item  Item
	Index int // which write of a WriteAll
	Time  time.Time
	Units float64
}

func (e *ConditionError) Error() string {
	if e.Item == nil {
		return "condition failed: there is no such item"
	}
	return "condition failed: the item has changed"
}

// Why a store could not answer.
var (
	ErrThrottled   = errors.New("throttled by DynamoDB")
	ErrDenied      = errors.New("denied by IAM")
	ErrUnreachable = errors.New("DynamoDB cannot be reached")
	ErrNoTable     = errors.New("no such table")
	ErrTableSchema = errors.New("the table was not made for volpool")
)

// StoreError is a call that did not get an answer of use.
type StoreError struct {
	Op   string // what was asked
	Kind error  // one of the sentinels, or nil
	Err  error
}

func (e *StoreError) Error() string {
	if e.Kind == nil {
		return fmt.Sprintf("%s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("%s: %v: %v", e.Op, e.Kind, e.Err)
}

// Unwrap lets errors.Is find the kind and the cause.
func (e *StoreError) Unwrap() []error {
	if e.Kind == nil {
		return []error{e.Err}
	}
	return []error{e.Kind, e.Err}
}
