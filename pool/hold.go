package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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
			return a.tellResult(ctx, ended)
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

// tellResult answers with what is still true: after a release it waits for the
// agent to end, so that who asks can start another.
func (a *Agent) tellResult(ctx context.Context, ended <-chan struct{}) answer {
	a.mu.Lock()
	over, told := a.over, a.told
	a.mu.Unlock()
	if !over {
		return answer{Result: told}
	}
	select {
	case <-ended:
		return answer{Ended: true}
	case <-ctx.Done():
		return answer{Error: "the caller went away"}
	}
}

// hold keeps the volume until it is to be given back. A lease that is lost while
// the volume is mounted does not end it: the attachment still fences, and the
// jobs keep their cache. It is claimed again as soon as the table has it free.
func (a *Agent) hold(ctx context.Context, h *holding, releases <-chan releaseRequest) error {
	defer a.startJanitor(ctx, h.volume)()
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		var lost <-chan struct{}
		if h.lease != nil {
			lost = h.lease.Context().Done()
		}
		select {
		case <-ctx.Done():
			giving, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveBackTime)
			defer cancel()
			_, err := a.giveBack(giving, giving, h, false)
			if err != nil && h.lease != nil {
				h.lease.Abandon()
			}
			return err
		case r := <-releases:
			// Once it is unmounted, nobody's patience ends what follows.
			giving, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveBackTime)
			released, err := a.giveBack(r.ctx, giving, h, r.kill)
			cancel()
			if err == nil {
				r.reply <- answer{Release: &released}
				return nil
			}
			a.Log.Error("not given back", zap.Error(err))
			r.reply <- answer{Error: err.Error()}
		case <-lost:
			a.Log.Error("the lease is lost, the mount stays for its jobs",
				zap.String("volume", h.volume), zap.Error(context.Cause(h.lease.Context())))
			a.know(func() { h.lease = nil })
		case <-tick.C:
			if a.tend(ctx, h) {
				return nil
			}
		}
	}
}

// tend is what hold does from time to time. It reports true where a give-back
// that had failed half way is done.
func (a *Agent) tend(ctx context.Context, h *holding) (gone bool) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if !h.mounted {
		_, err := a.giveBack(ctx, ctx, h, false)
		if err != nil {
			a.Log.Warn("not given back yet", zap.Error(err))
		}
		return err == nil
	}
	a.noteUsage(h)
	if h.lease != nil {
		return false
	}
	if err := a.regain(ctx, h); err == nil {
		a.Log.Info("claimed again", zap.String("volume", h.volume), zap.Int64("generation", h.generation))
	}
	return false
}

// linger stays until what the acquire left under way has settled: attaches that
// are given up, claims of unknown outcome. Who asks for a release meanwhile is
// told that nothing is held.
func (a *Agent) linger(releases <-chan releaseRequest) {
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		a.waitSettled()
	}()
	for {
		select {
		case <-settled:
			return
		case r := <-releases:
			released, err := a.releaseNothing(r.ctx, r.kill)
			if err != nil {
				r.reply <- answer{Error: err.Error()}
				continue
			}
			r.reply <- answer{Release: &released}
		}
	}
}

func (a *Agent) waitSettled() {
	a.settle.Wait()
	if a.claimant != nil {
		a.claimant.Settle()
	}
}

// releaseNothing ends a fallback.
func (a *Agent) releaseNothing(ctx context.Context, kill bool) (Released, error) {
	if a.bound {
		if err := a.Disks.Unmount(ctx, a.opt.MountPoint, kill); err != nil {
			return Released{}, fmt.Errorf("take the fallback directory away: %w", err)
		}
	}
	a.know(func() { a.bound, a.over, a.told = false, true, nil })
	message := "nothing is held at " + a.opt.MountPoint
	if left := a.state().Unsettled; len(left) > 0 {
		message += "; still giving back " + strings.Join(left, ", ")
	}
	return Released{Schema: 1, MountPoint: a.opt.MountPoint, Message: &message}, nil
}

// giveBack is the way out, step by step. Where a step fails, what was not given
// back stays held, and a further call goes on from there. patience bounds the
// unmount, ctx what follows it.
func (a *Agent) giveBack(patience, ctx context.Context, h *holding, kill bool) (Released, error) {
	if err := a.unmount(patience, ctx, h, kill); err != nil {
		return Released{}, fmt.Errorf("release %s: %w", h.volume, err)
	}
	if err := a.detach(ctx, h.volume, h.attachedAt > 0 && a.elapsed()-h.attachedAt > stale); err != nil {
		return Released{}, fmt.Errorf("release %s: %w", h.volume, err)
	}
	message := "released"
	if err := a.reclaim(ctx, h); err != nil {
		return Released{}, fmt.Errorf("release %s: %w", h.volume, err)
	}
	if h.lease == nil || h.lease.Context().Err() != nil {
		message = "detached; the lease had been lost before"
	}
	if h.lease != nil {
		if err := h.lease.Release(ctx, h.used); err != nil {
			return Released{}, err
		}
	}
	a.gaveBack(h.volume)
	a.Log.Info(message, zap.String("volume", h.volume), zap.Int64("generation", h.generation))
	released := Released{Schema: 1, Released: true, MountPoint: a.opt.MountPoint, Volume: &h.volume, Message: &message}
	if h.generation > 0 {
		released.Generation = &h.generation
	}
	return released, nil
}

// reclaim gets the lease that is to be released, where the volume was held
// without it and the table still has it as ours.
func (a *Agent) reclaim(ctx context.Context, h *holding) error {
	if h.lease != nil {
		return nil
	}
	got, err := a.readopt(ctx, h.volume, false)
	if got == nil {
		return err
	}
	if h.used {
		got.lease.Note(lease.Facts{Phase: phase(lease.Releasing), Clean: new(true)})
	}
	a.know(func() { h.lease, h.generation = got.lease, got.generation })
	return nil
}

// unmount ends the use of the volume, and has it recorded as clean.
func (a *Agent) unmount(patience, ctx context.Context, h *holding, kill bool) error {
	if !h.mounted {
		return nil
	}
	patience, cancel := context.WithTimeout(patience, unmountTime)
	defer cancel()
	a.noteUsage(h)
	if err := a.Disks.Unmount(patience, a.opt.MountPoint, kill); err != nil {
		h.note(lease.Facts{LastError: new(err.Error())})
		return err
	}
	a.know(func() { h.mounted, a.over = false, true })
	if h.disk != nil {
		h.disk.Close()
	}
	if h.lease == nil {
		return nil
	}
	// At once: the machine may have little time left.
	h.lease.Note(lease.Facts{Phase: phase(lease.Releasing), Clean: new(true)})
	recording, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := h.lease.Renew(recording); err != nil {
		a.Log.Warn("not recorded as clean yet", zap.Error(err))
	}
	return nil
}

// errUsedHere keeps a volume attached that something on this machine has open.
var errUsedHere = errors.New("it is mounted or locked on this machine")

// stale is how old an answer of EC2's may be: it is consistent within seconds.
const stale = 5 * time.Minute

// detach has EC2 take the volume from this instance, once nothing here uses it.
// It is done when EC2 shows it so, and refuses to detach what is not attached: an
// answer to Describe alone may be older than the attach, unless that is long ago.
func (a *Agent) detach(ctx context.Context, volume string, longAgo bool) error {
	asked := false
	wait := 200 * time.Millisecond
	for {
		refused, err := false, error(nil)
		if !asked {
			var attached []AttachedVolume
			if attached, err = a.Disks.Attached(); err == nil {
				err = unused(attached, volume)
			}
			if err == nil {
				err = a.EC2.Detach(ctx, volume, a.id.Instance)
				asked = err == nil
				if errors.Is(err, ErrNotFound) || errors.Is(err, ErrIncorrectState) || errors.Is(err, ErrNoInstance) {
					refused, err = true, nil
				}
			}
		}
		shown, gone := false, false
		if err == nil {
			shown, err = a.shown(volume)
		}
		if err == nil && !shown { // else EC2 has nothing to tell yet
			gone, err = a.detached(ctx, volume)
			wait = min(2*wait, 5*time.Second)
		}
		switch {
		case gone && (refused || longAgo):
			return nil
		case gone:
			asked = false // once more, for the proof
			continue
		case errors.Is(err, ErrDenied):
			return err
		case err != nil:
			a.Log.Warn("detach", zap.String("volume", volume), zap.Error(err))
			wait = min(2*wait, 5*time.Second)
		}
		if !pause(ctx, wait) {
			if err == nil {
				err = fmt.Errorf("EC2 still shows %s attached", volume)
			}
			return err
		}
	}
}

// unused is the kernel's word that nothing here has the volume mounted, locked
// or open for itself.
func unused(attached []AttachedVolume, volume string) error {
	for _, d := range attached {
		if d.Volume == volume && d.InUse {
			return fmt.Errorf("detach %s: %w", volume, errUsedHere)
		}
	}
	return nil
}

// shown tells whether the kernel shows the volume.
func (a *Agent) shown(volume string) (bool, error) {
	attached, err := a.Disks.Attached()
	return slices.ContainsFunc(attached, func(d AttachedVolume) bool { return d.Volume == volume }), err
}

func (a *Agent) detached(ctx context.Context, volume string) (bool, error) {
	v, err := a.EC2.Volume(ctx, volume)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return false, err
	}
	return !v.AttachedTo(a.id.Instance), nil
}

// settleTime bounds what goes on in the background after a volume was given up:
// a stuck attach is EC2's to end.
const settleTime = 10 * time.Minute

// giveUp gives a volume back that was not brought to its mount point: in the
// background, for a stuck attach may take long to end.
func (a *Agent) giveUp(h *holding, f *failure) {
	if h.disk != nil && !h.mounted {
		h.disk.Close()
	}
	h.note(lease.Facts{Clean: new((h.before.Clean || h.sound) && f.blame != blameVolume)})
	// One acquire blames one volume at most: a second that fails points at
	// this machine.
	a.mu.Lock()
	toBlame := f.blame == blameVolume && !a.blamed
	a.blamed = a.blamed || toBlame
	if a.held == h {
		a.held = nil
	}
	a.mu.Unlock()
	a.settle.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), settleTime)
		defer cancel()
		err := a.unmount(ctx, ctx, h, false)
		if err == nil && h.attached {
			err = a.detach(ctx, h.volume, false)
		}
		switch {
		case err != nil:
			h.lease.Abandon() // the state file has it, for the next one
		case f.blame == blameLost:
		case toBlame:
			err = h.lease.Quarantine(ctx, fmt.Sprintf("%s: %v", f.reason, f.err))
		default:
			err = h.lease.Release(ctx, h.used)
		}
		if err != nil {
			a.Log.Error("a volume could not be given back", zap.String("volume", h.volume), zap.Error(err))
			return
		}
		a.gaveBack(h.volume)
	})
}

// ReleaseLeft gives back what a dead agent left, from its state file. It is an
// agent of its own for that time: it holds the lock, and re-adopts the leases.
// What it does not get done by the end of ctx is left for the next one.
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
	if left.BootID != a.BootID { // a machine image may have brought it along
		id, err := a.Identify(ctx)
		if err != nil {
			return Released{}, err
		}
		if id.Instance != left.Instance {
			return nothing, a.Parts.Run.forget(a.opt.MountPoint)
		}
	}
	a.opt.Pool, a.over = left.Pool, true
	a.inherit(left)
	there, isMounted, err := a.Disks.MountedAt(a.opt.MountPoint)
	if err != nil {
		return Released{}, err
	}
	if a.bound && isMounted && there.Volume == "" {
		if err := a.Disks.Unmount(ctx, a.opt.MountPoint, kill); err != nil {
			return Released{}, err
		}
	}
	a.bound = false
	if len(a.ours) == 0 {
		return nothing, a.Parts.Run.forget(a.opt.MountPoint)
	}
	if err := a.become(Identity{Instance: left.Instance, Zone: left.Zone}); err != nil {
		return Released{}, fmt.Errorf("read state: %w", err)
	}
	defer a.waitSettled()
	answer := nothing
	for _, volume := range slices.Clone(a.ours) {
		released, err := a.releaseOne(ctx, volume, there.Volume == volume, kill)
		if err != nil {
			return Released{}, err
		}
		if released.Released && !answer.Released {
			answer = released
		}
	}
	return answer, nil
}

func (a *Agent) releaseOne(ctx context.Context, volume string, mounted, kill bool) (Released, error) {
	h, err := a.readopt(ctx, volume, mounted)
	if err != nil {
		return Released{}, fmt.Errorf("release %s: %w", volume, err)
	}
	if h == nil { // another's by now, or nobody's: at most the attachment is ours
		r, _, err := a.claimant.Look(ctx, volume)
		if err != nil && !errors.Is(err, lease.ErrNoVolume) {
			return Released{}, fmt.Errorf("release %s: %w", volume, err)
		}
		if r.State == lease.Held && r.Owner == a.id.Instance && !mounted { // another mount point's
			a.gaveBack(volume)
			return Released{}, nil
		}
		h = &holding{volume: volume, mounted: mounted}
	}
	released, err := a.giveBack(ctx, ctx, h, kill)
	if err != nil && h.lease != nil {
		h.lease.Abandon()
	}
	return released, err
}
