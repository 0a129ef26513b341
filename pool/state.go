package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// RunDir is where the instance's state lives, /run/volpool: for each mount
// point one JSON file, one environment file for scripts, a lock that its living
// agent holds, and the agent's socket and log.
type RunDir string

// State is what an agent leaves behind for whoever comes after it.
type State struct {
	Schema     int    `json:"schema"`
	BootID     string `json:"boot_id"`
	PID        int    `json:"pid"`
	Pool       string `json:"pool"`
	Zone       string `json:"zone"`
	Instance   string `json:"instance"`
	MountPoint string `json:"mount_point"`
	Volume     string `json:"volume"`     // "" where none is held
	Generation int64  `json:"generation"` // the fencing token
	// Unsettled are volumes that were claimed, and are not known to be given
	// back: a crash, or an attach that is stuck.
	Unsettled []string `json:"unsettled"`
	Bound     bool     `json:"bound"` // --fallback-dir is mounted there
	// Result is what the acquire ended in; null until it is known.
	Result *Result `json:"result"`
}

// volumes are those whose leases may be this mount point's.
func (s *State) volumes() []string {
	if s.Volume == "" {
		return slices.Clone(s.Unsettled)
	}
	return append([]string{s.Volume}, s.Unsettled...)
}

// StateError is a state file that cannot be read: half written, or no state at
// all.
type StateError struct {
	Path string
	Err  error
}

func (e *StateError) Error() string { return fmt.Sprintf("read state file %s: %v", e.Path, e.Err) }

// Unwrap returns the cause.
func (e *StateError) Unwrap() error { return e.Err }

// name is the mount point as a file name, as systemd would escape it.
func name(point string) string {
	var b strings.Builder
	for i, c := range []byte(strings.Trim(filepath.Clean(point), "/")) {
		switch {
		case c == '/':
			b.WriteByte('-')
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	if b.Len() == 0 {
		return "-"
	}
	return b.String()
}

func (d RunDir) path(point, suffix string) string {
	return filepath.Join(string(d), name(point)+suffix)
}

// Log is where an agent that acquire started in a session of its own writes.
func (d RunDir) Log(point string) string { return d.path(point, ".log") }

// Make makes the folder. What is in it says which disk is whose: others may
// read it, and nobody else write.
func (d RunDir) Make() error { return os.MkdirAll(string(d), 0o755) }

// Load reads the state of a mount point; nil where there is none.
func (d RunDir) Load(point string) (*State, error) {
	path := d.path(point, ".json")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &StateError{path, rootCause(err)}
	}
	s := new(State)
	if err := json.Unmarshal(data, s); err != nil {
		return nil, &StateError{path, err}
	}
	if s.Schema != 1 || filepath.Clean(s.MountPoint) != filepath.Clean(point) {
		return nil, &StateError{path, errors.New("it is not the state of this mount point, or of a newer version")}
	}
	return s, nil
}

// Points lists the mount points that have a state file that can be read.
func (d RunDir) Points() ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(string(d), "*.json"))
	if err != nil {
		return nil, err
	}
	var points []string
	var problems []error
	for _, path := range paths {
		s := new(State)
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, s)
		}
		switch {
		case err != nil:
			problems = append(problems, &StateError{path, rootCause(err)})
		case s.MountPoint != "":
			points = append(points, s.MountPoint)
		}
	}
	slices.Sort(points)
	return points, errors.Join(problems...)
}

// save writes the state, and for scripts the environment file, each whole or
// not at all.
func (d RunDir) save(s State) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := replace(d.path(s.MountPoint, ".json"), append(data, '\n')); err != nil {
		return err
	}
	if s.Result == nil {
		return remove(d.path(s.MountPoint, ".env"))
	}
	return replace(d.path(s.MountPoint, ".env"), []byte(Environment(*s.Result)))
}

// Environment is a result as a script sources it.
func Environment(r Result) string {
	var b strings.Builder
	line := func(key, value string) {
		fmt.Fprintf(&b, "%s='%s'\n", key, strings.ReplaceAll(value, "'", `'\''`))
	}
	line("VOLPOOL_RESULT", r.Result)
	line("VOLPOOL_VOLUME", deref(r.Volume))
	line("VOLPOOL_MOUNT_POINT", r.MountPoint)
	generation := ""
	if r.Generation != nil {
		generation = strconv.FormatInt(*r.Generation, 10)
	}
	line("VOLPOOL_GENERATION", generation)
	return b.String()
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// forget removes what is known of a mount point. The log stays, for whoever
// asks what happened.
func (d RunDir) forget(point string) error {
	return errors.Join(remove(d.path(point, ".env")), remove(d.path(point, ".json")))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// ErrAgentLives says that the mount point has its agent already.
var ErrAgentLives = errors.New("an agent lives for this mount point")

// lock is held by the living agent of a mount point; the kernel lets it go with
// the process, however that ends.
func (d RunDir) lock(point string) (*os.File, error) {
	return lockFile(d.path(point, ".lock"), unix.LOCK_EX, fmt.Errorf("%s: %w", point, ErrAgentLives))
}

// lockFile takes a lock if it is to be had now, and answers busy if not; how is
// LOCK_SH or LOCK_EX.
func lockFile(path string, how int, busy error) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, busy
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}
