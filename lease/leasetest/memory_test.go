package leasetest_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

func TestMemory(t *testing.T) {
	leasetest.Run(t, func(*testing.T) lease.Store { return leasetest.NewMemory() })
}

func str(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }

// A page ends at 1 MB.
func TestMemoryPages(t *testing.T) {
	m := leasetest.NewMemory()
	for i := range 4 {
		m.Put(lease.Key{Partition: "ci/a", Item: fmt.Sprint(i)}, lease.Item{"owner": str(strings.Repeat("x", 350<<10))})
	}
	page, err := m.List(t.Context(), lease.List{Partition: "ci/a"})
	if err != nil || len(page.Items) != 3 || !page.More {
		t.Errorf("of four times 350 KB, %d came, more: %v, %v", len(page.Items), page.More, err)
	}
	page, err = m.List(t.Context(), lease.List{Partition: "ci/a", After: "2"})
	if err != nil || len(page.Items) != 1 || page.More {
		t.Errorf("after the third, %d came, more: %v, %v", len(page.Items), page.More, err)
	}
}

// DynamoDB refuses an index key of another type; DynamoDB Local 3.1.0 takes it,
// so that this is not in the suite.
func TestMemorySlotIsAString(t *testing.T) {
	m := leasetest.NewMemory()
	_, err := m.Write(t.Context(), lease.Write{Key: lease.Key{Partition: "ci/a", Item: "1"},
		Set: lease.Item{lease.FreeSlot: &types.AttributeValueMemberN{Value: "1"}}})
	if !errors.Is(err, lease.ErrTableSchema) {
		t.Errorf("%v, not refused", err)
	}
}

// A partition takes 1,000 write and 3,000 read units a second, others not
// touched, and what is refused does not happen and costs nothing.
func TestMemoryThrottles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := leasetest.NewMemory()
		key := lease.Key{Partition: "ci/a", Item: "1"}
		never := []lease.Condition{{Attr: "owner", Op: lease.Equal, Value: str("nobody")}}
		write := func() error {
			_, err := m.Write(t.Context(), lease.Write{Key: key, Set: lease.Item{"owner": str("me")}})
			return err
		}
		for i := range 500 { // refusals are charged, too
			if err := write(); err != nil {
				t.Fatal(i, err)
			}
			var failed *lease.ConditionError
			if _, err := m.Write(t.Context(), lease.Write{Key: key, If: never, Set: lease.Item{"owner": str("me")}}); !errors.As(err, &failed) || failed.Units != 1 {
				t.Fatal(i, err)
			}
		}
		if err := write(); !errors.Is(err, lease.ErrThrottled) {
			t.Fatalf("the 1001st unit: %v", err)
		}
		if _, err := m.WriteAll(t.Context(), []lease.Write{
			{Key: lease.Key{Partition: "ci/b", Item: "1"}, Set: lease.Item{"owner": str("me")}},
			{Key: key, Set: lease.Item{"owner": str("me")}}}); !errors.Is(err, lease.ErrThrottled) {
			t.Fatalf("a transaction into the throttled partition: %v", err)
		}
		if m.Item(lease.Key{Partition: "ci/b", Item: "1"}) != nil {
			t.Error("half of a throttled transaction is there")
		}
		for i := range 3000 {
			if _, err := m.Read(t.Context(), key); err != nil {
				t.Fatal(i, err)
			}
		}
		if _, err := m.List(t.Context(), lease.List{Partition: "ci/a"}); !errors.Is(err, lease.ErrThrottled) {
			t.Fatalf("the 3001st read unit: %v", err)
		}
		time.Sleep(10 * time.Millisecond) // brings ten write units
		for i := range 10 {
			if err := write(); err != nil {
				t.Fatal(i, err)
			}
		}
		if err := write(); !errors.Is(err, lease.ErrThrottled) {
			t.Fatalf("the 11th unit: %v", err)
		}
		want := leasetest.Usage{Writes: 510, Refused: 500, Reads: 3000, Throttled: 4, WriteUnits: 1010, ReadUnits: 3000}
		if got := m.Usage(); got != want {
			t.Errorf("usage\n%+v\n%+v", got, want)
		}
	})
}
