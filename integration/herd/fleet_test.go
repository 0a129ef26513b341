//go:build !race

package herd

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"github.com/volpool/volpool/integration/figure"
	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/pool"
)

// TestFiguresFleet1000: a thousand agents boot within a second, and EC2 takes 50
// AttachVolume at once and 5 a second from then on. Most of them cannot have a
// volume in time: nobody blames one for it, and nobody keeps one.
func TestFiguresFleet1000(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f, h := figures{t}, newHerd(t, 1000, 2000, time.Second)
		api := newCloud()
		born := time.Now()
		holding, stop := context.WithCancel(t.Context())
		var mu sync.Mutex
		served, late := map[string]bool{}, 0.0
		var all, lost sync.WaitGroup // lost: those without a volume
		for i := range h.contenders {
			comes := time.Duration(h.rng.Int64N(int64(h.within)))
			lost.Add(1)
			all.Go(func() {
				time.Sleep(comes)
				me := fmt.Sprintf("i-%017x", i)
				began := time.Now()
				a := pool.NewAgent(pool.Parts{
					Store: h.store, EC2: pool.NewEC2(api), Disks: machine{api, me}, Run: pool.RunDir(filepath.Join(dir, me)),
					Identify:    func(context.Context) (pool.Identity, error) { return pool.Identity{Instance: me, Zone: zone}, nil },
					Credentials: func(context.Context) error { return nil },
					BootID:      me, Elapsed: func() time.Duration { return time.Since(born) },
					Rand:   rand.New(rand.NewPCG(7, uint64(i))),
					Listen: func(string) (net.Listener, error) { return deaf(make(chan struct{})), nil },
				}, pool.Options{Pool: "ci", MountPoint: "/mnt/cache", Timeout: time.Minute, AttachTimeout: 25 * time.Second})
				err := a.Run(holding, func(r pool.Result) {
					mu.Lock()
					defer mu.Unlock()
					late = max(late, time.Since(began).Seconds())
					if r.Volume != nil {
						served[me] = true
						lost.Done()
					}
				})
				if mu.Lock(); !served[me] {
					lost.Done()
					if err != nil {
						t.Errorf("%s: %v", me, err)
					}
				}
				mu.Unlock()
			})
		}
		lost.Wait()
		quarantined, leaked := 0, 0
		for i := range h.volumes {
			r, err := lease.Decode(h.memory.Item(lease.Key{Partition: lease.Partition("ci", zone), Item: id(i)}))
			if err != nil {
				t.Fatal(err)
			}
			if r.State == lease.Quarantined || r.Failures > 0 {
				quarantined++
			}
			if r.State == lease.Held && !served[r.Owner] || r.State != lease.Held && api.attachedTo(id(i)) != "" {
				leaked++
			}
		}
		figure.Tell("fleet1000.served", float64(len(served)), "instances")
		figure.Tell("fleet1000.throttled", float64(api.throttled), "calls")
		f.atMost("fleet1000.late", late, "s", 60)
		f.atMost("fleet1000.quarantined", float64(quarantined), "volumes", 0)
		f.atMost("fleet1000.leaked", float64(leaked), "volumes", 0)
		stop()
		all.Wait()
	})
}

// deaf is a control socket that nobody calls.
type deaf chan struct{}

func (d deaf) Accept() (net.Conn, error) { <-d; return nil, net.ErrClosed }
func (d deaf) Close() error              { close(d); return nil }
func (d deaf) Addr() net.Addr            { return nil }

// bucket is one of EC2's: so many at once, and so many more a second.
type bucket struct {
	size, rate, left float64
	at               time.Time
}

func (b *bucket) take() bool {
	b.left, b.at = min(b.size, b.left+b.rate*time.Since(b.at).Seconds()), time.Now()
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// cloud is an EC2 that attaches at once and counts its calls.
type cloud struct {
	mu        sync.Mutex
	attached  map[string]string // volume to instance
	buckets   map[string]*bucket
	throttled int
}

func newCloud() *cloud {
	c := &cloud{attached: map[string]string{}, buckets: map[string]*bucket{}}
	for _, op := range []string{"attach", "detach"} {
		c.buckets[op] = &bucket{size: 50, rate: 5, left: 50, at: time.Now()}
	}
	for _, op := range []string{"volumes", "instances"} {
		c.buckets[op] = &bucket{size: 100, rate: 20, left: 100, at: time.Now()}
	}
	return c
}

func (c *cloud) attachedTo(volume string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.attached[volume]
}

func (c *cloud) call(op string) error {
	if !c.buckets[op].take() {
		c.throttled++
		return &smithy.GenericAPIError{Code: "RequestLimitExceeded", Message: "Request limit exceeded."}
	}
	return nil
}

func refuse(code string) error { return &smithy.GenericAPIError{Code: code, Message: code} }

func (c *cloud) AttachVolume(_ context.Context, in *ec2.AttachVolumeInput, _ ...func(*ec2.Options)) (*ec2.AttachVolumeOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.call("attach"); err != nil {
		return nil, err
	}
	if c.attached[*in.VolumeId] != "" {
		return nil, refuse("VolumeInUse")
	}
	c.attached[*in.VolumeId] = *in.InstanceId
	return &ec2.AttachVolumeOutput{}, nil
}

func (c *cloud) DetachVolume(_ context.Context, in *ec2.DetachVolumeInput, _ ...func(*ec2.Options)) (*ec2.DetachVolumeOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.call("detach"); err != nil {
		return nil, err
	}
	if c.attached[*in.VolumeId] != *in.InstanceId {
		return nil, refuse("IncorrectState")
	}
	delete(c.attached, *in.VolumeId)
	return &ec2.DetachVolumeOutput{}, nil
}

func (c *cloud) DescribeVolumes(_ context.Context, in *ec2.DescribeVolumesInput, _ ...func(*ec2.Options)) (*ec2.DescribeVolumesOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.call("volumes"); err != nil {
		return nil, err
	}
	out := &ec2.DescribeVolumesOutput{}
	for _, filter := range in.Filters {
		if *filter.Name != "volume-id" {
			continue
		}
		for _, volume := range filter.Values {
			v := types.Volume{VolumeId: &volume, State: types.VolumeStateAvailable}
			if on := c.attached[volume]; on != "" {
				v.State = types.VolumeStateInUse
				v.Attachments = []types.VolumeAttachment{{InstanceId: &on, State: types.VolumeAttachmentStateAttached}}
			}
			out.Volumes = append(out.Volumes, v)
		}
	}
	return out, nil
}

func (c *cloud) DescribeInstances(_ context.Context, in *ec2.DescribeInstancesInput, _ ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.call("instances"); err != nil {
		return nil, err
	}
	var r types.Reservation
	for _, id := range in.Filters[0].Values {
		r.Instances = append(r.Instances, types.Instance{InstanceId: &id, State: &types.InstanceState{Name: types.InstanceStateNameRunning}})
	}
	return &ec2.DescribeInstancesOutput{Reservations: []types.Reservation{r}}, nil
}

func (c *cloud) CreateTags(context.Context, *ec2.CreateTagsInput, ...func(*ec2.Options)) (*ec2.CreateTagsOutput, error) {
	return &ec2.CreateTagsOutput{}, nil
}

func (c *cloud) DeleteVolume(context.Context, *ec2.DeleteVolumeInput, ...func(*ec2.Options)) (*ec2.DeleteVolumeOutput, error) {
	return &ec2.DeleteVolumeOutput{}, nil
}

// machine is an instance's disks: what is attached is there, and blank.
type machine struct {
	api *cloud
	id  string
}

func (m machine) MakePoint(string, pool.Root) error         { return nil }
func (m machine) BindMount(string, string, pool.Root) error { return nil }
func (m machine) Listen() (pool.Arrivals, error)            { return m, nil }
func (m machine) Close() error                              { return nil }
func (m machine) Usage(string) (pool.Usage, error)          { return pool.Usage{}, nil }
func (m machine) Unmount(context.Context, string, bool) error {
	return nil
}
func (m machine) MountedAt(string) (pool.Mounted, bool, error) { return pool.Mounted{}, false, nil }
func (m machine) Attached() (list []pool.AttachedVolume, _ error) {
	m.api.mu.Lock()
	defer m.api.mu.Unlock()
	for volume, on := range m.api.attached {
		if on == m.id {
			list = append(list, pool.AttachedVolume{Volume: volume})
		}
	}
	slices.SortFunc(list, func(x, y pool.AttachedVolume) int { return len(x.Volume) - len(y.Volume) })
	return list, nil
}
func (m machine) Wait(context.Context, string, string) (pool.Disk, error) {
	time.Sleep(2 * time.Second) // EC2 needs 1 to 4 s
	return blank{}, nil
}

type blank struct{}

func (blank) Path() string                                           { return "/dev/nvme1n1" }
func (blank) SizeGiB() int64                                         { return 1 }
func (blank) Probe(context.Context) (pool.Probe, error)              { return pool.Probe{Content: pool.Blank}, nil }
func (blank) Format(context.Context, string, string, bool) error     { return nil }
func (blank) Check(context.Context, string) (bool, error)            { return false, nil }
func (blank) Mount(context.Context, string, pool.MountOptions) error { return nil }
func (blank) Close() error                                           { return nil }
