package leasetest

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/volpool/volpool/lease"
)

// Faulty is a store between the code under test and another store. It keeps a
// record of the calls, and lets them fail as a network does.
type Faulty struct {
	Store lease.Store

	mu     sync.Mutex
	calls  []Call
	rules  []*rule
	mean   time.Duration
	jitter float64
	rand   *rand.Rand
	copies sync.WaitGroup
}

// NewFaulty returns a store on top of another, without any fault yet.
func NewFaulty(store lease.Store) *Faulty { return &Faulty{Store: store} }

// Fault is what happens to one call. The zero value lets it pass.
type Fault struct {
	// Hold keeps the call from the store. Where the caller gives up first, the
	// store is never asked.
	Hold Wait
	// Fail is the answer, and the store is never asked.
	Fail error
	// HoldReply keeps the reply from the caller.
	HoldReply Wait
	// Lose answers [Unreachable] after the store has done as asked.
	Lose bool
	// Again sends a copy of the call to the store later, whatever came of the
	// call itself, as a network that delivers late does.
	Again Wait
}

// Wait is until when something is kept waiting: until the channel is closed that
// it returns, at each call its own.
type Wait func() <-chan struct{}

// After waits for a time.
func After(d time.Duration) Wait {
	return func() <-chan struct{} {
		c := make(chan struct{})
		time.AfterFunc(d, func() { close(c) })
		return c
	}
}

// Until waits for a test to close the gate; a nil gate never opens.
func Until(gate <-chan struct{}) Wait { return func() <-chan struct{} { return gate } }

// Unreachable is an answer of the network's.
func Unreachable() error {
	return &lease.StoreError{Op: "call", Kind: lease.ErrUnreachable, Err: errors.New("connection reset by peer")}
}

// Throttled is an answer of DynamoDB's to those who ask too much.
func Throttled() error {
	return &lease.StoreError{Op: "call", Kind: lease.ErrThrottled, Err: errors.New("rate exceeded")}
}

// Denied is an answer of IAM's.
func Denied() error {
	return &lease.StoreError{Op: "call", Kind: lease.ErrDenied, Err: errors.New("not authorized")}
}

type rule struct {
	match func(Call) bool
	left  int
	fault Fault
}

// Inject lets the next calls that match meet a fault; times below zero is
// without end. The first rule that matches a call is the one that counts. match
// may use the store. The returned function ends the rule.
func (f *Faulty) Inject(match func(Call) bool, times int, fault Fault) (stop func()) {
	r := &rule{match, times, fault}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = append(f.rules, r)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		r.left = 0
	}
}

// Latency makes every call take its time, half of it on the way out and half on
// the way back: mean, give or take a part of it.
func (f *Faulty) Latency(mean time.Duration, jitter float64, r *rand.Rand) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mean, f.jitter, f.rand = mean, jitter, r
}

// Calls are all calls so far, in the order of their arrival, those that failed
// included and copies left out.
func (f *Faulty) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Call(nil), f.calls...)
}

// Settle waits until all copies have reached the store.
func (f *Faulty) Settle() { f.copies.Wait() }

// Write passes a write on.
func (f *Faulty) Write(ctx context.Context, w lease.Write) (lease.Reply, error) {
	return through(ctx, f, Call{Writes: []lease.Write{w}}, func(ctx context.Context) (lease.Reply, error) {
		return f.Store.Write(ctx, w)
	})
}

// WriteAll passes a transaction on.
func (f *Faulty) WriteAll(ctx context.Context, ws []lease.Write) (lease.Reply, error) {
	return through(ctx, f, Call{Writes: ws, Transaction: true}, func(ctx context.Context) (lease.Reply, error) {
		return f.Store.WriteAll(ctx, ws)
	})
}

// Read passes a read on.
func (f *Faulty) Read(ctx context.Context, key lease.Key) (lease.Reply, error) {
	return through(ctx, f, Call{Read: &key}, func(ctx context.Context) (lease.Reply, error) {
		return f.Store.Read(ctx, key)
	})
}

// List passes a list on.
func (f *Faulty) List(ctx context.Context, in lease.List) (lease.Page, error) {
	return through(ctx, f, Call{List: &in}, func(ctx context.Context) (lease.Page, error) {
		return f.Store.List(ctx, in)
	})
}

func through[T any](ctx context.Context, f *Faulty, call Call, send func(context.Context) (T, error)) (T, error) {
	var none T
	fault, way := f.meet(call)
	if fault.Again != nil {
		late, arrival := context.WithoutCancel(ctx), fault.Again()
		f.copies.Go(func() {
			<-arrival
			_, _ = send(late) // nobody listens
		})
	}
	if err := errors.Join(way(ctx), fault.Hold.wait(ctx)); err != nil {
		return none, gone(err)
	}
	if fault.Fail != nil {
		return none, fault.Fail
	}
	got, err := send(ctx)
	if late := errors.Join(way(ctx), fault.HoldReply.wait(ctx)); late != nil {
		return none, gone(late)
	}
	if fault.Lose {
		return none, Unreachable()
	}
	return got, err
}

// meet notes a call and finds what happens to it; way is one way through the
// network.
func (f *Faulty) meet(call Call) (fault Fault, way func(context.Context) error) {
	call.At = time.Now()
	f.mu.Lock()
	f.calls = append(f.calls, call)
	rules := slices.Clone(f.rules)
	half := time.Duration(0)
	if f.mean > 0 {
		half = time.Duration(float64(f.mean) / 2 * (1 + f.jitter*(2*f.rand.Float64()-1)))
	}
	f.mu.Unlock()
	for _, r := range rules {
		if r.match(call) && f.spend(r) {
			fault = r.fault
			break
		}
	}
	return fault, func(ctx context.Context) error {
		if half == 0 {
			return nil
		}
		timer := time.NewTimer(half)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// spend uses a rule once, if it is still to be used.
func (f *Faulty) spend(r *rule) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.left == 0 {
		return false
	}
	r.left--
	return true
}

func (w Wait) wait(ctx context.Context) error {
	if w == nil {
		return nil
	}
	select {
	case <-w():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func gone(err error) error {
	return &lease.StoreError{Op: "call", Kind: lease.ErrUnreachable, Err: err}
}
