//go:build linux

package mount

import (
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Volume is an EBS volume that the kernel shows.
type Volume struct {
	VolumeID string
	Path     string
	Model    string // told, not trusted: a virtual machine's NVMe has another
	Mounted  bool   // or in use in any other way, or it could not be proven unused
}

// Volumes lists the EBS volumes in sysfs, the one that the machine runs from
// among them: it is in use like any other. Disks without a serial (Xen) are left
// out, for nothing tells which volumes they are.
func (h *Host) Volumes() ([]Volume, error) {
	disks, err := h.disks()
	if err != nil {
		return nil, err
	}
	mounts, err := h.mounts()
	if err != nil {
		return nil, err
	}
	var volumes []Volume
	for _, d := range disks {
		if id := d.volume(); id != "" {
			v := Volume{VolumeID: id, Path: filepath.Join(h.dev, d.name), Model: d.model}
			v.Mounted = h.mountedAnywhere(d, mounts) || !provenUnused(v.Path, d.number)
			volumes = append(volumes, v)
		}
	}
	return volumes, nil
}

func (h *Host) mountedAnywhere(d disk, mounts []mountEntry) bool {
	numbers := h.partitions(d)
	return slices.ContainsFunc(mounts, func(m mountEntry) bool { return slices.Contains(numbers, m.number) })
}

// provenUnused asks the kernel, which knows of partitions, holders and other
// mount namespaces too. The lock comes first: while we had the disk open
// exclusively, another agent's mkfs or mount would fail.
func provenUnused(path string, number uint64) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return false
	}
	exclusive, err := openExclusive(path, number)
	if err != nil {
		return false
	}
	return exclusive.Close() == nil
}
