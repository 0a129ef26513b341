//go:build linux

package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// slowTool puts a tool into a new PATH that says that it began, waits until it
// may end, and then does its work.
func slowTool(t *testing.T, name string) (began, mayEnd string) {
	t.Helper()
	real, err := lookPath(name)
	must(t, err)
	dir := t.TempDir()
	began, mayEnd = filepath.Join(dir, "began"), filepath.Join(dir, "may-end")
	must(t, unix.Mkfifo(mayEnd, 0o600))
	script := fmt.Sprintf("#!/bin/sh\ntouch %s\nread -r line < %s\nexec %s \"$@\"\n", began, mayEnd, real)
	must(t, os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return began, mayEnd
}

func awaitFile(t testing.TB, path string) {
	t.Helper()
	for range 1000 {
		if _, err := os.Stat(path); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond) // polling: there is no event to wait for
	}
	t.Fatalf("%s did not come", path)
}

// formatAsOrphan is the process whose mkfs outlives it.
func formatAsOrphan(volume string) {
	root := os.Getenv("VOLPOOL_TEST_ROOT")
	h, err := New(Config{SysfsRoot: filepath.Join(root, "sys"), DevRoot: filepath.Join(root, "dev")})
	if err != nil {
		panic(err)
	}
	d, err := h.Find(context.Background(), Target{VolumeID: volume})
	if err != nil {
		panic(err)
	}
	panic(d.Overwrite(context.Background(), "ext4", testUUID))
}

// TestOrphanKeepsTheLock: its parent is killed, and its process group too; mkfs
// goes on, and a new process waits for it.
func TestOrphanKeepsTheLock(t *testing.T) {
	needTools(t, "mkfs.ext4", "blkid")
	m := newMachine(t)
	m.plug("nvme1n1", testVolume, 1<<30)
	began, mayEnd := slowTool(t, "mkfs.ext4")

	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "VOLPOOL_TEST_FORMAT="+testVolume, "VOLPOOL_TEST_ROOT="+m.root)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(t, cmd.Start())
	awaitFile(t, began)
	must(t, unix.Kill(-cmd.Process.Pid, unix.SIGINT))
	must(t, unix.Kill(-cmd.Process.Pid, unix.SIGKILL))
	_ = cmd.Wait()

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := m.host.Find(ctx, Target{VolumeID: testVolume}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("find while mkfs runs: %v, want the deadline", err)
	}
	volumes, err := m.host.Volumes()
	must(t, err)
	if len(volumes) != 1 || !volumes[0].Mounted {
		t.Errorf("volumes while mkfs runs: %+v, want it in use", volumes)
	}

	must(t, os.WriteFile(mayEnd, []byte("\n"), 0o600))
	d := m.find(testVolume) // waits
	found, err := d.Probe(t.Context())
	must(t, err)
	if found.FSUUID != testUUID || !found.Clean {
		t.Errorf("after the orphan: %+v, want its filesystem, whole", found)
	}
}

// TestContextDoesNotEndMkfs: nor does it begin one.
func TestContextDoesNotEndMkfs(t *testing.T) {
	needTools(t, "mkfs.ext4", "e2fsck", "blkid")
	m := newMachine(t)
	m.plug("nvme1n1", testVolume, 1<<30)
	d := m.find(testVolume)
	_, err := d.Probe(t.Context())
	must(t, err)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Format(ended, "ext4", testUUID); !errors.Is(err, context.Canceled) {
		t.Errorf("format: %v, want it not begun", err)
	}
	for _, tool := range []string{"mkfs.ext4", "e2fsck"} {
		began, mayEnd := slowTool(t, tool)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			if tool == "mkfs.ext4" {
				done <- d.Format(ctx, "ext4", testUUID)
				return
			}
			_, err := d.Check(ctx, "ext4")
			done <- err
		}()
		awaitFile(t, began)
		cancel()
		must(t, os.WriteFile(mayEnd, []byte("\n"), 0o600))
		if err := <-done; err != nil {
			t.Errorf("%s: %v", tool, err)
		}
	}
	if found, err := d.Probe(t.Context()); err != nil || found.FSUUID != testUUID {
		t.Errorf("after all: %+v %v", found, err)
	}
}
