package vm_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/volpool/volpool/integration/dynamolocal"
	"github.com/volpool/volpool/integration/ec2sim"
	"github.com/volpool/volpool/integration/vm"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
)

const (
	table = "volpool"
	zone  = "us-east-1a"
)

// EC2 needs 1 to 4 s to attach; this one hurries a little.
var timing = ec2sim.Timing{
	Attach: ec2sim.Span{Base: 1200 * time.Millisecond, Jitter: 300 * time.Millisecond},
	Device: ec2sim.Span{Base: 800 * time.Millisecond, Jitter: 300 * time.Millisecond},
	Detach: ec2sim.Span{Base: 500 * time.Millisecond, Jitter: 200 * time.Millisecond},
}

// stage is what all tests share.
type stage struct {
	ec2     *ec2sim.Sim
	backend *vm.Backend
	dynamo  *dynamolocal.Server
	volpool string // the binary
	idle    []*machine
	pools   int
}

func openStage(t *testing.T) *stage {
	began := time.Now()
	bin := t.TempDir()
	s := &stage{volpool: filepath.Join(bin, "volpool"), dynamo: dynamolocal.Shared(t)}
	build(t, s.volpool, "cmd/volpool")
	build(t, filepath.Join(bin, "init"), "integration/vm/guest/init")
	log := zaptest.NewLogger(t, zaptest.Level(zap.InfoLevel))
	var err error
	s.backend, err = vm.New(interrupted, vm.Config{
		Binaries: map[string]string{"volpool": s.volpool, "init": filepath.Join(bin, "init")}, Accel: *accel, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.ec2, err = ec2sim.Start(ec2sim.Config{Zones: []string{zone}, Timing: timing, Backend: s.backend, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.ec2.Close(); err != nil {
			t.Error(err)
		}
		nothingLeft(t, filepath.Dir(s.backend.Image("")))
	})
	t.Logf("ready to boot after %.1f s", time.Since(began).Seconds())
	return s
}

// build makes a static binary of this module.
func build(t *testing.T, to, command string) {
	t.Helper()
	cmd := exec.CommandContext(interrupted, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", to, "./"+command)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", command, err, out)
	}
}

// boot returns so many machines that hold nothing, and boots what is missing.
func (s *stage) boot(t *testing.T, n int) []*machine {
	t.Helper()
	began := time.Now()
	missing := make([]*machine, max(0, n-len(s.idle)))
	forAll(t, missing, func(k int, _ *machine) error {
		i, err := s.ec2.Run(ec2sim.RunInput{Zone: zone})
		if err != nil {
			return fmt.Errorf("boot: %w", err)
		}
		missing[k] = &machine{Machine: s.backend.Machine(i.ID), stage: s, imds: i.IMDS}
		return nil
	})
	if len(missing) > 0 {
		t.Logf("%d machines booted in %.1f s", len(missing), time.Since(began).Seconds())
	}
	all := append(s.idle, missing...)
	s.idle = all[n:]
	return all[:n]
}

// nothingLeft looks for the folder, and for processes that were told of it.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %s, %v", dir, err)
	}
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Error(err)
	}
	for _, path := range paths { // what goes away while we look is not left
		if words, err := os.ReadFile(path); err == nil && bytes.Contains(words, []byte(dir)) {
			t.Errorf("left behind: %s %q", path, words)
		}
	}
}
