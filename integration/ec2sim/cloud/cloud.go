package cloud

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Config describes a region.
type Config struct {
	Zones       []string
	Timing      Timing
	AttachLimit int     // volumes an instance takes where RunInput doesn't say; 27 if zero
	Seed        uint64  // of ids and jitter
	Backend     Backend // nil: volumes get no device
	Log         *zap.Logger
	OnDevice    func(DeviceEvent) // told when a device came or went; may be nil
}

// A Cloud is one region of one account.
type Cloud struct {
	Faults Faults

	cfg Config
	log *zap.Logger

	mu        sync.Mutex
	rng       *rand.Rand
	volumes   map[string]*volume
	instances map[string]*instance
	tokens    map[string]token
	changed   chan struct{} // closed and replaced at every change
	closed    bool
	pending   sync.WaitGroup // timers' functions that run
}

// New makes an empty region.
func New(cfg Config) *Cloud {
	cfg.Timing = cfg.Timing.withDefaults()
	if cfg.Backend == nil {
		cfg.Backend = noBackend{}
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.AttachLimit == 0 {
		cfg.AttachLimit = 27
	}
	return &Cloud{
		cfg:       cfg,
		log:       cfg.Log,
		rng:       rand.New(rand.NewPCG(cfg.Seed, 0)),
		volumes:   map[string]*volume{},
		instances: map[string]*instance{},
		tokens:    map[string]token{},
		changed:   make(chan struct{}),
	}
}

// Close stops all that is under way, and closes the Backend.
func (c *Cloud) Close() error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if closed {
		return nil
	}
	c.Faults.ClearAll()
	c.pending.Wait()
	return c.cfg.Backend.Close()
}

// Wait returns when the condition holds; it is looked at again after every
// change of state.
func (c *Cloud) Wait(ctx context.Context, condition func() bool) error {
	for {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		if condition() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// notify wakes those who Wait; the caller holds the lock.
func (c *Cloud) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// after runs f, without the lock, once the span is over. The caller holds the
// lock.
func (c *Cloud) after(s Span, f func()) {
	c.After(s.Draw(c.rng), f)
}

// After runs f once the time is over, unless the Cloud is closed by then.
func (c *Cloud) After(d time.Duration, f func()) {
	time.AfterFunc(d, func() {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return
		}
		c.pending.Add(1)
		c.mu.Unlock()
		defer c.pending.Done()
		f()
	})
}

// A token remembers what a ClientToken made, so that a repeated request gets
// the same answer and makes nothing.
type token struct {
	request string
	ids     []string
}

// remembered returns what an earlier request with this token made.
func (c *Cloud) remembered(key, request string) ([]string, error) {
	t, ok := c.tokens[key]
	switch {
	case key == "" || !ok:
		return nil, nil
	case t.request != request:
		return nil, tokenReused(key)
	}
	return t.ids, nil
}

func (c *Cloud) remember(key, request string, ids ...string) {
	if key != "" {
		c.tokens[key] = token{request: request, ids: ids}
	}
}

func (c *Cloud) checkZone(zone string) error {
	if !slices.Contains(c.cfg.Zones, zone) {
		return noZone(zone)
	}
	return nil
}
