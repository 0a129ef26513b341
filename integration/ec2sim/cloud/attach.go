package cloud

import (
	"errors"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// States of an attachment. It is gone once detached.
const (
	Attaching = "attaching"
	Attached  = "attached"
	Detaching = "detaching"
	Busy      = "busy" // detaching, and somebody still uses the device
	Detached  = "detached"
)

// An Attachment of a volume to an instance.
type Attachment struct {
	Volume              string
	Instance            string
	Device              string // the name given in AttachVolume, not the instance's own
	State               string
	AttachTime          time.Time
	DeleteOnTermination bool
}

// attachment is an Attachment that lives.
type attachment struct {
	Attachment
	stuck, noDevice, forced bool
	busy                    *Injection

	// plug is held while the Backend is called; it guards what follows.
	plug    sync.Mutex
	plugged bool
	device  Device
}

// AttachVolume attaches a volume; the attachment is attaching first.
func (c *Cloud) AttachVolume(volumeID, instanceID, device string) (Attachment, error) {
	c.mu.Lock()
	a, err := c.attach(volumeID, instanceID, device)
	if err != nil {
		c.mu.Unlock()
		return Attachment{}, err
	}
	reply := a.Attachment
	deviceFirst := c.take(DeviceFirst, a)
	c.mu.Unlock()
	if deviceFirst {
		c.settle(a)
	}
	return reply, nil
}

// attach does so; the caller holds the lock.
func (c *Cloud) attach(volumeID, instanceID, device string) (*attachment, error) {
	v, err := c.volume(volumeID)
	if err != nil {
		return nil, err
	}
	i, err := c.instance(instanceID)
	if err != nil {
		return nil, err
	}
	if err := c.checkAttach(v, i, device); err != nil {
		return nil, err
	}
	a := &attachment{Attachment: Attachment{
		Volume: v.ID, Instance: i.ID, Device: device, State: Attaching, AttachTime: time.Now(),
	}}
	v.attached = append(v.attached, a)
	v.State = InUse
	c.note(v)
	c.beginAttach(a)
	return a, nil
}

func (c *Cloud) checkAttach(v *volume, i *instance, device string) error {
	switch {
	case v.Zone != i.Zone:
		return zoneMismatch(v.ID, i.ID)
	case i.State != Running && i.State != Stopped:
		return notRunning(i.ID)
	case v.State == InUse && !v.MultiAttach:
		return alreadyAttached(v.ID)
	case slices.ContainsFunc(v.attached, func(a *attachment) bool { return a.Instance == i.ID }):
		return alreadyAttached(v.ID)
	case v.State != Available && v.State != InUse:
		return notAvailable(v.ID)
	case len(v.attached) >= 16:
		return tooManyHolders(v.ID)
	case v.modification != nil && v.modification.State == Modifying:
		return attachWhileModifying(v.ID)
	case rootDevices[device]:
		return deviceNameInUse(device)
	case !deviceName.MatchString(device):
		return badDeviceName(device)
	}
	here := c.attachmentsOf(i.ID)
	if slices.ContainsFunc(here, func(a *attachment) bool { return a.Device == device }) {
		return deviceNameInUse(device)
	}
	if len(here) >= i.AttachLimit {
		return tooManyAttachments(i.AttachLimit)
	}
	return nil
}

// beginAttach sets going what an accepted AttachVolume leads to; the caller
// holds the lock.
func (c *Cloud) beginAttach(a *attachment) {
	switch {
	case c.take(StuckAttaching, a):
		a.stuck = true
		return
	case c.take(KeyRefused, a):
		a.noDevice = true
		c.after(c.cfg.Timing.Attach, func() { c.failAttach(a) })
		return
	}
	a.noDevice = c.take(NoDevice, a)
	c.after(c.cfg.Timing.Device, func() { c.settle(a) })
	c.after(c.cfg.Timing.Attach, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if a.State == Attaching {
			a.State = Attached
			c.note(c.volumes[a.Volume])
		}
	})
}

func (c *Cloud) take(kind Kind, a *attachment) bool {
	return c.Faults.Take(kind, "AttachVolume", a.Volume, a.Instance) != nil
}

func (c *Cloud) failAttach(a *attachment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.State == Attaching {
		c.drop(a)
	}
}

// settle brings the device to the instance, or takes it away, as the states
// of both ask for. It answers false while a device that is to go is in use.
func (c *Cloud) settle(a *attachment) bool {
	a.plug.Lock()
	defer a.plug.Unlock()
	c.mu.Lock()
	want := c.wantsDevice(a)
	c.mu.Unlock()
	switch {
	case want && !a.plugged:
		device, err := c.cfg.Backend.Plug(a.Instance, a.Volume)
		if err != nil {
			c.logError("plug device", a.Volume, a.Instance, err)
			return true
		}
		a.plugged, a.device = true, device
	case !want && a.plugged:
		if err := c.cfg.Backend.Unplug(a.Instance, a.Volume); err != nil {
			if !errors.Is(err, ErrBusy) {
				c.logError("unplug device", a.Volume, a.Instance, err)
			}
			return false
		}
		a.plugged = false
	default:
		return true
	}
	if c.cfg.OnDevice != nil {
		c.cfg.OnDevice(DeviceEvent{Instance: a.Instance, Volume: a.Volume, Device: a.device, Gone: !a.plugged, At: time.Now()})
	}
	return true
}

// settleSoon settles until it is done.
func (c *Cloud) settleSoon(a *attachment) {
	if !c.settle(a) {
		c.After(c.cfg.Timing.Recheck, func() { c.settleSoon(a) })
	}
}

func (c *Cloud) wantsDevice(a *attachment) bool {
	i := c.instances[a.Instance]
	on := i != nil && (i.State == Running || i.State == Stopping || i.State == ShuttingDown)
	return on && !a.stuck && !a.noDevice && (a.State == Attaching || a.State == Attached)
}

// DetachVolume detaches a volume. instanceID and device may be empty; what is
// given must be the attachment's own. A detach that is under way is asked for
// again without harm, which is how a busy one gets forced.
func (c *Cloud) DetachVolume(volumeID, instanceID, device string, force bool) (Attachment, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.volume(volumeID)
	if err != nil {
		return Attachment{}, err
	}
	if instanceID != "" {
		if _, err := c.instance(instanceID); err != nil {
			return Attachment{}, err
		}
	}
	switch {
	case len(v.attached) == 0:
		return Attachment{}, detachAvailable(v.ID)
	case instanceID == "" && v.MultiAttach:
		return Attachment{}, detachNeedsInstance()
	}
	a := v.attached[0]
	if instanceID != "" {
		k := slices.IndexFunc(v.attached, func(a *attachment) bool { return a.Instance == instanceID })
		if k < 0 {
			return Attachment{}, notAttachedTo(v.ID, instanceID)
		}
		a = v.attached[k]
	}
	if device != "" && device != a.Device {
		return Attachment{}, notAttachedAs(v.ID, device)
	}
	if i := c.instances[a.Instance]; i != nil && i.State == ShuttingDown {
		return Attachment{}, detachFromEndingInstance(v.ID, a.Instance)
	}
	a.forced = a.forced || force
	c.beginDetach(a)
	return a.Attachment, nil
}

// beginDetach sets going what an accepted DetachVolume leads to; the caller
// holds the lock.
func (c *Cloud) beginDetach(a *attachment) {
	if a.State == Detaching || a.State == Busy {
		return
	}
	a.State = Detaching
	a.busy = c.Faults.Take(BusyDetach, "DetachVolume", a.Volume, a.Instance)
	c.note(c.volumes[a.Volume])
	c.after(c.cfg.Timing.Detach, func() { c.finishDetach(a) })
}

// finishDetach lets go of the attachment as soon as nobody uses the device.
// EC2 keeps trying as long as that takes
// (https://github.com/kubernetes/kubernetes/issues/53692), and so does this: a
// volume that is still in use anywhere never becomes available, not even after
// its instance was terminated.
func (c *Cloud) finishDetach(a *attachment) {
	c.mu.Lock()
	held := a.busy != nil && !a.busy.over() && !a.forced
	c.mu.Unlock()
	free := !held && c.settle(a)
	c.mu.Lock()
	defer c.mu.Unlock()
	if free {
		c.drop(a)
		return
	}
	if a.State != Busy {
		a.State = Busy
		c.note(c.volumes[a.Volume])
	}
	c.After(c.cfg.Timing.Recheck, func() { c.finishDetach(a) })
}

// drop ends the attachment; the caller holds the lock.
func (c *Cloud) drop(a *attachment) {
	v := c.volumes[a.Volume]
	a.State = Detached
	v.attached = slices.DeleteFunc(v.attached, func(other *attachment) bool { return other == a })
	if len(v.attached) == 0 {
		v.State = Available
	}
	c.note(v)
	if i := c.instances[a.Instance]; a.DeleteOnTermination && (i == nil || i.State == Terminated) {
		c.remove(v)
	}
}

// SetDeleteOnTermination sets the flag of a volume's attachments, as
// ModifyInstanceAttribute does; AttachVolume leaves it false.
func (c *Cloud) SetDeleteOnTermination(volumeID string, on bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.volume(volumeID)
	if err != nil {
		return err
	}
	for _, a := range v.attached {
		a.DeleteOnTermination = on
	}
	c.note(v)
	return nil
}

// attachmentsOf lists what is attached to an instance; the caller holds the
// lock.
func (c *Cloud) attachmentsOf(instance string) []*attachment {
	var found []*attachment
	for _, id := range sortedKeys(c.volumes) {
		for _, a := range c.volumes[id].attached {
			if a.Instance == instance {
				found = append(found, a)
			}
		}
	}
	return found
}

func (c *Cloud) logError(what, volume, instance string, err error) {
	c.log.Error(what, zap.String("volume", volume), zap.String("instance", instance), zap.Error(err))
}
