package leasetest

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/volpool/volpool/lease"
)

// operation is a write of the protocol's, the item that it was made for, and
// what its condition has to mind: each of these changes to the item must have
// it refused.
type operation struct {
	name  string
	write lease.Write
	on    lease.Item
	minds []string // of edits
	leads string   // the state afterwards
}

// edits violate one clause each. A clause that isn't named here is one that an
// operation doesn't have.
var edits = map[string]func(lease.Item){
	"schema":              func(i lease.Item) { i["schema"] = num(2) },
	"no schema":           func(i lease.Item) { delete(i, "schema") },
	"no item":             func(i lease.Item) { clear(i) },
	"state":               func(i lease.Item) { i["state"] = str("retired") },
	"state free":          func(i lease.Item) { i["state"] = str("free") },
	"state held":          func(i lease.Item) { i["state"] = str("held") },
	"generation":          func(i lease.Item) { i["generation"] = add(i["generation"], 1) },
	"generation before":   func(i lease.Item) { i["generation"] = add(i["generation"], -1) },
	"owner":               func(i lease.Item) { i["owner"] = str("i-another") },
	"attempt":             func(i lease.Item) { i["attempt"] = str("another") },
	"beat":                func(i lease.Item) { i["beat"] = add(i["beat"], 1) },
	"beat not older":      func(i lease.Item) { i["beat"] = add(i["beat"], 100) },
	"draining":            func(i lease.Item) { i["draining"] = &types.AttributeValueMemberBOOL{Value: true} },
	"not draining":        func(i lease.Item) { delete(i, "draining") },
	"rev":                 func(i lease.Item) { i["rev"] = add(i["rev"], 1) },
	"formatted for good":  func(i lease.Item) { i["format"] = str("done") },
	"the same beat again": func(i lease.Item) { i["beat"] = add(i["beat"], 1) }, // the edited item has the write's own beat
}

func add(v types.AttributeValue, n int) types.AttributeValue {
	was := 0
	for _, digit := range text(v) {
		was = was*10 + int(digit-'0')
	}
	return num(was + n)
}

// testOperations: every write of the protocol is done on the item it was made
// for, and refused where any one clause of its condition is violated.
func testOperations(t *testing.T, s lease.Store) {
	for _, op := range operations(t) {
		t.Run(op.name, func(t *testing.T) {
			on := func(edit func(lease.Item)) (lease.Write, lease.Item) {
				item := maps.Clone(op.on)
				delete(item, lease.PartitionKey)
				delete(item, lease.SortKey)
				if edit != nil {
					edit(item)
				}
				w := op.write
				w.Key.Partition = Partition()
				if len(item) > 0 {
					must(t, s, lease.Write{Key: w.Key, Set: item})
				}
				return w, item
			}
			w, before := on(func(i lease.Item) { i["of_a_newer_version"] = str("kept") })
			after := must(t, s, w).Item
			if text(after["state"]) != op.leads || text(after["of_a_newer_version"]) != "kept" {
				t.Errorf("%s became %s", show(before), show(after))
			}
			if _, free := after[lease.FreeSlot]; free != (op.leads == "free") {
				t.Errorf("in the index: %v; it is %s", free, op.leads)
			}
			for _, what := range op.minds {
				w, before := on(edits[what])
				failed := refused(t, s, w)
				if len(before) == 0 {
					before = nil
				} else {
					before[lease.PartitionKey], before[lease.SortKey] = str(w.Key.Partition), str(w.Key.Item)
				}
				same(t, what+": what came back", failed.Item, before)
				same(t, what+": the item afterwards", read(t, s, w.Key).Item, before)
			}
		})
	}
}

const (
	holders = "schema, no schema, no item, state, state free, generation, generation before, attempt"
	beats   = holders + ", the same beat again, beat not older"
	admins  = "schema, no schema, no item, generation, generation before, rev"
)

// operations has the protocol make each of its writes, and takes them down.
func operations(t *testing.T) []operation {
	var all []operation
	note := func(name, minds, leads string, w *world, do func() error) {
		t.Helper()
		before, calls := w.memory.Item(w.key), len(w.store.Calls())
		if err := do(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		made := w.store.Calls()[calls:]
		made = slices.DeleteFunc(made, func(c Call) bool { return !IsWrite(c) || c.Writes[0].Key != w.key })
		if len(made) == 0 {
			t.Fatalf("%s: wrote nothing", name)
		}
		all = append(all, operation{name, made[len(made)-1].Writes[0], before, strings.Split(minds, ", "), leads})
	}
	ctx := t.Context()
	taken := "schema, no schema, no item, state, generation, generation before, state "

	w := newWorld(t)
	var l *lease.Lease
	note("claim", taken+"held", "held", w, func() (err error) { l, err = w.me.Claim(ctx, nil); return })
	note("heartbeat", beats, "held", w, func() error { return l.Renew(ctx) })
	note("confirm", beats, "held", w, func() error { return l.Confirm(ctx) })
	note("format intended", beats+", formatted for good", "held", w, func() error { return l.IntendFormat(ctx, "ext4", "uuid") })
	note("format done", beats, "held", w, func() error { return l.FormatDone(ctx) })
	note("re-adopt", taken+"free, owner, attempt", "held", w, func() error {
		l.Abandon()
		again, err := w.me.Readopt(ctx, w.record())
		l = again
		return err
	})
	note("take over", taken+"free, attempt, beat, draining", "held", w, func() error {
		l.Abandon()
		taken, err := w.other.TakeOver(ctx, w.record())
		l = taken
		return err
	})
	note("release", holders+", draining", "free", w, func() error { return l.Release(ctx, true) })
	note("drain a free one", admins+", state held", "drained", w, func() error { return w.admin(lease.Registry.Drain) })
	note("undrain a drained one", admins+", state held", "free", w, func() error { return w.admin(lease.Registry.Undrain) })
	note("retire a free one", admins+", state held", "retired", w, func() error { return w.admin(lease.Registry.Retire) })
	note("add again", admins+", state held, state free", "free", w, w.add)

	l = w.claim()
	note("quarantine", holders, "quarantined", w, func() error { return l.Quarantine(ctx, "it is stuck") })
	note("end a quarantine", admins+", state held, state free", "free", w, func() error {
		_, err := w.me.EndQuarantine(ctx, w.record())
		return err
	})
	l = w.claim()
	note("free what was abandoned", holders+", beat, draining", "free", w, func() error {
		l.Abandon()
		_, err := w.other.FreeAbandoned(ctx, w.record())
		return err
	})
	l = w.claim()
	note("drain a held one", admins+", state free", "held", w, func() error { return w.admin(lease.Registry.Drain) })
	note("undrain a held one", admins+", state free", "held", w, func() error { return w.admin(lease.Registry.Undrain) })
	if err := w.admin(lease.Registry.Drain); err != nil {
		t.Fatal(err)
	}
	note("release while draining", holders+", not draining", "drained", w, func() error { return l.Release(ctx, true) })
	note("retire a drained one", admins+", state held", "retired", w, func() error { return w.admin(lease.Registry.Retire) })
	if err := w.add(); err != nil {
		t.Fatal(err)
	}
	l = w.claim()
	if err := w.admin(lease.Registry.Drain); err != nil {
		t.Fatal(err)
	}
	note("free what was abandoned while draining", holders+", beat, not draining", "drained", w, func() error {
		l.Abandon()
		_, err := w.other.FreeAbandoned(ctx, w.record())
		return err
	})
	if err := w.admin(lease.Registry.Undrain); err != nil {
		t.Fatal(err)
	}
	note("burn", "schema, no schema, no item, state held, generation, generation before", "free", w, func() error {
		ctx, cancel := context.WithCancel(ctx)
		defer w.store.Inject(func(c Call) bool {
			if IsClaim(c) {
				cancel()
			}
			return IsClaim(c)
		}, 1, Fault{Fail: Unreachable()})()
		if _, err := w.me.Claim(ctx, nil); err == nil {
			t.Fatal("claimed, cancelled and with the network down")
		}
		w.me.Settle()
		return nil
	})
	return all
}
