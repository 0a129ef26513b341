package main

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
)

type call[In, Out any] func(context.Context, *In, ...func(*ec2.Options)) (*Out, error)

// ec2Calls are the few calls we make. Were *ec2.Client itself put into an
// interface, or into a struct that is, the linker would have to keep its 700
// methods, for help texts are templates and templates call methods by name: the
// binary would be more than twice as large.
type ec2Calls struct {
	attachVolume      call[ec2.AttachVolumeInput, ec2.AttachVolumeOutput]
	detachVolume      call[ec2.DetachVolumeInput, ec2.DetachVolumeOutput]
	describeVolumes   call[ec2.DescribeVolumesInput, ec2.DescribeVolumesOutput]
	describeInstances call[ec2.DescribeInstancesInput, ec2.DescribeInstancesOutput]
	createTags        call[ec2.CreateTagsInput, ec2.CreateTagsOutput]
	deleteVolume      call[ec2.DeleteVolumeInput, ec2.DeleteVolumeOutput]
}

func callsOf(c *ec2.Client) ec2Calls {
	return ec2Calls{c.AttachVolume, c.DetachVolume, c.DescribeVolumes, c.DescribeInstances, c.CreateTags, c.DeleteVolume}
}

func (e ec2Calls) AttachVolume(ctx context.Context, in *ec2.AttachVolumeInput, o ...func(*ec2.Options)) (*ec2.AttachVolumeOutput, error) {
	return e.attachVolume(ctx, in, o...)
}

func (e ec2Calls) DetachVolume(ctx context.Context, in *ec2.DetachVolumeInput, o ...func(*ec2.Options)) (*ec2.DetachVolumeOutput, error) {
	return e.detachVolume(ctx, in, o...)
}

func (e ec2Calls) DescribeVolumes(ctx context.Context, in *ec2.DescribeVolumesInput, o ...func(*ec2.Options)) (*ec2.DescribeVolumesOutput, error) {
	return e.describeVolumes(ctx, in, o...)
}

func (e ec2Calls) DescribeInstances(ctx context.Context, in *ec2.DescribeInstancesInput, o ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error) {
	return e.describeInstances(ctx, in, o...)
}

func (e ec2Calls) CreateTags(ctx context.Context, in *ec2.CreateTagsInput, o ...func(*ec2.Options)) (*ec2.CreateTagsOutput, error) {
	return e.createTags(ctx, in, o...)
}

func (e ec2Calls) DeleteVolume(ctx context.Context, in *ec2.DeleteVolumeInput, o ...func(*ec2.Options)) (*ec2.DeleteVolumeOutput, error) {
	return e.deleteVolume(ctx, in, o...)
}
