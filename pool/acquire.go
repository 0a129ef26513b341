package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	"github.com/volpool/volpool/lease"
	"go.uber.org/zap"
)

// holding is a volume that is brought to its mount point, held there, and given
// back.
type holding struct {
	volume     string
	generation int64        // the last that was ours
	lease      *lease.Lease // nil while it is mounted and its lease is not ours
	before     lease.Record // as it was claimed
	disk       Disk         // nil where it was found mounted
	device     string
	fsType     string
	cold       Reason // "" for warm
	size       int64
	sound      bool // the filesystem was made or checked by us

	attached bool // EC2 may have it attached to us
	mounted  bool
	used     bool // it was mounted in this use
	found    bool // it was mounted when the agent came

	attachedAt time.Duration // when EC2 had it attached to us; 0 where that is not known
}

func holdingOf(l *lease.Lease) *holding {
	return &holding{volume: l.Volume(), generation: l.Generation(), lease: l, before: l.Record()}
}

func (h *holding) note(f lease.Facts) {
	if h.lease != nil {
		h.lease.Note(f)
	}
}

// work is an acquire, step by step. It leaves nothing held where it fails, or
// sees to it in the background.
func (a *Agent) work(ctx context.Context, previous *State) (*holding, *failure) {
	if f := a.makePoint(); f != nil {
		return nil, f
	}
	if h, f := a.resume(ctx, previous); h != nil || f != nil {
		return h, f
	}
	if f := a.pointFree(); f != nil {
		return nil, f
	}
	skip := map[string]bool{}
	var last *failure
	for {
		a.at(ReasonTimeout)
		h, f := a.claim(ctx, skip)
		if f != nil {
			if last != nil && errors.Is(f.err, lease.ErrNoFree) {
				f = last // what stood in the way of the last one says more than "none left"
			}
			return nil, f
		}
		f = a.use(ctx, h)
		if f == nil {
			return h, nil
		}
		skip[h.volume], last = true, f
		if f.blame == blameNone || ctx.Err() != nil {
			return nil, f
		}
	}
}

// makePoint makes the directory that is usable whatever happens next.
func (a *Agent) makePoint() *failure {
	err := a.Disks.MakePoint(a.opt.MountPoint, a.opt.Root)
	if err == nil || errors.Is(err, ErrAlreadyMounted) {
		return nil // what is mounted there may be our own: resume looks
	}
	return &failure{reason: ReasonMachine, err: err}
}

// pointFree makes sure that nothing is mounted there.
func (a *Agent) pointFree() *failure {
	_, mounted, err := a.Disks.MountedAt(a.opt.MountPoint)
	if err != nil {
		return &failure{reason: ReasonMachine, err: err}
	}
	if mounted {
		return &failure{reason: ReasonMountPoint, err: fmt.Errorf("%s: %w", a.opt.MountPoint, ErrAlreadyMounted),
			hint: "umount " + a.opt.MountPoint + ", or choose another --mount-point"}
	}
	return nil
}

// identify learns who the instance is.
func (a *Agent) identify(ctx context.Context) *failure {
	a.at(ReasonNoIdentity)
	id, err := a.Identify(ctx)
	if err != nil {
		if id = a.id; id.Instance == "" {
			return &failure{reason: ReasonNoIdentity, err: err}
		}
		a.Log.Warn("taken for who it was before", zap.String("instance", id.Instance), zap.Error(err))
	}
	a.at(ReasonNoCredentials)
	if err := a.Credentials(ctx); err != nil {
		return &failure{reason: ReasonNoCredentials, err: err}
	}
	if err := a.become(id); err != nil {
		return &failure{reason: ReasonMachine, err: err}
	}
	return nil
}

// become makes the agent claim as this instance.
func (a *Agent) become(id Identity) error {
	c, err := lease.New(lease.Config{Store: a.Store, Pool: a.opt.Pool, Zone: id.Zone, Owner: id.Instance,
		MountPoint: a.opt.MountPoint, BootID: a.BootID, Elapsed: a.Elapsed, Rand: a.Rand, Log: a.Log})
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.id, a.claimant = id, c
	return nil
}

// claim takes a free volume, or one whose owner is gone; it waits for one as
// long as --wait says.
func (a *Agent) claim(ctx context.Context, failed map[string]bool) (*holding, *failure) {
	start := a.elapsed()
	for {
		skip, leaving := a.notForClaim(failed)
		a.at(ReasonUnreachable)
		var h *holding
		l, err := a.claimant.Claim(ctx, skip)
		if err == nil {
			h = holdingOf(l)
		} else if errors.Is(err, lease.ErrNoFree) {
			h, err = a.takeOver(ctx, skip)
		}
		if err == nil {
			a.took(&a.seconds.Claim, start)
			a.Log.Info("claimed", zap.String("volume", h.volume), zap.Int64("generation", h.generation))
			return h, nil
		}
		patience := a.opt.Wait
		if leaving {
			patience = max(patience, leavingPatience) // one of them is soon free
		}
		if !errors.Is(err, lease.ErrNoFree) || a.elapsed()-start >= patience {
			return nil, a.claimFailure(ctx, err)
		}
		a.at(ReasonNoFree)
		if !pause(ctx, min(2*time.Second, patience)) {
			return nil, a.claimFailure(ctx, err)
		}
	}
}

// notForClaim lists what failed in this acquire, and what is still being given
// back in the background: one process must not be two holders of a volume.
// leaving tells that there is such a one that did not fail.
func (a *Agent) notForClaim(failed map[string]bool) (skip map[string]bool, leaving bool) {
	skip = maps.Clone(failed)
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, volume := range a.ours {
		leaving = leaving || !failed[volume]
		skip[volume] = true
	}
	return skip, leaving
}

func (a *Agent) claimFailure(ctx context.Context, err error) *failure {
	f := &failure{reason: ReasonTimeout, err: err}
	for kind, reason := range map[error]Reason{
		lease.ErrNoFree: ReasonNoFree, lease.ErrPaused: ReasonPaused, lease.ErrNoTable: ReasonNoTable,
		lease.ErrTableSchema: ReasonNoTable, lease.ErrThrottled: ReasonThrottled, lease.ErrDenied: ReasonDenied,
		lease.ErrUnreachable: ReasonUnreachable, lease.ErrNoZone: ReasonNoZone,
	} {
		if errors.Is(err, kind) {
			f.reason = reason
		}
	}
	if _, ok := errors.AsType[*lease.ItemError](err); ok {
		f.reason = ReasonBadRecord
	}
	where := a.opt.Pool + "/" + a.id.Zone
	switch f.reason {
	case ReasonNoZone:
		// Only here is it worth a request to tell the two apart.
		if _, err := (lease.Registry{Store: a.Store}).Pool(ctx, a.opt.Pool); errors.Is(err, lease.ErrNoPool) {
			f.reason, f.err = ReasonNoPool, err
		} else {
			f.err = fmt.Errorf("pool %q has no volume in %s", a.opt.Pool, a.id.Zone)
		}
	case ReasonPaused:
		f.err = fmt.Errorf("pool %q is paused", a.opt.Pool)
	case ReasonNoFree:
		if _, counted := errors.AsType[*noneFreeError](err); !counted {
			f.err = fmt.Errorf("%s: %w", where, err)
		}
	}
	return f
}

// use brings a claimed volume to the mount point. Where it fails, it gives the
// volume back in the background: what the failure is to blame on decides how.
func (a *Agent) use(ctx context.Context, h *holding) *failure {
	a.begin(h)
	f := a.bring(ctx, h)
	if f != nil {
		a.Log.Warn("giving the volume up", zap.String("volume", h.volume), zap.String("reason", string(f.reason)), zap.Error(f.err))
		a.giveUp(h, f)
	}
	return f
}

func (a *Agent) bring(ctx context.Context, h *holding) *failure {
	arrivals, err := a.Disks.Listen() // before the attach: the device may come before the answer
	if err != nil {
		return &failure{reason: ReasonMachine, err: err}
	}
	defer arrivals.Close()
	var attaching *os.File
	defer func() { attaching.Close() }() // closed before, once the device is locked
	var attachName string
	for _, step := range []struct {
		took *(*float64)
		do   func() *failure
	}{
		{nil, func() (f *failure) { attaching, f = a.lockAttaching(ctx); return }},
		{&a.seconds.Attach, func() (f *failure) { attachName, f = a.attach(ctx, h); return }},
		{&a.seconds.Device, func() *failure { return a.device(ctx, h, arrivals, attachName) }},
		{nil, func() *failure { attaching.Close(); return nil }},
		{nil, func() *failure { return a.confirm(ctx, h) }},
		{&a.seconds.Prepare, func() *failure { return a.prepare(ctx, h) }},
		{&a.seconds.Mount, func() *failure { return a.mount(ctx, h) }},
	} {
		start := a.elapsed()
		if f := step.do(); f != nil {
			return f
		}
		if step.took != nil {
			a.took(step.took, start)
		}
	}
	return nil
}

// confirm renews the lease after the attach: whoever lost it while attaching
// learns so here, and writes nothing.
func (a *Agent) confirm(ctx context.Context, h *holding) *failure {
	a.at(ReasonUnreachable)
	h.lease.Note(lease.Facts{Phase: phase(lease.Preparing)})
	return a.leaseFailure(h.lease.Confirm(ctx))
}

func (a *Agent) leaseFailure(err error) *failure {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, lease.ErrLost):
		return &failure{reason: ReasonLost, err: err, blame: blameLost}
	case errors.Is(err, lease.ErrThrottled):
		return &failure{reason: ReasonThrottled, err: err}
	case errors.Is(err, lease.ErrDenied):
		return &failure{reason: ReasonDenied, err: err}
	}
	return &failure{reason: ReasonUnreachable, err: err}
}

// mount is the last step, unless the deadline has decided otherwise meanwhile.
func (a *Agent) mount(ctx context.Context, h *holding) *failure {
	if !a.decided.mayMount() {
		return &failure{reason: ReasonTimeout, err: errors.New("ready after the deadline")}
	}
	err := h.disk.Mount(context.WithoutCancel(ctx), a.opt.MountPoint, MountOptions{
		FSType: h.fsType, Options: a.claimant.Settings().MountOptions, Root: a.opt.Root})
	if err != nil {
		a.decided.notMounted()
		return diskFailure(err)
	}
	h.mounted, h.used = true, true
	h.lease.Note(lease.Facts{Phase: phase(lease.Mounted), Uses: new(h.before.Uses + 1)})
	a.noteUsage(h)
	return nil
}

func (a *Agent) noteUsage(h *holding) {
	u, err := a.Disks.Usage(a.opt.MountPoint)
	if err != nil {
		a.Log.Warn("read how full the volume is", zap.Error(err))
		return
	}
	h.note(lease.Facts{UsedPercent: &u.UsedPercent, InodesPercent: &u.InodesPercent})
}

// success is the result of a holding.
func (a *Agent) success(h *holding) Result {
	r := a.result(Warm)
	if h.cold != "" {
		r.Result, r.Reason = Cold, &h.cold
	}
	r.Volume, r.Device = &h.volume, &h.device
	if u, err := a.Disks.Usage(a.opt.MountPoint); err == nil {
		r.UsedPercent = &u.UsedPercent
	}
	if h.lease == nil {
		r.Message = new("its lease is not ours at the moment; it is claimed again as soon as the table has it free")
		return r
	}
	r.Generation, r.Filesystem, r.SizeGiB = new(h.generation), &h.fsType, &h.size
	r.Uses = new(h.before.Uses + 1)
	if at := h.before.ReleasedAt; !at.IsZero() {
		r.IdleSeconds = new(max(0, h.before.ClaimedAt.Sub(at).Seconds()))
	}
	return r
}

func (a *Agent) took(field **float64, start time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	*field = seconds(start, a.elapsed())
}

// pause waits, and reports false where ctx ended first.
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
