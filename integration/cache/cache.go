// Package cache is the folder of what the tests and the demo fetch once:
// VOLPOOL_CACHE, else volpool in the user's cache folder.
package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const unfinished = "unfinished-"

// Dir makes sure of the folder.
func Dir() (string, error) {
	dir := os.Getenv("VOLPOOL_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find a cache folder (VOLPOOL_CACHE may name one): %w", err)
		}
		dir = filepath.Join(user, "volpool")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make cache folder: %w", err)
	}
	return filepath.Abs(dir)
}

// Lock waits its turn. flock knows no deadline, so it is asked again and again.
func Lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for %s: %w", path, context.Cause(ctx)), f.Close())
		}
	}
}

// Unfinished makes a folder to fetch into, and clears those of who was killed
// while it fetched. The caller holds the lock.
func Unfinished(dir string) (string, error) {
	leftovers, err := filepath.Glob(filepath.Join(dir, unfinished+"*"))
	if err != nil {
		return "", fmt.Errorf("list cache folder: %w", err)
	}
	for _, path := range leftovers {
		if err := os.RemoveAll(path); err != nil {
			return "", fmt.Errorf("clear cache folder: %w", err)
		}
	}
	work, err := os.MkdirTemp(dir, unfinished)
	if err != nil {
		return "", fmt.Errorf("make folder: %w", err)
	}
	return work, nil
}
