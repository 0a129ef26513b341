//go:build !race

package sim

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/volpool/volpool/lease"
)

// The world's table is linearizable by its nature; whether what the instances
// make of it is, depends on the conditions that they send. So each volume's
// history, as its callers saw it, is checked against the protocol as it is told
// in package lease's comment, and not against the conditions themselves.

// itemState is what the protocol rests on in a volume's item.
type itemState struct {
	state, owner, attempt, format string
	generation, beat, rev         int64
	draining                      bool
}

func stateOf(item lease.Item) itemState {
	s := itemState{state: attr(item, "state"), owner: attr(item, "owner"), attempt: attr(item, "attempt"), format: attr(item, "format"),
		generation: number(item, "generation"), beat: number(item, "beat"), rev: number(item, "rev"), draining: attr(item, "draining") == "true"}
	if s.state != string(lease.Held) {
		s.owner = "" // a burnt or retired item may keep it
	}
	return s
}

func number(item lease.Item, name string) int64 {
	n, err := strconv.ParseInt(attr(item, name), 10, 64)
	if err != nil {
		return -1 // equals nothing that was observed
	}
	return n
}

// request is what a caller asked for: set, on the condition that the item is as
// it was observed. What a write has no condition on is -1 or "", which no item
// has: it is never allowed.
type request struct {
	step     string
	seen     itemState
	set      itemState
	setRev   bool
	draining string // "", "set", or "removed"
}

func requestOf(w lease.Write) request {
	seen := lease.Item{}
	for _, c := range w.If {
		if c.Op == lease.Equal || c.Op == lease.Less {
			seen[c.Attr] = c.Value
		}
	}
	r := request{step: stepOf(w), seen: stateOf(seen), set: stateOf(w.Set)}
	r.seen.owner, r.set.owner = attr(seen, "owner"), attr(w.Set, "owner")
	_, r.setRev = w.Set["rev"]
	if attr(w.Set, "draining") == "true" {
		r.draining = "set"
	}
	for _, name := range w.Remove {
		if name == "draining" {
			r.draining = "removed"
		}
	}
	return r
}

// does is the protocol: whether a request may change the item, and to what.
func (s itemState) does(r request) (itemState, bool) {
	held := s.state == string(lease.Held)
	mine := held && s.generation == r.seen.generation && s.attempt == r.seen.attempt
	next := s
	switch r.step {
	case "claim", "take over", "re-adopt":
		next.state, next.owner, next.attempt, next.beat = string(lease.Held), r.set.owner, r.set.attempt, 0
		next.generation = s.generation + 1
		may := s.state == string(lease.Free) && s.generation == r.seen.generation
		switch r.step {
		case "take over":
			may = mine && s.beat == r.seen.beat && !s.draining
		case "re-adopt":
			may = mine && s.owner == r.seen.owner
		}
		return next, may && r.set.generation == next.generation
	case "confirm", "heartbeat", "format intended", "format done":
		next.beat = r.set.beat
		switch r.step {
		case "format intended":
			mine = mine && s.format != string(lease.FormatDone)
			next.format = string(lease.FormatBegun)
		case "format done":
			next.format = string(lease.FormatDone)
		}
		return next, mine && s.beat < r.set.beat
	case "release", "free abandoned":
		next.state, next.owner, next.draining = string(lease.Free), "", false
		if r.seen.draining {
			next.state = string(lease.Drained)
		}
		if r.step == "free abandoned" {
			mine = mine && s.beat == r.seen.beat
		}
		return next, mine && s.draining == r.seen.draining
	case "quarantine":
		next.state, next.owner = string(lease.Quarantined), ""
		return next, mine
	case "burn":
		next.generation++
		return next, !held && s.generation == r.seen.generation && r.set.generation == next.generation
	}
	if !r.setRev {
		return s, false
	}
	next.rev++
	if r.set.state != "" {
		next.state = r.set.state
	}
	if r.set.generation >= 0 {
		next.generation = r.set.generation
	}
	if r.draining != "" {
		next.draining = r.draining == "set"
	}
	return next, s.state == r.seen.state && s.generation == r.seen.generation && s.rev == r.seen.rev &&
		r.set.rev == next.rev && next.generation >= s.generation && leads(s, next)
}

// leads is the picture of a volume's life, as far as it is an operator's.
func leads(from, to itemState) bool {
	if to.draining && to.state != string(lease.Held) && to.state != string(lease.Quarantined) {
		return false
	}
	switch from.state + " " + to.state {
	case "held held", "free drained", "free retired", "drained free", "drained retired",
		"quarantined free", "quarantined drained", "quarantined retired", "retired free":
		return true
	}
	return false
}

// ending is what a caller learned of its request.
type ending int

const (
	unknown ending = iota // done, or not, or not yet
	done
	refused
	seen
	never // it cannot have been done, nor will it: no operation at all
)

// result is an ending with the item that came with it.
type result struct {
	ending ending
	item   *itemState // nil: not told
}

// operation is one call of the store, for one volume. Where the caller never
// learned its outcome it is open, and the operation lasts until the table was
// reached, which the world knows: an end that is open, too, would be weaker, and
// dear to check. What never reached it is none of the history.
type operation struct {
	volume string
	in     request
	call   int64
	ret    int64
	out    result
	ran    bool // it came to the table
}

var volumeModel = porcupine.Model{
	Step: func(state, in, out any) (bool, any) {
		s, r, o := state.(itemState), in.(request), out.(result)
		next, may := s.does(r)
		switch o.ending {
		case unknown: // one that is never done is one that ends after all others
			if may {
				return true, next
			}
			return true, s
		case done:
			return may && (o.item == nil || *o.item == next), next
		case refused:
			return !may && (o.item == nil || *o.item == s), s
		}
		return *o.item == s, s
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v -> %+v", in, out) },
}

// instant is a virtual time. An answer comes before what is asked because of it
// at the same time.
func instant(answer bool) int64 {
	t := 2 * time.Since(epoch).Nanoseconds()
	if answer {
		return t
	}
	return t + 1
}

// asked notes that a call begins.
func (w *world) asked(volume string, in request) *operation {
	w.mu.Lock()
	defer w.mu.Unlock()
	op := &operation{volume: volume, in: in, call: instant(false), ret: math.MaxInt64}
	w.history = append(w.history, op)
	return op
}

// twice notes that a copy of a call is under way.
func (w *world) twice(op *operation) *operation {
	if op == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	again := &operation{volume: op.volume, in: op.in, call: op.call, ret: math.MaxInt64}
	w.history = append(w.history, again)
	return again
}

// answered notes what a caller learned. An operation that is never answered
// stays of unknown outcome.
func (w *world) answered(op *operation, item lease.Item, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	failed, wasRefused := errors.AsType[*lease.ConditionError](err)
	switch {
	case err == nil:
		op.out.ending = done
	case wasRefused:
		op.out.ending, item = refused, failed.Item
	case errors.Is(err, lease.ErrThrottled):
		op.out.ending = never
	default:
		return
	}
	op.ret = instant(true)
	if item != nil {
		op.out.item = new(stateOf(item))
	}
}

// read notes an item that a read brought.
func (w *world) read(item lease.Item, call int64) {
	volume := attr(item, lease.SortKey)
	if !strings.HasPrefix(volume, "vol-") || attr(item, "state") == "" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.history = append(w.history, &operation{volume: volume, in: request{step: "read"}, call: call, ret: instant(true), ran: true,
		out: result{seen, new(stateOf(item))}})
}

// linearizable checks each volume's history; undecided are those that took too
// long. The search is exponential in what overlaps: a call that was kept on its
// way for long counts from 200 ms before it reached the table. That asks for
// more, not for less.
func (w *world) linearizable(patience time.Duration) (broken []string, undecided, operations int) {
	const most = 2 * int64(200*time.Millisecond)
	for _, d := range w.order {
		var ops []porcupine.Operation
		for _, op := range w.history {
			if op.volume == d.id && op.ran && op.out.ending != never {
				call := max(op.call, op.ret-most)
				ops = append(ops, porcupine.Operation{Input: op.in, Call: call, Output: op.out, Return: op.ret})
			}
		}
		operations += len(ops)
		model := volumeModel
		model.Init = func() any { return d.first }
		switch porcupine.CheckOperationsTimeout(model, ops, patience) {
		case porcupine.Illegal:
			broken = append(broken, fmt.Sprintf("the history of %s is not linearizable: %s", d.id, d.stumble(model, ops)))
		case porcupine.Unknown:
			undecided++
		}
	}
	return broken, undecided, operations
}

// stumble names the operation that the longest partial order stops before.
func (d *disk) stumble(model porcupine.Model, ops []porcupine.Operation) string {
	_, info := porcupine.CheckOperationsVerbose(model, ops, 10*time.Second)
	longest := []porcupine.Operation(nil)
	for _, partition := range info.PartialLinearizationsOperations() {
		for _, order := range partition {
			if len(order) > len(longest) {
				longest = order
			}
		}
	}
	state := any(d.first)
	placed := map[string]int{}
	for _, op := range longest {
		_, state = model.Step(state, op.Input, op.Output)
		placed[fmt.Sprint(op.Call, op.Return, op.Input)]++
	}
	var first *porcupine.Operation
	for i, op := range ops {
		key := fmt.Sprint(op.Call, op.Return, op.Input)
		if placed[key] > 0 {
			placed[key]--
		} else if first == nil || op.Return < first.Return {
			first = &ops[i]
		}
	}
	if first == nil {
		return "?"
	}
	return fmt.Sprintf("at %v, after %+v, %+v ended in %s", time.Duration(first.Return/2), state, first.Input, first.Output.(result))
}

func (r result) String() string {
	word := [...]string{"the unknown", "done", "refused", "seen", "never"}[r.ending]
	if r.item == nil {
		return word
	}
	return fmt.Sprintf("%s %+v", word, *r.item)
}
