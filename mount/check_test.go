//go:build linux

package mount

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// copied makes another disk of what the first has on it now, as a volume looks
// whose instance was terminated without a word.
func (m *machine) copied(d *loopDisk, name, volume string) *loopDisk {
	m.t.Helper()
	from, err := os.Open(d.file)
	must(m.t, err)
	defer from.Close()
	info, err := from.Stat()
	must(m.t, err)
	to, err := os.Create(filepath.Join(m.root, name+".img"))
	must(m.t, err)
	defer to.Close()
	_, err = io.Copy(to, from)
	must(m.t, err)
	return m.plug(name, volume, info.Size())
}

// TestCheckRepairs: a filesystem that was mounted when its machine died.
func TestCheckRepairs(t *testing.T) {
	const second = "vol-0bbbbbbbbbbbbbbbb"
	needTools(t, "mkfs.ext4", "e2fsck", "blkid")
	m := newMachine(t)
	disk := m.plug("nvme1n1", testVolume, 256*mib)
	d, point := m.find(testVolume), m.point("cache")
	_, err := d.Probe(t.Context())
	must(t, err)
	must(t, d.Format(t.Context(), "ext4", testUUID))
	must(t, d.Mount(t.Context(), point, MountOptions{FSType: "ext4"}))
	must(t, os.WriteFile(filepath.Join(point, "kept"), []byte("x"), 0o644))
	unix.Sync()
	m.copied(disk, "nvme2n1", second)
	must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))

	d = m.find(second)
	found, err := d.Probe(t.Context())
	must(t, err)
	if found.Content != HasData || found.Clean {
		t.Fatalf("probe of a dirty filesystem: %+v", found)
	}
	checked, err := d.Check(t.Context(), found.FSType)
	must(t, err)
	t.Logf("%+v", checked)
	if found, err = d.Probe(t.Context()); err != nil || !found.Clean {
		t.Errorf("after the check: %+v %v", found, err)
	}
	must(t, d.Mount(t.Context(), point, MountOptions{FSType: "ext4"}))
	if _, err := os.Stat(filepath.Join(point, "kept")); err != nil {
		t.Error(err)
	}
	must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
}

// TestCheckRefuses what only a person could repair: the volume's fault.
func TestCheckRefuses(t *testing.T) {
	needTools(t, "mkfs.ext4", "e2fsck", "blkid", "debugfs")
	m := newMachine(t)
	disk := m.plug("nvme1n1", testVolume, 256*mib)
	byTool("mkfs.ext4", "-q")(disk)
	command(t, "debugfs", "-w", "-R", "clri <2>", disk.loop.Name()) // the root directory
	command(t, "debugfs", "-w", "-R", "ssv state 0", disk.loop.Name())
	d := m.find(testVolume)
	if found, err := d.Probe(t.Context()); err != nil || found.Clean {
		t.Errorf("probe: %+v %v", found, err)
	}
	_, err := d.Check(t.Context(), "ext4")
	if _, ok := errors.AsType[*VolumeError](err); !ok || !errors.Is(err, ErrBadFilesystem) {
		t.Errorf("check: %v, want the volume to blame", err)
	}
}

// TestCheckByAnOldTool: it knows less than who made the filesystem, and that
// says nothing against the volume.
func TestCheckByAnOldTool(t *testing.T) {
	needTools(t, "mkfs.ext4", "e2fsck")
	m := newMachine(t)
	disk := m.plug("nvme1n1", testVolume, 256*mib)
	byTool("mkfs.ext4", "-q")(disk)
	// An incompatible feature of the future, and a filesystem left dirty.
	command(t, "debugfs", "-w", "-R", "ssv feature_incompat 0x4000242", disk.loop.Name())
	_, err := m.find(testVolume).Check(t.Context(), "ext4")
	if _, blamed := errors.AsType[*VolumeError](err); err == nil || blamed {
		t.Errorf("check: %v, want the machine to blame", err)
	}
}

func TestCheckLeavesXFSToTheKernel(t *testing.T) {
	m := newMachine(t)
	m.plug("nvme1n1", testVolume, 256*mib)
	if checked, err := m.find(testVolume).Check(t.Context(), "xfs"); err != nil || checked.Repaired {
		t.Errorf("check: %+v %v", checked, err)
	}
}
