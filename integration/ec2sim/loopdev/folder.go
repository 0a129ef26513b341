package loopdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// takeFolder makes the folder ours; the kernel lets go of the lock when the
// process ends, however it ends.
func (b *Backend) takeFolder() error {
	var err error
	if b.temp {
		b.dir, err = os.MkdirTemp("", "ec2sim-")
	} else {
		err = os.MkdirAll(b.dir, 0o755)
	}
	if err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	// The kernel names backing files by their real path.
	if b.dir, err = filepath.Abs(b.dir); err != nil {
		return fmt.Errorf("find folder: %w", err)
	}
	if b.dir, err = filepath.EvalSymlinks(b.dir); err != nil {
		return fmt.Errorf("find folder: %w", err)
	}
	if b.lock, err = os.OpenFile(b.path("lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(b.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("lock %s, another simulator may live there: %w", b.dir, err), b.lock.Close())
	}
	return nil
}

// clearFolder removes what a Backend makes in its folder, and nothing else.
func (b *Backend) clearFolder() error {
	var errs []error
	for _, sub := range []string{"volumes", "instances", "nodes"} {
		errs = append(errs, os.RemoveAll(b.path(sub)))
	}
	return errors.Join(errs...)
}

func (b *Backend) leaveFolder() error {
	errs := []error{os.Remove(b.lock.Name()), b.lock.Close()}
	if b.temp {
		errs = append(errs, os.Remove(b.dir))
	}
	return errors.Join(errs...)
}
