package cloud

import (
	"strconv"
	"strings"
	"time"
)

// A Filter of a Describe: the thing has, for Name, one of Values. All filters
// must hold. Values may have the wildcards * and ?, with \ before a character
// that is meant as it is
// (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html).
type Filter struct {
	Name   string
	Values []string
}

// values lists what a volume has for a filter's name; false for an unknown
// name.
func (v Volume) values(name string) ([]string, bool) {
	switch name {
	case "volume-id":
		return []string{v.ID}, true
	case "availability-zone":
		return []string{v.Zone}, true
	case "status":
		return []string{v.State}, true
	case "volume-type":
		return []string{v.Type}, true
	case "size":
		return []string{strconv.Itoa(v.SizeGiB)}, true
	case "encrypted":
		return []string{strconv.FormatBool(v.Encrypted)}, true
	case "multi-attach-enabled":
		return []string{strconv.FormatBool(v.MultiAttach)}, true
	case "snapshot-id":
		return []string{v.SnapshotID}, true
	case "create-time":
		return []string{Timestamp(v.CreateTime)}, true
	}
	if field, ok := strings.CutPrefix(name, "attachment."); ok {
		return v.attachmentValues(field)
	}
	return tagValues(v.Tags, name)
}

func (v Volume) attachmentValues(field string) ([]string, bool) {
	var of func(Attachment) string
	switch field {
	case "instance-id":
		of = func(a Attachment) string { return a.Instance }
	case "status":
		of = func(a Attachment) string { return a.State }
	case "device":
		of = func(a Attachment) string { return a.Device }
	case "attach-time":
		of = func(a Attachment) string { return Timestamp(a.AttachTime) }
	case "delete-on-termination":
		of = func(a Attachment) string { return strconv.FormatBool(a.DeleteOnTermination) }
	default:
		return nil, false
	}
	values := []string{}
	for _, a := range v.Attachments {
		values = append(values, of(a))
	}
	return values, true
}

// values lists what an instance has for a filter's name.
func (i Instance) values(name string) ([]string, bool) {
	switch name {
	case "instance-id":
		return []string{i.ID}, true
	case "instance-state-name":
		return []string{i.State}, true
	case "instance-type":
		return []string{i.Type}, true
	case "availability-zone":
		return []string{i.Zone}, true
	}
	return tagValues(i.Tags, name)
}

func tagValues(tags map[string]string, name string) ([]string, bool) {
	if key, ok := strings.CutPrefix(name, "tag:"); ok {
		if value, ok := tags[key]; ok {
			return []string{value}, true
		}
		return nil, true
	}
	if name == "tag-key" {
		return sortedKeys(tags), true
	}
	return nil, false
}

// checkFilters refuses unknown names, whatever there is to be filtered.
func checkFilters(filters []Filter, values func(string) ([]string, bool)) error {
	for _, f := range filters {
		if _, known := values(f.Name); !known {
			return unknownFilter(f.Name)
		}
		if len(f.Values) > 200 {
			return tooManyFilterValues()
		}
	}
	return nil
}

func passes(filters []Filter, values func(string) ([]string, bool)) bool {
	for _, f := range filters {
		has, _ := values(f.Name)
		if !anyMatches(f.Values, has) {
			return false
		}
	}
	return true
}

func anyMatches(patterns, values []string) bool {
	for _, p := range patterns {
		for _, v := range values {
			if Match(p, v) {
				return true
			}
		}
	}
	return false
}

// Match tells whether the value fits the pattern, wildcards and all.
func Match(pattern, value string) bool {
	p, v := 0, 0
	star, from := -1, 0 // the last *, and where its text would next begin to end
	for v < len(value) {
		literal, width := p < len(pattern), 1
		if literal && pattern[p] == '\\' && p+1 < len(pattern) {
			width = 2
		}
		switch {
		case literal && width == 1 && pattern[p] == '*':
			star, from = p, v
			p++
		case literal && (width == 1 && pattern[p] == '?' || pattern[p+width-1] == value[v]):
			p += width
			v++
		case star >= 0:
			from++
			p, v = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// Timestamp writes a time as EC2 does.
func Timestamp(t time.Time) string {
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}
