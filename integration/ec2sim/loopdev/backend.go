package loopdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/volpool/volpool/integration/ec2sim/cloud"
	"golang.org/x/sys/unix"
)

// Config of a Backend.
type Config struct {
	Dir string // for files, nodes and trees; a temporary one if empty
}

// A Backend is a cloud.Backend of loop devices.
type Backend struct {
	dir  string
	temp bool
	lock *os.File

	mu      sync.Mutex
	plugged []*device
}

var _ cloud.Backend = (*Backend)(nil)

// device is a volume that is plugged into an instance.
type device struct {
	instance, volume string
	number           int // K of nvmeKn1
	name             string
	loop             loop
	hidden           bool // out of the instance's sight, and still in use
}

// Supported tells why loop devices cannot be had here; nil if they can.
func Supported() error {
	if os.Geteuid() != 0 {
		return errors.New("loop devices need root")
	}
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open loop control: %w", err)
	}
	return f.Close()
}

// New takes the folder over. What an earlier simulator that crashed has left
// there, loop devices and files, is cleared away; one that lives keeps it.
func New(cfg Config) (*Backend, error) {
	if err := Supported(); err != nil {
		return nil, err
	}
	b := &Backend{dir: cfg.Dir, temp: cfg.Dir == ""}
	if err := b.takeFolder(); err != nil {
		return nil, err
	}
	if err := errors.Join(detachAll(b.dir), b.clearFolder()); err != nil {
		return nil, errors.Join(err, b.leaveFolder())
	}
	for _, sub := range []string{"volumes", "instances", "nodes"} {
		if err := os.MkdirAll(b.path(sub), 0o755); err != nil {
			return nil, errors.Join(fmt.Errorf("make folder: %w", err), b.leaveFolder())
		}
	}
	return b, nil
}

// Image is the file behind a volume.
func (b *Backend) Image(volume string) string { return b.path("volumes", volume+".img") }

// Boot makes the instance's folders, with its root disk.
func (b *Backend) Boot(instance string) (cloud.Roots, error) {
	roots := b.roots(instance)
	for _, dir := range []string{roots.Dev, filepath.Join(roots.Sysfs, "block"), filepath.Join(roots.Sysfs, "class/block"), filepath.Join(roots.Sysfs, "dev/block")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return cloud.Roots{}, fmt.Errorf("make folder: %w", err)
		}
	}
	// The root volume is none of EC2's volumes here; its id is made of the
	// instance's, so that no two are the same.
	root := disk{name: "nvme0n1", numbers: "259:0", sectors: 8 << 21, serial: "vol" + instance[len("i-"):]}
	return roots, root.show(roots.Sysfs)
}

// Provide makes or grows the volume's file; a device that shows it grows too.
func (b *Backend) Provide(volume string, gib int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	f, err := os.OpenFile(b.Image(volume), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("create volume: %w", err)
	}
	defer f.Close()
	size := int64(gib) << 30
	if info, err := f.Stat(); err != nil || info.Size() >= size {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("size volume: %w", err)
	}
	for _, d := range b.plugged {
		if d.volume != volume {
			continue
		}
		if err := d.loop.grow(b.path("nodes")); err != nil {
			return err
		}
		if err := b.disk(d, size).resize(b.roots(d.instance).Sysfs); err != nil {
			return err
		}
	}
	return nil
}

// Plug shows the volume to the instance, under the lowest number that is free.
func (b *Backend) Plug(instance, volume string) (cloud.Device, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, err := bind(b.Image(volume), b.path("nodes"))
	if err != nil {
		return cloud.Device{}, err
	}
	d := &device{instance: instance, volume: volume, number: b.freeNumber(instance), loop: l}
	d.name = fmt.Sprintf("nvme%dn1", d.number)
	if err := b.show(d); err != nil {
		return cloud.Device{}, errors.Join(err, l.unbind(b.path("nodes")))
	}
	b.plugged = append(b.plugged, d)
	l.announce("add")
	return cloud.Device{Name: d.name, Path: filepath.Join(b.roots(instance).Dev, d.name)}, nil
}

// Unplug takes the device away, or answers cloud.ErrBusy.
func (b *Backend) Unplug(instance, volume string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := slices.IndexFunc(b.plugged, func(d *device) bool { return d.instance == instance && d.volume == volume })
	if k < 0 {
		return nil
	}
	d := b.plugged[k]
	if !d.hidden {
		if err := b.takeAway(d); err != nil {
			return err
		}
	}
	if d.loop.bound() {
		return cloud.ErrBusy
	}
	b.plugged = slices.Delete(b.plugged, k, k+1)
	return nil
}

// takeAway unbinds under an exclusive descriptor, so that nobody can begin to
// use the device between the proof that it is unused and its end.
func (b *Backend) takeAway(d *device) error {
	proof, err := os.OpenFile(d.loop.node(b.path("nodes")), os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return cloud.ErrBusy
	}
	if err != nil {
		return fmt.Errorf("open device: %w", err)
	}
	defer proof.Close()
	if err := b.hide(d); err != nil {
		return err
	}
	return d.loop.clear(proof)
}

// Discard removes the volume's file.
func (b *Backend) Discard(volume string) error {
	if err := os.Remove(b.Image(volume)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Close detaches every loop device and removes every file. A device that is
// still in use goes when its last user does; the error names it.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, d := range b.plugged {
		if !d.hidden {
			errs = append(errs, b.hide(d), d.loop.unbind(b.path("nodes")))
		}
	}
	for _, d := range b.plugged {
		if !d.loop.unboundWithin(2 * time.Second) {
			errs = append(errs, fmt.Errorf("%s of %s is still in use", d.loop.name(), d.volume))
		}
	}
	b.plugged = nil
	return errors.Join(append(errs, b.clearFolder(), b.leaveFolder())...)
}

func (b *Backend) freeNumber(instance string) int {
	taken := map[int]bool{}
	for _, d := range b.plugged {
		if d.instance == instance && !d.hidden {
			taken[d.number] = true
		}
	}
	n := 1
	for taken[n] {
		n++
	}
	return n
}

// show makes the node first: who sees the device in sysfs may open it.
func (b *Backend) show(d *device) error {
	info, err := os.Stat(b.Image(d.volume))
	if err != nil {
		return fmt.Errorf("size of volume: %w", err)
	}
	roots := b.roots(d.instance)
	if err := d.loop.makeNode(filepath.Join(roots.Dev, d.name)); err != nil {
		return err
	}
	return b.disk(d, info.Size()).show(roots.Sysfs)
}

func (b *Backend) hide(d *device) error {
	d.hidden = true
	roots := b.roots(d.instance)
	return errors.Join(b.disk(d, 0).hide(roots.Sysfs), os.Remove(filepath.Join(roots.Dev, d.name)))
}

func (b *Backend) disk(d *device, size int64) disk {
	return disk{name: d.name, numbers: d.loop.numbers(), sectors: size >> 9, serial: "vol" + d.volume[len("vol-"):]}
}

func (b *Backend) roots(instance string) cloud.Roots {
	return cloud.Roots{Sysfs: b.path("instances", instance, "sys"), Dev: b.path("instances", instance, "dev")}
}

func (b *Backend) path(elem ...string) string {
	return filepath.Join(append([]string{b.dir}, elem...)...)
}
