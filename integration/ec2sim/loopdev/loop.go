package loopdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// loop is the number of a loop device. All is done through nodes of our own:
// in a container /dev may lack those beyond loop7.
type loop int

func (l loop) name() string { return "loop" + strconv.Itoa(int(l)) }

func (l loop) sysfs(elem ...string) string {
	return filepath.Join(append([]string{"/sys/block", l.name()}, elem...)...)
}

// numbers is the device's "major:minor"; the minor is not always the loop's
// number.
func (l loop) numbers() string {
	text, err := os.ReadFile(l.sysfs("dev"))
	if err != nil {
		return fmt.Sprintf("7:%d", int(l))
	}
	return strings.TrimSpace(string(text))
}

func (l loop) makeNode(path string) error {
	var major, minor uint32
	if _, err := fmt.Sscanf(l.numbers(), "%d:%d", &major, &minor); err != nil {
		return fmt.Errorf("read numbers of %s: %w", l.name(), err)
	}
	err := unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(major, minor)))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make node %s: %w", path, err)
	}
	return nil
}

func (l loop) node(nodes string) string { return filepath.Join(nodes, l.name()) }

func (l loop) open(nodes string) (*os.File, error) {
	if err := l.makeNode(l.node(nodes)); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(l.node(nodes), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open loop device (is the folder on a nodev mount?): %w", err)
	}
	return f, nil
}

// bind puts a loop device in front of a file. Another process may take the
// device that was free: then the next one.
func bind(image, nodes string) (loop, error) {
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("open volume: %w", err)
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("open loop control: %w", err)
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return 0, fmt.Errorf("find free loop device: %w", err)
		}
		l := loop(n)
		err = l.configure(file, nodes)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return 0, err
		}
	}
}

func (l loop) configure(file *os.File, nodes string) error {
	f, err := l.open(nodes)
	if err != nil {
		return err
	}
	defer f.Close()
	config := unix.LoopConfig{Fd: uint32(file.Fd())}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], file.Name())
	if err := unix.IoctlLoopConfigure(int(f.Fd()), &config); err != nil {
		return fmt.Errorf("configure %s: %w", l.name(), err)
	}
	return nil
}

// grow lets the device take the new size of its file.
func (l loop) grow(nodes string) error {
	f, err := l.open(nodes)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("grow %s: %w", l.name(), err)
	}
	return nil
}

// clear unbinds the device as soon as nobody has it open any more.
func (l loop) clear(f *os.File) error {
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("clear %s: %w", l.name(), err)
	}
	return nil
}

func (l loop) unbind(nodes string) error {
	f, err := l.open(nodes)
	if err != nil {
		return err
	}
	defer f.Close()
	return l.clear(f)
}

// file is the path of the file behind the device, "" if there is none.
func (l loop) file() string {
	text, err := os.ReadFile(l.sysfs("loop/backing_file"))
	if err != nil {
		return ""
	}
	path, _ := strings.CutSuffix(strings.TrimSuffix(string(text), "\n"), " (deleted)")
	return path
}

func (l loop) bound() bool { return l.file() != "" }

func (l loop) unboundWithin(limit time.Duration) bool {
	for end := time.Now().Add(limit); l.bound(); {
		if time.Now().After(end) {
			return false
		}
		time.Sleep(5 * time.Millisecond)
	}
	return true
}

// announce lets the kernel send an event about the device, as it does for one
// that is new; whoever can't have it finds the device by looking.
func (l loop) announce(action string) {
	_ = os.WriteFile(l.sysfs("uevent"), []byte(action), 0)
}

// detachAll unbinds the loop devices of files in this folder.
func detachAll(dir string) error {
	devices, err := filepath.Glob("/sys/block/loop*")
	if err != nil {
		return fmt.Errorf("list loop devices: %w", err)
	}
	var errs []error
	for _, path := range devices {
		n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(path), "loop"))
		if err != nil || !strings.HasPrefix(loop(n).file(), dir+"/") {
			continue
		}
		if err := os.MkdirAll(filepath.Join(dir, "nodes"), 0o755); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
		if err := loop(n).unbind(filepath.Join(dir, "nodes")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
