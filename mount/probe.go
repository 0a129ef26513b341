//go:build linux

package mount

import (
	"context"
	"errors"
	"fmt"
	"os"

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
	look func(d *Device, exclusive *os.File) (Probe, error)
}

// Probe finds out what the device holds. Blank means that every check was made
// and none saw anything; it is what Format asks for. The Content is Unknown
// with every error, and without one where the volume cannot be read: such an
// answer speaks against the volume, an error against this machine.
func (d *Device) Probe(ctx context.Context) (Probe, error) {
	return d.probe(ctx, checksFor(d.disk.bytes))
}

// checksFor lists the checks for a disk of the size, the cheapest first.
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

func (d *Device) lookWith(ctx context.Context, checks []check, exclusive *os.File) (Probe, error) {
	for _, c := range checks {
		if ctx.Err() != nil {
			return Probe{}, fmt.Errorf("probe %s: %w", d.path, context.Cause(ctx))
		}
		found, err := c.look(d, exclusive)
		switch {
		case unreadable(err):
			return Probe{Reason: err.Error()}, nil
		case err != nil:
			return Probe{}, fmt.Errorf("probe %s: %w", d.path, err)
		case found.Content != Blank:
			return found, nil
		}
	}
	return Probe{Content: Blank, Reason: fmt.Sprintf("no signature, and zero in all of %d samples", len(checks)-1)}, nil
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
