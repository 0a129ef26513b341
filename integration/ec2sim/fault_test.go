package ec2sim_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"github.com/volpool/volpool/integration/ec2sim"
	"github.com/volpool/volpool/integration/ec2sim/cloud"
)

func code(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorCode()
	}
	return ""
}

// A lost request did nothing, a lost reply did everything; to the caller both
// look alike, and neither is an answer of the API.
func TestLostRequestAndReply(t *testing.T) {
	for kind, done := range map[cloud.Kind]bool{cloud.RequestLost: false, cloud.ReplyLost: true} {
		t.Run(string(kind), func(t *testing.T) {
			w := newWorld(t, ec2sim.Timing{})
			i, v := w.running(), w.volume()
			fault := w.sim.Inject(ec2sim.Fault{Kind: kind, Action: "AttachVolume", Volume: v, Times: 1})
			err := w.attach(v, i, "/dev/xvdaa")
			if err == nil || code(err) != "" {
				t.Fatalf("AttachVolume: %v", err)
			}
			if attached := attachmentState(w.sim, v) != ""; attached != done || fault.Hits() != 1 {
				t.Errorf("attached: %v, hits: %d", attached, fault.Hits())
			}
			if err := w.attach(v, i, "/dev/xvdaa"); (code(err) == "VolumeInUse") != done {
				t.Errorf("AttachVolume again: %v", err)
			}
		})
	}
}

func TestDuplicateExecutesAgainLater(t *testing.T) {
	w := newWorld(t, ec2sim.Timing{})
	i := w.running()
	v := w.attached(i)
	w.sim.Inject(ec2sim.Fault{Kind: cloud.Duplicate, Action: "DetachVolume", Times: 1, Delay: time.Second})
	w.must(w.detach(v, i))
	await(t, w.sim, v, "")
	w.must(w.attach(v, i, "/dev/xvdab"))
	await(t, w.sim, v, cloud.Attached)
	// The late copy detaches what was attached since: nothing tells it from the
	// first.
	await(t, w.sim, v, "")
}

func TestAPIErrorMatchesItsVolumeOnly(t *testing.T) {
	w := newWorld(t, ec2sim.Timing{})
	i, bad, good := w.running(), w.volume(), w.volume()
	w.sim.Inject(ec2sim.Fault{Kind: cloud.APIError, Action: "AttachVolume", Volume: bad, Code: "InternalError", Message: "An internal error has occurred", Status: 500})
	w.must(w.attach(good, i, "/dev/xvdaa"))
	for range 2 {
		if err := w.attach(bad, i, "/dev/xvdab"); code(err) != "InternalError" {
			t.Errorf("AttachVolume: %v", err)
		}
	}
	w.sim.ClearFaults()
	w.must(w.attach(bad, i, "/dev/xvdab"))
}

// Package cloud's tests show the exact moment that a Describe answers of.
func TestStaleDescribeAnswersFromThePast(t *testing.T) {
	w := newWorld(t, ec2sim.Timing{})
	i, v := w.running(), w.volume()
	w.sim.Inject(ec2sim.Fault{Kind: cloud.Stale, Action: "DescribeVolumes", Times: 1, Delay: time.Hour})
	for _, want := range []int{0, 1} {
		out, err := w.DescribeVolumes(w.ctx, volumesBy("volume-id", v))
		w.must(err)
		if got := len(out.Volumes); got != want {
			t.Errorf("%d volumes, want %d", got, want)
		}
	}
	w.sim.Inject(ec2sim.Fault{Kind: cloud.Stale, Action: "DescribeInstances", Instance: i, Delay: time.Hour})
	if _, err := w.DescribeInstances(w.ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{i}}); code(err) != "InvalidInstanceID.NotFound" {
		t.Errorf("an instance that is too new: %v", err)
	}
}

// Ten callers read; none gets its answer before all have asked.
func TestHoldLetsCallersGoTogether(t *testing.T) {
	const callers = 10
	w := newWorld(t, ec2sim.Timing{})
	hold := w.sim.Inject(ec2sim.Fault{Kind: cloud.Hold, Action: "DescribeVolumes", Callers: callers})
	for range 2 { // one round after the other
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				if _, err := w.DescribeVolumes(w.ctx, &ec2.DescribeVolumesInput{}); err != nil {
					t.Error(err)
				}
				if n := w.sim.Calls()["DescribeVolumes"]; n%callers != 0 {
					t.Errorf("answered after %d calls", n)
				}
			})
		}
		wg.Wait()
	}
	if hold.Waiting() != 0 || hold.Hits() != 2*callers {
		t.Errorf("%d wait, %d hits", hold.Waiting(), hold.Hits())
	}
}

func TestHoldIsReleasedByClearing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var faults cloud.Faults
		hold := faults.Inject(cloud.Fault{Kind: cloud.Hold})
		answered := false
		go func() {
			hold.Await(t.Context().Done())
			answered = true
		}()
		synctest.Wait()
		if answered || hold.Waiting() != 1 {
			t.Errorf("answered %v, %d wait", answered, hold.Waiting())
		}
		hold.Clear()
		synctest.Wait()
		if !answered || hold.Waiting() != 0 {
			t.Errorf("answered %v, %d wait", answered, hold.Waiting())
		}
	})
}

func TestStuckAttachingUntilDetached(t *testing.T) {
	w := newWorld(t, ec2sim.Timing{})
	i, v, next := w.running(), w.volume(), w.volume()
	w.sim.Inject(ec2sim.Fault{Kind: cloud.StuckAttaching, Volume: v, Times: 1})
	w.must(w.attach(v, i, "/dev/xvdaa"))
	w.must(w.attach(next, i, "/dev/xvdab"))
	await(t, w.sim, next, cloud.Attached) // attached later, and sooner done
	if got := attachmentState(w.sim, v); got != cloud.Attaching {
		t.Errorf("state %s", got)
	}
	w.must(w.detach(v, i))
	await(t, w.sim, v, "")
	w.must(w.attach(v, i, "/dev/xvdac"))
	await(t, w.sim, v, cloud.Attached)
}

func TestKeyRefusedFailsLate(t *testing.T) {
	w := newWorld(t, ec2sim.Timing{})
	i := w.running()
	v := createVolume(t, w.sim, ec2sim.CreateVolumeInput{KMSKeyID: "arn:aws:kms:us-east-1:123456789012:key/k"})
	w.sim.Inject(ec2sim.Fault{Kind: cloud.KeyRefused, Volume: v, Times: 1})
	w.must(w.attach(v, i, "/dev/xvdaa"))
	if got := attachmentState(w.sim, v); got != cloud.Attaching && got != "" {
		t.Errorf("state %s", got)
	}
	await(t, w.sim, v, "")
	w.must(w.attach(v, i, "/dev/xvdaa"))
	await(t, w.sim, v, cloud.Attached)
}

func TestBusyDetach(t *testing.T) {
	for name, end := range map[string]func(w *world, busy *ec2sim.Injection, v string){
		"cleared": func(_ *world, busy *ec2sim.Injection, _ string) { busy.Clear() },
		"forced": func(w *world, _ *ec2sim.Injection, v string) {
			_, err := w.DetachVolume(w.ctx, &ec2.DetachVolumeInput{VolumeId: &v, Force: aws.Bool(true)})
			w.must(err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, ec2sim.Timing{})
			i := w.running()
			v := w.attached(i)
			busy := w.sim.Inject(ec2sim.Fault{Kind: cloud.BusyDetach, Volume: v})
			w.must(w.detach(v, i))
			await(t, w.sim, v, cloud.Busy)
			end(w, busy, v)
			await(t, w.sim, v, "")
		})
	}
}

func TestLatencyComesBeforeTheEffect(t *testing.T) {
	w := newWorld(t, ec2sim.Timing{})
	w.sim.SetLatency("CreateVolume", ec2sim.Span{Base: 30 * time.Millisecond})
	began := time.Now()
	w.creating()
	if took := time.Since(began); took < 30*time.Millisecond {
		t.Errorf("took %v", took)
	}
	if made := w.sim.Volumes()[0].CreateTime; made.Sub(began) < 30*time.Millisecond {
		t.Errorf("made %v after the call", made.Sub(began))
	}
}

func TestClientTokenMakesOneVolume(t *testing.T) {
	w := newWorld(t, ec2sim.Timing{})
	for range 3 {
		w.must(w.create(ec2.CreateVolumeInput{Size: aws.Int32(1), ClientToken: aws.String("same")}))
	}
	if n := len(w.sim.Volumes()); n != 1 {
		t.Errorf("%d volumes", n)
	}
	in := runOne("us-east-1a")
	in.ClientToken = aws.String("one")
	for range 3 {
		_, err := w.RunInstances(w.ctx, in)
		w.must(err)
	}
	if n := len(w.sim.Instances()); n != 1 {
		t.Errorf("%d instances", n)
	}
}

func TestModifyGrowsInTheEnd(t *testing.T) {
	w := newWorld(t, ec2sim.Timing{})
	v := w.volume()
	w.must(w.modify(v, 30))
	states := []types.VolumeModificationState{}
	for len(states) == 0 || states[len(states)-1] != types.VolumeModificationStateCompleted {
		out, err := w.DescribeVolumesModifications(w.ctx, &ec2.DescribeVolumesModificationsInput{})
		w.must(err)
		states = append(states, out.VolumesModifications[0].ModificationState)
	}
	if !slices.IsSortedFunc(slices.Compact(states), func(a, b types.VolumeModificationState) int {
		order := []types.VolumeModificationState{"modifying", "optimizing", "completed"}
		return slices.Index(order, a) - slices.Index(order, b)
	}) {
		t.Errorf("states %v", states)
	}
	if got, _ := w.sim.Volume(v); got.SizeGiB != 30 {
		t.Errorf("size %d", got.SizeGiB)
	}
}

func TestPagesAndFilters(t *testing.T) {
	w := newWorld(t, ec2sim.Timing{})
	o := w.Options() // large answers need the SDK's retries, see gate.go
	o.RetryMaxAttempts = 5
	w.Client = ec2.New(o)
	var want []string
	for n := range 23 {
		want = append(want, createVolume(t, w.sim, ec2sim.CreateVolumeInput{SizeGiB: n + 1, Tags: map[string]string{"Name": fmt.Sprintf("cache-%02d", n), "pool": "ci"}}))
	}
	slices.Sort(want)
	var got []string
	sizes := []int{}
	pages := ec2.NewDescribeVolumesPaginator(w, &ec2.DescribeVolumesInput{MaxResults: aws.Int32(10)})
	for pages.HasMorePages() {
		out, err := pages.NextPage(w.ctx)
		w.must(err)
		sizes = append(sizes, len(out.Volumes))
		for _, v := range out.Volumes {
			got = append(got, *v.VolumeId)
		}
	}
	if !slices.Equal(got, want) || !slices.Equal(sizes, []int{10, 10, 3}) {
		t.Errorf("pages of %v: %v", sizes, got)
	}
	i := w.running()
	w.must(w.attach(want[0], i, "/dev/xvdaa"))
	await(t, w.sim, want[0], cloud.Attached)
	for _, f := range []struct {
		filters []types.Filter
		want    int
	}{
		{volumesBy("size", "1", "2").Filters, 2},
		{volumesBy("size", "1?").Filters, 10},
		{volumesBy("tag:Name", "cache-0*").Filters, 10},
		{volumesBy("tag:Name", "cache").Filters, 0},
		{volumesBy("tag:name", "*").Filters, 0},
		{volumesBy("tag-key", "pool").Filters, 23},
		{volumesBy("tag-key", "p?ol").Filters, 23},
		{volumesBy("status", "in-use").Filters, 1},
		{volumesBy("attachment.status", "attached").Filters, 1},
		{volumesBy("attachment.instance-id", i).Filters, 1},
		{volumesBy("attachment.device", "/dev/xvda?").Filters, 1},
		{volumesBy("attachment.delete-on-termination", "false").Filters, 1},
		{volumesBy("availability-zone", "us-east-1b").Filters, 0},
		{volumesBy("volume-type", "gp3").Filters, 23},
		{volumesBy("encrypted", "true").Filters, 0},
		{volumesBy("multi-attach-enabled", "false").Filters, 23},
		{volumesBy("create-time", "20*").Filters, 23},
		{volumesBy("volume-id", noVolume).Filters, 0},
		{volumesBy("volume-id", want[0], want[1], noVolume).Filters, 2},
		{append(volumesBy("tag:Name", "cache-1*").Filters, volumesBy("size", "12").Filters...), 1},
	} {
		out, err := w.DescribeVolumes(w.ctx, &ec2.DescribeVolumesInput{Filters: f.filters})
		w.must(err)
		if len(out.Volumes) != f.want {
			t.Errorf("%s=%v finds %d, want %d", *f.filters[0].Name, f.filters[0].Values, len(out.Volumes), f.want)
		}
	}
	for name, value := range map[string]string{
		"instance-id": i, "instance-state-name": "running", "availability-zone": "us-east-1a", "instance-type": "m5.large",
	} {
		out, err := w.DescribeInstances(w.ctx, &ec2.DescribeInstancesInput{Filters: volumesBy(name, value).Filters})
		w.must(err)
		if len(out.Reservations) != 1 {
			t.Errorf("%s=%s finds %d instances", name, value, len(out.Reservations))
		}
	}
}

func TestTags(t *testing.T) {
	w := newWorld(t, ec2sim.Timing{})
	v, i := w.volume(), w.running()
	_, err := w.CreateTags(w.ctx, &ec2.CreateTagsInput{Resources: []string{v, i}, Tags: []types.Tag{
		{Key: aws.String("a"), Value: aws.String("1")}, {Key: aws.String("b"), Value: aws.String("2")}, {Key: aws.String("c")},
	}})
	w.must(err)
	_, err = w.DeleteTags(w.ctx, &ec2.DeleteTagsInput{Resources: []string{v}, Tags: []types.Tag{
		{Key: aws.String("a")}, {Key: aws.String("b"), Value: aws.String("other")},
	}})
	w.must(err)
	if got, _ := w.sim.Volume(v); fmt.Sprint(got.Tags) != "map[b:2 c:]" {
		t.Errorf("tags %v", got.Tags)
	}
	_, err = w.DeleteTags(w.ctx, &ec2.DeleteTagsInput{Resources: []string{v}})
	w.must(err)
	out, err := w.DescribeInstances(w.ctx, &ec2.DescribeInstancesInput{Filters: volumesBy("tag:a", "1").Filters})
	w.must(err)
	if got, _ := w.sim.Volume(v); len(got.Tags) != 0 || len(out.Reservations) != 1 {
		t.Errorf("volume has %v; %d instances", got.Tags, len(out.Reservations))
	}
}
