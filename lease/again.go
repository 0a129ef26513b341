package lease

import (
	"context"
	"errors"
	"time"
)

// again repeats a request of unknown outcome, as it was, until ctx ends.
func again[T any](ctx context.Context, c *Claimant, send func() (T, error)) (T, error) {
	var before error
	for wait := firstRest; ; wait = min(2*wait, maxRest) {
		got, err := send()
		if err != nil && ctx.Err() != nil && before != nil && !final(err) {
			return got, before // that the time is up says less than why it took so long
		}
		before = err
		if err == nil || final(err) || ctx.Err() != nil {
			return got, err
		}
		if !c.rest(ctx, wait) {
			return got, err
		}
	}
}

// pause waits; false where ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// final tells whether asking again could not change the answer.
func final(err error) bool {
	if _, refused := errors.AsType[*ConditionError](err); refused {
		return true
	}
	for _, end := range []error{ErrDenied, ErrNoTable, ErrTableSchema, ErrLost, ErrReleased, ErrFormatted, errNotTried} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}
