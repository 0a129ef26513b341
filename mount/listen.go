//go:build linux

package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	rescanInterval = 250 * time.Millisecond // while a device is awaited: an event may be missed
	gonePause      = time.Second            // while it is mounted: for days, then
	lockPatience   = time.Second            // beyond what udev needs
)

// Listener notices devices that come and go. Several goroutines may wait on one.
type Listener struct {
	host   *Host
	socket *os.File // nil where there are no events
	done   sync.WaitGroup

	mu    sync.Mutex
	event chan struct{} // closed at the next block event
}

// Listen begins to listen. It is called before AttachVolume, so that no event is
// missed. Where the kernel's events are not to be had, as in some containers,
// the Listener looks again every 250 ms, and says so in the log.
func (h *Host) Listen() (*Listener, error) {
	l := &Listener{host: h, event: make(chan struct{})}
	if h.noEvents {
		return l, nil
	}
	socket, err := openUevents()
	if err != nil && h.noRescan {
		return nil, err
	}
	if err != nil {
		h.log.Warn("no kernel events; sysfs is read every 250 ms instead", zap.Error(err))
		return l, nil
	}
	l.socket = socket
	l.done.Go(l.receive)
	return l, nil
}

// Close ends the listening. A Wait that goes on has only its ticker left.
func (l *Listener) Close() error {
	if l.socket == nil {
		return nil
	}
	err := l.socket.Close()
	l.done.Wait()
	return err
}

func (l *Listener) receive() {
	buf := make([]byte, 16<<10) // the kernel's messages are shorter than 4 KiB
	for {
		n, err := l.socket.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS): // messages were dropped: look again
		case err != nil:
			if !errors.Is(err, os.ErrClosed) {
				l.host.log.Warn("kernel events ended", zap.Error(err))
			}
			return
		default:
			e, ok := parseUevent(buf[:n])
			if !ok || e.subsystem != "block" {
				continue
			}
			l.host.log.Debug("block event", zap.String("action", e.action), zap.String("name", e.name))
		}
		l.mu.Lock()
		close(l.event)
		l.event = make(chan struct{})
		l.mu.Unlock()
	}
}

func (l *Listener) next() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.event
}

// Wait returns the target's device the moment it is there, opened and locked.
// Until ctx ends every failure is taken for a device that is still coming up:
// its node, its serial and its size do not appear in one instant. The error then
// is ctx's cause, with the last failure. Only ErrLocked is answered after a
// second: the device is there, and how long an orphan's mkfs or e2fsck may go on
// is for the caller to say, who calls again.
func (l *Listener) Wait(ctx context.Context, t Target) (*Device, error) {
	if _, ok := volumeID(t.VolumeID); !ok {
		return nil, fmt.Errorf("wait for device: %q is no volume id", t.VolumeID)
	}
	var d *Device
	err := l.until(ctx, rescanInterval, func() (err error) {
		locking, cancel := context.WithTimeout(ctx, lockPatience)
		defer cancel()
		d, err = l.host.Find(locking, t)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("wait for the device of %s: %w", t.VolumeID, err)
	}
	return d, nil
}

// Gone returns ErrGone when the device is taken away, even from under a mount;
// else ctx's cause. d may be closed meanwhile.
func (l *Listener) Gone(ctx context.Context, d *Device) error {
	var gone error
	err := l.until(ctx, gonePause, func() error {
		if gone = d.present(); gone == nil {
			return errors.New("still there")
		}
		return nil
	})
	if err != nil {
		return context.Cause(ctx)
	}
	return gone
}

// until tries now, after every block event and at every tick, till it succeeds.
func (l *Listener) until(ctx context.Context, interval time.Duration, try func() error) error {
	var tick <-chan time.Time
	if !l.host.noRescan {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		tick = ticker.C
	}
	for {
		event := l.next() // before the try: what comes during it wakes us at once
		err := try()
		if err == nil || errors.Is(err, ErrLocked) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-event:
		case <-tick:
		}
	}
}
