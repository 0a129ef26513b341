package lease

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
)

// Most that one claimant reads of a pool in which nothing is free.
const maxHeldRead = 200

// Held reads up to 200 held records of the zone, from a random place on, so
// that many takers at once look at different ones. Records that cannot be
// understood are reported and left out. now is DynamoDB's time.
func (c *Claimant) Held(ctx context.Context) (held, quarantined []Record, now time.Time, err error) {
	start := fmt.Sprintf("%s0%08x", volumePrefix, c.random(1<<32))
	for _, part := range []struct{ after, upTo string }{{start, ""}, {volumePrefix, start}} {
		left := maxHeldRead - len(held) - len(quarantined)
		if left <= 0 {
			break
		}
		in := List{Partition: Partition(c.Pool, c.Zone), After: part.after, Limit: int32(left)}
		page, err := again(ctx, c, func() (Page, error) { return c.Store.List(ctx, in) })
		if err != nil {
			return nil, nil, time.Time{}, err
		}
		c.clock.heard(page.Time)
		now = page.Time
		for _, item := range page.Items {
			if part.upTo != "" && text(item, SortKey) > part.upTo {
				break
			}
			r, err := Decode(item)
			switch {
			case err != nil:
				c.Log.Warn("left alone", zap.Error(err))
			case r.State == Held:
				held = append(held, r)
			case r.State == Quarantined:
				quarantined = append(quarantined, r)
			}
		}
	}
	return held, quarantined, now, nil
}

// FreeAbandoned sets free a held volume whose holder is gone, exactly as
// observed; a draining one goes to drained. It reports false where the record
// has changed since.
func (c *Claimant) FreeAbandoned(ctx context.Context, r Record) (bool, error) {
	if err := c.acquaint(ctx); err != nil {
		return false, err
	}
	return c.mend(ctx, freeAbandoned(r, released{settings: c.Settings(), record: r, now: c.clock.now()}))
}

// EndQuarantine sets a volume free that has sat out its time. It reports false
// where the record has changed since.
func (c *Claimant) EndQuarantine(ctx context.Context, r Record) (bool, error) {
	if err := c.acquaint(ctx); err != nil {
		return false, err
	}
	return c.mend(ctx, setFree(r, c.Settings()))
}

func (c *Claimant) mend(ctx context.Context, w Write) (bool, error) {
	_, err := again(ctx, c, func() (Reply, error) { return c.Store.Write(ctx, w) })
	if _, refused := errors.AsType[*ConditionError](err); refused {
		return false, nil
	}
	return err == nil, err
}
