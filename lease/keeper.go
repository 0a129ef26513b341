package lease

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
)

// beatWrite builds one heartbeat, plain or with more to say.
type beatWrite func(key Key, g int64, attempt string, beat int64, now time.Time, f Facts) Write

// keep renews every sixth of the lease, give or take a fifth, until ctx ends or
// the lease is lost. It goes on through throttling and through an outage of any
// length. What is due is judged by Elapsed in small steps, for a timer alone
// would oversleep a suspend.
func (l *Lease) keep(ctx context.Context) {
	every := l.Record().Lease / 6
	due := l.c.Elapsed() + l.jitter(every)
	tick := time.NewTimer(0)
	defer tick.Stop()
	<-tick.C
	for {
		if wait := due - l.c.Elapsed(); wait > 0 {
			tick.Reset(min(wait, every/4))
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			continue
		}
		err := l.send(ctx, heartbeat)
		switch {
		case ctx.Err() != nil || errors.Is(err, ErrLost):
			return
		case err != nil:
			l.c.Log.Warn("heartbeat failed", zap.String("volume", l.key.Item), zap.Bool("danger", l.Danger()), zap.Error(err))
			due = l.c.Elapsed() + l.jitter(every/2)
		default:
			due = l.c.Elapsed() + l.jitter(every)
		}
	}
}

// jitter is d, give or take a fifth.
func (l *Lease) jitter(d time.Duration) time.Duration { return d*4/5 + l.c.about(d*2/5) }

// insist sends one beat after another until one is accepted, the lease is lost,
// or ctx ends.
func (l *Lease) insist(ctx context.Context, build beatWrite) error {
	_, err := again(ctx, l.c, func() (struct{}, error) {
		err := l.send(ctx, build)
		if errors.Is(err, errOlderBeat) { // no fault: the next beat is above it
			err = l.send(ctx, build)
		}
		return struct{}{}, err
	})
	return err
}

// send sends the next beat, once, and judges its outcome by what came back.
func (l *Lease) send(ctx context.Context, build beatWrite) error {
	if l.ctx.Err() != nil {
		return context.Cause(l.ctx)
	}
	l.mu.Lock()
	l.beat++
	start, beat, facts, lasts := l.c.Elapsed(), l.beat, l.facts, l.record.Lease
	l.mu.Unlock()
	// A try that hangs must not cost the lease: the next one is on its way in
	// time.
	ctx, cancel := context.WithTimeout(ctx, lasts/6)
	defer cancel()
	reply, err := l.c.Store.Write(ctx, build(l.key, l.generation, l.attempt, beat, l.c.clock.now(), facts))
	item := reply.Item
	failed, refused := errors.AsType[*ConditionError](err)
	if refused {
		item = failed.Item
		l.c.clock.heard(failed.Time)
	} else if err != nil {
		return err
	}
	l.c.clock.heard(reply.Time)
	now, err := Decode(item)
	if err != nil && item != nil {
		return err // not ours to judge: somebody edits it, or a newer version does
	}
	if !mine(now, l.generation, l.attempt) {
		lost := &LostError{Volume: l.key.Item, Generation: l.generation, Now: now}
		l.end(lost)
		return lost
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.record = now
	if !refused {
		l.renewed = max(l.renewed, start)
		return nil
	}
	// Refused and yet mine: a later beat of ours came first, or the volume's
	// formatting is done.
	if now.Beat < beat && now.Format == FormatDone {
		return ErrFormatted
	}
	l.beat = max(l.beat, now.Beat)
	return errOlderBeat
}

var errOlderBeat = errors.New("a later beat was there first")
