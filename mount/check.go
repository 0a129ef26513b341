//go:build linux

package mount

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"
)

// Check is what a check of a filesystem ended in.
type Check struct {
	Repaired bool // something was corrected
	Output   string
}

// Check repairs ext4 as far as that is safe without asking. The error wraps
// ErrBadFilesystem, in a *VolumeError, where more is needed; any other says
// nothing against the volume. XFS replays its log at the mount, and
// xfs_repair would refuse before that, so there is nothing to do for it. Once
// begun it is not broken off when ctx ends.
func (d *Device) Check(ctx context.Context, fsType string) (Check, error) {
	if !isExt(fsType) {
		return Check{}, nil
	}
	if ctx.Err() != nil {
		return Check{}, fmt.Errorf("check %s: %w", d.path, context.Cause(ctx))
	}
	if err := d.Verify(); err != nil {
		return Check{}, err
	}
	d.blank = false
	said, err := run(d.file, "e2fsck", "-p", d.path)
	result, err := judgeFsck(said, err)
	d.host.log.Info("checked", zap.String("device", d.path), zap.Bool("repaired", result.Repaired), zap.String("output", said), zap.Error(err))
	if errors.Is(err, ErrBadFilesystem) {
		return result, &VolumeError{Op: "check", Device: d.path, Err: err}
	}
	if err != nil {
		return result, fmt.Errorf("check %s: %w", d.path, err)
	}
	return result, nil
}

// judgeFsck reads e2fsck's exit, a mask of bits. From 8 up it is this machine's
// fault, whatever the lower ones say: e2fsck 1.46 answers 12 on a feature that it
// does not know [e2fsprogs#147].
func judgeFsck(said string, err error) (Check, error) {
	const repaired, bad, lowest = 1, 4, 8
	if err == nil {
		return Check{Output: said}, nil
	}
	tool, ok := errors.AsType[*ToolError](err)
	switch {
	case !ok, tool.Exit < 0, tool.Exit >= lowest:
		return Check{Output: said}, err
	case tool.Exit&bad != 0:
		return Check{Output: said}, fmt.Errorf("%w: %w", ErrBadFilesystem, err)
	}
	return Check{Repaired: tool.Exit&repaired != 0, Output: said}, nil
}
