package cloud_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volpool/volpool/integration/ec2sim/cloud"
)

// bubble runs on virtual time: spans of seconds pass at once, and exactly.
func bubble(t *testing.T, cfg cloud.Config, f func(*fixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cfg.Zones = []string{"a"}
		x := &fixture{Cloud: cloud.New(cfg), t: t}
		f(x)
		x.must(x.Close())
	})
}

type fixture struct {
	*cloud.Cloud
	t *testing.T
}

func (x *fixture) must(err error) {
	x.t.Helper()
	if err != nil {
		x.t.Fatal(err)
	}
}

func (x *fixture) running() string {
	x.t.Helper()
	started, err := x.RunInstances(cloud.RunInput{Zone: "a"})
	x.must(err)
	x.must(x.Wait(x.t.Context(), func() bool { i, _ := x.Instance(started[0].ID); return i.State == cloud.Running }))
	return started[0].ID
}

func (x *fixture) available() string {
	x.t.Helper()
	v, err := x.CreateVolume(cloud.CreateVolumeInput{Zone: "a", SizeGiB: 1})
	x.must(err)
	x.must(x.Wait(x.t.Context(), func() bool { v, _ := x.Volume(v.ID); return v.State == cloud.Available }))
	return v.ID
}

// state is the volume's, and its only attachment's.
func (x *fixture) state(volume string) string {
	v, ok := x.Volume(volume)
	switch {
	case !ok:
		return "gone"
	case len(v.Attachments) == 0:
		return v.State
	}
	return v.State + "/" + v.Attachments[0].State
}

func (x *fixture) wantAfter(d time.Duration, volume, want string) {
	x.t.Helper()
	time.Sleep(d)
	synctest.Wait()
	if got := x.state(volume); got != want {
		x.t.Errorf("%v later the volume is %s, want %s", d, got, want)
	}
}

func seconds(n int) cloud.Span { return cloud.Span{Base: time.Duration(n) * time.Second} }

var slowTiming = cloud.Timing{
	Boot: seconds(20), Create: seconds(2), Attach: seconds(3), Device: seconds(2), Detach: seconds(5), ShutDown: seconds(30), Delete: seconds(1),
	Recheck: time.Second,
}

func TestEachStateLastsItsTime(t *testing.T) {
	bubble(t, cloud.Config{Timing: slowTiming}, func(x *fixture) {
		i := x.running()
		v, err := x.CreateVolume(cloud.CreateVolumeInput{Zone: "a", SizeGiB: 1})
		x.must(err)
		x.wantAfter(1999*time.Millisecond, v.ID, "creating")
		x.wantAfter(time.Millisecond, v.ID, "available")
		_, err = x.AttachVolume(v.ID, i, "/dev/xvdaa")
		x.must(err)
		x.wantAfter(2999*time.Millisecond, v.ID, "in-use/attaching")
		x.wantAfter(time.Millisecond, v.ID, "in-use/attached")
		_, err = x.DetachVolume(v.ID, i, "", false)
		x.must(err)
		x.wantAfter(4999*time.Millisecond, v.ID, "in-use/detaching")
		x.wantAfter(time.Millisecond, v.ID, "available")
		x.must(x.DeleteVolume(v.ID))
		x.wantAfter(999*time.Millisecond, v.ID, "deleting")
		x.wantAfter(time.Millisecond, v.ID, "gone")
	})
}

func TestJitterStaysWithinItsSpan(t *testing.T) {
	bubble(t, cloud.Config{Seed: 1, Timing: cloud.Timing{Attach: cloud.Span{Base: 2 * time.Second, Jitter: time.Second}}}, func(x *fixture) {
		i := x.running()
		took := map[time.Duration]bool{}
		for range 20 {
			v := x.available()
			began := time.Now()
			_, err := x.AttachVolume(v, i, "/dev/xvdaa")
			x.must(err)
			x.must(x.Wait(x.t.Context(), func() bool { return x.state(v) == "in-use/attached" }))
			took[time.Since(began)] = true
			_, err = x.DetachVolume(v, i, "", false)
			x.must(err)
			x.must(x.Wait(x.t.Context(), func() bool { return x.state(v) == "available" }))
		}
		for d := range took {
			if d < time.Second || d > 3*time.Second {
				t.Errorf("attached after %v", d)
			}
		}
		if len(took) < 15 {
			t.Errorf("%d different durations of 20", len(took))
		}
	})
}

func TestSameSeedSameCloud(t *testing.T) {
	history := func(seed uint64) (log string) {
		bubble(t, cloud.Config{Seed: seed, Timing: cloud.Timing{Attach: cloud.Span{Base: time.Second, Jitter: time.Second}}}, func(x *fixture) {
			began := time.Now()
			for range 5 {
				v, i := x.available(), x.running()
				_, err := x.AttachVolume(v, i, "/dev/xvdaa")
				x.must(err)
				x.must(x.Wait(x.t.Context(), func() bool { return x.state(v) == "in-use/attached" }))
				log += fmt.Sprintln(v, i, time.Since(began))
			}
		})
		return log
	}
	if a, b := history(7), history(7); a != b {
		t.Errorf("seed 7 gave\n%sand\n%s", a, b)
	}
	if history(7) == history(8) {
		t.Error("seeds 7 and 8 gave the same")
	}
}

func TestTerminateDetachesByItself(t *testing.T) {
	bubble(t, cloud.Config{Timing: slowTiming}, func(x *fixture) {
		i, kept, deleted := x.running(), x.available(), x.available()
		for k, v := range []string{kept, deleted} {
			_, err := x.AttachVolume(v, i, []string{"/dev/xvdaa", "/dev/xvdab"}[k])
			x.must(err)
		}
		x.wantAfter(3*time.Second, kept, "in-use/attached")
		x.must(x.SetDeleteOnTermination(deleted, true))
		_, err := x.TerminateInstances([]string{i})
		x.must(err)
		x.wantAfter(29*time.Second, kept, "in-use/attached")
		x.wantAfter(time.Second, kept, "in-use/detaching")
		if got, _ := x.Instance(i); got.State != cloud.Terminated {
			t.Errorf("instance is %s", got.State)
		}
		x.wantAfter(5*time.Second, kept, "available")
		x.wantAfter(time.Second, deleted, "gone")
		time.Sleep(time.Hour)
		synctest.Wait()
		if _, known := x.Instance(i); known {
			t.Error("a terminated instance is still known after an hour")
		}
	})
}

func TestStoppedInstanceKeepsItsVolumes(t *testing.T) {
	b := &recorder{}
	bubble(t, cloud.Config{Timing: slowTiming, Backend: b}, func(x *fixture) {
		i, v, late := x.running(), x.available(), x.available()
		_, err := x.AttachVolume(v, i, "/dev/xvdaa")
		x.must(err)
		x.wantAfter(3*time.Second, v, "in-use/attached")
		_, err = x.StopInstances([]string{i})
		x.must(err)
		x.wantAfter(time.Second, v, "in-use/attached")
		_, err = x.AttachVolume(late, i, "/dev/xvdab") // EC2 takes it for a stopped instance
		x.must(err)
		x.wantAfter(3*time.Second, late, "in-use/attached")
		b.want(t, "plug "+v, "unplug "+v)
		_, err = x.StartInstances([]string{i})
		x.must(err)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if got := len(b.log()); got != 4 {
			t.Errorf("backend did %q", b.log())
		}
	})
}

func TestDeviceShowsWhenItShould(t *testing.T) {
	for _, c := range []struct {
		name   string
		fault  cloud.Kind
		device cloud.Span
		at     time.Duration // negative: never
	}{
		{name: "before attached", device: seconds(1), at: time.Second},
		{name: "after attached", device: seconds(8), at: 8 * time.Second},
		{name: "before the answer", fault: cloud.DeviceFirst, device: seconds(1), at: 0},
		{name: "never", fault: cloud.NoDevice, device: seconds(1), at: -1},
		{name: "stuck", fault: cloud.StuckAttaching, device: seconds(1), at: -1},
		{name: "key refused", fault: cloud.KeyRefused, device: seconds(1), at: -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			timing := slowTiming
			timing.Device = c.device
			var shown []time.Time
			cfg := cloud.Config{Timing: timing, OnDevice: func(e cloud.DeviceEvent) { shown = append(shown, e.At) }}
			bubble(t, cfg, func(x *fixture) {
				i, v := x.running(), x.available()
				if c.fault != "" {
					x.Faults.Inject(cloud.Fault{Kind: c.fault, Volume: v})
				}
				began := time.Now()
				_, err := x.AttachVolume(v, i, "/dev/xvdaa")
				x.must(err)
				time.Sleep(time.Minute)
				synctest.Wait()
				switch {
				case c.at < 0 && len(shown) == 0:
				case len(shown) != 1 || shown[0].Sub(began) != c.at:
					t.Errorf("shown at %v, began %v", shown, began)
				}
			})
		})
	}
}

// Nothing but the Backend decides when a device in use is free.
func TestBusyUntilTheBackendSaysFree(t *testing.T) {
	b := &recorder{}
	bubble(t, cloud.Config{Timing: slowTiming, Backend: b}, func(x *fixture) {
		i, v := x.running(), x.available()
		_, err := x.AttachVolume(v, i, "/dev/xvdaa")
		x.must(err)
		x.wantAfter(3*time.Second, v, "in-use/attached")
		b.setBusy(true)
		_, err = x.TerminateInstances([]string{i})
		x.must(err)
		x.wantAfter(36*time.Second, v, "in-use/busy")
		x.wantAfter(2*time.Hour, v, "in-use/busy") // by now EC2 has forgotten the instance
		b.setBusy(false)
		x.wantAfter(time.Second, v, "available")
	})
}

func TestDetachBeforeTheDeviceCame(t *testing.T) {
	b := &recorder{}
	timing := slowTiming
	timing.Device = seconds(20)
	bubble(t, cloud.Config{Timing: timing, Backend: b}, func(x *fixture) {
		i, v := x.running(), x.available()
		_, err := x.AttachVolume(v, i, "/dev/xvdaa")
		x.must(err)
		_, err = x.DetachVolume(v, i, "", false)
		x.must(err)
		x.wantAfter(time.Minute, v, "available")
		b.want(t)
	})
}

func TestDescribeAsOf(t *testing.T) {
	bubble(t, cloud.Config{Timing: slowTiming}, func(x *fixture) {
		i := x.running()
		born := time.Now()
		v := x.available()
		_, err := x.AttachVolume(v, i, "/dev/xvdaa")
		x.must(err)
		x.wantAfter(10*time.Second, v, "in-use/attached")
		for _, c := range []struct {
			at   time.Duration
			want string
		}{
			{-1, "none"}, {0, "creating"}, {1999 * time.Millisecond, "creating"}, {2 * time.Second, "in-use/attaching"},
			{4999 * time.Millisecond, "in-use/attaching"}, {5 * time.Second, "in-use/attached"}, {time.Hour, "in-use/attached"},
		} {
			found, _, err := x.DescribeVolumes(cloud.Query{AsOf: born.Add(c.at)})
			x.must(err)
			got := "none"
			if len(found) > 0 {
				got = found[0].State
				if len(found[0].Attachments) > 0 {
					got += "/" + found[0].Attachments[0].State
				}
			}
			if got != c.want {
				t.Errorf("as of %v: %s, want %s", c.at, got, c.want)
			}
		}
	})
}

// A hundred attaches of one volume at the same moment: one wins.
func TestOneAttachmentAVolume(t *testing.T) {
	bubble(t, cloud.Config{}, func(x *fixture) {
		v := x.available()
		var instances []string
		for range 100 {
			instances = append(instances, x.running())
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		codes := map[string]int{}
		for _, i := range instances {
			wg.Go(func() {
				_, err := x.AttachVolume(v, i, "/dev/xvdaa")
				mu.Lock()
				defer mu.Unlock()
				if e, ok := err.(*cloud.Error); ok {
					codes[e.Code]++
				} else {
					codes["won"]++
				}
			})
		}
		wg.Wait()
		if codes["won"] != 1 || codes["VolumeInUse"] != 99 {
			t.Errorf("answers %v", codes)
		}
	})
}

func TestMultiAttach(t *testing.T) {
	bubble(t, cloud.Config{}, func(x *fixture) {
		made, err := x.CreateVolume(cloud.CreateVolumeInput{Zone: "a", SizeGiB: 1, Type: "io2", IOPS: 100, MultiAttach: true})
		x.must(err)
		x.must(x.Wait(x.t.Context(), func() bool { return x.state(made.ID) == "available" }))
		first := ""
		for n := range 17 {
			i := x.running()
			if n == 0 {
				first = i
			}
			_, err := x.AttachVolume(made.ID, i, "/dev/xvdaa")
			if e, refused := err.(*cloud.Error); refused != (n == 16) || refused && e.Code != "AttachmentLimitExceeded" {
				t.Errorf("attachment %d: %v", n+1, err)
			}
		}
		_, err = x.DetachVolume(made.ID, first, "", false)
		x.must(err)
		time.Sleep(time.Second)
		synctest.Wait()
		if v, _ := x.Volume(made.ID); len(v.Attachments) != 15 || v.State != cloud.InUse {
			t.Errorf("volume %+v", v)
		}
	})
}

// recorder is a Backend that does nothing, and notes it.
type recorder struct {
	mu   sync.Mutex
	done []string
	busy bool
}

func (r *recorder) note(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done = append(r.done, s)
}

func (r *recorder) log() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.done...)
}

func (r *recorder) want(t *testing.T, want ...string) {
	t.Helper()
	if got := r.log(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("backend did %q, want %q", got, want)
	}
}

func (r *recorder) setBusy(busy bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy = busy
}

func (r *recorder) Boot(string) (cloud.Roots, error) { return cloud.Roots{}, nil }
func (r *recorder) Provide(string, int) error        { return nil }
func (r *recorder) Discard(string) error             { return nil }
func (r *recorder) Close() error                     { return nil }

func (r *recorder) Plug(_, volume string) (cloud.Device, error) {
	r.note("plug " + volume)
	return cloud.Device{}, nil
}

func (r *recorder) Unplug(_, volume string) error {
	r.mu.Lock()
	busy := r.busy
	r.mu.Unlock()
	if busy {
		return cloud.ErrBusy
	}
	r.note("unplug " + volume)
	return nil
}
