package ec2sim_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"github.com/volpool/volpool/integration/ec2sim"
	"github.com/volpool/volpool/integration/ec2sim/cloud"
)

const (
	noVolume   = "vol-0ffffffffffffffff"
	noInstance = "i-0ffffffffffffffff"
	forever    = time.Hour
)

// world is a simulator, and the SDK to call it with.
type world struct {
	*ec2.Client
	t   *testing.T
	ctx context.Context
	sim *ec2sim.Sim
}

func newWorld(t *testing.T, timing ec2sim.Timing) *world {
	t.Helper()
	sim := start(t, ec2sim.Config{Timing: timing})
	return &world{Client: client(sim), t: t, ctx: t.Context(), sim: sim}
}

func (w *world) running() string { return run(w.t, w.sim, ec2sim.RunInput{}).ID }

// pending starts an instance and doesn't wait for it.
func (w *world) pending() string {
	w.t.Helper()
	out, err := w.RunInstances(w.ctx, runOne("us-east-1a"))
	w.must(err)
	return *out.Instances[0].InstanceId
}

func runOne(zone string) *ec2.RunInstancesInput {
	return &ec2.RunInstancesInput{
		ImageId: aws.String("ami-0123456789abcdef0"), MinCount: aws.Int32(1), MaxCount: aws.Int32(1),
		Placement: &types.Placement{AvailabilityZone: &zone},
	}
}

func (w *world) volume() string {
	w.t.Helper()
	return createVolume(w.t, w.sim, ec2sim.CreateVolumeInput{SizeGiB: 10})
}

// creating makes a volume and doesn't wait for it.
func (w *world) creating() string {
	w.t.Helper()
	out, err := w.CreateVolume(w.ctx, &ec2.CreateVolumeInput{AvailabilityZone: aws.String("us-east-1a"), Size: aws.Int32(10)})
	w.must(err)
	return *out.VolumeId
}

// attached is a volume that is attached to the instance as xvdaa.
func (w *world) attached(instance string) string {
	w.t.Helper()
	v := w.volume()
	w.must(w.attach(v, instance, "/dev/xvdaa"))
	await(w.t, w.sim, v, cloud.Attached)
	return v
}

func (w *world) attach(volume, instance, device string) error {
	_, err := w.AttachVolume(w.ctx, &ec2.AttachVolumeInput{VolumeId: &volume, InstanceId: &instance, Device: &device})
	return err
}

func (w *world) detach(volume, instance string) error {
	in := &ec2.DetachVolumeInput{VolumeId: &volume}
	if instance != "" {
		in.InstanceId = &instance
	}
	_, err := w.DetachVolume(w.ctx, in)
	return err
}

func (w *world) modify(volume string, size int32) error {
	_, err := w.ModifyVolume(w.ctx, &ec2.ModifyVolumeInput{VolumeId: &volume, Size: &size})
	return err
}

func (w *world) create(in ec2.CreateVolumeInput) error {
	if in.AvailabilityZone == nil {
		in.AvailabilityZone = aws.String("us-east-1a")
	}
	_, err := w.CreateVolume(w.ctx, &in)
	return err
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func volumesBy(name string, values ...string) *ec2.DescribeVolumesInput {
	return &ec2.DescribeVolumesInput{Filters: []types.Filter{{Name: &name, Values: values}}}
}

// What EC2 refuses; package cloud cites where EC2 was seen to.
var refusals = []struct {
	name    string
	timing  ec2sim.Timing
	do      func(*world) error
	code    string
	message string // a part of it
	status  int    // 400 if zero
}{
	{name: "attach, no such volume",
		do:   func(w *world) error { return w.attach(noVolume, w.running(), "/dev/xvdaa") },
		code: "InvalidVolume.NotFound", message: "The volume '" + noVolume + "' does not exist."},
	{name: "attach, no such instance",
		do:   func(w *world) error { return w.attach(w.volume(), noInstance, "/dev/xvdaa") },
		code: "InvalidInstanceID.NotFound", message: "The instance ID '" + noInstance + "' does not exist"},
	{name: "attach, no volume's id",
		do:   func(w *world) error { return w.attach("my-volume", w.running(), "/dev/xvdaa") },
		code: "InvalidParameterValue", message: "Expected: 'vol-...'"},
	{name: "attach, malformed volume id",
		do:   func(w *world) error { return w.attach("vol-xyz", w.running(), "/dev/xvdaa") },
		code: "InvalidVolumeID.Malformed"},
	{name: "attach, malformed instance id",
		do:   func(w *world) error { return w.attach(w.volume(), "i-12", "/dev/xvdaa") },
		code: "InvalidInstanceID.Malformed"},
	{name: "attach, other zone",
		do: func(w *world) error {
			return w.attach(w.volume(), run(w.t, w.sim, ec2sim.RunInput{Zone: "us-east-1b"}).ID, "/dev/xvdaa")
		},
		code: "InvalidVolume.ZoneMismatch", message: "is not in the same availability zone as instance"},
	{name: "attach, instance pending", timing: ec2sim.Timing{Boot: ec2sim.Span{Base: forever}},
		do:   func(w *world) error { return w.attach(w.volume(), w.pending(), "/dev/xvdaa") },
		code: "IncorrectState", message: "is not 'running'."},
	{name: "attach, instance terminated",
		do: func(w *world) error {
			i := w.running()
			w.must(w.sim.Terminate(i))
			return w.attach(w.volume(), i, "/dev/xvdaa")
		},
		code: "IncorrectState", message: "is not 'running'."},
	{name: "attach, instance forgotten", timing: ec2sim.Timing{Forget: time.Millisecond},
		do: func(w *world) error {
			i := w.running()
			w.must(w.sim.Terminate(i))
			w.must(w.sim.Wait(w.ctx, func() bool { _, known := w.sim.Cloud.Instance(i); return !known }))
			return w.attach(w.volume(), i, "/dev/xvdaa")
		},
		code: "InvalidInstanceID.NotFound"},
	{name: "attach, volume creating", timing: ec2sim.Timing{Create: ec2sim.Span{Base: forever}},
		do:   func(w *world) error { return w.attach(w.creating(), w.running(), "/dev/xvdaa") },
		code: "IncorrectState", message: "is not 'available'."},
	{name: "attach, volume deleting", timing: ec2sim.Timing{Delete: ec2sim.Span{Base: forever}},
		do: func(w *world) error {
			v := w.volume()
			w.must(w.sim.Cloud.DeleteVolume(v))
			return w.attach(v, w.running(), "/dev/xvdaa")
		},
		code: "IncorrectState", message: "is not 'available'."},
	{name: "attach, in use elsewhere",
		do:   func(w *world) error { return w.attach(w.attached(w.running()), w.running(), "/dev/xvdab") },
		code: "VolumeInUse", message: "is already attached to an instance"},
	{name: "attach, in use by the same instance",
		do: func(w *world) error {
			i := w.running()
			return w.attach(w.attached(i), i, "/dev/xvdaa")
		},
		code: "VolumeInUse", message: "is already attached to an instance"},
	{name: "attach, still detaching", timing: ec2sim.Timing{Detach: ec2sim.Span{Base: forever}},
		do: func(w *world) error {
			i := w.running()
			v := w.attached(i)
			w.must(w.detach(v, i))
			return w.attach(v, i, "/dev/xvdab")
		},
		code: "VolumeInUse"},
	{name: "attach, being modified", timing: ec2sim.Timing{Modify: ec2sim.Span{Base: forever}},
		do: func(w *world) error {
			v := w.volume()
			w.must(w.modify(v, 20))
			return w.attach(v, w.running(), "/dev/xvdaa")
		},
		code: "OperationNotPermitted", message: "when it is in modification state: MODIFYING"},
	{name: "attach, name in use",
		do: func(w *world) error {
			i := w.running()
			w.attached(i)
			return w.attach(w.volume(), i, "/dev/xvdaa")
		},
		code: "InvalidParameterValue", message: "Attachment point /dev/xvdaa is already in use"},
	{name: "attach, the root volume's name",
		do:   func(w *world) error { return w.attach(w.volume(), w.running(), "/dev/xvda") },
		code: "InvalidParameterValue", message: "is already in use"},
	{name: "attach, bad name",
		do:   func(w *world) error { return w.attach(w.volume(), w.running(), "/dev/sdk1") },
		code: "InvalidParameterValue", message: "/dev/sdk1 is not a valid EBS device name."},
	{name: "attach, too many",
		do: func(w *world) error {
			i := run(w.t, w.sim, ec2sim.RunInput{AttachLimit: 1}).ID
			w.attached(i)
			return w.attach(w.volume(), i, "/dev/xvdab")
		},
		code: "AttachmentLimitExceeded", message: "You may attach up to 1 devices"},
	{name: "detach, available",
		do:   func(w *world) error { return w.detach(w.volume(), "") },
		code: "IncorrectState", message: "is in the 'available' state."},
	{name: "detach, from another instance",
		do:   func(w *world) error { return w.detach(w.attached(w.running()), w.running()) },
		code: "InvalidAttachment.NotFound"},
	{name: "detach, another device name",
		do: func(w *world) error {
			v := w.attached(w.running())
			_, err := w.DetachVolume(w.ctx, &ec2.DetachVolumeInput{VolumeId: &v, Device: aws.String("/dev/xvdzz")})
			return err
		},
		code: "InvalidAttachment.NotFound"},
	{name: "detach, from no instance",
		do:   func(w *world) error { return w.detach(w.attached(w.running()), noInstance) },
		code: "InvalidInstanceID.NotFound"},
	{name: "detach, no such volume",
		do:   func(w *world) error { return w.detach(noVolume, "") },
		code: "InvalidVolume.NotFound"},
	{name: "detach, multi-attach without instance",
		do: func(w *world) error {
			v := createVolume(w.t, w.sim, ec2sim.CreateVolumeInput{Type: "io2", IOPS: 100, MultiAttach: true})
			w.must(w.attach(v, w.running(), "/dev/xvdaa"))
			return w.detach(v, "")
		},
		code: "MissingParameter"},
	{name: "detach, instance shutting down", timing: ec2sim.Timing{ShutDown: ec2sim.Span{Base: forever}},
		do: func(w *world) error {
			i := w.running()
			v := w.attached(i)
			_, err := w.TerminateInstances(w.ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{i}})
			w.must(err)
			return w.detach(v, i)
		},
		code: "IncorrectInstanceState", message: "not in a state in which volumes can be detached"},
	{name: "delete, attached",
		do: func(w *world) error {
			v := w.attached(w.running())
			_, err := w.DeleteVolume(w.ctx, &ec2.DeleteVolumeInput{VolumeId: &v})
			return err
		},
		code: "VolumeInUse", message: "is currently attached to i-"},
	{name: "delete, creating", timing: ec2sim.Timing{Create: ec2sim.Span{Base: forever}},
		do: func(w *world) error {
			v := w.creating()
			_, err := w.DeleteVolume(w.ctx, &ec2.DeleteVolumeInput{VolumeId: &v})
			return err
		},
		code: "IncorrectState"},
	{name: "create, no such zone",
		do: func(w *world) error {
			return w.create(ec2.CreateVolumeInput{AvailabilityZone: aws.String("us-east-1z"), Size: aws.Int32(1)})
		},
		code: "InvalidZone.NotFound"},
	{name: "create, no size",
		do:   func(w *world) error { return w.create(ec2.CreateVolumeInput{}) },
		code: "InvalidParameterValue", message: "must be at least 1 GiB"},
	{name: "create, no such type",
		do:   func(w *world) error { return w.create(ec2.CreateVolumeInput{Size: aws.Int32(1), VolumeType: "gp9"}) },
		code: "UnknownVolumeType"},
	{name: "create, throughput without gp3",
		do: func(w *world) error {
			return w.create(ec2.CreateVolumeInput{Size: aws.Int32(1), VolumeType: types.VolumeTypeGp2, Throughput: aws.Int32(200)})
		},
		code: "InvalidParameterCombination", message: "throughput can only be specified for volumeType gp3."},
	{name: "create, iops where there are none",
		do: func(w *world) error {
			return w.create(ec2.CreateVolumeInput{Size: aws.Int32(1), VolumeType: types.VolumeTypeStandard, Iops: aws.Int32(200)})
		},
		code: "InvalidParameterCombination"},
	{name: "create, iops missing",
		do: func(w *world) error {
			return w.create(ec2.CreateVolumeInput{Size: aws.Int32(1), VolumeType: types.VolumeTypeIo2})
		},
		code: "MissingParameter"},
	{name: "create, multi-attach without provisioned iops",
		do: func(w *world) error {
			return w.create(ec2.CreateVolumeInput{Size: aws.Int32(1), VolumeType: types.VolumeTypeGp3, MultiAttachEnabled: aws.Bool(true)})
		},
		code: "InvalidParameterCombination"},
	{name: "create, client token used for another",
		do: func(w *world) error {
			w.must(w.create(ec2.CreateVolumeInput{Size: aws.Int32(1), ClientToken: aws.String("same")}))
			return w.create(ec2.CreateVolumeInput{Size: aws.Int32(2), ClientToken: aws.String("same")})
		},
		code: "IdempotentParameterMismatch"},
	{name: "modify, being modified", timing: ec2sim.Timing{Modify: ec2sim.Span{Base: forever}},
		do: func(w *world) error {
			v := w.volume()
			w.must(w.modify(v, 20))
			return w.modify(v, 30)
		},
		code: "IncorrectModificationState", message: "cannot be modified in modification state MODIFYING"},
	{name: "modify, being optimized", timing: ec2sim.Timing{Optimize: ec2sim.Span{Base: forever}},
		do: func(w *world) error {
			v := w.volume()
			w.must(w.modify(v, 20))
			w.must(w.sim.Wait(w.ctx, func() bool { v, _ := w.sim.Volume(v); return v.SizeGiB == 20 }))
			return w.modify(v, 30)
		},
		code: "IncorrectModificationState", message: "OPTIMIZING"},
	{name: "modify, smaller",
		do:   func(w *world) error { return w.modify(w.volume(), 5) },
		code: "InvalidParameterValue", message: "smaller"},
	{name: "modifications, never modified",
		do: func(w *world) error {
			_, err := w.DescribeVolumesModifications(w.ctx, &ec2.DescribeVolumesModificationsInput{VolumeIds: []string{w.volume()}})
			return err
		},
		code: "InvalidVolumeModification.NotFound"},
	{name: "describe volumes, one of a batch missing",
		do: func(w *world) error {
			_, err := w.DescribeVolumes(w.ctx, &ec2.DescribeVolumesInput{VolumeIds: []string{w.volume(), noVolume, w.volume()}})
			return err
		},
		code: "InvalidVolume.NotFound", message: noVolume},
	{name: "describe volumes, two missing",
		do: func(w *world) error {
			_, err := w.DescribeVolumes(w.ctx, &ec2.DescribeVolumesInput{VolumeIds: []string{"vol-00000000", noVolume}})
			return err
		},
		code: "InvalidVolume.NotFound", message: "The volumes 'vol-00000000, " + noVolume + "' do not exist."},
	{name: "describe instances, one of a batch missing",
		do: func(w *world) error {
			_, err := w.DescribeInstances(w.ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{w.running(), noInstance}})
			return err
		},
		code: "InvalidInstanceID.NotFound", message: noInstance},
	{name: "describe volumes, unknown filter",
		do:   func(w *world) error { _, err := w.DescribeVolumes(w.ctx, volumesBy("colour", "red")); return err },
		code: "InvalidParameterValue", message: "The filter 'colour' is invalid"},
	{name: "describe volumes, too many filter values",
		do: func(w *world) error {
			_, err := w.DescribeVolumes(w.ctx, volumesBy("volume-id", make([]string, 201)...))
			return err
		},
		code: "FilterLimitExceeded"},
	{name: "describe instances, a filter of volumes",
		do: func(w *world) error {
			_, err := w.DescribeInstances(w.ctx, &ec2.DescribeInstancesInput{Filters: volumesBy("attachment.instance-id", "x").Filters})
			return err
		},
		code: "InvalidParameterValue", message: "The filter 'attachment.instance-id' is invalid"},
	{name: "describe volumes, small page",
		do: func(w *world) error {
			_, err := w.DescribeVolumes(w.ctx, &ec2.DescribeVolumesInput{MaxResults: aws.Int32(4)})
			return err
		},
		code: "InvalidParameterValue", message: "Expecting a value greater than 5."},
	{name: "describe volumes, page of ids",
		do: func(w *world) error {
			_, err := w.DescribeVolumes(w.ctx, &ec2.DescribeVolumesInput{VolumeIds: []string{w.volume()}, MaxResults: aws.Int32(10)})
			return err
		},
		code: "InvalidParameterCombination", message: "The parameter volumeSet cannot be used with the parameter maxResults"},
	{name: "describe instances, page of ids",
		do: func(w *world) error {
			_, err := w.DescribeInstances(w.ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{w.running()}, MaxResults: aws.Int32(10)})
			return err
		},
		code: "InvalidParameterCombination", message: "The parameter instancesSet cannot"},
	{name: "describe volumes, bad token",
		do: func(w *world) error {
			_, err := w.DescribeVolumes(w.ctx, &ec2.DescribeVolumesInput{NextToken: aws.String("%%")})
			return err
		},
		code: "InvalidPaginationToken"},
	{name: "stop, pending", timing: ec2sim.Timing{Boot: ec2sim.Span{Base: forever}},
		do: func(w *world) error {
			_, err := w.StopInstances(w.ctx, &ec2.StopInstancesInput{InstanceIds: []string{w.pending()}})
			return err
		},
		code: "IncorrectInstanceState", message: "never reached the 'running' state"},
	{name: "stop, terminated",
		do: func(w *world) error {
			i := w.running()
			w.must(w.sim.Terminate(i))
			_, err := w.StopInstances(w.ctx, &ec2.StopInstancesInput{InstanceIds: []string{i}})
			return err
		},
		code: "IncorrectInstanceState"},
	{name: "start, terminated",
		do: func(w *world) error {
			i := w.running()
			w.must(w.sim.Terminate(i))
			_, err := w.StartInstances(w.ctx, &ec2.StartInstancesInput{InstanceIds: []string{i}})
			return err
		},
		code: "IncorrectInstanceState", message: "not in a state from which it can be started"},
	{name: "tag, no such volume",
		do: func(w *world) error {
			_, err := w.CreateTags(w.ctx, &ec2.CreateTagsInput{Resources: []string{w.volume(), noVolume}, Tags: []types.Tag{{Key: aws.String("k")}}})
			return err
		},
		code: "InvalidVolume.NotFound"},
	{name: "tag, no id of ours",
		do: func(w *world) error {
			_, err := w.CreateTags(w.ctx, &ec2.CreateTagsInput{Resources: []string{"subnet-1"}, Tags: []types.Tag{{Key: aws.String("k")}}})
			return err
		},
		code: "InvalidID"},
	{name: "tag, reserved key",
		do: func(w *world) error {
			_, err := w.CreateTags(w.ctx, &ec2.CreateTagsInput{Resources: []string{w.volume()}, Tags: []types.Tag{{Key: aws.String("aws:k")}}})
			return err
		},
		code: "InvalidParameterValue", message: "reserved"},
	{name: "tag, the 51st",
		do: func(w *world) error {
			v := w.volume()
			var tags []types.Tag
			for n := range 51 {
				tags = append(tags, types.Tag{Key: aws.String(strings.Repeat("k", n+1))})
			}
			_, err := w.CreateTags(w.ctx, &ec2.CreateTagsInput{Resources: []string{v}, Tags: tags[:50]})
			w.must(err)
			_, err = w.CreateTags(w.ctx, &ec2.CreateTagsInput{Resources: []string{v}, Tags: tags[50:]})
			return err
		},
		code: "TagLimitExceeded"},
	{name: "parameter missing",
		do: func(w *world) error {
			_, err := w.RunInstances(w.ctx, &ec2.RunInstancesInput{MinCount: aws.Int32(1), MaxCount: aws.Int32(1)})
			return err
		},
		code: "MissingParameter", message: "ImageId"},
	{name: "parameter not modelled",
		do:   func(w *world) error { return w.create(ec2.CreateVolumeInput{OutpostArn: aws.String("arn:x")}) },
		code: "UnknownParameter", message: "The parameter OutpostArn is not recognized"},
	{name: "action not modelled",
		do:   func(w *world) error { _, err := w.DescribeRegions(w.ctx, &ec2.DescribeRegionsInput{}); return err },
		code: "InvalidAction"},
	{name: "no credentials",
		do: func(w *world) error {
			o := w.Options()
			o.Credentials = aws.AnonymousCredentials{}
			_, err := ec2.New(o).DescribeVolumes(w.ctx, &ec2.DescribeVolumesInput{})
			return err
		},
		code: "MissingAuthenticationToken", status: http.StatusForbidden},
	{name: "denied",
		do: func(w *world) error {
			w.sim.Deny("AttachVolume")
			return w.attach(w.volume(), w.running(), "/dev/xvdaa")
		},
		code: "UnauthorizedOperation", status: http.StatusForbidden},
	{name: "dry run",
		do: func(w *world) error {
			_, err := w.DetachVolume(w.ctx, &ec2.DetachVolumeInput{VolumeId: aws.String(w.attached(w.running())), DryRun: aws.Bool(true)})
			return err
		},
		code: "DryRunOperation", status: http.StatusPreconditionFailed},
	{name: "dry run, denied",
		do: func(w *world) error {
			w.sim.Deny("DeleteVolume")
			_, err := w.DeleteVolume(w.ctx, &ec2.DeleteVolumeInput{VolumeId: aws.String(noVolume), DryRun: aws.Bool(true)})
			return err
		},
		code: "UnauthorizedOperation", status: http.StatusForbidden},
	{name: "throttled",
		do: func(w *world) error {
			w.sim.SetBucket("DescribeVolumes", ec2sim.Bucket{Size: 1, Refill: 0.001})
			_, err := w.DescribeVolumes(w.ctx, &ec2.DescribeVolumesInput{})
			w.must(err)
			_, err = w.DescribeVolumes(w.ctx, &ec2.DescribeVolumesInput{})
			return err
		},
		code: "RequestLimitExceeded", message: "Request limit exceeded.", status: http.StatusServiceUnavailable},
}

func TestRefusals(t *testing.T) {
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			err := r.do(newWorld(t, r.timing))
			api, ok := errors.AsType[smithy.APIError](err)
			if !ok {
				t.Fatalf("not refused by the API: %v", err)
			}
			if api.ErrorCode() != r.code || !strings.Contains(api.ErrorMessage(), r.message) {
				t.Errorf("refused with %v, want %s: …%s…", api, r.code, r.message)
			}
			response, ok := errors.AsType[*awshttp.ResponseError](err)
			status := r.status
			if status == 0 {
				status = http.StatusBadRequest
			}
			if !ok || response.HTTPStatusCode() != status || response.RequestID == "" {
				t.Errorf("response %v, want status %d and a request id", response, status)
			}
		})
	}
}

// A refusal changes nothing.
func TestRefusedAttachLeavesAllAsItWas(t *testing.T) {
	w := newWorld(t, ec2sim.Timing{})
	i := w.running()
	v := w.volume()
	before, _ := w.sim.Volume(v)
	for _, err := range []error{w.attach(v, i, "/dev/nonsense"), w.attach(v, noInstance, "/dev/xvdaa"), w.attach(v, i, "/dev/xvda")} {
		if err == nil {
			t.Fatal("not refused")
		}
	}
	after, _ := w.sim.Volume(v)
	if before.State != after.State || len(after.Attachments) != 0 {
		t.Errorf("volume was %+v, is %+v", before, after)
	}
}
