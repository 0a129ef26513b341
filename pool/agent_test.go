package pool

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

// bubble runs a test on virtual time.
func bubble(t *testing.T, test func(t *testing.T, s *stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newStage(t)) })
}

var badSuperblock = &DiskError{Reason: ReasonBadVolume, VolumeFault: true, Err: errors.New("structure needs cleaning")}

// used makes a volume one that was used before.
func (s *stage) used(volume string) {
	s.probes[volume] = Probe{Content: HasData, FSType: "ext4", FSUUID: "u"}
}

func TestAgent(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		x := s.acquire()
		s.want(x, "cold new")
		if s.mounted[point] != v1 || s.state().Volume != v1 || s.state().Generation != 1 {
			t.Errorf("mounted %q, state %+v, want %s", s.mounted[point], s.state(), v1)
		}
		x.stop()
		s.allFree()
		if r := s.record(v1); !r.Clean || r.LastOwner != me || s.state() != nil {
			t.Errorf("given back as %+v, state %+v", r, s.state())
		}
		x = s.acquire()
		s.want(x, "warm")
		x.stop()
	})
}

func TestDeadlineAfterAFailedMount(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.used(v1)
		s.used(v2)
		s.mount = func(volume string) error {
			if volume == v1 {
				return badSuperblock
			}
			return nil
		}
		s.check = func(volume string) error {
			if volume == v2 {
				time.Sleep(20 * time.Minute)
			}
			return nil
		}
		x := s.acquire()
		s.want(x, "fallback repairing")
		if err := <-x.ended; err != nil {
			t.Error(err)
		}
		if s.mounted[point] != "" {
			t.Errorf("%s was mounted after the deadline, over what was written since", s.mounted[point])
		}
		if r := s.record(v1); r.State != lease.Quarantined || r.Clean {
			t.Errorf("the bad volume is %s, clean %v", r.State, r.Clean)
		}
		if r := s.record(v2); r.State != lease.Free || !r.Clean {
			t.Errorf("the checked volume is %s, clean %v, want it free and clean", r.State, r.Clean)
		}
	})
}

func TestMountThatHangs(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.mount = func(string) error { time.Sleep(20 * time.Minute); return nil }
		x := s.acquire()
		s.want(x, "fallback repairing")
		if err := <-x.ended; err != nil {
			t.Error(err)
		}
		if s.mounted[point] != "" {
			t.Error("it was mounted after the deadline, and stays")
		}
		s.allFree()
	})
}

// TestOrphan: a mkfs or e2fsck that outlived its agent is waited for.
func TestOrphan(t *testing.T) {
	for _, orphan := range []time.Duration{10 * time.Second, 20 * time.Minute} {
		bubble(t, func(t *testing.T, s *stage) {
			s.crash(v1, lease.Facts{Phase: phase(lease.Preparing)}, true)
			s.used(v1)
			s.inUse[v1] = true
			until := time.Now().Add(orphan)
			s.wait = func(volume string) error {
				time.Sleep(time.Second)
				if time.Now().Before(until) {
					return ErrLocked
				}
				s.mu.Lock()
				defer s.mu.Unlock()
				delete(s.inUse, volume)
				return nil
			}
			x := s.acquire()
			if orphan > x.opt.Timeout {
				s.want(x, "fallback repairing")
				if err := <-x.ended; err != nil {
					t.Error(err)
				}
				s.allFree()
				return
			}
			s.want(x, "warm")
			x.stop()
			s.allFree()
		})
	}
}

// TestReleaseUnderAnOrphan: what an orphan works on is not detached.
func TestReleaseUnderAnOrphan(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.crash(v1, lease.Facts{Phase: phase(lease.Preparing)}, true)
		s.inUse[v1] = true
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := s.agent(point).ReleaseLeft(ctx, false); !errors.Is(err, errUsedHere) {
			t.Errorf("released with %v, want %v", err, errUsedHere)
		}
		if s.called("detach " + v1) {
			t.Error("it was detached")
		}
		s.inUse[v1] = false
		before := s.record(v1)
		r, err := s.agent(point).ReleaseLeft(t.Context(), false)
		if err != nil || !r.Released {
			t.Fatal(r, err)
		}
		s.allFree()
		if after := s.record(v1); after.Clean != before.Clean || !after.ReleasedAt.IsZero() {
			t.Errorf("it was never mounted, and is recorded as clean %v, released at %v", after.Clean, after.ReleasedAt)
		}
	})
}

// TestCrashInDetach: the former agent died while EC2 was detaching.
func TestCrashInDetach(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.crash(v1, lease.Facts{Phase: phase(lease.Releasing)}, true)
		s.used(v1)
		s.attach(v1, me, types.VolumeAttachmentStateDetaching)
		time.AfterFunc(5*time.Second, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.volumes[v1].State, s.volumes[v1].Attachments = types.VolumeStateAvailable, nil
		})
		x := s.acquire()
		s.want(x, "warm")
		if *x.result.Volume != v1 {
			t.Errorf("it got %s, want its own %s", *x.result.Volume, v1)
		}
		x.stop()
		s.allFree()
	})
}

// TestLostAttach: the attach landed, its reply was lost, and EC2's answer is old.
func TestLostAttach(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.loseNext = true
		s.stale[v1] = &types.Volume{VolumeId: aws.String(v1), State: types.VolumeStateInUse,
			Attachments: []types.VolumeAttachment{{InstanceId: aws.String("i-old"), State: types.VolumeAttachmentStateDetaching}}}
		x := s.acquire()
		s.want(x, "cold new")
		x.stop()
		s.allFree()
	})
}

// TestNobodyIsToBlame: what says nothing against a volume quarantines none, and
// leaves none held.
func TestNobodyIsToBlame(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(s *stage)
		want string
	}{
		"an instance that EC2 does not know yet": {func(s *stage) { s.noSuchMe = true }, "fallback attach_timeout"},
		"a wrong zone":                           {func(s *stage) { s.badZone = true }, "fallback machine"},
		"a denied attach":                        {func(s *stage) { s.denied = "attach" }, "fallback denied"},
		"an attach that EC2 takes back soon":     {func(s *stage) { s.taken = 2 * time.Second }, "fallback attach_failed"},
		"an attach that EC2 takes back late":     {func(s *stage) { s.taken = 17 * time.Second }, "fallback device_timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *stage) {
				c.set(s)
				x := s.acquire()
				s.want(x, c.want)
				if err := <-x.ended; err != nil {
					t.Error(err)
				}
				s.allFree()
			})
		})
	}
}

// TestDescribeDenied: without EC2's answer nobody is blamed, and what cannot be
// given back stays known.
func TestDescribeDenied(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.noDevice, s.denied = true, "describe"
		x := s.acquire()
		if x.result.Result != Fallback {
			t.Error(x.reason())
		}
		<-x.ended
		for _, v := range []string{v1, v2, v3} {
			if r := s.record(v); r.Failures != 0 {
				t.Errorf("%s is blamed: %s", v, r.LastError)
			}
		}
		s.noDevice, s.denied = false, ""
		for v := range s.volumes {
			if s.attachedTo(v) == me {
				s.devices[v] = true
			}
		}
		x = s.acquire()
		s.want(x, "cold new")
		x.stop()
		s.allFree()
	})
}

// TestStuckAttach: an attach that ends never, with its agent, is repaired by the
// next one.
func TestStuckAttach(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.noDevice, s.stuck = true, true
		x := s.acquire()
		if x.result.Result != Fallback {
			t.Error(x.reason())
		}
		<-x.ended
		if left := s.state().Unsettled; len(left) == 0 {
			t.Error("the state tells nothing of what is still attached")
		}
		s.noDevice, s.stuck = false, false
		time.Sleep(time.Hour)
		x = s.acquire()
		s.want(x, "cold new")
		x.stop()
		for _, v := range []string{v1, v2, v3} {
			if at := s.attachedTo(v); at != "" || s.record(v).State == lease.Held {
				t.Errorf("%s is %s, attached to %q", v, s.record(v).State, at)
			}
		}
	})
}

// TestUnsavedClaim: killed before the state file was written, where nothing else
// is free.
func TestUnsavedClaim(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		for _, v := range []string{v2, v3} {
			if _, err := s.reg.Drain(t.Context(), v); err != nil {
				t.Fatal(err)
			}
		}
		s.crash(v1, lease.Facts{}, false)
		if err := s.run.forget(point); err != nil {
			t.Fatal(err)
		}
		x := s.acquire()
		s.want(x, "cold new")
		x.stop()
	})
}

func TestFallbackDirectoryIsRemembered(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		dir := func(o *Options) { o.FallbackDir = "/var/cache" }
		s.noSuchMe = true
		x := s.acquire(dir)
		<-x.ended
		if s.mounted[point] != "dir" {
			t.Fatalf("mounted %q", s.mounted[point])
		}
		s.noSuchMe, s.busy = false, true
		x = s.acquire(dir)
		s.want(x, "fallback mount_point_busy")
		<-x.ended
		s.busy, s.me.Instance, s.boot = false, "", "boot"
		x = s.acquire(dir) // IMDS is out, but it was asked before
		s.want(x, "cold new")
		s.me.Instance = me
		x.stop()
	})
}

// TestReleaseFallback: a release is answered while volumes are being given up.
func TestReleaseFallback(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.noDevice, s.stuck = true, true
		x := s.acquire(func(o *Options) { o.FallbackDir = "/var/cache" })
		a := x.ask(request{Op: "release"})
		if a.Release == nil || a.Release.Released || !strings.Contains(*a.Release.Message, v1) || s.mounted[point] != "" {
			t.Errorf("answered %+v, mounted %q", a, s.mounted[point])
		}
		s.mu.Lock()
		for _, v := range s.volumes {
			v.State, v.Attachments = types.VolumeStateAvailable, nil
		}
		s.mu.Unlock()
		if a := x.ask(request{Op: "result"}); !a.Ended {
			t.Errorf("the old result was told after the release: %+v", a)
		}
		<-x.ended
		if s.state() != nil {
			t.Errorf("the state is still there: %+v", s.state())
		}
	})
}

// TestOtherMountPoint: what another mount point's agent holds is left alone.
func TestOtherMountPoint(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		x := s.start(s.agent("/other"))
		s.want(x, "cold new")
		if err := s.run.save(State{Schema: 1, BootID: s.boot, Pool: "ci", Zone: "z", Instance: me, MountPoint: point, Volume: v1}); err != nil {
			t.Fatal(err)
		}
		r, err := s.agent(point).ReleaseLeft(t.Context(), false)
		if err != nil || r.Released || s.called("detach "+v1) || s.state() != nil {
			t.Errorf("%+v, %v; state %+v", r, err, s.state())
		}
		x.stop()
		s.allFree()
	})
}

func TestStateOfAnotherInstance(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.crash(v1, lease.Facts{}, true)
		s.me.Instance, s.boot = "i-00000000000000002", "another"
		delete(s.devices, v1)
		r, err := s.agent(point).ReleaseLeft(t.Context(), false)
		if err != nil || r.Released || s.called("detach "+v1) || s.state() != nil {
			t.Errorf("%+v, %v; state %+v", r, err, s.state())
		}
		if r := s.record(v1); r.State != lease.Held || r.Owner != me {
			t.Errorf("%s is %s of %s", v1, r.State, r.Owner)
		}
	})
}

func TestStateOfAnotherPool(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.crash(v1, lease.Facts{}, true)
		x := s.acquire(func(o *Options) { o.Pool = "render" })
		s.want(x, "fallback mount_point_busy")
		<-x.ended
		if r, err := s.agent(point).ReleaseLeft(t.Context(), false); err != nil || !r.Released {
			t.Errorf("%+v, %v", r, err)
		}
		s.allFree()
	})
}

// TestMountedWithoutALease: the agent comes back in an outage of DynamoDB, or
// where the table says that another has the volume.
func TestMountedWithoutALease(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		s.crash(v1, lease.Facts{Phase: phase(lease.Mounted)}, true)
		s.mounted[point] = v1
		faulty := leasetest.NewFaulty(s.table)
		s.store = faulty
		stop := faulty.Inject(leasetest.All, -1, leasetest.Fault{Fail: leasetest.Unreachable()})
		x := s.acquire()
		s.want(x, "warm")
		if x.result.Generation != nil || s.state().Volume != v1 {
			t.Errorf("told generation %v, state %+v", *x.result.Generation, s.state())
		}
		time.Sleep(time.Hour)
		stop()
		time.Sleep(time.Minute)
		if r := s.record(v1); r.Generation != 2 || r.Owner != me || s.state().Generation != 2 {
			t.Errorf("not claimed again: %+v, state %+v", r, s.state())
		}
		x.stop()
		s.allFree()
	})
	bubble(t, func(t *testing.T, s *stage) {
		c, err := lease.New(lease.Config{Store: s.table, Pool: "ci", Zone: "z", Owner: "i-other", Elapsed: s.parts().Elapsed})
		if err != nil {
			t.Fatal(err)
		}
		l, err := c.Claim(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		s.attach(v1, me, types.VolumeAttachmentStateAttached)
		s.mounted[point] = v1
		x := s.acquire()
		s.want(x, "warm")
		if err := l.Release(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if r := s.record(v1); r.Owner != me {
			t.Errorf("the free volume was not claimed: %+v", r)
		}
		x.stop()
		s.allFree()
	})
}

// TestTakeOverOfWhatIsAttachedHere: it is detached before it can be free.
func TestTakeOverOfWhatIsAttachedHere(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		c, err := lease.New(lease.Config{Store: s.table, Pool: "ci", Zone: "z", Owner: "i-gone", Elapsed: s.parts().Elapsed})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			l, err := c.Claim(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			l.Abandon()
		}
		for _, v := range []string{v1, v2, v3} {
			if _, err := s.reg.Drain(t.Context(), v); err != nil {
				t.Fatal(err)
			}
			s.attach(v, me, types.VolumeAttachmentStateAttached)
		}
		time.Sleep(time.Hour)
		x := s.acquire()
		s.want(x, "fallback no_free_volume")
		<-x.ended
		for _, v := range []string{v1, v2, v3} {
			if r := s.record(v); r.State != lease.Drained || s.attachedTo(v) != "" {
				t.Errorf("%s is %s, attached to %q", v, r.State, s.attachedTo(v))
			}
		}
	})
}

// TestGiveBackIsTriedAgain: EC2 was out while a volume was given back.
func TestGiveBackIsTriedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		x := s.acquire()
		s.want(x, "cold new")
		s.denied = "detach"
		if a := x.ask(request{Op: "release"}); !strings.Contains(a.Error, "Unauthorized") {
			t.Errorf("answered %+v", a)
		}
		if s.record(v1).State != lease.Held {
			t.Error("released while it is attached")
		}
		s.mu.Lock()
		s.denied = ""
		s.mu.Unlock()
		if err := <-x.ended; err != nil {
			t.Error(err)
		}
		s.allFree()
	})
}

// TestOutageBeforeTheFormat: nothing was begun, so nothing is waited for.
func TestOutageBeforeTheFormat(t *testing.T) {
	bubble(t, func(t *testing.T, s *stage) {
		faulty := leasetest.NewFaulty(s.table)
		s.store = faulty
		faulty.Inject(func(c leasetest.Call) bool {
			return slices.ContainsFunc(c.Writes, func(w lease.Write) bool { return w.Set["format"] != nil })
		}, -1, leasetest.Fault{Fail: leasetest.Unreachable()})
		x := s.acquire()
		s.want(x, "fallback unreachable")
		if s.called("mkfs " + v1) {
			t.Error("formatted without the mark")
		}
		began := time.Now()
		<-x.ended
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the agent went on for %v", took)
		}
		s.allFree()
	})
}
