package lease

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Lease is a volume that is held. It renews itself from the moment it was
// claimed, until it is given back or lost.
type Lease struct {
	c          *Claimant
	key        Key
	generation int64
	attempt    string

	ctx  context.Context
	end  context.CancelCauseFunc
	stop context.CancelFunc // stops the heartbeat
	done chan struct{}      // closed when the heartbeat has stopped

	mu      sync.Mutex
	record  Record        // as the last reply showed it
	renewed time.Duration // Elapsed before the last successful write was sent
	beat    int64         // the last one sent
	facts   Facts         // what every further write carries
}

func newLease(c *Claimant, r Record, renewed time.Duration) *Lease {
	l := &Lease{c: c, key: r.key(), generation: r.Generation, attempt: r.Attempt,
		record: r, renewed: renewed, beat: r.Beat, done: make(chan struct{})}
	l.ctx, l.end = context.WithCancelCause(context.Background())
	beating, stop := context.WithCancel(l.ctx)
	l.stop = stop
	go func() {
		defer close(l.done)
		l.keep(beating)
	}()
	return l
}

// Context ends when the lease does: with [ErrLost] as its cause when the table
// shows that the volume is no longer ours, with [ErrReleased] after it was given
// back. It does not end in an outage of DynamoDB, however long: as long as
// nobody took the volume, it is ours, and who mounted it is fenced by EC2's
// attachment. What must not run on an expired lease asks [Lease.Danger] first.
func (l *Lease) Context() context.Context { return l.ctx }

// Generation is the lease's fencing token.
func (l *Lease) Generation() int64 { return l.generation }

// Volume is the id of the EBS volume.
func (l *Lease) Volume() string { return l.key.Item }

// Attempt is the claim's UUID.
func (l *Lease) Attempt() string { return l.attempt }

// Record is the volume's record as the last reply showed it.
func (l *Lease) Record() Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.record
}

// Danger tells that two thirds of the lease have passed without a renewal:
// nothing destructive may be begun until it renewed again.
func (l *Lease) Danger() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ctx.Err() != nil || l.c.Elapsed()-l.renewed >= l.record.Lease*2/3
}

// Note has the coming writes carry facts.
func (l *Lease) Note(f Facts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.facts = l.facts.merge(f)
}

// Confirm renews at once, after the attach and before anything is written to
// the device, and records that the filesystem is no longer clean. An error
// means that nothing may be written.
func (l *Lease) Confirm(ctx context.Context) error {
	l.Note(Facts{Clean: new(false)})
	return l.insist(ctx, heartbeat)
}

// Renew renews at once and so records what was noted.
func (l *Lease) Renew(ctx context.Context) error { return l.insist(ctx, heartbeat) }

// IntendFormat marks the volume before mkfs. The caller has proven it blank. It
// ends with [ErrFormatted] where the table says that it was formatted before.
func (l *Lease) IntendFormat(ctx context.Context, fsType, fsUUID string) error {
	return l.insist(ctx, func(k Key, g int64, a string, n int64, now time.Time, f Facts) Write {
		return formatIntended(k, g, a, n, now, f, fsType, fsUUID)
	})
}

// FormatDone records that mkfs ended well. It is answered before the first
// mount, so that no volume with data in it still carries the mark.
func (l *Lease) FormatDone(ctx context.Context) error { return l.insist(ctx, formatDone) }

// Release gives the volume back. The caller has it neither mounted nor attached
// any more. used says that it was mounted: then it counts as a good use.
// The heartbeat stops first. On an error the outcome is unknown, and Release
// may be called again.
func (l *Lease) Release(ctx context.Context, used bool) error {
	l.stopBeat()
	draining := l.Record().Draining
	for {
		l.mu.Lock()
		x := released{settings: l.c.Settings(), record: l.record, used: used, now: l.c.clock.now(), facts: l.facts}
		l.mu.Unlock()
		now, gone, err := l.giveBack(ctx, release(l.key, l.generation, l.attempt, draining, x))
		if err != nil {
			return fmt.Errorf("release %s: %w", l.key.Item, err)
		}
		if gone {
			return nil
		}
		draining = now.Draining // an operator's mark came in between: once more
	}
}

// How long a volume that misbehaved stays out: doubled with each failure since
// its last good use.
const (
	quarantineFirst = time.Minute
	quarantineMost  = 6 * time.Hour
)

// Quarantine takes the volume out of circulation for a time that doubles with
// each failure, and ends the lease. It is for a volume's own fault only. The
// heartbeat stops first; on an error it may be called again.
func (l *Lease) Quarantine(ctx context.Context, reason string) error {
	l.stopBeat()
	r := l.Record()
	wait := quarantineMost
	if r.Failures < 9 {
		wait = min(quarantineFirst<<r.Failures, quarantineMost)
	}
	l.mu.Lock()
	f := l.facts
	l.mu.Unlock()
	w := quarantine(l.key, l.generation, l.attempt, r.Failures+1, l.c.clock.now().Add(wait), reason, f)
	if _, _, err := l.giveBack(ctx, w); err != nil {
		return fmt.Errorf("quarantine %s: %w", l.key.Item, err)
	}
	return nil
}

// giveBack sends a write that ends the lease. gone is true where the lease is
// over, by this write, an earlier try of it, or another's hand.
func (l *Lease) giveBack(ctx context.Context, w Write) (now Record, gone bool, err error) {
	reply, err := again(ctx, l.c, func() (Reply, error) { return l.c.Store.Write(ctx, w) })
	if failed, refused := errors.AsType[*ConditionError](err); refused {
		now, err = Decode(failed.Item)
		if err == nil && mine(now, l.generation, l.attempt) {
			return now, false, nil
		}
	} else if err != nil {
		return Record{}, false, err
	} else {
		now, err = Decode(reply.Item)
	}
	if err != nil {
		l.c.Log.Warn("left alone", zap.Error(err))
	}
	l.mu.Lock()
	l.record = now
	l.mu.Unlock()
	l.end(ErrReleased)
	return now, true, nil
}

// Abandon stops the heartbeat without a word to the table: what a process does
// that ends while its volume stays mounted. The next one re-adopts.
func (l *Lease) Abandon() { l.stopBeat() }

func (l *Lease) stopBeat() {
	l.stop()
	<-l.done
}
