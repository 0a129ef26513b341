package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/volpool/volpool/lease"
	"go.uber.org/zap"
)

// noneFreeError is a [lease.ErrNoFree] with what the zone holds instead.
type noneFreeError struct {
	where             string
	held, quarantined int
}

func (e *noneFreeError) Error() string {
	switch {
	case e.held+e.quarantined == 0:
		return e.where + " has no free volume"
	case e.quarantined == 0:
		return fmt.Sprintf("%s has %d held", e.where, e.held)
	}
	return fmt.Sprintf("%s has %d held, %d quarantined", e.where, e.held, e.quarantined)
}

func (e *noneFreeError) Is(target error) bool { return target == lease.ErrNoFree }

// takeOver looks, where nothing is free, for a lease whose owner is gone. EC2 is
// asked in two batches; what may be done is for [lease.Judge] to say.
func (a *Agent) takeOver(ctx context.Context, skip map[string]bool) (*holding, error) {
	for {
		held, quarantined, now, err := a.claimant.Held(ctx)
		if err != nil {
			return nil, err
		}
		none := &noneFreeError{a.opt.Pool + "/" + a.id.Zone, len(held), len(quarantined)}
		for _, r := range quarantined {
			if r.QuarantinedUntil.Before(now) && !skip[r.Volume] {
				if freed, err := a.claimant.EndQuarantine(ctx, r); err != nil {
					return nil, err
				} else if freed {
					l, err := a.claimant.Claim(ctx, skip)
					if err != nil {
						return nil, err
					}
					return holdingOf(l), nil
				}
			}
		}
		for _, r := range held {
			if a.holds(r) && !skip[r.Volume] { // a former process died before it wrote down what it had claimed
				if h, err := a.readopt(ctx, r.Volume, false); h != nil || err != nil {
					return h, err
				}
			}
		}
		// Another mount point's of this instance is for its own agent.
		held = slices.DeleteFunc(held, func(r lease.Record) bool { return skip[r.Volume] || r.Owner == a.id.Instance })
		if len(held) == 0 {
			return nil, none
		}
		judged, err := a.judge(ctx, held)
		if err != nil {
			a.Log.Warn("EC2 could not say whose owners are gone", zap.Error(err))
			return nil, none
		}
		detaching := false
		for _, r := range held {
			detaching = detaching || judged.verdicts[r.Volume] == lease.WaitForDetach
			if !judged.mayTake(r, now) {
				continue
			}
			if judged.owners[r.Owner] == lease.OwnerRunning && !a.stillSilent(ctx, r) {
				continue
			}
			l, err := a.takeOrFree(ctx, r, judged.here[r.Volume])
			if err != nil && !lease.IsRaceLost(err) {
				return nil, err
			}
			if l != nil {
				return holdingOf(l), nil
			}
		}
		if !detaching || !pause(ctx, time.Second) {
			return nil, none
		}
	}
}

func (a *Agent) takeOrFree(ctx context.Context, r lease.Record, attachedHere bool) (*lease.Lease, error) {
	if attachedHere {
		// Detached first: should the takeover come to nothing, the volume must
		// not be free and attached.
		if err := a.detach(ctx, r.Volume, false); err != nil {
			a.Log.Warn("not taken over", zap.String("volume", r.Volume), zap.Error(err))
			return nil, nil
		}
	}
	if r.Draining {
		_, err := a.claimant.FreeAbandoned(ctx, r)
		return nil, err
	}
	l, err := a.claimant.TakeOver(ctx, r)
	if err == nil {
		a.Log.Info("took over", zap.String("volume", r.Volume), zap.String("from", r.Owner))
	}
	return l, err
}

// stillSilent waits for one more of the owner's heartbeats, for it runs.
func (a *Agent) stillSilent(ctx context.Context, r lease.Record) bool {
	return pause(ctx, untilNextBeat(r)) && a.unchanged(ctx, r)
}

// untilNextBeat is a time in which a holder that lives renews once.
func untilNextBeat(r lease.Record) time.Duration { return r.Lease / 4 }

// unchanged tells whether a held record is still as it was observed.
func (a *Agent) unchanged(ctx context.Context, r lease.Record) bool {
	now, _, err := a.claimant.Look(ctx, r.Volume)
	return err == nil && now.State == lease.Held && now.Attempt == r.Attempt && now.Beat == r.Beat
}

// judgement is what EC2 says of held leases, by volume and by owner.
type judgement struct {
	verdicts map[string]lease.Verdict
	owners   map[string]lease.OwnerState
	here     map[string]bool // the volume is attached to this instance
}

// mayTake tells whether a lease may be taken or freed, as it was at a time of
// DynamoDB's.
func (j judgement) mayTake(r lease.Record, now time.Time) bool {
	verdict := j.verdicts[r.Volume]
	return verdict == lease.TakeNow || verdict == lease.TakeWhenSilent && r.SilentAt(now)
}

// judge asks EC2 of all owners and all volumes at once.
func (a *Agent) judge(ctx context.Context, held []lease.Record) (judgement, error) {
	ids, volumes := map[string]bool{}, map[string]bool{}
	for _, r := range held {
		ids[r.Owner], volumes[r.Volume] = true, true
	}
	owners, err := a.EC2.Owners(ctx, slices.Sorted(maps.Keys(ids))...)
	if err != nil {
		return judgement{}, err
	}
	infos, err := a.EC2.Volumes(ctx, slices.Sorted(maps.Keys(volumes))...)
	if err != nil {
		return judgement{}, err
	}
	j := judgement{map[string]lease.Verdict{}, owners, map[string]bool{}}
	for _, r := range held {
		info, known := infos[r.Volume]
		state := volumeState(info, known, r.Owner, a.id.Instance)
		j.verdicts[r.Volume], j.here[r.Volume] = lease.Judge(owners[r.Owner], state), state == lease.VolumeMine
	}
	return j, nil
}

// volumeState is where EC2 shows a volume, seen from a taker.
func volumeState(v VolumeInfo, known bool, owner, me string) lease.VolumeState {
	switch {
	case !known:
		return lease.VolumeGone
	case v.Attachment == nil && v.State == types.VolumeStateAvailable:
		return lease.VolumeAvailable
	case v.Attachment == nil:
		return lease.VolumeNeither
	case v.Attachment.Instance == me && settledOrComing(v):
		return lease.VolumeMine
	case v.Attachment.Instance == owner && settledOrComing(v):
		return lease.VolumeOwners
	case v.Attachment.Instance == owner:
		return lease.VolumeLeavingOwner
	}
	return lease.VolumeElsewhere
}

// resume finds what a former process of this mount point left: by what is
// mounted, by its state file, or, after a reboot has emptied /run, by the
// devices that the kernel shows. It asks EC2 nothing.
func (a *Agent) resume(ctx context.Context, previous *State) (*holding, *failure) {
	there, isMounted, err := a.Disks.MountedAt(a.opt.MountPoint)
	if err != nil {
		return nil, &failure{reason: ReasonMachine, err: err}
	}
	if there.Volume != "" {
		return a.carryOn(ctx, there)
	}
	if isMounted && a.bound {
		soon, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if err := a.Disks.Unmount(soon, a.opt.MountPoint, false); err != nil {
			return nil, &failure{reason: ReasonMountPoint, err: fmt.Errorf("take the fallback directory away: %w", err)}
		}
		isMounted = false
	}
	if !isMounted && a.bound {
		a.know(func() { a.bound = false })
	}
	if f := a.identify(ctx); f != nil || isMounted {
		return nil, f
	}
	if a.other != nil {
		return nil, a.belongsToOther()
	}
	var volumes []string // that may be brought here
	given := slices.Clone(a.ours)
	if previous != nil && previous.Volume != "" && len(given) > 0 {
		volumes, given = given[:1], given[1:]
	}
	attached, err := a.Disks.Attached()
	if err != nil {
		return nil, &failure{reason: ReasonMachine, err: err}
	}
	for _, v := range attached {
		if !v.InUse && !slices.Contains(a.ours, v.Volume) {
			volumes = append(volumes, v.Volume)
		}
	}
	a.settleRest(given)
	for i, volume := range volumes {
		a.at(ReasonUnreachable)
		h, err := a.readopt(ctx, volume, false)
		if err != nil {
			return nil, a.claimFailure(ctx, err)
		}
		if h == nil {
			a.gaveBack(volume)
			continue
		}
		f := a.use(ctx, h)
		if f == nil {
			a.settleRest(volumes[i+1:])
			return h, nil
		}
		if f.blame == blameNone || ctx.Err() != nil {
			a.settleRest(volumes[i+1:])
			return nil, f
		}
	}
	return nil, nil
}

func (a *Agent) belongsToOther() *failure {
	return &failure{reason: ReasonMountPoint, hint: "volpool release --mount-point " + a.opt.MountPoint,
		err: fmt.Errorf("%s is still that of %s in pool %q", a.opt.MountPoint, a.other.volumes()[0], a.other.Pool)}
}

// settleRest gives back, in the background, what a former process was giving up.
func (a *Agent) settleRest(volumes []string) {
	for _, volume := range volumes {
		a.settle.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), settleTime)
			defer cancel()
			h, err := a.readopt(ctx, volume, false)
			switch {
			case err != nil:
				a.Log.Error("a volume could not be given back", zap.String("volume", volume), zap.Error(err))
			case h == nil:
				a.gaveBack(volume)
			default:
				a.giveUp(h, &failure{reason: ReasonTimeout, err: errors.New("left by a former process")})
			}
		})
	}
}

// readopt claims a volume of our own again, or, where it is mounted here, one
// that is free; nil where neither is so.
func (a *Agent) readopt(ctx context.Context, volume string, mounted bool) (*holding, error) {
	if a.claimant == nil { // the agent came when it could not learn who the instance is
		if f := a.identify(ctx); f != nil {
			return nil, f
		}
	}
	var r lease.Record
	var l *lease.Lease
	for {
		var err error
		r, _, err = a.claimant.Look(ctx, volume)
		switch {
		case errors.Is(err, lease.ErrNoVolume):
			return nil, nil
		case err != nil:
		case a.holds(r):
			l, err = a.claimant.Readopt(ctx, r)
		case r.State == lease.Free && mounted:
			l, err = a.claimant.ClaimVolume(ctx, volume)
		default:
			return nil, nil
		}
		if err == nil {
			break
		}
		if !lease.IsRaceLost(err) { // perhaps to a late write of the former process
			return nil, err
		}
	}
	h := holdingOf(l)
	h.attached, h.mounted = true, mounted
	h.used = mounted || r.Phase == lease.Mounted || r.Phase == lease.Releasing
	a.Log.Info("re-adopted", zap.String("volume", volume), zap.Int64("generation", h.generation))
	return h, nil
}

// holds tells whether a record is this mount point's own lease: the lock says
// that no other process of this machine can have it.
func (a *Agent) holds(r lease.Record) bool {
	return r.State == lease.Held && r.Owner == a.id.Instance && r.MountPoint == a.opt.MountPoint
}

// carryOn holds a volume that is mounted already, with its lease where that can
// be had: the mount stays through any outage of DynamoDB, for EC2's attachment
// fences.
func (a *Agent) carryOn(ctx context.Context, there Mounted) (*holding, *failure) {
	if a.other != nil {
		return nil, a.belongsToOther()
	}
	h := &holding{volume: there.Volume, device: there.Device, attached: true, mounted: true, used: true, found: true}
	known := slices.Contains(a.ours, h.volume) // else it may be anybody's
	rest := slices.DeleteFunc(slices.Clone(a.ours), func(v string) bool { return v == h.volume })
	f := a.identify(ctx)
	if f == nil {
		soon, cancel := context.WithTimeout(ctx, a.opt.Timeout/3)
		defer cancel()
		a.at(ReasonUnreachable)
		switch err := a.regain(soon, h); {
		case errors.Is(err, errNotInPool):
			return nil, a.pointFree()
		case errors.Is(err, errNotOurs):
			known = true
		case err != nil:
			f = a.claimFailure(ctx, err)
		}
	}
	if h.lease == nil && !known {
		return nil, f
	}
	if h.lease == nil {
		a.Log.Error("mounted without its lease; the mount stays for its jobs", zap.String("volume", h.volume))
	}
	if !a.decided.make(a.success(h)) {
		if h.lease != nil {
			h.lease.Abandon()
		}
		return nil, &failure{reason: ReasonTimeout, err: errors.New("ready after the deadline")}
	}
	a.begin(h)
	if a.claimant != nil {
		a.settleRest(rest)
	}
	a.noteUsage(h)
	return h, nil
}

var (
	errNotInPool = errors.New("the volume is not in this pool and zone")
	errNotOurs   = errors.New("the volume is another's by the table")
)

// regain gets the lease of a mounted volume again.
func (a *Agent) regain(ctx context.Context, h *holding) error {
	got, err := a.readopt(ctx, h.volume, true)
	if err != nil {
		return err
	}
	if got == nil {
		if _, _, err := a.claimant.Look(ctx, h.volume); errors.Is(err, lease.ErrNoVolume) {
			return errNotInPool
		}
		return errNotOurs
	}
	r := got.before
	if got.before.Uses > 0 {
		got.before.Uses-- // this is the use that was counted
	}
	got.lease.Note(lease.Facts{Phase: phase(lease.Mounted)})
	if err := got.lease.Confirm(ctx); err != nil {
		a.Log.Warn("not confirmed yet", zap.String("volume", h.volume), zap.Error(err))
	}
	a.know(func() {
		h.lease, h.generation, h.before, h.fsType, h.size = got.lease, got.generation, got.before, r.FSType, r.SizeGiB
		if a.told != nil {
			told := *a.told
			told.Generation, told.Message = &got.generation, nil
			a.told = &told
		}
	})
	return nil
}
