package ec2sim_test

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/volpool/volpool/integration/ec2sim"
	"github.com/volpool/volpool/integration/ec2sim/cloud"
)

func start(t *testing.T, cfg ec2sim.Config) *ec2sim.Sim {
	t.Helper()
	sim, err := ec2sim.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return sim
}

// client is the SDK's own, with its retries off: what the simulator says is
// what the test sees.
func client(sim *ec2sim.Sim) *ec2.Client {
	return ec2.New(ec2.Options{
		Region:           sim.Region(),
		BaseEndpoint:     aws.String(sim.Endpoint()),
		Credentials:      credentials.NewStaticCredentialsProvider("TEST", "test", ""),
		RetryMaxAttempts: 1,
	})
}

func run(t *testing.T, sim *ec2sim.Sim, in ec2sim.RunInput) *ec2sim.Instance {
	t.Helper()
	i, err := sim.Run(in)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func createVolume(t *testing.T, sim *ec2sim.Sim, in ec2sim.CreateVolumeInput) string {
	t.Helper()
	v, err := sim.CreateVolume(in)
	if err != nil {
		t.Fatal(err)
	}
	return v.ID
}

// await waits until the volume's only attachment is in this state; "" is none,
// and the volume available.
func await(t *testing.T, sim *ec2sim.Sim, volume, state string) {
	t.Helper()
	err := sim.Wait(t.Context(), func() bool { return attachmentState(sim, volume) == state })
	if err != nil {
		t.Fatal(err)
	}
}

func attachmentState(sim *ec2sim.Sim, volume string) string {
	v, _ := sim.Volume(volume)
	if len(v.Attachments) > 0 {
		return v.Attachments[0].State
	}
	if v.State != cloud.Available {
		return v.State
	}
	return ""
}

// The whole way of a volume, as the SDK sees it.
func TestAttachAndDetach(t *testing.T) {
	ctx := t.Context()
	sim := start(t, ec2sim.Config{})
	api := client(sim)
	made, err := api.CreateVolume(ctx, &ec2.CreateVolumeInput{
		AvailabilityZone: aws.String("us-east-1a"), Size: aws.Int32(20), VolumeType: types.VolumeTypeGp3,
		TagSpecifications: []types.TagSpecification{{
			ResourceType: types.ResourceTypeVolume, Tags: []types.Tag{{Key: aws.String("pool"), Value: aws.String("ci")}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if made.State != types.VolumeStateCreating || *made.Size != 20 || *made.Iops != 3000 || *made.Throughput != 125 {
		t.Errorf("created %+v", made)
	}
	volume := *made.VolumeId
	await(t, sim, volume, "")
	started, err := api.RunInstances(ctx, &ec2.RunInstancesInput{
		ImageId: aws.String("ami-0123456789abcdef0"), MinCount: aws.Int32(1), MaxCount: aws.Int32(1), InstanceType: types.InstanceTypeC5Large,
		Placement: &types.Placement{AvailabilityZone: aws.String("us-east-1a")},
	})
	if err != nil {
		t.Fatal(err)
	}
	instance := *started.Instances[0].InstanceId
	if err := ec2.NewInstanceRunningWaiter(api, func(o *ec2.InstanceRunningWaiterOptions) { o.MinDelay = 1 }).Wait(ctx,
		&ec2.DescribeInstancesInput{InstanceIds: []string{instance}}, 1e10); err != nil {
		t.Fatal(err)
	}
	a, err := api.AttachVolume(ctx, &ec2.AttachVolumeInput{VolumeId: &volume, InstanceId: &instance, Device: aws.String("/dev/xvdaa")})
	if err != nil {
		t.Fatal(err)
	}
	if a.State != types.VolumeAttachmentStateAttaching || *a.VolumeId != volume || *a.InstanceId != instance {
		t.Errorf("attached %+v", a)
	}
	await(t, sim, volume, cloud.Attached)
	seen, err := api.DescribeVolumes(ctx, &ec2.DescribeVolumesInput{Filters: []types.Filter{
		{Name: aws.String("attachment.instance-id"), Values: []string{instance}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if len(seen.Volumes) != 1 || seen.Volumes[0].State != types.VolumeStateInUse || *seen.Volumes[0].Attachments[0].Device != "/dev/xvdaa" ||
		*seen.Volumes[0].Tags[0].Value != "ci" || seen.Volumes[0].CreateTime == nil || *seen.Volumes[0].Attachments[0].DeleteOnTermination {
		t.Errorf("described %+v", seen.Volumes)
	}
	machine, err := api.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{instance}})
	if err != nil {
		t.Fatal(err)
	}
	i := machine.Reservations[0].Instances[0]
	if i.State.Name != types.InstanceStateNameRunning || *i.State.Code != 16 || *i.BlockDeviceMappings[0].Ebs.VolumeId != volume ||
		*i.Placement.AvailabilityZone != "us-east-1a" || i.InstanceType != types.InstanceTypeC5Large {
		t.Errorf("described %+v", i)
	}
	d, err := api.DetachVolume(ctx, &ec2.DetachVolumeInput{VolumeId: &volume, InstanceId: &instance})
	if err != nil {
		t.Fatal(err)
	}
	if d.State != types.VolumeAttachmentStateDetaching {
		t.Errorf("detached %+v", d)
	}
	await(t, sim, volume, "")
	if _, err := api.DeleteVolume(ctx, &ec2.DeleteVolumeInput{VolumeId: &volume}); err != nil {
		t.Fatal(err)
	}
	if err := sim.Wait(ctx, func() bool { return len(sim.Volumes()) == 0 }); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"AttachVolume": 1, "CreateVolume": 1, "DeleteVolume": 1, "DescribeVolumes": 1, "DetachVolume": 1, "RunInstances": 1}
	for action, n := range want {
		if got := sim.Calls()[action]; got != n {
			t.Errorf("%s was called %d times, want %d", action, got, n)
		}
	}
}

// An instance knows itself, and signs, by its IMDS alone.
func TestInstanceKnowsItself(t *testing.T) {
	ctx := t.Context()
	sim := start(t, ec2sim.Config{Region: "eu-west-1"})
	i := run(t, sim, ec2sim.RunInput{Zone: "eu-west-1b"})
	for name, value := range map[string]string{
		"AWS_EC2_METADATA_SERVICE_ENDPOINT": i.IMDS, "AWS_ENDPOINT_URL_EC2": sim.Endpoint(),
		"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_REGION": "", "AWS_DEFAULT_REGION": "", "AWS_PROFILE": "",
		"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
	} {
		t.Setenv(name, value)
	}
	cfg, err := config.LoadDefaultConfig(ctx, config.WithEC2IMDSRegion())
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Region != "eu-west-1" {
		t.Errorf("region %q", cfg.Region)
	}
	document, err := imds.NewFromConfig(cfg).GetInstanceIdentityDocument(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if document.InstanceID != i.ID || document.AvailabilityZone != "eu-west-1b" || document.Region != "eu-west-1" {
		t.Errorf("document %+v", document)
	}
	if _, err := ec2.NewFromConfig(cfg).DescribeVolumes(ctx, &ec2.DescribeVolumesInput{}); err != nil {
		t.Fatal(err)
	}
	if got := sim.CallsBy(i.ID)["DescribeVolumes"]; got != 1 {
		t.Errorf("%d calls by the instance, want 1", got)
	}
}
