package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/moby/sys/mountinfo"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/volpool/volpool/integration/dynamolocal"
	"github.com/volpool/volpool/integration/ec2sim"
	"github.com/volpool/volpool/integration/ec2sim/loopdev"
	"golang.org/x/sys/unix"
)

// The command line is tested by the built binary, on DynamoDB Local, the EC2
// simulator and real loop devices: an EC2, an instance and a table of its own for
// each script, for they run side by side.
func TestScripts(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("the scripts need root")
		}
		t.Skip("the scripts attach and mount: they need root")
	}
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-race", "-o", filepath.Join(bin, "volpool"), ".").CombinedOutput(); err != nil {
		t.Fatalf("build the binary: %v\n%s", err, out)
	}
	dynamo := dynamolocal.Shared(t)
	var tables atomic.Int64
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			backend, err := loopdev.New(loopdev.Config{Dir: filepath.Join(env.WorkDir, "ec2")})
			if err != nil {
				return err
			}
			sim, err := ec2sim.Start(ec2sim.Config{Zones: []string{"us-east-1a", "us-east-1b"}, Backend: backend})
			if err != nil {
				return err
			}
			env.Defer(func() {
				if err := sim.Close(); err != nil {
					t.Error(err)
				}
			})
			w := &world{sim: sim, dynamo: dynamo.Client(), run: filepath.Join(env.WorkDir, "run"), point: filepath.Join(env.WorkDir, "cache")}
			env.Values[worldKey{}] = w
			env.Defer(w.cleanUp)
			inst, err := sim.Run(ec2sim.RunInput{Zone: "us-east-1a"})
			if err != nil {
				return err
			}
			w.instance = inst
			silent, err := net.Listen("tcp", "127.0.0.1:0") // connects, and never answers
			if err != nil {
				return err
			}
			env.Defer(func() { silent.Close() })
			for key, value := range map[string]string{
				"PATH": bin + ":" + os.Getenv("PATH"), "VOLPOOL_TABLE": "scripts" + strconv.FormatInt(tables.Add(1), 10), "VOLPOOL_RUN_DIR": w.run,
				"VOLPOOL_MOUNT_POINT": w.point, "VOLPOOL_SYSFS_ROOT": inst.SysfsRoot, "VOLPOOL_DEV_ROOT": inst.DevRoot,
				"AWS_ENDPOINT_URL_DYNAMODB": dynamo.Endpoint(), "AWS_ENDPOINT_URL_EC2": sim.Endpoint(),
				"AWS_EC2_METADATA_SERVICE_ENDPOINT": inst.IMDS, "AWS_REGION": "us-east-1", "INSTANCE": inst.ID, "POINT": w.point, "RUN": w.run,
				"AWS_ACCESS_KEY_ID": dynamolocal.AccessKey, "AWS_SECRET_ACCESS_KEY": dynamolocal.SecretKey,
				"SILENT": "http://" + silent.Addr().String(), "STATE": filepath.Join(w.run, stateName(w.point)+".json"),
			} {
				env.Setenv(key, value)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "volume": newVolume, "imds": imdsFault, "kill-agent": killAgent, "foreign-table": foreignTable,
			"within": within, "deny": deny, "json-keys": jsonKeys, "remember": remember, "unchanged": unchanged,
		},
	})
}

type worldKey struct{}

// world is what a script's own commands work on.
type world struct {
	sim        *ec2sim.Sim
	dynamo     *dynamodb.Client
	instance   *ec2sim.Instance
	run, point string
	remembered string
}

func of(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

func stateName(point string) string {
	return strings.ReplaceAll(strings.ReplaceAll(strings.Trim(point, "/"), "-", `\x2d`), "/", "-")
}

// agents are the living agents that this script started, by their state files.
func (w *world) agents() (pids []int) {
	files, _ := filepath.Glob(filepath.Join(w.run, "*.json"))
	for _, f := range files {
		var s struct{ PID int }
		data, _ := os.ReadFile(f)
		if json.Unmarshal(data, &s) != nil || s.PID == 0 {
			continue
		}
		words, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.PID))
		if strings.Contains(string(words), w.run) {
			pids = append(pids, s.PID)
		}
	}
	return pids
}

func (w *world) kill() {
	for _, pid := range w.agents() {
		unix.Kill(pid, unix.SIGKILL)
		for unix.Kill(pid, 0) == nil { // until init has reaped it
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil || strings.Contains(string(stat), ") Z ") {
				break
			}
			time.Sleep(5 * time.Millisecond) // nothing tells of the end of a process that is not our child
		}
	}
}

func (w *world) cleanUp() {
	w.kill()
	for unix.Unmount(w.point, 0) == nil {
	}
	// What a script that failed had mounted itself.
	unix.Unmount(filepath.Join(filepath.Dir(w.point), "sealed"), unix.MNT_DETACH)
	if w.instance != nil {
		w.sim.Terminate(w.instance.ID)
	}
}

// exits N COMMAND ARGS: the command ends with that code; where that is a
// failure, it says so in one line and at most a hint, and never in a trace.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		failed, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = failed.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
	lines := strings.Split(strings.TrimSuffix(ts.ReadFile("stderr"), "\n"), "\n")
	if got != 1 && got != 2 || ts.ReadFile("stdout") != "" {
		return
	}
	if !strings.HasPrefix(lines[0], "volpool: ") || len(lines) > 2 || len(lines) == 2 && !strings.HasPrefix(lines[1], "hint: ") {
		ts.Fatalf("an error is one line, and at most one hint")
	}
}

// volume NAME [multi] [ZONE] makes a volume of 1 GiB and names it in the
// environment.
func newVolume(ts *testscript.TestScript, _ bool, args []string) {
	in := ec2sim.CreateVolumeInput{Zone: "us-east-1a", SizeGiB: 1}
	for _, arg := range args[1:] {
		if arg == "multi" {
			in.Type, in.SizeGiB, in.IOPS, in.MultiAttach = "io2", 4, 100, true
		} else {
			in.Zone = arg
		}
	}
	v, err := of(ts).sim.CreateVolume(in)
	ts.Check(err)
	ts.Setenv(args[0], v.ID)
}

func imdsFault(ts *testscript.TestScript, _ bool, args []string) {
	fault := ec2sim.IMDSFault(args[0])
	if fault == "none" {
		fault = ""
	}
	of(ts).instance.Metadata.Fail(fault)
}

func killAgent(ts *testscript.TestScript, _ bool, _ []string) {
	if len(of(ts).agents()) == 0 {
		ts.Fatalf("no agent lives")
	}
	of(ts).kill()
}

func deny(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		of(ts).sim.Allow(args...)
		return
	}
	of(ts).sim.Deny(args...)
}

// foreign-table NAME makes a table that was not made for volpool.
func foreignTable(ts *testscript.TestScript, _ bool, args []string) {
	_, err := of(ts).dynamo.CreateTable(context.Background(), &dynamodb.CreateTableInput{
		TableName: &args[0], BillingMode: types.BillingModePayPerRequest,
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("id"), KeyType: types.KeyTypeHash}},
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("id"), AttributeType: types.ScalarAttributeTypeS}},
	})
	ts.Check(err)
}

// within TIME COMMAND ARGS: the command ends well, and long before the SDK would
// have lost its patience. The limit leaves room for a machine under load.
func within(ts *testscript.TestScript, _ bool, args []string) {
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	start := time.Now()
	ts.Check(ts.Exec(args[1], args[2:]...))
	if took := time.Since(start); took > limit {
		ts.Fatalf("took %v, and was to be done within %v", took, limit)
	}
}

// json-keys KEY...: the object on stdout has exactly these keys.
func jsonKeys(ts *testscript.TestScript, _ bool, want []string) {
	var got map[string]json.RawMessage
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &got))
	for _, key := range want {
		if _, ok := got[key]; !ok {
			ts.Fatalf("key %s is missing", key)
		}
	}
	if len(got) != len(want) {
		ts.Fatalf("%d keys, want %d", len(got), len(want))
	}
}

// remember notes what is so, for unchanged.
func remember(ts *testscript.TestScript, _ bool, _ []string) { of(ts).remembered = truth(ts) }

// unchanged: the table, the volumes in EC2 and what is mounted are as they were
// when remember was called.
func unchanged(ts *testscript.TestScript, _ bool, _ []string) {
	if before, now := of(ts).remembered, truth(ts); now != before {
		ts.Fatalf("before:\n%s\nnow:\n%s", before, now)
	}
}

// truth is asked of the servers and the kernel, not of volpool.
func truth(ts *testscript.TestScript) string {
	w := of(ts)
	var lines []string
	out, err := w.dynamo.Scan(context.Background(), &dynamodb.ScanInput{TableName: aws.String(ts.Getenv("VOLPOOL_TABLE")), ConsistentRead: aws.Bool(true)})
	if _, missing := errors.AsType[*types.ResourceNotFoundException](err); missing {
		lines = append(lines, "no table")
	} else {
		ts.Check(err)
		for _, item := range out.Items {
			line, err := json.Marshal(item)
			ts.Check(err)
			lines = append(lines, string(line))
		}
	}
	for _, v := range w.sim.Volumes() {
		lines = append(lines, fmt.Sprintf("%+v", v))
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(ts.Getenv("WORK")))
	ts.Check(err)
	for _, m := range mounts {
		lines = append(lines, m.Source+" on "+m.Mountpoint)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
