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
)

// machine is an instance as EC2 knows it.
type machine struct {
	id    string
	state lease.OwnerState
	was   lease.OwnerState // before the last change
	since time.Time
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
}

func (d *disk) settle() {
	if d.on != nil && !d.leaving.IsZero() && !time.Now().Before(d.leaving) {
		d.before, d.on, d.since = d.on, nil, d.leaving
		d.leaving, d.mounted, d.stuck = time.Time{}, false, false
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
		if d.mounted {
			p.w.violate("%s detached %s while it was mounted", p.name, d.id)
		}
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
		m := p.w.machines[r.Owner]
		if m == nil {
			return lease.OwnerGone, nil
		}
		if m.state != lease.OwnerTerminated && p.w.past("describe instances", m.since) {
			return m.was, nil
		}
		return m.state, nil
	})
	if err != nil {
		return sight{}, err
	}
	volume, err := through(ctx, p, call{"describe volumes", tail(r.Volume), nil}, func() (lease.VolumeState, error) {
		d := p.w.disks[r.Volume]
		d.settle()
		m := p.w.machines[r.Owner]
		// What no stale reply could hide: the owner ran and had it all along.
		if p.gate.copying {
			return lease.VolumeGone, nil
		}
		p.owned = m != nil && d.on == m && d.leaving.IsZero() && m.state == lease.OwnerRunning && time.Since(d.since) > lag
		on := d.on
		if p.w.past("describe volumes", d.since) {
			on = d.before
		}
		switch {
		case on == nil:
			return lease.VolumeAvailable, nil
		case on == p.on:
			return lease.VolumeMine, nil
		case on == m && d.leaving.IsZero():
			return lease.VolumeOwners, nil
		case on == m:
			return lease.VolumeLeavingOwner, nil
		}
		return lease.VolumeElsewhere, nil
	})
	return sight{owner, volume}, err
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
	return d.on == p.on && !d.stuck && d.leaving.IsZero() && p.on.state == lease.OwnerRunning
}
