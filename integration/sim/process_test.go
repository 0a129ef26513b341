//go:build !race

package sim

import (
	"context"
	"errors"
	"time"

	"github.com/volpool/volpool/lease"
)

func (p *process) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		p.gate.mu.Lock() // what the scheduler did before is seen from here on
		defer p.gate.mu.Unlock()
		return p.ctx.Err() == nil
	case <-p.ctx.Done():
		return false
	}
}

func (p *process) soon(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(p.ctx, d)
}

// runBare is an instance's life with the bare lease: come back to what was held, and then one acquire
// after another.
func (p *process) runBare() {
	for range 5 { // it may not get through at once
		if !p.resume() || !p.sleep(time.Second) {
			break
		}
	}
	for p.ctx.Err() == nil && !p.w.calm.Load() {
		p.acquire()
		if p.rng.IntN(4) == 0 {
			p.janitor()
		}
		if !p.sleep(time.Duration(p.rng.Int64N(int64(5 * time.Second)))) {
			return
		}
	}
	p.c.Settle()
	p.looksAfter = true
	for range 6 {
		p.janitor()
		p.sleep(25 * time.Second)
	}
	for p.resume() && p.sleep(time.Minute) { // until nothing of ours is left
	}
}

// resume re-adopts what a former process of this machine held. It reports whether
// something was there, or could not be asked for.
func (p *process) resume() (found bool) {
	for _, d := range p.w.order {
		mounted := p.visible(d) && d.mounted
		if !p.visible(d) && p.remembers != d.id {
			continue
		}
		found = true
		ctx, cancel := p.soon(time.Minute)
		defer cancel()
		r, _, err := p.c.Look(ctx, d.id)
		if err != nil {
			continue
		}
		var l *lease.Lease
		switch {
		case r.State == lease.Held && r.Owner == p.on.id:
			l, err = p.c.Readopt(ctx, r)
		case r.State == lease.Free && mounted:
			l, err = p.c.ClaimVolume(ctx, d.id)
		case mounted: // another's by the table: the jobs end, and it is let go
			d.mounted = false
			p.letGo(d)
			continue
		default:
			if p.letGo(d) {
				p.remembers = ""
			}
			continue
		}
		if err != nil {
			continue
		}
		p.w.count("resumed")
		p.use(l, d, mounted)
	}
	return found
}

func (p *process) letGo(d *disk) bool {
	for range 20 {
		if p.ctx.Err() != nil {
			return false
		}
		if d.settle(); d.on != p.on {
			return true
		}
		ctx, cancel := p.soon(10 * time.Second)
		_ = p.detach(ctx, d)
		cancel()
		p.sleep(time.Second)
	}
	return false
}

// acquire claims a free volume, or one whose owner is gone, uses it and gives it
// back.
func (p *process) acquire() {
	ctx, cancel := p.soon(time.Duration(1+p.rng.IntN(20)) * time.Second)
	defer cancel()
	l, err := p.c.Claim(ctx, nil)
	if errors.Is(err, lease.ErrNoFree) {
		l = p.takeOver(ctx)
	}
	if l == nil {
		return
	}
	p.use(l, p.w.disks[l.Volume()], false)
}

func (p *process) takeOver(ctx context.Context) *lease.Lease {
	held, quarantined, now, err := p.c.Held(ctx)
	if err != nil {
		return nil
	}
	for _, r := range quarantined {
		if r.QuarantinedUntil.Before(now) {
			_, _ = p.c.EndQuarantine(ctx, r)
		}
	}
	for _, r := range held {
		if !p.mayTake(ctx, r, now) {
			continue
		}
		if r.Draining {
			_, _ = p.c.FreeAbandoned(ctx, r)
			continue
		}
		l, err := p.c.TakeOver(ctx, r)
		if err == nil {
			p.w.count("took over")
			return l
		}
	}
	return nil
}

func (p *process) mayTake(ctx context.Context, r lease.Record, now time.Time) bool {
	if r.Owner == p.on.id {
		return false
	}
	see, err := p.describe(ctx, r)
	if err != nil {
		return false
	}
	verdict := lease.Judge(see.owner, see.volume)
	if verdict != lease.TakeNow && (verdict != lease.TakeWhenSilent || !r.SilentAt(now)) {
		return false
	}
	if see.volume == lease.VolumeMine {
		return false
	}
	if see.owner == lease.OwnerRunning {
		p.sleep(r.Lease / 4)
		again, _, err := p.c.Look(ctx, r.Volume)
		return err == nil && again.Attempt == r.Attempt && again.Beat == r.Beat && again.State == lease.Held
	}
	return true
}

// janitor frees what is abandoned.
func (p *process) janitor() {
	ctx, cancel := p.soon(20 * time.Second)
	defer cancel()
	held, _, now, err := p.c.Held(ctx)
	if err != nil {
		return
	}
	for _, r := range held {
		if p.mayTake(ctx, r, now) {
			if freed, _ := p.c.FreeAbandoned(ctx, r); freed {
				p.w.count("freed")
			}
		}
	}
}

// use brings a volume from its claim to its release. It does as pool does, step
// by step.
func (p *process) use(l *lease.Lease, d *disk, mounted bool) {
	p.remembers = d.id
	blame, used := false, mounted
	defer p.watch(l)()
	if !mounted && !p.arrive(l, d, &blame) {
		p.giveBack(l, d, blame, false)
		return
	}
	p.count(l, d)
	if !p.confirm(l) {
		if mounted { // the mount stays with its jobs, who end some time
			p.sleep(time.Second)
		}
		p.giveBack(l, d, false, used)
		return
	}
	if !mounted {
		if ok := p.prepare(l, d, &blame); !ok {
			p.giveBack(l, d, blame, false)
			return
		}
		if !p.visible(d) {
			p.giveBack(l, d, false, false)
			return
		}
		p.mayWrite(d, "mounts")
		d.mounted, used = true, true
		l.Note(lease.Facts{Phase: phase(lease.Mounted)})
	}
	for range p.rng.IntN(6) {
		p.checkDanger(l)
		if p.visible(d) && d.mounted {
			d.files = true
		}
		if !p.sleep(time.Duration(p.rng.Int64N(int64(15*time.Second)))) || p.w.calm.Load() {
			break
		}
	}
	p.giveBack(l, d, p.rng.IntN(12) == 0, used)
}

func phase(x lease.Phase) *lease.Phase { return &x }

func (p *process) count(l *lease.Lease, _ *disk) {
	p.w.count("attached")
	l.Note(lease.Facts{Phase: phase(lease.Preparing)})
}

// watch looks at how a lease ends: never lost while the table says that it is
// held by it.
func (p *process) watch(l *lease.Lease) func() {
	stop := context.AfterFunc(l.Context(), func() {
		if !errors.Is(context.Cause(l.Context()), lease.ErrLost) {
			return
		}
		p.w.count("lost")
		item := p.w.table.Item(lease.Key{Partition: lease.Partition("ci", zone), Item: l.Volume()})
		if r, err := lease.Decode(item); err == nil && r.State == lease.Held && r.Generation == l.Generation() && r.Attempt == l.Attempt() {
			p.w.violate("%s holds %s at generation %d and was told that it is lost", p.name, l.Volume(), l.Generation())
		}
	})
	return func() { stop() }
}

// arrive attaches the volume and waits for its device.
func (p *process) arrive(l *lease.Lease, d *disk, blame *bool) bool {
	for range 15 {
		if p.ctx.Err() != nil {
			return false
		}
		if p.visible(d) {
			return true
		}
		ctx, cancel := p.soon(10 * time.Second)
		err := p.attach(ctx, d)
		cancel()
		if d.settle(); errors.Is(err, errInUse) && d.on != p.on && d.on != nil {
			return false // another has it
		}
		p.sleep(time.Second)
	}
	*blame = d.on == p.on && d.stuck
	return false
}

func (p *process) confirm(l *lease.Lease) bool {
	ctx, cancel := p.soon(time.Duration(5+p.rng.IntN(40)) * time.Second)
	defer cancel()
	return l.Confirm(ctx) == nil
}

func (p *process) prepare(l *lease.Lease, d *disk, blame *bool) bool {
	ctx, cancel := p.soon(time.Minute)
	defer cancel()
	if !p.visible(d) {
		return false
	}
	r := l.Record()
	blank := !d.mkfs
	if blank && r.Format == lease.FormatNever || r.Format == lease.FormatBegun {
		if err := l.IntendFormat(ctx, "ext4", "uuid"); err != nil {
			return false
		}
		p.checkDanger(l)
		if l.Danger() || !p.visible(d) {
			return false
		}
		p.mayWrite(d, "formats")
		if d.files {
			p.w.violate("%s formats %s, which has files in it", p.name, d.id)
		}
		p.w.count("formatted")
		d.mkfs, d.made, d.uuid = true, false, "uuid"
		if !p.sleep(time.Duration(p.rng.Int64N(int64(3 * time.Second)))) {
			return false
		}
		d.made = true
		return l.FormatDone(ctx) == nil
	}
	if r.Format == lease.FormatDone && !d.made {
		p.w.violate("%s is recorded as formatted, and is not", d.id)
	}
	*blame = !d.made
	return d.made
}

// giveBack unmounts, records clean, detaches, waits until EC2 shows it, and
// releases. What fails is tried again while the process lives.
func (p *process) giveBack(l *lease.Lease, d *disk, blame, used bool) {
	p.checkDanger(l)
	if p.visible(d) {
		d.mounted = false
	}
	ctx, cancel := p.soon(5 * time.Second)
	if l.Context().Err() == nil {
		l.Note(lease.Facts{Phase: phase(lease.Releasing), Clean: new(true)})
		_ = l.Renew(ctx)
	}
	cancel()
	if !p.letGo(d) {
		l.Abandon()
		return
	}
	for range 20 {
		ctx, cancel := p.soon(30 * time.Second)
		var err error
		if blame {
			err = l.Quarantine(ctx, "it failed")
		} else {
			err = l.Release(ctx, used)
		}
		cancel()
		if err == nil {
			p.w.count("gave back")
			p.remembers = ""
			return
		}
		if !p.sleep(time.Second) {
			break
		}
	}
	l.Abandon()
}
