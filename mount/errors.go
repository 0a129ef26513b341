//go:build linux

package mount

import (
	"errors"
	"fmt"
	"strings"
)

// States that a caller tells apart.
var (
	ErrNoDevice       = errors.New("no disk shows the volume")
	ErrGone           = errors.New("the device went away, or is another one now")
	ErrLocked         = errors.New("another process has the device, perhaps a mkfs or e2fsck that outlived its parent")
	ErrInUse          = errors.New("the device is in use")
	ErrNotBlank       = errors.New("the device was not proven blank")
	ErrBadFilesystem  = errors.New("the filesystem is damaged")
	ErrNotDirectory   = errors.New("is not a directory")
	ErrAlreadyMounted = errors.New("something is mounted there")
	ErrNotMounted     = errors.New("nothing is mounted there")
	ErrWholeVolume    = errors.New("is the root of a volume; name a directory in it")
)

// VolumeError is a failure that lies in the volume: any machine would meet it.
// Every other error says nothing against the volume.
type VolumeError struct {
	Op, Device string
	Err        error
}

func (e *VolumeError) Error() string { return fmt.Sprintf("%s %s: %v", e.Op, e.Device, e.Err) }

// Unwrap returns the cause.
func (e *VolumeError) Unwrap() error { return e.Err }

// MissingToolError names a program that is not installed.
type MissingToolError struct{ Tool string }

func (e *MissingToolError) Error() string { return e.Tool + " is not installed" }

// ToolError is a program that failed, with what it said.
type ToolError struct {
	Args   []string
	Exit   int // -1 where it did not exit by itself
	Output string
	Err    error
}

func (e *ToolError) Error() string {
	s := fmt.Sprintf("%s: %v", strings.Join(e.Args, " "), e.Err)
	if said := strings.Join(strings.Fields(e.Output), " "); said != "" {
		s += ": " + said
	}
	return s
}

// Unwrap returns the cause.
func (e *ToolError) Unwrap() error { return e.Err }

// BusyError is a mount that could not be taken away, and who is in the way.
type BusyError struct {
	Point   string
	Holders []Holder // empty where nobody could be found
	Err     error    // why it was given up
}

func (e *BusyError) Error() string {
	who := make([]string, len(e.Holders))
	for i, h := range e.Holders {
		who[i] = h.String()
	}
	if len(who) == 0 {
		who = []string{"somebody who cannot be found"}
	}
	return fmt.Sprintf("%s is busy, held by %s: %v", e.Point, strings.Join(who, "; "), e.Err)
}

// Unwrap returns the cause.
func (e *BusyError) Unwrap() error { return e.Err }
