package dynamolocal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// The oldest Java that DynamoDB Local 3 runs on.
const oldestJava = 17

// provideJava finds a Java that is new enough, or installs one.
func provideJava(ctx context.Context, log *zap.Logger) (string, error) {
	path, err := findJava(ctx)
	if err == nil {
		return path, nil
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if install(ctx, log, err, "openjdk-17-jre-headless", "openjdk-21-jre-headless", "default-jre-headless") {
		if path, err = findJava(ctx); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("DynamoDB Local needs Java %d or newer; install it, on Debian and Ubuntu by `apt-get install default-jre-headless` (%w)", oldestJava, err)
}

func provideMaven(ctx context.Context, log *zap.Logger) (string, error) {
	path, err := exec.LookPath("mvn")
	if err == nil {
		return path, nil
	}
	if install(ctx, log, err, "maven") {
		if path, err = exec.LookPath("mvn"); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("fetching DynamoDB Local needs Maven; install it, on Debian and Ubuntu by `apt-get install maven` (%w)", err)
}

var javaVersion = regexp.MustCompile(`version "(\d+)`)

func findJava(ctx context.Context) (string, error) {
	path, err := exec.LookPath("java")
	if home := os.Getenv("JAVA_HOME"); home != "" {
		path, err = exec.LookPath(filepath.Join(home, "bin", "java"))
	}
	if err != nil {
		return "", err
	}
	out, err := command(ctx, path, "-version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s -version: %w: %s", path, failure(ctx, err), firstError(out))
	}
	found := javaVersion.FindSubmatch(out)
	if found == nil {
		return "", fmt.Errorf("%s -version tells no version: %s", path, firstError(out))
	}
	if major, err := strconv.Atoi(string(found[1])); err != nil || major < oldestJava {
		return "", fmt.Errorf("%s is Java %s", path, found[1])
	}
	return path, nil
}

// install installs the first of the packages that can be had; false where none
// can, or where that isn't ours to do.
func install(ctx context.Context, log *zap.Logger, missing error, packages ...string) bool {
	apt, err := exec.LookPath("apt-get")
	if err != nil || os.Geteuid() != 0 {
		return false
	}
	run := func(args ...string) error {
		cmd := command(ctx, apt, append([]string{"-qq", "-o", "DPkg::Lock::Timeout=120"}, args...)...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		out, err := cmd.CombinedOutput()
		if err != nil {
			log.Warn("apt-get", zap.Strings("arguments", args), zap.Error(failure(ctx, err)), zap.String("output", firstError(out)))
		}
		return err
	}
	log.Info("installing", zap.Strings("one_of", packages), zap.NamedError("because", missing))
	_ = run("update") // lists that are old may still do
	for _, name := range packages {
		if run("install", "-y", "--no-install-recommends", name) == nil {
			return true
		}
	}
	return false
}

// command is one that goes, its children with it, when ctx ends.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// failure is why a command failed: that it was cancelled comes first.
func failure(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return err
}
