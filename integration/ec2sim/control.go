package ec2sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/volpool/volpool/integration/ec2sim/cloud"
)

// routeControl adds what EC2 doesn't have, under /_sim/, for those outside of
// this process: JSON in and out, durations as "1.5s".
//
//	GET    /_sim/instances            all instances, with IMDS and roots
//	GET    /_sim/instances/{id}
//	PUT    /_sim/instances/{id}/metadata/{path}   the body becomes /latest/{path}: notices
//	DELETE /_sim/instances/{id}/metadata/{path}
//	PUT    /_sim/instances/{id}/imds-fault        {"fault": "slow"}, "" ends it
//	GET    /_sim/volumes              the truth
//	GET    /_sim/calls                counts by action; ?by=INSTANCE
//	DELETE /_sim/calls
//	GET    /_sim/faults               with hits, and callers that wait
//	POST   /_sim/faults               {"kind": "stuck-attaching", "times": 1}
//	DELETE /_sim/faults               all
//	DELETE /_sim/faults/{id}          one: who is held goes on
//	PUT    /_sim/denied               ["AttachVolume"], exactly these from now on
//	PUT    /_sim/buckets/{action}     {"size": 50, "refill": 5}
//	PUT    /_sim/latency/{action}     {"base": "20ms", "jitter": "5ms"}
//	PUT    /_sim/latency              for all actions that have none of their own
func (s *Sim) routeControl(mux *http.ServeMux) {
	handle := func(pattern string, f func(*http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { answer(w, r, f) })
	}
	handle("/_sim/", func(*http.Request) (any, error) { return nil, errNotFound })
	handle("GET /_sim/instances", s.controlInstances)
	handle("GET /_sim/instances/{id}", s.controlInstance)
	handle("PUT /_sim/instances/{id}/metadata/{path...}", s.controlSetMetadata)
	handle("DELETE /_sim/instances/{id}/metadata/{path...}", s.controlUnsetMetadata)
	handle("PUT /_sim/instances/{id}/imds-fault", s.controlFailIMDS)
	handle("GET /_sim/volumes", s.controlVolumes)
	handle("GET /_sim/calls", s.controlCalls)
	handle("DELETE /_sim/calls", func(*http.Request) (any, error) { s.ResetCalls(); return nil, nil })
	handle("GET /_sim/faults", s.controlFaults)
	handle("POST /_sim/faults", s.controlInject)
	handle("DELETE /_sim/faults", func(*http.Request) (any, error) { s.ClearFaults(); return nil, nil })
	handle("DELETE /_sim/faults/{id}", s.controlClear)
	handle("PUT /_sim/denied", s.controlDeny)
	handle("PUT /_sim/buckets/{action}", s.controlBucket)
	handle("PUT /_sim/latency/{action}", s.controlLatency)
	handle("PUT /_sim/latency", s.controlLatency)
}

var errNotFound = errors.New("no such thing")

func answer(w http.ResponseWriter, r *http.Request, f func(*http.Request) (any, error)) {
	reply, err := f(r)
	w.Header().Set("Content-Type", "application/json")
	switch {
	case errors.Is(err, errNotFound):
		w.WriteHeader(http.StatusNotFound)
	case err != nil:
		w.WriteHeader(http.StatusBadRequest)
	case reply == nil:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if err != nil {
		reply = map[string]string{"error": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(reply) // our own structs encode
}

func decode(r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("read body: %w", err)
	}
	return nil
}

type instanceJSON struct {
	ID        string `json:"id"`
	Zone      string `json:"zone"`
	State     string `json:"state"`
	IMDS      string `json:"imds"`
	SysfsRoot string `json:"sysfs_root"`
	DevRoot   string `json:"dev_root"`
}

func (s *Sim) instanceJSON(i *Instance) instanceJSON {
	state := cloud.Terminated // and forgotten
	if c, ok := s.Cloud.Instance(i.ID); ok {
		state = c.State
	}
	return instanceJSON{i.ID, i.Zone, state, i.IMDS, i.SysfsRoot, i.DevRoot}
}

func (s *Sim) controlInstances(*http.Request) (any, error) {
	list := []instanceJSON{}
	for _, i := range s.Instances() {
		list = append(list, s.instanceJSON(i))
	}
	return list, nil
}

func (s *Sim) instanceOf(r *http.Request) (*Instance, error) {
	if i := s.Instance(r.PathValue("id")); i != nil {
		return i, nil
	}
	return nil, errNotFound
}

func (s *Sim) controlInstance(r *http.Request) (any, error) {
	i, err := s.instanceOf(r)
	if err != nil {
		return nil, err
	}
	return s.instanceJSON(i), nil
}

func (s *Sim) controlSetMetadata(r *http.Request) (any, error) {
	i, err := s.instanceOf(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, fmt.Errorf("read body: %w", err)
	}
	i.Metadata.Set(r.PathValue("path"), string(body))
	return nil, nil
}

func (s *Sim) controlUnsetMetadata(r *http.Request) (any, error) {
	i, err := s.instanceOf(r)
	if err != nil {
		return nil, err
	}
	i.Metadata.Unset(r.PathValue("path"))
	return nil, nil
}

func (s *Sim) controlFailIMDS(r *http.Request) (any, error) {
	i, err := s.instanceOf(r)
	if err != nil {
		return nil, err
	}
	var in struct {
		Fault IMDSFault `json:"fault"`
	}
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if !in.Fault.valid() {
		return nil, fmt.Errorf("no IMDS fault is named %q", in.Fault)
	}
	i.Metadata.Fail(in.Fault)
	return nil, nil
}

type attachmentJSON struct {
	Instance string `json:"instance"`
	Device   string `json:"device"`
	State    string `json:"state"`
}

type volumeJSON struct {
	ID          string            `json:"id"`
	Zone        string            `json:"zone"`
	State       string            `json:"state"`
	SizeGiB     int               `json:"size_gib"`
	Tags        map[string]string `json:"tags"`
	Attachments []attachmentJSON  `json:"attachments"`
}

func (s *Sim) controlVolumes(*http.Request) (any, error) {
	list := []volumeJSON{}
	for _, v := range s.Volumes() {
		x := volumeJSON{v.ID, v.Zone, v.State, v.SizeGiB, v.Tags, []attachmentJSON{}}
		for _, a := range v.Attachments {
			x.Attachments = append(x.Attachments, attachmentJSON{a.Instance, a.Device, a.State})
		}
		list = append(list, x)
	}
	return list, nil
}

func (s *Sim) controlCalls(r *http.Request) (any, error) {
	calls := s.Calls()
	if by := r.URL.Query(); by.Has("by") {
		calls = s.CallsBy(by.Get("by"))
	}
	if calls == nil {
		calls = map[string]int{}
	}
	return calls, nil
}

type faultJSON struct {
	ID       int        `json:"id"`
	Kind     cloud.Kind `json:"kind"`
	Action   string     `json:"action"`
	Volume   string     `json:"volume"`
	Instance string     `json:"instance"`
	Times    int        `json:"times"`
	Delay    duration   `json:"delay"`
	Code     string     `json:"code"`
	Message  string     `json:"message"`
	Status   int        `json:"status"`
	Callers  int        `json:"callers"`
	Hits     int        `json:"hits"`
	Waiting  int        `json:"waiting"`
}

func newFaultJSON(i *Injection) faultJSON {
	f := i.Fault
	return faultJSON{
		i.ID, f.Kind, f.Action, f.Volume, f.Instance, f.Times, duration(f.Delay),
		f.Code, f.Message, f.Status, f.Callers, i.Hits(), i.Waiting(),
	}
}

func (s *Sim) controlFaults(*http.Request) (any, error) {
	list := []faultJSON{}
	for _, i := range s.Cloud.Faults.All() {
		list = append(list, newFaultJSON(i))
	}
	return list, nil
}

func (s *Sim) controlInject(r *http.Request) (any, error) {
	var in faultJSON
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if !in.Kind.Valid() {
		return nil, fmt.Errorf("no fault is named %q", in.Kind)
	}
	return newFaultJSON(s.Inject(Fault{
		Kind: in.Kind, Action: in.Action, Volume: in.Volume, Instance: in.Instance, Times: in.Times,
		Delay: time.Duration(in.Delay), Code: in.Code, Message: in.Message, Status: in.Status, Callers: in.Callers,
	})), nil
}

func (s *Sim) controlClear(r *http.Request) (any, error) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		return nil, errNotFound
	}
	i := s.Cloud.Faults.Get(id)
	if i == nil {
		return nil, errNotFound
	}
	i.Clear()
	return nil, nil
}

func (s *Sim) controlDeny(r *http.Request) (any, error) {
	var actions []string
	if err := decode(r, &actions); err != nil {
		return nil, err
	}
	s.Allow()
	s.Deny(actions...)
	return nil, nil
}

func (s *Sim) controlBucket(r *http.Request) (any, error) {
	var b Bucket
	if err := decode(r, &b); err != nil {
		return nil, err
	}
	s.SetBucket(r.PathValue("action"), b)
	return nil, nil
}

func (s *Sim) controlLatency(r *http.Request) (any, error) {
	var in struct {
		Base   duration `json:"base"`
		Jitter duration `json:"jitter"`
	}
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	s.SetLatency(r.PathValue("action"), Span{Base: time.Duration(in.Base), Jitter: time.Duration(in.Jitter)})
	return nil, nil
}

// duration is "1.5s" in JSON.
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = duration(parsed)
	return err
}
