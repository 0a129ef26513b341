//go:build !race

package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/pool"
)

// fate is what becomes of a call.
type fate int

const (
	pass      fate = iota
	drop           // never arrives; the caller sees a broken connection
	lose           // done, and the reply is lost
	duplicate      // done, and a copy is still under way
	throttle       // refused
	delay          // kept on its way for long: others overtake it
	pause          // the whole process stops, and its calls with it
	crashBefore
	crashAfter
	outage // the whole service is out, from here on for a while
	fates

	stale = fates     // a Describe from the past
	stuck = fates + 1 // an attach without a device
	kinds = fates + 2
)

var fateNames = [kinds]string{"pass", "drop", "lose", "duplicate", "throttle", "delay", "pause", "crash before", "crash after", "outage", "stale", "stuck"}

// likelier are the steps that are seldom come to: each call of theirs meets a
// fault that much more often.
var likelier = map[string]float64{
	"burn": 9, "free abandoned": 5, "take over": 3, "transaction": 3, "quarantine": 5,
	"operator mark": 4, "operator drained": 20, "operator free": 4, "operator retired": 30,
	"re-adopt": 1.5,
}

// remote are the steps that leave the instance.
var remote = []string{
	"list free", "list held", "read", "claim", "take over", "re-adopt", "heartbeat", "confirm", "format intended", "format done",
	"release", "quarantine", "free abandoned", "burn",
	"operator mark", "operator drained", "operator free", "operator retired", "transaction",
	"attach", "detach", "describe instances", "describe volumes",
}

// onMachine are the steps that don't: they may be slow, and the process may stop
// or end there.
var onMachine = map[string]bool{"device": true, "probe": true, "mkfs": true, "mkfs ends": true, "check": true, "mount": true, "unmount": true}

var slow = []fate{delay, pause, crashBefore, crashAfter}

// ofEC2 are those of them that go to EC2, and not to DynamoDB.
var ofEC2 = map[string]bool{"attach": true, "detach": true, "describe instances": true, "describe volumes": true}

// coverage counts what met which step.
type coverage map[string]*[kinds]int

func (c coverage) met(step string, what fate) { c.row(step)[what]++ }

func (c coverage) row(step string) *[kinds]int {
	if c[step] == nil {
		c[step] = new([kinds]int)
	}
	return c[step]
}

// least is the pair of step and fault that met least often.
func (c coverage) least() (count int, pair string) {
	count = -1
	look := func(step string, f fate) {
		if n := c.row(step)[f]; count < 0 || n < count {
			count, pair = n, step+" and "+fateNames[f]
		}
	}
	for _, step := range remote {
		for f := pass + 1; f < fates; f++ {
			look(step, f)
		}
	}
	for step := range onMachine {
		for _, f := range slow {
			if *agents > 0 { // they alone come to these
				look(step, f)
			}
		}
	}
	look("describe instances", stale)
	look("describe volumes", stale)
	look("attach", stuck)
	return count, pair
}

// call says what is asked for.
type call struct {
	step string
	what string     // of which volume, for the log
	op   *operation // of a volume's history, or nil
}

// message is one call on its way.
type message struct {
	call
	from   *process
	exec   func() // does it, for the caller
	copy   func() // does it once more, for nobody
	answer chan fate
	until  time.Time // not before
	alone  bool      // the caller has gone: a copy under way
}

// ran notes that the call came to where it was sent.
func (m *message) ran() {
	if m.op != nil {
		m.op.ran, m.op.ret = true, instant(true)
	}
}

// gate is where every external call waits for the scheduler.
type gate struct {
	mu       sync.Mutex
	arrivals []*message
	pending  []*message

	rng      *rand.Rand
	trouble  float64 // the share of calls that meet a fault
	calls    int
	faults   int
	copying  bool               // what is being done is a late copy
	down     map[bool]time.Time // DynamoDB, and EC2, are out until then
	coverage coverage
	log      io.Writer
	sum      interface {
		io.Writer
		Sum64() uint64
	}
}

func newGate(rng *rand.Rand, log io.Writer) *gate {
	return &gate{rng: rng, log: log, sum: fnv.New64a(), down: map[bool]time.Time{}, coverage: coverage{}}
}

func (g *gate) say(format string, args ...any) {
	line := fmt.Sprintf("%12v  ", time.Since(epoch)) + fmt.Sprintf(format, args...) + "\n"
	_, _ = io.WriteString(g.sum, line)
	if g.log != nil {
		_, _ = io.WriteString(g.log, line)
	}
}

var errBroken = errors.New("connection reset by peer")

func broken() error {
	return &lease.StoreError{Op: "call", Kind: lease.ErrUnreachable, Err: errBroken}
}

// through takes a call through the gate. A dead process's goroutine ends here: it
// has no effects any more.
func through[T any](ctx context.Context, p *process, c call, do func() (T, error)) (T, error) {
	var got T
	var err error
	p.endIfDead()
	m := &message{call: c, from: p, answer: make(chan fate, 1),
		exec: func() { got, err = do() },
		copy: func() { _, _ = do() }}
	p.gate.mu.Lock()
	p.gate.arrivals = append(p.gate.arrivals, m)
	p.gate.mu.Unlock()
	var f fate
	select {
	case f = <-m.answer:
	case <-ctx.Done():
		p.gate.mu.Lock()
		m.alone = true
		p.gate.mu.Unlock()
		p.endIfDead()
		var none T
		return none, &lease.StoreError{Op: c.step, Kind: lease.ErrUnreachable, Err: context.Cause(ctx)}
	}
	p.endIfDead()
	var none T
	switch f {
	case drop, lose, outage:
		return none, broken()
	case throttle:
		return none, &lease.StoreError{Op: c.step, Kind: lease.ErrThrottled, Err: errors.New("rate exceeded")}
	}
	return got, err
}

// local is a step on the machine, which nothing breaks off but its process's end.
func (p *process) local(step, what string, do func() (bool, error)) (bool, error) {
	return through(context.Background(), p, call{step, what, nil}, do)
}

func (p *process) localProbe(step, what string, do func() (pool.Probe, error)) (pool.Probe, error) {
	return through(context.Background(), p, call{step, what, nil}, do)
}

// endIfDead ends the goroutine of a process that was killed.
func (p *process) endIfDead() {
	if p.dead.Load() {
		runtime.Goexit()
	}
}

// step lets one call go on, or time move. It reports false where no call waits.
func (g *gate) step() bool {
	synctest.Wait()
	g.mu.Lock()
	// Who woke at the same instant came in any order.
	slices.SortStableFunc(g.arrivals, func(x, y *message) int {
		return cmp.Or(cmp.Compare(x.from.id, y.from.id), cmp.Compare(x.step, y.step), cmp.Compare(x.what, y.what))
	})
	g.pending = append(g.pending, g.arrivals...)
	g.arrivals = nil
	now := time.Now()
	var ready []int
	for i, m := range g.pending {
		if !m.until.After(now) && !m.from.paused.After(now) {
			ready = append(ready, i)
		}
	}
	waiting := len(g.pending)
	if len(ready) == 0 || g.rng.IntN(5) == 0 {
		g.mu.Unlock()
		d := time.Duration(g.rng.Int64N(int64(50 * time.Millisecond)))
		switch g.rng.IntN(20) {
		case 0:
			d = time.Duration(g.rng.Int64N(int64(20 * time.Second)))
		case 1, 2, 3, 4:
			d = time.Duration(g.rng.Int64N(int64(2 * time.Second)))
		}
		time.Sleep(d + time.Microsecond)
		synctest.Wait()
		return waiting > 0
	}
	i := ready[g.rng.IntN(len(ready))]
	m := g.pending[i]
	g.pending = slices.Delete(g.pending, i, i+1)
	alone := m.alone
	g.mu.Unlock()
	time.Sleep(time.Duration(g.rng.Int64N(int64(5*time.Millisecond))) + time.Microsecond)
	synctest.Wait()
	g.deliver(m, alone)
	synctest.Wait()
	return true
}

func (g *gate) deliver(m *message, alone bool) {
	if alone {
		if onMachine[m.step] {
			return // it ended with its process
		}
		if g.trouble == 0 || g.rng.IntN(4) > 0 {
			g.say("%s  %s %s  late copy", m.from.name, m.step, m.what)
			g.copying = true
			m.ran()
			m.copy()
			g.copying = false
		}
		return
	}
	g.calls++
	f, ec2 := pass, ofEC2[m.step]
	some := func(most time.Duration) time.Time {
		return time.Now().Add(time.Duration(g.rng.Int64N(int64(most))))
	}
	if g.rng.Float64() < min(0.5, g.trouble*max(1, likelier[m.step])) {
		f = fate(1 + g.rng.IntN(int(fates)-1))
		if onMachine[m.step] {
			f = slow[g.rng.IntN(len(slow))]
		}
	}
	if f != pass {
		g.faults++
	}
	if f == outage {
		g.down[ec2] = some(time.Duration(1+g.rng.IntN(30)) * time.Second)
		if g.rng.IntN(4) == 0 {
			g.down[!ec2] = g.down[ec2]
		}
	}
	if f == pass && time.Now().Before(g.down[ec2]) && !onMachine[m.step] {
		f = outage
	}
	g.coverage.met(m.step, f)
	g.say("%s  %s %s  %s", m.from.name, m.step, m.what, fateNames[f])
	switch f {
	case pass:
		m.ran()
		m.exec()
		m.answer <- pass
	case drop, throttle, outage:
		m.answer <- f
	case lose:
		m.ran()
		m.exec()
		m.answer <- lose
	case duplicate:
		m.ran()
		m.exec()
		again := *m
		again.op = m.from.w.twice(m.op)
		again.alone, again.until = true, some(40*time.Second)
		g.requeue(&again)
		m.answer <- pass
	case delay:
		m.until = some(15 * time.Second)
		g.requeue(m)
	case pause:
		m.from.paused = some(45 * time.Second) // beyond the lease, and beyond silence
		g.requeue(m)
	case crashBefore:
		if g.rng.IntN(2) == 0 && !onMachine[m.step] { // what was on its way may still arrive
			again := *m
			again.alone, again.until = true, some(40*time.Second)
			g.requeue(&again)
		}
		g.kill(m.from)
		m.answer <- f
	case crashAfter:
		m.ran()
		m.exec()
		g.kill(m.from)
		m.answer <- f
	}
}

func (g *gate) requeue(m *message) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pending = append(g.pending, m)
}

// kill ends a process as kill -9 does: what it has under way may still arrive.
func (g *gate) kill(p *process) {
	p.left()
	p.dead.Store(true)
	p.end()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range append(slices.Clone(g.pending), g.arrivals...) {
		if m.from == p && !m.alone {
			m.alone = true
			m.answer <- crashBefore
		}
	}
}
