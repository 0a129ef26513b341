package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/volpool/volpool/integration/ec2sim/loopdev"
)

const asProcess = "EC2SIMD_TEST_AS_PROCESS"

// TestMain is the process itself, where the variable says so.
func TestMain(m *testing.M) {
	if os.Getenv(asProcess) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func command(t *testing.T, args ...string) (*exec.Cmd, *bytes.Buffer) {
	c := exec.CommandContext(t.Context(), os.Args[0], args...)
	c.Env = append(os.Environ(), asProcess+"=1")
	var stderr bytes.Buffer
	c.Stderr = &stderr
	return c, &stderr
}

func TestRunsUntilASignal(t *testing.T) {
	devices := "loop"
	if err := loopdev.Supported(); err != nil {
		t.Logf("NOT TESTED with loop devices: %v", err)
		devices = "none"
	}
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		dir := t.TempDir()
		c, stderr := command(t, "-zones", "x,y", "-attach", "1s,500ms", "-devices", devices, "-dir", dir)
		stdout, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(stdout).ReadBytes('\n')
		var ready struct {
			Endpoint, Region string
			PID              int
		}
		if err != nil || json.Unmarshal(line, &ready) != nil || ready.Region != "us-east-1" || ready.PID != c.Process.Pid {
			t.Fatalf("ready line %q, %v, %s", line, err, stderr)
		}
		response, err := http.Get(ready.Endpoint + "/_sim/instances")
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if err := c.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(); err != nil {
			t.Errorf("after %v: %v, %s", s, err, stderr)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("after %v there is left %v, %v", s, left, err)
		}
	}
}

func TestRefusesWrongUse(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"-attach", "soon"}, 2, "invalid value"},
		{[]string{"-no-such-flag"}, 2, "not defined"},
		{[]string{"argument"}, 1, `unexpected argument "argument"`},
		{[]string{"-devices", "floppy"}, 1, "no devices are named"},
		{[]string{"-addr", "256.0.0.1:0"}, 1, "listen on 256.0.0.1:0"},
		{[]string{"-log-level", "loud"}, 1, "parse log level"},
		{[]string{"-help"}, 0, "-attach"},
	} {
		p, stderr := command(t, c.args...)
		_ = p.Run() // its status is looked at
		if got := p.ProcessState.ExitCode(); got != c.status || !strings.Contains(stderr.String(), c.says) {
			t.Errorf("%v: status %d, %s; want %d, %s", c.args, got, stderr, c.status, c.says)
		}
	}
}
