package cloud

import (
	"cmp"
	"encoding/base64"
	"maps"
	"slices"
	"sort"
	"time"
)

// A Query is what the Describes have in common.
type Query struct {
	IDs        []string
	Filters    []Filter
	MaxResults *int
	NextToken  string
	AsOf       time.Time // the moment the answer is of; now, where zero
}

// DescribeVolumes returns one page of volumes, and the token of the next.
func (c *Cloud) DescribeVolumes(q Query) ([]Volume, string, error) {
	if len(q.IDs) > 0 && q.MaxResults != nil {
		return nil, "", pagedIDs("volumeSet")
	}
	for _, id := range q.IDs {
		if err := CheckVolumeID(id); err != nil {
			return nil, "", err
		}
	}
	if err := checkFilters(q.Filters, Volume{}.values); err != nil {
		return nil, "", err
	}
	all, missing := pick(q, c.volumesAsOf(q.AsOf))
	if missing != nil {
		return nil, "", noVolumes(missing...)
	}
	all = slices.DeleteFunc(all, func(v Volume) bool { return !passes(q.Filters, v.values) })
	return page(q, 500, all, func(v Volume) string { return v.ID })
}

// DescribeInstances returns one page of instances, and the token of the next.
func (c *Cloud) DescribeInstances(q Query) ([]Instance, string, error) {
	if len(q.IDs) > 0 && q.MaxResults != nil {
		return nil, "", pagedIDs("instancesSet")
	}
	for _, id := range q.IDs {
		if err := CheckInstanceID(id); err != nil {
			return nil, "", err
		}
	}
	if err := checkFilters(q.Filters, Instance{}.values); err != nil {
		return nil, "", err
	}
	all, missing := pick(q, c.instancesAsOf(q.AsOf))
	if missing != nil {
		return nil, "", noInstances(missing...)
	}
	all = slices.DeleteFunc(all, func(i Instance) bool { return !passes(q.Filters, i.values) })
	return page(q, 1000, all, func(i Instance) string { return i.ID })
}

// AttachmentsAsOf lists, by instance, what was attached at that moment.
func (c *Cloud) AttachmentsAsOf(then time.Time) map[string][]Attachment {
	found := map[string][]Attachment{}
	for _, v := range c.volumesAsOf(then) {
		for _, a := range v.Attachments {
			found[a.Instance] = append(found[a.Instance], a)
		}
	}
	for _, list := range found {
		slices.SortFunc(list, func(a, b Attachment) int { return cmp.Compare(a.Device, b.Device) })
	}
	return found
}

// Volumes returns all volumes as they are now, by id.
func (c *Cloud) Volumes() []Volume {
	return sorted(c.volumesAsOf(time.Time{}))
}

// Instances returns all instances as they are now, by id.
func (c *Cloud) Instances() []Instance {
	return sorted(c.instancesAsOf(time.Time{}))
}

// Volume returns one volume as it is now.
func (c *Cloud) Volume(id string) (Volume, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v := c.volumes[id]; v != nil {
		return v.snapshot(), true
	}
	return Volume{}, false
}

// Instance returns one instance as it is now.
func (c *Cloud) Instance(id string) (Instance, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := c.instances[id]; i != nil {
		return i.snapshot(), true
	}
	return Instance{}, false
}

func (c *Cloud) volumesAsOf(then time.Time) map[string]Volume {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[string]Volume{}
	for id, v := range c.volumes {
		if s, ok := v.history.at(orNow(then)); ok {
			all[id] = s
		}
	}
	return all
}

func (c *Cloud) instancesAsOf(then time.Time) map[string]Instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[string]Instance{}
	for id, i := range c.instances {
		if s, ok := i.history.at(orNow(then)); ok {
			all[id] = s
		}
	}
	return all
}

func orNow(t time.Time) time.Time {
	if t.IsZero() {
		return time.Now()
	}
	return t
}

// pick takes those that were asked for by id, or all; sorted by id, and with
// the ids that are not there.
func pick[T any](q Query, all map[string]T) (found []T, missing []string) {
	if len(q.IDs) == 0 {
		return sorted(all), nil
	}
	ids := slices.Compact(slices.Sorted(slices.Values(q.IDs)))
	for _, id := range ids {
		if thing, ok := all[id]; ok {
			found = append(found, thing)
		} else {
			missing = append(missing, id)
		}
	}
	return found, missing
}

// page cuts a page out of what is sorted by id. The token is the last id of
// the page before, so that what comes and goes meanwhile shifts nothing.
func page[T any](q Query, most int, all []T, id func(T) string) ([]T, string, error) {
	if q.MaxResults == nil && q.NextToken == "" {
		return all, "", nil
	}
	size := most
	if q.MaxResults != nil {
		if *q.MaxResults < 5 {
			return nil, "", pageTooSmall(*q.MaxResults)
		}
		size = min(size, *q.MaxResults)
	}
	if q.NextToken != "" {
		last, err := base64.URLEncoding.DecodeString(q.NextToken)
		if err != nil {
			return nil, "", badPageToken()
		}
		all = all[sort.Search(len(all), func(k int) bool { return id(all[k]) > string(last) }):]
	}
	if len(all) <= size {
		return all, "", nil
	}
	all = all[:size]
	return all, base64.URLEncoding.EncodeToString([]byte(id(all[size-1]))), nil
}

func sorted[T any](all map[string]T) []T {
	things := make([]T, 0, len(all))
	for _, id := range sortedKeys(all) {
		things = append(things, all[id])
	}
	return things
}

func sortedKeys[T any](m map[string]T) []string {
	return slices.Sorted(maps.Keys(m))
}
