package pool

import (
	"testing"

	"github.com/volpool/volpool/lease"
)

// What may be formatted is decided in one place, for every record and every
// finding there is.
func TestDecideContent(t *testing.T) {
	blank, unknown := Probe{Content: Blank}, Probe{Content: Unknown}
	ours := Probe{Content: HasData, FSType: "ext4", FSUUID: "u1"}
	another := Probe{Content: HasData, FSType: "ext4", FSUUID: "u2"}
	otherType := Probe{Content: HasData, FSType: "xfs", FSUUID: "u1"}
	foreign := Probe{Content: HasData, FSType: "btrfs", FSUUID: "u1"}
	raw := Probe{Content: HasData}
	for _, tc := range []struct {
		format                                                 lease.Format
		uuid                                                   string
		blank, unknown, ours, another, otherType, foreign, raw contentVerdict
	}{
		{lease.FormatNever, "", formatIt, refuseIt, useAsIs, useAsIs, useAsIs, refuseIt, refuseIt},
		{lease.FormatDone, "u1", refuseIt, refuseIt, useAsIs, refuseIt, refuseIt, refuseIt, refuseIt},
		{lease.FormatDone, "", refuseIt, refuseIt, useAsIs, useAsIs, useAsIs, refuseIt, refuseIt}, // from a snapshot
		{lease.FormatBegun, "u1", formatIt, refuseIt, formatIt, formatIt, formatIt, formatIt, formatIt},
		{lease.FormatWiping, "u1", formatIt, refuseIt, formatIt, formatIt, formatIt, formatIt, formatIt},
		{"of a newer version", "u1", refuseIt, refuseIt, refuseIt, refuseIt, refuseIt, refuseIt, refuseIt},
	} {
		was := lease.Record{Volume: "vol-1", Format: tc.format, FSUUID: tc.uuid, FSType: "ext4"}
		if tc.uuid == "" {
			was.FSType = ""
		}
		for _, found := range []struct {
			name  string
			probe Probe
			want  contentVerdict
		}{
			{"blank", blank, tc.blank}, {"unknown", unknown, tc.unknown}, {"ours", ours, tc.ours}, {"another", another, tc.another},
			{"other type", otherType, tc.otherType}, {"foreign", foreign, tc.foreign}, {"raw", raw, tc.raw},
		} {
			if got := decideContent(was, found.probe); got != found.want {
				t.Errorf("record %s %q, device %s: verdict %d, want %d", tc.format, tc.uuid, found.name, got, found.want)
			}
			if contentError(was, found.probe).Error() == "" {
				t.Errorf("record %s, device %s: a refusal without words", tc.format, found.name)
			}
		}
	}
}
