//go:build linux

package mount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFormatWritesLittle on 100 GiB: what mkfs.ext4 does by default is a hundred
// times that, and goes on after the mount.
func TestFormatWritesLittle(t *testing.T) {
	needTools(t, "mkfs.ext4", "blkid")
	m := newMachine(t)
	disk := m.plug("nvme1n1", testVolume, 100<<30)
	d, point := m.find(testVolume), m.point("cache")
	_, err := d.Probe(t.Context())
	must(t, err)
	before := disk.written()
	must(t, d.Format(t.Context(), "ext4", testUUID))
	if wrote := disk.written() - before; wrote > 56*mib/10 {
		t.Errorf("format wrote %d bytes, want 5.6 MiB at most", wrote)
	}
	must(t, d.Mount(t.Context(), point, MountOptions{FSType: "ext4"}))
	u, err := m.host.Usage(point)
	must(t, err)
	if u.UsedPercent > 1 || u.InodesPercent > 1 || u.FreeBytes < 97<<30 {
		t.Errorf("usage of a fresh filesystem: %+v", u)
	}
	must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
	command(t, "e2fsck", "-f", "-n", disk.loop.Name())
}

// TestFormatFeatures: neither mke2fs.conf nor a newer tool adds one.
func TestFormatFeatures(t *testing.T) {
	needTools(t, "mkfs.ext4", "blkid", "dumpe2fs")
	m := newMachine(t)
	disk := m.plug("nvme1n1", testVolume, 1<<30)
	d := m.find(testVolume)
	conf := filepath.Join(t.TempDir(), "mke2fs.conf")
	must(t, os.WriteFile(conf, []byte("[defaults]\nbase_features = orphan_file\nblocksize = 1024\n[fs_types]\next4 = { features = orphan_file,quota\n}\n"), 0o644))
	t.Setenv("MKE2FS_CONFIG", conf)
	_, err := d.Probe(t.Context())
	must(t, err)
	must(t, d.Format(t.Context(), "ext4", testUUID))
	var got []string
	for line := range strings.Lines(command(t, "dumpe2fs", "-h", disk.loop.Name())) {
		if list, ok := strings.CutPrefix(line, "Filesystem features:"); ok {
			got = strings.Fields(list)
		}
	}
	want := strings.Split(strings.TrimPrefix(ext4Features, "none,"), ",")
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("features %q, want %q", got, want)
	}
}

// fakeTool puts a script before the real tools.
func fakeTool(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// TestOldMkfs does not know assume_storage_prezeroed.
func TestOldMkfs(t *testing.T) {
	needTools(t, "mkfs.ext4", "blkid")
	real, err := lookPath("mkfs.ext4")
	must(t, err)
	fakeTool(t, "mkfs.ext4", fmt.Sprintf(`
case "$*" in *prezeroed*) echo "Bad option(s) specified: assume_storage_prezeroed" >&2; exit 1;; esac
exec %s "$@"`, real))
	m := newMachine(t)
	m.plug("nvme1n1", testVolume, 1<<30)
	d := m.find(testVolume)
	_, err = d.Probe(t.Context())
	must(t, err)
	must(t, d.Format(t.Context(), "ext4", testUUID))
}

// TestFormatFails with the tool's words, and not as the volume's fault.
func TestFormatFails(t *testing.T) {
	needTools(t, "mkfs.ext4", "blkid")
	fakeTool(t, "mkfs.ext4", "echo 'mke2fs: out of memory' >&2\nexit 1\n")
	m := newMachine(t)
	m.plug("nvme1n1", testVolume, 1<<30)
	d := m.find(testVolume)
	_, err := d.Probe(t.Context())
	must(t, err)
	if err := d.Format(t.Context(), "btrfs", testUUID); err == nil {
		t.Error("btrfs is made")
	}
	err = d.Format(t.Context(), "ext4", testUUID)
	tool, ok := errors.AsType[*ToolError](err)
	if !ok || tool.Exit != 1 || !strings.Contains(err.Error(), "mke2fs: out of memory") {
		t.Errorf("format: %v", err)
	}
	if _, ok := errors.AsType[*VolumeError](err); ok {
		t.Errorf("the volume is blamed: %v", err)
	}
	if err := d.Format(t.Context(), "ext4", testUUID); !errors.Is(err, ErrNotBlank) {
		t.Errorf("once more, without a new proof: %v", err)
	}
}

// TestOverwrite: half-formatted volumes with our mark are formatted again, and
// nothing of what they held is found beside the new filesystem.
func TestOverwrite(t *testing.T) {
	for name, held := range map[string]row{
		"half-formatted": {make: makeHalf},
		"xfs":            {make: byTool("mkfs.xfs", "-q"), tools: []string{"mkfs.xfs"}},
		"btrfs":          {make: byTool("mkfs.btrfs", "-q"), tools: []string{"mkfs.btrfs"}},
		"md at the end":  {make: makeMD090},
		"GPT":            {make: makeTable("label: gpt\n,,\n"), tools: []string{"sfdisk"}},
	} {
		for _, fsType := range []string{"ext4", "xfs"} {
			t.Run(name+" by "+fsType, func(t *testing.T) {
				needTools(t, append(held.tools, "mkfs.ext4", "mkfs.xfs", "blkid")...)
				m := newMachine(t)
				held.make(m.plug("nvme1n1", testVolume, matrixSize))
				d, point := m.find(testVolume), m.point("cache")
				if found, err := d.Probe(t.Context()); err != nil || found.Content != HasData {
					t.Fatalf("probe: %+v %v", found, err)
				}
				must(t, d.Overwrite(t.Context(), fsType, testUUID))
				found, err := d.Probe(t.Context())
				must(t, err)
				if found.FSType != fsType || found.FSUUID != testUUID {
					t.Errorf("afterwards: %+v", found)
				}
				must(t, d.Mount(t.Context(), point, MountOptions{FSType: fsType}))
				must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
			})
		}
	}
}

// TestSmallDisks: smaller than the samples at their ends.
func TestSmallDisks(t *testing.T) {
	needTools(t, "mkfs.ext4", "blkid")
	for _, size := range []int64{8 * mib, 20 * mib, 20*mib + 512} {
		m := newMachine(t)
		disk := m.plug("nvme1n1", testVolume, size)
		d, point := m.find(testVolume), m.point("cache")
		disk.write(size-1, []byte{1})
		if found, err := d.Probe(t.Context()); err != nil || found.Content != HasData {
			t.Errorf("disk of %d with its last byte set: %+v %v", size, found, err)
		}
		must(t, d.Overwrite(t.Context(), "ext4", testUUID))
		must(t, d.erase())
		found, err := d.Probe(t.Context())
		must(t, err)
		if found.Content != Blank {
			t.Fatalf("disk of %d, erased: %+v", size, found)
		}
		must(t, d.Format(t.Context(), "ext4", testUUID))
		must(t, d.Mount(t.Context(), point, MountOptions{FSType: "ext4"}))
		must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
	}
}

// TestMissingTools: this machine's fault, with the tool's name. It runs itself
// once more, in a mount namespace where the folders of tools are empty.
func TestMissingTools(t *testing.T) {
	m := newMachine(t)
	if os.Getenv("VOLPOOL_TEST_BARE") == "" {
		self, err := os.Executable()
		must(t, err)
		cmd := exec.Command(self, "-test.run=^TestMissingTools$")
		cmd.Env = append(os.Environ(), "VOLPOOL_TEST_BARE=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	m.plug("nvme1n1", testVolume, 1<<30)
	d := m.find(testVolume)
	for _, dir := range []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"} {
		must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
	}
	found, err := d.Probe(t.Context())
	if !isMissing(err, "blkid") || found.Content != Unknown {
		t.Errorf("probe: %+v %v", found, err)
	}
	d.blank = true
	if err := d.Format(t.Context(), "ext4", testUUID); !isMissing(err, "mkfs.ext4") {
		t.Errorf("format: %v", err)
	}
	if err := d.Overwrite(t.Context(), "xfs", testUUID); !isMissing(err, "mkfs.xfs") {
		t.Errorf("overwrite: %v", err)
	}
	if _, err := d.Check(t.Context(), "ext4"); !isMissing(err, "e2fsck") {
		t.Errorf("check: %v", err)
	}
}

func isMissing(err error, tool string) bool {
	m, ok := errors.AsType[*MissingToolError](err)
	return ok && m.Tool == tool
}
