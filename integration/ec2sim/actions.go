package ec2sim

import (
	"time"

	"github.com/volpool/volpool/integration/ec2sim/cloud"
)

// actions is what the API can do: each entry reads a request and returns what
// executes it.
func (s *Sim) actions() map[string]func(*query) operation {
	return map[string]func(*query) operation{
		"RunInstances":                 s.runInstances,
		"StartInstances":               s.changeInstances(s.Cloud.StartInstances),
		"StopInstances":                s.changeInstances(s.Cloud.StopInstances),
		"TerminateInstances":           s.changeInstances(s.Cloud.TerminateInstances),
		"DescribeInstances":            s.describeInstances,
		"CreateVolume":                 s.createVolume,
		"DeleteVolume":                 s.deleteVolume,
		"DescribeVolumes":              s.describeVolumes,
		"AttachVolume":                 s.attachVolume,
		"DetachVolume":                 s.detachVolume,
		"ModifyVolume":                 s.modifyVolume,
		"DescribeVolumesModifications": s.describeModifications,
		"CreateTags":                   s.createTags,
		"DeleteTags":                   s.deleteTags,
	}
}

func (s *Sim) runInstances(q *query) operation {
	q.ignore("KeyName", "SubnetId", "SecurityGroup", "SecurityGroupId", "UserData", "IamInstanceProfile",
		"MetadataOptions", "EbsOptimized", "Monitoring", "InstanceInitiatedShutdownBehavior")
	q.need("MinCount")
	in := cloud.RunInput{
		Zone: q.str("Placement.AvailabilityZone"), Type: q.str("InstanceType"), ImageID: q.need("ImageId"),
		Count: q.integer("MaxCount"), Tags: q.tagSpecification("instance"), ClientToken: q.str("ClientToken"),
	}
	if in.Zone == "" {
		in.Zone = s.cfg.Zones[0] // EC2 chooses one
	}
	return func(time.Time) (any, error) {
		started, err := s.run(in)
		if err != nil {
			return nil, err
		}
		return s.runReply(started), nil
	}
}

func (s *Sim) changeInstances(change func([]string) ([]cloud.StateChange, error)) func(*query) operation {
	return func(q *query) operation {
		q.ignore("Force", "Hibernate", "SkipOsShutdown")
		ids := q.list("InstanceId")
		if len(ids) == 0 {
			q.need("InstanceId")
		}
		return func(time.Time) (any, error) {
			changes, err := change(ids)
			if err != nil {
				return nil, err
			}
			return changesReply(changes), nil
		}
	}
}

func (s *Sim) describeInstances(q *query) operation {
	in := q.describe("InstanceId")
	return func(asOf time.Time) (any, error) {
		in := in
		in.AsOf = asOf
		found, next, err := s.Cloud.DescribeInstances(in)
		if err != nil {
			return nil, err
		}
		return s.instancesReply(found, s.Cloud.AttachmentsAsOf(asOf), next), nil
	}
}

func (s *Sim) createVolume(q *query) operation {
	in := cloud.CreateVolumeInput{
		Zone: q.need("AvailabilityZone"), Type: q.str("VolumeType"), SizeGiB: q.integer("Size"), IOPS: q.integer("Iops"),
		Throughput: q.integer("Throughput"), Encrypted: q.boolean("Encrypted"), KMSKeyID: q.str("KmsKeyId"),
		SnapshotID: q.str("SnapshotId"), MultiAttach: q.boolean("MultiAttachEnabled"),
		Tags: q.tagSpecification("volume"), ClientToken: q.str("ClientToken"),
	}
	return func(time.Time) (any, error) {
		v, err := s.Cloud.CreateVolume(in)
		if err != nil {
			return nil, err
		}
		return createVolumeReply{volumeXML: volumeItem(v)}, nil
	}
}

func (s *Sim) deleteVolume(q *query) operation {
	id := q.need("VolumeId")
	return func(time.Time) (any, error) { return doneReply{Return: true}, s.Cloud.DeleteVolume(id) }
}

func (s *Sim) describeVolumes(q *query) operation {
	in := q.describe("VolumeId")
	return func(asOf time.Time) (any, error) {
		in := in
		in.AsOf = asOf
		found, next, err := s.Cloud.DescribeVolumes(in)
		if err != nil {
			return nil, err
		}
		return volumesReply(found, next), nil
	}
}

func (s *Sim) attachVolume(q *query) operation {
	volume, instance, device := q.need("VolumeId"), q.need("InstanceId"), q.need("Device")
	return func(time.Time) (any, error) {
		a, err := s.Cloud.AttachVolume(volume, instance, device)
		return attachmentReply{attachmentXML: attachmentItem(a)}, err
	}
}

func (s *Sim) detachVolume(q *query) operation {
	volume, instance, device := q.need("VolumeId"), q.str("InstanceId"), q.str("Device")
	force := q.boolean("Force")
	return func(time.Time) (any, error) {
		a, err := s.Cloud.DetachVolume(volume, instance, device, force)
		return attachmentReply{attachmentXML: attachmentItem(a)}, err
	}
}

func (s *Sim) modifyVolume(q *query) operation {
	id := q.need("VolumeId")
	to := cloud.Shape{
		SizeGiB: q.integer("Size"), IOPS: q.integer("Iops"), Throughput: q.integer("Throughput"), Type: q.str("VolumeType"),
	}
	return func(time.Time) (any, error) {
		m, err := s.Cloud.ModifyVolume(id, to)
		return modifyVolumeReply{Modification: modificationItem(m)}, err
	}
}

func (s *Sim) describeModifications(q *query) operation {
	ids := q.list("VolumeId")
	return func(time.Time) (any, error) {
		found, err := s.Cloud.DescribeModifications(ids)
		return modificationsReply(found), err
	}
}

func (s *Sim) createTags(q *query) operation {
	ids, tags := q.list("ResourceId"), q.tags("Tag")
	if len(ids) == 0 {
		q.need("ResourceId")
	}
	if len(tags) == 0 {
		q.need("Tag")
	}
	return func(time.Time) (any, error) { return doneReply{Return: true}, s.Cloud.CreateTags(ids, tags) }
}

func (s *Sim) deleteTags(q *query) operation {
	ids, tags := q.list("ResourceId"), q.tagsToDelete()
	if len(ids) == 0 {
		q.need("ResourceId")
	}
	return func(time.Time) (any, error) { return doneReply{Return: true}, s.Cloud.DeleteTags(ids, tags) }
}
