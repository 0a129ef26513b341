package pool

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
	"golang.org/x/sys/unix"
)

const other = "i-00000000000000002"

func (s *stage) claimant(owner, at string) *lease.Claimant {
	s.t.Helper()
	c, err := lease.New(lease.Config{Store: s.table, Pool: "ci", Zone: "z", Owner: owner, MountPoint: at, Elapsed: s.parts().Elapsed})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// lend has an instance hold a volume at a mount point.
func (s *stage) lend(volume, owner, at string) *lease.Lease {
	s.t.Helper()
	l, err := s.claimant(owner, at).ClaimVolume(s.t.Context(), volume)
	if err != nil {
		s.t.Fatal(err)
	}
	return l
}

// die is a holder's that ends without a word.
func (s *stage) die(volume, owner string) { s.lend(volume, owner, point).Abandon() }

// set changes what EC2 and the kernel say.
func (s *stage) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// rounds lets a few of the janitor's rounds pass, and the time in which a lease
// becomes silent.
func rounds() { time.Sleep(15 * time.Minute) }

func (s *stage) lock(how int) *os.File {
	s.t.Helper()
	f, err := s.run.lockInstance(how)
	if err != nil {
		s.t.Fatal(err)
	}
	return f
}

func (s *stage) count(call string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls {
		if c == call {
			n++
		}
	}
	return n
}

// TestJanitorNeighbour is what becomes of the volume after one's own.
func TestJanitorNeighbour(t *testing.T) {
	terminated, running := types.InstanceStateNameTerminated, types.InstanceStateNameRunning
	attached, detaching := types.VolumeAttachmentStateAttached, types.VolumeAttachmentStateDetaching
	for name, c := range map[string]struct {
		set  func(s *stage)
		want lease.State
		at   string // where it is attached afterwards
	}{
		"its owner is gone":       {func(s *stage) { s.die(v2, other) }, lease.Free, ""},
		"its owner is terminated": {func(s *stage) { s.die(v2, other); s.set(func() { s.known[other] = terminated }) }, lease.Free, ""},
		"its owner runs without":  {func(s *stage) { s.die(v2, other); s.set(func() { s.known[other] = running }) }, lease.Free, ""},
		"it is draining": {func(s *stage) {
			s.die(v2, other)
			s.admin(s.reg.Drain, v2)
		}, lease.Drained, ""},
		"it lives": {func(s *stage) {
			s.t.Cleanup(s.lend(v2, other, point).Abandon)
			s.set(func() { s.known[other] = terminated }) // as an old answer of EC2's may say
		}, lease.Held, ""},
		"it is silent at a running owner's": {func(s *stage) {
			s.die(v2, other)
			s.set(func() { s.known[other] = running })
			s.attach(v2, other, attached)
		}, lease.Held, other},
		"it is leaving its dead owner": {func(s *stage) {
			s.die(v2, other)
			s.set(func() { s.known[other] = terminated })
			s.attach(v2, other, detaching)
		}, lease.Held, other},
		"it is at a third instance's": {func(s *stage) {
			s.die(v2, other)
			s.attach(v2, "i-third", attached)
		}, lease.Held, "i-third"},
		"it is this instance's other mount point's": {func(s *stage) { s.lend(v2, me, "/mnt/other").Abandon() }, lease.Held, ""},
		"it is attached here":                       {func(s *stage) { s.die(v2, other); s.attach(v2, me, attached) }, lease.Free, ""},
		"it is in use here": {func(s *stage) {
			s.die(v2, other)
			s.attach(v2, me, attached)
			s.set(func() { s.inUse[v2] = true })
		}, lease.Held, me},
		"its quarantine is over": {func(s *stage) {
			if err := s.lend(v2, other, point).Quarantine(s.t.Context(), "bad"); err != nil {
				s.t.Fatal(err)
			}
		}, lease.Free, ""},
		"its quarantine goes on": {func(s *stage) {
			for range 8 { // for two hours
				l := s.lend(v2, other, point)
				if err := l.Quarantine(s.t.Context(), "bad"); err != nil {
					s.t.Fatal(err)
				}
				if r := s.record(v2); r.Failures < 8 {
					if _, err := s.claimant(other, point).EndQuarantine(s.t.Context(), r); err != nil {
						s.t.Fatal(err)
					}
				}
			}
		}, lease.Quarantined, ""},
		"EC2 throttles the instances": {func(s *stage) { s.die(v2, other); s.set(func() { s.throttle = "owner" }) }, lease.Held, ""},
		"EC2 throttles the volumes":   {func(s *stage) { s.die(v2, other); s.set(func() { s.throttle = "describe" }) }, lease.Held, ""},
		"EC2 denies":                  {func(s *stage) { s.die(v2, other); s.set(func() { s.denied = "owner" }) }, lease.Held, ""},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *stage) {
				x := s.acquire()
				s.want(x, "cold new")
				c.set(s)
				was := s.record(v2)
				rounds()
				r := s.record(v2)
				if r.State != c.want || s.attachedTo(v2) != c.at {
					t.Errorf("it is %s, attached to %q, not %s, attached to %q", r.State, s.attachedTo(v2), c.want, c.at)
				}
				if r.Failures != was.Failures || r.Generation != was.Generation {
					t.Errorf("generation %d and %d failures became %d and %d", was.Generation, was.Failures, r.Generation, r.Failures)
				}
				if mine := s.record(v1); mine.State != lease.Held || mine.Generation != 1 || s.mounted[point] != v1 {
					t.Errorf("one's own became %+v", mine)
				}
				s.set(func() { s.throttle, s.denied = "", "" })
				x.stop()
			})
		})
	}
}

// What lies beyond a lease that is alive is for its holder to look after.
func TestJanitorStopsAtTheLiving(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		x := s.acquire()
		l := s.lend(v2, other, point)
		s.die(v3, "i-third")
		rounds()
		if r := s.record(v3); r.State != lease.Held {
			t.Errorf("%s is %s", v3, r.State)
		}
		l.Abandon()
		rounds()
		for _, v := range []string{v2, v3} {
			if r := s.record(v); r.State != lease.Free {
				t.Errorf("%s is %s, with nobody alive before it", v, r.State)
			}
		}
		if n := s.count("owner " + other); n != 1 {
			t.Errorf("EC2 was asked %d times, for both at once", n)
		}
		x.stop()
	})
}

// A silent lease whose owner runs is not freed before one more of its heartbeats
// had time to come, and not if it comes.
func TestJanitorLooksAgain(t *testing.T) {
	for _, beats := range []bool{false, true} {
		bubble(t, func(t *testing.T, s *stage) {
			a := s.agent(point)
			if f := a.identify(t.Context()); f != nil {
				t.Fatal(f)
			}
			l := s.lend(v2, other, point)
			l.Abandon()
			s.set(func() { s.known[other] = types.InstanceStateNameRunning })
			time.Sleep(3 * time.Minute)
			j := a.janitor(v1)
			began, freed := time.Now(), make(chan struct{})
			go func() { defer close(freed); j.round(t.Context()) }()
			time.Sleep(10 * time.Second)
			if r := s.record(v2); r.State != lease.Held {
				t.Error("freed at first sight")
			}
			if beats {
				if err := l.Renew(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			<-freed
			if r := s.record(v2); (r.State == lease.Held) != beats || time.Since(began) > 16*time.Second {
				t.Errorf("after %v, a beat %v: %s", time.Since(began), beats, r.State)
			}
		})
	}
}

// Rounds come every three minutes, give or take one, not all agents' at once.
func TestJanitorRounds(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		faulty := leasetest.NewFaulty(s.table)
		s.store = faulty
		x := s.acquire()
		time.Sleep(100 * 3 * time.Minute)
		var at []time.Duration
		last := x.began
		for _, c := range faulty.Calls() {
			if c.List != nil && !c.List.Free && c.List.After == v1 {
				now := c.At.Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))
				at, last = append(at, now-last), now
			}
		}
		slices.Sort(at)
		if n := len(at); n < 90 || n > 110 || at[0] < 2*time.Minute || at[n-1] > 4*time.Minute+time.Second || at[n-1]-at[0] < time.Minute {
			t.Errorf("%d rounds, %v to %v apart", n, at[0], at[n-1])
		}
		if n := s.count("describe " + me); n < 4 || n > 6 { // once an hour
			t.Errorf("EC2 was asked %d times what is attached here", n)
		}
		x.stop()
	})
}

// The janitor holds up nobody: neither a table that does not answer nor a wait of
// its own keeps a give-back.
func TestJanitorEndsAtOnce(t *testing.T) {
	for name, set := range map[string]func(s *stage, f *leasetest.Faulty){
		"a read that hangs": func(s *stage, f *leasetest.Faulty) {
			f.Inject(func(c leasetest.Call) bool { return c.List != nil }, -1, leasetest.Fault{Hold: leasetest.Until(nil)})
		},
		"a table that refuses": func(s *stage, f *leasetest.Faulty) {
			f.Inject(func(c leasetest.Call) bool { return c.List != nil }, -1, leasetest.Fault{Fail: leasetest.Throttled()})
		},
		"a second look": func(s *stage, f *leasetest.Faulty) {
			s.die(v2, other)
			s.set(func() { s.known[other] = types.InstanceStateNameRunning })
			f.Inject(func(c leasetest.Call) bool { return c.Read != nil && c.Read.Item == v2 }, -1, leasetest.Fault{Hold: leasetest.Until(nil)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *stage) {
				faulty := leasetest.NewFaulty(s.table)
				s.store = faulty
				x := s.acquire()
				set(s, faulty)
				rounds()
				began := time.Now()
				if asked := x.ask(request{Op: "release"}); asked.Release == nil {
					t.Errorf("%+v", asked)
				}
				if err := <-x.ended; err != nil {
					t.Error(err)
				}
				if time.Since(began) > time.Second {
					t.Errorf("the agent ended after %v", time.Since(began))
				}
				if r := s.record(v1); r.State != lease.Free {
					t.Errorf("%s is %s", v1, r.State)
				}
			})
		})
	}
}

// TestJanitorStray is what becomes of a volume that is attached to this
// instance.
func TestJanitorStray(t *testing.T) {
	attached, attaching := types.VolumeAttachmentStateAttached, types.VolumeAttachmentStateAttaching
	for name, c := range map[string]struct {
		set  func(s *stage)
		gone bool
	}{
		"free":                          {func(*stage) {}, true},
		"held by another who lives":     {func(s *stage) { s.t.Cleanup(s.lend(v3, other, point).Abandon) }, true},
		"free and in use":               {func(s *stage) { s.set(func() { s.inUse[v3] = true }) }, false},
		"held by another, in use":       {func(s *stage) { s.t.Cleanup(s.lend(v3, other, point).Abandon); s.set(func() { s.inUse[v3] = true }) }, false},
		"another mount point's, alive":  {func(s *stage) { s.t.Cleanup(s.lend(v3, me, "/mnt/other").Abandon) }, false},
		"another mount point's, silent": {func(s *stage) { s.lend(v3, me, "/mnt/other").Abandon() }, false},
		"without a device":              {func(s *stage) { s.set(func() { s.devices[v3] = false }) }, true},
		"still attaching":               {func(s *stage) { s.attach(v3, me, attaching) }, true},
		"no disk tells its id":          {func(s *stage) { s.set(func() { s.devices[v1], s.devices[v3] = false, false }) }, false},
		"drained":                       {func(s *stage) { s.admin(s.reg.Drain, v3) }, true},
		"retired":                       {func(s *stage) { s.admin(s.reg.Drain, v3); s.admin(s.reg.Retire, v3) }, false},
		"in no pool":                    {func(s *stage) { s.table.Put(lease.Key{Partition: "ci/z", Item: v3}, nil) }, false},
		"not understood": {func(s *stage) {
			key := lease.Key{Partition: "ci/z", Item: v3}
			item := s.table.Item(key)
			delete(item, "schema")
			s.table.Put(key, item)
		}, false},
		"EC2 throttles": {func(s *stage) { s.set(func() { s.throttle = "describe" }) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *stage) {
				x := s.acquire()
				s.attach(v3, me, attached)
				c.set(s)
				time.Sleep(80 * time.Minute)
				if gone := s.attachedTo(v3) == ""; gone != c.gone {
					t.Errorf("detached %v", gone)
				}
				if !c.gone && s.called("detach "+v3) {
					t.Error("a detach was tried")
				}
				if s.attachedTo(v1) != me || s.mounted[point] != v1 {
					t.Error("one's own is not attached any more")
				}
				s.set(func() { s.devices[v1], s.throttle = true, "" })
				x.stop()
			})
		})
	}
}

// admin does what an operator does.
func (s *stage) admin(do func(context.Context, string) (lease.Record, error), volume string) {
	s.t.Helper()
	if _, err := do(s.t.Context(), volume); err != nil {
		s.t.Fatal(err)
	}
}

// The lock is what keeps the janitor from a volume that another mount point's
// agent is about to open.
func TestJanitorHeedsTheLock(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		x := s.acquire()
		lock := s.lock(unix.LOCK_SH)
		s.attach(v3, me, types.VolumeAttachmentStateAttached)
		s.attach(v2, me, types.VolumeAttachmentStateAttached)
		s.die(v2, other)
		rounds()
		if s.called("detach "+v3) || s.called("detach "+v2) || s.record(v2).State != lease.Held {
			t.Errorf("detached outside the lock: %v", s.calls)
		}
		lock.Close()
		rounds()
		if s.attachedTo(v3) != "" || s.attachedTo(v2) != "" || s.record(v2).State != lease.Free {
			t.Errorf("not detached: %v", s.calls)
		}
		s.lock(unix.LOCK_EX).Close() // it is given back
		x.stop()
	})
}

// journal notes the reads of a volume's item among the calls to EC2.
type journal struct {
	lease.Store
	s *stage
}

func (j journal) Read(ctx context.Context, key lease.Key) (lease.Reply, error) {
	j.s.mu.Lock()
	j.s.calls = append(j.s.calls, "read "+key.Item)
	j.s.mu.Unlock()
	return j.Store.Read(ctx, key)
}

// The item is read after EC2's answer: what this instance got since names it.
func TestJanitorReadsTheItemLast(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.store = journal{s.table, s}
		x := s.acquire()
		s.attach(v3, me, types.VolumeAttachmentStateAttached)
		rounds()
		x.stop()
		shown, read, gone := slices.Index(s.calls, "describe "+me), slices.Index(s.calls, "read "+v3), slices.Index(s.calls, "detach "+v3)
		if shown < 0 || read < shown || gone < read {
			t.Fatalf("asked %d, read %d, detached %d of %s", shown, read, gone, strings.Join(s.calls, ", "))
		}
		if slices.Contains(s.calls[shown:gone], "read "+v1) {
			t.Error("one's own is looked at, too")
		}
	})
}

// What is used is not waited for: the lock would keep others from attaching.
func TestJanitorDoesNotWaitForUsers(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		a := s.agent(point)
		if f := a.identify(t.Context()); f != nil {
			t.Fatal(f)
		}
		s.attach(v2, me, types.VolumeAttachmentStateAttached)
		s.set(func() { s.inUse[v2] = true })
		began := time.Now()
		if gone, err := a.janitor(v1).detachUnused(t.Context(), v2); gone || !errors.Is(err, errUsedHere) || time.Since(began) > 0 {
			t.Errorf("detached %v, %v, after %v", gone, err, time.Since(began))
		}
	})
}

// A disk of the instance's that is none of the pool's costs no call each round.
func TestJanitorKnowsForeignDisks(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		x := s.acquire()
		s.set(func() { s.devices[v3] = true }) // and by EC2 it is not attached with the pool's tag
		time.Sleep(5 * time.Hour)
		if n := s.count("describe " + me); n < 4 || n > 8 {
			t.Errorf("EC2 was asked %d times", n)
		}
		s.set(func() { delete(s.devices, v3) })
		x.stop()
	})
}

// An acquire waits for a janitor that is detaching, within its own deadline.
func TestAcquireWaitsForTheJanitor(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		lock := s.lock(unix.LOCK_EX)
		time.AfterFunc(5*time.Second, func() { lock.Close() })
		x := s.acquire()
		s.want(x, "cold new")
		if x.after < 5*time.Second || x.after > 6*time.Second {
			t.Errorf("ready after %v", x.after)
		}
		x.stop()

		again := s.lock(unix.LOCK_EX)
		defer again.Close()
		x = s.acquire()
		s.want(x, "fallback timeout")
		if !strings.Contains(*x.result.Message, errInstanceBusy.Error()) {
			t.Errorf("%s", *x.result.Message)
		}
		if err := <-x.ended; err != nil {
			t.Error(err)
		}
		s.allFree()
		if s.count("attach "+v1) != 1 {
			t.Error("attached without the lock")
		}
	})
}

// The lock is held from before the attach until the device is opened, and no
// longer; acquires of several mount points do not hold each other up.
func TestAcquireLocksTheInstance(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		lock := s.lock(unix.LOCK_SH)
		defer lock.Close()
		free := func() bool {
			lock.Close() // it would be in the way itself
			f, err := s.run.lockInstance(unix.LOCK_EX)
			f.Close()
			return err == nil
		}
		waited := false
		s.wait = func(string) error {
			if waited = true; free() {
				t.Error("not locked while the device is awaited")
			}
			return nil
		}
		s.check = func(string) error {
			if !free() {
				t.Error("locked while the disk is checked")
			}
			return nil
		}
		s.used(v1)
		x := s.acquire()
		s.want(x, "warm")
		if !waited {
			t.Error("the device was not awaited")
		}
		x.stop()
	})
}
