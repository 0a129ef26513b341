//go:build !race

package sim

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"github.com/volpool/volpool/lease"
)

// ec2Side is EC2 as package pool calls it.
type ec2Side struct{ p *process }

func refusal(err error) error {
	code := ""
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errInUse):
		code = "VolumeInUse"
	case errors.Is(err, errNotThere):
		code = "IncorrectState"
	case errors.Is(err, lease.ErrThrottled):
		code = "RequestLimitExceeded"
	default:
		return err
	}
	return &smithy.GenericAPIError{Code: code, Message: code}
}

func (e ec2Side) AttachVolume(ctx context.Context, in *ec2.AttachVolumeInput, _ ...func(*ec2.Options)) (*ec2.AttachVolumeOutput, error) {
	e.mine("attaches", in.VolumeId, in.InstanceId)
	return &ec2.AttachVolumeOutput{}, refusal(e.p.attach(ctx, e.p.w.disks[*in.VolumeId]))
}

func (e ec2Side) DetachVolume(ctx context.Context, in *ec2.DetachVolumeInput, _ ...func(*ec2.Options)) (*ec2.DetachVolumeOutput, error) {
	e.mine("detaches", in.VolumeId, in.InstanceId)
	return &ec2.DetachVolumeOutput{}, refusal(e.p.detach(ctx, e.p.w.disks[*in.VolumeId]))
}

func (e ec2Side) mine(what string, volume, instance *string) {
	if aws.ToString(instance) != e.p.on.id {
		e.p.w.violate("%s %s %s for instance %q", e.p.name, what, *volume, aws.ToString(instance))
	}
}

func asked(filters []types.Filter) []string { return slices.Sorted(slices.Values(filters[0].Values)) }

func tails(ids []string) string {
	var s []string
	for _, id := range ids {
		s = append(s, tail(id))
	}
	return strings.Join(s, ",")
}

func (e ec2Side) DescribeVolumes(ctx context.Context, in *ec2.DescribeVolumesInput, _ ...func(*ec2.Options)) (*ec2.DescribeVolumesOutput, error) {
	ids := asked(in.Filters)
	at := ""
	if *in.Filters[0].Name == "attachment.instance-id" {
		at, ids = ids[0], nil
		for _, d := range e.p.w.order {
			ids = append(ids, d.id)
		}
	}
	out, err := through(ctx, e.p, call{"describe volumes", tails(ids), nil}, func() (*ec2.DescribeVolumesOutput, error) {
		out := &ec2.DescribeVolumesOutput{}
		if e.p.gate.copying {
			return out, nil
		}
		for _, id := range ids {
			on, leaving := e.p.see(e.p.w.disks[id])
			if at != "" && (on == nil || on.id != at) {
				continue
			}
			v := types.Volume{VolumeId: &id, State: types.VolumeStateAvailable, AvailabilityZone: aws.String(zone), Size: aws.Int32(1)}
			if on != nil {
				state := types.VolumeAttachmentStateAttached
				if leaving {
					state = types.VolumeAttachmentStateDetaching
				}
				v.State = types.VolumeStateInUse
				v.Attachments = []types.VolumeAttachment{{InstanceId: &on.id, Device: aws.String("/dev/xvdaa"), State: state}}
			}
			out.Volumes = append(out.Volumes, v)
		}
		return out, nil
	})
	return out, refusal(err)
}

var stateNames = map[lease.OwnerState]types.InstanceStateName{
	lease.OwnerPending: types.InstanceStateNamePending, lease.OwnerRunning: types.InstanceStateNameRunning,
	lease.OwnerShuttingDown: types.InstanceStateNameShuttingDown, lease.OwnerTerminated: types.InstanceStateNameTerminated,
}

func (e ec2Side) DescribeInstances(ctx context.Context, in *ec2.DescribeInstancesInput, _ ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error) {
	ids := asked(in.Filters)
	out, err := through(ctx, e.p, call{"describe instances", tails(ids), nil}, func() (*ec2.DescribeInstancesOutput, error) {
		out := &ec2.DescribeInstancesOutput{}
		for _, id := range ids {
			name := stateNames[e.p.w.ownerState(id)]
			if name == "" {
				continue
			}
			out.Reservations = append(out.Reservations, types.Reservation{
				Instances: []types.Instance{{InstanceId: &id, State: &types.InstanceState{Name: name}}}})
		}
		return out, nil
	})
	return out, refusal(err)
}

func (e ec2Side) CreateTags(context.Context, *ec2.CreateTagsInput, ...func(*ec2.Options)) (*ec2.CreateTagsOutput, error) {
	return nil, errors.New("the agent sets no tags")
}

func (e ec2Side) DeleteVolume(context.Context, *ec2.DeleteVolumeInput, ...func(*ec2.Options)) (*ec2.DeleteVolumeOutput, error) {
	e.p.w.violate("%s deletes a volume", e.p.name)
	return nil, errors.New("the agent deletes nothing")
}
