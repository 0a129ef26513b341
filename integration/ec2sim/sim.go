package ec2sim

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/volpool/volpool/integration/ec2sim/cloud"
	"go.uber.org/zap"
)

// The cloud's words, for who needs no more than this package.
type (
	Timing            = cloud.Timing
	Span              = cloud.Span
	Fault             = cloud.Fault
	Injection         = cloud.Injection
	Volume            = cloud.Volume
	Attachment        = cloud.Attachment
	CreateVolumeInput = cloud.CreateVolumeInput
	RunInput          = cloud.RunInput
	DeviceEvent       = cloud.DeviceEvent
	Backend           = cloud.Backend
)

// Config says what to simulate; what is zero gets a default.
type Config struct {
	Region      string   // us-east-1
	Zones       []string // the region's a and b
	Timing      Timing
	AttachLimit int               // volumes an instance takes; 27
	Backend     Backend           // nil: volumes get no device
	Seed        uint64            // of ids and jitter; 0 draws one
	Addr        string            // where to listen; 127.0.0.1:0
	AccessKeyID string            // that each instance's IMDS gives out; EC2SIM
	OnDevice    func(DeviceEvent) // told when a device came or went
	Log         *zap.Logger
}

func (c Config) withDefaults() Config {
	if c.Region == "" {
		c.Region = "us-east-1"
	}
	if len(c.Zones) == 0 {
		c.Zones = []string{c.Region + "a", c.Region + "b"}
	}
	if c.Addr == "" {
		c.Addr = "127.0.0.1:0"
	}
	if c.AccessKeyID == "" {
		c.AccessKeyID = "EC2SIM"
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Seed == 0 {
		var b [8]byte
		_, _ = crand.Read(b[:]) // never fails
		c.Seed = binary.NativeEndian.Uint64(b[:])
		c.Log.Info("seed drawn", zap.Uint64("seed", c.Seed))
	}
	return c
}

// A Sim is a region behind an HTTP endpoint, with an IMDS for each instance.
type Sim struct {
	Cloud *cloud.Cloud

	cfg      Config
	log      *zap.Logger
	gate     *gate
	api      map[string]func(*query) operation
	server   *http.Server
	endpoint string
	serving  sync.WaitGroup

	mu        sync.Mutex
	instances map[string]*Instance
}

// Start serves a region that is empty. On failure nothing is left running, the
// Backend is closed too.
func Start(cfg Config) (*Sim, error) {
	cfg = cfg.withDefaults()
	s := &Sim{cfg: cfg, log: cfg.Log, gate: newGate(cfg.Seed), instances: map[string]*Instance{}}
	s.Cloud = cloud.New(cloud.Config{
		Zones: cfg.Zones, Timing: cfg.Timing, AttachLimit: cfg.AttachLimit, Seed: cfg.Seed,
		Backend: cfg.Backend, Log: cfg.Log, OnDevice: cfg.OnDevice,
	})
	s.api = s.actions()
	mux := http.NewServeMux()
	mux.HandleFunc("/", s.serveEC2)
	s.routeControl(mux)
	var err error
	if s.server, s.endpoint, err = s.serve(cfg.Addr, mux); err != nil {
		return nil, errors.Join(err, s.Cloud.Close())
	}
	return s, nil
}

// Endpoint is the URL for AWS_ENDPOINT_URL_EC2.
func (s *Sim) Endpoint() string { return s.endpoint }

// Region is the region simulated.
func (s *Sim) Region() string { return s.cfg.Region }

// Close ends the servers, and gives back what the Backend holds. Calls that are
// under way are cut off.
func (s *Sim) Close() error {
	s.Cloud.Faults.ClearAll()
	errs := []error{s.server.Close()}
	for _, i := range s.Instances() {
		errs = append(errs, i.server.Close())
	}
	s.serving.Wait()
	return errors.Join(append(errs, s.Cloud.Close())...)
}

// serve starts an HTTP server, and returns its URL.
func (s *Sim) serve(addr string, h http.Handler) (*http.Server, string, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, "", fmt.Errorf("listen on %s: %w", addr, err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: zap.NewStdLog(s.log)}
	s.serving.Go(func() { _ = server.Serve(l) }) // always ends with ErrServerClosed
	return server, "http://" + l.Addr().String(), nil
}

// CreateVolume makes a volume and waits until it is available. A zone or size
// that is zero is the first zone, and 1 GiB.
func (s *Sim) CreateVolume(in CreateVolumeInput) (Volume, error) {
	if in.Zone == "" {
		in.Zone = s.cfg.Zones[0]
	}
	in.SizeGiB = max(in.SizeGiB, 1)
	if in.Type == "" {
		in.Type = "gp3"
	}
	v, err := s.Cloud.CreateVolume(in)
	if err != nil {
		return Volume{}, err
	}
	err = s.Cloud.Wait(context.Background(), func() bool {
		v, _ = s.Cloud.Volume(v.ID)
		return v.State != cloud.Creating
	})
	if err == nil && v.State != cloud.Available {
		err = fmt.Errorf("volume %s is %s", v.ID, v.State)
	}
	return v, err
}

// Volumes returns the truth about all volumes, whatever Describe says.
func (s *Sim) Volumes() []Volume { return s.Cloud.Volumes() }

// Volume returns the truth about one volume; false where there is none.
func (s *Sim) Volume(id string) (Volume, bool) { return s.Cloud.Volume(id) }

// Wait returns when the condition holds; it is looked at after every change.
func (s *Sim) Wait(ctx context.Context, condition func() bool) error {
	return s.Cloud.Wait(ctx, condition)
}

// Inject lets something go wrong.
func (s *Sim) Inject(f Fault) *Injection { return s.Cloud.Faults.Inject(f) }

// ClearFaults ends all that was injected.
func (s *Sim) ClearFaults() { s.Cloud.Faults.ClearAll() }
