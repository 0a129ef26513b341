package pool

import (
	"context"
	"errors"
	"io/fs"
)

// Disks is what an acquire needs of the machine it runs on. The errors of its
// methods are a [*DiskError] where somebody is to blame for them.
type Disks interface {
	// MakePoint makes the mount point's directory if it is missing, and tells
	// whether it can be written to.
	MakePoint(point string, root Root) error
	// Listen begins to watch for new devices; it is called before the attach.
	Listen() (Arrivals, error)
	// Attached lists the EBS volumes that the kernel shows.
	Attached() ([]AttachedVolume, error)
	// MountedAt tells what is mounted at the point.
	MountedAt(point string) (m Mounted, mounted bool, err error)
	// BindMount shows dir at the mount point.
	BindMount(dir, point string, root Root) error
	// Unmount takes away what is mounted, once nobody uses it any more; kill
	// ends those who do. It goes on until ctx ends.
	Unmount(ctx context.Context, point string, kill bool) error
	Usage(point string) (Usage, error)
}

// Arrivals waits for devices.
type Arrivals interface {
	// Wait returns the volume's device the moment it is there, locked. It
	// answers [ErrLocked] where another process has had the lock for a while.
	Wait(ctx context.Context, volume, attachName string) (Disk, error)
	Close() error
}

// Disk is a volume's device, opened and locked until Close.
type Disk interface {
	Path() string
	SizeGiB() int64
	Probe(ctx context.Context) (Probe, error)
	// Format makes a filesystem on a disk that the last Probe said is blank, or,
	// with overwrite, over whatever it holds.
	Format(ctx context.Context, fsType, fsUUID string, overwrite bool) error
	Check(ctx context.Context, fsType string) (repaired bool, err error)
	Mount(ctx context.Context, point string, m MountOptions) error
	Close() error
}

// Root is how the root directory of the cache is to be: nil is "as it is".
type Root struct {
	UID, GID *int
	Mode     *fs.FileMode
}

// MountOptions says how a filesystem is mounted.
type MountOptions struct {
	FSType  string
	Options []string
	Root    Root
}

// Mounted is what is mounted somewhere: Volume is "" where it is no volume.
type Mounted struct{ Volume, Device string }

// AttachedVolume is an EBS volume that the kernel shows.
type AttachedVolume struct {
	Volume string
	InUse  bool // mounted, locked, or not proven to be neither
}

// Usage is how full a filesystem is.
type Usage struct{ UsedPercent, InodesPercent int64 }

// Content is what a device was found to hold. An error is never Blank.
type Content int

// What a probe may end in.
const (
	Unknown Content = iota
	Blank
	HasData
)

// Probe is what a device holds.
type Probe struct {
	Content        Content
	FSType, FSUUID string
	Clean          bool   // the filesystem says that it was left clean
	Why            string // what the answer rests on
}

// DiskError is a step on the device that failed through somebody's fault.
type DiskError struct {
	Reason      Reason
	VolumeFault bool // else it is this machine's: the volume is as good as ever
	Err         error
}

func (e *DiskError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *DiskError) Unwrap() error { return e.Err }

// ErrLocked says that a mkfs or e2fsck runs on the device that outlived its
// agent, or that another agent has it.
var ErrLocked = errors.New("another process has the device")

// What can be wrong with a mount point.
var (
	ErrNotDirectory   = errors.New("is not a directory")
	ErrAlreadyMounted = errors.New("something else is mounted there")
)
