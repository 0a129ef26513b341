package pool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/volpool/volpool/lease"
	"go.uber.org/zap"
)

// Options is what concerns the machine: the flags of acquire and agent.
type Options struct {
	Pool          string
	MountPoint    string
	Began         time.Duration // Elapsed when the caller began; 0: now
	Timeout       time.Duration // the result is there by then
	AttachTimeout time.Duration // from when EC2 accepted the attach
	Wait          time.Duration // for a volume to become free
	Root          Root
	FallbackDir   string
}

// Parts is what an agent works with.
type Parts struct {
	Store       lease.Store
	EC2         *EC2
	Identify    func(context.Context) (Identity, error)
	Credentials func(context.Context) error // whether there is something to sign requests with
	Disks       Disks
	Run         RunDir
	BootID      string
	Elapsed     func() time.Duration // nil: CLOCK_BOOTTIME
	Rand        *rand.Rand           // nil: seeded by the runtime
	// Listen takes the path of the agent's control socket; nil: a unix socket.
	Listen func(path string) (net.Listener, error)
	Log    *zap.Logger // nil: no log
}

// Agent owns the lease of one mount point from claim to release.
type Agent struct {
	Parts
	opt     Options
	began   time.Duration
	decided decision
	settle  sync.WaitGroup // volumes that are being given up in the background
	saving  sync.Mutex     // one state is written at a time

	mu       sync.Mutex
	id       Identity
	claimant *lease.Claimant
	seconds  Seconds
	step     Reason   // what a deadline would interrupt
	bound    bool     // --fallback-dir is mounted at the mount point
	blamed   bool     // a volume was quarantined by this acquire
	held     *holding // what is held, or being brought to the mount point
	ours     []string // volumes that were claimed and not yet given back
	other    *State   // what was found belongs to another pool: it is left as it is
	told     *Result  // what the state file says of the acquire
	over     bool     // what was told is past: nothing is mounted any more
}

// NewAgent returns an agent that has not begun.
func NewAgent(p Parts, o Options) *Agent {
	if p.Elapsed == nil {
		p.Elapsed = lease.Elapsed
	}
	if p.Log == nil {
		p.Log = zap.NewNop()
	}
	if p.Listen == nil {
		p.Listen = listen
	}
	a := &Agent{Parts: p, opt: o, step: ReasonTimeout}
	if a.began = o.Began; a.began == 0 {
		a.began = a.elapsed()
	}
	a.decided.done = make(chan struct{})
	return a
}

func (a *Agent) elapsed() time.Duration { return a.Elapsed() }

// Run acquires, tells the result, holds, and gives back when ctx ends or a
// release is asked for. It returns when nothing is held any more, or with an
// error that says what still is.
func (a *Agent) Run(ctx context.Context, tell func(Result)) error {
	if err := a.Parts.Run.Make(); err != nil {
		return fmt.Errorf("make the state folder: %w", err)
	}
	lock, err := a.Parts.Run.lock(a.opt.MountPoint)
	if err != nil {
		return err
	}
	defer lock.Close()
	previous, err := a.Parts.Run.Load(a.opt.MountPoint)
	if err != nil {
		a.Log.Warn("going on without the state of a former agent", zap.Error(err))
	}
	a.inherit(previous)
	releases := make(chan releaseRequest)
	ended := make(chan struct{})
	listener, err := a.Listen(a.Parts.Run.path(a.opt.MountPoint, ".sock"))
	if err != nil {
		return fmt.Errorf("listen for requests: %w", err)
	}
	defer serve(listener, a.Log, a.handler(releases, ended)).close()
	defer close(ended)

	if err := a.Parts.Run.save(a.state()); err != nil {
		return fmt.Errorf("write the state file: %w", err)
	}
	h := a.acquire(ctx, previous)
	r := a.decided.result()
	a.know(func() { a.held, a.told = h, &r })
	close(a.decided.done)
	tell(r)
	if h != nil {
		err = a.hold(ctx, h, releases)
	}
	a.linger(releases)
	return err
}

// inherit takes over what a former agent knew. What it held of another pool is
// not this acquire's to touch, and must stay known.
func (a *Agent) inherit(previous *State) {
	if previous == nil {
		return
	}
	volumes := previous.volumes()
	if previous.BootID == a.BootID && (previous.Bound || len(volumes) > 0) {
		// Within one boot an instance stays who it is.
		a.bound = previous.Bound
		a.id = Identity{Instance: previous.Instance, Zone: previous.Zone}
	}
	if previous.Pool == a.opt.Pool {
		a.ours = volumes
	} else if len(volumes) > 0 {
		a.other = previous
	}
}

// know changes what the agent knows, and writes it down for whoever comes after
// it. The state file goes with the last thing that it would tell.
func (a *Agent) know(change func()) {
	a.saving.Lock()
	defer a.saving.Unlock()
	a.mu.Lock()
	change()
	nothing := a.over && len(a.ours) == 0
	a.mu.Unlock()
	var err error
	if nothing {
		err = a.Parts.Run.forget(a.opt.MountPoint)
	} else {
		err = a.Parts.Run.save(a.state())
	}
	if err != nil {
		a.Log.Error("write the state file", zap.Error(err))
	}
}

// begin notes a volume as the one that is held, or brought to the mount point.
func (a *Agent) begin(h *holding) {
	a.know(func() {
		a.held = h
		if !slices.Contains(a.ours, h.volume) {
			a.ours = append(a.ours, h.volume)
		}
	})
}

// gaveBack notes that nothing of a volume is ours any more.
func (a *Agent) gaveBack(volume string) {
	a.know(func() {
		if a.held != nil && a.held.volume == volume {
			a.held = nil
		}
		a.ours = slices.DeleteFunc(a.ours, func(v string) bool { return v == volume })
	})
}

func (a *Agent) state() State {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := State{Schema: 1, BootID: a.BootID, Pool: a.opt.Pool, Zone: a.id.Zone, Instance: a.id.Instance,
		MountPoint: a.opt.MountPoint, Unsettled: slices.Clone(a.ours)}
	if a.other != nil {
		s = *a.other
	}
	s.PID, s.Bound, s.Result = os.Getpid(), a.bound, a.told
	if a.held != nil {
		s.Volume, s.Generation = a.held.volume, a.held.generation
		s.Unsettled = slices.DeleteFunc(s.Unsettled, func(v string) bool { return v == a.held.volume })
	}
	return s
}

// decision is the result of an acquire: the worker's, or the deadline's,
// whichever comes first. Mounting is where they could collide: once the worker
// has begun to mount, the deadline waits for it, as long as it can.
type decision struct {
	mu       sync.Mutex
	r        *Result
	mounting bool
	done     chan struct{} // closed when the result has been written down
}

// make decides unless it was decided.
func (d *decision) make(r Result) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.r != nil {
		return false
	}
	d.r = &r
	return true
}

func (d *decision) isMounting() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mounting
}

// notMounted tells that the mount failed: the deadline may decide again.
func (d *decision) notMounted() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mounting = false
}

// mayMount tells the worker whether its mount would still be wanted.
func (d *decision) mayMount() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mounting = d.r == nil
	return d.mounting
}

func (d *decision) result() Result {
	d.mu.Lock()
	defer d.mu.Unlock()
	return *d.r
}

// acquire works until there is a result, by the deadline at the latest. What it
// returns is held; what may not be interrupted goes on in the background.
func (a *Agent) acquire(ctx context.Context, previous *State) *holding {
	h := a.decide(ctx, previous)
	if h == nil {
		a.fallBack()
	}
	return h
}

// decide has the worker and the deadline race for the result.
func (a *Agent) decide(ctx context.Context, previous *State) *holding {
	// The caller's own deadline is the flag's: the result is to be with it by
	// then.
	margin := min(time.Second, a.opt.Timeout/10)
	patience := a.opt.Timeout - margin - (a.elapsed() - a.began)
	deadline, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	worked := make(chan *holding, 1)
	a.settle.Go(func() {
		h, f := a.work(deadline, previous)
		switch {
		case f == nil && (h.found || a.decided.make(a.success(h))):
			worked <- h
			return
		case f == nil: // the mount came after the deadline, and would hide what was written since
			a.giveUp(h, &failure{reason: ReasonTimeout, err: errors.New("mounted after the deadline")})
		case a.decided.make(a.fallbackOf(f)):
			a.Log.Warn("falling back", zap.String("reason", string(f.reason)), zap.Error(f.err))
		}
		worked <- nil
	})
	select {
	case h := <-worked:
		return h
	case <-deadline.Done():
	}
	// Who only waited for an answer knows best what was missing, and says so now;
	// who is mounting gets what is left of the time.
	for range 2 {
		select {
		case h := <-worked:
			return h
		case <-time.After(margin / 2):
		}
		if !a.decided.isMounting() {
			break
		}
	}
	if !a.decided.make(a.fallbackOf(a.late(ctx))) {
		return <-worked
	}
	a.Log.Warn("falling back at the deadline", zap.String("reason", string(*a.decided.result().Reason)))
	return nil
}

// late is the failure of a worker that has not ended by the deadline.
func (a *Agent) late(ctx context.Context) *failure {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ctx.Err() != nil {
		return &failure{reason: ReasonInterrupted, err: errors.New("the agent was told to end")}
	}
	return &failure{reason: a.step, err: fmt.Errorf("not done within %v", a.opt.Timeout)}
}

// at notes which step is under way, for a deadline that comes meanwhile.
func (a *Agent) at(step Reason) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.step = step
}

// fallBack makes the plain directory that stands in for the volume.
func (a *Agent) fallBack() {
	if a.opt.FallbackDir == "" {
		return // the worker's first step made the mount point
	}
	if _, mounted, err := a.Disks.MountedAt(a.opt.MountPoint); err != nil || mounted {
		return
	}
	if err := a.Disks.BindMount(a.opt.FallbackDir, a.opt.MountPoint, a.opt.Root); err != nil {
		a.Log.Error("the fallback directory could not be mounted", zap.String("dir", a.opt.FallbackDir), zap.Error(err))
		return
	}
	a.know(func() { a.bound = true })
}

func seconds(from, to time.Duration) *float64 {
	return new((to - from).Round(time.Millisecond).Seconds())
}
