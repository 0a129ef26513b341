package lease

import (
	"errors"
	"fmt"
)

// What can stand in the way of a claim, and what can end a lease.
var (
	ErrNoFree   = errors.New("no volume is free")
	ErrPaused   = errors.New("the pool is paused")
	ErrNoZone   = errors.New("the pool has no volume in this zone")
	ErrNoPool   = errors.New("no such pool")
	ErrNoVolume = errors.New("the volume is in no pool")

	// ErrLost is the cause with which a lease's context ends when the table
	// shows that the volume is no longer ours.
	ErrLost = errors.New("lease lost")
	// ErrReleased is the cause after Release and Quarantine.
	ErrReleased = errors.New("lease given back")
	// ErrFormatted refuses the intention to format a volume whose formatting
	// is recorded as done.
	ErrFormatted = errors.New("the volume is recorded as formatted")
)

// LostError is an [ErrLost] with what the table said instead.
type LostError struct {
	Volume     string
	Generation int64  // the one that was ours
	Now        Record // zero where the item is gone
}

func (e *LostError) Error() string {
	switch {
	case e.Now.Volume == "":
		return fmt.Sprintf("lease lost: %s at generation %d: its item is gone", e.Volume, e.Generation)
	case e.Now.State == Held:
		return fmt.Sprintf("lease lost: %s at generation %d: held by %s at generation %d",
			e.Volume, e.Generation, e.Now.Owner, e.Now.Generation)
	}
	return fmt.Sprintf("lease lost: %s at generation %d: %s at generation %d",
		e.Volume, e.Generation, e.Now.State, e.Now.Generation)
}

// Is makes errors.Is(err, ErrLost) true.
func (e *LostError) Is(target error) bool { return target == ErrLost }

// StateError refuses an operation that a volume's state does not allow.
type StateError struct {
	Op     string
	Record Record
}

func (e *StateError) Error() string {
	s := fmt.Sprintf("%s %s: it is %s", e.Op, e.Record.Volume, e.Record.State)
	if e.Record.State == Held {
		s += " by " + e.Record.Owner
	}
	return s
}
