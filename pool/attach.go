package pool

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"go.uber.org/zap"
)

// deviceNames lists the names that AttachVolume is given, xvdaa to xvdbz,
// beginning at a place that the volume's id decides: two volumes of an instance
// seldom ask for the same. On NVMe the name says nothing of the device.
func deviceNames(volume string) []string {
	h := fnv.New32a()
	h.Write([]byte(volume))
	const names = 2 * 26
	list := make([]string, names)
	for i := range names {
		k := (int(h.Sum32()%names) + i) % names
		list[i] = fmt.Sprintf("/dev/xvd%c%c", 'a'+k/26, 'a'+k%26)
	}
	return list
}

// leavingPatience is how long a volume is waited for that is still detaching from
// this instance: it needs some 5 s.
const leavingPatience = 15 * time.Second

// attach asks EC2 until it accepts, or refuses for good.
func (a *Agent) attach(ctx context.Context, h *holding) (name string, f *failure) {
	volume := h.volume
	names := deviceNames(volume)
	leaving := a.elapsed() + leavingPatience
	throttled := 0
	for {
		a.at(ReasonAttachTimeout)
		err := a.EC2.Attach(ctx, volume, a.id.Instance, names[0])
		switch {
		case err == nil:
			h.attached = true
			h.attachedAt = a.elapsed()
			return names[0], nil
		case errors.Is(err, ErrNameInUse) && len(names) > 1:
			names = names[1:]
			continue
		case errors.Is(err, ErrVolumeInUse), errors.Is(err, ErrIncorrectState):
			v, lookErr := a.EC2.Volume(ctx, volume)
			switch {
			case lookErr != nil:
			case v.AttachedTo(a.id.Instance) && settledOrComing(v):
				h.attached = true
				return v.Attachment.Name, nil // an earlier try whose reply was lost, or a former process
			case v.AttachedTo(a.id.Instance) && a.elapsed() < leaving: // a former process was giving it back
			case v.State != types.VolumeStateAvailable:
				return "", &failure{reason: ReasonInUse, blame: blameRace, err: fmt.Errorf("%w (EC2 shows it %s)", err, shown(v))}
			}
			// Where the volume is available, it is the instance that is not
			// running yet, as at boot.
		case errors.Is(err, ErrNoInstance): // it is new, and EC2's replica is older
		case errors.Is(err, ErrThrottled):
			a.at(ReasonThrottled)
			throttled++ // who asks more often only takes from the others
		case errors.Is(err, ErrUnreachable):
			h.attached = true // perhaps
			a.at(ReasonUnreachable)
		case errors.Is(err, ErrDenied):
			return "", &failure{reason: ReasonDenied, err: err}
		case errors.Is(err, ErrAttachLimit):
			return "", &failure{reason: ReasonAttachLimit, err: err}
		case errors.Is(err, ErrWrongZone):
			return "", &failure{reason: ReasonMachine, err: err, hint: "is --zone the instance's own?"}
		case errors.Is(err, ErrNotFound):
			return "", &failure{reason: ReasonBadVolume, blame: blameVolume, err: err}
		default:
			return "", &failure{reason: ReasonAttachFailed, err: err}
		}
		a.Log.Info("attach not accepted yet", zap.String("volume", volume), zap.Error(err))
		if !pause(ctx, time.Second<<min(throttled, 2)) {
			late := a.late(context.WithoutCancel(ctx))
			late.err = err
			return "", late
		}
	}
}

func settledOrComing(v VolumeInfo) bool {
	return v.Attachment.State == types.VolumeAttachmentStateAttaching || v.Attachment.State == types.VolumeAttachmentStateAttached
}

func shown(v VolumeInfo) string {
	if v.Attachment != nil {
		return fmt.Sprintf("%s to %s", v.Attachment.State, v.Attachment.Instance)
	}
	return string(v.State)
}

// device waits for the volume's device. EC2 is asked meanwhile, seldom, and
// only to learn of a failure: the kernel knows first.
func (a *Agent) device(ctx context.Context, h *holding, arrivals Arrivals, attachName string) *failure {
	a.at(ReasonDeviceTimeout)
	volume := h.volume
	limited, cancel := context.WithTimeoutCause(ctx, a.opt.AttachTimeout, errAttachTimeout)
	defer cancel()
	watched, failed := context.WithCancelCause(limited)
	defer failed(nil)
	go func() {
		for wait := 5 * time.Second; pause(watched, wait); wait *= 2 {
			v, err := a.EC2.Volume(watched, volume)
			if err == nil && v.State == types.VolumeStateAvailable {
				failed(errTakenBack)
			}
		}
	}()
	disk, err := arrivals.Wait(watched, volume, attachName)
	for errors.Is(err, ErrLocked) {
		// The device is there. What an orphan of a former agent does to it is
		// waited for, beyond the deadline if it must be.
		a.at(ReasonRepairing)
		disk, err = arrivals.Wait(context.WithoutCancel(ctx), volume, attachName)
	}
	if err == nil {
		h.disk, h.device, h.size = disk, disk.Path(), disk.SizeGiB()
		return nil
	}
	switch cause := context.Cause(watched); {
	case errors.Is(cause, errTakenBack):
		// As with a key that the role may not use: no fault of the volume's.
		return &failure{reason: ReasonAttachFailed, blame: blameRace, err: fmt.Errorf("attach %s: %w", volume, cause)}
	case errors.Is(cause, errAttachTimeout):
		return a.noDevice(ctx, volume)
	case ctx.Err() != nil:
		late := a.late(context.WithoutCancel(ctx))
		late.err = fmt.Errorf("wait for the device of %s: %w", volume, err)
		return late
	}
	return diskFailure(err)
}

var (
	errAttachTimeout = errors.New("the attach took too long")
	errTakenBack     = errors.New("EC2 took the attach back: the volume is available again")
)

// noDevice tells EC2's delay from the kernel's. The volume is to blame only
// where EC2 says that the attach stands.
func (a *Agent) noDevice(ctx context.Context, volume string) *failure {
	v, err := a.EC2.Volume(ctx, volume)
	late := fmt.Errorf("EC2 did not attach %s within %v", volume, a.opt.AttachTimeout)
	switch {
	case err != nil:
		return &failure{reason: ReasonAttachTimeout, blame: blameRace, err: fmt.Errorf("%w, and does not say why: %w", late, err)}
	case !v.AttachedTo(a.id.Instance) || !settledOrComing(v):
		return &failure{reason: ReasonAttachFailed, blame: blameRace, err: fmt.Errorf("attach %s: %w", volume, errTakenBack)}
	case v.Attachment.State == types.VolumeAttachmentStateAttaching:
		return &failure{reason: ReasonAttachTimeout, blame: blameVolume, err: late}
	}
	return &failure{reason: ReasonDeviceTimeout, blame: blameVolume,
		err: fmt.Errorf("EC2 shows %s attached, but no device came within %v", volume, a.opt.AttachTimeout)}
}
