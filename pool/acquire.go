package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/volpool/volpool/lease"
	"go.uber.org/zap"
)

// holding is a volume that was brought to its mount point.
type holding struct {
	lease  *lease.Lease
	before lease.Record // as it was claimed
	disk   Disk         // nil where it was found mounted
	device string
	fsType string
	cold   Reason // "" for warm
	size   int64
	sound  bool // the filesystem was made or checked by us

	unmounted bool // on the way back
}

// work is an acquire, step by step. It leaves nothing held where it fails, or
// sees to it in the background.
func (a *Agent) work(ctx context.Context, previous *State) (*holding, *failure) {
	if f := a.makePoint(); f != nil {
		return nil, f
	}
	if f := a.identify(ctx); f != nil {
		return nil, f
	}
	if h, f := a.resume(ctx, previous); h != nil || f != nil {
		return h, f
	}
	a.mu.Lock()
	a.left = nil
	a.mu.Unlock()
	if f := a.pointFree(); f != nil {
		return nil, f
	}
	skip := map[string]bool{}
	var last *failure
	for {
		a.at(ReasonTimeout)
		l, f := a.claim(ctx, skip)
		if f != nil {
			if last != nil && errors.Is(f.err, lease.ErrNoFree) {
				f = last // what stood in the way of the last one says more than "none left"
			}
			return nil, f
		}
		h, f := a.use(ctx, l)
		if f == nil {
			return h, nil
		}
		a.Log.Warn("giving the volume up", zap.String("volume", l.Volume()), zap.String("reason", string(f.reason)), zap.Error(f.err))
		skip[l.Volume()], last = true, f
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

func (a *Agent) identify(ctx context.Context) *failure {
	a.at(ReasonNoIdentity)
	id, err := a.Identify(ctx)
	if err != nil {
		return &failure{reason: ReasonNoIdentity, err: err}
	}
	a.at(ReasonNoCredentials)
	if err := a.Credentials(ctx); err != nil {
		return &failure{reason: ReasonNoCredentials, err: err}
	}
	c, err := lease.New(lease.Config{Store: a.Store, Pool: a.opt.Pool, Zone: id.Zone, Owner: id.Instance,
		MountPoint: a.opt.MountPoint, BootID: a.BootID, Elapsed: a.Elapsed, Rand: a.Rand, Log: a.Log})
	if err != nil {
		return &failure{reason: ReasonMachine, err: err}
	}
	a.mu.Lock()
	a.id, a.claimant = id, c
	a.mu.Unlock()
	return nil
}

// claim takes a free volume, or one whose owner is gone; it waits for one as
// long as --wait says.
func (a *Agent) claim(ctx context.Context, skip map[string]bool) (*lease.Lease, *failure) {
	start := a.elapsed()
	for {
		a.at(ReasonUnreachable)
		l, err := a.claimant.Claim(ctx, skip)
		if errors.Is(err, lease.ErrNoFree) {
			l, err = a.takeOver(ctx, skip)
		}
		if err == nil {
			a.took(&a.seconds.Claim, start)
			a.Log.Info("claimed", zap.String("volume", l.Volume()), zap.Int64("generation", l.Generation()))
			if err := a.Parts.Run.save(a.state(&holding{lease: l}, nil)); err != nil {
				a.Log.Error("write the state file", zap.Error(err))
			}
			return l, nil
		}
		if !errors.Is(err, lease.ErrNoFree) || a.elapsed()-start >= a.opt.Wait {
			return nil, a.claimFailure(ctx, err)
		}
		a.at(ReasonNoFree)
		if !pause(ctx, min(2*time.Second, a.opt.Wait)) {
			return nil, a.claimFailure(ctx, err)
		}
	}
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
func (a *Agent) use(ctx context.Context, l *lease.Lease) (*holding, *failure) {
	h := &holding{lease: l, before: l.Record()}
	arrivals, err := a.Disks.Listen() // before the attach: the device may come before the answer
	if err != nil {
		f := &failure{reason: ReasonMachine, err: err}
		a.giveUp(h, f, false)
		return nil, f
	}
	defer arrivals.Close()
	var attachName string
	for _, step := range []struct {
		took *(*float64)
		do   func() *failure
	}{
		{&a.seconds.Attach, func() (f *failure) { attachName, f = a.attach(ctx, h); return }},
		{&a.seconds.Device, func() *failure { return a.device(ctx, h, arrivals, attachName) }},
		{nil, func() *failure { return a.confirm(ctx, h) }},
		{&a.seconds.Prepare, func() *failure { return a.prepare(ctx, h) }},
		{&a.seconds.Mount, func() *failure { return a.mount(ctx, h) }},
	} {
		start := a.elapsed()
		if f := step.do(); f != nil {
			a.giveUp(h, f, true)
			return nil, f
		}
		if step.took != nil {
			a.took(step.took, start)
		}
	}
	return h, nil
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
		return diskFailure(err)
	}
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
	h.lease.Note(lease.Facts{UsedPercent: &u.UsedPercent, InodesPercent: &u.InodesPercent})
}

// success is the result of a holding.
func (a *Agent) success(h *holding) Result {
	r := a.result(Warm)
	if h.cold != "" {
		r.Result, r.Reason = Cold, &h.cold
	}
	r.Volume, r.Generation = new(h.lease.Volume()), new(h.lease.Generation())
	r.Device, r.Filesystem, r.SizeGiB = &h.device, &h.fsType, &h.size
	r.Uses = new(h.before.Uses + 1)
	if u, err := a.Disks.Usage(a.opt.MountPoint); err == nil {
		r.UsedPercent = &u.UsedPercent
	}
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
