//go:build linux

package mount

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"

	"go.uber.org/zap"
)

// Config of a Host. The zero value is the machine itself.
type Config struct {
	SysfsRoot string // /sys
	DevRoot   string // /dev
	ProcRoot  string // /proc

	// A new device is noticed by the kernel's event, and by looking again and
	// again. Each of the two is enough alone; these show it.
	NoEvents, NoRescan bool

	Log *zap.Logger // nil is no-op
}

// A Host is the machine's disks and mount points. It keeps nothing open.
type Host struct {
	sysfs, dev, proc   string
	noEvents, noRescan bool
	log                *zap.Logger
}

// New checks that the roots are directories.
func New(cfg Config) (*Host, error) {
	h := &Host{
		sysfs:    cmp.Or(cfg.SysfsRoot, "/sys"),
		dev:      cmp.Or(cfg.DevRoot, "/dev"),
		proc:     cmp.Or(cfg.ProcRoot, "/proc"),
		noEvents: cfg.NoEvents,
		noRescan: cfg.NoRescan,
		log:      cfg.Log,
	}
	if h.log == nil {
		h.log = zap.NewNop()
	}
	for _, root := range []*string{&h.sysfs, &h.dev, &h.proc} {
		abs, err := filepath.Abs(*root) // mountinfo shows absolute paths
		if err != nil {
			return nil, fmt.Errorf("find root: %w", err)
		}
		*root = abs
		if info, err := os.Stat(abs); err != nil {
			return nil, fmt.Errorf("open root: %w", err)
		} else if !info.IsDir() {
			return nil, fmt.Errorf("open root %s: %w", abs, ErrNotDirectory)
		}
	}
	return h, nil
}
