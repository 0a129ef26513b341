package lease

import (
	"context"
	"errors"
	"time"
)

// again repeats a request of unknown outcome, as it was, until ctx ends.
func again[T any](ctx context.Context, c *Claimant, send func() (T, error)) (T, error) {
	var before error
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		got, err := send()
		if err != nil && ctx.Err() != nil && before != nil && !final(err) {
			return got, before // that the time is up says less than why it took so long
		}
		before = err
		if err == nil || final(err) || ctx.Err() != nil {
			return got, err
		}
		if !c.rest(ctx, pause) {
			return got, err
		}
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
