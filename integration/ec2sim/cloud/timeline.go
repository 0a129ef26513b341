package cloud

import (
	"slices"
	"time"
)

// A timeline keeps every version of one thing, so that a Describe can answer
// as of an earlier moment.
type timeline[T any] []version[T]

type version[T any] struct {
	at    time.Time
	value T
}

func (t *timeline[T]) add(at time.Time, value T) {
	*t = append(*t, version[T]{at, value})
}

// at returns the version that was current then; false where the thing did not
// exist yet.
func (t timeline[T]) at(then time.Time) (value T, existed bool) {
	for _, v := range slices.Backward(t) {
		if !v.at.After(then) {
			return v.value, true
		}
	}
	return value, false
}
