package cloud

import (
	"time"
)

// States of a modification.
const (
	Modifying  = "modifying"
	Optimizing = "optimizing"
	Completed  = "completed"
)

// A Modification of a volume, as ModifyVolume began it. EC2's limit on how
// many a day there may be is left out.
type Modification struct {
	Volume             string
	State              string
	From, To           Shape
	StartTime, EndTime time.Time
}

// Shape is what ModifyVolume can change of a volume.
type Shape struct {
	SizeGiB, IOPS, Throughput int
	Type                      string
}

func (v *volume) shape() Shape {
	return Shape{SizeGiB: v.SizeGiB, IOPS: v.IOPS, Throughput: v.Throughput, Type: v.Type}
}

// ModifyVolume changes a volume's shape; what is zero stays as it is. The new
// shape is there when the modification is optimizing.
func (c *Cloud) ModifyVolume(id string, to Shape) (Modification, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, err := c.volume(id)
	switch {
	case err != nil:
		return Modification{}, err
	case v.State != Available && v.State != InUse:
		return Modification{}, notAvailable(id)
	case v.modification != nil && v.modification.State != Completed:
		return Modification{}, modifyWhileModifying(id, v.modification.State)
	case to.SizeGiB != 0 && to.SizeGiB < v.SizeGiB:
		return Modification{}, shrinking(v.SizeGiB, to.SizeGiB)
	}
	from := v.shape()
	to = Shape{
		SizeGiB:    orElse(to.SizeGiB, from.SizeGiB),
		IOPS:       orElse(to.IOPS, from.IOPS),
		Throughput: orElse(to.Throughput, from.Throughput),
		Type:       orElse(to.Type, from.Type),
	}
	m := &Modification{Volume: id, State: Modifying, From: from, To: to, StartTime: time.Now()}
	v.modification = m
	c.notify()
	c.after(c.cfg.Timing.Modify, func() { c.reshape(v, m) })
	return *m, nil
}

func (c *Cloud) reshape(v *volume, m *Modification) {
	if err := c.cfg.Backend.Provide(v.ID, m.To.SizeGiB); err != nil {
		c.logError("grow storage", v.ID, "", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	v.SizeGiB, v.IOPS, v.Throughput, v.Type = m.To.SizeGiB, m.To.IOPS, m.To.Throughput, m.To.Type
	m.State = Optimizing
	c.note(v)
	c.after(c.cfg.Timing.Optimize, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		m.State, m.EndTime = Completed, time.Now()
		c.notify()
	})
}

// DescribeModifications returns the last modification of each volume: of all,
// or of those named, which must have one.
func (c *Cloud) DescribeModifications(ids []string) ([]Modification, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []Modification
	for _, id := range ids {
		v, err := c.volume(id)
		switch {
		case err != nil:
			return nil, err
		case v.modification == nil:
			return nil, noModification(id)
		}
		found = append(found, *v.modification)
	}
	if len(ids) > 0 {
		return found, nil
	}
	for _, id := range sortedKeys(c.volumes) {
		if m := c.volumes[id].modification; m != nil {
			found = append(found, *m)
		}
	}
	return found, nil
}

func orElse[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}
