package cloud

import (
	"errors"
	"time"
)

// ErrBusy is what Unplug answers while somebody still uses the device.
var ErrBusy = errors.New("device is in use")

// A Backend puts volumes into instances as block devices. The Cloud calls it
// without holding a lock, and never twice at once for one attachment.
type Backend interface {
	// Boot prepares a place for an instance's devices, before its first Plug.
	Boot(instance string) (Roots, error)
	// Provide makes a volume's storage exist, or grows it, its content kept.
	Provide(volume string, gib int) error
	// Plug shows the volume to the instance; it is there when Plug returns.
	Plug(instance, volume string) (Device, error)
	// Unplug takes the device away, or answers ErrBusy and is called again.
	Unplug(instance, volume string) error
	// Discard drops the storage of a deleted volume.
	Discard(volume string) error
	// Close gives back everything the Backend holds of the machine.
	Close() error
}

// Roots are the folders where an instance sees its devices: what /sys and /dev
// are to a real one. Empty without a Backend, or where the instance has its
// own, as a virtual machine does.
type Roots struct {
	Sysfs, Dev string
}

// A Device is a volume as the instance sees it.
type Device struct {
	Name string // nvme1n1
	Path string // the block node below the instance's Roots.Dev
}

// A DeviceEvent tells that a device came to an instance, or left it.
type DeviceEvent struct {
	Instance, Volume string
	Device           Device
	Gone             bool
	At               time.Time
}

// noBackend stands in where volumes need no device.
type noBackend struct{}

func (noBackend) Boot(string) (Roots, error)          { return Roots{}, nil }
func (noBackend) Provide(string, int) error           { return nil }
func (noBackend) Plug(string, string) (Device, error) { return Device{}, nil }
func (noBackend) Unplug(string, string) error         { return nil }
func (noBackend) Discard(string) error                { return nil }
func (noBackend) Close() error                        { return nil }
