package vm_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volpool/volpool/integration/vm"
	"github.com/volpool/volpool/integration/vm/guest"
)

const (
	mountPoint = "/mnt/cache"
	greeting   = mountPoint + "/greeting"

	// limit is more than any command may take.
	limit = 90 * time.Second
)

// machine is an instance.
type machine struct {
	*vm.Machine
	stage *stage
	imds  string
}

// acquired is what `volpool acquire -o json` printed.
type acquired struct {
	Result     string  `json:"result"`
	Reason     string  `json:"reason"`
	Volume     string  `json:"volume"`
	Device     string  `json:"device"`
	Filesystem string  `json:"filesystem"`
	SizeGiB    int     `json:"size_gib"`
	Generation int     `json:"generation"`
	LostRaces  int     `json:"lost_races"`
	Seconds    seconds `json:"seconds"`

	text string // all of it
}

type seconds struct {
	Total float64 `json:"total"`
}

// env is all that an instance is told. Who it is, where, and with whose
// credentials, it learns from IMDS.
func (m *machine) env() []string {
	env := []string{
		"VOLPOOL_TABLE=" + table,
		"AWS_ENDPOINT_URL_DYNAMODB=" + m.stage.dynamo.Endpoint(),
		"AWS_ENDPOINT_URL_EC2=" + m.stage.ec2.Endpoint(),
		"AWS_EC2_METADATA_SERVICE_ENDPOINT=" + m.imds,
	}
	for k := range env {
		env[k] = strings.Replace(env[k], "127.0.0.1", vm.Host, 1)
	}
	return env
}

// run runs a command that has to succeed, and returns its stdout.
func (m *machine) run(args ...string) (string, error) {
	o, err := m.Run(guest.Command{Args: args, Env: m.env(), Limit: limit})
	if err == nil && o.Exit != 0 {
		err = fmt.Errorf("%s on %s: exit %d: %s", strings.Join(args, " "), m.ID, o.Exit, o.Stderr)
	}
	return o.Stdout, err
}

func (m *machine) acquire(pool string, flags ...string) (acquired, error) {
	var a acquired
	var err error
	if a.text, err = m.run(append([]string{"volpool", "acquire", "-o", "json", "--pool", pool}, flags...)...); err != nil {
		return a, err
	}
	if err := json.Unmarshal([]byte(a.text), &a); err != nil {
		return a, fmt.Errorf("read the result of acquire on %s: %w: %s", m.ID, err, a.text)
	}
	return a, nil
}

func (m *machine) release() error {
	_, err := m.run("volpool", "release")
	return err
}

// cacheSource is what /proc/mounts says of the mount point, "" where nothing is
// mounted there.
func (m *machine) cacheSource() (string, error) {
	mounts, err := m.run("cat", "/proc/mounts")
	for line := range strings.Lines(mounts) {
		if f := strings.Fields(line); f[1] == mountPoint {
			return f[0], err
		}
	}
	return "", err
}

// agentLog is what the agents that ran here had to say.
func (m *machine) agentLog() string {
	text, err := m.run("sh", "-c", "cat /run/volpool/*.log")
	if err != nil {
		return err.Error()
	}
	return text
}

// forAll does it to all at once.
func forAll[T any](t *testing.T, all []T, do func(int, T) error) {
	t.Helper()
	errs := make([]error, len(all))
	var group sync.WaitGroup
	for k, one := range all {
		group.Go(func() { errs[k] = do(k, one) })
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}
