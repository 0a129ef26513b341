package ec2sim

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/volpool/volpool/integration/ec2sim/cloud"
)

// An Instance is where its own IMDS and its devices are.
type Instance struct {
	ID        string
	Zone      string
	IMDS      string // the URL for AWS_EC2_METADATA_SERVICE_ENDPOINT
	SysfsRoot string // what /sys is to a real instance; empty without a Backend
	DevRoot   string // what /dev is

	Metadata *Metadata

	server *http.Server
}

// Run starts one instance and waits until it is running. A zone that is empty
// is the first.
func (s *Sim) Run(in RunInput) (*Instance, error) {
	if in.Zone == "" {
		in.Zone = s.cfg.Zones[0]
	}
	started, err := s.run(in)
	if err != nil {
		return nil, err
	}
	id := started[0].ID
	if err := s.await(id, cloud.Running); err != nil {
		return nil, err
	}
	return s.Instance(id), nil
}

// run starts instances, each with an IMDS.
func (s *Sim) run(in RunInput) ([]cloud.Instance, error) {
	started, err := s.Cloud.RunInstances(in)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range started {
		if s.instances[c.ID] != nil { // a repeated ClientToken
			continue
		}
		i := &Instance{ID: c.ID, Zone: c.Zone, SysfsRoot: c.Roots.Sysfs, DevRoot: c.Roots.Dev}
		i.Metadata = newMetadata(s, c)
		if i.server, i.IMDS, err = s.serve("127.0.0.1:0", i.Metadata); err != nil {
			return nil, fmt.Errorf("serve IMDS of %s: %w", c.ID, err)
		}
		s.instances[c.ID] = i
	}
	return started, nil
}

// Instance returns one that was started, nil if there was none of that id. It
// is known also after EC2 has forgotten it.
func (s *Sim) Instance(id string) *Instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.instances[id]
}

// Instances returns all that were started, by id.
func (s *Sim) Instances() []*Instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*Instance
	for _, i := range s.instances {
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b *Instance) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// Stop stops an instance and waits until it is.
func (s *Sim) Stop(id string) error {
	if _, err := s.Cloud.StopInstances([]string{id}); err != nil {
		return err
	}
	return s.await(id, cloud.Stopped)
}

// Start starts a stopped instance and waits until it runs.
func (s *Sim) Start(id string) error {
	if _, err := s.Cloud.StartInstances([]string{id}); err != nil {
		return err
	}
	return s.await(id, cloud.Running)
}

// Terminate ends an instance and waits until it is terminated; its volumes are
// detaching then.
func (s *Sim) Terminate(id string) error {
	if _, err := s.Cloud.TerminateInstances([]string{id}); err != nil {
		return err
	}
	return s.await(id, cloud.Terminated)
}

// await waits for a state; an instance that EC2 forgot was terminated.
func (s *Sim) await(id, state string) error {
	return s.Cloud.Wait(context.Background(), func() bool {
		i, ok := s.Cloud.Instance(id)
		return !ok || i.State == state
	})
}
