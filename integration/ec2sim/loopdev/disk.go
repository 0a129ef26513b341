package loopdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// disk is a block device as sysfs shows it.
type disk struct {
	name    string // nvme1n1
	numbers string // 7:3
	sectors int64  // of 512 bytes
	serial  string
}

// show lays the tree out beside its place and renames it there, so that nobody
// sees a part of it.
func (d disk) show(root string) error {
	building := filepath.Join(root, "building-"+d.name)
	if err := os.MkdirAll(filepath.Join(building, "device"), 0o755); err != nil {
		return fmt.Errorf("make sysfs folder: %w", err)
	}
	// The kernel prints both fields of the controller at their full width.
	for name, content := range map[string]string{
		"dev":           d.numbers + "\n",
		"size":          fmt.Sprintf("%d\n", d.sectors),
		"device/serial": fmt.Sprintf("%-20s\n", d.serial),
		"device/model":  fmt.Sprintf("%-40s\n", "Amazon Elastic Block Store"),
	} {
		if err := os.WriteFile(filepath.Join(building, name), []byte(content), 0o444); err != nil {
			return fmt.Errorf("write sysfs file: %w", err)
		}
	}
	if err := os.Rename(building, d.place(root)); err != nil {
		return fmt.Errorf("show in sysfs: %w", err)
	}
	for link, target := range d.links(root) {
		if err := os.Symlink(target, link); err != nil {
			return fmt.Errorf("link in sysfs: %w", err)
		}
	}
	return nil
}

// resize changes the size that is shown.
func (d disk) resize(root string) error {
	building := filepath.Join(root, "building-size-"+d.name)
	if err := os.WriteFile(building, fmt.Appendf(nil, "%d\n", d.sectors), 0o444); err != nil {
		return fmt.Errorf("write sysfs file: %w", err)
	}
	if err := os.Rename(building, filepath.Join(d.place(root), "size")); err != nil {
		return fmt.Errorf("show in sysfs: %w", err)
	}
	return nil
}

func (d disk) hide(root string) error {
	leaving := filepath.Join(root, "leaving-"+d.name)
	if err := os.Rename(d.place(root), leaving); err != nil {
		return fmt.Errorf("hide in sysfs: %w", err)
	}
	errs := []error{os.RemoveAll(leaving)}
	for link := range d.links(root) {
		errs = append(errs, os.Remove(link))
	}
	return errors.Join(errs...)
}

func (d disk) place(root string) string { return filepath.Join(root, "block", d.name) }

func (d disk) links(root string) map[string]string {
	return map[string]string{
		filepath.Join(root, "class/block", d.name):  "../../block/" + d.name,
		filepath.Join(root, "dev/block", d.numbers): "../../block/" + d.name,
	}
}
