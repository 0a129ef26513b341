//go:build linux

package mount

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// uevent is a message of the kernel's about a device. It only wakes us: what is
// there, sysfs says.
type uevent struct{ action, subsystem, name string }

// parseUevent reads a message as the kernel sends it: a headline
// "add@/devices/…", then KEY=value fields, each ended by a zero byte.
func parseUevent(message []byte) (uevent, bool) {
	headline, fields, ok := bytes.Cut(message, []byte{0})
	if !ok || !bytes.Contains(headline, []byte("@/")) {
		return uevent{}, false // udev's own messages begin with "libudev"
	}
	var e uevent
	for field := range bytes.SplitSeq(fields, []byte{0}) {
		key, value, _ := bytes.Cut(field, []byte("="))
		switch string(key) {
		case "ACTION":
			e.action = string(value)
		case "SUBSYSTEM":
			e.subsystem = string(value)
		case "DEVNAME":
			e.name = string(value)
		}
	}
	return e, e.action != "" && e.subsystem != ""
}

// openUevents returns the netlink socket of the kernel's events, group 1. It is
// non-blocking, so that closing it ends a read.
func openUevents() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("open uevent socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind uevent socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "uevents"), nil
}
