//go:build linux

package mount

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Usage is how full a filesystem is, in whole percent as df tells it, rounded up.
type Usage struct {
	UsedPercent, InodesPercent int64 // inodes: 0 where the filesystem has no limit
	FreeBytes, TotalBytes      int64 // free: for an ordinary user
}

// Usage asks the filesystem that holds the point.
func (h *Host) Usage(point string) (Usage, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(point, &fs); err != nil {
		return Usage{}, fmt.Errorf("get usage of %s: %w", point, err)
	}
	used, inodes := fs.Blocks-fs.Bfree, fs.Files-fs.Ffree
	return Usage{
		UsedPercent:   percent(used, used+fs.Bavail),
		InodesPercent: percent(inodes, fs.Files),
		FreeBytes:     int64(fs.Bavail) * fs.Bsize,
		TotalBytes:    int64(fs.Blocks) * fs.Bsize,
	}, nil
}

func percent(part, whole uint64) int64 {
	if whole == 0 {
		return 0
	}
	return int64((part*100 + whole - 1) / whole)
}
