package pool

import (
	"container/heap"
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/volpool/volpool/integration/figure"
	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

// The largest fleet takes a while: it is left to who asks for it, by
// go test ./pool -run Ring -v -janitor.fleets 10,1000,100000.
var fleets = flag.String("janitor.fleets", "10,1000", "the sizes of the fleets whose janitors are simulated")

// ring is a fleet that holds every volume of a zone, in a bubble. Its agents are
// the real ones, one janitor's round each at a time. Their heartbeats are not sent,
// for no partition takes those of a hundred thousand: who reads an item finds it
// renewed, if its holder lives.
type ring struct {
	*testing.T
	*leasetest.Memory
	stage *stage // for what no janitor asks of it

	dead  map[string]bool      // by instance
	found map[string]time.Time // when what it held was freed
	last  time.Time            // of these

	rounds       int // made in all
	sinceDeaths  int // made by one agent at most
	roundsToFind int // as many were made at the last find
	calls        int // to EC2
	most         int // values of a filter
	queue        rota
}

// List renews, before it reads, what a holder would have renewed meanwhile.
func (w *ring) List(ctx context.Context, in lease.List) (lease.Page, error) {
	page, err := w.Memory.List(ctx, in)
	for _, item := range page.Items {
		w.beat(item)
	}
	return page, err
}

func (w *ring) Read(ctx context.Context, key lease.Key) (lease.Reply, error) {
	reply, err := w.Memory.Read(ctx, key)
	w.beat(reply.Item)
	return reply, err
}

func (w *ring) beat(item lease.Item) {
	owner, held := item["owner"].(*types.AttributeValueMemberS)
	if !held || w.dead[owner.Value] {
		return
	}
	item["renewed_at"] = &types.AttributeValueMemberS{Value: time.Now().UTC().Format(time.RFC3339Nano)}
	item["beat"] = &types.AttributeValueMemberN{Value: strconv.FormatInt(time.Now().Unix(), 10)}
	w.Put(lease.Key{Partition: "ci/z", Item: item[lease.SortKey].(*types.AttributeValueMemberS).Value}, item)
}

// Write notes what is freed.
func (w *ring) Write(ctx context.Context, write lease.Write) (lease.Reply, error) {
	reply, err := w.Memory.Write(ctx, write)
	if state, ok := write.Set["state"].(*types.AttributeValueMemberS); err == nil && ok && state.Value == string(lease.Free) {
		holder := instanceOf(write.Key.Item)
		if _, twice := w.found[holder]; twice || !w.dead[holder] {
			w.Errorf("%s was freed, whose holder lives", write.Key.Item)
		}
		w.last = time.Now()
		w.found[holder] = w.last
	}
	return reply, err
}

// instanceOf holds the volume of the same number.
func instanceOf(volume string) string { return "i-" + strings.TrimPrefix(volume, "vol-") }

// fleetEC2 knows the fleet's instances and volumes; the dead are terminated.
type fleetEC2 struct {
	*stage
	w *ring
}

func (e fleetEC2) DescribeVolumes(_ context.Context, in *ec2.DescribeVolumesInput, _ ...func(*ec2.Options)) (*ec2.DescribeVolumesOutput, error) {
	e.w.calls++
	out := &ec2.DescribeVolumesOutput{}
	if *in.Filters[0].Name != "volume-id" {
		return out, nil // none but one's own, which is left out here
	}
	for _, id := range in.Filters[0].Values {
		out.Volumes = append(out.Volumes, ec2types.Volume{VolumeId: &id, State: ec2types.VolumeStateAvailable})
	}
	e.w.most = max(e.w.most, len(out.Volumes))
	return out, nil
}

func (e fleetEC2) DescribeInstances(_ context.Context, in *ec2.DescribeInstancesInput, _ ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error) {
	e.w.calls++
	var found []ec2types.Instance
	for _, id := range in.Filters[0].Values {
		name := ec2types.InstanceStateNameRunning
		if e.w.dead[id] {
			name = ec2types.InstanceStateNameTerminated
		}
		found = append(found, ec2types.Instance{InstanceId: &id, State: &ec2types.InstanceState{Name: name}})
	}
	return &ec2.DescribeInstancesOutput{Reservations: []ec2types.Reservation{{Instances: found}}}, nil
}

// member is an agent that holds its volume, and when its next round is due.
type member struct {
	janitor *janitor
	due     time.Time
	since   int // its rounds since the deaths
}

type rota []*member

func (q rota) Len() int           { return len(q) }
func (q rota) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q rota) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *rota) Push(x any)        { *q = append(*q, x.(*member)) }
func (q *rota) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

func newRing(t *testing.T, n int) *ring {
	s := newStage(t)
	w := &ring{T: t, Memory: s.table, stage: s, dead: map[string]bool{}, found: map[string]time.Time{}}
	template := func() lease.Item {
		l := s.lend(v1, instanceOf(v1), point)
		l.Abandon()
		return s.table.Item(lease.Key{Partition: "ci/z", Item: v1})
	}()
	for _, v := range []string{v1, v2, v3} {
		s.table.Put(lease.Key{Partition: "ci/z", Item: v}, nil)
	}
	choice := rand.New(rand.NewPCG(1, uint64(n)))
	numbers := make([]string, n)
	for i := range numbers {
		numbers[i] = fmt.Sprintf("0%016x", choice.Uint64())
	}
	slices.Sort(numbers)
	s.devices[v1], s.inUse[v1] = true, true // an instance's own disk, in use
	for _, number := range numbers {
		volume, instance := "vol-"+number, "i-"+number
		item := maps.Clone(template)
		item["owner"] = &types.AttributeValueMemberS{Value: instance}
		w.Put(lease.Key{Partition: "ci/z", Item: volume}, item)
		p := s.parts()
		p.Store, p.EC2, p.Rand = w, NewEC2(fleetEC2{s, w}), choice
		p.Identify = func(context.Context) (Identity, error) { return Identity{Instance: instance, Zone: "z"}, nil }
		a := NewAgent(p, Options{Pool: "ci", MountPoint: point, Timeout: time.Minute})
		if f := a.identify(t.Context()); f != nil {
			t.Fatal(f)
		}
		m := &member{janitor: a.janitor(volume)}
		m.next()
		w.queue = append(w.queue, m)
	}
	heap.Init(&w.queue)
	return w
}

func (m *member) next() {
	m.due = time.Now().Add(m.janitor.claimant.Around(janitorEvery, janitorSpread))
}

// live lets time pass until done, and makes the rounds that come due.
func (w *ring) live(done func() bool) {
	for !done() {
		m := w.queue[0]
		if w.dead[m.janitor.id.Instance] {
			heap.Pop(&w.queue)
			continue
		}
		time.Sleep(time.Until(m.due))
		before := len(w.found)
		m.janitor.round(w.Context())
		m.since++
		w.rounds++
		w.sinceDeaths = max(w.sinceDeaths, m.since)
		if len(w.found) > before {
			w.roundsToFind = w.sinceDeaths
		}
		m.next()
		heap.Fix(&w.queue, 0)
	}
}

func (w *ring) until(t time.Time) func() bool {
	return func() bool { return w.queue[0].due.After(t) }
}

// kill ends instances from now on, and begins to count. The last heartbeat of
// each was within the last ten seconds.
func (w *ring) kill(instances []string) {
	for k, i := range instances {
		key := lease.Key{Partition: "ci/z", Item: "vol-" + strings.TrimPrefix(i, "i-")}
		item := w.Item(key)
		w.beat(item)
		last := time.Now().Add(-time.Duration(k%10) * time.Second)
		item["renewed_at"] = &types.AttributeValueMemberS{Value: last.UTC().Format(time.RFC3339Nano)}
		w.Put(key, item)
		w.dead[i] = true
	}
	for _, m := range w.queue {
		m.since = 0
	}
	w.sinceDeaths = 0
}

// cost is what is asked for while f runs, for each round.
func (w *ring) cost(f func()) (units, calls float64) {
	before, rounds, asked := w.Usage(), w.rounds, w.calls
	f()
	n := float64(w.rounds - rounds)
	return (w.Usage().ReadUnits - before.ReadUnits) / n, float64(w.calls-asked) / n
}

func (w *ring) figure(n int, name string, value float64, unit string, limit float64) {
	if value > limit {
		w.Errorf("%s of %d agents: %.3g %s, more than %.3g", name, n, value, unit, limit)
	}
	if testing.Verbose() {
		figure.AtMost(fmt.Sprintf("janitor.%d.%s", n, name), value, unit, limit)
	}
}

// TestRing: every abandoned lease is found within a few rounds, and what a round
// costs does not grow with the fleet.
func TestRing(t *testing.T) {
	for _, size := range strings.Split(*fleets, ",") {
		n, err := strconv.Atoi(size)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Test(t, func(t *testing.T) {
			w := newRing(t, n)
			choice := rand.New(rand.NewPCG(2, uint64(n)))
			instances := make([]string, 0, n)
			for _, m := range w.queue {
				instances = append(instances, m.janitor.id.Instance)
			}
			slices.Sort(instances)
			choice.Shuffle(n, func(i, j int) { instances[i], instances[j] = instances[j], instances[i] })

			// All live.
			units, calls := w.cost(func() { w.live(w.until(time.Now().Add(5 * time.Minute))) })
			w.figure(n, "alive.units", units, "units/round", 1.25)
			w.figure(n, "alive.calls", calls, "calls/round", 0.2)
			if len(w.found) > 0 {
				w.Fatal("the living were not left alone")
			}

			// One every half a minute, here and there.
			died := map[string]time.Time{}
			singles := instances[:min(20, n/5)]
			for _, one := range singles {
				w.kill([]string{one})
				died[one] = time.Now()
				w.live(w.until(time.Now().Add(30 * time.Second)))
			}
			w.live(w.until(time.Now().Add(10 * time.Minute)))
			worst := time.Duration(0)
			for _, one := range singles {
				if w.found[one].IsZero() {
					w.Errorf("%s was not found", one)
				}
				worst = max(worst, w.found[one].Sub(died[one]))
			}
			w.figure(n, "single.seconds", worst.Seconds(), "s", 370)

			// Half of the fleet at once.
			half := instances[len(singles) : len(singles)+n/2]
			w.kill(half)
			began := time.Now()
			units, calls = w.cost(func() { w.live(w.until(began.Add(10 * time.Minute))) })
			w.figure(n, "rounds", float64(w.roundsToFind), "rounds", 4)
			w.figure(n, "seconds", w.last.Sub(began).Seconds(), "s", 400)
			w.figure(n, "units", units, "units/round", 2)
			w.figure(n, "calls", calls, "calls/round", 0.6)
			if want := len(singles) + len(half); len(w.found) != want {
				w.Errorf("%d of %d were found", len(w.found), want)
			}
			if w.most > 200 {
				w.Errorf("EC2 was asked about %d at once", w.most)
			}
		})
	}
}

// A janitor that is alone with a thousand dead finds them all in one round, and
// asks EC2 about two hundred at a time.
func TestRingLoneSurvivor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 1000
		w := newRing(t, n)
		var dead []string
		for _, m := range w.queue[1:] {
			dead = append(dead, m.janitor.id.Instance)
		}
		w.kill(dead)
		time.Sleep(3 * time.Minute)
		units, _ := w.cost(func() {
			w.queue[0].janitor.round(t.Context())
			w.rounds++
		})
		if len(w.found) != n-1 || w.most != 200 || w.calls > 11 {
			t.Errorf("%d freed, for %d calls to EC2 of at most %d volumes", len(w.found), w.calls, w.most)
		}
		w.figure(n, "alone.units", units, "units/round", 250)
	})
}
