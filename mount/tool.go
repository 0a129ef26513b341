//go:build linux

package mount

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// run runs a tool to its end, whatever becomes of our caller: nothing may kill
// mkfs or e2fsck midway [kubernetes#140376]. So it has a session of its own, that
// a Ctrl-C does not reach, and its output goes to a file in memory, for a pipe
// would break and kill it if we died. It inherits keep, if not nil, and with it
// the device's lock.
//
// The error is a *ToolError for any exit but 0, and a *MissingToolError.
func run(keep *os.File, name string, args ...string) (string, error) {
	path, err := lookPath(name)
	if err != nil {
		return "", err
	}
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("run %s: make file for output: %w", name, err)
	}
	out := os.NewFile(uintptr(fd), name)
	defer out.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = out, out
	// What stands in our environment (MKE2FS_CONFIG, LIBBLKID_DEBUG, a language)
	// is not to change what the tools do.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if keep != nil {
		cmd.ExtraFiles = []*os.File{keep}
	}
	failed := cmd.Run()
	said, err := readBack(out)
	if failed == nil {
		return said, err
	}
	exit := -1
	if e, ok := errors.AsType[*exec.ExitError](failed); ok {
		exit = e.ExitCode()
	}
	return said, &ToolError{Args: append([]string{name}, args...), Exit: exit, Output: said, Err: failed}
}

func readBack(f *os.File) (string, error) {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 64<<10)) // the first lines say why
	if err != nil {
		return "", fmt.Errorf("read output: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// lookPath looks in the folders of the system's tools too: an ordinary user's
// PATH, kept over sudo, often lacks them.
func lookPath(name string) (string, error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", &MissingToolError{Tool: name}
}
