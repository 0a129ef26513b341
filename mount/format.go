//go:build linux

package mount

import (
	"context"
	"fmt"
	"regexp"

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
	args, err := mkfsArgs(fsType, fsUUID, zeroed)
	if err != nil {
		return fmt.Errorf("format %s: %w", d.path, err)
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
	args = append(args, d.path)
	said, err := run(d.file, args[0], args[1:]...)
	if err != nil {
		return fmt.Errorf("format %s: %w", d.path, err)
	}
	d.host.log.Info("formatted", zap.String("device", d.path), zap.Strings("command", args), zap.String("output", said))
	return nil
}

func mkfsArgs(fsType, fsUUID string, zeroed bool) ([]string, error) {
	switch fsType {
	case "ext4":
		return ext4Args(fsUUID, zeroed)
	case "xfs":
		return xfsArgs(fsUUID, zeroed)
	}
	return nil, fmt.Errorf("%q is not a filesystem we make", fsType)
}

// ext4Features is what mke2fs 1.43 to 1.46 make by default. Named one by one, so
// that a newer one adds nothing (orphan_file) that the e2fsck of an older
// distribution, which may get the volume next, does not know; "^orphan_file"
// would be refused by those that never knew it [e2b infra#2192].
const ext4Features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg," +
	"sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// ext4Args are the options that write least: 5 MiB on 100 GiB, where the default
// writes a hundred times that and goes on for minutes after the mount.
func ext4Args(fsUUID string, zeroed bool) ([]string, error) {
	extended := "nodiscard,lazy_itable_init=1,lazy_journal_init=1"
	// The kernel zeroes inode tables in the background, unless it is told that
	// they are zero already. mke2fs 1.47 can tell it.
	v, err := toolVersion("mkfs.ext4")
	if err != nil {
		return nil, err
	}
	if zeroed && v.atLeast(1, 47) {
		extended += ",assume_storage_prezeroed=1"
	}
	return []string{"mkfs.ext4", "-q", "-U", fsUUID, "-E", extended, "-O", ext4Features,
		"-b", "4096", "-I", "256", // else a small disk gets small blocks
		"-m", "0", // no part of a cache is kept for root
	}, nil
}

// xfsArgs keep to what Linux 4.18 reads: newer versions of mkfs.xfs turn on what
// an older kernel, which may get the volume next, cannot mount. Without -f it
// refuses a disk with a signature by itself.
func xfsArgs(fsUUID string, zeroed bool) ([]string, error) {
	v, err := toolVersion("mkfs.xfs")
	if err != nil {
		return nil, err
	}
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
	args := append([]string{"mkfs.xfs", "-q", "-K", "-m", metadata, "-i", inodes}, naming...)
	if !zeroed {
		args = append(args, "-f")
	}
	return args, nil
}

type version struct{ major, minor int }

func (v version) atLeast(major, minor int) bool {
	return v.major > major || v.major == major && v.minor >= minor
}

var versionNumber = regexp.MustCompile(`\d+\.\d+`)

func toolVersion(tool string) (version, error) {
	said, err := run(nil, tool, "-V")
	if err != nil {
		return version{}, err
	}
	return parseVersion(said), nil
}

// parseVersion takes the first number that looks like a version: "mke2fs 1.47.0
// (5-Feb-2023)". Where there is none, the tool counts as old.
func parseVersion(said string) version {
	var v version
	if _, err := fmt.Sscanf(versionNumber.FindString(said), "%d.%d", &v.major, &v.minor); err != nil {
		return version{}
	}
	return v
}
