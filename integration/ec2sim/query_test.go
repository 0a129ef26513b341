package ec2sim

import (
	"net/url"
	"reflect"
	"testing"

	"github.com/volpool/volpool/integration/ec2sim/cloud"
)

func TestQuery(t *testing.T) {
	form, err := url.ParseQuery("Action=DescribeVolumes&Filter.2.Name=status&Filter.2.Value.1=in-use&" +
		"Filter.10.Name=tag:a.b&Filter.10.Value.2=y&Filter.10.Value.1=x&VolumeId.1=v&MaxResults=7&Filter.02.Name=no&Filter.x.Name=no")
	if err != nil {
		t.Fatal(err)
	}
	q := newQuery(form)
	got := q.describe("VolumeId")
	want := cloud.Query{
		IDs: []string{"v"}, MaxResults: new(7),
		Filters: []cloud.Filter{{Name: "status", Values: []string{"in-use"}}, {Name: "tag:a.b", Values: []string{"x", "y"}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	if err := q.check(); err == nil || err.Error() != "UnknownParameter: The parameter Filter.02.Name is not recognized" {
		t.Errorf("check: %v", err)
	}
}

// Whatever comes in, each action understands it, or refuses it in EC2's form.
func FuzzQuery(f *testing.F) {
	sim := &Sim{cfg: Config{}.withDefaults()}
	sim.Cloud = cloud.New(cloud.Config{Zones: sim.cfg.Zones})
	api := sim.actions()
	f.Add("DescribeVolumes", "Filter.1.Name=tag:x&Filter.1.Value.1=*&MaxResults=5&NextToken=dm9sLTA%3D")
	f.Add("DescribeInstances", "InstanceId.1=i-1&InstanceId.99999999999=i-2&DryRun=true")
	f.Add("DeleteTags", "ResourceId.1=vol-0&Tag.1.Key=a&Tag.1.Value=")
	f.Add("CreateVolume", "AvailabilityZone=us-east-1a&Size=-1&TagSpecification.1.ResourceType=volume&TagSpecification.1.Tag.1.Key=k")
	f.Fuzz(func(t *testing.T, action, body string) {
		form, err := url.ParseQuery(body)
		read, ok := api[action]
		if err != nil || !ok {
			return
		}
		q := newQuery(form)
		read(q)
		q.boolean("DryRun")
		if err := q.check(); err != nil {
			if e, ok := err.(*cloud.Error); !ok || e.Code == "" || e.Status != 400 {
				t.Errorf("refused with %v", err)
			}
		}
	})
}
