package pool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
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

	mu       sync.Mutex
	id       Identity
	claimant *lease.Claimant
	seconds  Seconds
	step     Reason // what a deadline would interrupt
	bound    bool   // --fallback-dir is mounted at the mount point
	left     *State // what a former agent held, until it is known what became of it
	blamed   bool   // a volume was quarantined by this acquire
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
	if previous != nil && previous.Volume != "" {
		a.left = previous
	}
	releases := make(chan releaseRequest)
	ended := make(chan struct{})
	listener, err := a.Listen(a.Parts.Run.path(a.opt.MountPoint, ".sock"))
	if err != nil {
		return fmt.Errorf("listen for requests: %w", err)
	}
	defer serve(listener, a.Log, a.handler(releases, ended)).close()
	defer close(ended)

	if err := a.Parts.Run.save(a.state(nil, nil)); err != nil {
		return fmt.Errorf("write the state file: %w", err)
	}
	h := a.acquire(ctx, previous)
	r := a.decided.result()
	if err := a.Parts.Run.save(a.state(h, &r)); err != nil {
		a.Log.Error("write the state file", zap.Error(err))
	}
	close(a.decided.done)
	tell(r)
	defer a.waitSettled()
	if h == nil {
		return nil
	}
	return a.hold(ctx, h, releases)
}

// waitSettled waits for what the acquire left under way: attaches that are
// given up, claims of unknown outcome.
func (a *Agent) waitSettled() {
	a.settle.Wait()
	if a.claimant != nil {
		a.claimant.Settle()
	}
}

func (a *Agent) state(h *holding, r *Result) State {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := State{Schema: 1, BootID: a.BootID, PID: os.Getpid(), Pool: a.opt.Pool, Zone: a.id.Zone, Instance: a.id.Instance,
		MountPoint: a.opt.MountPoint, Bound: a.bound, Result: r}
	switch {
	case h != nil:
		s.Volume, s.Generation = h.lease.Volume(), h.lease.Generation()
	case a.left != nil: // a release has nothing else to go by
		s.Pool, s.Zone, s.Instance = a.left.Pool, a.left.Zone, a.left.Instance
		s.Volume, s.Generation = a.left.Volume, a.left.Generation
	}
	return s
}

// decision is the result of an acquire: the worker's, or the deadline's,
// whichever comes first. Mounting is where they could collide: once the worker
// has begun to mount, the deadline waits for it.
type decision struct {
	mu       sync.Mutex
	r        *Result
	mounting bool
	done     chan struct{} // closed when the result has been written down
}

// make decides unless it was decided, or, at the deadline, unless the worker is
// mounting.
func (d *decision) make(r Result, deadline bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.r != nil || deadline && d.mounting {
		return false
	}
	d.r = &r
	return true
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
		case f == nil && a.decided.make(a.success(h), false):
			worked <- h
			return
		case f != nil && a.decided.make(a.fallbackOf(f), false):
			a.Log.Warn("falling back", zap.String("reason", string(f.reason)), zap.Error(f.err))
		}
		worked <- nil
	})
	var h *holding
	select {
	case h = <-worked:
		if h == nil {
			a.fallBack()
		}
		return h
	case <-deadline.Done():
	}
	// Who only waited for an answer knows best what was missing, and says so now.
	select {
	case h = <-worked:
	case <-time.After(margin / 2):
		if a.decided.make(a.fallbackOf(a.late(ctx)), true) {
			a.Log.Warn("falling back at the deadline", zap.String("reason", string(*a.decided.result().Reason)))
		} else {
			h = <-worked
		}
	}
	if h == nil {
		a.fallBack()
	}
	return h
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
	a.mu.Lock()
	a.bound = true
	a.mu.Unlock()
}

func seconds(from, to time.Duration) *float64 {
	return new((to - from).Round(time.Millisecond).Seconds())
}
