package ec2sim_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/volpool/volpool/integration/ec2sim"
)

func metadata(t *testing.T, i *ec2sim.Instance, path string) (string, error) {
	t.Helper()
	c := imds.New(imds.Options{Endpoint: i.IMDS, Retryer: aws.NopRetryer{}, EnableFallback: aws.FalseTernary})
	out, err := c.GetMetadata(t.Context(), &imds.GetMetadataInput{Path: path})
	if err != nil {
		return "", err
	}
	defer out.Content.Close()
	text, err := io.ReadAll(out.Content)
	return string(text), err
}

func TestMetadataNeedsAToken(t *testing.T) {
	sim := start(t, ec2sim.Config{})
	i := run(t, sim, ec2sim.RunInput{})
	do := func(method, path string, header ...string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, i.IMDS+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for k := 0; k < len(header); k += 2 {
			r.Header.Set(header[k], header[k+1])
		}
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(body)
	}
	const ttl, given = "X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token"
	_, token := do("PUT", "/latest/api/token", ttl, "60")
	for _, c := range []struct {
		method, path string
		header       []string
		status       int
	}{
		{"GET", "/latest/meta-data/instance-id", nil, 401},
		{"GET", "/latest/meta-data/instance-id", []string{given, "made-up"}, 401},
		{"GET", "/latest/meta-data/instance-id", []string{given, token}, 200},
		{"GET", "/latest/meta-data/spot/instance-action", []string{given, token}, 404},
		{"GET", "/", []string{given, token}, 404},
		{"POST", "/latest/meta-data/instance-id", []string{given, token}, 405},
		{"GET", "/latest/api/token", nil, 405},
		{"PUT", "/latest/api/token", nil, 400},
		{"PUT", "/latest/api/token", []string{ttl, "21601"}, 400},
		{"PUT", "/latest/api/token", []string{ttl, "60", "X-Forwarded-For", "10.0.0.1"}, 403},
	} {
		if status, body := do(c.method, c.path, c.header...); status != c.status {
			t.Errorf("%s %s %v: %d %q, want %d", c.method, c.path, c.header, status, body, c.status)
		}
	}
}

func TestNoticesAreAbsentUntilTheyCome(t *testing.T) {
	sim := start(t, ec2sim.Config{})
	i := run(t, sim, ec2sim.RunInput{})
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		path   string
		notice func()
		want   string
	}{
		{"spot/instance-action", func() { i.Metadata.InterruptSpot("terminate", at) }, `{"action":"terminate","time":"2030-01-02T03:04:05Z"}`},
		{"events/recommendations/rebalance", func() { i.Metadata.RecommendRebalance(at) }, `{"noticeTime":"2030-01-02T03:04:05Z"}`},
		{"autoscaling/target-lifecycle-state", func() { i.Metadata.TargetLifecycleState("Terminated") }, `Terminated`},
		{"events/maintenance/scheduled", func() { i.Metadata.ScheduleMaintenance("instance-stop", at) },
			`[{"Code":"instance-stop","Description":"The instance is scheduled for instance-stop","EventId":"instance-event-` + i.ID[2:] +
				`","NotAfter":"2 Jan 2030 05:04:05 GMT","NotBefore":"2 Jan 2030 03:04:05 GMT","State":"active"}]`},
	} {
		if got, err := metadata(t, i, c.path); err == nil {
			t.Errorf("%s is %q before", c.path, got)
		}
		c.notice()
		got, err := metadata(t, i, c.path)
		if err != nil || compact(got) != c.want {
			t.Errorf("%s is %q, %v; want %q", c.path, compact(got), err, c.want)
		}
		i.Metadata.Unset("meta-data/" + c.path)
		if got, err := metadata(t, i, c.path); err == nil {
			t.Errorf("%s is %q after", c.path, got)
		}
	}
	if n := i.Metadata.Calls()["meta-data/spot/instance-action"]; n != 3 {
		t.Errorf("%d calls counted, want 3", n)
	}
}

// compact leaves alone what is no JSON.
func compact(text string) string {
	var value any
	if json.Unmarshal([]byte(text), &value) != nil {
		return text
	}
	short, err := json.Marshal(value)
	if err != nil {
		return text
	}
	return string(short)
}

func TestMetadataFaults(t *testing.T) {
	sim := start(t, ec2sim.Config{})
	i := run(t, sim, ec2sim.RunInput{})
	for _, fault := range []ec2sim.IMDSFault{ec2sim.IMDSAbsent, ec2sim.IMDSUnauthorized, ec2sim.IMDSNotFound, ec2sim.IMDSError} {
		i.Metadata.Fail(fault)
		if got, err := metadata(t, i, "instance-id"); err == nil {
			t.Errorf("%s: got %q", fault, got)
		}
	}
	i.Metadata.Fail(ec2sim.IMDSSlow)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "PUT", i.IMDS+"/latest/api/token", nil)
	if err != nil {
		t.Fatal(err)
	}
	if response, err := http.DefaultClient.Do(r); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("slow: %v, %v", response, err)
	}
	i.Metadata.Fail(ec2sim.IMDSRubbish)
	c := imds.New(imds.Options{Endpoint: i.IMDS, Retryer: aws.NopRetryer{}})
	if got, err := c.GetInstanceIdentityDocument(t.Context(), nil); err == nil {
		t.Errorf("rubbish: got %+v", got)
	}
	i.Metadata.Fail("")
	if got, err := metadata(t, i, "instance-id"); err != nil || got != i.ID {
		t.Errorf("instance-id is %q, %v", got, err)
	}
}

func TestMetadataGoesWithTheInstance(t *testing.T) {
	sim := start(t, ec2sim.Config{})
	i := run(t, sim, ec2sim.RunInput{})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(sim.Stop(i.ID))
	if got, err := metadata(t, i, "instance-id"); err == nil {
		t.Errorf("stopped, and answers %q", got)
	}
	must(sim.Start(i.ID))
	if got, err := metadata(t, i, "instance-id"); err != nil || got != i.ID {
		t.Errorf("instance-id is %q, %v", got, err)
	}
	must(sim.Terminate(i.ID))
	if got, err := metadata(t, i, "instance-id"); err == nil {
		t.Errorf("terminated, and answers %q", got)
	}
}
