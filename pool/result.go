package pool

import "github.com/volpool/volpool/lease"

// What an acquire ends in.
const (
	Warm     = "warm"     // a used filesystem
	Cold     = "cold"     // a fresh one
	Fallback = "fallback" // a plain directory
)

// Reason says why a result is cold or a fallback. The list is closed, and is
// told in the documentation.
type Reason string

// The reasons of a cold result.
const (
	ReasonNew      Reason = "new"      // the volume was blank
	ReasonWiped    Reason = "wiped"    // an operator had it marked for wiping
	ReasonRepaired Reason = "repaired" // its formatting had been broken off
)

// The reasons of a fallback.
const (
	ReasonPaused        Reason = "paused"            // the pool is paused
	ReasonNoFree        Reason = "no_free_volume"    // all volumes of the zone are in use
	ReasonNoZone        Reason = "no_volume_in_zone" // the pool has none in this zone
	ReasonNoPool        Reason = "unknown_pool"      // there is no such pool
	ReasonNoTable       Reason = "unknown_table"     // there is no such table, or it is not volpool's
	ReasonThrottled     Reason = "throttled"         // AWS would not answer so many at once
	ReasonDenied        Reason = "denied"            // a permission is missing
	ReasonUnreachable   Reason = "unreachable"       // DynamoDB or EC2 cannot be reached
	ReasonNoIdentity    Reason = "no_identity"       // the instance cannot learn who it is
	ReasonNoCredentials Reason = "no_credentials"    // there is nothing to sign requests with
	ReasonInUse         Reason = "volume_in_use"     // EC2 has the volumes attached elsewhere
	ReasonAttachLimit   Reason = "attachment_limit"  // the instance can take no more volumes
	ReasonAttachFailed  Reason = "attach_failed"     // EC2 refused the attach, or took it back
	ReasonAttachTimeout Reason = "attach_timeout"    // EC2 did not finish the attach
	ReasonDeviceTimeout Reason = "device_timeout"    // attached, says EC2, and no device came
	ReasonBadVolume     Reason = "bad_volume"        // the content is not what the table records, or is damaged
	ReasonMachine       Reason = "machine"           // a tool or a permission is missing on the machine
	ReasonRepairing     Reason = "repairing"         // a check or a format goes on in the background
	ReasonMountPoint    Reason = "mount_point_busy"  // something else is mounted there
	ReasonLost          Reason = "lease_lost"        // the lease was lost before the mount
	ReasonTimeout       Reason = "timeout"           // the deadline came
	ReasonInterrupted   Reason = "interrupted"       // the agent was told to end
	ReasonNoAgent       Reason = "agent_failed"      // the agent ended without a result
	ReasonBadRecord     Reason = "bad_record"        // the table holds what this version cannot read
)

// Passing tells whether trying again later may end better.
func (r Reason) Passing() bool {
	switch r {
	case ReasonNoFree, ReasonThrottled, ReasonUnreachable, ReasonInUse, ReasonAttachFailed, ReasonAttachTimeout,
		ReasonDeviceTimeout, ReasonBadVolume, ReasonRepairing, ReasonLost, ReasonTimeout, ReasonInterrupted,
		ReasonNoAgent, ReasonPaused, ReasonNoIdentity:
		return true
	}
	return false
}

// Result is what acquire prints: every key is always there, and null where it
// has no value.
type Result struct {
	Schema      int      `json:"schema"`
	Result      string   `json:"result"`
	Reason      *Reason  `json:"reason"`
	Message     *string  `json:"message"`
	Hint        *string  `json:"hint"`
	Pool        string   `json:"pool"`
	Zone        *string  `json:"zone"`
	Instance    *string  `json:"instance"`
	Volume      *string  `json:"volume"`
	Device      *string  `json:"device"`
	MountPoint  string   `json:"mount_point"`
	Filesystem  *string  `json:"filesystem"`
	SizeGiB     *int64   `json:"size_gib"`
	UsedPercent *int64   `json:"used_percent"`
	Generation  *int64   `json:"generation"`
	Uses        *int64   `json:"uses"`
	IdleSeconds *float64 `json:"idle_seconds"`
	LostRaces   int64    `json:"lost_races"`
	Seconds     Seconds  `json:"seconds"`
}

// Seconds is how long each part took; null for one that was not come to.
type Seconds struct {
	Claim   *float64 `json:"claim"`
	Attach  *float64 `json:"attach"`
	Device  *float64 `json:"device"`
	Prepare *float64 `json:"prepare"`
	Mount   *float64 `json:"mount"`
	Total   *float64 `json:"total"`
}

// failure is a step that did not end well, and what follows from it.
type failure struct {
	reason Reason
	err    error
	hint   string
	blame  blame
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// blame decides what becomes of the volume and of the acquire.
type blame int

const (
	blameNone   blame = iota // nobody's: the volume goes back, the acquire ends
	blameRace                // somebody else has it: the volume goes back, the next one is tried
	blameVolume              // the volume's: it is quarantined, the next one is tried
	blameLost                // the lease is no longer ours: nothing to give back but the attachment
)

// fallbackOf says what a failure means for who asked.
func (a *Agent) fallbackOf(f *failure) Result {
	r := a.result(Fallback)
	message := f.err.Error()
	r.Reason, r.Message = &f.reason, &message
	hint := f.hint
	if hint == "" {
		hint = remedies(f.reason, a.opt.Pool)
	}
	if hint != "" {
		r.Hint = &hint
	}
	return r
}

// result begins a result with what is known of the instance by now.
func (a *Agent) result(kind string) Result {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := Result{Schema: 1, Result: kind, Pool: a.opt.Pool, MountPoint: a.opt.MountPoint, Seconds: a.seconds}
	if a.id.Zone != "" {
		r.Zone = new(a.id.Zone)
	}
	if a.id.Instance != "" {
		r.Instance = new(a.id.Instance)
	}
	if a.claimant != nil {
		r.LostRaces = a.claimant.LostRaces()
	}
	r.Seconds.Total = seconds(a.began, a.elapsed())
	return r
}

func remedies(reason Reason, pool string) string {
	switch reason {
	case ReasonPaused:
		return "volpool pool resume " + pool
	case ReasonNoFree, ReasonNoZone:
		return "volpool pool add " + pool + " VOLUME"
	case ReasonNoPool:
		return "volpool pool init " + pool
	case ReasonNoTable:
		return "volpool pool init makes the table; --table and --region name another one"
	case ReasonNoIdentity:
		return "is this an EC2 instance with IMDSv2 on, and not in a container? else give --instance-id and --zone"
	case ReasonNoCredentials:
		return "give the instance a role (an instance profile)"
	case ReasonDenied:
		return "compare the instance's role with the policy in the README"
	case ReasonAttachLimit:
		return "the instance type takes no more volumes: detach one, or choose a larger type"
	}
	return ""
}

// Facts of the lease's package, as pointers.
func phase(p lease.Phase) *lease.Phase { return &p }
