package ec2sim_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/volpool/volpool/integration/ec2sim"
	"github.com/volpool/volpool/integration/ec2sim/cloud"
)

// control calls the control API; what it answers comes back as one line.
func control(t *testing.T, endpoint, method, path, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, endpoint+"/_sim/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, strings.TrimSpace(string(text))
}

func TestControl(t *testing.T) {
	w := newWorld(t, ec2sim.Timing{})
	i := w.running()
	v := w.attached(i)
	do := func(method, path, body string, status int, want string) {
		t.Helper()
		if gotStatus, got := control(t, w.sim.Endpoint(), method, path, body); gotStatus != status || !strings.Contains(got, want) {
			t.Errorf("%s %s: %d %s, want %d …%s…", method, path, gotStatus, got, status, want)
		}
	}
	do("GET", "instances", "", 200, `"id":"`+i+`","zone":"us-east-1a","state":"running","imds":"http://127.0.0.1:`)
	do("GET", "instances/"+i, "", 200, `"sysfs_root":""`)
	do("GET", "instances/"+noInstance, "", 404, `"error"`)
	do("GET", "volumes", "", 200, `"attachments":[{"instance":"`+i+`","device":"/dev/xvdaa","state":"attached"}]`)
	do("PUT", "instances/"+i+"/metadata/meta-data/spot/instance-action", `{"action":"stop"}`, 204, "")
	if got, err := metadata(t, w.sim.Instance(i), "spot/instance-action"); err != nil || got != `{"action":"stop"}` {
		t.Errorf("notice %q, %v", got, err)
	}
	do("DELETE", "instances/"+i+"/metadata/meta-data/spot/instance-action", "", 204, "")
	do("PUT", "instances/"+i+"/imds-fault", `{"fault":"500"}`, 204, "")
	if got, err := metadata(t, w.sim.Instance(i), "instance-id"); err == nil {
		t.Errorf("instance-id is %q in spite of the fault", got)
	}
	do("PUT", "instances/"+i+"/imds-fault", `{"fault":"flood"}`, 400, "no IMDS fault is named")
	do("DELETE", "calls", "", 204, "")
	do("PUT", "denied", `["DescribeVolumes"]`, 204, "")
	if _, err := w.DescribeVolumes(w.ctx, &ec2.DescribeVolumesInput{}); code(err) != "UnauthorizedOperation" {
		t.Errorf("denied: %v", err)
	}
	do("PUT", "denied", `[]`, 204, "")
	do("PUT", "buckets/DescribeVolumes", `{"size":1,"refill":0.001}`, 204, "")
	for _, want := range []string{"", "RequestLimitExceeded"} {
		if _, err := w.DescribeVolumes(w.ctx, &ec2.DescribeVolumesInput{}); code(err) != want {
			t.Errorf("throttled: %v, want %q", err, want)
		}
	}
	do("GET", "calls", "", 200, `{"DescribeVolumes":3}`)
	do("GET", "calls?by="+i, "", 200, `{}`)
	do("PUT", "latency/AttachVolume", `{"base":"1ms","jitter":"500us"}`, 204, "")
	do("PUT", "latency", `{"base":"soon"}`, 400, "read body")
	do("POST", "faults", `{"kind":"busy-detach","volume":"`+v+`"}`, 200, `"id":1,"kind":"busy-detach"`)
	w.must(w.detach(v, i))
	await(t, w.sim, v, cloud.Busy)
	do("GET", "faults", "", 200, `"hits":1`)
	do("DELETE", "faults/1", "", 204, "")
	await(t, w.sim, v, "")
	do("DELETE", "faults/1", "", 404, "")
	do("POST", "faults", `{"kind":"earthquake"}`, 400, "no fault is named")
	do("POST", "faults", `{"kind":"stale","dealy":"5s"}`, 400, "dealy")
	do("POST", "faults", `{"kind":"stale","delay":"5s"}`, 200, `"delay":"5s"`)
	do("DELETE", "faults", "", 204, "")
	do("GET", "faults", "", 200, `[]`)
	do("GET", "weather", "", 404, "")
	var list []map[string]any
	if _, text := control(t, w.sim.Endpoint(), "GET", "instances", ""); json.Unmarshal([]byte(text), &list) != nil || len(list) != 1 {
		t.Errorf("instances %s", text)
	}
}
