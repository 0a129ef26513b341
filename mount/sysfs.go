//go:build linux

package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Target says which disk is meant.
type Target struct {
	VolumeID string // vol-0123…, with or without the dash

	// AttachName is the name that AttachVolume was given, xvdaa or /dev/xvdaa.
	// On Xen it is all there is: its disks have no serial. On NVMe it says
	// nothing about the device and is not looked at.
	AttachName string
}

var volumeSerial = regexp.MustCompile(`^vol-?([0-9a-f]{8,17})$`)

// volumeID brings a serial, or an id, to the form that EC2 shows.
func volumeID(serial string) (string, bool) {
	m := volumeSerial.FindStringSubmatch(serial)
	if m == nil {
		return "", false
	}
	return "vol-" + m[1], true
}

// disk is a whole disk as sysfs shows it.
type disk struct {
	name          string // nvme1n1
	number        uint64 // of the device, as in st_rdev
	bytes         int64
	serial, model string // empty where the disk has none
}

func (d disk) volume() string {
	id, _ := volumeID(d.serial)
	return id
}

// disk reads one disk. Disks come and go while we read: an error means only
// that it is not to be had now.
func (h *Host) disk(name string) (disk, error) {
	at := filepath.Join(h.sysfs, "block", name)
	// The paths behind a multipath NVMe disk (nvme0c0n1) have no device number.
	number, err := readNumber(filepath.Join(at, "dev"))
	if err != nil {
		return disk{}, err
	}
	size, err := os.ReadFile(filepath.Join(at, "size"))
	if err != nil {
		return disk{}, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(size)), 10, 64)
	if err != nil {
		return disk{}, fmt.Errorf("parse size of %s: %w", name, err)
	}
	d := disk{name: name, number: number, bytes: sectors << 9} // sectors of 512 bytes, whatever the disk's own
	for file, field := range map[string]*string{"device/serial": &d.serial, "device/model": &d.model} {
		text, err := os.ReadFile(filepath.Join(at, file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return disk{}, err
		}
		*field = strings.Trim(string(text), " \n\x00") // the controller pads it
	}
	return d, nil
}

func readNumber(path string) (uint64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return parseNumber(strings.TrimSpace(string(text)))
}

// parseNumber reads a device number as the kernel writes it, 259:1.
func parseNumber(text string) (uint64, error) {
	major, minor, _ := strings.Cut(text, ":")
	ma, err1 := strconv.ParseUint(major, 10, 32)
	mi, err2 := strconv.ParseUint(minor, 10, 32)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("%q is no device number", text)
	}
	return unix.Mkdev(uint32(ma), uint32(mi)), nil
}

func (h *Host) disks() ([]disk, error) {
	entries, err := os.ReadDir(filepath.Join(h.sysfs, "block"))
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	var disks []disk
	for _, e := range entries {
		if d, err := h.disk(e.Name()); err == nil {
			disks = append(disks, d)
		}
	}
	return disks, nil
}

// lookUp finds the target's disk. Two disks with one serial are an error: there
// is no telling which is meant.
func (h *Host) lookUp(t Target) (disk, error) {
	want, ok := volumeID(t.VolumeID)
	if !ok {
		return disk{}, fmt.Errorf("find device: %q is no volume id", t.VolumeID)
	}
	disks, err := h.disks()
	if err != nil {
		return disk{}, err
	}
	var found []disk
	for _, d := range disks {
		if d.volume() == want {
			found = append(found, d)
		}
	}
	if len(found) > 1 {
		return disk{}, fmt.Errorf("%s and %s both show the serial of %s", found[0].name, found[1].name, want)
	}
	if len(found) == 1 {
		return found[0], nil
	}
	name := strings.TrimPrefix(t.AttachName, "/dev/")
	if strings.HasPrefix(name, "xvd") && filepath.Base(name) == name {
		if d, err := h.disk(name); err == nil && d.serial == "" {
			return d, nil
		}
	}
	return disk{}, fmt.Errorf("%s: %w", want, ErrNoDevice)
}

// partitions lists the numbers of the disk and of its partitions.
func (h *Host) partitions(d disk) []uint64 {
	numbers := []uint64{d.number}
	files, _ := filepath.Glob(filepath.Join(h.sysfs, "block", d.name, "*", "partition"))
	for _, f := range files {
		if n, err := readNumber(filepath.Join(filepath.Dir(f), "dev")); err == nil {
			numbers = append(numbers, n)
		}
	}
	return numbers
}
