package loopdev_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/volpool/volpool/integration/ec2sim/cloud"
	"github.com/volpool/volpool/integration/ec2sim/loopdev"
	"golang.org/x/sys/unix"
)

const (
	volume = "vol-0123456789abcdef0"
	one    = "i-00000000000000001"
	two    = "i-00000000000000002"
)

func backend(t *testing.T, dir string) *loopdev.Backend {
	t.Helper()
	if err := loopdev.Supported(); err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	b, err := loopdev.New(loopdev.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func boot(t *testing.T, b *loopdev.Backend, instance string) cloud.Roots {
	t.Helper()
	roots, err := b.Boot(instance)
	if err != nil {
		t.Fatal(err)
	}
	return roots
}

func provide(t *testing.T, b *loopdev.Backend, gib int) {
	t.Helper()
	if err := b.Provide(volume, gib); err != nil {
		t.Fatal(err)
	}
}

func plug(t *testing.T, b *loopdev.Backend, instance string) cloud.Device {
	t.Helper()
	d, err := b.Plug(instance, volume)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func unplug(t *testing.T, b *loopdev.Backend, instance string) {
	t.Helper()
	if err := b.Unplug(instance, volume); err != nil {
		t.Fatal(err)
	}
}

func TestDeviceLooksLikeTheKernels(t *testing.T) {
	b := backend(t, "")
	roots := boot(t, b, one)
	provide(t, b, 2)
	d := plug(t, b, one)
	if d.Name != "nvme1n1" || d.Path != filepath.Join(roots.Dev, "nvme1n1") {
		t.Errorf("device %+v", d)
	}
	var stat unix.Stat_t
	if err := unix.Stat(d.Path, &stat); err != nil {
		t.Fatal(err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFBLK {
		t.Errorf("mode %o is no block device's", stat.Mode)
	}
	numbers := fmt.Sprintf("%d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
	for path, want := range map[string]string{
		"block/nvme1n1/dev":             numbers + "\n",
		"block/nvme1n1/size":            fmt.Sprintf("%d\n", 2<<30/512),
		"block/nvme1n1/device/serial":   "vol0123456789abcdef0\n",
		"block/nvme1n1/device/model":    "Amazon Elastic Block Store" + strings.Repeat(" ", 14) + "\n",
		"class/block/nvme1n1/dev":       numbers + "\n",
		"dev/block/" + numbers + "/dev": numbers + "\n",
		"block/nvme0n1/device/serial":   "vol00000000000000001\n",
	} {
		got, err := os.ReadFile(filepath.Join(roots.Sysfs, path))
		if err != nil || string(got) != want {
			t.Errorf("%s is %q, %v; want %q", path, got, err, want)
		}
	}
	if n := blockSize(t, d.Path); n != 2<<30 {
		t.Errorf("device has %d bytes", n)
	}
	unplug(t, b, one)
	for _, path := range []string{d.Path, filepath.Join(roots.Sysfs, "block/nvme1n1"), filepath.Join(roots.Sysfs, "class/block/nvme1n1"), filepath.Join(roots.Sysfs, "dev/block", numbers)} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
}

func TestContentGoesFromInstanceToInstance(t *testing.T) {
	b := backend(t, "")
	boot(t, b, one)
	boot(t, b, two)
	provide(t, b, 1)
	written := bytes.Repeat([]byte("cache"), 1000)
	if err := os.WriteFile(plug(t, b, one).Path, written, 0); err != nil {
		t.Fatal(err)
	}
	unplug(t, b, one)
	f, err := os.Open(plug(t, b, two).Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read := make([]byte, len(written))
	if _, err := f.Read(read); err != nil || !bytes.Equal(read, written) {
		t.Errorf("read %.10q, %v", read, err)
	}
}

// In use means: somebody has it open exclusively, or, once it is taken away,
// open at all.
func TestUnplugWaitsForTheLastUser(t *testing.T) {
	b := backend(t, "")
	roots := boot(t, b, one)
	provide(t, b, 1)
	d := plug(t, b, one)
	exclusive, err := os.OpenFile(d.Path, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer exclusive.Close()
	if err := b.Unplug(one, volume); !errors.Is(err, cloud.ErrBusy) {
		t.Fatalf("unplug with an exclusive user: %v", err)
	}
	if _, err := os.Stat(filepath.Join(roots.Sysfs, "block/nvme1n1")); err != nil {
		t.Errorf("a device in use went away: %v", err)
	}
	plain, err := os.Open(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	exclusive.Close()
	if err := b.Unplug(one, volume); !errors.Is(err, cloud.ErrBusy) {
		t.Fatalf("unplug with a reader: %v", err)
	}
	if _, err := os.Lstat(d.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the node is left: %v", err)
	}
	plain.Close()
	unplug(t, b, one)
}

func TestGrowsWhilePlugged(t *testing.T) {
	b := backend(t, "")
	roots := boot(t, b, one)
	provide(t, b, 1)
	d := plug(t, b, one)
	provide(t, b, 3)
	if n := blockSize(t, d.Path); n != 3<<30 {
		t.Errorf("device has %d bytes", n)
	}
	got, err := os.ReadFile(filepath.Join(roots.Sysfs, "block/nvme1n1/size"))
	if err != nil || string(got) != fmt.Sprintf("%d\n", 3<<30/512) {
		t.Errorf("size is %q, %v", got, err)
	}
}

func TestLowestNumberThatIsFree(t *testing.T) {
	b := backend(t, "")
	boot(t, b, one)
	var names []string
	ids := []string{"vol-00000000000000001", "vol-00000000000000002", "vol-00000000000000003"}
	for _, id := range ids {
		if err := b.Provide(id, 1); err != nil {
			t.Fatal(err)
		}
	}
	show := func(id string) {
		d, err := b.Plug(one, id)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, d.Name)
	}
	show(ids[0])
	show(ids[1])
	if err := b.Unplug(one, ids[0]); err != nil {
		t.Fatal(err)
	}
	show(ids[2])
	if got := strings.Join(names, " "); got != "nvme1n1 nvme2n1 nvme1n1" {
		t.Errorf("names %s", got)
	}
}

const crashDir = "EC2SIM_TEST_CRASH_DIR"

// TestMain is also the process that crashes, where the variable says so.
func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		crash(dir)
	}
	os.Exit(m.Run())
}

func crash(dir string) {
	b, err := loopdev.New(loopdev.Config{Dir: dir})
	if err == nil {
		_, err = b.Boot(one)
	}
	if err == nil {
		err = b.Provide(volume, 1)
	}
	if err == nil {
		_, err = b.Plug(one, volume)
	}
	if err == nil {
		err = unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func TestStartsAfterACrash(t *testing.T) {
	if err := loopdev.Supported(); err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	dir := t.TempDir()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), crashDir+"="+dir)
	out, err := child.CombinedOutput()
	if status, ok := child.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the child did not crash: %v: %s", err, out)
	}
	if n := len(loopsIn(t, dir)); n != 1 {
		t.Fatalf("the crash left %d loop devices", n)
	}
	b := backend(t, dir)
	if n := len(loopsIn(t, dir)); n != 0 {
		t.Errorf("%d loop devices are left", n)
	}
	boot(t, b, one)
	provide(t, b, 1)
	plug(t, b, one)
}

func TestOneSimulatorAFolder(t *testing.T) {
	dir := t.TempDir()
	backend(t, dir)
	if _, err := loopdev.New(loopdev.Config{Dir: dir}); err == nil {
		t.Error("a folder was taken twice")
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	if err := loopdev.Supported(); err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	dir := t.TempDir()
	b, err := loopdev.New(loopdev.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	boot(t, b, one)
	provide(t, b, 1)
	plug(t, b, one)
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if n := len(loopsIn(t, dir)); n != 0 {
		t.Errorf("%d loop devices are left", n)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left in the folder: %v, %v", left, err)
	}
}

func loopsIn(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err == nil && strings.HasPrefix(string(text), dir+"/") {
			found = append(found, path)
		}
	}
	return found
}

func blockSize(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := f.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(n)
}
