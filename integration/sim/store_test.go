//go:build !race

package sim

import (
	"context"
	"fmt"

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
	return through(ctx, s.p, stepOf(w), tail(w.Key.Item)+" "+attr(w.Set, "generation")+" "+attr(w.Set, "beat"), func() (lease.Reply, error) {
		before := s.w.table.Item(w.Key)
		reply, err := s.w.table.Write(context.Background(), w)
		if err == nil {
			s.w.written(s.p, w, before, reply.Item)
		}
		return reply, err
	})
}

func (s store) WriteAll(ctx context.Context, ws []lease.Write) (lease.Reply, error) {
	return through(ctx, s.p, "transaction", tail(ws[0].Key.Item), func() (lease.Reply, error) {
		return s.w.table.WriteAll(context.Background(), ws)
	})
}

func (s store) Read(ctx context.Context, key lease.Key) (lease.Reply, error) {
	return through(ctx, s.p, "read", tail(key.Item), func() (lease.Reply, error) { return s.w.table.Read(context.Background(), key) })
}

func (s store) List(ctx context.Context, in lease.List) (lease.Page, error) {
	step := "list held"
	if in.Free {
		step = "list free"
	}
	return through(ctx, s.p, step, "", func() (lease.Page, error) { return s.w.table.List(context.Background(), in) })
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
