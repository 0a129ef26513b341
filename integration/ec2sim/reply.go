package ec2sim

import (
	"maps"
	"slices"

	"github.com/volpool/volpool/integration/ec2sim/cloud"
)

// The replies, as XML of the Query protocol: a list is an element with <item>
// in it, and an empty list is there too.

const account = "123456789012"

type tagXML struct {
	Key   string `xml:"key"`
	Value string `xml:"value"`
}

func tagItems(tags map[string]string) []tagXML {
	var items []tagXML
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		items = append(items, tagXML{key, tags[key]})
	}
	return items
}

type attachmentXML struct {
	VolumeID            string `xml:"volumeId"`
	InstanceID          string `xml:"instanceId"`
	Device              string `xml:"device"`
	Status              string `xml:"status"`
	AttachTime          string `xml:"attachTime"`
	DeleteOnTermination bool   `xml:"deleteOnTermination"`
}

func attachmentItem(a cloud.Attachment) attachmentXML {
	return attachmentXML{
		VolumeID: a.Volume, InstanceID: a.Instance, Device: a.Device, Status: a.State,
		AttachTime: cloud.Timestamp(a.AttachTime), DeleteOnTermination: a.DeleteOnTermination,
	}
}

type attachmentReply struct{ attachmentXML }

type volumeXML struct {
	VolumeID    string          `xml:"volumeId"`
	Size        int             `xml:"size"`
	SnapshotID  string          `xml:"snapshotId"`
	Zone        string          `xml:"availabilityZone"`
	Status      string          `xml:"status"`
	CreateTime  string          `xml:"createTime"`
	Attachments []attachmentXML `xml:"attachmentSet>item"`
	Tags        []tagXML        `xml:"tagSet>item"`
	VolumeType  string          `xml:"volumeType"`
	IOPS        int             `xml:"iops,omitempty"`
	Throughput  int             `xml:"throughput,omitempty"`
	Encrypted   bool            `xml:"encrypted"`
	KMSKeyID    string          `xml:"kmsKeyId,omitempty"`
	MultiAttach bool            `xml:"multiAttachEnabled"`
}

func volumeItem(v cloud.Volume) volumeXML {
	x := volumeXML{
		VolumeID: v.ID, Size: v.SizeGiB, SnapshotID: v.SnapshotID, Zone: v.Zone, Status: v.State,
		CreateTime: cloud.Timestamp(v.CreateTime), Tags: tagItems(v.Tags), VolumeType: v.Type, IOPS: v.IOPS,
		Throughput: v.Throughput, Encrypted: v.Encrypted, KMSKeyID: v.KMSKeyID, MultiAttach: v.MultiAttach,
	}
	for _, a := range v.Attachments {
		x.Attachments = append(x.Attachments, attachmentItem(a))
	}
	return x
}

type createVolumeReply struct{ volumeXML }

type describeVolumesReply struct {
	Volumes   []volumeXML `xml:"volumeSet>item"`
	NextToken string      `xml:"nextToken,omitempty"`
}

func volumesReply(volumes []cloud.Volume, next string) describeVolumesReply {
	r := describeVolumesReply{NextToken: next}
	for _, v := range volumes {
		r.Volumes = append(r.Volumes, volumeItem(v))
	}
	return r
}

type modificationXML struct {
	VolumeID           string `xml:"volumeId"`
	State              string `xml:"modificationState"`
	OriginalSize       int    `xml:"originalSize"`
	OriginalIOPS       int    `xml:"originalIops"`
	OriginalThroughput int    `xml:"originalThroughput"`
	OriginalType       string `xml:"originalVolumeType"`
	TargetSize         int    `xml:"targetSize"`
	TargetIOPS         int    `xml:"targetIops"`
	TargetThroughput   int    `xml:"targetThroughput"`
	TargetType         string `xml:"targetVolumeType"`
	Progress           int    `xml:"progress"`
	StartTime          string `xml:"startTime"`
	EndTime            string `xml:"endTime,omitempty"`
}

func modificationItem(m cloud.Modification) modificationXML {
	x := modificationXML{
		VolumeID: m.Volume, State: m.State, StartTime: cloud.Timestamp(m.StartTime),
		OriginalSize: m.From.SizeGiB, OriginalIOPS: m.From.IOPS, OriginalThroughput: m.From.Throughput, OriginalType: m.From.Type,
		TargetSize: m.To.SizeGiB, TargetIOPS: m.To.IOPS, TargetThroughput: m.To.Throughput, TargetType: m.To.Type,
	}
	if m.State == cloud.Completed {
		x.Progress, x.EndTime = 100, cloud.Timestamp(m.EndTime)
	}
	return x
}

type modifyVolumeReply struct {
	Modification modificationXML `xml:"volumeModification"`
}

type describeModificationsReply struct {
	Modifications []modificationXML `xml:"volumeModificationSet>item"`
}

func modificationsReply(all []cloud.Modification) describeModificationsReply {
	var r describeModificationsReply
	for _, m := range all {
		r.Modifications = append(r.Modifications, modificationItem(m))
	}
	return r
}

type doneReply struct {
	Return bool `xml:"return"`
}
