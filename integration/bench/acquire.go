package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/volpool/volpool/integration/dynamolocal"
	"github.com/volpool/volpool/integration/ec2sim"
)

// size measures the binary as it is built, and how fast it says what it can do.
func (b *bench) size(ctx context.Context) error {
	info, err := os.Stat(binary)
	if err != nil {
		return fmt.Errorf("%w (make build makes it)", err)
	}
	b.atMost("binary.size", float64(info.Size())/1e6, "MB", 20)
	var took []float64
	for range 20 {
		start := time.Now()
		if err := exec.CommandContext(ctx, binary, "--help").Run(); err != nil {
			return err
		}
		took = append(took, float64(time.Since(start).Microseconds())/1e3)
	}
	slices.Sort(took)
	b.atMost("binary.help", (took[9]+took[10])/2, "ms", 30)
	return nil
}

// acquire counts, at the servers, what a warm acquire asks of AWS, and measures
// the agent's memory.
func (b *bench) acquire(ctx context.Context) error {
	p := newProxy(b.dynamo.Endpoint())
	server := httptest.NewServer(p)
	defer server.Close()
	inst, err := b.ec2.Run(ec2sim.RunInput{Zone: zone})
	if err != nil {
		return err
	}
	v, err := b.ec2.CreateVolume(ec2sim.CreateVolumeInput{Zone: zone, SizeGiB: 1})
	if err != nil {
		return err
	}
	path, err := filepath.Abs(binary)
	if err != nil {
		return err
	}
	m, err := startMachine(ctx)
	if err != nil {
		return err
	}
	defer m.end()
	runDir, point := filepath.Join(b.dir, "run"), filepath.Join(b.dir, "cache")
	volpool := func(args ...string) ([]byte, error) {
		cmd := m.command(ctx, append([]string{path}, args...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "AWS_REGION=us-east-1", "VOLPOOL_TABLE=acquire",
			"AWS_ACCESS_KEY_ID=" + dynamolocal.AccessKey, "AWS_SECRET_ACCESS_KEY=" + dynamolocal.SecretKey,
			"AWS_ENDPOINT_URL_DYNAMODB=" + server.URL, "AWS_ENDPOINT_URL_EC2=" + b.ec2.Endpoint(), "AWS_EC2_METADATA_SERVICE_ENDPOINT=" + inst.IMDS,
			"VOLPOOL_SYSFS_ROOT=" + inst.SysfsRoot, "VOLPOOL_DEV_ROOT=" + inst.DevRoot, "VOLPOOL_RUN_DIR=" + runDir, "VOLPOOL_MOUNT_POINT=" + point}
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("volpool %s: %w", strings.Join(args, " "), err)
		}
		return out, nil
	}
	for _, args := range [][]string{{"pool", "init", "ci"}, {"pool", "add", "ci", v.ID}, {"acquire", "--pool", "ci"}, {"release"}} {
		if _, err := volpool(args...); err != nil {
			return err
		}
	}
	p.reset()
	b.ec2.ResetCalls()
	out, err := volpool("acquire", "--pool", "ci", "-o", "json")
	if err != nil {
		return err
	}
	calls, ec2 := p.calls(), b.ec2.Calls()
	var r struct{ Result string }
	if err := json.Unmarshal(out, &r); err != nil || r.Result != "warm" {
		return fmt.Errorf("not a warm acquire: %s", out)
	}
	total, describes := 0, 0
	for action, n := range ec2 {
		calls[action] += n
		if strings.HasPrefix(action, "Describe") {
			describes += n
		}
	}
	for _, n := range calls {
		total += n
	}
	fmt.Println("a warm acquire asks:", calls)
	b.atMost("acquire.calls", float64(total), "calls", 4)
	b.atMost("acquire.describes", float64(describes), "calls", 0)
	peak, err := agentPeak(m, runDir)
	if err != nil {
		return err
	}
	b.atMost("acquire.rss", peak/1e6, "MB", 40)
	return nil
}

// agentPeak is the most memory the agent had resident, in bytes.
func agentPeak(m *machine, runDir string) (float64, error) {
	files, err := filepath.Glob(filepath.Join(runDir, "*.json"))
	if err != nil || len(files) != 1 {
		return 0, fmt.Errorf("state files %v: %w", files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		return 0, err
	}
	var state struct{ PID int }
	if err := json.Unmarshal(data, &state); err != nil {
		return 0, err
	}
	status, err := os.ReadFile(m.proc(fmt.Sprintf("%d/status", state.PID)))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if kib, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseFloat(strings.Fields(kib)[0], 64)
			return n * 1024, err
		}
	}
	return 0, fmt.Errorf("process %d tells no peak", state.PID)
}
