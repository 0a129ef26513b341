package ec2sim

import (
	"github.com/volpool/volpool/integration/ec2sim/cloud"
)

type stateXML struct {
	Code int    `xml:"code"`
	Name string `xml:"name"`
}

// The codes of
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_InstanceState.html
var stateCodes = map[string]int{
	cloud.Pending: 0, cloud.Running: 16, cloud.ShuttingDown: 32, cloud.Terminated: 48, cloud.Stopping: 64, cloud.Stopped: 80,
}

func stateItem(name string) stateXML { return stateXML{stateCodes[name], name} }

type instanceXML struct {
	InstanceID   string       `xml:"instanceId"`
	ImageID      string       `xml:"imageId"`
	State        stateXML     `xml:"instanceState"`
	InstanceType string       `xml:"instanceType"`
	LaunchTime   string       `xml:"launchTime"`
	Zone         string       `xml:"placement>availabilityZone"`
	PrivateIP    string       `xml:"privateIpAddress,omitempty"`
	RootDevice   string       `xml:"rootDeviceName"`
	RootType     string       `xml:"rootDeviceType"`
	Mappings     []mappingXML `xml:"blockDeviceMapping>item"`
	Tags         []tagXML     `xml:"tagSet>item"`
}

type mappingXML struct {
	Device              string `xml:"deviceName"`
	VolumeID            string `xml:"ebs>volumeId"`
	Status              string `xml:"ebs>status"`
	AttachTime          string `xml:"ebs>attachTime"`
	DeleteOnTermination bool   `xml:"ebs>deleteOnTermination"`
}

func instanceItem(i cloud.Instance, attached []cloud.Attachment) instanceXML {
	x := instanceXML{
		InstanceID: i.ID, ImageID: i.ImageID, State: stateItem(i.State), InstanceType: i.Type,
		LaunchTime: cloud.Timestamp(i.LaunchTime), Zone: i.Zone, PrivateIP: i.PrivateIP,
		RootDevice: "/dev/xvda", RootType: "ebs", Tags: tagItems(i.Tags),
	}
	for _, a := range attached {
		x.Mappings = append(x.Mappings, mappingXML{
			Device: a.Device, VolumeID: a.Volume, Status: a.State,
			AttachTime: cloud.Timestamp(a.AttachTime), DeleteOnTermination: a.DeleteOnTermination,
		})
	}
	return x
}

type reservationXML struct {
	ReservationID string        `xml:"reservationId"`
	OwnerID       string        `xml:"ownerId"`
	Instances     []instanceXML `xml:"instancesSet>item"`
}

type runInstancesReply struct{ reservationXML }

type describeInstancesReply struct {
	Reservations []reservationXML `xml:"reservationSet>item"`
	NextToken    string           `xml:"nextToken,omitempty"`
}

func (s *Sim) runReply(started []cloud.Instance) runInstancesReply {
	r := runInstancesReply{reservationXML{ReservationID: reservation(started[0].ID), OwnerID: account}}
	for _, i := range started {
		r.Instances = append(r.Instances, instanceItem(i, nil))
	}
	return r
}

// Each instance is described as a reservation of its own.
func (s *Sim) instancesReply(found []cloud.Instance, attached map[string][]cloud.Attachment, next string) describeInstancesReply {
	r := describeInstancesReply{NextToken: next}
	for _, i := range found {
		r.Reservations = append(r.Reservations, reservationXML{
			ReservationID: reservation(i.ID), OwnerID: account, Instances: []instanceXML{instanceItem(i, attached[i.ID])},
		})
	}
	return r
}

func reservation(instance string) string { return "r" + instance[1:] }

type changeXML struct {
	InstanceID string   `xml:"instanceId"`
	Current    stateXML `xml:"currentState"`
	Previous   stateXML `xml:"previousState"`
}

type changeInstancesReply struct {
	Instances []changeXML `xml:"instancesSet>item"`
}

func changesReply(changes []cloud.StateChange) changeInstancesReply {
	var r changeInstancesReply
	for _, c := range changes {
		r.Instances = append(r.Instances, changeXML{c.ID, stateItem(c.To), stateItem(c.From)})
	}
	return r
}
