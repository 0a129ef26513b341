package leasetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/volpool/volpool/lease"
)

// Run tests a store: that it does what package lease relies on, call by call,
// and then that the protocol works on it. open returns an empty store, or one
// whose partitions named by [Partition] are.
func Run(t *testing.T, open func(t *testing.T) lease.Store) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s lease.Store)
	}{
		{"conditions", testConditions},
		{"a refused write answers with the item", testRefused},
		{"a write answers with the item and keeps what it doesn't name", testKeeps},
		{"invalid writes", testInvalid},
		{"lists", testLists},
		{"the free index", testIndex},
		{"transactions", testTransactions},
		{"one of many wins", testRace},
		{"the clock", testClock},
		{"a caller that has gone", testGone},
		{"units", testUnits},
		{"operations", testOperations},
		{"protocol", testProtocol},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

var partitions atomic.Int64

// Partition is the name of a partition that no test of this process had yet.
func Partition() string {
	return fmt.Sprintf("test-%x-%d/us-east-1a", time.Now().UnixNano(), partitions.Add(1))
}

func num(n int) types.AttributeValue { return &types.AttributeValueMemberN{Value: fmt.Sprint(n)} }

func testConditions(t *testing.T, s lease.Store) {
	yes := &types.AttributeValueMemberBOOL{Value: true}
	for _, c := range []struct {
		name  string
		holds types.AttributeValue // nil: the attribute is absent
		op    lease.Op
		value types.AttributeValue
		want  bool
	}{
		{"the same", num(7), lease.Equal, num(7), true},
		{"the same number, written otherwise", &types.AttributeValueMemberN{Value: "7.0"}, lease.Equal, num(7), true},
		{"another", num(8), lease.Equal, num(7), false},
		{"another type", str("7"), lease.Equal, num(7), false},
		{"absent =", nil, lease.Equal, num(7), false},
		{"string =", str("held"), lease.Equal, str("held"), true},
		{"boolean =", yes, lease.Equal, yes, true},
		{"boolean = the other", &types.AttributeValueMemberBOOL{}, lease.Equal, yes, false},
		{"<> the same", num(7), lease.NotEqual, num(7), false},
		{"<> another", num(8), lease.NotEqual, num(7), true},
		{"<> another type", str("7"), lease.NotEqual, num(7), true},
		{"absent <>", nil, lease.NotEqual, num(7), true},
		{"less", num(6), lease.Less, num(7), true},
		{"less, as numbers go", num(9), lease.Less, num(10), true},
		{"equal is not less", num(7), lease.Less, num(7), false},
		{"more is not less", num(8), lease.Less, num(7), false},
		{"less as strings go", str("10"), lease.Less, str("9"), true},
		{"another type is not less", str("6"), lease.Less, num(7), false},
		{"absent is not less", nil, lease.Less, num(7), false},
		{"absent", nil, lease.Absent, nil, true},
		{"there", num(0), lease.Absent, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			key := lease.Key{Partition: Partition(), Item: "vol-1"}
			item := lease.Item{"other": num(1)}
			if c.holds != nil {
				item["state"] = c.holds
			}
			must(t, s, lease.Write{Key: key, Set: item})
			w := lease.Write{Key: key, If: []lease.Condition{{Attr: "state", Op: c.op, Value: c.value}}, Set: lease.Item{"owner": str("me")}}
			_, err := s.Write(t.Context(), w)
			if (err == nil) != c.want {
				t.Errorf("write: %v; allowed should be %v", err, c.want)
			}
			w.If = append(w.If, lease.Condition{Attr: "other", Op: lease.Equal, Value: num(2)})
			if _, err := s.Write(t.Context(), w); err == nil {
				t.Error("all clauses have to hold, and one didn't")
			}
		})
	}
}

func testRefused(t *testing.T, s lease.Store) {
	key := lease.Key{Partition: Partition(), Item: "vol-1"}
	w := lease.Write{Key: key, If: []lease.Condition{{Attr: "generation", Op: lease.Equal, Value: num(2)}}, Set: lease.Item{"owner": str("b")}}
	if failed := refused(t, s, w); failed.Item != nil {
		t.Errorf("no item stood in the way, and %v came back", failed.Item)
	}
	if reply := read(t, s, key); reply.Item != nil {
		t.Errorf("a refused write made %v", reply.Item)
	}
	before := must(t, s, lease.Write{Key: key, Set: lease.Item{"generation": num(1), "owner": str("a")}}).Item
	same(t, "the item that came back", refused(t, s, w).Item, before)
	same(t, "the item after a refused write", read(t, s, key).Item, before)
}

func testKeeps(t *testing.T, s lease.Store) {
	key := lease.Key{Partition: Partition(), Item: "vol-1"}
	odd := &types.AttributeValueMemberL{Value: []types.AttributeValue{num(1), &types.AttributeValueMemberNULL{Value: true}}}
	must(t, s, lease.Write{Key: key, Set: lease.Item{"generation": num(1), "of_a_newer_version": odd, "owner": str("")}})
	got := must(t, s, lease.Write{Key: key, Set: lease.Item{"generation": num(2)}, Remove: []string{"owner", "never_there"}}).Item
	want := lease.Item{lease.PartitionKey: str(key.Partition), lease.SortKey: str(key.Item), "generation": num(2), "of_a_newer_version": odd}
	same(t, "the reply", got, want)
	same(t, "the item", read(t, s, key).Item, want)
}

func testInvalid(t *testing.T, s lease.Store) {
	key := lease.Key{Partition: Partition(), Item: "vol-1"}
	good := lease.Write{Key: key, Set: lease.Item{"owner": str("a")}}
	for name, ws := range map[string][]lease.Write{
		"an empty slot":            {{Key: key, Set: lease.Item{lease.FreeSlot: str("")}}},
		"the key":                  {{Key: key, Set: lease.Item{lease.SortKey: str("vol-2")}}},
		"an empty key":             {{Key: lease.Key{Partition: key.Partition}, Set: lease.Item{"owner": str("a")}}},
		"set and removed":          {{Key: key, Set: lease.Item{"owner": str("a")}, Remove: []string{"owner"}}},
		"nothing to do":            {{Key: key}},
		"twice in one transaction": {good, good},
	} {
		var err error
		if len(ws) == 1 {
			_, err = s.Write(t.Context(), ws[0])
		} else {
			_, err = s.WriteAll(t.Context(), ws)
		}
		if !errors.Is(err, lease.ErrTableSchema) {
			t.Errorf("%s: %v, not invalid", name, err)
		}
	}
	if reply := read(t, s, key); reply.Item != nil {
		t.Errorf("invalid writes made %v", reply.Item)
	}
}

func testRace(t *testing.T, s lease.Store) {
	key := lease.Key{Partition: Partition(), Item: "vol-1"}
	must(t, s, lease.Write{Key: key, Set: lease.Item{"generation": num(0)}})
	const contenders = 20
	var won atomic.Int64
	var wg sync.WaitGroup
	for i := range contenders {
		wg.Go(func() {
			_, err := s.Write(t.Context(), lease.Write{Key: key,
				If:  []lease.Condition{{Attr: "generation", Op: lease.Equal, Value: num(0)}},
				Set: lease.Item{"generation": num(1), "owner": num(i)}})
			if _, failed := errors.AsType[*lease.ConditionError](err); err == nil {
				won.Add(1)
			} else if !failed {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := won.Load(); n != 1 {
		t.Errorf("%d of %d won", n, contenders)
	}
}

// testClock: each reply carries the store's time, in whole seconds.
func testClock(t *testing.T, s lease.Store) {
	key := lease.Key{Partition: Partition(), Item: "vol-1"}
	wrote := must(t, s, lease.Write{Key: key, Set: lease.Item{"generation": num(0)}})
	all, err := s.WriteAll(t.Context(), []lease.Write{{Key: key, Set: lease.Item{"generation": num(1)}}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := s.List(t.Context(), lease.List{Partition: key.Partition})
	if err != nil {
		t.Fatal(err)
	}
	never := []lease.Condition{{Attr: "generation", Op: lease.Absent}}
	_, err = s.WriteAll(t.Context(), []lease.Write{{Key: key, If: never, Set: lease.Item{"owner": num(1)}}})
	cancelled, ok := errors.AsType[*lease.ConditionError](err)
	if !ok {
		t.Fatalf("transaction: %v", err)
	}
	for what, at := range map[string]time.Time{"write": wrote.Time, "transaction": all.Time, "list": list.Time,
		"read":    read(t, s, key).Time,
		"refused": refused(t, s, lease.Write{Key: key, If: never, Set: lease.Item{"owner": num(1)}}).Time, "cancelled": cancelled.Time} {
		if off := time.Since(at).Abs(); at.IsZero() || off > 5*time.Second || at.Nanosecond() != 0 {
			t.Errorf("%s: the clock is %v", what, at)
		}
	}
}

// testGone: whose context has ended gets an error, and never a refusal.
func testGone(t *testing.T, s lease.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	key := lease.Key{Partition: Partition(), Item: "vol-1"}
	w := lease.Write{Key: key, Set: lease.Item{"generation": num(0)}}
	_, err := s.Write(ctx, w)
	_, err2 := s.WriteAll(ctx, []lease.Write{w})
	_, err3 := s.Read(ctx, key)
	_, err4 := s.List(ctx, lease.List{Partition: key.Partition})
	for _, err := range []error{err, err2, err3, err4} {
		if !errors.Is(err, lease.ErrUnreachable) || !strings.Contains(err.Error(), "canceled") {
			t.Errorf("%v", err)
		}
	}
}
