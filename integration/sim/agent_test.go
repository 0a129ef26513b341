//go:build !race

package sim

import (
	"context"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/pool"
)

const mountPoint = "/mnt/cache"

// runAgent is the life of an instance with the real agent: one acquire after
// another, each held until it is told to end.
func (p *process) runAgent() {
	for p.ctx.Err() == nil && !p.w.calm.Load() {
		p.agent(time.Duration(p.rng.Int64N(int64(70 * time.Second))))
		if !p.sleep(time.Duration(p.rng.Int64N(int64(5 * time.Second)))) {
			return
		}
	}
	for range 30 {
		if left := p.agent(5 * time.Second); !left || !p.sleep(10*time.Second) {
			return
		}
	}
}

// agent runs the agent once, and reports whether it left something.
func (p *process) agent(end time.Duration) (left bool) {
	ctx, stop := context.WithTimeout(p.ctx, end)
	defer stop()
	// Odd times: of two timers that end in the same instant, chance would
	// decide which is seen first.
	between := func(from, to time.Duration) time.Duration { return from + time.Duration(p.rng.Int64N(int64(to-from))) }
	o := pool.Options{Pool: "ci", MountPoint: mountPoint, Timeout: between(20*time.Second, time.Minute),
		AttachTimeout: between(5*time.Second, 25*time.Second)}
	if p.rng.IntN(2) == 0 {
		o.Wait = between(5*time.Second, 15*time.Second)
	}
	p.held.newAcquire()
	run := pool.RunDir(p.run)
	l := &blocked{closed: make(chan struct{})}
	began := p.elapsed()
	a := pool.NewAgent(pool.Parts{Store: store{p, p.w}, EC2: pool.NewEC2(ec2Side{p}), Disks: kernel{p}, Run: run, BootID: p.on.boot,
		Elapsed: p.elapsed, Rand: rand.New(rand.NewPCG(p.rng.Uint64(), 4)),
		Identify: func(context.Context) (pool.Identity, error) {
			return pool.Identity{Instance: p.on.id, Zone: zone, Region: "us-east-1"}, nil
		},
		Credentials: func(context.Context) error { return nil },
		Listen:      func(string) (net.Listener, error) { return l, nil },
	}, o)
	err := a.Run(ctx, func(r pool.Result) {
		if p.dead.Load() {
			return
		}
		p.w.count(r.Result)
		if took := p.elapsed() - began; took > o.Timeout*106/100 {
			p.w.violate("%s had its result after %v, beyond %v", p.name, took, o.Timeout)
		}
		if r.Result != pool.Fallback && p.mounted() == nil {
			p.w.violate("%s says %s, and nothing is mounted", p.name, r.Result)
		}
	})
	if p.dead.Load() {
		return false
	}
	for _, d := range p.w.order { // the agent's process has ended, and its locks with it
		if d.user == p {
			d.user = nil
		}
		left = left || p.visible(d) && p.w.heldBy(d, p.on)
	}
	state, loadErr := run.Load(mountPoint)
	if loadErr != nil {
		p.w.violate("%s left a state that cannot be read: %v", p.name, loadErr)
	}
	return left || err != nil || state != nil && (state.Volume != "" || len(state.Unsettled) > 0) || p.mounted() != nil
}

// blocked is a control socket to which nobody connects.
type blocked struct {
	closed chan struct{}
	once   sync.Once
}

func (l *blocked) Accept() (net.Conn, error) { <-l.closed; return nil, net.ErrClosed }
func (l *blocked) Close() error              { l.once.Do(func() { close(l.closed) }); return nil }
func (l *blocked) Addr() net.Addr            { return nil }

// left takes the state folder from a process in the moment that it is killed: what
// its goroutines still write goes nowhere. A lock ends with its process.
func (p *process) left() {
	if p.run == "" {
		return
	}
	to := p.run + ".left"
	if os.Rename(p.run, to) != nil {
		return // it had not begun
	}
	locks, _ := filepath.Glob(filepath.Join(to, "*.lock"))
	for _, lock := range locks {
		_ = os.Remove(lock)
	}
	p.remembers = to
}

// kernel is the machine as the agent sees it.
type kernel struct{ p *process }

func (p *process) mounted() *disk {
	for _, d := range p.w.order {
		if d.settle(); d.mounted && d.on == p.on {
			return d
		}
	}
	return nil
}

func (k kernel) MakePoint(string, pool.Root) error {
	if k.p.mounted() != nil {
		return pool.ErrAlreadyMounted
	}
	return nil
}

func (k kernel) MountedAt(string) (m pool.Mounted, mounted bool, err error) {
	if d := k.p.mounted(); d != nil {
		return pool.Mounted{Volume: d.id, Device: "/dev/" + tail(d.id)}, true, nil
	}
	return pool.Mounted{}, false, nil
}

func (k kernel) Attached() (list []pool.AttachedVolume, err error) {
	for _, d := range k.p.w.order {
		if k.p.visible(d) {
			list = append(list, pool.AttachedVolume{Volume: d.id, InUse: d.mounted || d.locked()})
		}
	}
	return list, nil
}

func (k kernel) BindMount(string, string, pool.Root) error { return nil }
func (k kernel) Usage(string) (pool.Usage, error)          { return pool.Usage{UsedPercent: 1}, nil }

func (k kernel) Unmount(ctx context.Context, _ string, _ bool) error {
	for {
		busy, err := k.p.local("unmount", "", func() (bool, error) {
			d := k.p.mounted()
			if d != nil && k.p.w.gate.trouble > 0 && k.p.w.gate.rng.IntN(20) == 0 {
				return true, nil
			}
			if d != nil {
				d.mounted, d.clean = false, true
			}
			return false, nil
		})
		if err != nil || !busy {
			return err
		}
		if !k.p.wait(ctx, time.Second) {
			return &pool.DiskError{Reason: pool.ReasonMachine, Err: errBusy}
		}
	}
}

func (k kernel) Listen() (pool.Arrivals, error) { return arrivals(k), nil }

type arrivals struct{ p *process }

func (a arrivals) Close() error { return nil }

func (a arrivals) Wait(ctx context.Context, volume, _ string) (pool.Disk, error) {
	d := a.p.w.disks[volume]
	for tries := 0; ; {
		if a.p.visible(d) {
			got, err := a.p.local("device", tail(volume), func() (bool, error) {
				if !a.p.visible(d) || d.locked() {
					return false, nil
				}
				d.user = a.p
				return true, nil
			})
			if err != nil || got {
				return &device{a.p, d}, err
			}
			if tries++; tries > 4 && d.locked() {
				return nil, pool.ErrLocked
			}
		}
		if !a.p.wait(ctx, 300*time.Millisecond) {
			return nil, context.Cause(ctx)
		}
	}
}

// wait is a sleep that a dead process does not come back from.
func (p *process) wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
	p.endIfDead()
	return ctx.Err() == nil
}

// device is a disk that the process has locked.
type device struct {
	p *process
	d *disk
}

func (x *device) Path() string   { return "/dev/" + tail(x.d.id) }
func (x *device) SizeGiB() int64 { return 1 }
func (x *device) Close() error {
	if x.d.user == x.p && !x.p.dead.Load() {
		x.d.user = nil
	}
	return nil
}

func (x *device) Probe(context.Context) (pool.Probe, error) {
	return x.on("probe", func() (pool.Probe, error) {
		r := x.record()
		if r.Format == lease.FormatDone && (!x.d.made || r.FSUUID != "" && r.FSUUID != x.d.uuid) {
			x.p.w.violate("%s is recorded as formatted, and is not", x.d.id)
		}
		switch {
		case !x.d.mkfs:
			return pool.Probe{Content: pool.Blank}, nil
		case !x.d.made:
			return pool.Probe{Content: pool.HasData}, nil
		}
		return pool.Probe{Content: pool.HasData, FSType: "ext4", FSUUID: x.d.uuid, Clean: x.d.clean}, nil
	})
}

func (x *device) record() lease.Record {
	r, err := lease.Decode(x.p.w.table.Item(lease.Key{Partition: lease.Partition("ci", zone), Item: x.d.id}))
	if err != nil {
		x.p.w.violate("%s: %v", x.d.id, err)
	}
	return r
}

func (x *device) Format(_ context.Context, _, uuid string, overwrite bool) error {
	if x.p.endangered(x.d.id, x.p.held.generation(x.d.id)) && !x.p.dead.Load() {
		x.p.w.violate("%s begins to format %s when two thirds of its lease have passed", x.p.name, x.d.id)
	}
	_, err := x.on("mkfs", func() (pool.Probe, error) {
		d := x.d
		x.p.mayWrite(d, "formats")
		if d.files {
			x.p.w.violate("%s formats %s, which has files in it", x.p.name, d.id)
		}
		if d.mkfs && !overwrite {
			x.p.w.violate("%s formats %s, which is not blank", x.p.name, d.id)
		}
		if f := x.record().Format; f != lease.FormatBegun && f != lease.FormatWiping {
			x.p.w.violate("%s formats %s without a mark: it is recorded as %q", x.p.name, d.id, f)
		}
		d.mkfs, d.made, d.uuid, d.clean = true, false, uuid, true
		d.until = time.Now().Add(time.Duration(x.p.w.gate.rng.Int64N(int64(8 * time.Second))))
		x.p.w.count("formatted")
		return pool.Probe{}, nil
	})
	if err != nil {
		return err
	}
	x.p.wait(context.Background(), time.Until(x.d.until))
	_, err = x.on("mkfs ends", func() (pool.Probe, error) {
		if x.d.settle(); !x.d.made {
			return pool.Probe{}, errIO
		}
		return pool.Probe{}, nil
	})
	return err
}

func (x *device) Check(context.Context, string) (bool, error) {
	_, err := x.on("check", func() (pool.Probe, error) {
		x.p.mayWrite(x.d, "checks")
		x.d.clean = true
		return pool.Probe{}, nil
	})
	return false, err
}

func (x *device) Mount(context.Context, string, pool.MountOptions) error {
	_, err := x.on("mount", func() (pool.Probe, error) {
		d := x.d
		x.p.mayWrite(d, "mounts")
		switch {
		case d.mounted:
			x.p.w.violate("%s mounts %s, which is mounted", x.p.name, d.id)
		case !d.made:
			x.p.w.violate("%s mounts %s, which has no filesystem", x.p.name, d.id)
		case x.record().Format != lease.FormatDone:
			x.p.w.violate("%s mounts %s, which is recorded as %q", x.p.name, d.id, x.record().Format)
		case x.p.mounted() != nil:
			x.p.w.violate("%s mounts %s over %s", x.p.name, d.id, x.p.mounted().id)
		}
		d.mounted, d.files, d.clean = true, true, false
		x.p.w.count("mounted")
		return pool.Probe{}, nil
	})
	return err
}

// on does something to the device, where it is still there.
func (x *device) on(step string, do func() (pool.Probe, error)) (pool.Probe, error) {
	return x.p.localProbe(step, tail(x.d.id), func() (pool.Probe, error) {
		if !x.p.visible(x.d) {
			return pool.Probe{}, errIO
		}
		return do()
	})
}
