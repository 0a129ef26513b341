package cloud

import (
	"maps"
	"strings"
)

func checkTags(tags map[string]string) error {
	for key := range tags {
		if strings.HasPrefix(key, "aws:") {
			return reservedTag()
		}
	}
	if len(tags) > 50 {
		return tooManyTags()
	}
	return nil
}

// CreateTags sets tags on volumes and instances: on all, or, refused, on none.
func (c *Cloud) CreateTags(ids []string, tags map[string]string) error {
	if err := checkTags(tags); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.retag(ids, func(old map[string]string) (map[string]string, error) {
		merged := maps.Clone(old)
		if merged == nil {
			merged = map[string]string{}
		}
		maps.Copy(merged, tags)
		return merged, checkTags(merged)
	})
}

// DeleteTags removes tags; where a value is given, only where it is that. No
// tags at all means all of them.
func (c *Cloud) DeleteTags(ids []string, tags map[string]*string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.retag(ids, func(old map[string]string) (map[string]string, error) {
		if len(tags) == 0 {
			return nil, nil
		}
		left := maps.Clone(old)
		for key, value := range tags {
			if value == nil || left[key] == *value {
				delete(left, key)
			}
		}
		return left, nil
	})
}

// retag computes all new tags before it sets any; the caller holds the lock.
func (c *Cloud) retag(ids []string, change func(map[string]string) (map[string]string, error)) error {
	var apply []func()
	for _, id := range ids {
		old, set, err := c.taggable(id)
		if err != nil {
			return err
		}
		tags, err := change(old)
		if err != nil {
			return err
		}
		apply = append(apply, func() { set(tags) })
	}
	for _, f := range apply {
		f()
	}
	return nil
}

func (c *Cloud) taggable(id string) (map[string]string, func(map[string]string), error) {
	switch {
	case strings.HasPrefix(id, "vol-"):
		v, err := c.volume(id)
		if err != nil {
			return nil, nil, err
		}
		return v.Tags, func(tags map[string]string) { v.Tags = tags; c.note(v) }, nil
	case strings.HasPrefix(id, "i-"):
		i, err := c.instance(id)
		if err != nil {
			return nil, nil, err
		}
		return i.Tags, func(tags map[string]string) { i.Tags = tags; c.noteInstance(i) }, nil
	}
	return nil, nil, invalidID(id)
}
