package lease

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
)

// IsRaceLost tells whether a claim failed because another was faster.
func IsRaceLost(err error) bool { return errors.Is(err, errRaceLost) }

var (
	errRaceLost = errors.New("another claimant was faster")
	errNotTried = errors.New("the table had no capacity for the claim")
)

// How long one keeps away after a failed request: twice as long each time.
const (
	firstRest = 100 * time.Millisecond
	maxRest   = 2 * time.Second
)

// rest waits for about d; false where ctx ended first.
func (c *Claimant) rest(ctx context.Context, d time.Duration) bool {
	return pause(ctx, d/2+c.about(d))
}

func (c *Claimant) holder() holder {
	return holder{owner: c.Owner, attempt: uuid.NewString(), mountPoint: c.MountPoint, bootID: c.BootID,
		lease: c.Settings().Lease, now: c.clock.now()}
}

// take sends a claim until its outcome is known. seen is the record it is
// conditional on.
func (c *Claimant) take(ctx context.Context, w Write, seen Record) (*Lease, error) {
	attempt, g := text(w.Set, aAttempt), seen.Generation
	start := c.Elapsed() // the lease counts from before the first send
	unknown := false
	reply, err := again(ctx, c, func() (Reply, error) {
		reply, err := c.Store.Write(ctx, w)
		if !unknown && w.Once && errors.Is(err, ErrThrottled) {
			return reply, fmt.Errorf("%w: %w", errNotTried, err)
		}
		unknown = unknown || !final(err)
		return reply, err
	})
	if err == nil {
		c.clock.heard(reply.Time)
		return c.held(ctx, reply.Item, seen, attempt, start)
	}
	failed, refused := errors.AsType[*ConditionError](err)
	if !refused {
		if unknown {
			c.undo(ctx, seen, attempt)
		}
		return nil, err
	}
	c.clock.heard(failed.Time)
	now, err := Decode(failed.Item)
	switch {
	case err != nil: // deleted, or of a newer schema
		return nil, fmt.Errorf("%w: %w", errRaceLost, err)
	case mine(now, g+1, attempt): // an earlier try had landed, and its reply was lost
		return c.held(ctx, failed.Item, seen, attempt, start)
	case seen.State == Free && now.State != Held && now.Generation == g:
		// Refused for its state, at a generation that may come back to free: a
		// copy of this claim that is still under way could land then.
		c.undo(ctx, now, attempt)
	}
	return nil, fmt.Errorf("claim %s at generation %d: %w", w.Key.Item, g, errRaceLost)
}

func (c *Claimant) held(ctx context.Context, item Item, seen Record, attempt string, start time.Duration) (*Lease, error) {
	r, err := Decode(item)
	if err != nil {
		// Held by us and yet not readable, so that it was edited by hand:
		// nobody could take it over. It goes back as it was.
		c.undo(ctx, seen, attempt)
		return nil, fmt.Errorf("%w: %w", errRaceLost, err)
	}
	return newLease(c, r, start), nil
}

// undo has a claim undone in the background. A re-adoption is not undone: the
// volume may be mounted, and is held by this instance whether it landed or not.
func (c *Claimant) undo(ctx context.Context, seen Record, attempt string) {
	if seen.State == Held && seen.Owner == c.Owner {
		return
	}
	c.settling.Go(func() { c.abandon(ctx, seen, attempt) })
}

// abandon undoes a claim of unknown outcome: it releases it, and where that is
// refused because the claim has not landed, it sees to it that it never can: it
// burns the generation, or frees what was to be taken over.
func (c *Claimant) abandon(ctx context.Context, seen Record, attempt string) {
	// Longer than this it need not try: by then the lease is silent.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*c.Settings().Lease+5*time.Second)
	defer cancel()
	key, g := seen.key(), seen.Generation
	w := release(key, g+1, attempt, false, released{settings: c.Settings(), record: seen})
	for {
		_, err := again(ctx, c, func() (Reply, error) { return c.Store.Write(ctx, w) })
		failed, refused := errors.AsType[*ConditionError](err)
		if !refused {
			if err != nil {
				c.Log.Error("a claim of unknown outcome could not be undone",
					zap.String("volume", key.Item), zap.Int64("generation", g+1), zap.Error(err))
			}
			return
		}
		now, err := Decode(failed.Item)
		switch {
		case err != nil:
			return
		case mine(now, g+1, attempt):
			w = release(key, g+1, attempt, now.Draining, released{settings: c.Settings(), record: now})
		case now.State != Held && now.Generation == g:
			w = burn(key, g)
		case now.State == Held && now.Generation == g && now.Attempt == seen.Attempt && now.Beat == seen.Beat:
			// A takeover that may still land. Whoever may take the lease may
			// free it, on the same condition, and then it cannot.
			w = freeAbandoned(now, released{settings: c.Settings(), record: now})
		default:
			return // undone, or it can never land any more
		}
	}
}

// mine tells whether a record is held at this generation by this attempt.
func mine(r Record, g int64, attempt string) bool {
	return r.State == Held && r.Generation == g && r.Attempt == attempt
}
