package pool

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
	"go.uber.org/zap"
)

const (
	v1, v2, v3 = "vol-00000000000000001", "vol-00000000000000002", "vol-00000000000000003"
	me         = "i-00000000000000001"
	point      = "/mnt/cache"
)

// stage is a table with three volumes, an EC2 and the disks of one instance, in
// a bubble of virtual time. What goes wrong is set before an act.
type stage struct {
	t     *testing.T
	table *leasetest.Memory
	store lease.Store
	run   RunDir
	reg   lease.Registry
	me    Identity
	boot  string

	control *pipes // of the agent that was started last

	mu       sync.Mutex
	volumes  map[string]*types.Volume
	devices  map[string]bool          // what the kernel shows
	inUse    map[string]bool          // locked, or mounted elsewhere
	mounted  map[string]string        // by mount point; "dir" is a fallback directory
	probes   map[string]Probe         // what a device holds; blank where nothing is said
	stale    map[string]*types.Volume // what the next Describe shows
	calls    []string
	noSuchMe bool          // EC2 does not know the instance
	badZone  bool          // EC2 says that it is in another zone
	denied   string        // the operation that IAM denies
	throttle string        // the operation that EC2 throttles
	noDevice bool          // an attach brings no device
	taken    time.Duration // after it EC2 takes an attach back
	loseNext bool          // the next attach lands, and its reply is lost
	stuck    bool          // a detach does not end
	busy     bool          // an unmount does not end
	wait     func(volume string) error
	mount    func(volume string) error
	check    func(volume string) error

	known map[string]types.InstanceStateName // all other instances are gone
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t, table: leasetest.NewMemory(), run: RunDir(t.TempDir()), me: Identity{Instance: me, Zone: "z"}, boot: "boot",
		volumes: map[string]*types.Volume{}, devices: map[string]bool{}, inUse: map[string]bool{}, mounted: map[string]string{},
		probes: map[string]Probe{}, stale: map[string]*types.Volume{}, known: map[string]types.InstanceStateName{}}
	s.store, s.reg = s.table, lease.Registry{Store: s.table}
	if _, err := s.reg.Init(t.Context(), "ci", lease.DefaultSettings()); err != nil {
		t.Fatal(err)
	}
	for i, v := range []string{v1, v2, v3} {
		s.volumes[v] = &types.Volume{VolumeId: aws.String(v), State: types.VolumeStateAvailable}
		if _, err := s.reg.Add(t.Context(), "ci", "z", lease.Volume{ID: v, SizeGiB: 1, Created: time.Now().Add(time.Duration(i) * time.Second)}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// pipes is a control socket without a kernel in it, for a bubble cannot wait on
// one.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *pipes) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipes) Addr() net.Addr { return nil }

func (s *stage) parts() Parts {
	return Parts{Store: s.store, EC2: NewEC2(s), Disks: disksAt{s}, Run: s.run, BootID: s.boot, Log: zap.NewNop(),
		Identify: func(context.Context) (Identity, error) {
			if s.me.Instance == "" {
				return Identity{}, errors.New("IMDS does not answer")
			}
			return s.me, nil
		},
		Credentials: func(context.Context) error { return nil },
		Elapsed:     func() time.Duration { return time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) },
		Listen: func(string) (net.Listener, error) {
			s.control = &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
			return s.control, nil
		}}
}

func (s *stage) agent(at string) *Agent {
	return NewAgent(s.parts(), Options{Pool: "ci", MountPoint: at, Timeout: time.Minute, AttachTimeout: 25 * time.Second})
}

// act is an agent that runs.
type act struct {
	*Agent
	s      *stage
	result Result
	after  time.Duration // when the result was there
	end    context.CancelFunc
	ended  chan error
}

// acquire starts an agent and waits for its result.
func (s *stage) acquire(change ...func(*Options)) *act {
	a := s.agent(point)
	for _, c := range change {
		c(&a.opt)
	}
	return s.start(a)
}

func (s *stage) start(a *Agent) *act {
	ctx, end := context.WithCancel(s.t.Context())
	x := &act{Agent: a, s: s, end: end, ended: make(chan error, 1)}
	began, told := time.Now(), make(chan Result, 1)
	go func() { x.ended <- a.Run(ctx, func(r Result) { told <- r }) }()
	x.result = <-told
	x.after = time.Since(began)
	return x
}

// stop ends the agent as SIGTERM does.
func (x *act) stop() {
	x.s.t.Helper()
	x.end()
	if err := <-x.ended; err != nil {
		x.s.t.Errorf("the agent ended with %v", err)
	}
}

// ask sends a request to the agent, as a command does.
func (x *act) ask(r request) answer {
	x.s.t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	x.s.control.conns <- theirs
	var a answer
	if err := errors.Join(json.NewEncoder(ours).Encode(r), json.NewDecoder(ours).Decode(&a)); err != nil {
		x.s.t.Fatal(err)
	}
	return a
}

func (x *act) reason() string {
	if x.result.Reason == nil {
		return x.result.Result
	}
	return x.result.Result + " " + string(*x.result.Reason)
}

func (s *stage) want(x *act, reason string) {
	s.t.Helper()
	if x.reason() != reason {
		m := ""
		if x.result.Message != nil {
			m = *x.result.Message
		}
		s.t.Errorf("ended in %s (%s), want %s", x.reason(), m, reason)
	}
	if x.after > x.opt.Timeout {
		s.t.Errorf("the result came after %v, of %v", x.after, x.opt.Timeout)
	}
}

func (s *stage) record(volume string) lease.Record {
	s.t.Helper()
	r, err := s.reg.Find(context.Background(), volume)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// allFree wants each volume free, unattached and without a failure.
func (s *stage) allFree() {
	s.t.Helper()
	for _, v := range []string{v1, v2, v3} {
		if r := s.record(v); r.State != lease.Free || r.Failures != 0 {
			s.t.Errorf("%s is %s, failures %d (%s), want it free", v, r.State, r.Failures, r.LastError)
		}
		if at := s.attachedTo(v); at != "" {
			s.t.Errorf("%s is attached to %s", v, at)
		}
	}
}

func (s *stage) attachedTo(volume string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.volumes[volume].Attachments; len(a) > 0 {
		return *a[0].InstanceId
	}
	return ""
}

func (s *stage) state() *State {
	s.t.Helper()
	state, err := s.run.Load(point)
	if err != nil {
		s.t.Fatal(err)
	}
	return state
}

// crash leaves what an agent leaves that is killed: the lease held, with the
// facts, and the state file.
func (s *stage) crash(volume string, facts lease.Facts, attached bool) {
	s.t.Helper()
	c, err := lease.New(lease.Config{Store: s.table, Pool: "ci", Zone: "z", Owner: me, MountPoint: point, Elapsed: s.parts().Elapsed})
	if err != nil {
		s.t.Fatal(err)
	}
	l, err := c.ClaimVolume(s.t.Context(), volume)
	if err != nil {
		s.t.Fatal(err)
	}
	if attached {
		s.attach(volume, me, types.VolumeAttachmentStateAttached)
		l.Note(facts)
		if err := l.Confirm(s.t.Context()); err != nil {
			s.t.Fatal(err)
		}
	}
	l.Abandon()
	if err := s.run.save(State{Schema: 1, BootID: s.boot, Pool: "ci", Zone: "z", Instance: me, MountPoint: point, Volume: volume}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) attach(volume, instance string, state types.VolumeAttachmentState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.volumes[volume].State = types.VolumeStateInUse
	s.volumes[volume].Attachments = []types.VolumeAttachment{{InstanceId: &instance, Device: aws.String("/dev/xvdaa"), State: state}}
	s.devices[volume] = instance == me && state == types.VolumeAttachmentStateAttached
}

// called tells whether a call was made, such as "detach vol-…".
func (s *stage) called(call string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.calls, call)
}

func refusal(code string) error { return &smithy.GenericAPIError{Code: code, Message: code} }

func (s *stage) ec2(op, volume string) error {
	s.calls = append(s.calls, op+" "+volume)
	if s.denied == op {
		return refusal("UnauthorizedOperation")
	}
	if s.throttle == op {
		return refusal("RequestLimitExceeded")
	}
	return nil
}

func (s *stage) AttachVolume(_ context.Context, in *ec2.AttachVolumeInput, _ ...func(*ec2.Options)) (*ec2.AttachVolumeOutput, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ec2("attach", *in.VolumeId); err != nil {
		return nil, err
	}
	switch v := s.volumes[*in.VolumeId]; {
	case s.noSuchMe:
		return nil, refusal("InvalidInstanceID.NotFound")
	case s.badZone:
		return nil, refusal("InvalidVolume.ZoneMismatch")
	case v.State != types.VolumeStateAvailable:
		return nil, refusal("VolumeInUse")
	default:
		v.State = types.VolumeStateInUse
		v.Attachments = []types.VolumeAttachment{{InstanceId: in.InstanceId, Device: in.Device, State: types.VolumeAttachmentStateAttaching}}
		switch {
		case s.taken > 0:
			time.AfterFunc(s.taken, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				v.State, v.Attachments = types.VolumeStateAvailable, nil
			})
		case !s.noDevice:
			v.Attachments[0].State = types.VolumeAttachmentStateAttached
			s.devices[*in.VolumeId] = true
		}
	}
	if s.loseNext {
		s.loseNext = false
		return nil, errors.New("connection reset by peer")
	}
	return &ec2.AttachVolumeOutput{}, nil
}

func (s *stage) DetachVolume(_ context.Context, in *ec2.DetachVolumeInput, _ ...func(*ec2.Options)) (*ec2.DetachVolumeOutput, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ec2("detach", *in.VolumeId); err != nil {
		return nil, err
	}
	v := s.volumes[*in.VolumeId]
	switch {
	case len(v.Attachments) == 0 || *v.Attachments[0].InstanceId != *in.InstanceId:
		return nil, refusal("IncorrectState")
	case s.stuck:
		v.Attachments[0].State = types.VolumeAttachmentStateDetaching
	default:
		if s.inUse[*in.VolumeId] {
			s.t.Errorf("%s was detached in use", *in.VolumeId)
		}
		v.State, v.Attachments = types.VolumeStateAvailable, nil
		delete(s.devices, *in.VolumeId)
	}
	return &ec2.DetachVolumeOutput{}, nil
}

func (s *stage) DescribeVolumes(_ context.Context, in *ec2.DescribeVolumesInput, _ ...func(*ec2.Options)) (*ec2.DescribeVolumesOutput, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &ec2.DescribeVolumesOutput{}
	if err := s.ec2("describe", in.Filters[0].Values[0]); err != nil {
		return nil, err
	}
	ids := in.Filters[0].Values
	if *in.Filters[0].Name == "attachment.instance-id" {
		instance := ids[0]
		ids = nil
		for _, v := range []string{v1, v2, v3} {
			if a := s.volumes[v].Attachments; len(a) > 0 && *a[0].InstanceId == instance {
				ids = append(ids, v)
			}
		}
	}
	for _, id := range ids {
		if old := s.stale[id]; old != nil {
			delete(s.stale, id)
			out.Volumes = append(out.Volumes, *old)
		} else if v := s.volumes[id]; v != nil {
			seen := *v
			seen.Attachments = slices.Clone(v.Attachments)
			out.Volumes = append(out.Volumes, seen)
		}
	}
	return out, nil
}

func (s *stage) DescribeInstances(_ context.Context, in *ec2.DescribeInstancesInput, _ ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &ec2.DescribeInstancesOutput{}
	if err := s.ec2("owner", in.Filters[0].Values[0]); err != nil {
		return nil, err
	}
	for _, id := range in.Filters[0].Values {
		if state := s.known[id]; state != "" {
			out.Reservations = append(out.Reservations, types.Reservation{Instances: []types.Instance{
				{InstanceId: &id, State: &types.InstanceState{Name: state}}}})
		}
	}
	return out, nil
}
func (s *stage) CreateTags(context.Context, *ec2.CreateTagsInput, ...func(*ec2.Options)) (*ec2.CreateTagsOutput, error) {
	return nil, nil
}
func (s *stage) DeleteVolume(context.Context, *ec2.DeleteVolumeInput, ...func(*ec2.Options)) (*ec2.DeleteVolumeOutput, error) {
	return nil, nil
}

// disksAt is the instance's disks.
type disksAt struct{ *stage }

func (s disksAt) MakePoint(at string, _ Root) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounted[at] != "" {
		return ErrAlreadyMounted
	}
	return nil
}
func (s disksAt) Listen() (Arrivals, error) { return s, nil }
func (s disksAt) Close() error              { return nil }
func (s disksAt) Wait(ctx context.Context, volume, _ string) (Disk, error) {
	if s.wait != nil {
		if err := s.wait(volume); err != nil {
			return nil, err
		}
	}
	for {
		s.mu.Lock()
		there := s.devices[volume]
		s.mu.Unlock()
		if there {
			return &diskAt{s.stage, volume}, nil
		}
		if !pause(ctx, 100*time.Millisecond) {
			return nil, &DiskError{Reason: ReasonMachine, Err: context.Cause(ctx)}
		}
	}
}
func (s disksAt) Attached() (list []AttachedVolume, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range []string{v1, v2, v3} {
		if s.devices[v] {
			mounted := false
			for _, m := range s.mounted {
				mounted = mounted || m == v
			}
			list = append(list, AttachedVolume{v, s.inUse[v] || mounted})
		}
	}
	return list, nil
}
func (s disksAt) MountedAt(at string) (Mounted, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch m := s.mounted[at]; m {
	case "", "dir":
		return Mounted{}, m != "", nil
	default:
		return Mounted{Volume: m, Device: "/dev/" + m}, true, nil
	}
}
func (s disksAt) BindMount(_, at string, _ Root) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounted[at] = "dir"
	return nil
}
func (s disksAt) Unmount(ctx context.Context, at string, _ bool) error {
	for {
		s.mu.Lock()
		if !s.busy {
			delete(s.mounted, at)
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		if !pause(ctx, 100*time.Millisecond) {
			return errors.New("busy: held by 1 (init)")
		}
	}
}
func (s disksAt) Usage(string) (Usage, error) { return Usage{}, nil }

type diskAt struct {
	s      *stage
	volume string
}

func (d *diskAt) Path() string   { return "/dev/" + d.volume }
func (d *diskAt) SizeGiB() int64 { return 1 }
func (d *diskAt) Probe(context.Context) (Probe, error) {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if p, ok := d.s.probes[d.volume]; ok {
		return p, nil
	}
	return Probe{Content: Blank}, nil
}
func (d *diskAt) Format(_ context.Context, fsType, fsUUID string, _ bool) error {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	d.s.calls = append(d.s.calls, "mkfs "+d.volume)
	d.s.probes[d.volume] = Probe{Content: HasData, FSType: fsType, FSUUID: fsUUID, Clean: true}
	return nil
}
func (d *diskAt) Check(context.Context, string) (bool, error) {
	if d.s.check != nil {
		return false, d.s.check(d.volume)
	}
	return false, nil
}
func (d *diskAt) Mount(_ context.Context, at string, _ MountOptions) error {
	if d.s.mount != nil {
		if err := d.s.mount(d.volume); err != nil {
			return err
		}
	}
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	d.s.mounted[at] = d.volume
	return nil
}
func (d *diskAt) Close() error { return nil }
