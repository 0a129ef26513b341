//go:build linux

package mount

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Holder is somebody who keeps a filesystem from being taken away.
type Holder struct {
	PID     int    // 0 where it is the kernel
	Command string // the name of the program
	How     string // "works in …", "has … open", …
}

func (h Holder) String() string {
	if h.PID == 0 {
		return h.How
	}
	return fmt.Sprintf("pid %d (%s): %s", h.PID, h.Command, h.How)
}

// search looks for those who hold one filesystem.
type search struct {
	host   *Host
	point  string
	number uint64 // of the device

	// Other mount namespaces matter only once our own mount is gone. Before that
	// their copies of it are in nobody's way, and most of them go with it.
	elsewhere bool
}

// holders lists processes and what the kernel itself keeps: other mounts, swap
// files, loop devices. Processes come and go while we look, so an error means
// only that there is nothing to be seen.
func (h *Host) holders(point string, m Mounted) []Holder {
	_, mounted, err := h.mountedAt(point)
	s := search{host: h, point: point, number: m.number(), elsewhere: err == nil && !mounted}
	ours := s.mounts("self")
	found := slices.Concat(ours, s.swaps(), s.loops())
	seen := map[string]bool{s.namespace("self"): true}
	for _, pid := range s.processes() {
		how := s.process(pid)
		if ns := s.namespace(pid); s.elsewhere && !seen[ns] {
			seen[ns] = true
			for _, theirs := range s.mounts(pid) {
				if !slices.Contains(ours, theirs) { // else it is a copy of ours, and goes with it
					how = append(how, theirs.How+" in another mount namespace")
				}
			}
		}
		if len(how) == 0 {
			continue
		}
		number, _ := strconv.Atoi(pid)
		if len(how) > 3 {
			how = append(how[:3], fmt.Sprintf("and %d more", len(how)-3))
		}
		found = append(found, Holder{PID: number, Command: s.read(pid, "comm"), How: strings.Join(how, ", ")})
	}
	return found
}

func (s search) processes() []string {
	entries, _ := os.ReadDir(s.host.proc)
	var pids []string
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, e.Name())
		}
	}
	return pids
}

func (s search) path(elem ...string) string {
	return filepath.Join(append([]string{s.host.proc}, elem...)...)
}

func (s search) read(elem ...string) string {
	b, _ := os.ReadFile(s.path(elem...))
	return strings.TrimSpace(string(b))
}

// namespace is empty for a process that is gone.
func (s search) namespace(pid string) string {
	ns, _ := os.Readlink(s.path(pid, "ns", "mnt"))
	return ns
}

// process tells how a process holds the filesystem.
func (s search) process(pid string) []string {
	var how []string
	for link, verb := range map[string]string{"cwd": "works in", "root": "has its root in", "exe": "runs"} {
		if target, ok := s.within(s.path(pid, link)); ok {
			how = append(how, verb+" "+target)
		}
	}
	slices.Sort(how)
	files, _ := os.ReadDir(s.path(pid, "fd"))
	for _, f := range files {
		if target, ok := s.within(s.path(pid, "fd", f.Name())); ok {
			how = append(how, "has "+target+" open")
		}
	}
	if len(how) > 0 {
		return how // what it has mapped would only repeat it
	}
	maps, _ := os.ReadDir(s.path(pid, "map_files"))
	for _, m := range maps {
		if target, ok := s.within(s.path(pid, "map_files", m.Name())); ok {
			return []string{"has " + target + " mapped"}
		}
	}
	return nil
}

// within follows one of the links in /proc and tells whether it leads to the
// filesystem. It doesn't wait for a network filesystem that is gone.
func (s search) within(link string) (string, bool) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, 0, &st)
	if err != nil || unix.Mkdev(st.Dev_major, st.Dev_minor) != s.number {
		return "", false
	}
	target, err := os.Readlink(link)
	return target, err == nil
}

// mounts tells what else in the process's mount namespace keeps the filesystem:
// a mount of the same, one on top of it, an overlay with its layers there.
func (s search) mounts(pid string) []Holder {
	entries, _ := s.host.mountsOf(pid)
	var found []Holder
	for _, e := range entries {
		switch {
		case e.number == s.number && (e.point != s.point || pid != "self"):
			found = append(found, Holder{How: "the same filesystem is mounted at " + e.point})
		case strings.HasPrefix(e.point, s.point+"/"):
			found = append(found, Holder{How: "something is mounted at " + e.point})
		case e.fsType == "overlay" && (strings.Contains(e.options, "="+s.point+"/") || strings.Contains(e.options, ":"+s.point+"/")):
			found = append(found, Holder{How: "an overlay has layers there, mounted at " + e.point})
		}
	}
	return found
}

// swaps lists swap files on the filesystem.
func (s search) swaps() []Holder {
	var found []Holder
	for line := range strings.Lines(s.read("swaps")) {
		file := strings.Fields(line)[0]
		if _, ok := s.withinFile(unescape(file)); ok {
			found = append(found, Holder{How: "swap file " + unescape(file)})
		}
	}
	return found
}

// loops lists loop devices whose file is on the filesystem.
func (s search) loops() []Holder {
	backing, _ := filepath.Glob(filepath.Join(s.host.sysfs, "block", "*", "loop", "backing_file"))
	var found []Holder
	for _, b := range backing {
		file, _ := os.ReadFile(b)
		path := string(bytes.TrimSpace(file))
		if _, ok := s.withinFile(path); ok {
			name := filepath.Base(filepath.Dir(filepath.Dir(b)))
			found = append(found, Holder{How: "loop device " + name + " on " + path})
		}
	}
	return found
}

func (s search) withinFile(path string) (string, bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || uint64(st.Dev) != s.number {
		return "", false
	}
	return path, true
}
