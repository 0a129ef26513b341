package lease_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/volpool/volpool/lease"
)

// heldItem is an item with every attribute.
func heldItem() lease.Item {
	return lease.Item{
		"pool_zone": str("ci/us-east-1a"), "item": str(id(0)), "schema": num(1), "state": str("held"), "draining": flag(true),
		"generation": num(41), "rev": num(3), "order": num(1700000000000), "owner": str("i-me"), "attempt": str("a"), "beat": num(7),
		"lease_ms": num(60000), "phase": str("mounted"), "mount_point": str("/mnt/cache"), "boot_id": str("b"),
		"claimed_at": str("2026-01-01T00:00:00.000Z"), "renewed_at": str("2026-01-01T00:01:00.500Z"), "size_gib": num(100),
		"format": str("done"), "fs_type": str("ext4"), "fs_uuid": str("u"), "clean": flag(false), "used_percent": num(61),
		"inodes_percent": num(5), "uses": num(12), "last_owner": str("i-you"), "released_at": str("2026-01-01T00:00:00Z"),
		"failures": num(1), "quarantined_until": str("2026-01-01T00:00:00Z"), "last_error": str("e"),
	}
}

func TestDecode(t *testing.T) {
	got, err := lease.Decode(heldItem())
	midnight := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	want := lease.Record{
		Pool: "ci", Zone: "us-east-1a", Volume: id(0), State: lease.Held, Draining: true, Generation: 41, Rev: 3, Order: 1700000000000,
		Owner: "i-me", Attempt: "a", Beat: 7, Lease: time.Minute, Phase: lease.Mounted, MountPoint: "/mnt/cache", BootID: "b",
		ClaimedAt: midnight, RenewedAt: midnight.Add(60500 * time.Millisecond), SizeGiB: 100, Format: lease.FormatDone, FSType: "ext4",
		FSUUID: "u", UsedPercent: 61, InodesPercent: 5, Uses: 12, LastOwner: "i-you", ReleasedAt: midnight, Failures: 1,
		QuarantinedUntil: midnight, LastError: "e",
	}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
}

// What a hand can do to an item: each is an error that names the attribute.
func TestDecodeEdited(t *testing.T) {
	for name, c := range map[string]struct {
		attr string
		edit types.AttributeValue // nil: removed
	}{
		"no schema": {"schema", nil}, "newer schema": {"schema", num(2)}, "older schema": {"schema", num(0)}, "schema of text": {"schema", str("1")},
		"no state": {"state", nil}, "unknown state": {"state", str("lent")}, "state in capitals": {"state", str("Held")}, "state number": {"state", num(1)},
		"no generation": {"generation", nil}, "generation of text": {"generation", str("41")}, "negative generation": {"generation", num(-1)},
		"generation with a fraction": {"generation", &types.AttributeValueMemberN{Value: "41.5"}},
		"huge generation":            {"generation", &types.AttributeValueMemberN{Value: "1e30"}},
		"null generation":            {"generation", &types.AttributeValueMemberNULL{Value: true}},
		"no partition":               {"pool_zone", nil}, "partition without zone": {"pool_zone", str("ci")}, "no volume": {"item", nil},
		"no format": {"format", nil}, "unknown format": {"format", str("yes")}, "format as boolean": {"format", flag(true)},
		"draining as text": {"draining", str("true")}, "clean as number": {"clean", num(1)},
		"owner as list": {"owner", &types.AttributeValueMemberL{}}, "time of day": {"renewed_at", str("10:15")}, "time as number": {"claimed_at", num(1)},
		"lease of centuries": {"lease_ms", num(6_000_000_000_000)}, "negative lease": {"lease_ms", num(-60000)},
		"in the index, though held": {"free_slot", str("1")},
	} {
		t.Run(name, func(t *testing.T) {
			item := heldItem()
			if item[c.attr] = c.edit; c.edit == nil {
				delete(item, c.attr)
			}
			r, err := lease.Decode(item)
			odd, ok := errors.AsType[*lease.ItemError](err)
			if !ok || odd.Attr != c.attr || r != (lease.Record{}) || !strings.Contains(err.Error(), c.attr) {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
	for _, attr := range []string{"owner", "attempt", "lease_ms", "renewed_at"} {
		item := heldItem()
		delete(item, attr)
		if r, err := lease.Decode(item); err == nil {
			t.Errorf("held without %s: %+v", attr, r)
		}
		item["state"] = str("free")
		if _, err := lease.Decode(item); err != nil {
			t.Errorf("free without %s: %v", attr, err)
		}
	}
	if _, err := lease.Decode(nil); err == nil {
		t.Error("no item was decoded")
	}
}

// FuzzDecode: whatever stands in an item, the answer is a record that makes
// sense, or an error that names an attribute.
func FuzzDecode(f *testing.F) {
	names := slices.Sorted(maps.Keys(heldItem()))
	for i := range names {
		f.Add(byte(i), byte(0), "", byte(i), byte(1), "-1")
		f.Add(byte(i), byte(1), "99999999999999999999", byte(3), byte(2), "x")
	}
	f.Add(byte(200), byte(3), "zones", byte(4), byte(5), "")
	f.Fuzz(func(t *testing.T, one, kind byte, value string, two, kind2 byte, value2 string) {
		item := heldItem()
		for _, e := range []struct {
			at, kind byte
			value    string
		}{{one, kind, value}, {two, kind2, value2}} {
			attr := names[int(e.at)%len(names)]
			switch e.kind % 6 {
			case 0:
				delete(item, attr)
			case 1:
				item[attr] = &types.AttributeValueMemberN{Value: e.value}
			case 2:
				item[attr] = str(e.value)
			case 3:
				item[attr] = flag(e.value != "")
			case 4:
				item[attr] = &types.AttributeValueMemberNULL{Value: true}
			case 5:
				item[attr] = &types.AttributeValueMemberM{Value: lease.Item{e.value: str(e.value)}}
			}
		}
		r, err := lease.Decode(item)
		if err != nil {
			if odd, ok := errors.AsType[*lease.ItemError](err); !ok || odd.Attr == "" || r != (lease.Record{}) {
				t.Errorf("%+v, %v", r, err)
			}
			return
		}
		if r.Generation < 0 || r.Beat < 0 || r.Rev < 0 || r.Failures < 0 || r.State == "" || r.Format == "" ||
			lease.Partition(r.Pool, r.Zone) != item["pool_zone"].(*types.AttributeValueMemberS).Value {
			t.Errorf("%+v", r)
		}
		if r.State == lease.Held && (r.Owner == "" || r.Attempt == "" || r.Lease <= 0 || r.Lease > lease.MaxLease || r.SilentAt(r.RenewedAt) || !r.SilentAt(r.RenewedAt.Add(3*time.Hour))) {
			t.Errorf("held, and %+v", r)
		}
	})
}
