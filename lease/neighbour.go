package lease

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// How many records a walk reads at a time. The first few cost one read unit, for
// an item stays under 1 KB: a fleet in which everybody lives pays no more.
const (
	neighboursFirst = 4
	neighboursMost  = 200
)

// fullPageRest follows each full page of a walk: who is alone in a large pool
// would else take from the partition the units that claims need.
const fullPageRest = time.Second

// strangers is how many records a walk passes over that it does not understand.
// More of them are a fleet of a newer version, which looks after itself.
const strangers = 20

// Neighbours reads the records that come after a volume's own in its zone, by
// their ids and round the end, and shows them to look, with DynamoDB's time,
// until look returns false or it is back at the volume. A record that cannot be
// understood is reported and passed over.
//
// All holders of a zone, each of which stops at the first lease that is alive,
// go once round it together, however many they are.
func (c *Claimant) Neighbours(ctx context.Context, volume string, look func(r Record, now time.Time) bool) error {
	limit, odd := int32(neighboursFirst), 0
	after, round := volume, false
	for {
		in := List{Partition: Partition(c.Pool, c.Zone), After: after, Limit: limit}
		page, err := again(ctx, c, func() (Page, error) { return c.Store.List(ctx, in) })
		if err != nil {
			return err
		}
		c.clock.heard(page.Time)
		for _, item := range page.Items {
			after = text(item, SortKey)
			if round && after >= volume {
				return nil
			}
			r, err := Decode(item)
			if err != nil {
				c.Log.Warn("left alone", zap.Error(err))
				if odd++; odd == strangers {
					return nil
				}
				continue
			}
			if !look(r, page.Time) {
				return nil
			}
		}
		if !page.More {
			if round {
				return nil
			}
			after, round = volumePrefix, true // beyond the zone's settings
			continue
		}
		if limit == neighboursMost && !pause(ctx, fullPageRest) {
			return context.Cause(ctx)
		}
		limit = min(4*limit, neighboursMost)
	}
}

// Around is a time within spread of d, from the claimant's randomness.
func (c *Claimant) Around(d, spread time.Duration) time.Duration {
	return d - spread + c.about(2*spread)
}
