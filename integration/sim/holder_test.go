//go:build !race

package sim

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/volpool/volpool/lease"
)

// holder is what a process has sent and has been told, seen from outside of the
// code that is tested. What is checked here is checked where it leaves the
// process, before the gate.
type holder struct {
	mu        sync.Mutex
	beats     map[string]bool          // that were sent
	first     map[string]time.Duration // by attempt: when its claim was first sent, by the process's clock
	renewed   map[string]time.Duration // by volume and generation: when the last write that was answered well was sent
	confirmed map[string]time.Time     // the same for the last beat that records the filesystem as not clean
	latest    map[string]int64         // the last generation of a volume that was claimed
	date      time.Time                // of the last reply
	blamed    map[string]bool          // volumes that this acquire quarantines
}

func newHolder() *holder {
	return &holder{beats: map[string]bool{}, first: map[string]time.Duration{}, renewed: map[string]time.Duration{},
		confirmed: map[string]time.Time{}, latest: map[string]int64{}, blamed: map[string]bool{}}
}

func (h *holder) newAcquire() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.blamed)
}

// generation is the last of a volume that was claimed.
func (h *holder) generation(volume string) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.latest[volume]
}

// letter is a write on its way.
type letter struct {
	w       lease.Write
	step    string
	at      time.Time
	elapsed time.Duration
}

func token(volume string, generation int64) string { return fmt.Sprint(volume, " ", generation) }

func isBeat(step string) bool {
	return step == "confirm" || step == "heartbeat" || step == "format intended" || step == "format done"
}

// sending checks a write that is about to leave.
func (p *process) sending(w lease.Write) letter {
	x := letter{w, stepOf(w), time.Now(), p.elapsed()}
	p.held.mu.Lock()
	defer p.held.mu.Unlock()
	if isBeat(x.step) {
		r := requestOf(w)
		beat := fmt.Sprint(token(w.Key.Item, r.seen.generation), " ", r.seen.attempt, " ", r.set.beat)
		if p.held.beats[beat] {
			p.w.violate("%s sends beat %d of %s a second time", p.name, r.set.beat, token(w.Key.Item, r.seen.generation))
		}
		p.held.beats[beat] = true
	}
	if x.step == "quarantine" && p.on.agent {
		if p.held.blamed[w.Key.Item] = true; len(p.held.blamed) > 1 {
			p.w.violate("%s quarantines two volumes in one acquire", p.name)
		}
	}
	if attempt := attr(w.Set, "attempt"); attempt != "" {
		if _, again := p.held.first[attempt]; again {
			x.elapsed = p.held.first[attempt]
			return x // as it was
		}
		p.held.first[attempt] = x.elapsed
	}
	if stamp := attr(w.Set, "renewed_at"); stamp != "" {
		at, err := time.Parse(time.RFC3339Nano, stamp)
		// A reply's Date has whole seconds, so that only the first of each
		// second tells something; a clock may be wrong by a twentieth.
		off := (time.Second + x.at.Sub(p.held.date)) * 6 / 100
		if err != nil || at.Before(x.at.Add(-2*time.Second-off)) || at.After(x.at.Add(off)) {
			p.w.violate("%s: %s of %s says that it was renewed at %s, %v from now, and the last reply came %v ago",
				p.name, x.step, w.Key.Item, stamp, at.Sub(x.at), x.at.Sub(p.held.date))
		}
	}
	return x
}

// told notes that DynamoDB's clock was heard.
func (p *process) told() {
	p.held.mu.Lock()
	defer p.held.mu.Unlock()
	p.held.date = time.Now()
}

// heard notes an answer.
func (p *process) heard(x letter, item lease.Item, err error) {
	failed, refused := errors.AsType[*lease.ConditionError](err)
	if err != nil && !refused {
		return
	}
	taken := attr(x.w.Set, "attempt") != ""
	if isBeat(x.step) || taken {
		p.told()
	}
	p.held.mu.Lock()
	defer p.held.mu.Unlock()
	r := requestOf(x.w)
	if taken {
		if refused {
			item = failed.Item
		}
		if attr(item, "attempt") != r.set.attempt || attr(item, "state") != string(lease.Held) {
			return
		}
		p.held.latest[x.w.Key.Item] = r.set.generation
		p.held.renewed[token(x.w.Key.Item, r.set.generation)] = x.elapsed
	}
	if isBeat(x.step) && !refused {
		key := token(x.w.Key.Item, r.seen.generation)
		p.held.renewed[key] = max(p.held.renewed[key], x.elapsed)
		if attr(x.w.Set, "clean") == "false" {
			p.held.confirmed[key] = x.at
		}
	}
}

// endangered tells, from what was sent and answered, that two thirds of the lease
// have passed.
func (p *process) endangered(volume string, generation int64) bool {
	p.held.mu.Lock()
	defer p.held.mu.Unlock()
	return p.elapsed()-p.held.renewed[token(volume, generation)] >= lease.MinLease*2/3
}

// mayWrite checks that what writes to a device has confirmed since it was
// attached: in this process, at the generation it holds.
func (p *process) mayWrite(d *disk, what string) {
	if p.dead.Load() {
		return
	}
	p.held.mu.Lock()
	g := p.held.latest[d.id]
	at, confirmed := p.held.confirmed[token(d.id, g)]
	p.held.mu.Unlock()
	if !confirmed || at.Before(d.since) {
		p.w.violate("%s %s %s at generation %d without a confirm since the attach", p.name, what, d.id, g)
	}
}

// checkDanger checks what a lease says of itself.
func (p *process) checkDanger(l *lease.Lease) {
	if !p.dead.Load() && p.endangered(l.Volume(), l.Generation()) && !l.Danger() {
		p.w.violate("%s holds %s at generation %d, two thirds of the lease have passed, and it is not in danger", p.name, l.Volume(), l.Generation())
	}
}
