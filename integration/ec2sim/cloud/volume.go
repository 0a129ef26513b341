package cloud

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// States of a volume.
const (
	Creating  = "creating"
	Available = "available"
	InUse     = "in-use"
	Deleting  = "deleting"
)

// A Volume as it is at one moment.
type Volume struct {
	ID          string
	Zone        string
	State       string
	Type        string
	SizeGiB     int
	IOPS        int // zero where the type has none to speak of
	Throughput  int
	Encrypted   bool
	KMSKeyID    string
	SnapshotID  string
	MultiAttach bool
	CreateTime  time.Time
	Tags        map[string]string
	Attachments []Attachment
}

// volume is a Volume that lives: what Describe shows is a copy.
type volume struct {
	Volume
	attached     []*attachment
	modification *Modification
	history      timeline[Volume]
}

func (v *volume) snapshot() Volume {
	s := v.Volume
	s.Tags = maps.Clone(v.Tags)
	s.Attachments = make([]Attachment, len(v.attached))
	for i, a := range v.attached {
		s.Attachments[i] = a.Attachment
	}
	return s
}

// note keeps the volume's new state; the caller holds the lock.
func (c *Cloud) note(v *volume) {
	v.history.add(time.Now(), v.snapshot())
	c.notify()
}

// CreateVolumeInput is what a new volume is to be; what is zero gets EC2's
// default.
type CreateVolumeInput struct {
	Zone        string
	Type        string
	SizeGiB     int
	IOPS        int
	Throughput  int
	Encrypted   bool
	KMSKeyID    string
	SnapshotID  string
	MultiAttach bool
	Tags        map[string]string
	ClientToken string
}

func (c *Cloud) checkCreate(in *CreateVolumeInput) error {
	if in.Type == "" {
		in.Type = "gp2" // CreateVolume's default, whatever the console proposes
	}
	provisioned := in.Type == "io1" || in.Type == "io2"
	switch {
	case !slices.Contains([]string{"standard", "gp2", "gp3", "io1", "io2", "st1", "sc1"}, in.Type):
		return unknownVolumeType(in.Type)
	case in.SizeGiB < 1:
		return volumeTooSmall(in.Type, in.SizeGiB)
	case in.Throughput != 0 && in.Type != "gp3":
		return throughputNeedsGP3()
	case in.IOPS != 0 && !provisioned && in.Type != "gp3":
		return iopsNotSupported(in.Type)
	case in.IOPS == 0 && provisioned:
		return iopsMissing(in.Type)
	case in.MultiAttach && !provisioned:
		return multiAttachNeedsIOPS(in.Type)
	}
	if err := checkTags(in.Tags); err != nil {
		return err
	}
	in.Encrypted = in.Encrypted || in.KMSKeyID != ""
	switch in.Type {
	case "gp3":
		in.IOPS = max(in.IOPS, 3000)
		in.Throughput = max(in.Throughput, 125)
	case "gp2":
		in.IOPS = min(max(3*in.SizeGiB, 100), 16000)
	}
	return c.checkZone(in.Zone)
}

// CreateVolume makes a volume; it is creating first.
func (c *Cloud) CreateVolume(in CreateVolumeInput) (Volume, error) {
	request := fmt.Sprint(in)
	if err := c.checkCreate(&in); err != nil {
		return Volume{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if ids, err := c.remembered(in.ClientToken, request); err != nil || ids != nil {
		if v := c.volumes[first(ids)]; v != nil {
			return v.snapshot(), nil
		}
		return Volume{}, err
	}
	v := &volume{Volume: Volume{
		ID: c.newID("vol"), Zone: in.Zone, State: Creating, Type: in.Type, SizeGiB: in.SizeGiB,
		IOPS: in.IOPS, Throughput: in.Throughput, Encrypted: in.Encrypted, KMSKeyID: in.KMSKeyID,
		SnapshotID: in.SnapshotID, MultiAttach: in.MultiAttach, CreateTime: time.Now(), Tags: maps.Clone(in.Tags),
	}}
	c.volumes[v.ID] = v
	c.remember(in.ClientToken, request, v.ID)
	c.note(v)
	c.after(c.cfg.Timing.Create, func() { c.provide(v) })
	return v.snapshot(), nil
}

func (c *Cloud) provide(v *volume) {
	err := c.cfg.Backend.Provide(v.ID, v.SizeGiB)
	c.mu.Lock()
	defer c.mu.Unlock()
	v.State = Available
	if err != nil {
		c.logError("provide storage", v.ID, "", err)
		v.State = "error" // what EC2 shows of a volume that could not be made
	}
	c.note(v)
}

// DeleteVolume deletes an available volume.
func (c *Cloud) DeleteVolume(id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.volume(id)
	switch {
	case err != nil:
		return err
	case len(v.attached) > 0:
		return deleteAttached(id, v.attached[0].Instance)
	case v.State == Creating || v.State == Deleting:
		return notAvailable(id)
	}
	c.remove(v)
	return nil
}

// remove deletes the volume; the caller holds the lock.
func (c *Cloud) remove(v *volume) {
	v.State = Deleting
	c.note(v)
	c.after(c.cfg.Timing.Delete, func() {
		if err := c.cfg.Backend.Discard(v.ID); err != nil {
			c.logError("discard storage", v.ID, "", err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.volumes, v.ID)
		c.notify()
	})
}

// volume finds a volume; the caller holds the lock.
func (c *Cloud) volume(id string) (*volume, error) {
	if err := CheckVolumeID(id); err != nil {
		return nil, err
	}
	v := c.volumes[id]
	if v == nil {
		return nil, noVolumes(id)
	}
	return v, nil
}

func first(ids []string) string {
	if len(ids) == 0 {
		return ""
	}
	return ids[0]
}
