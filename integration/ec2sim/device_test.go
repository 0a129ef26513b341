package ec2sim_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/volpool/volpool/integration/ec2sim"
	"github.com/volpool/volpool/integration/ec2sim/cloud"
	"github.com/volpool/volpool/integration/ec2sim/loopdev"
	"golang.org/x/sys/unix"
)

// loopWorld is a world whose volumes are loop devices; events tells of them.
func loopWorld(t *testing.T, cfg ec2sim.Config) (w *world, events <-chan ec2sim.DeviceEvent) {
	t.Helper()
	if err := loopdev.Supported(); err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	backend, err := loopdev.New(loopdev.Config{})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan ec2sim.DeviceEvent, 100)
	cfg.Backend = backend
	cfg.OnDevice = func(e ec2sim.DeviceEvent) { seen <- e }
	sim := start(t, cfg)
	return &world{Client: client(sim), t: t, ctx: t.Context(), sim: sim}, seen
}

// A volume's content is on the next instance what it was on the last, and while
// anybody has the device, in a mount namespace of whatever kind, it stays.
func TestVolumeMovesBetweenInstances(t *testing.T) {
	w, events := loopWorld(t, ec2sim.Config{})
	v := createVolume(t, w.sim, ec2sim.CreateVolumeInput{})
	one, two := w.running(), w.running()

	w.must(w.attach(v, one, "/dev/xvdaa"))
	shown := <-events
	if shown.Instance != one || shown.Volume != v || shown.Device.Name != "nvme1n1" || shown.Gone {
		t.Errorf("event %+v", shown)
	}
	instance := w.sim.Instance(one)
	serial, err := os.ReadFile(filepath.Join(instance.SysfsRoot, "block", shown.Device.Name, "device/serial"))
	if err != nil || string(serial) != "vol"+v[len("vol-"):]+"\n" {
		t.Errorf("serial %q, %v", serial, err)
	}
	f, err := os.OpenFile(filepath.Join(instance.DevRoot, shown.Device.Name), os.O_RDWR|unix.O_EXCL, 0)
	w.must(err)
	defer f.Close()
	_, err = f.WriteString("warm")
	w.must(err)
	await(t, w.sim, v, cloud.Attached)

	w.must(w.detach(v, one))
	await(t, w.sim, v, cloud.Busy)
	if err := w.attach(v, two, "/dev/xvdaa"); code(err) != "VolumeInUse" {
		t.Errorf("attach while busy: %v", err)
	}
	w.must(f.Close())
	await(t, w.sim, v, "")
	if gone := <-events; !gone.Gone || gone.Instance != one {
		t.Errorf("event %+v", gone)
	}

	w.must(w.attach(v, two, "/dev/xvdaa"))
	shown = <-events
	content := make([]byte, 4)
	g, err := os.Open(shown.Device.Path)
	w.must(err)
	defer g.Close()
	if _, err := g.Read(content); err != nil || string(content) != "warm" {
		t.Errorf("read %q, %v", content, err)
	}
}

// The instance is gone, its mount is not: the volume has to wait.
func TestTerminatedInstanceKeepsWhatIsInUse(t *testing.T) {
	w, events := loopWorld(t, ec2sim.Config{})
	i := w.running()
	v := w.attached(i)
	f, err := os.OpenFile((<-events).Device.Path, os.O_RDONLY|unix.O_EXCL, 0)
	w.must(err)
	defer f.Close()
	w.must(w.sim.Terminate(i))
	await(t, w.sim, v, cloud.Busy)
	w.must(f.Close())
	await(t, w.sim, v, "")
}

func TestStoppedInstanceHasNoDevices(t *testing.T) {
	w, events := loopWorld(t, ec2sim.Config{})
	i := w.running()
	v := w.attached(i)
	path := (<-events).Device.Path
	w.must(w.sim.Stop(i))
	if gone := <-events; !gone.Gone {
		t.Errorf("event %+v", gone)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the node is left: %v", err)
	}
	if got := attachmentState(w.sim, v); got != cloud.Attached {
		t.Errorf("state %s", got)
	}
	w.must(w.sim.Start(i))
	if back := <-events; back.Gone || back.Volume != v {
		t.Errorf("event %+v", back)
	}
}

func TestGrownVolumeIsSeen(t *testing.T) {
	w, events := loopWorld(t, ec2sim.Config{})
	i := w.running()
	v := w.attached(i)
	shown := <-events
	w.must(w.modify(v, 20))
	w.must(w.sim.Wait(w.ctx, func() bool { v, _ := w.sim.Volume(v); return v.SizeGiB == 20 }))
	size, err := os.ReadFile(filepath.Join(w.sim.Instance(i).SysfsRoot, "block", shown.Device.Name, "size"))
	if err != nil || string(size) != "41943040\n" {
		t.Errorf("size %q, %v", size, err)
	}
}

// The kernel's own event for block devices comes when the device can be seen.
func TestKernelTellsOfTheDevice(t *testing.T) {
	w, events := loopWorld(t, ec2sim.Config{})
	i, v := w.running(), w.volume()
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	w.must(err)
	defer unix.Close(s)
	w.must(unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}))
	w.must(unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	w.must(w.attach(v, i, "/dev/xvdaa"))
	device := (<-events).Device
	sysfs := filepath.Join(w.sim.Instance(i).SysfsRoot, "block", device.Name, "dev")
	buffer := make([]byte, 8192)
	for {
		n, _, err := unix.Recvfrom(s, buffer, 0)
		if err != nil {
			t.Fatalf("no event of subsystem block that is an addition: %v", err)
		}
		if isAddition(buffer[:n]) {
			break
		}
	}
	if _, err := os.Stat(sysfs); err != nil {
		t.Error(err)
	}
}

func TestCloseGivesEverythingBack(t *testing.T) {
	w, events := loopWorld(t, ec2sim.Config{Timing: ec2sim.Timing{Detach: ec2sim.Span{Base: time.Hour}}})
	i := w.running()
	one, two := w.attached(i), w.volume()
	w.must(w.attach(two, i, "/dev/xvdab"))
	path := (<-events).Device.Path
	<-events
	w.must(w.detach(one, i))
	w.must(w.sim.Close())
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the node is left: %v", err)
	}
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	w.must(err)
	for _, file := range files {
		text, _ := os.ReadFile(file)
		if filepath.Base(string(text)) == one+".img\n" || filepath.Base(string(text)) == two+".img\n" {
			t.Errorf("%s is left: %s", file, text)
		}
	}
}

func isAddition(event []byte) bool {
	return bytes.HasPrefix(event, []byte("add@/devices/virtual/block/loop")) && bytes.Contains(event, []byte("SUBSYSTEM=block\x00"))
}
