package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go/logging"
	"github.com/urfave/cli/v2"
	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/mount"
	"github.com/volpool/volpool/pool"
	"go.uber.org/zap"
)

// clients are the real ones, all the way.
type clients struct {
	aws    aws.Config
	imds   *imds.Client
	dynamo *dynamodb.Client
	ec2    *pool.EC2
	store  *lease.DynamoDB
}

// connect sets the clients up. It asks the metadata service for the region
// where nothing else names one; that may fail and leave the region empty, which
// who needs it is told by needRegion.
func connect(ctx context.Context, c *cli.Context) (*clients, error) {
	cfg, err := config.LoadDefaultConfig(ctx, config.WithRegion(c.String("region")),
		config.WithLogger(logging.Nop{}), // it warns of what its own retries see to
		config.WithHTTPClient(awshttp.NewBuildableClient().
			WithDialerOptions(func(d *net.Dialer) { d.Timeout = 3 * time.Second }).
			WithTransportOptions(func(t *http.Transport) { t.ResponseHeaderTimeout = 10 * time.Second })),
		config.WithRetryer(func() aws.Retryer {
			return retry.AddWithMaxBackoffDelay(retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts = 5 }), 2*time.Second)
		}))
	if err != nil {
		return nil, fmt.Errorf("read the AWS configuration: %w", err)
	}
	metadata := imds.NewFromConfig(cfg, func(o *imds.Options) { o.EnableFallback = aws.FalseTernary })
	if cfg.Region == "" {
		patience := 5 * time.Second
		if t := c.Duration("timeout"); t > 0 { // an acquire has its deadline from its start
			patience = min(patience, t/3)
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if out, err := metadata.GetRegion(ctx, nil); err == nil {
			cfg.Region = out.Region
		}
	}
	dynamo := dynamodb.NewFromConfig(cfg)
	return &clients{aws: cfg, imds: metadata, dynamo: dynamo, ec2: pool.NewEC2(callsOf(ec2.NewFromConfig(cfg))),
		store: lease.NewDynamoDB(dynamo, c.String("table"))}, nil
}

var errNoRegion = &hintError{errors.New("no AWS region is known"), "give --region, or set AWS_REGION"}

func (s *clients) needRegion() error {
	if s.aws.Region == "" {
		return errNoRegion
	}
	return nil
}

// credentials tells early, and in words, that there is nothing to sign with.
func (s *clients) credentials(ctx context.Context) error {
	if _, err := s.aws.Credentials.Retrieve(ctx); err != nil {
		return fmt.Errorf("find AWS credentials: %w", lastCause(err))
	}
	return nil
}

// operator connects for the pool commands, which have no fallback.
func operator(c *cli.Context) (*clients, error) {
	s, err := connect(c.Context, c)
	if err != nil {
		return nil, err
	}
	if err := s.needRegion(); err != nil {
		return nil, err
	}
	if err := s.credentials(c.Context); err != nil {
		return nil, &hintError{err, "set AWS_PROFILE or AWS_ACCESS_KEY_ID, or run it where a role is given"}
	}
	return s, nil
}

// parts hands an agent what it works with.
func parts(c *cli.Context, log *zap.Logger, instance, zone string) (pool.Parts, error) {
	s, err := connect(c.Context, c)
	if err != nil {
		return pool.Parts{}, err
	}
	host, err := machine(c, log)
	if err != nil {
		return pool.Parts{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return pool.Parts{}, fmt.Errorf("read the boot id: %w", err)
	}
	return pool.Parts{
		Store: s.store, EC2: s.ec2, Disks: disks{host}, Run: pool.RunDir(c.String("run-dir")),
		BootID: strings.TrimSpace(string(boot)), Log: log, Credentials: s.credentials,
		Identify: func(ctx context.Context) (pool.Identity, error) {
			if instance != "" {
				return pool.Identity{Instance: instance, Zone: zone, Region: s.aws.Region}, s.needRegion()
			}
			id, err := pool.Identify(ctx, s.imds)
			if err != nil {
				return pool.Identity{}, err
			}
			return id, s.needRegion()
		},
	}, nil
}

func machine(c *cli.Context, log *zap.Logger) (*mount.Host, error) {
	return mount.New(mount.Config{SysfsRoot: c.String("sysfs-root"), DevRoot: c.String("dev-root"), Log: log})
}

func lastCause(err error) error {
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return err
}

// disks adapts package mount to what package pool asks of a machine.
type disks struct{ host *mount.Host }

func (d disks) MakePoint(point string, root pool.Root) error {
	return pointError(d.host.MakePoint(point, mount.Root(root)))
}

func (d disks) BindMount(dir, point string, root pool.Root) error {
	return pointError(d.host.BindMount(dir, point, mount.Root(root)))
}

func (d disks) Listen() (pool.Arrivals, error) {
	l, err := d.host.Listen()
	if err != nil {
		return nil, err
	}
	return arrivals{l}, nil
}

func (d disks) Attached() ([]pool.AttachedVolume, error) {
	volumes, err := d.host.Volumes()
	attached := make([]pool.AttachedVolume, len(volumes))
	for i, v := range volumes {
		attached[i] = pool.AttachedVolume{Volume: v.VolumeID, InUse: v.Mounted}
	}
	return attached, err
}

func (d disks) MountedAt(point string) (pool.Mounted, bool, error) {
	m, mounted, err := d.host.MountedAt(point)
	return pool.Mounted{Volume: m.VolumeID, Device: m.Source}, mounted, err
}

func (d disks) Unmount(ctx context.Context, point string, kill bool) error {
	err := d.host.Unmount(ctx, point, mount.UnmountOptions{Kill: kill})
	if errors.Is(err, mount.ErrNotMounted) {
		return nil // somebody did it before us
	}
	return err
}

func (d disks) Usage(point string) (pool.Usage, error) {
	u, err := d.host.Usage(point)
	return pool.Usage{UsedPercent: u.UsedPercent, InodesPercent: u.InodesPercent}, err
}

type arrivals struct{ *mount.Listener }

func (a arrivals) Wait(ctx context.Context, volume, attachName string) (pool.Disk, error) {
	d, err := a.Listener.Wait(ctx, mount.Target{VolumeID: volume, AttachName: attachName})
	if err != nil {
		return nil, diskError(err)
	}
	return disk{d}, nil
}

type disk struct{ *mount.Device }

func (d disk) Probe(ctx context.Context) (pool.Probe, error) {
	p, err := d.Device.Probe(ctx)
	content := map[mount.Content]pool.Content{mount.Blank: pool.Blank, mount.HasData: pool.HasData}[p.Content]
	return pool.Probe{Content: content, FSType: p.FSType, FSUUID: p.FSUUID, Clean: p.Clean, Why: p.Reason}, diskError(err)
}

func (d disk) Format(ctx context.Context, fsType, fsUUID string, overwrite bool) error {
	if overwrite {
		return diskError(d.Device.Overwrite(ctx, fsType, fsUUID))
	}
	return diskError(d.Device.Format(ctx, fsType, fsUUID))
}

func (d disk) Check(ctx context.Context, fsType string) (bool, error) {
	done, err := d.Device.Check(ctx, fsType)
	return done.Repaired, diskError(err)
}

func (d disk) Mount(ctx context.Context, point string, m pool.MountOptions) error {
	return diskError(d.Device.Mount(ctx, point, mount.MountOptions{FSType: m.FSType, Options: m.Options, Root: mount.Root(m.Root)}))
}

// diskError says whose fault it is.
func diskError(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, mount.ErrLocked) {
		return fmt.Errorf("%w: %w", pool.ErrLocked, err)
	}
	if _, ok := errors.AsType[*mount.VolumeError](err); ok {
		return &pool.DiskError{Reason: pool.ReasonBadVolume, VolumeFault: true, Err: err}
	}
	return &pool.DiskError{Reason: pool.ReasonMachine, Err: err}
}

func pointError(err error) error {
	if errors.Is(err, mount.ErrAlreadyMounted) {
		return fmt.Errorf("%w: %w", pool.ErrAlreadyMounted, err)
	}
	return err
}
