package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"github.com/volpool/volpool/integration/ec2sim"
	"github.com/volpool/volpool/integration/ec2sim/cloud"
	"github.com/volpool/volpool/integration/figure"
	"github.com/volpool/volpool/lease"
)

const (
	racers      = 20
	repetitions = 20
	patience    = time.Minute // with one repetition, whose callers wait for each other
)

// race has twenty instances claim from twenty volumes, all of them having seen
// the same volume as the lowest.
func (b *bench) race(ctx context.Context) error {
	p := newProxy(b.dynamo.Endpoint())
	server := httptest.NewServer(p)
	defer server.Close()
	client := dynamoDB(server.URL)
	if err := lease.CreateTable(ctx, client, "race"); err != nil {
		return err
	}
	store := lease.NewDynamoDB(client, "race")
	registry := lease.Registry{Store: store}
	if _, err := registry.Init(ctx, "ci", lease.DefaultSettings()); err != nil {
		return err
	}
	for i := range racers {
		v := lease.Volume{ID: fmt.Sprintf("vol-%017x", i+1), SizeGiB: 1, Created: time.Unix(int64(i), 0)}
		if _, err := registry.Add(ctx, "ci", zone, v); err != nil {
			return err
		}
	}
	distinct, lost := racers, int64(1<<62)
	for range repetitions {
		p.hold(racers)
		var mu sync.Mutex
		var races int64
		held := map[string]bool{}
		leases := make([]*lease.Lease, racers)
		err := together(ctx, func(ctx context.Context, i int) error {
			c, err := lease.New(lease.Config{Store: store, Pool: "ci", Zone: zone, Owner: fmt.Sprintf("i-%017x", i), MountPoint: "/mnt/cache"})
			if err != nil {
				return err
			}
			l, err := c.Claim(ctx, nil)
			mu.Lock()
			defer mu.Unlock()
			races += c.LostRaces()
			if errors.Is(err, lease.ErrNoFree) {
				return nil // its instance takes the fallback: one volume less
			}
			if err != nil {
				return err
			}
			leases[i] = l
			held[l.Volume()] = true
			return nil
		})
		if err != nil {
			return err
		}
		if err := together(ctx, func(ctx context.Context, i int) error {
			if leases[i] == nil {
				return nil
			}
			return leases[i].Release(ctx, true)
		}); err != nil {
			return err
		}
		distinct, lost = min(distinct, len(held)), min(lost, races)
	}
	b.atLeast("race20.distinct", float64(distinct), "volumes", racers)
	b.atLeast("race20.lost", float64(lost), "races", racers-1)
	return nil
}

// together runs twenty at once. One that fails ends all: the others may wait
// for its call.
func together(ctx context.Context, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	errs := make([]error, racers)
	var all sync.WaitGroup
	for i := range racers {
		all.Go(func() {
			if errs[i] = do(ctx, i); errs[i] != nil {
				cancel()
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// oldWay is what a script does: it lists the available volumes by tag, sorts
// them by creation time, attaches the first, and polls until it is attached. Who
// is refused goes without.
func (b *bench) oldWay(ctx context.Context) error {
	client := ec2.New(ec2.Options{Region: b.ec2.Region(), BaseEndpoint: aws.String(b.ec2.Endpoint()),
		Credentials: credentials.NewStaticCredentialsProvider("EC2SIM", "ec2sim", "")})
	tag := map[string]string{"cache": "old"}
	instances := make([]*ec2sim.Instance, racers)
	for i := range racers {
		if _, err := b.ec2.CreateVolume(ec2sim.CreateVolumeInput{Zone: zone, SizeGiB: 1, Tags: tag}); err != nil {
			return err
		}
		inst, err := b.ec2.Run(ec2sim.RunInput{Zone: zone})
		if err != nil {
			return err
		}
		instances[i] = inst
	}
	worst := racers
	for range repetitions {
		b.ec2.Inject(cloud.Fault{Kind: cloud.Hold, Action: "DescribeVolumes", Callers: racers, Times: racers})
		got := make([]string, racers)
		if err := together(ctx, func(ctx context.Context, i int) (err error) {
			got[i], err = firstAvailable(ctx, client, instances[i].ID)
			return err
		}); err != nil {
			return err
		}
		b.ec2.ClearFaults()
		distinct := map[string]bool{}
		for i, volume := range got {
			if volume == "" {
				continue
			}
			distinct[volume] = true
			if _, err := client.DetachVolume(ctx, &ec2.DetachVolumeInput{VolumeId: &volume, InstanceId: &instances[i].ID}); err != nil {
				return err
			}
			if err := b.ec2.Wait(ctx, func() bool { v, _ := b.ec2.Volume(volume); return v.State == cloud.Available }); err != nil {
				return err
			}
		}
		worst = min(worst, len(distinct))
	}
	figure.Tell("race20.oldway.distinct", float64(worst), "volumes")
	return nil
}

func firstAvailable(ctx context.Context, client *ec2.Client, instance string) (string, error) {
	filter := func(name, value string) types.Filter { return types.Filter{Name: &name, Values: []string{value}} }
	out, err := client.DescribeVolumes(ctx, &ec2.DescribeVolumesInput{Filters: []types.Filter{
		filter("tag:cache", "old"), filter("status", "available"), filter("availability-zone", zone)}})
	if err != nil || len(out.Volumes) == 0 {
		return "", err
	}
	slices.SortFunc(out.Volumes, func(x, y types.Volume) int {
		return cmp.Or(x.CreateTime.Compare(*y.CreateTime), cmp.Compare(*x.VolumeId, *y.VolumeId))
	})
	id := *out.Volumes[0].VolumeId
	if _, err := client.AttachVolume(ctx, &ec2.AttachVolumeInput{VolumeId: &id, InstanceId: &instance, Device: aws.String("/dev/xvdf")}); err != nil {
		if code := apiCode(err); code == "VolumeInUse" || code == "IncorrectState" {
			return "", nil // another was faster
		}
		return "", err
	}
	for { // as a script does it
		out, err := client.DescribeVolumes(ctx, &ec2.DescribeVolumesInput{VolumeIds: []string{id}})
		if err != nil {
			return "", err
		}
		if a := out.Volumes[0].Attachments; len(a) == 1 && a[0].State == types.VolumeAttachmentStateAttached {
			return id, nil
		}
	}
}

func apiCode(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	return ""
}
