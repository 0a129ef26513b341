//go:build !race

package sim

import (
	"context"
	"errors"
	"time"

	"github.com/volpool/volpool/lease"
)

// What EC2 answers.
var (
	errInUse    = errors.New("VolumeInUse")
	errNotThere = errors.New("IncorrectState")
	errIO       = errors.New("input/output error")
	errBusy     = errors.New("device or resource busy")
)

// machine is an instance as EC2 knows it.
type machine struct {
	id    string
	state lease.OwnerState
	was   lease.OwnerState // before the last change
	since time.Time
	boot  string
	agent bool // it runs the agent, and not the bare lease
}

// disk is a volume as EC2 knows it, and what is on it.
type disk struct {
	id      string
	on      *machine // attached to, or nil
	stuck   bool     // attached, says EC2, and no device comes
	leaving time.Time
	since   time.Time
	before  *machine // until since
	mounted bool
	first   itemState // as the table had it at the beginning
	mkfs    bool      // a filesystem was begun
	made    bool      // and finished
	files   bool      // and has had a file in it
	uuid    string    // of the filesystem
	clean   bool      // it was unmounted
	until   time.Time // when the mkfs that runs is done, its agent alive or not
	user    *process  // who has it locked
	ready   time.Time // when the device comes
	late    bool      // attached by a copy that was late: nobody asks for it any more
}

// locked tells whether a process has the device, or an orphan of a dead one.
func (d *disk) locked() bool {
	return d.user != nil && !d.user.dead.Load() || time.Now().Before(d.until)
}

// broken off: whoever worked on the device has lost it.
func (d *disk) gone() {
	d.leaving, d.mounted, d.stuck, d.until, d.user = time.Time{}, false, false, time.Time{}, nil
}

func (d *disk) settle() {
	if d.on != nil && !d.leaving.IsZero() && !time.Now().Before(d.leaving) {
		d.before, d.on, d.since = d.on, nil, d.leaving
		d.gone()
	}
	if !d.until.IsZero() && d.leaving.IsZero() && !time.Now().Before(d.until) {
		d.made, d.until = true, time.Time{}
	}
}

// attach asks EC2.
func (p *process) attach(ctx context.Context, d *disk) error {
	_, err := through(ctx, p, call{"attach", tail(d.id), nil}, func() (struct{}, error) {
		d.settle()
		switch {
		case p.on.state != lease.OwnerRunning:
			return struct{}{}, errNotThere
		case d.on != nil:
			return struct{}{}, errInUse
		}
		d.late = p.gate.copying
		d.ready = time.Now().Add(time.Duration(p.w.gate.rng.Int64N(int64(3 * time.Second))))
		d.before, d.on, d.since, d.stuck = nil, p.on, time.Now(), p.w.gate.rng.IntN(30) == 0 && p.w.gate.trouble > 0
		if d.stuck {
			p.gate.coverage.met("attach", stuck)
		}
		return struct{}{}, nil
	})
	return err
}

func (p *process) detach(ctx context.Context, d *disk) error {
	_, err := through(ctx, p, call{"detach", tail(d.id), nil}, func() (struct{}, error) {
		d.settle()
		if d.on != p.on {
			return struct{}{}, errNotThere
		}
		if d.mounted && p.gate.copying {
			return struct{}{}, nil // EC2 waits for the machine to let go
		}
		if d.mounted || d.locked() && !p.gate.copying {
			p.w.violate("%s detached %s while it was in use", p.name, d.id)
		}
		d.until = time.Time{}
		d.leaving = time.Now().Add(time.Duration(p.w.gate.rng.Int64N(int64(4 * time.Second))))
		return struct{}{}, nil
	})
	return err
}

// lag is how far back a Describe may look.
const lag = 20 * time.Second

// sight is what one Describe said of a volume and its lease's owner.
type sight struct {
	owner  lease.OwnerState
	volume lease.VolumeState
}

// describe is DescribeInstances and DescribeVolumes for one lease; either may
// answer from the past.
func (p *process) describe(ctx context.Context, r lease.Record) (sight, error) {
	owner, err := through(ctx, p, call{"describe instances", tail(r.Owner), nil}, func() (lease.OwnerState, error) {
		return p.w.ownerState(r.Owner), nil
	})
	if err != nil {
		return sight{}, err
	}
	volume, err := through(ctx, p, call{"describe volumes", tail(r.Volume), nil}, func() (lease.VolumeState, error) {
		if p.gate.copying {
			return lease.VolumeGone, nil
		}
		on, leaving := p.see(p.w.disks[r.Volume])
		switch {
		case on == nil:
			return lease.VolumeAvailable, nil
		case on == p.on:
			return lease.VolumeMine, nil
		case on.id == r.Owner && leaving:
			return lease.VolumeLeavingOwner, nil
		case on.id == r.Owner:
			return lease.VolumeOwners, nil
		}
		return lease.VolumeElsewhere, nil
	})
	return sight{owner, volume}, err
}

// ownerState is what DescribeInstances says.
func (w *world) ownerState(id string) lease.OwnerState {
	m := w.machines[id]
	switch {
	case m == nil:
		return lease.OwnerGone
	case m.state != lease.OwnerTerminated && w.past("describe instances", m.since):
		if m.was == lease.OwnerPending {
			return lease.OwnerGone // it is new, and this replica has not heard of it
		}
		return m.was
	}
	return m.state
}

// see is where DescribeVolumes says that a volume is.
func (p *process) see(d *disk) (on *machine, leaving bool) {
	d.settle()
	// What no stale reply could hide: somebody runs and had it all along.
	p.owned[d.id] = nil
	if d.on != nil && d.leaving.IsZero() && d.on.state == lease.OwnerRunning && time.Since(d.since) > lag {
		p.owned[d.id] = d.on
	}
	if p.w.past("describe volumes", d.since) {
		return d.before, false
	}
	return d.on, !d.leaving.IsZero()
}

// past tells whether a reply comes from before a change.
func (w *world) past(step string, change time.Time) bool {
	if time.Since(change) >= lag || w.gate.rng.IntN(4) > 0 {
		return false
	}
	w.gate.coverage.met(step, stale)
	return true
}

// visible tells whether the kernel of the process's machine shows the device.
func (p *process) visible(d *disk) bool {
	d.settle()
	return d.on == p.on && !d.stuck && !time.Now().Before(d.ready) && d.leaving.IsZero() && p.on.state == lease.OwnerRunning
}
