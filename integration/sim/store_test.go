//go:build !race

package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/volpool/volpool/lease"
)

// store is the table as one process reaches it: through the gate, each write
// checked where it is made.
type store struct {
	p *process
	w *world
}

func (s store) Write(ctx context.Context, w lease.Write) (lease.Reply, error) {
	op := s.w.asked(w.Key.Item, requestOf(w))
	sent := s.p.sending(w)
	c := call{stepOf(w), tail(w.Key.Item) + " " + attr(w.Set, "generation") + " " + attr(w.Set, "beat"), op}
	reply, err := through(ctx, s.p, c, func() (lease.Reply, error) {
		before := s.w.table.Item(w.Key)
		reply, err := s.w.table.Write(context.Background(), w)
		if err == nil {
			s.w.written(s.p, w, before, reply.Item)
		}
		return reply, err
	})
	s.w.answered(op, reply.Item, err)
	s.p.heard(sent, reply.Item, err)
	return reply, err
}

func (s store) WriteAll(ctx context.Context, ws []lease.Write) (lease.Reply, error) {
	// Of what is written in one transaction, one item at most is a volume's.
	var op *operation
	at := slices.IndexFunc(ws, func(w lease.Write) bool { return w.Set["state"] != nil })
	if at >= 0 {
		op = s.w.asked(ws[at].Key.Item, requestOf(ws[at]))
	}
	reply, err := through(ctx, s.p, call{"transaction", tail(ws[0].Key.Item), op}, func() (lease.Reply, error) {
		return s.w.table.WriteAll(context.Background(), ws)
	})
	if at >= 0 {
		if failed, refused := errors.AsType[*lease.ConditionError](err); refused && failed.Index != at {
			s.w.answered(op, nil, &lease.StoreError{Kind: lease.ErrThrottled}) // all or nothing: it was nothing
		} else {
			s.w.answered(op, nil, err)
		}
	}
	return reply, err
}

func (s store) Read(ctx context.Context, key lease.Key) (lease.Reply, error) {
	from := instant(false)
	reply, err := through(ctx, s.p, call{"read", tail(key.Item), nil}, func() (lease.Reply, error) { return s.w.table.Read(context.Background(), key) })
	if err == nil {
		s.p.told()
		s.w.read(reply.Item, from)
	}
	return reply, err
}

func (s store) List(ctx context.Context, in lease.List) (lease.Page, error) {
	step := "list held"
	if in.Free {
		step = "list free"
	}
	from := instant(false)
	page, err := through(ctx, s.p, call{step, "", nil}, func() (lease.Page, error) { return s.w.table.List(context.Background(), in) })
	if err == nil {
		s.p.told()
		for _, item := range page.Items {
			s.w.read(item, from)
		}
	}
	return page, err
}

func attr(item lease.Item, name string) string {
	switch v := item[name].(type) {
	case *types.AttributeValueMemberS:
		return v.Value
	case *types.AttributeValueMemberN:
		return v.Value
	case *types.AttributeValueMemberBOOL:
		return fmt.Sprint(v.Value)
	}
	return ""
}

// stepOf names a write by what it does, for the log and the coverage.
func stepOf(w lease.Write) string {
	asks := map[string]bool{}
	for _, c := range w.If {
		asks[c.Attr] = true
	}
	_, beats := w.Set["beat"]
	switch state := attr(w.Set, "state"); {
	case state == "held" && asks["owner"]:
		return "re-adopt"
	case state == "held" && asks["attempt"]:
		return "take over"
	case state == "held":
		return "claim"
	case attr(w.Set, "rev") != "" && state == "":
		return "operator mark"
	case attr(w.Set, "rev") != "":
		return "operator " + state
	case state == "free" && asks["beat"], state == "drained" && asks["beat"]:
		return "free abandoned"
	case state == "free", state == "drained":
		return "release"
	case state == "quarantined":
		return "quarantine"
	case beats && attr(w.Set, "format") == "formatting":
		return "format intended"
	case beats && attr(w.Set, "format") == "done":
		return "format done"
	case beats && attr(w.Set, "clean") == "false" && attr(w.Set, "phase") == "preparing":
		return "confirm"
	case beats:
		return "heartbeat"
	case attr(w.Set, "generation") != "":
		return "burn"
	}
	return "other"
}

// tail is the part of an id that tells it from another.
func tail(id string) string { return id[max(0, len(id)-2):] }
