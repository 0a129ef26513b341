//go:build linux

package mount

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// MountOptions says how a filesystem is mounted.
type MountOptions struct {
	FSType  string
	Options []string // as in fstab, such as noatime; those for mount(8) alone are left out
	Root    Root
}

// Mount mounts the device's filesystem at the point, which must be there and
// have nothing mounted. What stands in the point's directory is hidden, and there
// again after Unmount. A filesystem that is smaller than the device is grown; if
// that fails, it is used as it is.
func (d *Device) Mount(ctx context.Context, point string, opt MountOptions) error {
	if ctx.Err() != nil {
		return fmt.Errorf("mount %s: %w", d.path, context.Cause(ctx))
	}
	real, err := d.host.freePoint(point)
	if err != nil {
		return err
	}
	if err := d.Verify(); err != nil {
		return err
	}
	d.blank = false
	if err := d.mount(real, opt); err != nil {
		return err
	}
	if err := d.settle(real, opt); err != nil {
		return errors.Join(err, unmountNow(real))
	}
	return nil
}

func (d *Device) mount(real string, opt MountOptions) error {
	flags, data := mountFlags(opt.Options)
	if opt.FSType == "xfs" && !slices.Contains(data, "nouuid") {
		data = append(data, "nouuid") // volumes made from one snapshot share their UUID
	}
	err := unix.Mount(d.path, real, opt.FSType, flags, strings.Join(data, ","))
	if err == nil {
		return nil
	}
	err = fmt.Errorf("mount %s at %s as %s with options %q: %w", d.path, real, opt.FSType, opt.Options, err)
	if damaged(err) {
		return &VolumeError{Op: "mount", Device: d.path, Err: err}
	}
	return err
}

// damaged are the answers of a kernel that read the filesystem and found it
// broken. EINVAL is not among them: an option or a feature that this kernel does
// not know answers it too, and that must not quarantine a pool.
func damaged(err error) bool {
	return unreadable(err) || errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EBADMSG)
}

// settle makes sure of what was mounted, and makes it ready for its users.
func (d *Device) settle(real string, opt MountOptions) error {
	m, mounted, err := d.host.mountedAt(real)
	if err != nil {
		return err
	}
	if !mounted || m.number() != d.disk.number {
		return fmt.Errorf("%w: at %s is device %d:%d", ErrGone, real, m.Major, m.Minor)
	}
	if err := opt.Root.apply(real); err != nil {
		return err
	}
	if isExt(opt.FSType) {
		// It breaks tools that walk the cache as an ordinary user. An empty one is
		// of no use, and e2fsck makes it anew when it needs it; one with files
		// that were recovered stays, root's own.
		_ = unix.Rmdir(filepath.Join(real, "lost+found"))
	}
	if err := d.grow(real, opt.FSType); err != nil {
		d.host.log.Warn("filesystem could not be grown", zap.String("device", d.path), zap.Error(err))
	}
	return nil
}

func unmountNow(real string) error {
	if err := unix.Unmount(real, unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", real, err)
	}
	return nil
}

// mountFlags parts the options that the kernel takes as flags from those that
// the filesystem reads.
func mountFlags(options []string) (flags uintptr, data []string) {
	for _, o := range options {
		f, known := flagOf(o)
		switch {
		case known:
			flags = flags&^f.clear | f.set
		case o == "", strings.HasPrefix(o, "x-"):
		case slices.Contains([]string{"defaults", "auto", "noauto", "nofail", "_netdev"}, o): // for mount(8)
		default:
			data = append(data, o)
		}
	}
	return flags, data
}

type flag struct{ set, clear uintptr }

func flagOf(option string) (flag, bool) {
	const times = unix.MS_NOATIME | unix.MS_RELATIME | unix.MS_STRICTATIME
	f, ok := map[string]flag{
		"ro": {set: unix.MS_RDONLY}, "rw": {clear: unix.MS_RDONLY},
		"noatime": {unix.MS_NOATIME, times}, "relatime": {unix.MS_RELATIME, times}, "strictatime": {unix.MS_STRICTATIME, times},
		"nodiratime": {set: unix.MS_NODIRATIME}, "diratime": {clear: unix.MS_NODIRATIME},
		"lazytime": {set: unix.MS_LAZYTIME}, "nolazytime": {clear: unix.MS_LAZYTIME},
		"nosuid": {set: unix.MS_NOSUID}, "suid": {clear: unix.MS_NOSUID},
		"nodev": {set: unix.MS_NODEV}, "dev": {clear: unix.MS_NODEV},
		"noexec": {set: unix.MS_NOEXEC}, "exec": {clear: unix.MS_NOEXEC},
		"sync": {set: unix.MS_SYNCHRONOUS}, "async": {clear: unix.MS_SYNCHRONOUS},
		"dirsync": {set: unix.MS_DIRSYNC},
	}[option]
	return f, ok
}
