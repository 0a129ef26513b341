package leasetest

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/volpool/volpool/lease"
)

func testLists(t *testing.T, s lease.Store) {
	partition := Partition()
	for _, sort := range []string{"vol-3", "#settings", "vol-1", "vol-2"} {
		must(t, s, lease.Write{Key: lease.Key{Partition: partition, Item: sort}, Set: lease.Item{"owner": str("of " + sort)}})
	}
	must(t, s, lease.Write{Key: lease.Key{Partition: partition + "b", Item: "vol-0"}, Set: lease.Item{"owner": str("elsewhere")}})
	for _, c := range []struct {
		in   lease.List
		want string
	}{
		{lease.List{}, "#settings vol-1 vol-2 vol-3"},
		{lease.List{After: "vol-"}, "vol-1 vol-2 vol-3"},
		{lease.List{After: "vol-1"}, "vol-2 vol-3"},
		{lease.List{After: "vol-1", Limit: 1}, "vol-2"},
		{lease.List{After: "vol-3"}, ""},
	} {
		c.in.Partition = partition
		page, err := s.List(t.Context(), c.in)
		if err != nil {
			t.Fatal(err)
		}
		if got := names(page.Items); got != c.want {
			t.Errorf("after %q, %d at most: %q, not %q", c.in.After, c.in.Limit, got, c.want)
		}
		for _, item := range page.Items {
			if text(item["owner"]) != "of "+text(item[lease.SortKey]) {
				t.Errorf("listed incomplete: %s", show(item))
			}
		}
	}
	// More ends, and nothing is missed or told twice.
	var all []lease.Item
	in := lease.List{Partition: partition, Limit: 3}
	for more, pages := true, 0; more; pages++ {
		page, err := s.List(t.Context(), in)
		if err != nil || pages > 3 {
			t.Fatal(pages, err)
		}
		all, more = append(all, page.Items...), page.More
		if more {
			in.After = text(all[len(all)-1][lease.SortKey])
		}
	}
	if got := names(all); got != "#settings vol-1 vol-2 vol-3" {
		t.Errorf("page by page: %q", got)
	}
}

// testIndex: it is sparse, in the order of its slots, shows a few attributes
// only, and is never behind.
func testIndex(t *testing.T, s lease.Store) {
	partition := Partition()
	free := func(after string, limit int32) []lease.Item {
		page, err := s.List(t.Context(), lease.List{Partition: partition, Free: true, After: after, Limit: limit})
		if err != nil {
			t.Fatal(err)
		}
		return page.Items
	}
	key := func(volume string) lease.Key { return lease.Key{Partition: partition, Item: volume} }
	for volume, slot := range map[string]string{"vol-1": "3", "vol-2": "2", "vol-3": "", "#settings": "!", "vol-4": "2"} {
		set := lease.Item{"generation": num(4), "owner": str("a"), "settings": str("b"), "hints": str("c")}
		if slot != "" {
			set[lease.FreeSlot] = str(slot)
		}
		must(t, s, lease.Write{Key: key(volume), Set: set})
	}
	check := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %q, not %q", what, got, want)
		}
	}
	check("in the order of the slots", sorted(free("", 0)), "! #settings, 2 vol-2, 2 vol-4, 3 vol-1")
	check("the lowest", names(free("", 1)), "#settings")
	check("above a slot", names(free("2", 0)), "vol-1")
	same(t, "the entry", free("2", 1)[0], lease.Item{lease.PartitionKey: str(partition), lease.SortKey: str("vol-1"),
		lease.FreeSlot: str("3"), "generation": num(4), "settings": str("b"), "hints": str("c")})

	must(t, s, lease.Write{Key: key("vol-2"), Set: lease.Item{"generation": num(5)}, Remove: []string{lease.FreeSlot}})
	must(t, s, lease.Write{Key: key("vol-4"), Set: lease.Item{"owner": str("b"), "generation": num(6)}})
	must(t, s, lease.Write{Key: key("vol-3"), Set: lease.Item{lease.FreeSlot: str("1")}})
	must(t, s, lease.Write{Key: key("vol-1"), Set: lease.Item{lease.FreeSlot: str("0")}})
	check("after writes", sorted(free("", 0)), "! #settings, 0 vol-1, 1 vol-3, 2 vol-4")
	check("the generation", text(free("1", 1)[0]["generation"]), "6")
}

func testTransactions(t *testing.T, s lease.Store) {
	partition := Partition()
	key := func(volume string) lease.Key { return lease.Key{Partition: partition, Item: volume} }
	there := must(t, s, lease.Write{Key: key("vol-2"), Set: lease.Item{"generation": num(1)}}).Item
	writes := func(generation int) []lease.Write {
		return []lease.Write{
			{Key: key("vol-1"), Set: lease.Item{"generation": num(9), lease.FreeSlot: str("1")}},
			{Key: key("vol-2"), If: []lease.Condition{{Attr: "generation", Op: lease.Equal, Value: num(generation)}}, Set: lease.Item{"generation": num(9)}},
		}
	}
	_, err := s.WriteAll(t.Context(), writes(2))
	failed, ok := errors.AsType[*lease.ConditionError](err)
	if !ok || failed.Index != 1 {
		t.Fatalf("%v, %+v", err, failed)
	}
	same(t, "the item that stood in the way", failed.Item, there)
	if item := read(t, s, key("vol-1")).Item; item != nil {
		t.Errorf("half of a refused transaction is there: %s", show(item))
	}
	if _, err := s.WriteAll(t.Context(), writes(1)); err != nil {
		t.Fatal(err)
	}
	for _, volume := range []string{"vol-1", "vol-2"} {
		if item := read(t, s, key(volume)).Item; text(item["generation"]) != "9" {
			t.Errorf("half of a transaction is missing: %s", show(item))
		}
	}
	page, err := s.List(t.Context(), lease.List{Partition: partition, Free: true})
	if err != nil || names(page.Items) != "vol-1" {
		t.Errorf("in the index: %s, %v", names(page.Items), err)
	}
}

// testUnits: what is charged. A heartbeat writes one unit and not the index; a
// claim and a release write the index, too.
func testUnits(t *testing.T, s lease.Store) {
	partition := Partition()
	key := lease.Key{Partition: partition, Item: "vol-1"}
	slot := func(s string) lease.Item { return lease.Item{lease.FreeSlot: str(s)} }
	for _, c := range []struct {
		name string
		w    lease.Write
		want float64
	}{
		{"a new item", lease.Write{Set: lease.Item{"generation": num(1)}}, 1},
		{"an item changed", lease.Write{Set: lease.Item{"beat": num(1)}}, 1},
		{"an entry added", lease.Write{Set: slot("1")}, 2},
		{"an item in the index changed, its entry not", lease.Write{Set: lease.Item{"beat": num(2)}}, 1},
		{"an entry changed", lease.Write{Set: lease.Item{"generation": num(2)}}, 2},
		{"an entry moved", lease.Write{Set: slot("2")}, 3},
		{"an entry removed", lease.Write{Set: lease.Item{"beat": num(3)}, Remove: []string{lease.FreeSlot}}, 2},
		{"above 1 KB", lease.Write{Set: lease.Item{"mount_point": str(strings.Repeat("x", 1024))}}, 2},
		{"below 1 KB again", lease.Write{Set: lease.Item{"mount_point": str("")}}, 2},
	} {
		c.w.Key = key
		if got := must(t, s, c.w).Units; got != c.want {
			t.Errorf("%s: %v write units, not %v", c.name, got, c.want)
		}
	}
	reply, err := s.WriteAll(t.Context(), []lease.Write{
		{Key: key, Set: slot("1")},
		{Key: lease.Key{Partition: partition, Item: "vol-2"}, Set: lease.Item{"generation": num(1)}},
	})
	if err != nil || reply.Units != 6 {
		t.Errorf("a transaction of an entry added and a new item: %v write units, not 6; %v", reply.Units, err)
	}
	must(t, s, lease.Write{Key: key, Set: lease.Item{"mount_point": str(strings.Repeat("x", 4096))}})
	if got := read(t, s, key).Units; got != 2 {
		t.Errorf("read above 4 KB: %v read units, not 2", got)
	}
	if got := read(t, s, lease.Key{Partition: partition, Item: "vol-2"}).Units; got != 1 {
		t.Errorf("read: %v read units, not 1", got)
	}
	for free, want := range map[bool]float64{true: 1, false: 2} {
		page, err := s.List(t.Context(), lease.List{Partition: partition, Free: free})
		if err != nil || page.Units != want {
			t.Errorf("list, free %v: %v read units, not %v; %v", free, page.Units, want, err)
		}
	}
}

func names(items []lease.Item) string {
	var all []string
	for _, item := range items {
		all = append(all, text(item[lease.SortKey]))
	}
	return strings.Join(all, " ")
}

// sorted shows an index's items, those of one slot by name.
func sorted(items []lease.Item) string {
	var all []string
	for _, item := range items {
		all = append(all, text(item[lease.FreeSlot])+" "+text(item[lease.SortKey]))
	}
	if !slices.IsSortedFunc(all, func(a, b string) int { return strings.Compare(a[:1], b[:1]) }) {
		return "out of order: " + strings.Join(all, ", ")
	}
	return strings.Join(slices.Sorted(slices.Values(all)), ", ")
}
