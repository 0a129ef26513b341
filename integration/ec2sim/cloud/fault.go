package cloud

import (
	"sync"
	"time"
)

// A Kind names what goes wrong.
type Kind string

// Faults of an attachment, taken when AttachVolume or DetachVolume is
// accepted.
const (
	// StuckAttaching leaves the attachment attaching, without a device, until
	// it is detached (https://github.com/kubernetes-sigs/aws-ebs-csi-driver/issues/2833).
	StuckAttaching Kind = "stuck-attaching"
	// NoDevice attaches the volume, but no device shows
	// (https://github.com/runs-on/runs-on/issues/533).
	NoDevice Kind = "no-device"
	// DeviceFirst shows the device before AttachVolume answers.
	DeviceFirst Kind = "device-first"
	// KeyRefused lets the attachment fail late, and the volume become available
	// again: EC2 could not use the volume's KMS key
	// (https://docs.aws.amazon.com/ebs/latest/userguide/ebs-cloud-watch-events.html
	// has the event of a volume that "fails to attach"). Where EC2 knows at
	// once, it refuses with CustomerKeyHasBeenRevoked, which is an APIError
	// (https://github.com/kubernetes/kubernetes/issues/62171).
	KeyRefused Kind = "key-refused"
	// BusyDetach keeps the attachment busy, as a volume that is mounted, until
	// the fault is cleared or the detach is forced
	// (https://github.com/kubernetes-sigs/aws-ebs-csi-driver/issues/1032).
	BusyDetach Kind = "busy-detach"
)

// Faults of a call.
const (
	// APIError answers with Code, Message and Status, and does nothing.
	APIError Kind = "api-error"
	// RequestLost closes the connection before anything took effect.
	RequestLost Kind = "request-lost"
	// ReplyLost closes the connection after all took effect.
	ReplyLost Kind = "reply-lost"
	// Duplicate executes the call once more, after Delay.
	Duplicate Kind = "duplicate"
	// Stale answers a Describe with the state of Delay ago
	// (https://github.com/kubernetes/kubernetes/issues/85675).
	Stale Kind = "stale"
	// Hold keeps back the reply, after all took effect, until the fault is
	// cleared, or until as many as Callers wait; then all of these go on.
	Hold Kind = "hold"
)

// A Fault says what goes wrong, for whom, and how often. What is empty matches
// everything.
type Fault struct {
	Kind     Kind
	Action   string // AttachVolume and so on
	Volume   string
	Instance string
	Times    int // so often; zero is until cleared

	Delay   time.Duration // Stale, Duplicate
	Code    string        // APIError
	Message string
	Status  int // 400 if zero
	Callers int // Hold
}

// An Injection is a Fault that was injected.
type Injection struct {
	ID    int
	Fault Fault

	set     *Faults
	left    int // of Times
	hits    int
	cleared chan struct{}
	round   chan struct{} // closed when the present callers of a Hold may go on
	waiting int
}

// Faults is the set of faults that were injected and not cleared.
type Faults struct {
	mu     sync.Mutex
	lastID int
	list   []*Injection
}

// Inject adds a fault.
func (s *Faults) Inject(f Fault) *Injection {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastID++
	i := &Injection{ID: s.lastID, Fault: f, set: s, left: f.Times, cleared: make(chan struct{}), round: make(chan struct{})}
	s.list = append(s.list, i)
	return i
}

// Get returns an injection by its ID, or nil.
func (s *Faults) Get(id int) *Injection {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.list {
		if i.ID == id {
			return i
		}
	}
	return nil
}

// All returns the injections that were not cleared.
func (s *Faults) All() []*Injection {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*Injection(nil), s.list...)
}

// ClearAll ends all faults.
func (s *Faults) ClearAll() {
	for _, i := range s.All() {
		i.Clear()
	}
}

// Take uses up one of the first fault of this kind that matches; nil if there
// is none.
func (s *Faults) Take(kind Kind, action, volume, instance string) *Injection {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.list {
		if i.Fault.Kind == kind && i.Fault.matches(action, volume, instance) && (i.Fault.Times == 0 || i.left > 0) {
			i.left--
			i.hits++
			return i
		}
	}
	return nil
}

func (f Fault) matches(action, volume, instance string) bool {
	return (f.Action == "" || f.Action == action) &&
		(f.Volume == "" || f.Volume == volume) &&
		(f.Instance == "" || f.Instance == instance)
}

// Clear ends the fault; who waits at a Hold goes on.
func (i *Injection) Clear() {
	i.set.mu.Lock()
	defer i.set.mu.Unlock()
	if i.over() {
		return
	}
	close(i.cleared)
	for k, other := range i.set.list {
		if other == i {
			i.set.list = append(i.set.list[:k:k], i.set.list[k+1:]...)
			return
		}
	}
}

// Hits tells how often the fault struck.
func (i *Injection) Hits() int {
	i.set.mu.Lock()
	defer i.set.mu.Unlock()
	return i.hits
}

// Waiting tells how many callers a Hold keeps at the moment.
func (i *Injection) Waiting() int {
	i.set.mu.Lock()
	defer i.set.mu.Unlock()
	return i.waiting
}

func (i *Injection) over() bool {
	select {
	case <-i.cleared:
		return true
	default:
		return false
	}
}

// Await holds a caller, as Hold says, or until it goes away.
func (i *Injection) Await(done <-chan struct{}) {
	i.set.mu.Lock()
	i.waiting++
	round := i.round
	if i.Fault.Callers > 0 && i.waiting >= i.Fault.Callers {
		close(i.round)
		i.round = make(chan struct{})
		i.waiting = 0
	}
	i.set.mu.Unlock()
	select {
	case <-round:
		return
	case <-i.cleared:
	case <-done:
	}
	i.set.mu.Lock()
	defer i.set.mu.Unlock()
	if round == i.round {
		i.waiting--
	}
}

// Valid tells whether there is such a kind.
func (k Kind) Valid() bool {
	switch k {
	case StuckAttaching, NoDevice, DeviceFirst, KeyRefused, BusyDetach,
		APIError, RequestLost, ReplyLost, Duplicate, Stale, Hold:
		return true
	}
	return false
}
