//go:build !race

package sim

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volpool/volpool/integration/figure"
	"github.com/volpool/volpool/lease"
	"golang.org/x/sys/unix"
)

var (
	many   = flag.Int("sim.n", 1000, "how many histories")
	agents = flag.Int("sim.agents", 50, "how many of a hundred instances run the real agent; the others the bare lease")
	one    = flag.Uint64("sim.seed", 0, "one history, with its log")
)

// outcome is what is known of a history when it is over.
type outcome struct {
	seed       uint64
	sum        uint64
	violations []string
	coverage   coverage
	machines   int
	calls      int
	faults     int
	done       map[string]int
	operations int // of the volumes' histories
	undecided  int // such histories whose check took too long
}

// history runs one from its beginning to the end, in a bubble of its own.
func history(t *testing.T, seed uint64, log io.Writer) (out outcome) {
	folder, err := os.MkdirTemp(memory(), "volpool-sim")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	var w *world
	synctest.Test(t, func(*testing.T) {
		w = newWorld(seed, folder, log)
		g := w.gate
		g.trouble = 0.02 + 0.13*g.rng.Float64()
		calls := 200 + g.rng.IntN(200)
		for g.calls < calls {
			g.step()
			w.tend()
		}
		// From here on nothing fails, everybody gives back what he has, and what
		// was late arrives.
		g.trouble = 0
		clear(g.down)
		w.calm.Store(true)
		w.quiet = time.Now()
		for g.step() || time.Since(w.quiet) < 5*time.Minute || !w.ended() {
			w.tend()
			if time.Since(w.quiet) > 2*time.Hour {
				w.violate("it does not come to an end")
				for _, p := range w.live {
					g.kill(p)
				}
				break
			}
		}
		for g.step() {
		}
		w.last()
		out = outcome{seed: seed, sum: g.sum.Sum64(), coverage: g.coverage, machines: len(w.machines), calls: g.calls, faults: g.faults, done: w.done}
	})
	broken, undecided, operations := w.linearizable(500 * time.Millisecond)
	out.violations, out.undecided, out.operations = append(w.violations, broken...), undecided, operations
	return out
}

// memory is where the agents' folders cost least.
func memory() string {
	if dir := "/dev/shm"; unix.Access(dir, unix.W_OK) == nil {
		return dir
	}
	return ""
}

func (w *world) ended() bool {
	for _, p := range w.live {
		select {
		case <-p.gone:
		default:
			return false
		}
	}
	return true
}

// last: nobody who ended well has left anything held; and what the dead left is
// free once somebody looks after it.
func (w *world) last() {
	w.held(func(r lease.Record) {
		// Those who look after others begin to when the faults stop; a volume
		// that a late attach has on somebody's instance is not theirs to free.
		d := w.disks[r.Volume]
		if !w.lookedAfter(r.Owner) || d.on != nil || !d.since.Before(w.quiet) {
			return // see below
		}
		// A claim that was given up and landed after its undoing had ended is
		// silent by now, and somebody else's to free.
		if p := w.claimers[r.Attempt]; p == nil || !p.dead.Load() {
			w.violate("%s is left held by %s, which gave everything back", r.Volume, r.Owner)
		}
		if m := w.machines[r.Owner]; m.state == lease.OwnerTerminated && m.since.Before(w.quiet) {
			w.violate("%s is left held by %s, which is terminated, and nobody freed it", r.Volume, r.Owner)
		}
	})
	w.boot(false)
	p := w.live[len(w.live)-1]
	for !w.ended() {
		w.gate.step()
		w.tend()
	}
	for w.gate.step() {
	}
	w.held(func(r lease.Record) {
		if d := w.disks[r.Volume]; d.on == nil {
			w.violate("%s is left held by %s, and %s could not free it", r.Volume, r.Owner, p.name)
		}
	})
}

// heldBy tells whether the table says that an instance holds a volume.
func (w *world) heldBy(d *disk, m *machine) bool {
	item := w.table.Item(lease.Key{Partition: lease.Partition("ci", zone), Item: d.id})
	return attr(item, "state") == string(lease.Held) && attr(item, "owner") == m.id
}

// lookedAfter tells whether somebody was left who looks for what another left.
func (w *world) lookedAfter(owner string) bool {
	return slices.ContainsFunc(w.live, func(p *process) bool { return p.looksAfter && !p.dead.Load() && p.on.id != owner })
}

func (w *world) held(do func(lease.Record)) {
	for _, d := range w.order {
		r, err := lease.Decode(w.table.Item(lease.Key{Partition: lease.Partition("ci", zone), Item: d.id}))
		switch {
		case err != nil:
			w.violate("%s: %v", d.id, err)
		case r.State == lease.Held:
			do(r)
		}
	}
}

// TestSimulation runs histories with fresh seeds, side by side, and each twentieth
// twice.
func TestSimulation(t *testing.T) {
	if *one != 0 {
		out := history(t, *one, os.Stdout)
		for _, v := range out.violations {
			t.Error(v)
		}
		return
	}
	debug.SetGCPercent(800) // a history is small, and soon over
	var mu sync.Mutex
	total := outcome{coverage: coverage{}, done: map[string]int{}}
	const twice = 20 // each such is run again
	next, diverged, violated := 0, 0, 0
	seeds := rand.Uint64() >> 1
	began := time.Now()
	t.Run("histories", func(t *testing.T) {
		for worker := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(worker), func(t *testing.T) {
				t.Parallel()
				for {
					mu.Lock()
					i := next
					next++
					mu.Unlock()
					if i >= *many {
						return
					}
					out := history(t, seeds+uint64(i), nil)
					again := out
					if i%twice == 0 {
						again = history(t, out.seed, nil)
					}
					mu.Lock()
					if again.sum != out.sum {
						diverged++
						t.Errorf("SEED=%d AGENTS=%d: two runs differ", out.seed, *agents)
					}
					if len(out.violations) > 0 {
						violated++
						t.Errorf("SEED=%d AGENTS=%d: %v", out.seed, *agents, out.violations)
					}
					total.add(out)
					stop := violated >= 20
					mu.Unlock()
					if stop {
						return
					}
				}
			})
		}
	})
	n := float64(min(next, *many))
	total.print()
	fmt.Printf("%.1f instances, %.0f calls and %.1f faults a history, %.0f histories in %v\n", float64(total.machines)/n,
		float64(total.calls)/n, float64(total.faults)/n, n, time.Since(began).Round(time.Second))
	figure.Tell("sim.histories", n, "histories")
	figure.AtMost("sim.violations", float64(violated), "histories", 0) // each has failed the test already
	figure.AtMost("sim.diverged", float64(diverged), "histories", 0)
	figure.Tell("sim.undecided", float64(total.undecided), "volumes")
	least, pair := total.coverage.least()
	figure.Tell("sim.coverage.min", float64(least), "times "+pair)
	if n >= 20_000 && least < 100 {
		t.Errorf("%s met %d times only", pair, least)
	}
	if total.undecided > int(n)/100 {
		t.Errorf("%d histories of a volume were too dear to check", total.undecided)
	}
	if float64(total.machines)/n < 5 || float64(total.calls)/n < 200 || float64(total.faults)/n < 3 {
		t.Error(errors.New("the histories are too tame"))
	}
}

func (o *outcome) add(x outcome) {
	o.calls += x.calls
	o.machines += x.machines
	o.faults += x.faults
	o.operations += x.operations
	o.undecided += x.undecided
	for step, row := range x.coverage {
		mine := o.coverage.row(step)
		for i, n := range row {
			mine[i] += n
		}
	}
	for what, n := range x.done {
		o.done[what] += n
	}
}

// print shows how often each fault met each step.
func (o *outcome) print() {
	fmt.Printf("%-20s", "step")
	for _, name := range fateNames {
		fmt.Printf("%13s", name)
	}
	fmt.Println()
	for _, step := range slices.Sorted(maps.Keys(o.coverage)) {
		fmt.Printf("%-20s", step)
		for _, n := range o.coverage[step] {
			fmt.Printf("%13d", n)
		}
		fmt.Println()
	}
	for _, what := range slices.Sorted(maps.Keys(o.done)) {
		fmt.Printf("%s %d  ", what, o.done[what])
	}
	fmt.Println()
}
