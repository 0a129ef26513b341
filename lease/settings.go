package lease

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// Settings is what an operator decides for a whole pool.
type Settings struct {
	Filesystem   string        // what a blank volume is formatted with: ext4 or xfs
	Lease        time.Duration // how long a lease holds without a heartbeat
	Order        string        // OrderLowest or OrderRecent
	MountOptions []string      // as mount(8) takes them
	Paused       bool          // every acquire falls back at once
}

// How released volumes are lined up for the next claim.
const (
	OrderLowest = "lowest" // by creation time: the oldest volumes stay warm
	OrderRecent = "recent" // the one released last is first
)

// DefaultSettings is what a pool has unless told otherwise.
func DefaultSettings() Settings {
	return Settings{Filesystem: "ext4", Lease: time.Minute, Order: OrderLowest, MountOptions: []string{"noatime"}}
}

// The limits of a lease: below, a slow reply costs it; above, a dead holder's
// volume stays away for hours.
const (
	MinLease = 10 * time.Second
	MaxLease = time.Hour
)

// Validate says what is wrong with the settings, by the name of the setting.
func (s Settings) Validate() error {
	if !slices.Contains([]string{"ext4", "xfs"}, s.Filesystem) {
		return fmt.Errorf("filesystem: %q is neither ext4 nor xfs", s.Filesystem)
	}
	if s.Lease < MinLease || s.Lease > MaxLease || s.Lease%time.Second != 0 {
		return fmt.Errorf("lease: %v is not a number of whole seconds from %v to %v", s.Lease, MinLease, MaxLease)
	}
	if s.Order != OrderLowest && s.Order != OrderRecent {
		return fmt.Errorf("order: %q is neither %s nor %s", s.Order, OrderLowest, OrderRecent)
	}
	for _, o := range s.MountOptions {
		if !mountOption.MatchString(o) {
			return fmt.Errorf("mount-options: %q is not a mount option", o)
		}
	}
	return nil
}

var (
	mountOption = regexp.MustCompile(`^[A-Za-z0-9_.:=/-]+$`)
	poolName    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	volumeID    = regexp.MustCompile(`^vol-(?:[0-9a-f]{8}|[0-9a-f]{17})$`)
)

// CheckPoolName refuses what could not be told from a zone's partition or from
// a volume's.
func CheckPoolName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("the pool has no name")
	case strings.HasPrefix(name, volumePrefix):
		return fmt.Errorf("pool %q: the name looks like a volume id", name)
	case !poolName.MatchString(name):
		return fmt.Errorf("pool %q: a name is 1 to 64 letters, digits, dots, dashes and underscores, and begins with a letter or digit", name)
	}
	return nil
}

// CheckVolumeID refuses what is no id of an EBS volume.
func CheckVolumeID(id string) error {
	if !volumeID.MatchString(id) {
		return fmt.Errorf("volume %q: an id is vol- and 8 or 17 hexadecimal digits", id)
	}
	return nil
}

func (s Settings) encode() types.AttributeValue {
	return &types.AttributeValueMemberM{Value: Item{
		"filesystem": str(s.Filesystem), "lease_ms": num(s.Lease.Milliseconds()), "order": str(s.Order),
		"mount_options": str(strings.Join(s.MountOptions, ",")), "paused": flag(s.Paused),
	}}
}

func decodeSettings(key Key, v types.AttributeValue) (Settings, error) {
	m, ok := v.(*types.AttributeValueMemberM)
	if !ok {
		return Settings{}, &ItemError{Key: key, Attr: aSettings, Why: "is missing or not a map"}
	}
	d := decoder{item: m.Value, key: key}
	s := Settings{
		Filesystem: d.str("filesystem", true), Lease: time.Duration(d.num("lease_ms", true)) * time.Millisecond,
		Order: d.str("order", true), Paused: d.flag("paused"),
	}
	if options := d.str("mount_options", false); options != "" {
		s.MountOptions = strings.Split(options, ",")
	}
	if d.err == nil {
		if err := s.Validate(); err != nil {
			d.fail(aSettings, err.Error())
		}
	}
	return s, d.err
}
