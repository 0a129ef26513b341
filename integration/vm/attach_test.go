package vm_test

import (
	"slices"
	"strings"
	"time"

	"github.com/volpool/volpool/integration/ec2sim"
	"github.com/volpool/volpool/integration/ec2sim/cloud"
	"github.com/volpool/volpool/integration/vm/guest"
)

// waysToNotice shows that package mount finds a device by the kernel's events
// alone, and by looking again alone.
func waysToNotice(w *world) {
	m := w.boot(1)[0]
	for _, way := range []guest.Watch{{NoRescan: true}, {NoEvents: true}} {
		v, err := w.ec2.CreateVolume(ec2sim.CreateVolumeInput{Zone: zone, SizeGiB: 1})
		if err != nil {
			w.Fatal(err)
		}
		way.Volume, way.Limit = v.ID, 30*time.Second
		if err := m.Watch(way); err != nil {
			w.Fatal(err)
		}
		if _, err := w.ec2.Cloud.AttachVolume(v.ID, m.ID, "/dev/xvdaa"); err != nil {
			w.Fatal(err)
		}
		seen, err := m.Watched(way)
		if err != nil {
			w.Fatal(err)
		}
		name, err := m.Await(v.ID)
		if err != nil {
			w.Fatal(err)
		}
		heard := slices.ContainsFunc(seen.Events, func(event string) bool { return strings.HasSuffix(event, name) })
		if seen.Path != "/dev/"+name || heard == way.NoEvents {
			w.Errorf("%+v: it is %s, and was found as %+v", way, name, seen)
		}
		w.awaitVolume(v.ID, attachment(cloud.Attached))
		if _, err := w.ec2.Cloud.DetachVolume(v.ID, m.ID, "", false); err != nil {
			w.Fatal(err)
		}
		w.awaitVolume(v.ID, available)
	}
}

// noDevice has EC2 say attached where the kernel shows nothing: the next volume
// is used, and this one quarantined.
func noDevice(w *world) {
	w.fill(2)
	m := w.boot(1)[0]
	fault := w.ec2.Inject(ec2sim.Fault{Kind: cloud.NoDevice, Volume: w.volumes[0]})
	defer fault.Clear()
	a, err := m.acquire(w.pool, "--attach-timeout", "8s")
	if err != nil {
		w.Fatal(err)
	}
	if a.Volume != w.volumes[1] || fault.Hits() != 1 {
		w.Errorf("%d attaches without a device, and then %s", fault.Hits(), a.text)
	}
	w.holds(m, a, "cold", 1)
	if a.Seconds.Total < 8 || a.Seconds.Total > 30 {
		w.Errorf("it took %.1f s, of which 8 were for the first volume", a.Seconds.Total)
	}
	w.awaitRecord(w.volumes[0], "quarantined")
	w.awaitVolume(w.volumes[0], available)
	if err := m.release(); err != nil {
		w.Fatal(err)
	}
	w.inOrder(w.volumes[1])
}

// deviceFirst holds AttachVolume's reply back until the guest has the device.
func deviceFirst(w *world) {
	w.fill(1)
	m := w.boot(1)[0]
	first := w.ec2.Inject(ec2sim.Fault{Kind: cloud.DeviceFirst, Volume: w.volumes[0]})
	defer first.Clear()
	hold := w.ec2.Inject(ec2sim.Fault{Kind: cloud.Hold, Action: "AttachVolume", Volume: w.volumes[0]})
	defer hold.Clear()
	type result struct {
		acquired
		err error
	}
	done := make(chan result, 1)
	go func() {
		a, err := m.acquire(w.pool)
		done <- result{a, err}
	}()
	if _, err := m.Await(w.volumes[0]); err != nil {
		w.Fatal(err)
	}
	w.await(func() bool { return hold.Waiting() == 1 || len(done) > 0 }, func() string { return "no reply is held back" })
	hold.Clear()
	r := <-done
	if r.err != nil {
		w.Fatal(r.err)
	}
	if first.Hits() != 1 || hold.Hits() != 1 {
		w.Errorf("%d devices came first, %d replies were held back: %s", first.Hits(), hold.Hits(), r.text)
	}
	w.holds(m, r.acquired, "cold", 1)
	if err := m.release(); err != nil {
		w.Fatal(err)
	}
	w.inOrder(w.volumes[0])
}

// busyDetach has somebody detach a volume that is mounted: EC2 waits for the
// guest to let go of it, and so does the machine.
func busyDetach(w *world) {
	w.fill(1)
	m := w.boot(1)[0]
	a, err := m.acquire(w.pool)
	if err != nil {
		w.Fatal(err)
	}
	w.awaitVolume(a.Volume, attachment(cloud.Attached))
	if _, err := w.ec2.Cloud.DetachVolume(a.Volume, m.ID, "", false); err != nil {
		w.Fatal(err)
	}
	w.awaitVolume(a.Volume, attachment(cloud.Busy))
	w.write(m)
	w.reads(m, m.ID)
	if err := m.release(); err != nil {
		w.Fatal(err)
	}
	w.inOrder(a.Volume)
}
