//go:build linux

package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20

	edge  = 16 * mib // read at both ends, in samples of 1 MiB
	piece = 64 * kib // read at each place between
	// How many places are read that no filesystem gives a reason for. They are
	// for data without any signature, such as an image that begins with a hole.
	spread = 64
)

// sample is a range of the disk that is zero where the disk is blank. blkid
// alone is no proof: it says "nothing found" too where it could not read, or
// where only the first superblock was wiped.
type sample struct {
	why            string
	offset, length int64
}

func (s sample) String() string {
	return fmt.Sprintf("%d KiB at %d (%s)", s.length/kib, s.offset, s.why)
}

// samplesOf lists the samples of a disk, all within its size.
func samplesOf(size int64) []sample {
	var samples []sample
	add := func(why string, offset int64) {
		if offset+piece <= size {
			samples = append(samples, sample{why, offset, piece})
		}
	}
	stretch := func(why string, from, to int64) {
		for at := from; at < to; at += mib {
			samples = append(samples, sample{why, at, min(mib, to-at)})
		}
	}
	stretch("the start", 0, min(edge, size))
	add("btrfs's second superblock", 64*mib)
	for _, group := range []int64{1, 3, 5, 7, 9, 25, 27, 49} {
		add("ext4's spare superblock", group*128*mib)
	}
	for quarter := int64(1); quarter <= 3; quarter++ {
		add("XFS's allocation groups", aligned(size/4*quarter))
	}
	for k := int64(0); k < spread; k++ {
		add("spread", aligned(size/(2*spread)*(2*k+1)))
	}
	stretch("the end", max(0, size-edge), size)
	return samples
}

// aligned rounds down to what any disk lets us read directly.
func aligned(offset int64) int64 { return offset &^ (4*kib - 1) }

// look reads the sample from the disk itself, not from the page cache.
func (s sample) look(_ *Device, exclusive *os.File, buf []byte) (Probe, error) {
	buf = buf[:s.length]
	if n, err := exclusive.ReadAt(buf, s.offset); n < len(buf) {
		if err == nil || errors.Is(err, io.EOF) {
			err = unix.EIO // the disk is shorter than it says
		}
		return Probe{}, fmt.Errorf("read %v: %w", s, err)
	}
	if buf[0] != 0 || !bytes.Equal(buf[1:], buf[:len(buf)-1]) { // as fast as memory, unlike a look at each byte
		first := bytes.IndexFunc(buf, func(r rune) bool { return r != 0 })
		return Probe{Content: HasData, Reason: fmt.Sprintf("data at %d, looked at for %s", s.offset+int64(first), s.why)}, nil
	}
	return Probe{Content: Blank}, nil
}

// erase makes every sample zero, and with them all that blkid looks at.
func (d *Device) erase() error {
	f, err := os.OpenFile(d.path, os.O_WRONLY|unix.O_EXCL, 0)
	if err != nil {
		return fmt.Errorf("open device to erase: %w", err)
	}
	defer f.Close()
	if err := sameDevice(f, d.disk.number); err != nil {
		return err
	}
	for _, s := range samplesOf(d.disk.bytes) {
		span := [2]uint64{uint64(s.offset), uint64(s.length)}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&span)))
		if errno != 0 {
			return &VolumeError{Op: "erase", Device: d.path, Err: errno}
		}
	}
	return f.Close()
}
