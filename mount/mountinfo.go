//go:build linux

package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountEntry is a line of /proc/PID/mountinfo.
type mountEntry struct {
	number  uint64 // of the device
	root    string // the part of the filesystem that is shown
	point   string
	fsType  string
	source  string
	options string // of the filesystem, such as an overlay's upperdir=
}

// parseMountinfo reads
//
//	36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/root rw,errors=continue
//
// with any number of fields before the dash. A line that cannot be read is an
// error: it might be the one that matters.
func parseMountinfo(text string) ([]mountEntry, error) {
	var entries []mountEntry
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		front, back, ok := strings.Cut(line, " - ")
		fields, fs := strings.Split(front, " "), strings.SplitN(back, " ", 3)
		if !ok || len(fields) < 6 || len(fs) < 3 {
			return nil, fmt.Errorf("parse mountinfo: cannot read %q", line)
		}
		number, err := parseNumber(fields[2])
		if err != nil {
			return nil, fmt.Errorf("parse mountinfo: %w", err)
		}
		entries = append(entries, mountEntry{number: number, root: unescape(fields[3]), point: unescape(fields[4]),
			fsType: unescape(fs[0]), source: unescape(fs[1]), options: unescape(fs[2])})
	}
	return entries, nil
}

// unescape undoes what the kernel does to blanks, tabs, newlines and
// backslashes: a backslash and three octal digits.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] >= '0' && s[i+1] <= '3' && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(c byte) bool { return c >= '0' && c <= '7' }

// mounts lists what is mounted in our own mount namespace.
func (h *Host) mounts() ([]mountEntry, error) { return h.mountsOf("self") }

func (h *Host) mountsOf(pid string) ([]mountEntry, error) {
	text, err := os.ReadFile(filepath.Join(h.proc, pid, "mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return parseMountinfo(string(text))
}

// Mounted is what is mounted at a point.
type Mounted struct {
	Source, FSType string
	Root           string // "/", or the directory that a bind mount shows
	Major, Minor   uint32
	VolumeID       string // where the whole of an EBS volume's filesystem is mounted
}

func (m Mounted) number() uint64 { return unix.Mkdev(m.Major, m.Minor) }

// MountedAt tells what is mounted at the point, the topmost where there are
// several. A point that does not exist has nothing mounted.
func (h *Host) MountedAt(point string) (Mounted, bool, error) {
	real, err := realPath(point)
	if errors.Is(err, fs.ErrNotExist) {
		return Mounted{}, false, nil
	}
	if err != nil {
		return Mounted{}, false, err
	}
	return h.mountedAt(real)
}

func (h *Host) mountedAt(real string) (Mounted, bool, error) {
	entries, err := h.mounts()
	if err != nil {
		return Mounted{}, false, err
	}
	for i := len(entries) - 1; i >= 0; i-- {
		if e := entries[i]; e.point == real {
			m := Mounted{Source: e.source, FSType: e.fsType, Root: e.root, Major: unix.Major(e.number), Minor: unix.Minor(e.number)}
			if e.root == "/" {
				m.VolumeID = h.volumeOf(e.number)
			}
			return m, true, nil
		}
	}
	return Mounted{}, false, nil
}

// volumeOf finds the volume that has the device number.
func (h *Host) volumeOf(number uint64) string {
	disks, err := h.disks()
	if err != nil {
		return ""
	}
	for _, d := range disks {
		if d.number == number {
			return d.volume()
		}
	}
	return ""
}

// realPath is the path as mountinfo shows it.
func realPath(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", path, err)
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", fmt.Errorf("find mount point: %w", err)
	}
	return real, nil
}
