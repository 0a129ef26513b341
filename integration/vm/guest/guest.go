//go:build linux

// Package guest is what a test asks of a virtual machine from outside: to run
// commands, and what its kernel shows. It answers over one connection, by
// net/rpc.
package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Name is the service's.
const Name = "Guest"

// A Guest is the service.
type Guest struct{ watches watches }

// Serve calls the host, and serves it until it hangs up.
func Serve(host string) error {
	server := rpc.NewServer()
	if err := server.RegisterName(Name, &Guest{}); err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", host, 30*time.Second)
	if err != nil {
		return fmt.Errorf("call host: %w", err)
	}
	server.ServeConn(conn)
	return nil
}

// A Command to run; it is killed when Limit is over.
type Command struct {
	Args  []string
	Env   []string // beside PATH
	Limit time.Duration
}

// An Outcome of a command. Exit is -1 where a signal ended it.
type Outcome struct {
	Exit           int
	Stdout, Stderr string
}

// Run runs a command. It fails only where the command cannot be started, or
// takes longer than it may.
func (*Guest) Run(c Command, o *Outcome) error {
	ctx, cancel := context.WithTimeout(context.Background(), c.Limit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second // a child that keeps our pipe open is an error
	err := cmd.Run()
	*o = Outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
	if ctx.Err() != nil {
		return fmt.Errorf("it took more than %v: %s", c.Limit, &stderr)
	}
	if _, exited := errors.AsType[*exec.ExitError](err); exited {
		return nil
	}
	return err
}

// A Disk to be there, or to be gone, within Limit.
type Disk struct {
	Serial string
	Gone   bool
	Limit  time.Duration
}

// Await answers the disk's name once the kernel shows it, none once it is gone.
// It looks by itself, for package mount is what is under test.
func (*Guest) Await(d Disk, name *string) error {
	deadline := time.NewTimer(d.Limit)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var err error
		if *name, err = find(d.Serial); err != nil {
			return err
		}
		if (*name == "") == d.Gone {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return fmt.Errorf("after %v the kernel shows the disk as %q", d.Limit, *name)
		}
	}
}

// InUse tells whether somebody has the disk open exclusively, as a mount does.
func (*Guest) InUse(serial string, used *bool) error {
	name, err := find(serial)
	if err != nil || name == "" {
		return err
	}
	f, err := os.OpenFile("/dev/"+name, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		*used = true
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

func find(serial string) (string, error) {
	paths, err := filepath.Glob("/sys/block/*/device/serial")
	if err != nil {
		return "", err
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(text)) == serial { // else it is just going
			return filepath.Base(filepath.Dir(filepath.Dir(path))), nil
		}
	}
	return "", nil
}
