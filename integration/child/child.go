// Package child starts servers that end with us, however we go.
package child

import (
	"bytes"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// Start starts the command in a process group of its own, for Ctrl-C is for us:
// we still need it to clear up. The kernel kills it when we are gone. ended is
// closed when it is reaped; nobody else may Wait for it.
func Start(cmd *exec.Cmd) (ended <-chan struct{}, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	done := make(chan struct{})
	started := make(chan error)
	// The kernel sends the Pdeathsig when the *thread* that forked ends
	// (https://github.com/golang/go/issues/27505), so it is one that lives as
	// long as the child does.
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // killed, or its output tells why
			close(done)
		}
	}()
	return done, <-started
}

// A Tail keeps the end of what is written to it.
type Tail struct {
	Limit int

	mu   sync.Mutex
	text []byte
}

func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.text = t.text[max(0, len(t.text)-t.Limit):]
	return len(p), nil
}

func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.text))
}
