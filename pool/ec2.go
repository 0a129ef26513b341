package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"github.com/volpool/volpool/lease"
)

type ec2API interface {
	AttachVolume(context.Context, *ec2.AttachVolumeInput, ...func(*ec2.Options)) (*ec2.AttachVolumeOutput, error)
	DetachVolume(context.Context, *ec2.DetachVolumeInput, ...func(*ec2.Options)) (*ec2.DetachVolumeOutput, error)
	DescribeVolumes(context.Context, *ec2.DescribeVolumesInput, ...func(*ec2.Options)) (*ec2.DescribeVolumesOutput, error)
	DescribeInstances(context.Context, *ec2.DescribeInstancesInput, ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error)
	CreateTags(context.Context, *ec2.CreateTagsInput, ...func(*ec2.Options)) (*ec2.CreateTagsOutput, error)
	DeleteVolume(context.Context, *ec2.DeleteVolumeInput, ...func(*ec2.Options)) (*ec2.DeleteVolumeOutput, error)
}

// EC2 is what volpool asks of EC2, with its errors translated once.
type EC2 struct{ api ec2API }

// NewEC2 returns an adapter over the SDK's client.
func NewEC2(api ec2API) *EC2 { return &EC2{api: api} }

// What EC2 answers where it does not do as asked.
var (
	ErrVolumeInUse    = errors.New("the volume is attached")
	ErrIncorrectState = errors.New("the volume or the instance is not in a state for it")
	ErrNameInUse      = errors.New("the device name is in use")
	ErrNotFound       = errors.New("EC2 does not know it")
	ErrNoInstance     = errors.New("EC2 does not know the instance (yet)")
	ErrWrongZone      = errors.New("the volume is in another zone")
	ErrAttachLimit    = errors.New("the instance can take no more volumes")
	ErrThrottled      = errors.New("throttled by EC2")
	ErrDenied         = errors.New("denied by IAM")
	ErrUnreachable    = errors.New("EC2 cannot be reached")
)

// VolumeInfo is a volume as EC2 describes it.
type VolumeInfo struct {
	ID, Zone     string
	State        types.VolumeState
	SizeGiB      int64
	Created      time.Time
	MultiAttach  bool
	FromSnapshot bool
	Attachment   *Attachment // nil: none
}

// Attachment is where a volume is attached, or on its way to or from.
type Attachment struct {
	Instance, Name string
	State          types.VolumeAttachmentState
}

// AttachedTo tells whether the volume is attached to the instance, in any
// stage of it.
func (v VolumeInfo) AttachedTo(instance string) bool {
	return v.Attachment != nil && v.Attachment.Instance == instance
}

// Attach asks EC2 to attach a volume. It returns once EC2 has accepted it,
// which is long before the device is there. It is sent once: after a refusal
// nothing is attached by it.
func (e *EC2) Attach(ctx context.Context, volume, instance, name string) error {
	_, err := e.api.AttachVolume(ctx, &ec2.AttachVolumeInput{VolumeId: &volume, InstanceId: &instance, Device: &name},
		func(o *ec2.Options) { o.Retryer = aws.NopRetryer{} })
	return ec2Error("attach volume", volume, err)
}

// Detach asks EC2 to detach a volume from this instance, and from no other.
func (e *EC2) Detach(ctx context.Context, volume, instance string) error {
	_, err := e.api.DetachVolume(ctx, &ec2.DetachVolumeInput{VolumeId: &volume, InstanceId: &instance})
	return ec2Error("detach volume", volume, err)
}

// Volumes describes volumes, by filter: a Describe by ids fails whole when one
// of them is missing (aws-ebs-csi-driver#2817). What EC2 does not know is not
// in the answer.
func (e *EC2) Volumes(ctx context.Context, ids ...string) (map[string]VolumeInfo, error) {
	return e.volumes(ctx, types.Filter{Name: aws.String("volume-id"), Values: ids})
}

// VolumesAt describes the volumes of a pool that are attached to an instance, in
// any stage of it.
func (e *EC2) VolumesAt(ctx context.Context, instance, pool string) (map[string]VolumeInfo, error) {
	return e.volumes(ctx, types.Filter{Name: aws.String("attachment.instance-id"), Values: []string{instance}},
		types.Filter{Name: aws.String("tag:" + PoolTag), Values: []string{pool}})
}

func (e *EC2) volumes(ctx context.Context, filters ...types.Filter) (map[string]VolumeInfo, error) {
	found := map[string]VolumeInfo{}
	in := &ec2.DescribeVolumesInput{Filters: filters}
	for {
		out, err := e.api.DescribeVolumes(ctx, in)
		if err != nil {
			return nil, ec2Error("describe volumes", filters[0].Values[0], err)
		}
		for _, v := range out.Volumes {
			found[aws.ToString(v.VolumeId)] = volumeInfo(v)
		}
		if in.NextToken = out.NextToken; aws.ToString(in.NextToken) == "" {
			return found, nil
		}
	}
}

// Volume describes one volume, or ends with [ErrNotFound].
func (e *EC2) Volume(ctx context.Context, id string) (VolumeInfo, error) {
	found, err := e.Volumes(ctx, id)
	if err != nil {
		return VolumeInfo{}, err
	}
	v, ok := found[id]
	if !ok {
		return VolumeInfo{}, fmt.Errorf("describe volumes: %s: %w", id, ErrNotFound)
	}
	return v, nil
}

func volumeInfo(v types.Volume) VolumeInfo {
	info := VolumeInfo{
		ID: aws.ToString(v.VolumeId), Zone: aws.ToString(v.AvailabilityZone), State: v.State,
		SizeGiB: int64(aws.ToInt32(v.Size)), Created: aws.ToTime(v.CreateTime),
		MultiAttach: aws.ToBool(v.MultiAttachEnabled), FromSnapshot: aws.ToString(v.SnapshotId) != "",
	}
	for _, a := range v.Attachments {
		if a.State != types.VolumeAttachmentStateDetached {
			info.Attachment = &Attachment{Instance: aws.ToString(a.InstanceId), Name: aws.ToString(a.Device), State: a.State}
		}
	}
	return info
}

// Owners tells what EC2 says of instances; one it does not know is
// [lease.OwnerGone].
func (e *EC2) Owners(ctx context.Context, ids ...string) (map[string]lease.OwnerState, error) {
	found := map[string]lease.OwnerState{}
	in := &ec2.DescribeInstancesInput{Filters: []types.Filter{{Name: aws.String("instance-id"), Values: ids}}}
	for {
		out, err := e.api.DescribeInstances(ctx, in)
		if err != nil {
			return nil, ec2Error("describe instances", ids[0], err)
		}
		for _, r := range out.Reservations {
			for _, i := range r.Instances {
				if i.State != nil {
					found[aws.ToString(i.InstanceId)] = owners[i.State.Name]
				}
			}
		}
		if in.NextToken = out.NextToken; aws.ToString(in.NextToken) == "" {
			return found, nil
		}
	}
}

var owners = map[types.InstanceStateName]lease.OwnerState{
	types.InstanceStateNamePending: lease.OwnerPending, types.InstanceStateNameRunning: lease.OwnerRunning,
	types.InstanceStateNameStopping: lease.OwnerStopping, types.InstanceStateNameStopped: lease.OwnerStopped,
	types.InstanceStateNameShuttingDown: lease.OwnerShuttingDown, types.InstanceStateNameTerminated: lease.OwnerTerminated,
}

// Tag marks a volume as the pool's: the runtime role may attach only what
// carries the mark.
func (e *EC2) Tag(ctx context.Context, volume, pool string) error {
	_, err := e.api.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{volume},
		Tags: []types.Tag{{Key: aws.String(PoolTag), Value: &pool}}})
	return ec2Error("tag volume", volume, err)
}

// PoolTag is the tag that a pool's volumes carry.
const PoolTag = "volpool:pool"

// Delete deletes a volume for good.
func (e *EC2) Delete(ctx context.Context, volume string) error {
	_, err := e.api.DeleteVolume(ctx, &ec2.DeleteVolumeInput{VolumeId: &volume})
	return ec2Error("delete volume", volume, err)
}

// EC2Error is a call to EC2 that did not end well.
type EC2Error struct {
	Op, On string
	Kind   error // one of the sentinels, or nil
	Err    error
}

func (e *EC2Error) Error() string { return fmt.Sprintf("%s %s: %v", e.Op, e.On, e.Err) }

// Unwrap lets errors.Is find the kind and the cause.
func (e *EC2Error) Unwrap() []error {
	if e.Kind == nil {
		return []error{e.Err}
	}
	return []error{e.Kind, e.Err}
}

func ec2Error(op, on string, err error) error {
	if err == nil {
		return nil
	}
	e := &EC2Error{Op: op, On: on, Err: err}
	api, answered := errors.AsType[smithy.APIError](err)
	if !answered {
		e.Kind, e.Err = ErrUnreachable, fmt.Errorf("%w: %w", ErrUnreachable, rootCause(err))
		return e
	}
	e.Err = fmt.Errorf("%s: %s", api.ErrorCode(), api.ErrorMessage())
	switch api.ErrorCode() {
	case "VolumeInUse":
		e.Kind = ErrVolumeInUse
	case "IncorrectState", "OperationNotPermitted", "IncorrectModificationState":
		// the second: the volume is being modified (terraform-provider-aws#24610)
		e.Kind = ErrIncorrectState
	case "InvalidParameterValue":
		// our other parameters are well formed: what is left is the name
		e.Kind = ErrNameInUse
	case "InvalidVolume.NotFound", "InvalidAttachment.NotFound":
		e.Kind = ErrNotFound
	case "InvalidInstanceID.NotFound":
		e.Kind = ErrNoInstance // eventual consistency: it may be new
	case "InvalidVolume.ZoneMismatch":
		e.Kind = ErrWrongZone
	case "AttachmentLimitExceeded":
		e.Kind = ErrAttachLimit
	case "RequestLimitExceeded", "Throttling", "ThrottlingException":
		e.Kind = ErrThrottled
	case "UnauthorizedOperation", "AuthFailure", "AccessDenied", "AccessDeniedException", "OptInRequired", "Blocked",
		"ExpiredToken", "RequestExpired", "InvalidClientTokenId":
		e.Kind = ErrDenied
	}
	return e
}
