package ec2sim

import (
	"cmp"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/volpool/volpool/integration/ec2sim/cloud"
)

// query reads a request's form. The first thing that is wrong with it is kept
// in err, and what nobody read is an unknown parameter.
type query struct {
	form url.Values
	read map[string]bool
	err  error
}

func newQuery(form url.Values) *query {
	return &query{form: form, read: map[string]bool{"Action": true, "Version": true, "DryRun": true}}
}

func (q *query) fail(err error) {
	if q.err == nil {
		q.err = err
	}
}

func (q *query) str(name string) string {
	q.read[name] = true
	return q.form.Get(name)
}

// need is str for what may not be missing
// (https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html,
// MissingParameter).
func (q *query) need(name string) string {
	s := q.str(name)
	if s == "" {
		q.fail(cloud.Refuse("MissingParameter", "The request must contain the parameter %s", name))
	}
	return s
}

// optionalInt is nil where the parameter is not there.
func (q *query) optionalInt(name string) *int {
	s := q.str(name)
	if s == "" {
		return nil
	}
	parsed, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		q.invalid(name, s)
	}
	n := int(parsed)
	return &n
}

func (q *query) integer(name string) int {
	if n := q.optionalInt(name); n != nil {
		return *n
	}
	return 0
}

func (q *query) boolean(name string) bool {
	switch s := q.str(name); s {
	case "", "false":
		return false
	case "true":
		return true
	default:
		q.invalid(name, s)
		return false
	}
}

func (q *query) invalid(name, value string) {
	q.fail(cloud.Refuse("InvalidParameterValue", "Value (%s) for parameter %s is invalid.", value, name))
}

// list reads Name.1, Name.2 and so on.
func (q *query) list(name string) []string {
	var values []string
	for _, item := range q.items(name) {
		values = append(values, q.str(item))
	}
	return values
}

// items lists what stands before the fields of each member of a list, Name.1,
// Name.2, by number; numbers may be missing.
func (q *query) items(name string) []string {
	var numbers []int
	for key := range q.form {
		rest, ok := strings.CutPrefix(key, name+".")
		if !ok {
			continue
		}
		digits, _, _ := strings.Cut(rest, ".")
		n, err := strconv.ParseUint(digits, 10, 31)
		if err == nil && strconv.FormatUint(n, 10) == digits {
			numbers = append(numbers, int(n))
		}
	}
	slices.SortFunc(numbers, cmp.Compare[int])
	var items []string
	for _, n := range slices.Compact(numbers) {
		items = append(items, name+"."+strconv.Itoa(n))
	}
	return items
}

func (q *query) filters() []cloud.Filter {
	var filters []cloud.Filter
	for _, item := range q.items("Filter") {
		filters = append(filters, cloud.Filter{Name: q.need(item + ".Name"), Values: q.list(item + ".Value")})
	}
	return filters
}

// tags reads Tag.1.Key, Tag.1.Value; a tag without a value has an empty one.
func (q *query) tags(prefix string) map[string]string {
	tags := map[string]string{}
	for _, item := range q.items(prefix) {
		tags[q.need(item+".Key")] = q.str(item + ".Value")
	}
	return tags
}

// tagsToDelete tells an empty value, which must match, from none.
func (q *query) tagsToDelete() map[string]*string {
	tags := map[string]*string{}
	for _, item := range q.items("Tag") {
		key := q.need(item + ".Key")
		value := q.str(item + ".Value")
		tags[key] = nil
		if q.form.Has(item + ".Value") {
			tags[key] = &value
		}
	}
	return tags
}

// tagSpecification reads the tags that a new resource of this type gets.
func (q *query) tagSpecification(resource string) map[string]string {
	all := map[string]string{}
	for _, item := range q.items("TagSpecification") {
		kind := q.need(item + ".ResourceType")
		tags := q.tags(item + ".Tag")
		if kind == resource {
			all = tags
		}
	}
	return all
}

func (q *query) describe(ids string) cloud.Query {
	return cloud.Query{
		IDs: q.list(ids), Filters: q.filters(), MaxResults: q.optionalInt("MaxResults"), NextToken: q.str("NextToken"),
	}
}

// ignore accepts parameters that change nothing here, members and all.
func (q *query) ignore(names ...string) {
	for key := range q.form {
		name, _, _ := strings.Cut(key, ".")
		if slices.Contains(names, name) {
			q.read[key] = true
		}
	}
}

// check tells what is wrong with the request, unknown parameters last
// (https://github.com/rusoto/rusoto/issues/355 shows how EC2 says it).
func (q *query) check() error {
	if q.err != nil {
		return q.err
	}
	for _, key := range slices.Sorted(maps.Keys(q.form)) {
		if !q.read[key] {
			return cloud.Refuse("UnknownParameter", "The parameter %s is not recognized", key)
		}
	}
	return nil
}

// An operation is a request that was understood, ready to be executed, once or
// more; asOf is the moment a Describe answers of.
type operation func(asOf time.Time) (any, error)
