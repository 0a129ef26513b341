package story

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/volpool/volpool/integration/ec2sim/loopdev"
	"golang.org/x/sys/unix"
)

// Missing tells what this machine lacks for the story; nil if it lacks nothing.
func Missing() error {
	if os.Geteuid() != 0 {
		return errors.New(`it needs root, for loop devices, mounts and namespaces: sudo env "PATH=$PATH" make demo`)
	}
	var errs []error
	if err := loopdev.Supported(); err != nil {
		errs = append(errs, fmt.Errorf("it needs loop devices (modprobe loop; a container has to be privileged): %w", err))
	}
	for _, tool := range []struct{ name, source string }{
		{"mount", "mount"}, {"nsenter", "util-linux"}, {"blkid", "util-linux"}, {"mkfs.ext4", "e2fsprogs"}, {"e2fsck", "e2fsprogs"},
	} {
		if !installed(tool.name) {
			errs = append(errs, fmt.Errorf("it needs %s, of the package %s", tool.name, tool.source))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	m, err := startMachine(ctx, []string{"PATH=" + searchPath})
	if err != nil {
		return fmt.Errorf("it needs namespaces and mounts (a container has to be privileged): %w", err)
	}
	m.end()
	return nil
}

func installed(name string) bool {
	for _, dir := range filepath.SplitList(searchPath) {
		if unix.Access(filepath.Join(dir, name), unix.X_OK) == nil {
			return true
		}
	}
	return false
}

// place makes the folder of the story where device nodes work, which in many a
// /tmp they don't, and where every instance sees it, so not below what an
// instance has of its own.
func place() (string, error) {
	var errs []error
	for _, parent := range []string{os.TempDir(), "/var/tmp", "/var/lib"} {
		dir, err := placeIn(parent)
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
	}
	return "", fmt.Errorf("find a place for device nodes: %w", errors.Join(errs...))
}

func placeIn(parent string) (string, error) {
	parent, err := filepath.EvalSymlinks(parent)
	if err != nil {
		return "", err
	}
	for _, private := range []string{"/mnt/", "/run/", "/proc/"} {
		if strings.HasPrefix(parent+"/", private) {
			return "", fmt.Errorf("%s is below %s, which each instance has of its own", parent, private)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(parent, &fs); err != nil {
		return "", fmt.Errorf("look at %s: %w", parent, err)
	}
	if fs.Flags&unix.ST_NODEV != 0 || fs.Flags&unix.ST_NOEXEC != 0 {
		return "", fmt.Errorf("%s is mounted nodev or noexec", parent)
	}
	return os.MkdirTemp(parent, "volpool-story-")
}

// leftovers tells of everything that still has to do with the folder.
func leftovers(dir string) error {
	var errs []error
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("left behind: folder %s", dir))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		errs = append(errs, err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			errs = append(errs, fmt.Errorf("left behind: mount %s", line))
		}
	}
	for _, holder := range []struct{ pattern, what string }{
		{"/sys/block/loop*/loop/backing_file", "loop device"},
		{"/proc/[0-9]*/environ", "process"},
	} {
		paths, err := filepath.Glob(holder.pattern)
		errs = append(errs, err)
		for _, path := range paths {
			// What goes away while we look is not left.
			if text, err := os.ReadFile(path); err == nil && bytes.Contains(text, []byte(dir+"/")) {
				errs = append(errs, fmt.Errorf("left behind: %s %s", holder.what, path))
			}
		}
	}
	return errors.Join(errs...)
}
