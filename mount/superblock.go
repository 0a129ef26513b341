//go:build linux

package mount

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// isExt tells the filesystems that e2fsck checks.
func isExt(fsType string) bool { return slices.Contains([]string{"ext2", "ext3", "ext4"}, fsType) }

// extSuper is what we need to know of ext4's superblock.
type extSuper struct {
	state         uint16
	incompat      uint32
	blocks, block int64
}

func (d *Device) readExtSuper() (extSuper, error) {
	b := make([]byte, 1024)
	if _, err := d.file.ReadAt(b, 1024); err != nil {
		return extSuper{}, fmt.Errorf("read superblock: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint16(b[0x38:]) != 0xef53 {
		return extSuper{}, fmt.Errorf("read superblock: no ext4 there")
	}
	s := extSuper{state: le.Uint16(b[0x3a:]), incompat: le.Uint32(b[0x60:]), block: 1024 << (le.Uint32(b[0x18:]) & 15)}
	s.blocks = int64(le.Uint32(b[0x4:]))
	if s.incompat&0x80 != 0 { // 64bit
		s.blocks |= int64(le.Uint32(b[0x150:])) << 32
	}
	return s, nil
}

// clean: unmounted, without an error noted, and with nothing in the journal that
// waits to be replayed.
func (s extSuper) clean() bool {
	const valid, hasErrors, needsRecovery = 1, 2, 4
	return s.state&valid != 0 && s.state&hasErrors == 0 && s.incompat&needsRecovery == 0
}

// leftClean reads for ext4 what it says of itself. All others look after
// themselves at the mount, as XFS replays its log, or have no check of ours.
func (d *Device) leftClean(fsType string) (bool, error) {
	if !isExt(fsType) {
		return true, nil
	}
	s, err := d.readExtSuper()
	return s.clean(), err
}

// xfsSuper is what we need to know of XFS's superblock.
type xfsSuper struct {
	blocks, block int64
	inodePercent  uint8 // how much of the space inodes may take
}

func (d *Device) readXFSSuper() (xfsSuper, error) {
	b := make([]byte, 512)
	if _, err := d.file.ReadAt(b, 0); err != nil {
		return xfsSuper{}, fmt.Errorf("read superblock: %w", err)
	}
	if string(b[:4]) != "XFSB" {
		return xfsSuper{}, fmt.Errorf("read superblock: no XFS there")
	}
	be := binary.BigEndian
	return xfsSuper{block: int64(be.Uint32(b[4:])), blocks: int64(be.Uint64(b[8:])), inodePercent: b[127]}, nil
}
