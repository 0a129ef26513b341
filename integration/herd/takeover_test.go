//go:build !race

package herd

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
	"github.com/volpool/volpool/pool"
)

// asked is an EC2 on which the old owner is terminated, which counts its calls
// until the volume was taken over.
type asked struct {
	*cloud
	calls int
	over  bool
}

func (a *asked) count() {
	if !a.over {
		a.calls++
	}
}

func (a *asked) AttachVolume(ctx context.Context, in *ec2.AttachVolumeInput, o ...func(*ec2.Options)) (*ec2.AttachVolumeOutput, error) {
	a.over = true
	return a.cloud.AttachVolume(ctx, in, o...)
}

func (a *asked) DescribeVolumes(ctx context.Context, in *ec2.DescribeVolumesInput, o ...func(*ec2.Options)) (*ec2.DescribeVolumesOutput, error) {
	a.count()
	return a.cloud.DescribeVolumes(ctx, in, o...)
}

func (a *asked) DescribeInstances(ctx context.Context, in *ec2.DescribeInstancesInput, o ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error) {
	a.count()
	out, err := a.cloud.DescribeInstances(ctx, in, o...)
	if err == nil {
		for i := range out.Reservations[0].Instances {
			out.Reservations[0].Instances[i].State.Name = "terminated"
		}
	}
	return out, err
}

// TestFiguresTakeover: the only volume is held by an instance that was
// terminated a moment ago.
func TestFiguresTakeover(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f, h := figures{t}, newHerd(t, 1, 1, time.Second)
		h.store = leasetest.NewFaulty(h.memory) // which answers at once
		if _, err := claim(t)(t.Context(), 7, h.memory); err != nil {
			t.Fatal(err)
		}
		api := &asked{cloud: newCloud()}
		began, taken := time.Now(), time.Duration(0)
		ctx, stop := context.WithCancel(t.Context())
		a := pool.NewAgent(pool.Parts{
			Store: h.store, EC2: pool.NewEC2(api), Disks: machine{api.cloud, "i-me"}, Run: pool.RunDir(dir), BootID: "boot",
			Identify:    func(context.Context) (pool.Identity, error) { return pool.Identity{Instance: "i-me", Zone: zone}, nil },
			Credentials: func(context.Context) error { return nil },
			Elapsed:     func() time.Duration { return time.Since(began) },
			Listen:      func(string) (net.Listener, error) { return deaf(make(chan struct{})), nil },
		}, pool.Options{Pool: "ci", MountPoint: "/mnt/cache", Timeout: time.Minute, AttachTimeout: 25 * time.Second})
		if err := a.Run(ctx, func(r pool.Result) {
			if r.Volume == nil || r.Seconds.Claim == nil {
				t.Fatalf("no takeover: %+v", r)
			}
			taken = time.Duration(*r.Seconds.Claim * float64(time.Second))
			stop()
		}); err != nil {
			t.Error(err)
		}
		calls := api.calls
		for _, c := range h.store.Calls() {
			if calls++; leasetest.IsClaim(c) {
				break
			}
		}
		if r, err := lease.Decode(h.memory.Item(lease.Key{Partition: lease.Partition("ci", zone), Item: id(0)})); err != nil || r.Generation != 2 {
			t.Errorf("left at generation %d, %v", r.Generation, err)
		}
		f.atMost("takeover.calls", float64(calls), "calls", 6)
		f.atMost("takeover.sleeps", taken.Seconds(), "s", 0)
	})
}
