package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/volpool/volpool/lease"
)

// TestDocument: the tables in docs/scale.md are the ones that the program prints.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/scale.md")
	if err != nil {
		t.Fatal(err)
	}
	var table bytes.Buffer
	printFleets(&table)
	if !strings.Contains(string(text), table.String()) {
		t.Errorf("docs/scale.md has not this table:\n%s", &table)
	}
}

func TestFleets(t *testing.T) {
	for _, l := range leases {
		if l < lease.MinLease || l > lease.MaxLease {
			t.Errorf("a pool cannot have a lease of %v", l)
		}
	}
	if f := fleetOf(5000); f.lease != time.Minute || f.writes != 500 || f.attached != 990*time.Second {
		t.Errorf("5,000 instances: %+v", f)
	}
	if f := fleetOf(100_000); f.writes > partitionFull*partition {
		t.Errorf("100,000 instances do not fit: %+v", f)
	}
	for in, want := range map[time.Duration]string{time.Minute: "1m", time.Hour: "1h", 125 * time.Second: "2m5s", 0: "0s"} {
		if got := brief(in); got != want {
			t.Errorf("%v is told as %s", in, got)
		}
	}
}
