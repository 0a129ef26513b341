//go:build !race

package sim

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

const (
	zone      = "us-east-1a"
	instances = 5
)

// epoch is when every bubble begins.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// world is one history: the table, EC2, the disks, and what has been done.
type world struct {
	gate     *gate
	table    *leasetest.Memory
	disks    map[string]*disk
	order    []*disk
	machines map[string]*machine
	folder   string // of the agents' state
	live     []*process
	births   int
	calm     atomic.Bool // no more faults, and everybody gives back
	quiet    time.Time   // since then

	mu         sync.Mutex
	violations []string
	tokens     map[string]string   // volume and generation: whose attempt
	claimers   map[string]*process // by attempt
	done       map[string]int      // what came to pass
	history    []*operation
}

func (w *world) violate(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := fmt.Sprintf(format, args...)
	if !slices.Contains(w.violations, s) {
		w.violations = append(w.violations, s)
	}
	w.gate.say("VIOLATION %s", s)
}

func (w *world) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done[what]++
}

// process is one agent's life on a machine, with a clock of its own.
type process struct {
	id     int
	name   string
	w      *world
	gate   *gate
	on     *machine
	rng    *rand.Rand
	rate   float64
	dead   atomic.Bool
	paused time.Time
	ctx    context.Context
	end    context.CancelFunc
	c      *lease.Claimant
	held   *holder
	gone   chan struct{} // closed when its main goroutine has ended

	owned     map[string]*machine // by the last description: who may not be taken from
	remembers string              // the volume last held; with the agent, a folder that a dead one left
	run       string              // the agent's state folder
	registry  lease.Registry

	looksAfter bool // it lived on when the faults had stopped, and looked for what the dead left
}

func (p *process) elapsed() time.Duration {
	return time.Duration(float64(time.Since(epoch)) * p.rate)
}

func newWorld(seed uint64, folder string, log io.Writer) *world {
	rng := rand.New(rand.NewPCG(seed, 1))
	w := &world{folder: folder, gate: newGate(rng, log), table: leasetest.NewMemory(), disks: map[string]*disk{}, machines: map[string]*machine{},
		tokens: map[string]string{}, claimers: map[string]*process{}, done: map[string]int{}}
	registry := lease.Registry{Store: w.table}
	ctx := context.Background()
	s := lease.DefaultSettings()
	s.Lease = lease.MinLease
	if _, err := registry.Init(ctx, "ci", s); err != nil {
		panic(err)
	}
	for i := range 2 + rng.IntN(4) {
		d := &disk{id: fmt.Sprintf("vol-%017x", i+1), since: epoch.Add(-time.Hour)}
		w.disks[d.id] = d
		w.order = append(w.order, d)
		if _, err := registry.Add(ctx, "ci", zone, lease.Volume{ID: d.id, SizeGiB: 1, Created: epoch.Add(time.Duration(i) * time.Hour)}); err != nil {
			panic(err)
		}
		d.first = stateOf(w.table.Item(lease.Key{Partition: lease.Partition("ci", zone), Item: d.id}))
	}
	for range instances {
		w.boot(w.gate.rng.IntN(100) < *agents)
	}
	w.operate()
	return w
}

// boot starts a new machine and an agent on it.
func (w *world) boot(agent bool) {
	m := &machine{id: fmt.Sprintf("i-%017x", len(w.machines)+1), state: lease.OwnerRunning, was: lease.OwnerPending, since: time.Now()}
	m.agent, m.boot = agent, m.id+" first boot"
	w.machines[m.id] = m
	w.start(m, "")
}

func (w *world) newProcess(m *machine) *process {
	w.births++
	seed := w.gate.rng.Uint64()
	p := &process{id: w.births, w: w, gate: w.gate, on: m, held: newHolder(), owned: map[string]*machine{}, rng: rand.New(rand.NewPCG(seed, 2)), gone: make(chan struct{})}
	p.rate = 0.95 + 0.1*p.rng.Float64()
	p.ctx, p.end = context.WithCancel(context.Background())
	w.live = append(w.live, p)
	return p
}

func (w *world) start(m *machine, remembers string) {
	p := w.newProcess(m)
	p.name, p.remembers = fmt.Sprintf("%s#%d", m.id[len(m.id)-2:], p.id), remembers
	if m.agent {
		p.name += "a"
		p.run = filepath.Join(w.folder, fmt.Sprint(p.id))
		if remembers != "" {
			if err := os.Rename(remembers, p.run); err != nil {
				panic(err)
			}
		}
		p.remembers = ""
		go func() {
			defer close(p.gone)
			defer p.end()
			p.runAgent()
		}()
		return
	}
	var err error
	p.c, err = lease.New(lease.Config{Store: store{p, w}, Pool: "ci", Zone: zone, Owner: m.id, MountPoint: "/mnt/cache",
		BootID: "boot", Elapsed: p.elapsed, Rand: rand.New(rand.NewPCG(w.gate.rng.Uint64(), 3))})
	if err != nil {
		panic(err)
	}
	go func() {
		defer close(p.gone)
		defer p.end()
		p.runBare()
	}()
}

// operate starts an operator, who drains, takes it back, retires and adds again.
func (w *world) operate() {
	p := w.newProcess(&machine{id: "operator"})
	p.name = "operator"
	p.registry = lease.Registry{Store: store{p, w}}
	go func() {
		defer close(p.gone)
		defer p.end()
		for !p.w.calm.Load() && p.sleep(time.Duration(p.rng.Int64N(int64(6*time.Second)))) {
			d := p.w.order[p.rng.IntN(len(p.w.order))]
			var err error
			what := "drain"
			switch p.rng.IntN(18) {
			case 0, 1, 2, 16:
				_, err = p.registry.Drain(p.ctx, d.id)
			case 3, 4, 17:
				what = "retire"
				_, err = p.registry.Retire(p.ctx, d.id)
			case 5:
				what = "set"
				_, err = p.registry.Set(p.ctx, "ci", func(s *lease.Settings) {
					s.Order = []string{lease.OrderLowest, lease.OrderRecent}[p.rng.IntN(2)]
				})
			case 6, 7, 8:
				what = "add"
				_, err = p.registry.Add(p.ctx, "ci", zone, lease.Volume{ID: d.id, SizeGiB: 1, Created: epoch})
			default:
				what = "undrain"
				_, err = p.registry.Undrain(p.ctx, d.id)
			}
			if err == nil {
				p.w.count(what)
			}
		}
	}()
}

// tend replaces what has died: the agent is started again, the machine is
// rebooted, or it is terminated and another boots.
func (w *world) tend() {
	for i := 0; i < len(w.live); i++ {
		p := w.live[i]
		if !p.dead.Load() {
			continue
		}
		w.live = slices.Delete(w.live, i, i+1)
		i--
		if p.on.id == "operator" {
			if !w.calm.Load() {
				w.operate()
			}
			continue
		}
		m := p.on
		switch w.gate.rng.IntN(4) {
		case 0: // the instance ends with it
			w.terminate(m)
			if !w.calm.Load() {
				w.boot(w.gate.rng.IntN(100) < *agents)
			}
		case 1: // a reboot: /run is empty, nothing is mounted
			for _, d := range w.order {
				if d.settle(); d.on == m {
					d.mounted, d.until, d.user = false, time.Time{}, nil
				}
			}
			m.boot = fmt.Sprint(m.id, " boot ", w.births)
			w.start(m, "")
		default:
			w.start(m, p.remembers)
		}
	}
	for _, m := range w.machines {
		if m.state == lease.OwnerShuttingDown && time.Since(m.since) > 8*time.Second {
			m.was, m.state, m.since = m.state, lease.OwnerTerminated, time.Now()
			for _, d := range w.order {
				if d.settle(); d.on == m {
					d.before, d.on, d.since = m, nil, time.Now()
					d.gone()
				}
			}
		}
	}
}

func (w *world) terminate(m *machine) {
	w.gate.say("%s ends", m.id)
	m.was, m.state, m.since = m.state, lease.OwnerShuttingDown, time.Now()
	for _, d := range w.order {
		if d.settle(); d.on == m {
			d.mounted, d.until, d.user = false, time.Time{}, nil
		}
	}
}

// written checks a write that was made.
func (w *world) written(p *process, x lease.Write, before, after lease.Item) {
	step := stepOf(x)
	w.count(step)
	was, err := lease.Decode(before)
	if before == nil || err != nil {
		return
	}
	is, err := lease.Decode(after)
	if err != nil {
		w.violate("%s: %s left an item that cannot be read: %v", p.name, step, err)
		return
	}
	token := token(is.Volume, is.Generation)
	if is.Generation < was.Generation {
		w.violate("%s: %s took %s from generation %d to %d", p.name, step, is.Volume, was.Generation, is.Generation)
	}
	if is.State == lease.Held && (was.State != lease.Held || is.Attempt != was.Attempt) {
		if is.Generation != was.Generation+1 {
			w.violate("%s: %s of %s from generation %d to %d", p.name, step, is.Volume, was.Generation, is.Generation)
		}
		if whose := w.tokens[token]; whose != "" && whose != is.Attempt {
			w.violate("%s: %s of %s, a generation that was used", p.name, step, token)
		}
		w.tokens[token], w.claimers[is.Attempt] = is.Attempt, p
		if was.Draining || was.State == lease.Drained || was.State == lease.Retired || was.State == lease.Quarantined {
			if step != "re-adopt" {
				w.violate("%s: %s of %s, which was %s, draining %v", p.name, step, is.Volume, was.State, was.Draining)
			}
		}
	}
	owner := w.machines[was.Owner]
	d := w.disks[is.Volume]
	d.settle()
	switch step {
	case "take over", "free abandoned":
		alive := owner != nil && owner.state != lease.OwnerTerminated
		if silence := time.Since(was.RenewedAt); alive && silence < 2*was.Lease+2*time.Second {
			w.violate("%s: %s of %s, whose owner %s had renewed %v before", p.name, step, is.Volume, was.Owner, silence)
		}
		if owner != nil && p.owned[is.Volume] == owner {
			w.violate("%s: %s of %s from %s, which runs and had it attached", p.name, step, is.Volume, was.Owner)
		}
	case "release", "quarantine":
		if owner != nil && d.on == owner && d.mounted {
			w.violate("%s: %s of %s while %s has it mounted", p.name, step, is.Volume, was.Owner)
		}
		if owner != nil && d.on == owner && !d.late {
			w.violate("%s: %s of %s while %s has it attached", p.name, step, is.Volume, was.Owner)
		}
		if was.Draining && is.State == lease.Free {
			w.violate("%s: %s of %s past draining", p.name, step, is.Volume)
		}
	case "confirm", "heartbeat", "format intended", "format done":
		if is.Beat <= was.Beat {
			w.violate("%s: the beat of %s went from %d to %d", p.name, token, was.Beat, is.Beat)
		}
		if is.Attempt != was.Attempt || is.Owner != was.Owner {
			w.violate("%s: a beat changed the holder of %s", p.name, token)
		}
		if step == "format intended" && was.Format == lease.FormatDone {
			w.violate("%s: format intended over done on %s", p.name, token)
		}
		if was.State != lease.Held {
			w.violate("%s: a beat made %s held", p.name, token)
		}
	}
	if attr(x.Set, "rev") != "" && is.Rev != was.Rev+1 {
		w.violate("%s: %s took the rev of %s from %d to %d", p.name, step, is.Volume, was.Rev, is.Rev)
	}
}
