// Package vm is a cloud.Backend of virtual machines: each instance is a QEMU
// process with a guest that knows it only from its kernel's own /sys and /dev,
// and each volume an NVMe drive that is plugged in and out while it runs.
//
// A guest is Debian's cloud kernel and a small initramfs; package guest serves
// us in it. It reaches DynamoDB Local and the simulator, which stay on this
// machine's 127.0.0.1, by QEMU's own network, and nothing else.
//
// QEMU has no name for the drives' model, and shows a new size of a volume only
// to who it is plugged into after that.
package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/volpool/volpool/integration/cache"
	"github.com/volpool/volpool/integration/ec2sim/cloud"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Config of a Backend.
type Config struct {
	Binaries map[string]string // files by name: what guests find in /usr/local/bin, init among them
	Accel    string            // QEMU's accelerator; tcg, which is there everywhere
	Log      *zap.Logger
}

// A Backend is a cloud.Backend of virtual machines.
type Backend struct {
	ctx       context.Context
	accel     string
	kernel    kernel
	dir       string
	lock      *os.File
	initramfs string
	unwatch   func() bool

	mu       sync.Mutex
	machines map[string]*Machine
}

var _ cloud.Backend = (*Backend)(nil)

// New makes everything ready to boot. When ctx ends all machines do.
func New(ctx context.Context, cfg Config) (*Backend, error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Accel == "" {
		cfg.Accel = "tcg"
	}
	k, err := provideKernel(ctx, cfg.Log)
	if err != nil {
		return nil, err
	}
	b := &Backend{ctx: ctx, accel: cfg.Accel, kernel: k, machines: map[string]*Machine{}}
	if err := b.takeFolder(ctx); err != nil {
		return nil, err
	}
	b.initramfs = filepath.Join(b.dir, "initramfs")
	if err := writeInitramfs(b.initramfs, k, cfg.Binaries); err != nil {
		return nil, errors.Join(fmt.Errorf("write initramfs: %w", err), b.Close())
	}
	b.unwatch = context.AfterFunc(ctx, b.killAll)
	return b, nil
}

const folder = "volpool-vm-"

// takeFolder makes a folder that is ours while we live, and clears those of who
// was killed.
func (b *Backend) takeFolder(ctx context.Context) error {
	cached, err := cache.Dir()
	if err != nil {
		return err
	}
	unlock, err := cache.Lock(ctx, filepath.Join(cached, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	old, err := filepath.Glob(filepath.Join(os.TempDir(), folder+"*"))
	if err != nil {
		return fmt.Errorf("look for old folders: %w", err)
	}
	for _, dir := range old {
		if lock, err := lockFolder(dir); err == nil { // else it is in use
			if err := errors.Join(os.RemoveAll(dir), lock.Close()); err != nil {
				return err
			}
		}
	}
	if b.dir, err = os.MkdirTemp("", folder); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	b.lock, err = lockFolder(b.dir)
	return err
}

func lockFolder(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// Image is the file behind a volume.
func (b *Backend) Image(volume string) string { return filepath.Join(b.dir, volume+".img") }

// Machine is the instance's; nil where there is none.
func (b *Backend) Machine(instance string) *Machine {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.machines[instance]
}

// Boot boots a machine. It has a /sys and a /dev of its own.
func (b *Backend) Boot(instance string) (cloud.Roots, error) {
	m, err := b.boot(b.ctx, instance)
	if err != nil {
		return cloud.Roots{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.machines[instance] = m
	return cloud.Roots{}, nil
}

// Provide makes or grows the volume's file.
func (b *Backend) Provide(volume string, gib int) error {
	f, err := os.OpenFile(b.Image(volume), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("create volume: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(int64(gib) << 30); err != nil {
		return fmt.Errorf("size volume: %w", err)
	}
	return nil
}

// Plug returns when the guest's kernel shows the disk.
func (b *Backend) Plug(instance, volume string) (cloud.Device, error) {
	m := b.Machine(instance)
	n, err := b.takeSlot(m, volume)
	if err != nil {
		return cloud.Device{}, err
	}
	if err := m.monitor.plug(volume, b.Image(volume), slot(n), serial(volume)); err != nil {
		b.leaveSlot(m, volume)
		return cloud.Device{}, err
	}
	name, err := m.Await(volume)
	if err != nil {
		return cloud.Device{}, err
	}
	return cloud.Device{Name: name, Path: "/dev/" + name}, nil
}

// Unplug answers cloud.ErrBusy while the guest uses the disk: on EC2 the detach
// of a mounted volume hangs, while QEMU would take it from under the mount. What
// was in a machine that is gone went with it.
func (b *Backend) Unplug(instance, volume string) error {
	m := b.Machine(instance)
	var used bool
	err := m.call("InUse", serial(volume), &used, callLimit)
	if err == nil && used {
		return cloud.ErrBusy
	}
	if err == nil {
		err = m.monitor.unplug(volume)
	}
	if err != nil && m.Alive() {
		return err
	}
	b.leaveSlot(m, volume)
	return nil
}

func (b *Backend) takeSlot(m *Machine, volume string) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := slices.Index(m.drives[:], "")
	if n < 0 {
		return 0, fmt.Errorf("%s has no more than %d slots", m.ID, slots)
	}
	m.drives[n] = volume
	return n, nil
}

func (b *Backend) leaveSlot(m *Machine, volume string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := slices.Index(m.drives[:], volume); n >= 0 {
		m.drives[n] = ""
	}
}

// Discard removes the volume's file.
func (b *Backend) Discard(volume string) error {
	if err := os.Remove(b.Image(volume)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Close ends every machine and removes every file.
func (b *Backend) Close() error {
	if b.unwatch != nil {
		b.unwatch()
	}
	b.killAll()
	return errors.Join(os.RemoveAll(b.dir), b.lock.Close())
}

func (b *Backend) killAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.machines {
		m.Kill()
	}
}

// serial is the volume's id as an EBS drive shows it.
func serial(volume string) string { return strings.Replace(volume, "-", "", 1) }
