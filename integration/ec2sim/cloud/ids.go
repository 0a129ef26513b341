package cloud

import (
	"fmt"
	"regexp"
	"strings"
)

// Long ids have 17 hexadecimal digits, the old ones that still exist have 8.
var hexID = regexp.MustCompile(`^(?:[0-9a-f]{8}|[0-9a-f]{17})$`)

func (c *Cloud) newID(prefix string) string {
	return fmt.Sprintf("%s-0%016x", prefix, c.rng.Uint64())
}

// CheckVolumeID refuses what cannot be a volume's id.
func CheckVolumeID(id string) error {
	digits, ok := strings.CutPrefix(id, "vol-")
	switch {
	case !ok:
		return notAVolumeID(id)
	case !hexID.MatchString(digits):
		return malformedVolumeID(id)
	}
	return nil
}

// CheckInstanceID refuses what cannot be an instance's id.
func CheckInstanceID(id string) error {
	digits, ok := strings.CutPrefix(id, "i-")
	if !ok || !hexID.MatchString(digits) {
		return malformedInstanceID(id)
	}
	return nil
}

// Names that EC2 takes for an attached volume: the documented sd[b-z] and
// xvd[b-z], and the two-letter names that the EBS CSI driver uses up to xvddx
// (https://github.com/kubernetes-sigs/aws-ebs-csi-driver, devicemanager).
var deviceName = regexp.MustCompile(`^(?:/dev/)?(?:sd[b-z]|xvd[b-z]|xvd[a-d][a-z])$`)

// The root volume's names; every instance has one.
var rootDevices = map[string]bool{"/dev/sda1": true, "/dev/xvda": true, "xvda": true, "sda1": true}
