package story

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/volpool/volpool/integration/ec2sim"
)

// An Instance is a mount and a pid namespace, with a /proc, a /mnt and a /run
// of its own. All that runs in it ends with its init.
type Instance struct {
	*ec2sim.Instance
	PID      int // of its init, as we see it
	Acquired *Acquired
	Wrote    string // what it left in its cache
	Found    string // what it found there

	story   *Story
	machine *machine
	runDir  string
	ended   bool
}

// Acquired is what `volpool acquire -o json` printed.
type Acquired struct {
	Result     string `json:"result"`
	Reason     string `json:"reason"`
	Volume     string `json:"volume"`
	Device     string `json:"device"`
	MountPoint string `json:"mount_point"`
	Filesystem string `json:"filesystem"`
	SizeGiB    int    `json:"size_gib"`
	Generation int    `json:"generation"`
	LostRaces  int    `json:"lost_races"`
	Seconds    struct {
		Total float64 `json:"total"`
	} `json:"seconds"`

	Text []byte `json:"-"` // all of it
}

// initScript makes the namespaces a machine. The shell, as its init, reaps what
// agents leave, until its stdin ends.
const initScript = `set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /mnt
mount -t tmpfs -o mode=755 tmpfs /run
exec 3<&0
echo up
cat <&3 >/dev/null &
wait`

// machine is the namespaces' init, and the pipe that it lives by: it ends when
// we do, however we go.
type machine struct {
	init *exec.Cmd
	life io.Closer
}

func startMachine(ctx context.Context, env []string) (*machine, error) {
	init := exec.Command("/bin/sh", "-c", initScript)
	init.Dir, init.Env = "/", env
	init.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Setpgid:    true, // Ctrl-C is for us
	}
	var complaint strings.Builder
	init.Stderr = &complaint
	life, err := init.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	out, err := init.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	if err := init.Start(); err != nil {
		return nil, fmt.Errorf("make a mount and a pid namespace: %w", err)
	}
	m := &machine{init, life}
	defer context.AfterFunc(ctx, func() { _ = init.Process.Kill() })()
	up := make([]byte, len("up\n"))
	if _, err := io.ReadFull(out, up); err != nil {
		m.end()
		return nil, fmt.Errorf("mount within a namespace: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	return m, nil
}

// end is a power cut: all that runs there is killed, and its mounts go.
func (m *machine) end() {
	_ = m.init.Process.Kill() // it may be gone already
	_ = m.init.Wait()
	_ = m.life.Close()
}

func (s *Story) bootOne(ctx context.Context) (*Instance, error) {
	run, err := s.EC2.Run(ec2sim.RunInput{Zone: Zone})
	if err != nil {
		return nil, fmt.Errorf("run instance: %w", err)
	}
	i := &Instance{Instance: run, story: s, runDir: filepath.Join(s.dir, "run", run.ID)}
	if err := os.MkdirAll(i.runDir, 0o755); err != nil {
		return nil, fmt.Errorf("make run folder: %w", err)
	}
	if i.machine, err = startMachine(ctx, i.env()); err != nil {
		return nil, err
	}
	i.PID = i.machine.init.Process.Pid
	return i, nil
}

// env is all that an instance is told. Who it is, where, and with whose
// credentials, it learns from IMDS.
func (i *Instance) env() []string {
	return append(i.story.env(),
		"AWS_EC2_METADATA_SERVICE_ENDPOINT="+i.IMDS,
		"VOLPOOL_RUN_DIR="+i.runDir,
		"VOLPOOL_SYSFS_ROOT="+i.SysfsRoot,
		"VOLPOOL_DEV_ROOT="+i.DevRoot,
	)
}

// Path is a path of the instance, as we reach it.
func (i *Instance) Path(path string) string {
	return fmt.Sprintf("/proc/%d/root%s", i.PID, path)
}

func (i *Instance) acquire(ctx context.Context) error {
	out, err := i.volpool(ctx, "acquire", "--pool", Pool, "-o", "json")
	if err != nil {
		return err
	}
	a := &Acquired{Text: []byte(out)}
	if err := json.Unmarshal(a.Text, a); err != nil {
		return fmt.Errorf("read the result of acquire on %s: %w: %s", i.ID, err, out)
	}
	i.Acquired = a
	return nil
}

// volpool runs the binary on the instance.
func (i *Instance) volpool(ctx context.Context, args ...string) (string, error) {
	enter := append([]string{"--target", strconv.Itoa(i.PID), "--mount", "--pid", "--", i.story.binary}, args...)
	return i.story.run(ctx, i.ID, i.env(), "nsenter", enter...)
}

// end cuts the instance's power. EC2 isn't told.
func (i *Instance) end() {
	if !i.ended {
		i.machine.end()
	}
	i.ended = true
}
