package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
)

// initScript, as a mount and a pid namespace's init, reaps what agents leave,
// until its stdin ends.
const initScript = `set -e
mount --make-rprivate /
mount -t proc proc /proc
exec 3<&0
echo up
cat <&3 >/dev/null &
wait`

// machine is a mount and a pid namespace: whatever becomes of the bench, the
// agents in it end and what they mounted goes.
type machine struct {
	init *exec.Cmd
	life io.Closer
}

func startMachine(ctx context.Context) (*machine, error) {
	init := exec.Command("/bin/sh", "-c", initScript)
	init.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Setpgid:    true, // Ctrl-C is for us
	}
	var complaint strings.Builder
	init.Stderr = &complaint
	life, err := init.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := init.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := init.Start(); err != nil {
		return nil, fmt.Errorf("make a mount and a pid namespace: %w", err)
	}
	m := &machine{init, life}
	defer context.AfterFunc(ctx, func() { _ = init.Process.Kill() })()
	if _, err := io.ReadFull(out, make([]byte, len("up\n"))); err != nil {
		m.end()
		return nil, fmt.Errorf("mount within a namespace: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	return m, nil
}

func (m *machine) end() {
	_ = m.init.Process.Kill() // it may be gone already
	_ = m.init.Wait()
	_ = m.life.Close()
}

// command runs in the machine; at the end of ctx it is killed.
func (m *machine) command(ctx context.Context, args ...string) *exec.Cmd {
	enter := []string{"--target", fmt.Sprint(m.init.Process.Pid), "--mount", "--pid", "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// proc is a path below the machine's /proc, as we reach it.
func (m *machine) proc(path string) string {
	return fmt.Sprintf("/proc/%d/root/proc/%s", m.init.Process.Pid, path)
}
