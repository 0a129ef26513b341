package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The agents of an instance share one lock. Who attaches a volume has it
// together with all others who do, from before the attach until the device is
// opened and locked. The janitor takes it alone, to find out that an attached
// volume is nobody's and to detach it: in between, nobody here begins to use one.

// instanceLock is no mount point's lock, for [name] escapes its first letter.
const instanceLock = "@instance.lock"

// errInstanceBusy says that another agent of the instance has the lock.
var errInstanceBusy = errors.New("another agent of this instance is attaching or detaching a volume")

// lockInstance takes the lock if it is to be had now; how is LOCK_SH or LOCK_EX.
func (d RunDir) lockInstance(how int) (*os.File, error) {
	path := filepath.Join(string(d), instanceLock)
	return lockFile(path, how, fmt.Errorf("lock %s: %w", path, errInstanceBusy))
}

// lockAttaching waits, within the acquire's deadline, until no janitor of this
// instance is detaching.
func (a *Agent) lockAttaching(ctx context.Context) (*os.File, *failure) {
	a.at(ReasonTimeout)
	for {
		f, err := a.Parts.Run.lockInstance(unix.LOCK_SH)
		switch {
		case err == nil:
			return f, nil
		case !errors.Is(err, errInstanceBusy):
			return nil, &failure{reason: ReasonMachine, err: err}
		}
		if !pause(ctx, 50*time.Millisecond) {
			late := a.late(context.WithoutCancel(ctx))
			late.err = err
			return nil, late
		}
	}
}
