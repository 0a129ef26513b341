package dynamolocal

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Version is the release of DynamoDB Local that pom.xml pins.
const Version = "3.1.0"

//go:embed pom.xml
var pom []byte

// provide makes sure of Java and of the server's jars, one process at a time.
func provide(ctx context.Context, log *zap.Logger) (java, jars string, err error) {
	cache, err := cacheDir()
	if err != nil {
		return "", "", err
	}
	unlock, err := lock(ctx, filepath.Join(cache, "lock"))
	if err != nil {
		return "", "", err
	}
	defer unlock()
	if java, err = provideJava(ctx, log); err != nil {
		return "", "", err
	}
	jars, err = provideJars(ctx, log, cache)
	return java, jars, err
}

func cacheDir() (string, error) {
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

// lock waits its turn. flock knows no deadline, so it is asked again and again.
func lock(ctx context.Context, path string) (unlock func(), err error) {
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

// provideJars returns the folder of the server's jars; the caller holds the
// lock. A folder that has its final name is complete.
func provideJars(ctx context.Context, log *zap.Logger, cache string) (string, error) {
	dir := filepath.Join(cache, fmt.Sprintf("dynamodb-local-%s-%.4x", Version, sha256.Sum256(pom)))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	mvn, err := provideMaven(ctx, log)
	if err != nil {
		return "", err
	}
	log.Info("fetching DynamoDB Local from Maven Central, 48 MB, once", zap.String("version", Version), zap.String("into", dir))
	const unfinished = "unfinished-"
	leftovers, err := filepath.Glob(filepath.Join(cache, unfinished+"*"))
	if err != nil {
		return "", fmt.Errorf("list cache folder: %w", err)
	}
	for _, path := range leftovers { // of those that were killed while they fetched
		if err := os.RemoveAll(path); err != nil {
			return "", fmt.Errorf("clear cache folder: %w", err)
		}
	}
	work, err := os.MkdirTemp(cache, unfinished)
	if err != nil {
		return "", fmt.Errorf("make folder: %w", err)
	}
	defer os.RemoveAll(work)
	project, jars := filepath.Join(work, "pom.xml"), filepath.Join(work, "jars")
	if err := os.WriteFile(project, pom, 0o644); err != nil {
		return "", fmt.Errorf("write pom: %w", err)
	}
	out, err := command(ctx, mvn, "-B", "-q", "-ntp", "-f", project,
		"org.apache.maven.plugins:maven-dependency-plugin:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+jars).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("get software.amazon.dynamodb:DynamoDBLocal:%s from Maven Central: %w: %s", Version, failure(ctx, err), firstError(out))
	}
	if err := os.Rename(jars, dir); err != nil {
		return "", fmt.Errorf("keep what was fetched: %w", err)
	}
	return dir, nil
}

var colours = regexp.MustCompile("\x1b\\[[0-9;]*m")

// firstError is the line of Maven's output that says what went wrong.
func firstError(out []byte) string {
	lines := strings.Split(strings.TrimSpace(colours.ReplaceAllString(string(out), "")), "\n")
	for _, line := range lines {
		if text, ok := strings.CutPrefix(line, "[ERROR] "); ok {
			return text
		}
	}
	return lines[len(lines)-1]
}
