package integration_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Ctrl-C comes to the whole process group of the terminal, at any moment, and
// more than once when somebody is impatient.
func TestInterruptedDemoLeavesNothing(t *testing.T) {
	needStage(t)
	volpool, demo := build(t, "cmd/volpool"), build(t, "integration/demo")
	interrupt := func(d *running) { d.signal(t, syscall.SIGINT) }
	for _, c := range []struct {
		name, after string
		end         func(*running)
		deaf        bool
	}{
		{"at the start", "volpool on real parts", interrupt, false},
		{"as the pool is made", "$ volpool pool init", interrupt, false},
		{"in the race", "$ volpool acquire", interrupt, false},
		{"in the middle of the race", "$ volpool acquire", func(d *running) {
			time.Sleep(700 * time.Millisecond) // the attach is under way then
			interrupt(d)
		}, false},
		{"impatiently, at the release", "$ volpool release", func(d *running) {
			interrupt(d)
			time.Sleep(50 * time.Millisecond) // it is clearing up then
			interrupt(d)
		}, false},
		{"when nobody listens any more", "2. ", func(d *running) { d.story.Close() }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := start(t, demo, volpool)
			d.await(t, c.after)
			c.end(d)
			err := d.finish(t)
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 130 {
				t.Errorf("it ended with %v: %s", err, &d.complaint)
			}
			if told := strings.Contains(d.heard.String(), "Nothing is left behind"); told == c.deaf {
				t.Errorf("it said\n%s\n%s", &d.heard, &d.complaint)
			}
			d.leftNothing(t)
		})
	}
}

// running is a demo with a folder of its own for all that is temporary.
type running struct {
	cmd       *exec.Cmd
	temp      string
	story     *os.File
	reader    *bufio.Reader
	heard     bytes.Buffer
	complaint bytes.Buffer
}

func start(t *testing.T, demo, volpool string) *running {
	t.Helper()
	d := &running{cmd: exec.Command(demo, volpool), temp: t.TempDir()}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	d.story, d.reader = read, bufio.NewReader(read)
	d.cmd.Stdout, d.cmd.Stderr = write, &d.complaint
	d.cmd.Env = append(os.Environ(), "TMPDIR="+d.temp)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		read.Close()
		_ = d.cmd.Process.Kill() // it has ended, unless the test failed
	})
	return d
}

// await reads the story up to the line that begins so.
func (d *running) await(t *testing.T, begin string) {
	t.Helper()
	for {
		line, err := d.reader.ReadString('\n')
		d.heard.WriteString(line)
		if strings.HasPrefix(strings.TrimSpace(line), begin) {
			return
		}
		if err != nil {
			_ = d.cmd.Wait() // its complaint tells more
			t.Fatalf("%v before %q:\n%s\n%s", err, begin, &d.heard, &d.complaint)
		}
	}
}

func (d *running) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(-d.cmd.Process.Pid, s); err != nil {
		t.Error(err)
	}
}

func (d *running) finish(t *testing.T) error {
	t.Helper()
	late := time.AfterFunc(time.Minute, func() { _ = d.cmd.Process.Kill() })
	defer late.Stop()
	_, _ = io.Copy(&d.heard, d.reader) // it may be closed already
	return d.cmd.Wait()
}

func (d *running) leftNothing(t *testing.T) {
	t.Helper()
	if files, err := os.ReadDir(d.temp); err != nil || len(files) > 0 {
		t.Errorf("files are left: %v, %v", files, err)
	}
	for _, pattern := range []string{"/sys/block/loop*/loop/backing_file", "/proc/[0-9]*/environ", "/proc/[0-9]*/mountinfo"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if content, err := os.ReadFile(path); err == nil && bytes.Contains(content, []byte(d.temp)) {
				t.Errorf("%s is left", path)
			}
		}
	}
}
