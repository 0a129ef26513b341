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
func (a *Agent) takeOver(ctx context.Context, skip map[string]bool) (*lease.Lease, error) {
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
					return a.claimant.Claim(ctx, skip)
				}
			}
		}
		// A lease of this instance's own is another mount point's: its agent
		// re-adopts it, nobody takes it.
		held = slices.DeleteFunc(held, func(r lease.Record) bool { return skip[r.Volume] || r.Owner == a.id.Instance })
		if len(held) == 0 {
			return nil, none
		}
		verdicts, owners, err := a.judge(ctx, held)
		if err != nil {
			a.Log.Warn("EC2 could not say whose owners are gone", zap.Error(err))
			return nil, none
		}
		detaching := false
		for _, r := range held {
			verdict := verdicts[r.Volume]
			detaching = detaching || verdict == lease.WaitForDetach
			if verdict != lease.TakeNow && (verdict != lease.TakeWhenSilent || !r.SilentAt(now)) {
				continue
			}
			if owners[r.Owner] == lease.OwnerRunning && !a.stillSilent(ctx, r) {
				continue
			}
			l, err := a.takeOrFree(ctx, r)
			if l != nil || err != nil && !lease.IsRaceLost(err) {
				return l, err
			}
		}
		if !detaching || !pause(ctx, time.Second) {
			return nil, none
		}
	}
}

func (a *Agent) takeOrFree(ctx context.Context, r lease.Record) (*lease.Lease, error) {
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
	if !pause(ctx, r.Lease/4) {
		return false
	}
	again, _, err := a.claimant.Look(ctx, r.Volume)
	return err == nil && again.State == lease.Held && again.Attempt == r.Attempt && again.Beat == r.Beat
}

// judge asks EC2 of all owners and all volumes at once.
func (a *Agent) judge(ctx context.Context, held []lease.Record) (map[string]lease.Verdict, map[string]lease.OwnerState, error) {
	ids, volumes := map[string]bool{}, map[string]bool{}
	for _, r := range held {
		ids[r.Owner], volumes[r.Volume] = true, true
	}
	owners, err := a.EC2.Owners(ctx, slices.Collect(maps.Keys(ids))...)
	if err != nil {
		return nil, nil, err
	}
	infos, err := a.EC2.Volumes(ctx, slices.Collect(maps.Keys(volumes))...)
	if err != nil {
		return nil, nil, err
	}
	verdicts := map[string]lease.Verdict{}
	for _, r := range held {
		info, known := infos[r.Volume]
		verdicts[r.Volume] = lease.Judge(owners[r.Owner], volumeState(info, known, r.Owner, a.id.Instance))
	}
	return verdicts, owners, nil
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

// resume finds the lease that a former process of this mount point left: by what
// is mounted, by its state file, or, after a reboot has emptied /run, by the
// devices that the kernel shows. It asks EC2 nothing.
func (a *Agent) resume(ctx context.Context, previous *State) (*holding, *failure) {
	a.at(ReasonUnreachable)
	there, isMounted, err := a.Disks.MountedAt(a.opt.MountPoint)
	if err != nil {
		return nil, &failure{reason: ReasonMachine, err: err}
	}
	mounted := there.Volume
	if isMounted && mounted == "" && previous != nil && previous.Bound {
		soon, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if err := a.Disks.Unmount(soon, a.opt.MountPoint, false); err != nil {
			return nil, &failure{reason: ReasonMountPoint, err: err}
		}
		isMounted = false
	}
	var volumes []string
	if mounted != "" {
		volumes = []string{mounted}
	} else if !isMounted {
		attached, err := a.Disks.Attached()
		if err != nil {
			return nil, &failure{reason: ReasonMachine, err: err}
		}
		if previous != nil && previous.Volume != "" && previous.Instance == a.id.Instance {
			volumes = append(volumes, previous.Volume)
		}
		for _, v := range attached {
			if !v.InUse && !slices.Contains(volumes, v.Volume) {
				volumes = append(volumes, v.Volume)
			}
		}
	}
	for _, volume := range volumes {
		l, err := a.readopt(ctx, volume, mounted != "")
		if err != nil {
			return nil, a.claimFailure(ctx, err)
		}
		switch {
		case l == nil:
		case mounted != "":
			return a.carryOn(ctx, l, there.Device)
		default:
			if h, f := a.use(ctx, l); f == nil || f.blame == blameNone {
				return h, f
			}
		}
	}
	return nil, nil
}

// readopt claims a volume of our own again; nil where it is not ours.
func (a *Agent) readopt(ctx context.Context, volume string, mounted bool) (*lease.Lease, error) {
	r, _, err := a.claimant.Look(ctx, volume)
	var l *lease.Lease
	switch {
	case errors.Is(err, lease.ErrNoVolume):
		return nil, nil
	case err != nil:
		return nil, err
	case r.State == lease.Held && r.Owner == a.id.Instance && r.MountPoint == a.opt.MountPoint:
		l, err = a.claimant.Readopt(ctx, r)
	case r.State == lease.Free && mounted:
		l, err = a.claimant.ClaimVolume(ctx, volume)
	default:
		return nil, nil
	}
	if lease.IsRaceLost(err) {
		return nil, nil
	}
	if err == nil {
		a.Log.Info("re-adopted", zap.String("volume", volume), zap.Int64("generation", l.Generation()))
	}
	return l, err
}

// carryOn holds a volume that is mounted already.
func (a *Agent) carryOn(ctx context.Context, l *lease.Lease, device string) (*holding, *failure) {
	h := &holding{lease: l, before: l.Record(), device: device, fsType: l.Record().FSType, size: l.Record().SizeGiB}
	h.before.Uses-- // this is the use that was counted
	l.Note(lease.Facts{Phase: phase(lease.Mounted)})
	if f := a.leaseFailure(l.Confirm(ctx)); f != nil {
		l.Abandon()
		return nil, f
	}
	if !a.decided.mayMount() {
		l.Abandon()
		return nil, &failure{reason: ReasonTimeout, err: errors.New("ready after the deadline")}
	}
	a.noteUsage(h)
	return h, nil
}
