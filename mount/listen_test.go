//go:build linux

package mount

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// announce makes the kernel send its event for the disk's loop device.
func (d *loopDisk) announce() {
	d.m.t.Helper()
	must(d.m.t, os.WriteFile("/sys/block/"+filepath.Base(d.loop.Name())+"/uevent", []byte("add"), 0))
}

// only is a machine that learns of devices in one way.
func (m *machine) only(change func(*Config)) *Listener {
	m.t.Helper()
	cfg := m.cfg
	change(&cfg)
	h, err := New(cfg)
	must(m.t, err)
	l, err := h.Listen()
	must(m.t, err)
	m.t.Cleanup(func() { must(m.t, l.Close()) })
	return l
}

// awaited starts a Wait, and returns once it is known to wait.
func awaited(t *testing.T, l *Listener, target Target) <-chan any {
	t.Helper()
	result := make(chan any, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	go func() {
		d, err := l.Wait(ctx, target)
		if err != nil {
			result <- err
			return
		}
		result <- d
	}()
	return result
}

func arrived(t *testing.T, result <-chan any) *Device {
	t.Helper()
	switch r := (<-result).(type) {
	case *Device:
		t.Cleanup(func() { r.Close() })
		return r
	default:
		t.Fatal(r)
		return nil
	}
}

func TestWait(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"by events and ticker": func(*Config) {},
		"by events alone":      func(c *Config) { c.NoRescan = true },
		"by the ticker alone":  func(c *Config) { c.NoEvents = true },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			l := m.only(change)
			disk := m.attach("nvme1n1", 1<<30)
			result := awaited(t, l, Target{VolumeID: testVolume})
			disk.show("vol0123456789abcdef0")
			disk.announce()
			d := arrived(t, result)
			if d.VolumeID() != testVolume || d.SizeGiB() != 1 || d.Path() != filepath.Join(m.cfg.DevRoot, "nvme1n1") {
				t.Errorf("found %s %d %s", d.VolumeID(), d.SizeGiB(), d.Path())
			}
			if _, err := l.Wait(t.Context(), Target{VolumeID: "nvme1n1"}); err == nil {
				t.Error("a name is taken for a volume id")
			}
		})
	}
}

// TestWaitRidesOutBirth: folder, node, serial and size appear one after another.
func TestWaitRidesOutBirth(t *testing.T) {
	m := newMachine(t)
	l := m.only(func(*Config) {})
	disk := m.attach("nvme1n1", 1<<30)
	node := filepath.Join(m.host.dev, "nvme1n1")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()

	disk.show("")
	if _, err := l.Wait(ctx, Target{VolumeID: testVolume}); !errors.Is(err, ErrNoDevice) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no serial yet: %v", err)
	}
	must(t, os.WriteFile(disk.sysfs()+"/device/serial", []byte("vol0123456789abcdef0\n"), 0o644))
	must(t, os.WriteFile(disk.sysfs()+"/size", []byte("0\n"), 0o644))
	if _, err := l.Wait(ctx, Target{VolumeID: testVolume}); !errors.Is(err, ErrGone) {
		t.Errorf("no size yet: %v", err)
	}
	must(t, os.WriteFile(disk.sysfs()+"/size", []byte("2097152\n"), 0o644))
	must(t, os.Rename(node, node+"-later"))
	if _, err := l.Wait(ctx, Target{VolumeID: testVolume}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no node yet: %v", err)
	}
	must(t, os.Rename(node+"-later", node))
	arrived(t, awaited(t, l, Target{VolumeID: testVolume}))
}

func TestFind(t *testing.T) {
	const second, absent = "vol-0bbbbbbbbbbbbbbbb", "vol-0cccccccccccccccc"
	m := newMachine(t)
	m.plug("nvme2n1", testVolume, 1<<30)
	m.attach("nvme3n1", 1<<30).show(second) // with the dash
	m.attach("nvme0n1", 1<<30).show("AWS22AAAAAAAAAAAAAAA")
	xen := m.attach("xvdaa", 1<<30)
	xen.show("")

	for target, want := range map[Target]string{
		{VolumeID: testVolume}:                       "nvme2n1",
		{VolumeID: "vol0123456789abcdef0"}:           "nvme2n1",
		{VolumeID: second}:                           "nvme3n1",
		{VolumeID: second, AttachName: "/dev/xvdaa"}: "nvme3n1", // the serial counts
		{VolumeID: absent, AttachName: "xvdaa"}:      "xvdaa",
		{VolumeID: absent, AttachName: "/dev/xvdaa"}: "xvdaa",
	} {
		d, err := m.host.Find(t.Context(), target)
		if err != nil {
			t.Errorf("%+v: %v", target, err)
			continue
		}
		if filepath.Base(d.Path()) != want {
			t.Errorf("%+v: %s, want %s", target, d.Path(), want)
		}
		must(t, d.Close())
	}
	for _, target := range []Target{
		{VolumeID: absent},
		{VolumeID: absent, AttachName: "xvdab"},
		{VolumeID: absent, AttachName: "nvme0n1"}, // never by an NVMe name
		{VolumeID: absent, AttachName: "xvdaa/../xvdaa"},
	} {
		if _, err := m.host.Find(t.Context(), target); !errors.Is(err, ErrNoDevice) {
			t.Errorf("%+v: %v, want ErrNoDevice", target, err)
		}
	}

	m.plug("nvme4n1", testVolume, 1<<30)
	if _, err := m.host.Find(t.Context(), Target{VolumeID: testVolume}); err == nil || !strings.Contains(err.Error(), "both") {
		t.Errorf("two disks with one serial: %v", err)
	}
}

// TestOneHasIt: the second to come waits for the first to close.
func TestOneHasIt(t *testing.T) {
	m := newMachine(t)
	l := m.only(func(*Config) {})
	m.plug("nvme1n1", testVolume, 1<<30)
	first, err := m.host.Find(t.Context(), Target{VolumeID: testVolume})
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := l.Wait(ctx, Target{VolumeID: testVolume}); !errors.Is(err, ErrLocked) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second: %v, want ErrLocked at the deadline", err)
	}
	if _, err := l.Wait(t.Context(), Target{VolumeID: testVolume}); !errors.Is(err, ErrLocked) || t.Context().Err() != nil {
		t.Errorf("second, without a deadline: %v, want ErrLocked", err)
	}
	result := awaited(t, l, Target{VolumeID: testVolume})
	must(t, first.Close())
	arrived(t, result)
}

func TestGone(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"by events":     func(c *Config) { c.NoRescan = true },
		"by the ticker": func(c *Config) { c.NoEvents = true },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			l := m.only(change)
			disk := m.plug("nvme1n1", testVolume, 1<<30)
			d := m.find(testVolume)
			must(t, d.Close()) // no need to keep it open
			stopped, stop := context.WithCancel(t.Context())
			stop()
			if err := l.Gone(stopped, d); !errors.Is(err, context.Canceled) {
				t.Errorf("while it is there: %v", err)
			}
			gone := make(chan error, 1)
			go func() { gone <- l.Gone(t.Context(), d) }()
			disk.hide()
			disk.announce()
			if err := <-gone; !errors.Is(err, ErrGone) {
				t.Errorf("after it went: %v", err)
			}
		})
	}
}

func TestVolumes(t *testing.T) {
	const root, unused, mounted, locked, parted = "vol-00000000000000001", "vol-00000000000000002", "vol-00000000000000003", "vol-00000000000000004", "vol-00000000000000005"
	needTools(t, "mkfs.ext4", "addpart", "delpart")
	m := newMachine(t)
	// As the simulator shows it: a tree without a node.
	m.plug("nvme0n1", root, 1<<30)
	must(t, os.Remove(filepath.Join(m.host.dev, "nvme0n1")))
	m.plug("nvme1n1", unused, 1<<30)
	disk := m.plug("nvme2n1", mounted, 1<<30)
	byTool("mkfs.ext4", "-q")(disk)
	must(t, m.find(mounted).Mount(t.Context(), m.point("cache"), MountOptions{FSType: "ext4"}))
	m.plug("nvme3n1", locked, 1<<30)
	m.find(locked)
	m.attach("nvme4n1", 1<<30).show("AWS22AAAAAAAAAAAAAAA") // instance store
	m.mountPartition(m.plug("nvme5n1", parted, 1<<30))

	volumes, err := m.host.Volumes()
	must(t, err)
	got := map[string]bool{}
	for _, v := range volumes {
		got[v.VolumeID] = v.Mounted
		if v.Model != "Amazon Elastic Block Store" {
			t.Errorf("model of %s: %q", v.VolumeID, v.Model)
		}
	}
	want := map[string]bool{root: true, unused: false, mounted: true, locked: true, parted: true}
	if len(got) != len(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for id, use := range want {
		if in, listed := got[id]; !listed || in != use {
			t.Errorf("%s: listed %v, in use %v, want %v", id, listed, in, use)
		}
	}
}

// mountPartition uses only a partition, which only the kernel knows of: it is
// not in our tree.
func (m *machine) mountPartition(d *loopDisk) {
	m.t.Helper()
	info, err := unix.IoctlLoopGetStatus64(int(d.loop.Fd()))
	must(m.t, err)
	info.Flags |= unix.LO_FLAGS_PARTSCAN
	must(m.t, unix.IoctlLoopSetStatus64(int(d.loop.Fd()), info))
	partition := d.loop.Name() + "p1"
	command(m.t, "addpart", d.loop.Name(), "1", "2048", "1048576") // a kernel may read no tables
	m.t.Cleanup(func() { command(m.t, "delpart", d.loop.Name(), "1") })
	command(m.t, "mkfs.ext4", "-q", partition)
	must(m.t, unix.Mount(partition, m.point("partition"), "ext4", 0, ""))
}
