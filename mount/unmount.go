//go:build linux

package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// UnmountOptions of one Unmount.
type UnmountOptions struct {
	Kill bool // end the processes that hold it: TERM at once, KILL five seconds later
}

const killAfter = 5 * time.Second

// Unmount writes everything out, takes away what is mounted at the point, and,
// where that is a volume, waits for the proof that nobody holds the disk any
// more: another mount namespace, a second mount or an overlay may. While somebody
// does it tries again until ctx ends, and then returns a *BusyError that names
// them. Never is anything detached lazily, for that reports success while writers
// go on. It answers ErrNotMounted.
func (h *Host) Unmount(ctx context.Context, point string, opt UnmountOptions) error {
	real, err := realPath(point)
	if err != nil {
		return err
	}
	m, mounted, err := h.mountedAt(real)
	if err != nil {
		return err
	}
	if !mounted {
		return fmt.Errorf("%s: %w", point, ErrNotMounted)
	}
	if err := syncAll(ctx, real); err != nil {
		h.log.Warn("not everything was written out", zap.String("point", real), zap.Error(err))
	}
	s := &siege{host: h, mounted: m, point: real, kill: opt.Kill}
	if err := s.until(ctx, func() error { return unmountNow(real) }, unix.EBUSY); err != nil {
		return err
	}
	if m.VolumeID == "" {
		return nil
	}
	return s.until(ctx, func() error { return h.provenFree(m) }, ErrInUse)
}

// provenFree is the kernel's word that nobody holds the volume. A disk that went
// away is held by nobody.
func (h *Host) provenFree(m Mounted) error {
	d, err := h.lookUp(Target{VolumeID: m.VolumeID})
	if errors.Is(err, ErrNoDevice) {
		return nil
	}
	if err != nil {
		return err
	}
	f, err := openExclusive(filepath.Join(h.dev, d.name), d.number)
	if err != nil {
		return err
	}
	return f.Close()
}

// syncAll first, so that the unmount itself is short. A sync cannot be broken
// off: one that is not done when ctx ends is left to itself.
func syncAll(ctx context.Context, point string) error {
	f, err := os.Open(point)
	if err != nil {
		return fmt.Errorf("open mount point: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- errors.Join(unix.Syncfs(int(f.Fd())), f.Close()) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// siege is the wait for those who hold a mount to leave.
type siege struct {
	host    *Host
	mounted Mounted
	point   string
	kill    bool
	warned  map[int]time.Time // when each was sent TERM
}

// until tries until it gets another answer than busy, or ctx ends.
func (s *siege) until(ctx context.Context, try func() error, busy error) error {
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := try()
		if err == nil {
			return nil
		}
		if !errors.Is(err, busy) {
			return err
		}
		if s.kill {
			s.killHolders()
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return &BusyError{Point: s.point, Holders: s.host.holders(s.point, s.mounted), Err: fmt.Errorf("%w: %w", context.Cause(ctx), err)}
		}
	}
}

func (s *siege) killHolders() {
	if s.warned == nil {
		s.warned = map[int]time.Time{}
	}
	for _, holder := range s.host.holders(s.point, s.mounted) {
		if holder.PID <= 1 || holder.PID == os.Getpid() {
			continue
		}
		signal := unix.SIGTERM
		if first, warned := s.warned[holder.PID]; !warned {
			s.warned[holder.PID] = time.Now()
		} else if signal = unix.SIGKILL; time.Since(first) < killAfter {
			continue
		}
		err := unix.Kill(holder.PID, signal)
		s.host.log.Warn("ending what holds the mount", zap.Stringer("holder", holder), zap.Stringer("signal", signal), zap.Error(err))
	}
}
