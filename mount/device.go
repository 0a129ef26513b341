//go:build linux

package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Device is a volume's disk, opened and locked. Its methods are for one
// goroutine at a time.
type Device struct {
	host   *Host
	target Target
	disk   disk // as it was when it was opened
	path   string
	file   *os.File // read-only: a descriptor for writing may keep the kernel from mounting
	blank  bool     // a probe proved it, and nothing was written since
}

// Find opens the target's disk if it is there now, and waits for its lock while
// ctx lasts. It answers ErrNoDevice if it isn't there, ErrLocked if ctx ended
// first, and ErrGone where sysfs, node and disk do not agree.
func (h *Host) Find(ctx context.Context, t Target) (*Device, error) {
	found, err := h.lookUp(t)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(h.dev, found.name)
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open device: %w", err)
	}
	d := &Device{host: h, target: t, disk: found, path: path, file: f}
	if err := lock(ctx, f); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w: %w", path, ErrLocked, err), f.Close())
	}
	// Only now: an orphan's mkfs may have held the lock for long.
	if err := d.Verify(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

// lock polls, for a flock(2) that waits cannot be broken off. udev holds its
// lock for milliseconds, an orphaned mkfs or e2fsck for minutes.
func lock(ctx context.Context, f *os.File) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// Path is the device's node, such as /dev/nvme1n1.
func (d *Device) Path() string { return d.path }

// VolumeID is the volume's id as EC2 shows it.
func (d *Device) VolumeID() string {
	id, _ := volumeID(d.target.VolumeID)
	return id
}

// SizeGiB is the disk's size, rounded down.
func (d *Device) SizeGiB() int64 { return d.disk.bytes >> 30 }

// Close gives the lock back, unless a child of ours still runs on the device.
func (d *Device) Close() error { return d.file.Close() }

// Verify compares serial, device number and size once more, in sysfs, behind the
// path and on the opened file. Where one differs it answers ErrGone.
func (d *Device) Verify() error {
	if err := d.present(); err != nil {
		return err
	}
	size, err := blockSize(d.file)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrGone, d.path, err)
	}
	if size == 0 || size != d.disk.bytes {
		return fmt.Errorf("%w: %s has %d bytes, sysfs says %d", ErrGone, d.path, size, d.disk.bytes)
	}
	if err := sameDevice(d.file, d.disk.number); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(d.path, &st); err != nil {
		return fmt.Errorf("%w: stat %s: %w", ErrGone, d.path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || uint64(st.Rdev) != d.disk.number {
		return fmt.Errorf("%w: %s is not the device that was opened", ErrGone, d.path)
	}
	return nil
}

// present asks sysfs whether the disk is the one that was opened. It touches
// only what never changes, so that a watcher may call it at any time.
func (d *Device) present() error {
	now, err := d.host.disk(d.disk.name)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	if now.number != d.disk.number || now.serial != d.disk.serial {
		return fmt.Errorf("%w: %s shows serial %q, not %q", ErrGone, d.path, now.serial, d.disk.serial)
	}
	return nil
}

func blockSize(f *os.File) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("find end of device: %w", err)
	}
	return size, nil
}

func sameDevice(f *os.File, number uint64) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || uint64(st.Rdev) != number {
		return fmt.Errorf("%w: %s is not the device that sysfs shows", ErrGone, f.Name())
	}
	return nil
}

// InUse asks the kernel whether anybody has mounted the disk or opened it
// exclusively, ourselves included, in whatever mount namespace.
func (d *Device) InUse() (bool, error) {
	f, err := openExclusive(d.path, d.disk.number)
	if errors.Is(err, ErrInUse) {
		return true, nil
	}
	if err != nil {
		return true, err
	}
	return false, f.Close()
}

// openExclusive answers ErrInUse where somebody has the disk. While the file is
// open, mkfs, e2fsck and mount of anybody fail: close it soon.
func openExclusive(path string, number uint64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_EXCL|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%s: %w", path, ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("open device exclusively: %w", err)
	}
	if err := sameDevice(f, number); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
