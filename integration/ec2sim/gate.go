package ec2sim

import (
	"maps"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/volpool/volpool/integration/ec2sim/cloud"
)

// gate is what a call meets before it reaches the cloud: it is counted, takes
// its time, and may be throttled or not allowed.
type gate struct {
	mu      sync.Mutex
	rng     *rand.Rand
	calls   map[string]map[string]int // by caller, by action
	latency map[string]cloud.Span
	buckets map[string]*bucket
	denied  map[string]bool
}

func newGate(seed uint64) *gate {
	return &gate{
		rng:     rand.New(rand.NewPCG(seed, 1)),
		calls:   map[string]map[string]int{},
		latency: map[string]cloud.Span{},
		buckets: map[string]*bucket{},
		denied:  map[string]bool{},
	}
}

// fastest is the least latency. No EC2 answers sooner, and the SDK isn't made
// for it: an answer that comes while net/http still looks for the end of the
// request's body lets smithy-go close that body, whose WriteTo then answers
// io.EOF for an error, and net/http cuts the connection, the rest of a large
// answer with it (smithy-go v1.28.8, safeWriteToReadCloser; "use of closed
// network connection", which the SDK's own retries take care of).
const fastest = 2 * time.Millisecond

// count notes a call and tells how long its way takes.
func (g *gate) count(action, caller string) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.calls[caller] == nil {
		g.calls[caller] = map[string]int{}
	}
	g.calls[caller][action]++
	span, ok := g.latency[action]
	if !ok {
		span = g.latency[""]
	}
	return max(span.Draw(g.rng), fastest)
}

// admit lets a call in, or refuses it.
func (g *gate) admit(action string, now time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b := g.buckets[action]; b != nil && !b.take(now) {
		return requestLimitExceeded()
	}
	if g.denied[action] {
		return unauthorized()
	}
	return nil
}

// RequestLimitExceeded comes with 503
// (https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html,
// server errors; https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html).
func requestLimitExceeded() error {
	return &cloud.Error{Code: "RequestLimitExceeded", Message: "Request limit exceeded.", Status: http.StatusServiceUnavailable}
}

// https://github.com/aws/aws-cli/issues/1574 shows both messages.
func unauthorized() error {
	return &cloud.Error{Code: "UnauthorizedOperation", Message: "You are not authorized to perform this operation.", Status: http.StatusForbidden}
}

// https://github.com/floci-io/floci/pull/3599 tells the status.
func dryRunSucceeded() error {
	return &cloud.Error{Code: "DryRunOperation", Message: "Request would have succeeded, but DryRun flag is set.", Status: http.StatusPreconditionFailed}
}

// Calls returns how often each action was called, refused calls included.
func (s *Sim) Calls() map[string]int {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	sum := map[string]int{}
	for _, calls := range s.gate.calls {
		for action, n := range calls {
			sum[action] += n
		}
	}
	return sum
}

// CallsBy returns the same of one caller: an instance that signs with the
// credentials of its IMDS, or, as "", all who have others.
func (s *Sim) CallsBy(instance string) map[string]int {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	return maps.Clone(s.gate.calls[instance])
}

// ResetCalls sets all counts to zero.
func (s *Sim) ResetCalls() {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	clear(s.gate.calls)
}

// SetLatency makes each call of an action take that long before it takes
// effect; an empty action stands for all that have none of their own.
func (s *Sim) SetLatency(action string, latency cloud.Span) {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	s.gate.latency[action] = latency
}

// SetBucket throttles an action; the bucket is full at first. A size of zero
// ends throttling.
func (s *Sim) SetBucket(action string, b Bucket) {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	delete(s.gate.buckets, action)
	if b.Size > 0 {
		s.gate.buckets[action] = newBucket(b, time.Now())
	}
}

// Deny takes the permission for these actions away, for everybody.
func (s *Sim) Deny(actions ...string) {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	for _, action := range actions {
		s.gate.denied[action] = true
	}
}

// Allow gives it back; for all actions, where none is named.
func (s *Sim) Allow(actions ...string) {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	if len(actions) == 0 {
		clear(s.gate.denied)
	}
	for _, action := range actions {
		delete(s.gate.denied, action)
	}
}
