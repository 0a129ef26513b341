//go:build linux

package mount

import (
	"fmt"
	"os"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// The kernel's own calls to grow a mounted filesystem, which resize2fs and
// xfs_growfs make too.
const (
	ext4ResizeFS = 0x40086610 // _IOW('f', 16, __u64)
	xfsGrowData  = 0x4010586e // _IOW('X', 110, struct xfs_growfs_data)
)

type xfsGrowth struct {
	blocks       uint64
	inodePercent uint32
}

// grow lets the mounted filesystem have the whole device, for a volume may have
// been enlarged since it was formatted. For ext4 it takes CAP_SYS_RESOURCE.
func (d *Device) grow(point, fsType string) error {
	switch fsType {
	case "ext4":
		s, err := d.readExtSuper()
		if err != nil || !d.outgrown(s.blocks*s.block) {
			return err
		}
		blocks := uint64(d.disk.bytes / s.block)
		return d.growBy(point, ext4ResizeFS, unsafe.Pointer(&blocks))
	case "xfs":
		s, err := d.readXFSSuper()
		if err != nil || !d.outgrown(s.blocks*s.block) {
			return err
		}
		growth := xfsGrowth{blocks: uint64(d.disk.bytes / s.block), inodePercent: uint32(s.inodePercent)}
		return d.growBy(point, xfsGrowData, unsafe.Pointer(&growth))
	}
	return nil
}

// outgrown: EBS volumes grow by whole GiB. What is less than one of ext4's block
// groups is what mkfs could make no use of.
func (d *Device) outgrown(filesystem int64) bool { return d.disk.bytes-filesystem >= 128*mib }

func (d *Device) growBy(point string, call uintptr, argument unsafe.Pointer) error {
	f, err := os.Open(point)
	if err != nil {
		return fmt.Errorf("open mount point: %w", err)
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), call, uintptr(argument)); errno != 0 {
		return fmt.Errorf("grow filesystem: %w", errno)
	}
	d.host.log.Info("filesystem grown", zap.String("device", d.path), zap.Int64("gib", d.SizeGiB()))
	return nil
}
