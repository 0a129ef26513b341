package integration_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/moby/sys/mountinfo"
	"github.com/volpool/volpool/integration/story"
)

// build makes a command of this module, as make does.
func build(t *testing.T, command string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(command))
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "./"+command)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", command, err, out)
	}
	return path
}

func needStage(t *testing.T) {
	t.Helper()
	if err := story.Missing(); err != nil && os.Geteuid() != 0 {
		t.Skipf("NOT TESTED: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
}

// TestStory plays what the demo plays, and looks behind each act.
func TestStory(t *testing.T) {
	needStage(t)
	s, err := story.Open(t.Context(), story.Config{Binary: build(t, "cmd/volpool"), Out: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Failed = s.Failed || t.Failed()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &behind{T: t, Story: s, wrote: map[string]string{}}
	looks := map[string]func(){
		"pool":      w.afterPool,
		"race":      w.afterRace,
		"release":   w.afterRelease,
		"warm":      w.afterWarm,
		"retire":    w.afterRetire,
		"power cut": w.afterPowerCut,
		"end":       w.afterEnd,
	}
	for _, act := range s.Acts() {
		if err := s.Play(t.Context(), act); err != nil {
			t.Fatal(err)
		}
		look := looks[act.Name]
		if look == nil {
			t.Fatalf("nobody looks behind %q", act.Name)
		}
		look()
		delete(looks, act.Name)
		if t.Failed() {
			t.Fatalf("after %q", act.Name)
		}
	}
	if len(looks) > 0 {
		t.Errorf("never played: %v", slices.Collect(maps.Keys(looks)))
	}
}

// behind looks behind the story's acts.
type behind struct {
	*testing.T
	*story.Story
	wrote map[string]string // by volume
}

func (w *behind) afterPool() {
	w.Helper()
	for _, v := range w.Volumes {
		w.hasItem(v, "free", "", 0)
		if got := w.item(v, "#volume"); text(got["pool"]) != story.Pool || text(got["zone"]) != story.Zone {
			w.Errorf("%s is registered as %v", v, got)
		}
		w.isAttachedTo(v, "")
	}
	if w.item(story.Pool, "#pool") == nil || text(w.item(partition, "#settings")["free_slot"]) != "!" {
		w.Error("the settings are missing")
	}
}

func (w *behind) afterRace() {
	w.Helper()
	four := w.Instances
	w.areApart(four)
	holders := w.resultsOf(four, map[string]int{"cold": 3, "fallback": 1})
	w.holdAll(holders, 1)
	for _, i := range four {
		if i.Acquired.Result != "fallback" {
			if i.Acquired.Reason != "new" {
				w.Errorf("%s is cold because of %q", i.ID, i.Acquired.Reason)
			}
			continue
		}
		if i.Acquired.Reason != "no_free_volume" || i.Acquired.Volume != "" {
			w.Errorf("fallback %s", i.Acquired.Text)
		}
		if mounted := w.mountOf(i); mounted != nil {
			w.Errorf("the fallback of %s is a mount: %+v", i.ID, mounted)
		}
		if files, err := os.ReadDir(i.Path(story.MountPoint)); err != nil || len(files) != 0 {
			w.Errorf("the fallback of %s has %v, %v", i.ID, files, err)
		}
	}
}

func (w *behind) afterRelease() {
	w.Helper()
	for _, i := range w.Instances {
		if v := i.Acquired.Volume; v != "" {
			w.wrote[v] = i.Wrote
			w.hasItem(v, "free", "", 1)
			w.isAttachedTo(v, "")
			if got := text(w.item(partition, v)["last_owner"]); got != i.ID {
				w.Errorf("last owner of %s is %q", v, got)
			}
		}
	}
}

func (w *behind) afterWarm() {
	w.Helper()
	three := w.Instances[4:]
	w.areApart(three)
	w.holdAll(w.resultsOf(three, map[string]int{"warm": 3}), 2)
	for _, i := range three {
		if i.Found == "" || i.Found != w.wrote[i.Acquired.Volume] {
			w.Errorf("%s finds %q, and %q was written", i.Acquired.Volume, i.Found, w.wrote[i.Acquired.Volume])
		}
	}
}

func (w *behind) afterRetire() {
	w.Helper()
	w.hasItem(w.Retired, "retired", "", 2)
	w.isAttachedTo(w.Retired, "")
	w.holdAll(w.Instances[4:6], 2)
}

func (w *behind) afterPowerCut() {
	w.Helper()
	dead, other, heir := w.Instances[4], w.Instances[5], w.Instances[7]
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", dead.PID)); err == nil {
		w.Errorf("%s lives", dead.ID)
	}
	w.areApart([]*story.Instance{other, heir})
	w.holdAll([]*story.Instance{heir}, 3)
	w.holdAll([]*story.Instance{other}, 2)
	if heir.Acquired.Volume != dead.Acquired.Volume || heir.Found != w.wrote[dead.Acquired.Volume] {
		w.Errorf("%s finds %q in %s", heir.ID, heir.Found, heir.Acquired.Volume)
	}
	w.hasItem(w.Retired, "retired", "", 2)
}

func (w *behind) afterEnd() {
	w.Helper()
	other, heir := w.Instances[5], w.Instances[7]
	for i, generation := range map[*story.Instance]int{other: 2, heir: 3} {
		w.hasItem(i.Acquired.Volume, "free", "", generation)
		w.isAttachedTo(i.Acquired.Volume, "")
		if mounted := w.mountOf(i); mounted != nil {
			w.Errorf("still mounted on %s: %+v", i.ID, mounted)
		}
		// The agent answers first and ends then.
		w.within(5*time.Second, "the agent of "+i.ID+" lives", func() bool { return len(w.agentsOf(i)) == 0 })
	}
	w.hasItem(w.Retired, "retired", "", 2)
}

// resultsOf counts the results, and returns the instances that got a volume.
func (w *behind) resultsOf(instances []*story.Instance, want map[string]int) (holders []*story.Instance) {
	w.Helper()
	keys := []string{"schema", "result", "reason", "message", "hint", "pool", "zone", "instance", "volume", "device", "mount_point",
		"filesystem", "size_gib", "used_percent", "generation", "uses", "idle_seconds", "lost_races", "seconds"}
	got := map[string]int{}
	volumes := map[string]bool{}
	for _, i := range instances {
		var all map[string]any
		if err := json.Unmarshal(i.Acquired.Text, &all); err != nil {
			w.Error(err)
		}
		for _, key := range keys {
			if _, ok := all[key]; !ok {
				w.Errorf("no %q in %s", key, i.Acquired.Text)
			}
		}
		if all["schema"] != 1.0 || all["instance"] != i.ID || all["zone"] != story.Zone || all["pool"] != story.Pool || all["mount_point"] != story.MountPoint {
			w.Errorf("result of %s: %s", i.ID, i.Acquired.Text)
		}
		got[i.Acquired.Result]++
		if i.Acquired.Result != "fallback" {
			holders = append(holders, i)
			volumes[i.Acquired.Volume] = true
		}
	}
	if !maps.Equal(got, want) {
		w.Errorf("results %v, not %v", got, want)
	}
	if len(volumes) != len(holders) {
		w.Errorf("%d instances hold %v", len(holders), volumes)
	}
	return holders
}

// holdAll is what holding a volume means, seen from every side.
func (w *behind) holdAll(holders []*story.Instance, generation int) {
	w.Helper()
	for _, i := range holders {
		v := i.Acquired.Volume
		if i.Acquired.Generation != generation {
			w.Errorf("%s says generation %d, not %d", i.ID, i.Acquired.Generation, generation)
		}
		w.hasItem(v, "held", i.ID, generation)
		item := w.item(partition, v)
		// That it is mounted is told with the next heartbeat only.
		if phase := text(item["phase"]); phase != "preparing" && phase != "mounted" || text(item["format"]) != "done" || text(item["mount_point"]) != story.MountPoint {
			w.Errorf("item of %s: %v", v, item)
		}
		w.isAttachedTo(v, i.ID)
		w.isMounted(i, v)
		agents := w.agentsOf(i)
		if len(agents) != 1 {
			w.Errorf("agents of %s: %v", i.ID, agents)
			continue
		}
		if namespace(agents[0], "mnt") != namespace(i.PID, "mnt") {
			w.Errorf("the agent of %s is in another mount namespace", i.ID)
		}
	}
}

// isMounted tells that the instance's mount is the volume's own file.
func (w *behind) isMounted(i *story.Instance, volume string) {
	w.Helper()
	m := w.mountOf(i)
	if m == nil || m.FSType != "ext4" {
		w.Errorf("mount of %s: %+v", i.ID, m)
		return
	}
	backing, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/loop/backing_file", m.Major, m.Minor))
	if err != nil || filepath.Base(strings.TrimSpace(string(backing))) != volume+".img" {
		w.Errorf("%s has %q mounted, not %s: %v", i.ID, backing, volume, err)
	}
}

func (w *behind) mountOf(i *story.Instance) *mountinfo.Info {
	w.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", i.PID))
	if err != nil {
		w.Fatal(err)
	}
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(f, mountinfo.SingleEntryFilter(story.MountPoint))
	if err != nil {
		w.Fatal(err)
	}
	if len(mounts) == 0 {
		return nil
	}
	return mounts[0]
}

// areApart tells that the instances share neither mounts nor pids, nor with us.
func (w *behind) areApart(instances []*story.Instance) {
	w.Helper()
	for _, kind := range []string{"mnt", "pid"} {
		seen := map[string]bool{namespace(os.Getpid(), kind): true}
		for _, i := range instances {
			n := namespace(i.PID, kind)
			if n == "" || seen[n] {
				w.Errorf("%s is not alone in its %s namespace %q", i.ID, kind, n)
			}
			seen[n] = true
		}
	}
}

// agentsOf finds the processes of volpool in the instance's pid namespace.
func (w *behind) agentsOf(i *story.Instance) (pids []int) {
	w.Helper()
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		w.Fatal(err)
	}
	for _, name := range names {
		pid, err := strconv.Atoi(filepath.Base(name))
		if err != nil || namespace(pid, "pid") != namespace(i.PID, "pid") {
			continue
		}
		words, err := os.ReadFile(filepath.Join(name, "cmdline")) // empty, where it is a zombie
		if argv := strings.Split(string(words), "\x00"); err == nil && filepath.Base(argv[0]) == "volpool" {
			pids = append(pids, pid)
		}
	}
	return pids
}

func namespace(pid int, kind string) string {
	name, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)) // "" for one that is gone
	return name
}

// isAttachedTo asks the simulator for the truth; "" is nobody. The device is
// there, and mounted, before EC2 calls it attached.
func (w *behind) isAttachedTo(volume, instance string) {
	w.Helper()
	v, ok := w.EC2.Volume(volume)
	switch {
	case !ok:
		w.Errorf("EC2 has no %s", volume)
	case instance == "" && v.State == "available" && len(v.Attachments) == 0:
	case instance != "" && len(v.Attachments) == 1 && v.Attachments[0].Instance == instance &&
		(v.Attachments[0].State == "attaching" || v.Attachments[0].State == "attached"):
	default:
		w.Errorf("%s is %s, attached as %+v, and should be to %q", volume, v.State, v.Attachments, instance)
	}
}

const partition = story.Pool + "/" + story.Zone

// item reads the table past all of our code.
func (w *behind) item(partition, item string) map[string]types.AttributeValue {
	w.Helper()
	got, err := w.DynamoDB.Client().GetItem(w.Context(), &dynamodb.GetItemInput{
		TableName:      aws.String(story.Table),
		ConsistentRead: aws.Bool(true),
		Key: map[string]types.AttributeValue{
			"pool_zone": &types.AttributeValueMemberS{Value: partition},
			"item":      &types.AttributeValueMemberS{Value: item},
		},
	})
	if err != nil {
		w.Fatal(err)
	}
	return got.Item
}

func (w *behind) hasItem(volume, state, owner string, generation int) {
	w.Helper()
	item := w.item(partition, volume)
	_, claimable := item["free_slot"]
	if text(item["state"]) != state || text(item["owner"]) != owner || text(item["generation"]) != strconv.Itoa(generation) || claimable != (state == "free") {
		w.Errorf("%s should be %s, owner %q, generation %d, and is %v", volume, state, owner, generation, show(item))
	}
}

func (w *behind) within(limit time.Duration, otherwise string, condition func() bool) {
	w.Helper()
	for end := time.Now().Add(limit); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.Error(otherwise)
			return
		}
	}
}

// text is a string's or a number's; "" where there is none.
func text(v types.AttributeValue) string {
	switch v := v.(type) {
	case *types.AttributeValueMemberS:
		return v.Value
	case *types.AttributeValueMemberN:
		return v.Value
	}
	return ""
}

func show(item map[string]types.AttributeValue) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(item)) {
		parts = append(parts, name+"="+text(item[name]))
	}
	return strings.Join(parts, " ")
}
