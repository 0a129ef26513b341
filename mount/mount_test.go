//go:build linux

package mount

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const testUUID = "6b3f3f5e-62c5-4b7a-9a55-2f1d0c7a8e01"

// TestWholeLife goes the way of a volume: blank, formatted, mounted, given back,
// found again.
func TestWholeLife(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			needTools(t, "mkfs."+fsType)
			m := newMachine(t)
			m.plug("nvme1n1", testVolume, 1<<30)
			point := m.point("cache")
			must(t, os.WriteFile(filepath.Join(point, "before"), nil, 0o644))

			d := m.find(testVolume)
			found, err := d.Probe(t.Context())
			must(t, err)
			if found.Content != Blank {
				t.Fatalf("probe of a blank disk: %+v", found)
			}
			must(t, d.Format(t.Context(), fsType, testUUID))
			found, err = d.Probe(t.Context())
			must(t, err)
			if found.Content != HasData || found.FSType != fsType || found.FSUUID != testUUID || !found.Clean {
				t.Fatalf("probe after format: %+v", found)
			}
			must(t, d.Mount(t.Context(), point, MountOptions{FSType: fsType, Options: []string{"noatime"}}))
			mounted, ok, err := m.host.MountedAt(point)
			must(t, err)
			if !ok || mounted.VolumeID != testVolume || mounted.Source != d.Path() || mounted.FSType != fsType {
				t.Fatalf("mounted: %v %+v", ok, mounted)
			}
			entries, err := os.ReadDir(point)
			must(t, err)
			if len(entries) != 0 {
				t.Fatalf("a fresh cache holds %v", entries)
			}
			must(t, os.WriteFile(filepath.Join(point, "kept"), nil, 0o644))
			if used, err := d.InUse(); err != nil || !used {
				t.Fatalf("in use while mounted: %v %v", used, err)
			}
			must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
			if used, err := d.InUse(); err != nil || used {
				t.Fatalf("in use after unmount: %v %v", used, err)
			}
			if _, err := os.Stat(filepath.Join(point, "before")); err != nil {
				t.Fatal("what stood in the mount point is gone")
			}
			must(t, d.Close())

			d = m.find(testVolume)
			found, err = d.Probe(t.Context())
			must(t, err)
			if !found.Clean {
				t.Fatalf("not clean after unmount: %+v", found)
			}
			must(t, d.Mount(t.Context(), point, MountOptions{FSType: fsType}))
			if _, err := os.Stat(filepath.Join(point, "kept")); err != nil {
				t.Fatal("the cache's file is gone")
			}
			must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
		})
	}
}

func TestRootOnly(t *testing.T) {
	m, d, point := mountedCache(t)
	inside := filepath.Join(point, "inside")
	must(t, os.Mkdir(inside, 0o700))
	must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
	before := stat(t, point)

	root := Root{UID: new(1234), GID: new(4321), Mode: new(fs.FileMode(0o775) | fs.ModeSetgid)}
	must(t, d.Mount(t.Context(), point, MountOptions{FSType: "ext4", Root: root}))
	if st := stat(t, point); st.Uid != 1234 || st.Gid != 4321 || st.Mode&0o7777 != 0o2775 {
		t.Errorf("root: %d:%d %o", st.Uid, st.Gid, st.Mode)
	}
	if st := stat(t, inside); st.Uid != 0 || st.Mode&0o7777 != 0o700 {
		t.Errorf("inside: %d %o", st.Uid, st.Mode)
	}
	must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
	if st := stat(t, point); st.Uid != before.Uid || st.Mode != before.Mode {
		t.Errorf("the directory below was changed")
	}
	// The plain directory is treated alike.
	must(t, m.host.MakePoint(point, root))
	if st := stat(t, point); st.Uid != 1234 || st.Gid != 4321 || st.Mode&0o7777 != 0o2775 {
		t.Errorf("fallback: %d:%d %o", st.Uid, st.Gid, st.Mode)
	}
}

func stat(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	return info.Sys().(*syscall.Stat_t)
}

// TestLostAndFound goes where it is empty, and stays where files were recovered.
func TestLostAndFound(t *testing.T) {
	m, d, point := mountedCache(t)
	lost := filepath.Join(point, "lost+found")
	for _, files := range []int{0, 1} {
		must(t, os.Mkdir(lost, 0o700))
		for range files {
			must(t, os.WriteFile(filepath.Join(lost, "#12"), nil, 0o600))
		}
		must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
		must(t, d.Mount(t.Context(), point, MountOptions{FSType: "ext4"}))
		if _, err := os.Stat(lost); (err == nil) != (files > 0) {
			t.Errorf("with %d files: %v", files, err)
		}
	}
}

// TestGrows: the volume was enlarged since it was formatted. Where we lack the
// right to grow ext4, the mount succeeds as it is.
func TestGrows(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			needTools(t, "mkfs."+fsType, "blkid")
			m := newMachine(t)
			disk := m.plug("nvme1n1", testVolume, 1<<30)
			d, point := m.find(testVolume), m.point("cache")
			_, err := d.Probe(t.Context())
			must(t, err)
			must(t, d.Format(t.Context(), fsType, testUUID))
			must(t, d.Close())

			must(t, os.Truncate(disk.file, 20<<30))
			must(t, unix.IoctlSetInt(int(disk.loop.Fd()), unix.LOOP_SET_CAPACITY, 0))
			must(t, os.WriteFile(disk.sysfs()+"/size", []byte("41943040\n"), 0o644))
			d = m.find(testVolume)
			for range 2 { // the second time there is nothing to do
				must(t, d.Mount(t.Context(), point, MountOptions{FSType: fsType}))
				u, err := m.host.Usage(point)
				must(t, err)
				if may := fsType == "xfs" || mayGrowExt4(t); (u.TotalBytes > 19<<30) != may {
					t.Errorf("%d bytes of 20 GiB; may be grown: %v", u.TotalBytes, may)
				}
				must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
			}
			if fsType == "ext4" {
				command(t, "e2fsck", "-f", "-n", disk.loop.Name())
			} else {
				command(t, "xfs_repair", "-n", disk.loop.Name())
			}
		})
	}
}

// mayGrowExt4: it takes CAP_SYS_RESOURCE, which root in a container may lack.
func mayGrowExt4(t *testing.T) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	must(t, unix.Capget(&header, &data[0]))
	may := data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
	if !may {
		t.Log("without CAP_SYS_RESOURCE: ext4 is not grown")
	}
	return may
}

// TestTwinUUIDs: volumes made from one snapshot, both mounted.
func TestTwinUUIDs(t *testing.T) {
	const second = "vol-0bbbbbbbbbbbbbbbb"
	needTools(t, "mkfs.xfs", "blkid")
	m := newMachine(t)
	disk := m.plug("nvme1n1", testVolume, 512*mib)
	byTool("mkfs.xfs", "-q")(disk)
	m.copied(disk, "nvme2n1", second)
	must(t, m.find(testVolume).Mount(t.Context(), m.point("one"), MountOptions{FSType: "xfs"}))
	must(t, m.find(second).Mount(t.Context(), m.point("two"), MountOptions{FSType: "xfs"}))
}

func TestMountRefuses(t *testing.T) {
	m, d, point := mountedCache(t)
	file := filepath.Join(m.root, "file")
	must(t, os.WriteFile(file, nil, 0o644))
	link := filepath.Join(m.root, "link")
	must(t, os.Symlink(point, link))
	for where, want := range map[string]error{
		point:                         ErrAlreadyMounted,
		link:                          ErrAlreadyMounted,
		file:                          ErrNotDirectory,
		filepath.Join(m.root, "none"): fs.ErrNotExist,
	} {
		if err := d.Mount(t.Context(), where, MountOptions{FSType: "ext4"}); !errors.Is(err, want) {
			t.Errorf("mount at %s: %v, want %v", where, err, want)
		}
	}
	must(t, m.host.Unmount(t.Context(), link, UnmountOptions{}))

	// Neither of these speaks against the volume.
	for _, opt := range []MountOptions{
		{FSType: "ext4", Options: []string{"no-such-option"}},
		{FSType: "no-such-filesystem"},
		{FSType: "xfs"},
	} {
		err := d.Mount(t.Context(), point, opt)
		if _, blamed := errors.AsType[*VolumeError](err); err == nil || blamed {
			t.Errorf("mount %+v: %v", opt, err)
		}
	}
	if _, mounted, err := m.host.MountedAt(point); err != nil || mounted {
		t.Errorf("left mounted: %v %v", mounted, err)
	}
}

// TestMountBlamesTheVolume whose filesystem the kernel finds damaged.
func TestMountBlamesTheVolume(t *testing.T) {
	m, d, point := mountedCache(t)
	must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
	disk, err := m.host.lookUp(Target{VolumeID: testVolume})
	must(t, err)
	f, err := os.OpenFile(filepath.Join(m.host.dev, disk.name), os.O_WRONLY|unix.O_SYNC, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("rubbish"), 1024+0x78) // the volume's label: the superblock's checksum is wrong now
	must(t, errors.Join(err, f.Close()))
	err = d.Mount(t.Context(), point, MountOptions{FSType: "ext4"})
	if _, blamed := errors.AsType[*VolumeError](err); !blamed {
		t.Errorf("mount: %v, want the volume to blame", err)
	}
}

func TestMakePoint(t *testing.T) {
	m := newMachine(t)
	deep := filepath.Join(m.root, "a/b c/cache")
	must(t, m.host.MakePoint(deep, Root{}))
	must(t, os.WriteFile(filepath.Join(deep, "stays"), nil, 0o644))
	must(t, m.host.MakePoint(deep, Root{}))
	if entries, err := os.ReadDir(deep); err != nil || len(entries) != 1 {
		t.Errorf("after a second time: %v %v", entries, err)
	}

	file := filepath.Join(m.root, "file")
	must(t, os.WriteFile(file, nil, 0o644))
	readOnly := m.point("read-only")
	must(t, unix.Mount("tmpfs", readOnly, "tmpfs", 0, ""))
	must(t, os.Mkdir(filepath.Join(readOnly, "inside"), 0o755))
	must(t, unix.Mount("", readOnly, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	for where, want := range map[string]error{
		file:                               ErrNotDirectory,
		filepath.Join(file, "below"):       ErrNotDirectory,
		readOnly:                           ErrAlreadyMounted,
		filepath.Join(readOnly, "inside"):  unix.EROFS,
		filepath.Join(readOnly, "another"): unix.EROFS,
	} {
		if err := m.host.MakePoint(where, Root{}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", where, err, want)
		}
	}
}

func TestBindMount(t *testing.T) {
	m, _, volume := mountedCache(t)
	point := m.point("point")
	dir := filepath.Join(m.root, "fallback")
	if err := m.host.BindMount(volume, point, Root{}); !errors.Is(err, ErrWholeVolume) {
		t.Errorf("a whole volume: %v", err)
	}
	must(t, m.host.BindMount(dir, point, Root{Mode: new(fs.FileMode(0o777))}))
	mounted, ok, err := m.host.MountedAt(point)
	must(t, err)
	if !ok || mounted.VolumeID != "" || stat(t, point).Mode&0o7777 != 0o777 {
		t.Errorf("bound: %v %+v %o", ok, mounted, stat(t, point).Mode)
	}
	if err := m.host.BindMount(dir, point, Root{}); !errors.Is(err, ErrAlreadyMounted) {
		t.Errorf("once more: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(point, "kept"), nil, 0o644))
	must(t, m.host.Unmount(t.Context(), point, UnmountOptions{})) // and asks no disk for a proof
	if _, err := os.Stat(filepath.Join(dir, "kept")); err != nil {
		t.Error(err)
	}
	// A directory of a volume may be shown, and is not taken for the volume.
	must(t, m.host.BindMount(filepath.Join(volume, "dir"), point, Root{}))
	if mounted, _, err := m.host.MountedAt(point); err != nil || mounted.VolumeID != "" {
		t.Errorf("bound from a volume: %+v %v", mounted, err)
	}
	must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
}

// TestMountIsVerified: the kernel said yes, but mountinfo does not show it. Here
// that is so because the mount is in a namespace of the thread's own.
func TestMountIsVerified(t *testing.T) {
	m, d, point := mountedCache(t)
	must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		inOwnNamespace(t)
		if err := d.Mount(t.Context(), point, MountOptions{FSType: "ext4"}); !errors.Is(err, ErrGone) {
			t.Errorf("mount: %v, want ErrGone", err)
		}
	}()
	<-done
	if used, err := d.InUse(); err != nil || used {
		t.Errorf("left mounted: %v %v", used, err)
	}
}

// inOwnNamespace gives the goroutine's thread, which ends with it, a mount
// namespace.
func inOwnNamespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // and never unlocked: the thread is thrown away
	if err := errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")); err != nil {
		t.Error(err)
	}
}
