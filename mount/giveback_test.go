//go:build linux

package mount

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be the process that holds a mount.
func TestMain(m *testing.M) {
	if how := os.Getenv("VOLPOOL_TEST_HOLD"); how != "" {
		hold(how, os.Getenv("VOLPOOL_TEST_HOLD_AT"))
		return
	}
	if volume := os.Getenv("VOLPOOL_TEST_FORMAT"); volume != "" {
		formatAsOrphan(volume)
		return
	}
	os.Exit(m.Run())
}

// hold does as it is told, says that it did, and goes on until its input ends.
func hold(how, at string) {
	var err error
	switch how {
	case "cwd":
		err = os.Chdir(at)
	case "file":
		var f *os.File
		f, err = os.Create(filepath.Join(at, "open file"))
		defer f.Close()
	case "map":
		f, e1 := os.Create(filepath.Join(at, "mapped"))
		e2 := f.Truncate(4096)
		_, e3 := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		err = errors.Join(e1, e2, e3, f.Close())
	case "namespace":
		runtime.LockOSThread() // the namespace is this thread's, and it is the main one
		err = errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	case "stubborn": // an open file, and TERM does not help
		signal.Ignore(unix.SIGTERM)
		var f *os.File
		f, err = os.Create(filepath.Join(at, "open file"))
		defer f.Close()
	}
	fmt.Println("holding", err)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func init() { runtime.LockOSThread() } // main's thread stays the process's first: /proc/PID shows that one

// holder starts such a process.
func holder(t *testing.T, how, at string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "VOLPOOL_TEST_HOLD="+how, "VOLPOOL_TEST_HOLD_AT="+at)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "holding <nil>\n" {
		t.Fatalf("holder: %q %v", line, err)
	}
	return cmd
}

// mountedCache is a machine with a volume mounted.
func mountedCache(t *testing.T) (*machine, *Device, string) {
	t.Helper()
	needTools(t, "mkfs.ext4", "blkid")
	m := newMachine(t)
	m.plug("nvme1n1", testVolume, 1<<30)
	d, point := m.find(testVolume), m.point("cache")
	_, err := d.Probe(t.Context())
	must(t, err)
	must(t, d.Format(t.Context(), "ext4", testUUID))
	must(t, d.Mount(t.Context(), point, MountOptions{FSType: "ext4", Options: []string{"noatime"}}))
	return m, d, point
}

// TestBusy: whoever holds the volume is named, nothing is reported as free, and
// once he left it is.
func TestBusy(t *testing.T) {
	byProcess := func(how string) func(t *testing.T, point string) (string, func()) {
		return func(t *testing.T, point string) (string, func()) {
			cmd := holder(t, how, point)
			return fmt.Sprintf("pid %d (%s)", cmd.Process.Pid, "mount.test"), func() { must(t, cmd.Process.Kill()) }
		}
	}
	for name, hold := range map[string]func(t *testing.T, point string) (who string, leave func()){
		"open file":       byProcess("file"),
		"cwd":             byProcess("cwd"),
		"mapped file":     byProcess("map"),
		"mount namespace": byProcess("namespace"),
		"bind mount": func(t *testing.T, point string) (string, func()) {
			other := t.TempDir()
			must(t, unix.Mount(point, other, "", unix.MS_BIND, ""))
			return "the same filesystem is mounted at " + other, func() { must(t, unix.Unmount(other, 0)) }
		},
		"mount on top of it": func(t *testing.T, point string) (string, func()) {
			inside := filepath.Join(point, "inside")
			must(t, os.Mkdir(inside, 0o755))
			must(t, unix.Mount("tmpfs", inside, "tmpfs", 0, ""))
			return "something is mounted at " + inside, func() { must(t, unix.Unmount(inside, 0)) }
		},
		"swap file": func(t *testing.T, point string) (string, func()) {
			needTools(t, "mkswap", "swapon", "swapoff")
			file := filepath.Join(point, "swap")
			must(t, os.WriteFile(file, make([]byte, 1<<20), 0o600))
			command(t, "mkswap", "-q", file)
			command(t, "swapon", file)
			off := func() { command(t, "swapoff", file) }
			t.Cleanup(func() { _ = exec.Command("swapoff", file).Run() })
			return "swap file " + file, off
		},
		"overlay as Docker mounts it": func(t *testing.T, point string) (string, func()) {
			var layers []string
			for _, layer := range []string{"lower", "upper", "work"} {
				must(t, os.Mkdir(filepath.Join(point, layer), 0o755))
				layers = append(layers, layer+"dir="+filepath.Join(point, layer))
			}
			merged := t.TempDir()
			must(t, unix.Mount("overlay", merged, "overlay", 0, strings.Join(layers, ",")))
			return "an overlay has layers there, mounted at " + merged, func() { must(t, unix.Unmount(merged, 0)) }
		},
		"loop device": func(t *testing.T, point string) (string, func()) {
			file := filepath.Join(point, "disk.img")
			command(t, "losetup", "-f", writeFile(t, file))
			name, _, _ := strings.Cut(command(t, "losetup", "-n", "-O", "NAME", "-j", file), "\n")
			return "on " + file, func() { command(t, "losetup", "-d", strings.TrimSpace(name)) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, d, point := mountedCache(t)
			who, leave := hold(t, point)
			if name == "loop device" { // the kernel shows it in the real /sys
				m.showLoops()
			}
			before, _, err := m.host.MountedAt(point)
			must(t, err)

			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			err = m.host.Unmount(ctx, point, UnmountOptions{})
			busy, ok := errors.AsType[*BusyError](err)
			if !ok || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), who) {
				t.Errorf("unmount: %v, want %s named", err, who)
			}
			if strings.Contains(fmt.Sprint(err), "\n") {
				t.Errorf("more than a line: %q", err)
			}
			if ok && len(busy.Holders) != 1 {
				t.Errorf("holders: %q, want one", busy.Holders)
			}
			if used, err := d.InUse(); err != nil || !used {
				t.Errorf("in use: %v %v, want it in use", used, err)
			}

			leave()
			ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if _, mounted, err := m.host.MountedAt(point); err != nil {
				t.Error(err)
			} else if mounted {
				must(t, m.host.Unmount(ctx, point, UnmountOptions{}))
			} else { // it was only the proof that was missing
				s := &siege{host: m.host, mounted: before, point: point}
				must(t, s.until(ctx, func() error { return m.host.provenFree(before) }, ErrInUse))
			}
			if used, err := d.InUse(); err != nil || used {
				t.Errorf("in use: %v %v, want it free", used, err)
			}
		})
	}
}

// TestUnmountWaits: it is done as soon as the last user is gone.
func TestUnmountWaits(t *testing.T) {
	m, d, point := mountedCache(t)
	cmd := holder(t, "file", point)
	leaves := time.AfterFunc(300*time.Millisecond, func() { _ = cmd.Process.Kill() })
	defer leaves.Stop()
	must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
	if used, err := d.InUse(); err != nil || used {
		t.Errorf("in use: %v %v", used, err)
	}
	if err := m.host.Unmount(t.Context(), point, UnmountOptions{}); !errors.Is(err, ErrNotMounted) {
		t.Errorf("once more: %v, want ErrNotMounted", err)
	}
}

func TestKill(t *testing.T) {
	for how, signal := range map[string]unix.Signal{"cwd": unix.SIGTERM, "stubborn": unix.SIGKILL, "namespace": unix.SIGTERM} {
		t.Run(how, func(t *testing.T) {
			m, d, point := mountedCache(t)
			cmd := holder(t, how, point)
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }() // else it stays as a zombie, holding nothing
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			must(t, m.host.Unmount(ctx, point, UnmountOptions{Kill: true}))
			if used, err := d.InUse(); err != nil || used {
				t.Errorf("in use: %v %v", used, err)
			}
			<-ended
			if status := cmd.ProcessState.Sys().(interface{ Signal() unix.Signal }); status.Signal() != signal {
				t.Errorf("ended by %v, want %v", status.Signal(), signal)
			}
		})
	}
}

// TestUnmountAfterTheDeviceWent: what cannot be asked is held by nobody.
func TestUnmountAfterTheDeviceWent(t *testing.T) {
	m, _, point := mountedCache(t)
	must(t, os.WriteFile(filepath.Join(m.host.sysfs, "block/nvme1n1/device/serial"), []byte("vol0aaaaaaaaaaaaaaaa"), 0o644))
	must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
}

func writeFile(t *testing.T, path string) string {
	t.Helper()
	must(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	return path
}

// showLoops shows in our tree what files the kernel's loop devices are on.
func (m *machine) showLoops() {
	loops, err := filepath.Glob("/sys/block/loop*/loop")
	must(m.t, err)
	for _, l := range loops {
		disk := filepath.Join(m.host.sysfs, "block", filepath.Base(filepath.Dir(l)))
		must(m.t, errors.Join(os.Mkdir(disk, 0o755), os.Symlink(l, filepath.Join(disk, "loop"))))
	}
}
