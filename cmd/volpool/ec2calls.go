package main

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
)

// ec2Calls forwards the few calls we make. Were *ec2.Client itself put into an
// interface, the linker would have to keep its 700 methods, for help texts are
// templates and templates call methods by name: the binary would be three times
// as large.
type ec2Calls struct{ client *ec2.Client }

func (e ec2Calls) AttachVolume(ctx context.Context, in *ec2.AttachVolumeInput, o ...func(*ec2.Options)) (*ec2.AttachVolumeOutput, error) {
	return e.client.AttachVolume(ctx, in, o...)
}

func (e ec2Calls) DetachVolume(ctx context.Context, in *ec2.DetachVolumeInput, o ...func(*ec2.Options)) (*ec2.DetachVolumeOutput, error) {
	return e.client.DetachVolume(ctx, in, o...)
}

func (e ec2Calls) DescribeVolumes(ctx context.Context, in *ec2.DescribeVolumesInput, o ...func(*ec2.Options)) (*ec2.DescribeVolumesOutput, error) {
	return e.client.DescribeVolumes(ctx, in, o...)
}

func (e ec2Calls) DescribeInstances(ctx context.Context, in *ec2.DescribeInstancesInput, o ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error) {
	return e.client.DescribeInstances(ctx, in, o...)
}

func (e ec2Calls) CreateTags(ctx context.Context, in *ec2.CreateTagsInput, o ...func(*ec2.Options)) (*ec2.CreateTagsOutput, error) {
	return e.client.CreateTags(ctx, in, o...)
}

func (e ec2Calls) DeleteVolume(ctx context.Context, in *ec2.DeleteVolumeInput, o ...func(*ec2.Options)) (*ec2.DeleteVolumeOutput, error) {
	return e.client.DeleteVolume(ctx, in, o...)
}
