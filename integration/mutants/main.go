// Command mutants breaks the source in one place at a time, and runs what is to
// notice: the conformance suite of the stores, the simulation, and where those do
// not the tests of packages lease and pool. It exits with 1 where nobody notices.
//
// The source stays as it is: the compiler is given the broken file in its place.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/volpool/volpool/integration/figure"
)

// mutant is one change to one file.
type mutant struct {
	name, file string
	old, new   string // old occurs once
}

// checks are what may notice a mutant, the cheap ones first.
var checks = []struct {
	name string
	args []string
}{
	{"conformance", []string{"./lease/leasetest"}},
	{"simulation", []string{"./integration/sim", "-run", "Simulation", "-sim.n", "1500"}},
	{"tests of the packages", []string{"./lease", "./pool"}}, // two mount points on one instance: the simulation has one
}

func main() {
	only := flag.String("only", "", "run the mutants whose names match this `PATTERN`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *only); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string) error {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "volpool-mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// What fails without a mutant would catch every one.
	for _, c := range checks {
		if out, err := test(ctx, c.args, ""); err != nil {
			return fmt.Errorf("the source as it is fails %s:\n%s", c.name, out)
		}
	}
	caught, missed := 0, 0
	for _, m := range mutants {
		if !wanted.MatchString(m.name) {
			continue
		}
		by, took, err := hunt(ctx, m, dir)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if by == "" {
			missed++
			by = "MISSED"
		} else {
			caught++
		}
		fmt.Printf("%-50s %s  (%v)\n", m.name, by, took.Round(time.Second))
	}
	if only == "" {
		figure.AtLeast("sim.mutants.caught", float64(caught), "mutants", 25)
	}
	if !figure.AtMost("sim.mutants.missed", float64(missed), "mutants", 0) {
		return errors.New("a mutant was missed")
	}
	return nil
}

// hunt tells which check noticed a mutant; "" for none.
func hunt(ctx context.Context, m mutant, dir string) (by string, took time.Duration, err error) {
	began := time.Now()
	source, err := os.ReadFile(m.file)
	if err != nil {
		return "", 0, err
	}
	if n := bytes.Count(source, []byte(m.old)); n != 1 {
		return "", 0, fmt.Errorf("%s has %d times %q, want it once", m.file, n, m.old)
	}
	broken := filepath.Join(dir, filepath.Base(m.file))
	if err := os.WriteFile(broken, bytes.Replace(source, []byte(m.old), []byte(m.new), 1), 0o644); err != nil {
		return "", 0, err
	}
	full, err := filepath.Abs(m.file)
	if err != nil {
		return "", 0, err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {full: broken}})
	if err != nil {
		return "", 0, err
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o644); err != nil {
		return "", 0, err
	}
	if out, err := command(ctx, "build", "-overlay", list, "./..."); err != nil {
		return "", 0, fmt.Errorf("it does not compile:\n%s", out)
	}
	for _, c := range checks {
		out, err := test(ctx, c.args, list)
		switch {
		case ctx.Err() != nil:
			return "", 0, context.Cause(ctx)
		case err != nil && strings.Contains(out, "[build failed]"):
			return "", 0, fmt.Errorf("its tests do not compile:\n%s", out)
		case err != nil:
			return c.name + ": " + why(out), time.Since(began), nil
		}
	}
	return "", time.Since(began), nil
}

var complaint = regexp.MustCompile(`^(panic:|[a-z_]+\.go:\d+: )`)

// why is the first complaint in a test's output.
func why(out string) string {
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); complaint.MatchString(line) {
			if len(line) > 160 {
				line = line[:160] + "…"
			}
			return line
		}
	}
	return "it fails"
}

func test(ctx context.Context, args []string, overlay string) (string, error) {
	all := []string{"test", "-count=1", "-timeout", "90s"}
	if overlay != "" {
		all = append(all, "-overlay", overlay)
	}
	return command(ctx, append(all, args...)...)
}

func command(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	// The test binary is a child of go: both are to end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out, err := cmd.CombinedOutput()
	return string(out), err
}
