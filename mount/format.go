//go:build linux

package mount

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"go.uber.org/zap"
)

// Format makes a filesystem on a device that the last Probe proved blank;
// otherwise it answers ErrNotBlank and writes nothing. Once begun it is not
// broken off when ctx ends.
func (d *Device) Format(ctx context.Context, fsType, fsUUID string) error {
	if !d.blank {
		return fmt.Errorf("format %s: %w", d.path, ErrNotBlank)
	}
	return d.makeFilesystem(ctx, fsType, fsUUID, true)
}

// Overwrite makes a filesystem whatever the device holds. It is for a volume
// whose record says that its content is nobody's: half-formatted, never done, or
// marked to be wiped. Old signatures are erased first, so that none is found
// beside the new one later.
func (d *Device) Overwrite(ctx context.Context, fsType, fsUUID string) error {
	return d.makeFilesystem(ctx, fsType, fsUUID, false)
}

func (d *Device) makeFilesystem(ctx context.Context, fsType, fsUUID string, zeroed bool) error {
	if fsType != "ext4" && fsType != "xfs" {
		return fmt.Errorf("format %s: %q is not a filesystem we make", d.path, fsType)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("format %s: %w", d.path, context.Cause(ctx))
	}
	if err := d.Verify(); err != nil {
		return err
	}
	d.blank = false
	if !zeroed {
		if err := d.erase(); err != nil {
			return err
		}
	}
	var said string
	var err error
	switch fsType {
	case "ext4":
		said, err = d.makeExt4(fsUUID, zeroed)
	default:
		said, err = d.makeXFS(fsUUID)
	}
	if err != nil {
		return fmt.Errorf("format %s: %w", d.path, err)
	}
	d.host.log.Info("formatted", zap.String("device", d.path), zap.String("filesystem", fsType), zap.String("output", said))
	return nil
}

// ext4Features is what mke2fs 1.43 to 1.46 make by default. Named one by one, so
// that a newer one adds nothing (orphan_file) that the e2fsck of an older
// distribution, which may get the volume next, does not know; "^orphan_file"
// would be refused by those that never knew it [e2b infra#2192].
const ext4Features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg," +
	"sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// prezeroed tells mke2fs 1.47 that the inode tables are zero already. Without it
// the kernel zeroes them in the background, after the mount.
const prezeroed = "assume_storage_prezeroed"

func (d *Device) makeExt4(fsUUID string, zeroed bool) (string, error) {
	args := ext4Args(fsUUID, zeroed)
	said, err := run(d.file, args[0], append(args[1:], d.path)...)
	if err != nil && zeroed && strings.Contains(said, prezeroed) {
		// An older one refuses the word, before it touches the device.
		args = ext4Args(fsUUID, false)
		return run(d.file, args[0], append(args[1:], d.path)...)
	}
	return said, err
}

// ext4Args are the options that write least: 5 MiB on 100 GiB, where the default
// writes a hundred times that and goes on for minutes after the mount.
func ext4Args(fsUUID string, zeroed bool) []string {
	extended := "nodiscard,lazy_itable_init=1,lazy_journal_init=1"
	if zeroed {
		extended += "," + prezeroed + "=1"
	}
	return []string{"mkfs.ext4", "-q", "-U", fsUUID, "-E", extended, "-O", ext4Features,
		"-b", "4096", "-I", "256", // else a small disk gets small blocks
		"-m", "0", // no part of a cache is kept for root
	}
}

// makeXFS runs without -f: where mkfs.xfs itself still finds something, it
// refuses.
func (d *Device) makeXFS(fsUUID string) (string, error) {
	said, err := run(nil, "mkfs.xfs", "-V")
	if err != nil {
		return said, err
	}
	return run(d.file, "mkfs.xfs", append(xfsOptions(parseVersion(said), fsUUID), d.path)...)
}

// xfsOptions keep to what Linux 4.18 reads: newer versions of mkfs.xfs turn on
// what an older kernel, which may get the volume next, cannot mount, and older
// ones know no word for it.
func xfsOptions(v version, fsUUID string) []string {
	metadata, inodes := "crc=1,finobt=1,rmapbt=0,reflink=1,uuid="+fsUUID, "sparse=1"
	var naming []string
	if v.atLeast(5, 10) {
		metadata += ",bigtime=0,inobtcount=0"
	}
	if v.atLeast(5, 19) {
		inodes += ",nrext64=0"
	}
	if v.atLeast(6, 10) {
		inodes += ",exchange=0"
		naming = []string{"-n", "parent=0"}
	}
	return append([]string{"-q", "-K", "-m", metadata, "-i", inodes}, naming...)
}

type version struct{ major, minor int }

func (v version) atLeast(major, minor int) bool {
	return v.major > major || v.major == major && v.minor >= minor
}

var versionNumber = regexp.MustCompile(`\d+\.\d+`)

// parseVersion takes the first number that looks like a version: "mkfs.xfs
// version 6.1.0". Where there is none, the tool counts as old.
func parseVersion(said string) version {
	var v version
	if _, err := fmt.Sscanf(versionNumber.FindString(said), "%d.%d", &v.major, &v.minor); err != nil {
		return version{}
	}
	return v
}
