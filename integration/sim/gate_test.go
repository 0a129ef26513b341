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
	fates
)

var fateNames = [fates]string{"pass", "drop", "lose", "duplicate", "throttle", "delay", "pause", "crash before", "crash after"}

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
	copying  bool      // what is being done is a late copy
	down     time.Time // DynamoDB is out until then
	coverage map[string]*[fates]int
	log      io.Writer
	sum      interface {
		io.Writer
		Sum64() uint64
	}
}

func newGate(rng *rand.Rand, log io.Writer) *gate {
	return &gate{rng: rng, log: log, sum: fnv.New64a(), coverage: map[string]*[fates]int{}}
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
	if p.dead.Load() {
		runtime.Goexit()
	}
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
		if p.dead.Load() {
			runtime.Goexit()
		}
		var none T
		return none, &lease.StoreError{Op: c.step, Kind: lease.ErrUnreachable, Err: context.Cause(ctx)}
	}
	if p.dead.Load() {
		runtime.Goexit()
	}
	var none T
	switch f {
	case drop, lose:
		return none, broken()
	case throttle:
		return none, &lease.StoreError{Op: c.step, Kind: lease.ErrThrottled, Err: errors.New("rate exceeded")}
	}
	return got, err
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
	f := pass
	if g.rng.Float64() < g.trouble {
		f = fate(1 + g.rng.IntN(int(fates)-1))
	}
	if time.Now().Before(g.down) && f == pass {
		f = drop
	}
	row := g.coverage[m.step]
	if row == nil {
		row = new([fates]int)
		g.coverage[m.step] = row
	}
	row[f]++
	if f != pass {
		g.faults++
	}
	g.say("%s  %s %s  %s", m.from.name, m.step, m.what, fateNames[f])
	some := func(most time.Duration) time.Time {
		return time.Now().Add(time.Duration(g.rng.Int64N(int64(most))))
	}
	switch f {
	case pass:
		m.ran()
		m.exec()
		m.answer <- pass
	case drop, throttle:
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
		if g.rng.IntN(2) == 0 { // what was on its way may still arrive
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
