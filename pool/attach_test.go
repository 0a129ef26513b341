package pool

import (
	"regexp"
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/volpool/volpool/lease"
)

func TestDeviceNames(t *testing.T) {
	valid := regexp.MustCompile(`^/dev/xvd[ab][a-z]$`)
	first := map[string]bool{}
	for _, volume := range []string{"vol-0a", "vol-0b", "vol-0c", "vol-0d", "vol-0e", "vol-0f"} {
		names := deviceNames(volume)
		sorted := slices.Sorted(slices.Values(names))
		if len(slices.Compact(sorted)) != 52 {
			t.Errorf("%s: %d different names, want 52", volume, len(slices.Compact(sorted)))
		}
		for _, name := range names {
			if !valid.MatchString(name) {
				t.Errorf("%s: %s is not xvdaa to xvdbz", volume, name)
			}
		}
		if !slices.Equal(names, deviceNames(volume)) {
			t.Errorf("%s: another order the second time", volume)
		}
		first[names[0]] = true
	}
	if len(first) < 4 {
		t.Errorf("six volumes begin at %d names only: they would collide", len(first))
	}
}

func TestVolumeState(t *testing.T) {
	at := func(instance string, s types.VolumeAttachmentState) VolumeInfo {
		return VolumeInfo{State: types.VolumeStateInUse, Attachment: &Attachment{Instance: instance, State: s}}
	}
	const me, owner = "i-me", "i-owner"
	for _, tc := range []struct {
		name  string
		v     VolumeInfo
		known bool
		want  lease.VolumeState
	}{
		{"not known", VolumeInfo{}, false, lease.VolumeGone},
		{"available", VolumeInfo{State: types.VolumeStateAvailable}, true, lease.VolumeAvailable},
		{"being deleted", VolumeInfo{State: types.VolumeStateDeleting}, true, lease.VolumeNeither},
		{"in error", VolumeInfo{State: types.VolumeStateError}, true, lease.VolumeNeither},
		{"in use, but attached to nobody", VolumeInfo{State: types.VolumeStateInUse}, true, lease.VolumeNeither},
		{"mine", at(me, types.VolumeAttachmentStateAttached), true, lease.VolumeMine},
		{"coming to me", at(me, types.VolumeAttachmentStateAttaching), true, lease.VolumeMine},
		{"leaving me", at(me, types.VolumeAttachmentStateDetaching), true, lease.VolumeElsewhere},
		{"the owner's", at(owner, types.VolumeAttachmentStateAttached), true, lease.VolumeOwners},
		{"coming to the owner", at(owner, types.VolumeAttachmentStateAttaching), true, lease.VolumeOwners},
		{"leaving the owner", at(owner, types.VolumeAttachmentStateDetaching), true, lease.VolumeLeavingOwner},
		{"busy at the owner", at(owner, types.VolumeAttachmentStateBusy), true, lease.VolumeLeavingOwner},
		{"a third's", at("i-third", types.VolumeAttachmentStateAttached), true, lease.VolumeElsewhere},
	} {
		if got := volumeState(tc.v, tc.known, owner, me); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}
