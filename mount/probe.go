//go:build linux

package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Content is what a device was found to hold.
type Content int

// What a probe may end in. The zero value is the safe one.
const (
	Unknown Content = iota
	Blank
	HasData
)

func (c Content) String() string {
	return [...]string{"unknown", "blank", "has data"}[c]
}

// Probe is what a device holds.
type Probe struct {
	Content        Content
	FSType, FSUUID string // of a filesystem, and of nothing else
	Clean          bool   // the filesystem needs no check before it is mounted
	Reason         string // what the answer rests on
}

// check is one look at the device. It answers Blank where it sees nothing that
// speaks against it.
type check struct {
	name string
	look func(d *Device, exclusive *os.File, buf []byte) (Probe, error)
}

// Probe finds out what the device holds. Blank means that every check was made
// and none saw anything; it is what Format asks for. The Content is Unknown
// with every error, and without one where the volume cannot be read: such an
// answer speaks against the volume, an error against this machine.
func (d *Device) Probe(ctx context.Context) (Probe, error) {
	return d.probe(ctx, checksFor(d.disk.bytes))
}

// checksFor lists the checks for a disk of the size, the one that mostly decides
// first.
func checksFor(size int64) []check {
	checks := []check{{name: "signatures", look: (*Device).signatures}}
	for _, s := range samplesOf(size) {
		checks = append(checks, check{name: s.String(), look: s.look})
	}
	return checks
}

func (d *Device) probe(ctx context.Context, checks []check) (Probe, error) {
	d.blank = false
	if err := d.Verify(); err != nil {
		return Probe{}, err
	}
	exclusive, err := openExclusive(d.path, d.disk.number)
	if err != nil {
		return Probe{}, err
	}
	// mkfs and mount fail while it is open, so it is closed before anybody may
	// rest on our answer.
	found, err := d.lookWith(ctx, checks, exclusive)
	if err := errors.Join(err, exclusive.Close()); err != nil {
		return Probe{}, err
	}
	if err := d.Verify(); err != nil { // it may have gone, and another have come, meanwhile
		return Probe{}, err
	}
	d.blank = found.Content == Blank
	return found, nil
}

// lookWith asks blkid alone where the disk begins with data, for then it mostly
// decides, and a volume in use is mounted without reading more of it. All other
// checks are made side by side, as a disk behind a network likes it best.
func (d *Device) lookWith(ctx context.Context, checks []check, exclusive *os.File) (Probe, error) {
	bufs, err := readBuffers()
	if err != nil {
		return Probe{}, err
	}
	defer unix.Munmap(bufs)
	alone := 0
	if start, err := samplesOf(d.disk.bytes)[0].look(d, exclusive, bufs); err != nil || start.Content != Blank {
		alone = 1
	}
	for _, part := range [][]check{checks[:alone], checks[alone:]} {
		found, err := d.askAll(ctx, part, exclusive, bufs)
		if err != nil || found.Content != Blank {
			return found, err
		}
	}
	return Probe{Content: Blank, Reason: fmt.Sprintf("no signature, and zero in all of %d samples", len(checks)-1)}, nil
}

// askAll makes the checks side by side; of what they answer, the first counts
// that is not Blank.
func (d *Device) askAll(ctx context.Context, checks []check, exclusive *os.File, bufs []byte) (Probe, error) {
	answers, errs := make([]Probe, len(checks)), make([]error, len(checks))
	var next atomic.Int64
	var readers sync.WaitGroup
	for buf := range slices.Chunk(bufs, int(mib)) {
		readers.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(checks)); i = next.Add(1) - 1 {
				answers[i], errs[i] = d.ask(ctx, checks[i], exclusive, buf)
			}
		})
	}
	readers.Wait()
	for i, found := range answers {
		if errs[i] != nil || found.Content != Blank {
			return found, errs[i]
		}
	}
	return Probe{Content: Blank}, nil
}

// readBuffers are aligned as O_DIRECT asks, 1 MiB for each of a few readers.
func readBuffers() ([]byte, error) {
	const readers = 4
	bufs, err := unix.Mmap(-1, 0, readers*int(mib), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("get memory: %w", err)
	}
	return bufs, nil
}

func (d *Device) ask(ctx context.Context, c check, exclusive *os.File, buf []byte) (Probe, error) {
	if ctx.Err() != nil {
		return Probe{}, fmt.Errorf("probe %s: %w", d.path, context.Cause(ctx))
	}
	found, err := c.look(d, exclusive, buf)
	if unreadable(err) {
		return Probe{Reason: err.Error()}, nil
	}
	if err != nil {
		return Probe{}, fmt.Errorf("probe %s: %w", d.path, err)
	}
	return found, nil
}

// unreadable tells a fault of the medium from the machine's own.
func unreadable(err error) bool {
	for _, medium := range []error{unix.EIO, unix.ENODATA, unix.EREMOTEIO, unix.EILSEQ, unix.ENXIO} {
		if errors.Is(err, medium) {
			return true
		}
	}
	return false
}
