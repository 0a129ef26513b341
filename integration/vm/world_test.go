package vm_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volpool/volpool/integration/dynamolocal"
	"github.com/volpool/volpool/integration/ec2sim"
	"github.com/volpool/volpool/integration/ec2sim/cloud"
)

// world is a test's own: its pool, its volumes, and the machines it was given.
type world struct {
	*testing.T
	*stage
	pool     string
	volumes  []string // in the order in which they are taken
	machines []*machine
}

func (s *stage) newWorld(t *testing.T) *world {
	if interrupted.Err() != nil {
		t.Fatal(context.Cause(interrupted))
	}
	s.pools++
	w := &world{T: t, stage: s, pool: fmt.Sprintf("pool-%d", s.pools)}
	t.Cleanup(w.leave)
	return w
}

// boot gives the test its machines.
func (w *world) boot(n int) []*machine {
	w.Helper()
	w.machines = w.stage.boot(w.T, n)
	return w.machines
}

// leave hands on the machines of a test that passed, and shows those of one
// that failed.
func (w *world) leave() {
	for _, m := range w.machines {
		switch {
		case w.Failed():
			w.Logf("%s\n--- its agents ---\n%s", m.Console(), m.agentLog())
			m.Kill()
		case m.Alive():
			w.idle = append(w.idle, m)
		}
	}
}

// fill makes the pool with so many new volumes.
func (w *world) fill(n int) {
	w.Helper()
	w.admin("pool", "init", w.pool)
	for range n {
		v, err := w.ec2.CreateVolume(ec2sim.CreateVolumeInput{Zone: zone, SizeGiB: 1})
		if err != nil {
			w.Fatal(err)
		}
		w.volumes = append(w.volumes, v.ID)
	}
	w.admin(append([]string{"pool", "add", w.pool}, w.volumes...)...)
}

// admin runs volpool on this machine, as an administrator does.
func (w *world) admin(args ...string) string {
	w.Helper()
	ctx, cancel := context.WithTimeout(interrupted, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.volpool, args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "VOLPOOL_TABLE=" + table, "AWS_REGION=" + w.ec2.Region(),
		"AWS_ENDPOINT_URL_DYNAMODB=" + w.dynamo.Endpoint(), "AWS_ENDPOINT_URL_EC2=" + w.ec2.Endpoint(),
		"AWS_ACCESS_KEY_ID=" + dynamolocal.AccessKey, "AWS_SECRET_ACCESS_KEY=" + dynamolocal.SecretKey,
		"AWS_EC2_METADATA_DISABLED=true", "VOLPOOL_RUN_DIR=" + filepath.Join(w.TempDir(), "run"),
	}
	var complained strings.Builder
	cmd.Stderr = &complained
	out, err := cmd.Output()
	if err != nil {
		w.Fatalf("volpool %s: %v: %s", strings.Join(args, " "), err, &complained)
	}
	return string(out)
}

// record is what the table says of a volume.
type record struct {
	State      string `json:"state"`
	Owner      string `json:"owner"`
	Generation int    `json:"generation"`
	Clean      bool   `json:"clean"`
}

func (w *world) record(volume string) record {
	w.Helper()
	var r record
	out := w.admin("pool", "show", "-o", "json", volume)
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		w.Fatalf("%v: %s", err, out)
	}
	return r
}

// awaitRecord waits until the table says so.
func (w *world) awaitRecord(volume, state string) {
	w.Helper()
	var r record
	w.await(func() bool {
		r = w.record(volume)
		return r.State == state
	}, func() string { return fmt.Sprintf("%s should be %s, and is %+v", volume, state, r) })
}

// await looks again and again at what tells nobody of its changes.
func (w *world) await(so func() bool, otherwise func() string) {
	w.Helper()
	deadline, tick := time.After(limit), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-interrupted.Done():
			w.Fatal(context.Cause(interrupted))
		case <-deadline:
			w.Fatalf("after %v: %s", limit, otherwise())
		}
	}
}

// awaitVolume waits until EC2 says so.
func (w *world) awaitVolume(volume string, so func(ec2sim.Volume) bool) {
	w.Helper()
	ctx, cancel := context.WithTimeout(interrupted, limit)
	defer cancel()
	var v ec2sim.Volume
	err := w.ec2.Wait(ctx, func() bool {
		v, _ = w.ec2.Volume(volume)
		return so(v)
	})
	if err != nil {
		w.Fatalf("%v: %+v", err, v)
	}
}

func available(v ec2sim.Volume) bool { return v.State == cloud.Available }

func attachment(state string) func(ec2sim.Volume) bool {
	return func(v ec2sim.Volume) bool { return len(v.Attachments) == 1 && v.Attachments[0].State == state }
}

// inOrder checks the filesystem on a volume that nobody has, to the last block.
func (w *world) inOrder(volume string) {
	w.Helper()
	w.awaitVolume(volume, available)
	if out, err := exec.CommandContext(interrupted, "/sbin/e2fsck", "-fn", w.backend.Image(volume)).CombinedOutput(); err != nil {
		w.Errorf("%s: %v: %s", volume, err, out)
	}
}
