// Package ec2sim simulates EC2, as far as EBS volumes go, and each instance's
// metadata service, for the unchanged AWS SDK: over HTTP, in EC2's Query
// protocol and in IMDSv2's.
//
// Package cloud below it is the state machine, and knows what EC2 refuses.
// This package adds what a caller meets on the way there: latency, throttling,
// missing permissions, lost replies, duplicates. Package loopdev makes attached
// volumes real loop devices. Package ec2simd is all of it as a process, with a
// control API under /_sim/.
//
// Actions: RunInstances, StartInstances, StopInstances, TerminateInstances,
// DescribeInstances, CreateVolume, DeleteVolume, DescribeVolumes, AttachVolume,
// DetachVolume, ModifyVolume, DescribeVolumesModifications, CreateTags,
// DeleteTags. Any other is refused, and so is a parameter that is not modelled,
// rather than ignored.
package ec2sim
