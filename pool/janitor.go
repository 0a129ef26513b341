package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/volpool/volpool/lease"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Every agent that holds a volume looks, every few minutes, after the volumes
// that come after its own, up to the first lease that is alive. A lease is alive
// that is not silent, whatever became of its owner: a dead one's is silent before
// long, and is found then. So EC2 is asked only where something is amiss, and a
// fleet in which everybody lives costs one small Query for each round and agent.
const (
	janitorEvery  = 3 * time.Minute
	janitorSpread = time.Minute
)

// janitorBatch is how many leases EC2 is asked about at once: a filter takes 200
// values.
const janitorBatch = 200

// Every so many rounds, an hour in all, EC2 is asked what is attached here
// even where the kernel shows nothing that is out of place: an attach may have
// brought no device. More often, a large fleet would use up its account's calls.
const strayRounds = 20

// strayTime bounds how long the instance's lock is held.
const strayTime = 15 * time.Second

// janitor looks after the neighbours of one agent's volume, and after what is
// attached to its instance. Nothing that goes wrong for it is more than a line in
// the log.
type janitor struct {
	*Agent
	volume  string
	rounds  int
	strayAt int             // the round in which EC2 is asked in any case
	foreign map[string]bool // disks of the instance that are not the pool's
}

// startJanitor begins, and returns what ends it at once and waits for that.
func (a *Agent) startJanitor(ctx context.Context, volume string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.runJanitor(ctx, volume)
	}()
	return func() {
		cancel()
		<-done
	}
}

func (a *Agent) runJanitor(ctx context.Context, volume string) {
	var j *janitor
	wait := janitorEvery
	for {
		if c := a.knownClaimant(); c != nil { // else the mount was found, and the rest is not known yet
			if j == nil {
				j = a.janitor(volume)
			}
			wait = c.Around(janitorEvery, janitorSpread)
		}
		if !pause(ctx, wait) {
			return
		}
		if j != nil {
			j.round(ctx)
		}
	}
}

func (a *Agent) knownClaimant() *lease.Claimant {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.claimant
}

func (a *Agent) janitor(volume string) *janitor {
	return &janitor{Agent: a, volume: volume, foreign: map[string]bool{},
		strayAt: int(a.claimant.Around(strayRounds/2, strayRounds/2))}
}

func (j *janitor) round(ctx context.Context) {
	err := j.neighbours(ctx)
	if err != nil && ctx.Err() == nil {
		j.Log.Warn("the neighbours were not all looked after", zap.Error(err))
	}
	if err := j.strays(ctx); err != nil && ctx.Err() == nil {
		j.Log.Warn("what is attached here was not all looked after", zap.Error(err))
	}
	j.rounds++
}

// neighbours frees what is provably abandoned, and what has sat out its
// quarantine, up to the first lease that is alive.
func (j *janitor) neighbours(ctx context.Context) error {
	var silent []lease.Record
	var last time.Time
	var failed error
	err := j.claimant.Neighbours(ctx, j.volume, func(r lease.Record, now time.Time) bool {
		last = now
		switch {
		case r.State == lease.Quarantined && r.QuarantinedUntil.Before(now):
			failed = j.endQuarantine(ctx, r)
		case r.State != lease.Held:
		case !r.SilentAt(now):
			return false
		case r.Owner != j.id.Instance: // another mount point's is for its own agent
			silent = append(silent, r)
		}
		if len(silent) == janitorBatch && failed == nil {
			failed = j.free(ctx, silent, now)
			silent = nil
		}
		return failed == nil
	})
	if err := errors.Join(err, failed); err != nil || len(silent) == 0 {
		return err
	}
	return j.free(ctx, silent, last)
}

func (j *janitor) endQuarantine(ctx context.Context, r lease.Record) error {
	freed, err := j.claimant.EndQuarantine(ctx, r)
	if freed {
		j.Log.Info("its quarantine is over", zap.String("volume", r.Volume), zap.String("after", r.LastError))
	}
	return err
}

// free sets those of the silent leases free that EC2 says are nobody's any more.
func (j *janitor) free(ctx context.Context, silent []lease.Record, now time.Time) error {
	judged, err := j.judge(ctx, silent)
	if err != nil {
		return fmt.Errorf("learn whose owners are gone: %w", err)
	}
	var running []lease.Record
	wait := time.Duration(0)
	for _, r := range silent {
		switch {
		case !judged.mayTake(r, now):
			j.Log.Info("a silent lease is left alone", zap.String("volume", r.Volume), zap.String("owner", r.Owner))
		case judged.owners[r.Owner] == lease.OwnerRunning:
			running, wait = append(running, r), max(wait, untilNextBeat(r))
		default:
			if err := j.freeOne(ctx, r, judged.here[r.Volume]); err != nil {
				return err
			}
		}
	}
	if len(running) == 0 || !pause(ctx, wait) {
		return nil
	}
	for _, r := range running { // a beat since then, and the write is refused
		if err := j.freeOne(ctx, r, judged.here[r.Volume]); err != nil {
			return err
		}
	}
	return nil
}

func (j *janitor) freeOne(ctx context.Context, r lease.Record, attachedHere bool) error {
	if attachedHere { // detached first: a volume must not be free and attached
		gone := false
		err := j.alone(ctx, func(ctx context.Context) (err error) {
			if j.unchanged(ctx, r) {
				gone, err = j.detachUnused(ctx, r.Volume)
			}
			return err
		})
		if !gone {
			return err
		}
	}
	freed, err := j.claimant.FreeAbandoned(ctx, r)
	if freed {
		j.Log.Info("freed what was abandoned", zap.String("volume", r.Volume), zap.String("by", r.Owner),
			zap.Int64("generation", r.Generation))
	}
	return err
}

// alone does something under the instance's lock. Where that is not to be had,
// nothing is done: the next round comes soon.
func (j *janitor) alone(ctx context.Context, do func(context.Context) error) error {
	lock, err := j.Parts.Run.lockInstance(unix.LOCK_EX)
	if errors.Is(err, errInstanceBusy) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	ctx, cancel := context.WithTimeout(ctx, strayTime)
	defer cancel()
	return do(ctx)
}

// strays detaches what is attached here and is not this instance's by its item:
// what an attach left that came too late, or an agent that never came back.
func (j *janitor) strays(ctx context.Context) error {
	inAnyCase := j.rounds >= j.strayAt
	if inAnyCase {
		clear(j.foreign)
	}
	unused, err := j.unusedHere()
	if err != nil {
		return err
	}
	if len(unused) == 0 && !inAnyCase {
		return nil
	}
	return j.alone(ctx, func(ctx context.Context) error {
		// The items are read after EC2's answer, and under the lock. A volume
		// that an agent of this instance got since the answer names it by then.
		attached, err := j.EC2.VolumesAt(ctx, j.id.Instance, j.opt.Pool)
		if err != nil {
			return err
		}
		if inAnyCase {
			j.strayAt = j.rounds + strayRounds
		}
		for _, volume := range unused {
			_, ours := attached[volume]
			j.foreign[volume] = !ours
		}
		var problems []error
		for _, volume := range slices.Sorted(maps.Keys(attached)) {
			problems = append(problems, j.stray(ctx, volume))
		}
		return errors.Join(problems...)
	})
}

// unusedHere lists the disks of the kernel's that nothing has open, apart from
// those that are known not to be the pool's.
func (j *janitor) unusedHere() (unused []string, err error) {
	shown, err := j.Disks.Attached()
	for _, d := range shown {
		if !d.InUse && d.Volume != j.volume && !j.foreign[d.Volume] {
			unused = append(unused, d.Volume)
		}
	}
	return unused, err
}

func (j *janitor) stray(ctx context.Context, volume string) error {
	if volume == j.volume {
		return nil
	}
	r, _, err := j.claimant.Look(ctx, volume)
	switch {
	case errors.Is(err, lease.ErrNoVolume): // it carries the tag, and is in no pool or in another zone's
		j.foreign[volume] = true
		return nil
	case err != nil:
		return err
	case r.State == lease.Held && r.Owner == j.id.Instance, r.State == lease.Retired:
		return nil // another mount point's, or somebody's who took it out of service
	}
	gone, err := j.detachUnused(ctx, volume)
	if gone {
		j.Log.Warn("detached a volume that this instance does not hold",
			zap.String("volume", volume), zap.String("state", string(r.State)), zap.String("owner", r.Owner))
	}
	return err
}

// errNoProof keeps a volume attached on a machine whose disks do not tell which
// volumes they are, as under Xen.
var errNoProof = errors.New("the kernel does not tell which of its disks are EBS volumes")

// detachUnused detaches a volume that provably nothing here uses: its disk can
// be had exclusively, or there is none, where disks do carry their volumes' ids.
// It does not wait for one that is used.
func (j *janitor) detachUnused(ctx context.Context, volume string) (gone bool, err error) {
	shown, err := j.Disks.Attached()
	if err == nil && len(shown) == 0 {
		err = errNoProof
	}
	if err == nil {
		err = unused(shown, volume)
	}
	if err != nil {
		return false, fmt.Errorf("%s is left attached: %w", volume, err)
	}
	err = j.detach(ctx, volume, false)
	return err == nil, err
}
