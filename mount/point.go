//go:build linux

package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Root says how a cache's root directory is to be; nil is "as it is". Only the
// directory itself is changed, never what is in it: chown -R over a cache takes
// minutes.
type Root struct {
	UID, GID *int
	Mode     *fs.FileMode // as os.Chmod takes it
}

// MakePoint makes the mount point's directory and its parents where they are
// missing, gives it its owner and mode, and proves that it can be written to,
// for it is what a build gets when no volume is to be had. What stands in it
// stays. It answers ErrNotDirectory and ErrAlreadyMounted.
func (h *Host) MakePoint(point string, root Root) error {
	if err := makeDirectory(point); err != nil {
		return err
	}
	if _, mounted, err := h.MountedAt(point); err != nil {
		return err
	} else if mounted {
		return fmt.Errorf("%s: %w", point, ErrAlreadyMounted)
	}
	if err := root.apply(point); err != nil {
		return err
	}
	return provenWritable(point)
}

func makeDirectory(path string) error {
	err := os.MkdirAll(path, 0o755)
	if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", path, ErrNotDirectory)
	}
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}

// provenWritable writes, for access(2) tells root little: the directory may be
// immutable, its filesystem read-only or full.
func provenWritable(dir string) error {
	f, err := os.CreateTemp(dir, ".volpool-")
	if err != nil {
		return fmt.Errorf("write to directory: %w", err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// apply changes only what differs, so that a warm mount writes nothing.
func (r Root) apply(dir string) error {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("stat directory: %w", err)
	}
	now := info.Sys().(*syscall.Stat_t)
	uid, gid := int(now.Uid), int(now.Gid)
	if r.UID != nil {
		uid = *r.UID
	}
	if r.GID != nil {
		gid = *r.GID
	}
	if uid != int(now.Uid) || gid != int(now.Gid) {
		if err := f.Chown(uid, gid); err != nil {
			return fmt.Errorf("give directory to its owner: %w", err)
		}
	}
	const bits = fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky
	if r.Mode != nil && info.Mode()&bits != *r.Mode&bits {
		if err := f.Chmod(*r.Mode); err != nil {
			return fmt.Errorf("set mode of directory: %w", err)
		}
	}
	return nil
}

// BindMount shows dir, made where it is missing, at the point: for a root disk
// that is too small to fall back to. A volume's whole filesystem is refused, for
// it would pass for the volume.
func (h *Host) BindMount(dir, point string, root Root) error {
	if err := makeDirectory(dir); err != nil {
		return err
	}
	if m, mounted, err := h.MountedAt(dir); err != nil {
		return err
	} else if mounted && m.VolumeID != "" {
		return fmt.Errorf("%s: %w", dir, ErrWholeVolume)
	}
	if err := root.apply(dir); err != nil {
		return err
	}
	if err := provenWritable(dir); err != nil {
		return err
	}
	real, err := h.freePoint(point)
	if err != nil {
		return err
	}
	if err := unix.Mount(dir, real, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", dir, point, err)
	}
	return nil
}

// freePoint resolves a point at which nothing is mounted.
func (h *Host) freePoint(point string) (string, error) {
	real, err := realPath(point)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(real); err != nil {
		return "", fmt.Errorf("find mount point: %w", err)
	} else if !info.IsDir() {
		return "", fmt.Errorf("%s: %w", point, ErrNotDirectory)
	}
	if _, mounted, err := h.mountedAt(filepath.Clean(real)); err != nil {
		return "", err
	} else if mounted {
		return "", fmt.Errorf("%s: %w", point, ErrAlreadyMounted)
	}
	return real, nil
}
