package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/volpool/volpool/lease"
	"go.uber.org/zap"
)

// prepare makes the filesystem ready for the mount: it formats a volume that is
// proven blank, or checks the filesystem that is there. Neither is broken off at
// the deadline.
func (a *Agent) prepare(ctx context.Context, h *holding) *failure {
	a.at(ReasonRepairing)
	whole := context.WithoutCancel(ctx)
	found, err := h.disk.Probe(whole)
	if err != nil {
		return diskFailure(err)
	}
	was := h.before
	a.Log.Info("probed", zap.String("volume", was.Volume), zap.String("device", h.device), zap.String("why", found.Why))
	switch decideContent(was, found) {
	case useAsIs:
		return a.check(whole, h, found)
	case formatIt:
		return a.format(ctx, h, found.Content != Blank)
	}
	return &failure{reason: ReasonBadVolume, blame: blameVolume, err: contentError(was, found)}
}

type contentVerdict int

const (
	refuseIt contentVerdict = iota
	useAsIs
	formatIt
)

// decideContent is the one place that says what may be formatted: what is
// proven blank and was never formatted, as the table knows; and what carries the
// mark of a formatting that never was done, or of a wipe.
func decideContent(was lease.Record, found Probe) contentVerdict {
	switch was.Format {
	case lease.FormatBegun, lease.FormatWiping:
		if found.Content == Blank || found.Content == HasData {
			return formatIt
		}
	case lease.FormatNever:
		if found.Content == Blank {
			return formatIt
		}
		if found.Content == HasData && usable(found.FSType) {
			return useAsIs // formatted before it was added: adopted
		}
	case lease.FormatDone:
		same := was.FSUUID == "" || was.FSUUID == found.FSUUID && was.FSType == found.FSType
		if found.Content == HasData && usable(found.FSType) && same {
			return useAsIs
		}
	}
	return refuseIt
}

func usable(fsType string) bool { return fsType == "ext4" || fsType == "xfs" }

func contentError(was lease.Record, found Probe) error {
	switch {
	case found.Content == Unknown:
		return fmt.Errorf("what %s holds cannot be told: %s", was.Volume, found.Why)
	case found.Content == Blank:
		return fmt.Errorf("%s is blank, but the table says that it was formatted", was.Volume)
	case was.FSUUID != "" && usable(found.FSType):
		return fmt.Errorf("%s holds %s %s, but the table says %s %s", was.Volume, found.FSType, found.FSUUID, was.FSType, was.FSUUID)
	}
	return fmt.Errorf("%s holds data that is no ext4 or xfs filesystem: %s", was.Volume, found.Why)
}

// format: proof, then the mark, then mkfs, then done, and only then the mount.
// So a volume with a mark never had a file in it.
func (a *Agent) format(ctx context.Context, h *holding, overwrite bool) *failure {
	h.cold = map[lease.Format]Reason{lease.FormatNever: ReasonNew, lease.FormatWiping: ReasonWiped, lease.FormatBegun: ReasonRepaired}[h.before.Format]
	h.fsType = a.claimant.Settings().Filesystem
	fsUUID := uuid.NewString()
	a.at(ReasonUnreachable)
	if err := h.lease.IntendFormat(ctx, h.fsType, fsUUID); err != nil { // nothing is begun: it may be broken off
		if errors.Is(err, lease.ErrFormatted) {
			return &failure{reason: ReasonBadVolume, blame: blameVolume, err: err}
		}
		return a.leaseFailure(err)
	}
	if h.lease.Danger() { // the reply came late: somebody may have taken over
		return &failure{reason: ReasonUnreachable, err: errors.New("the lease was in danger before the format")}
	}
	a.at(ReasonRepairing)
	if err := h.disk.Format(context.WithoutCancel(ctx), h.fsType, fsUUID, overwrite); err != nil {
		return diskFailure(err)
	}
	h.sound = true
	return a.leaseFailure(h.lease.FormatDone(h.lease.Context()))
}

// check looks at a filesystem that was not left clean, and records one that was
// found on the volume.
func (a *Agent) check(ctx context.Context, h *holding, found Probe) *failure {
	h.fsType = found.FSType
	if !h.before.Clean || !found.Clean {
		repaired, err := h.disk.Check(ctx, found.FSType)
		if err != nil {
			return diskFailure(err)
		}
		if repaired {
			a.Log.Warn("filesystem repaired", zap.String("volume", h.before.Volume))
		}
	}
	h.sound = true
	if h.before.Format == lease.FormatDone && h.before.FSUUID != "" {
		return nil
	}
	h.lease.Note(lease.Facts{FSType: &found.FSType, FSUUID: &found.FSUUID})
	return a.leaseFailure(h.lease.FormatDone(h.lease.Context()))
}

func diskFailure(err error) *failure {
	f := &failure{reason: ReasonMachine, err: err}
	if d, ok := errors.AsType[*DiskError](err); ok {
		f.reason = d.Reason
		if d.VolumeFault {
			f.blame = blameVolume
		}
	}
	return f
}
