package leasetest

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"

	"github.com/volpool/volpool/lease"
)

func must(t *testing.T, s lease.Store, w lease.Write) lease.Reply {
	t.Helper()
	reply, err := s.Write(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

func read(t *testing.T, s lease.Store, key lease.Key) lease.Reply {
	t.Helper()
	reply, err := s.Read(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

func refused(t *testing.T, s lease.Store, w lease.Write) *lease.ConditionError {
	t.Helper()
	_, err := s.Write(t.Context(), w)
	failed, ok := errors.AsType[*lease.ConditionError](err)
	if !ok {
		t.Fatalf("write: %v, not refused", err)
	}
	return failed
}

func same(t *testing.T, what string, got, want lease.Item) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n got %s\nwant %s", what, show(got), show(want))
	}
}

func show(item lease.Item) string {
	var parts []string
	for attr, v := range maps.All(item) {
		parts = append(parts, fmt.Sprintf("%s=%v", attr, reflect.ValueOf(v).Elem().Field(0)))
	}
	return strings.Join(parts, " ")
}
