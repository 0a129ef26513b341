package cloud

import (
	"fmt"
	"maps"
	"time"
)

// States of an instance.
const (
	Pending      = "pending"
	Running      = "running"
	Stopping     = "stopping"
	Stopped      = "stopped"
	ShuttingDown = "shutting-down"
	Terminated   = "terminated"
)

// An Instance as it is at one moment.
type Instance struct {
	ID          string
	Zone        string
	Type        string
	ImageID     string
	State       string
	LaunchTime  time.Time
	Tags        map[string]string
	AttachLimit int
	PrivateIP   string
	Roots       Roots
}

type instance struct {
	Instance
	history timeline[Instance]
}

func (i *instance) snapshot() Instance {
	s := i.Instance
	s.Tags = maps.Clone(i.Tags)
	return s
}

// noteInstance keeps the instance's new state; the caller holds the lock.
func (c *Cloud) noteInstance(i *instance) {
	i.history.add(time.Now(), i.snapshot())
	c.notify()
}

func (c *Cloud) enter(i *instance, state string) {
	i.State = state
	c.noteInstance(i)
}

// A StateChange is what Stop, Start and Terminate answer.
type StateChange struct {
	ID, From, To string
}

// RunInput is what new instances are to be.
type RunInput struct {
	Zone        string
	Type        string
	ImageID     string
	Count       int // 1 if zero
	Tags        map[string]string
	AttachLimit int // Config's if zero
	ClientToken string
}

// RunInstances starts instances; they are pending first.
func (c *Cloud) RunInstances(in RunInput) ([]Instance, error) {
	request := fmt.Sprint(in)
	if err := c.checkZone(in.Zone); err != nil {
		return nil, err
	}
	if err := checkTags(in.Tags); err != nil {
		return nil, err
	}
	c.mu.Lock()
	ids, err := c.remembered(in.ClientToken, request)
	if err != nil {
		c.mu.Unlock()
		return nil, err
	}
	if ids == nil {
		for range max(in.Count, 1) {
			ids = append(ids, c.newID("i"))
		}
		c.remember(in.ClientToken, request, ids...)
	} else {
		defer c.mu.Unlock()
		return c.present(ids), nil
	}
	c.mu.Unlock()

	roots := make([]Roots, len(ids))
	for k, id := range ids {
		if roots[k], err = c.cfg.Backend.Boot(id); err != nil {
			return nil, fmt.Errorf("prepare instance %s: %w", id, err)
		}
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	for k, id := range ids {
		n := len(c.instances) + 10
		i := &instance{Instance: Instance{
			ID: id, Zone: in.Zone, Type: orElse(in.Type, "m5.large"), ImageID: in.ImageID, State: Pending,
			LaunchTime: time.Now(), Tags: maps.Clone(in.Tags), AttachLimit: orElse(in.AttachLimit, c.cfg.AttachLimit),
			PrivateIP: fmt.Sprintf("10.0.%d.%d", n/250%250, n%250), Roots: roots[k],
		}}
		c.instances[id] = i
		c.noteInstance(i)
		c.after(c.cfg.Timing.Boot, func() { c.booted(i) })
	}
	return c.present(ids), nil
}

func (c *Cloud) present(ids []string) []Instance {
	var found []Instance
	for _, id := range ids {
		if i := c.instances[id]; i != nil {
			found = append(found, i.snapshot())
		}
	}
	return found
}

// booted also brings back the devices of what stayed attached while the
// instance was stopped.
func (c *Cloud) booted(i *instance) {
	c.mu.Lock()
	if i.State != Pending { // terminated meanwhile
		c.mu.Unlock()
		return
	}
	c.enter(i, Running)
	attached := c.attachmentsOf(i.ID)
	c.mu.Unlock()
	for _, a := range attached {
		c.settleSoon(a)
	}
}

// StopInstances stops running instances; their volumes stay attached.
func (c *Cloud) StopInstances(ids []string) ([]StateChange, error) {
	return c.change(ids, func(i *instance) (func(), error) {
		switch i.State {
		case Pending:
			return nil, stopBeforeRunning(i.ID)
		case Running:
			return func() {
				c.enter(i, Stopping)
				c.after(c.cfg.Timing.Stop, func() { c.stopped(i) })
			}, nil
		case Stopping, Stopped:
			return func() {}, nil
		}
		return nil, cannotStop(i.ID)
	})
}

func (c *Cloud) stopped(i *instance) {
	c.mu.Lock()
	if i.State != Stopping {
		c.mu.Unlock()
		return
	}
	c.enter(i, Stopped)
	attached := c.attachmentsOf(i.ID)
	c.mu.Unlock()
	for _, a := range attached {
		c.settleSoon(a)
	}
}

// StartInstances starts stopped instances again.
func (c *Cloud) StartInstances(ids []string) ([]StateChange, error) {
	return c.change(ids, func(i *instance) (func(), error) {
		switch i.State {
		case Stopped:
			return func() {
				c.enter(i, Pending)
				c.after(c.cfg.Timing.Boot, func() { c.booted(i) })
			}, nil
		case Pending, Running:
			return func() {}, nil
		}
		return nil, cannotStart(i.ID)
	})
}

// TerminateInstances ends instances. Once terminated, their volumes detach,
// and those with DeleteOnTermination are deleted.
func (c *Cloud) TerminateInstances(ids []string) ([]StateChange, error) {
	return c.change(ids, func(i *instance) (func(), error) {
		if i.State == ShuttingDown || i.State == Terminated {
			return func() {}, nil
		}
		return func() {
			c.enter(i, ShuttingDown)
			c.after(c.cfg.Timing.ShutDown, func() { c.terminated(i) })
		}, nil
	})
}

func (c *Cloud) terminated(i *instance) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enter(i, Terminated)
	for _, a := range c.attachmentsOf(i.ID) {
		c.beginDetach(a)
	}
	c.After(c.cfg.Timing.Forget, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.instances, i.ID)
		c.notify()
	})
}

// change looks at all instances first: one refusal, and none is changed.
func (c *Cloud) change(ids []string, decide func(*instance) (func(), error)) ([]StateChange, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var missing []string
	for _, id := range ids {
		if err := CheckInstanceID(id); err != nil {
			return nil, err
		}
		if c.instances[id] == nil {
			missing = append(missing, id)
		}
	}
	if missing != nil {
		return nil, noInstances(missing...)
	}
	apply := make([]func(), len(ids))
	for k, id := range ids {
		var err error
		if apply[k], err = decide(c.instances[id]); err != nil {
			return nil, err
		}
	}
	changes := make([]StateChange, len(ids))
	for k, id := range ids {
		i := c.instances[id]
		changes[k] = StateChange{ID: id, From: i.State}
		apply[k]()
		changes[k].To = i.State
	}
	return changes, nil
}

// instance finds an instance; the caller holds the lock.
func (c *Cloud) instance(id string) (*instance, error) {
	if err := CheckInstanceID(id); err != nil {
		return nil, err
	}
	i := c.instances[id]
	if i == nil {
		return nil, noInstances(id)
	}
	return i, nil
}
