package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/volpool/volpool/lease"
	"go.uber.org/zap"
)

// giveBackTime bounds a give-back at the agent's end.
const giveBackTime = 80 * time.Second

// unmountTime is how long a busy mount is tried again.
const unmountTime = 30 * time.Second

type releaseRequest struct {
	ctx   context.Context
	kill  bool
	reply chan answer
}

// handler answers requests on the control socket.
func (a *Agent) handler(releases chan<- releaseRequest, ended <-chan struct{}) func(context.Context, request) answer {
	return func(ctx context.Context, r request) answer {
		select {
		case <-a.decided.done:
		case <-ended:
			return answer{Ended: true}
		case <-ctx.Done():
			return answer{Error: "the caller went away"}
		}
		if r.Op == "result" {
			return answer{Result: new(a.decided.result())}
		}
		if r.Op != "release" {
			return answer{Error: fmt.Sprintf("operation %q is not known to this agent", r.Op)}
		}
		if r.Patience > 0 { // the answer is to be there before the caller goes
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, r.Patience-min(time.Second, r.Patience/10))
			defer cancel()
		}
		reply := make(chan answer, 1)
		select {
		case releases <- releaseRequest{ctx, r.Kill, reply}:
			return <-reply
		case <-ended:
			return answer{Ended: true}
		case <-ctx.Done():
			return answer{Error: "the caller went away"}
		}
	}
}

// hold keeps the volume until it is to be given back. A lease that is lost while
// the volume is mounted does not end it: the attachment still fences, and the
// jobs keep their cache. It is claimed again as soon as the table has it free.
func (a *Agent) hold(ctx context.Context, h *holding, releases <-chan releaseRequest) error {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	lost := h.lease.Context().Done()
	for {
		select {
		case <-ctx.Done():
			giving, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveBackTime)
			defer cancel()
			if _, err := a.giveBack(giving, h, false); err != nil {
				h.lease.Abandon()
				return err
			}
			return nil
		case r := <-releases:
			released, err := a.giveBack(r.ctx, h, r.kill)
			if err == nil {
				r.reply <- answer{Release: &released}
				return nil
			}
			a.Log.Error("not given back", zap.Error(err))
			r.reply <- answer{Error: err.Error()}
		case <-lost:
			lost = nil
			a.Log.Error("the lease is lost, the mount stays for its jobs",
				zap.String("volume", h.lease.Volume()), zap.Error(context.Cause(h.lease.Context())))
		case <-tick.C:
			if lost == nil && a.regain(ctx, h) {
				lost = h.lease.Context().Done()
			}
			if !h.unmounted {
				a.noteUsage(h)
			}
		}
	}
}

// regain claims the mounted volume again, if the table has it free.
func (a *Agent) regain(ctx context.Context, h *holding) bool {
	soon, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	l, err := a.claimant.ClaimVolume(soon, h.lease.Volume())
	if err != nil {
		return false
	}
	l.Note(lease.Facts{Phase: phase(lease.Mounted)})
	h.lease = l
	a.Log.Info("claimed again", zap.String("volume", l.Volume()), zap.Int64("generation", l.Generation()))
	if err := l.Confirm(soon); err != nil {
		a.Log.Warn("not confirmed yet", zap.Error(err))
	}
	r := a.decided.result()
	r.Generation = new(l.Generation())
	if err := a.Parts.Run.save(a.state(h, &r)); err != nil {
		a.Log.Error("write the state file", zap.Error(err))
	}
	return true
}

// giveBack is the way out, step by step. Where a step fails, what was not given
// back stays held, and a further call goes on from there.
func (a *Agent) giveBack(ctx context.Context, h *holding, kill bool) (Released, error) {
	volume := h.lease.Volume()
	if !h.unmounted {
		unmounting, cancel := context.WithTimeout(ctx, unmountTime)
		defer cancel()
		a.noteUsage(h)
		if err := a.Disks.Unmount(unmounting, a.opt.MountPoint, kill); err != nil {
			h.lease.Note(lease.Facts{LastError: new(err.Error())})
			return Released{}, fmt.Errorf("release %s: %w", volume, err)
		}
		h.unmounted = true
		if h.disk != nil {
			h.disk.Close()
		}
	}
	// Nobody's patience ends what follows: nothing uses the volume any more.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveBackTime)
	defer cancel()
	lost := h.lease.Context().Err() != nil
	if !lost {
		// Recorded at once: the machine may have little time left.
		h.lease.Note(lease.Facts{Phase: phase(lease.Releasing), Clean: new(true)})
		recording, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := h.lease.Renew(recording); err != nil {
			a.Log.Warn("not recorded as clean yet", zap.Error(err))
		}
	}
	if err := a.detach(ctx, volume); err != nil {
		return Released{}, fmt.Errorf("release %s: %w", volume, err)
	}
	message := "released"
	if err := h.lease.Release(ctx, true); err != nil {
		return Released{}, err
	}
	if lost {
		message = "detached; the lease had been lost before"
	}
	if err := a.Parts.Run.forget(a.opt.MountPoint); err != nil {
		a.Log.Warn("remove the state file", zap.Error(err))
	}
	a.Log.Info(message, zap.String("volume", volume), zap.Int64("generation", h.lease.Generation()))
	return Released{Schema: 1, Released: true, MountPoint: a.opt.MountPoint, Volume: &volume,
		Generation: new(h.lease.Generation()), Message: &message}, nil
}

// detach asks EC2 to detach the volume from this instance, and waits until EC2
// shows no attachment to it and the kernel no device.
func (a *Agent) detach(ctx context.Context, volume string) error {
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := a.EC2.Detach(ctx, volume, a.id.Instance)
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrIncorrectState) {
			err = nil // it is detached, or on its way: the look below tells
		}
		gone := false
		if err == nil {
			gone, err = a.detached(ctx, volume)
		}
		switch {
		case gone:
			return nil
		case errors.Is(err, ErrDenied):
			return err
		case err != nil:
			a.Log.Warn("detach", zap.String("volume", volume), zap.Error(err))
		}
		if !pause(ctx, wait) {
			if err == nil {
				err = fmt.Errorf("EC2 still shows %s attached", volume)
			}
			return err
		}
	}
}

func (a *Agent) detached(ctx context.Context, volume string) (bool, error) {
	v, err := a.EC2.Volume(ctx, volume)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return false, err
	}
	if v.AttachedTo(a.id.Instance) {
		return false, nil
	}
	attached, err := a.Disks.Attached()
	for _, d := range attached {
		if d.Volume == volume {
			return false, err
		}
	}
	return err == nil, err
}

// settleTime bounds what goes on in the background after a volume was given up:
// a stuck attach is EC2's to end.
const settleTime = 10 * time.Minute

// giveUp gives a volume back that was not brought to its mount point: in the
// background, for a stuck attach may take long to end.
func (a *Agent) giveUp(h *holding, f *failure, attachAsked bool) {
	if h.disk != nil {
		h.disk.Close()
	}
	h.lease.Note(lease.Facts{Clean: new(h.before.Clean && f.blame != blameVolume || h.sound)})
	// One acquire blames one volume at most: a second that fails points at
	// this machine.
	a.mu.Lock()
	toBlame := f.blame == blameVolume && !a.blamed
	a.blamed = a.blamed || toBlame
	a.mu.Unlock()
	a.settle.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), settleTime)
		defer cancel()
		var err error
		if attachAsked && (f.reason != ReasonInUse) {
			err = a.detach(ctx, h.lease.Volume())
		}
		switch {
		case err != nil:
			h.lease.Abandon()
		case f.blame == blameLost:
		case toBlame:
			err = h.lease.Quarantine(ctx, fmt.Sprintf("%s: %v", f.reason, f.err))
		default:
			err = h.lease.Release(ctx, false)
		}
		if err != nil {
			a.Log.Error("a volume could not be given back", zap.String("volume", h.lease.Volume()), zap.Error(err))
		}
	})
}

// ReleaseLeft gives back what a dead agent left, from its state file. It is an
// agent of its own for that time: it holds the lock, and re-adopts the lease.
func (a *Agent) ReleaseLeft(ctx context.Context, kill bool) (Released, error) {
	nothing := Released{Schema: 1, MountPoint: a.opt.MountPoint, Message: new("nothing is held at " + a.opt.MountPoint)}
	if err := a.Parts.Run.Make(); err != nil {
		return Released{}, err
	}
	lock, err := a.Parts.Run.lock(a.opt.MountPoint)
	if err != nil {
		return Released{}, err
	}
	defer lock.Close()
	left, err := a.Parts.Run.Load(a.opt.MountPoint)
	if err != nil {
		return Released{}, err
	}
	if left == nil {
		return nothing, nil
	}
	a.id, a.opt.Pool = Identity{Instance: left.Instance, Zone: left.Zone}, left.Pool
	there, isMounted, err := a.Disks.MountedAt(a.opt.MountPoint)
	if err != nil {
		return Released{}, err
	}
	mounted := there.Volume
	if left.Volume == "" {
		if left.Bound && isMounted && mounted == "" {
			if err := a.Disks.Unmount(ctx, a.opt.MountPoint, kill); err != nil {
				return Released{}, err
			}
		}
		return nothing, a.Parts.Run.forget(a.opt.MountPoint)
	}
	a.claimant, err = lease.New(lease.Config{Store: a.Store, Pool: left.Pool, Zone: left.Zone, Owner: left.Instance,
		MountPoint: a.opt.MountPoint, BootID: a.BootID, Elapsed: a.Elapsed, Rand: a.Rand, Log: a.Log})
	if err != nil {
		return Released{}, fmt.Errorf("read state: %w", err)
	}
	defer a.waitSettled()
	l, err := a.readopt(ctx, left.Volume, mounted == left.Volume)
	if err != nil {
		return Released{}, fmt.Errorf("release %s: %w", left.Volume, err)
	}
	if l == nil { // another's by now, or nobody's: the attachment alone is ours
		return nothing, a.letGo(ctx, left.Volume, mounted == left.Volume, kill)
	}
	h := &holding{lease: l, before: l.Record(), unmounted: mounted != left.Volume}
	released, err := a.giveBack(ctx, h, kill)
	if err != nil {
		l.Abandon()
	}
	return released, err
}

// letGo unmounts and detaches a volume whose lease is not ours any more.
func (a *Agent) letGo(ctx context.Context, volume string, mounted, kill bool) error {
	if mounted {
		if err := a.Disks.Unmount(ctx, a.opt.MountPoint, kill); err != nil {
			return err
		}
	}
	if err := a.detach(ctx, volume); err != nil {
		return err
	}
	return a.Parts.Run.forget(a.opt.MountPoint)
}
