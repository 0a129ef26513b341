//go:build linux

package mount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"
)

// The tests work on real loop devices, shown in a small tree that is laid out as
// the kernel lays out an EBS volume.

const testVolume = "vol-0123456789abcdef0"

func needRoot(t testing.TB) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("CI") == "true":
		t.Fatal("needs root, for loop devices")
	default:
		t.Skip("skipped: needs root, for loop devices")
	}
}

// needTools skips where a package is not installed; in CI nothing may be missing.
func needTools(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := lookPath(tool); err == nil {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not installed", tool)
		}
		t.Skipf("skipped: %s is not installed", tool)
	}
}

// machine is a tree of disks of our own.
type machine struct {
	t    testing.TB
	root string
	host *Host
	cfg  Config
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	needRoot(t)
	root, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	m := &machine{t: t, root: root}
	for _, dir := range []string{"sys/block", "dev"} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	m.cfg = Config{SysfsRoot: filepath.Join(root, "sys"), DevRoot: filepath.Join(root, "dev"), Log: logOf(t)}
	m.host, err = New(m.cfg)
	must(t, err)
	return m
}

// point makes a mount point.
func (m *machine) point(name string) string {
	m.t.Helper()
	p := filepath.Join(m.root, name)
	must(m.t, os.MkdirAll(p, 0o755))
	m.t.Cleanup(func() {
		for unix.Unmount(p, unix.MNT_DETACH) == nil {
		}
	})
	return p
}

// loopDisk is a sparse file behind a loop device.
type loopDisk struct {
	m      *machine
	loop   *os.File
	file   string
	name   string // nvme1n1
	number uint64
}

// plug makes a disk and shows it as the volume.
func (m *machine) plug(name, volume string, size int64) *loopDisk {
	m.t.Helper()
	d := m.attach(name, size)
	d.show(strings.Replace(volume, "-", "", 1))
	return d
}

// attach makes the loop device and shows nobody.
func (m *machine) attach(name string, size int64) *loopDisk {
	m.t.Helper()
	file := filepath.Join(m.root, name+".img")
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	must(m.t, err)
	defer f.Close()
	must(m.t, f.Truncate(size))
	d := &loopDisk{m: m, file: file, name: name, loop: bindLoop(m.t, f)}
	var st unix.Stat_t
	must(m.t, unix.Fstat(int(d.loop.Fd()), &st))
	d.number = st.Rdev
	m.t.Cleanup(d.detach)
	return d
}

func bindLoop(t testing.TB, f *os.File) *os.File {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	must(t, err)
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		must(t, err)
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		must(t, err)
		// Past the file's page cache, as behind a real disk there is none.
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{Fd: uint32(f.Fd()), Size: 512,
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_DIRECT_IO}})
		if err == nil {
			// Read-only from here on: who holds it for writing keeps others out.
			again, err := os.Open(loop.Name())
			must(t, errors.Join(err, loop.Close()))
			return again
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) { // else somebody was faster
			must(t, err)
		}
	}
}

func (d *loopDisk) detach() {
	if d.loop == nil {
		return
	}
	_ = unix.IoctlSetInt(int(d.loop.Fd()), unix.LOOP_CLR_FD, 0)
	d.loop.Close()
	d.loop = nil
}

// show lays out the disk's folder, whole at once.
func (d *loopDisk) show(serial string) {
	t := d.m.t
	t.Helper()
	node := filepath.Join(d.m.host.dev, d.name)
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(d.number)); !errors.Is(err, unix.EEXIST) {
		must(t, err)
	}
	building := filepath.Join(d.m.root, "building-"+d.name)
	must(t, os.MkdirAll(filepath.Join(building, "device"), 0o755))
	size, err := blockSize(d.loop)
	must(t, err)
	files := map[string]string{
		"dev":          fmt.Sprintf("%d:%d\n", unix.Major(d.number), unix.Minor(d.number)),
		"size":         fmt.Sprintln(size >> 9),
		"device/model": fmt.Sprintf("%-40s\n", "Amazon Elastic Block Store"),
	}
	if serial != "" {
		files["device/serial"] = fmt.Sprintf("%-20s\n", serial)
	}
	for name, text := range files {
		must(t, os.WriteFile(filepath.Join(building, name), []byte(text), 0o644))
	}
	must(t, os.Rename(building, d.sysfs()))
}

func (d *loopDisk) hide() {
	d.m.t.Helper()
	must(d.m.t, os.Rename(d.sysfs(), filepath.Join(d.m.root, "gone-"+d.name)))
	must(d.m.t, os.Remove(filepath.Join(d.m.host.dev, d.name)))
}

func (d *loopDisk) sysfs() string { return filepath.Join(d.m.host.sysfs, "block", d.name) }

func (d *loopDisk) write(offset int64, b []byte) {
	d.m.t.Helper()
	f, err := os.OpenFile(d.loop.Name(), os.O_WRONLY|unix.O_SYNC, 0)
	must(d.m.t, err)
	defer f.Close()
	_, err = f.WriteAt(b, offset)
	must(d.m.t, err)
}

// written counts the bytes that the loop device has written so far. The counter
// goes on from the device's last use: take differences.
func (d *loopDisk) written() int64 {
	d.m.t.Helper()
	text, err := os.ReadFile("/sys/block/" + filepath.Base(d.loop.Name()) + "/stat")
	must(d.m.t, err)
	sectors, err := strconv.ParseInt(strings.Fields(string(text))[6], 10, 64)
	must(d.m.t, err)
	return sectors << 9
}

// find opens the volume's device.
func (m *machine) find(volume string) *Device {
	m.t.Helper()
	d, err := m.host.Find(m.t.Context(), Target{VolumeID: volume})
	must(m.t, err)
	m.t.Cleanup(func() { d.Close() })
	return d
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	return commandWith(t, "", name, args...)
}

func commandWith(t testing.TB, stdin, name string, args ...string) string {
	t.Helper()
	path, err := lookPath(name)
	must(t, err)
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func logOf(t testing.TB) *zap.Logger { return zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)) }
