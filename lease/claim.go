package lease

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Config says who claims, and where.
type Config struct {
	Store      Store
	Pool, Zone string
	Owner      string // the instance's id
	MountPoint string // which of the instance's holders this is
	BootID     string

	Elapsed func() time.Duration // nil: CLOCK_BOOTTIME, see [Elapsed]
	Rand    *rand.Rand           // nil: seeded by the runtime
	Log     *zap.Logger          // nil: no log
}

// Claimant takes leases for one owner in one zone of a pool. Its methods may be
// called concurrently.
type Claimant struct {
	Config
	clock     serverClock
	lostRaces atomic.Int64
	settling  sync.WaitGroup // claims of unknown outcome that are being undone

	mu       sync.Mutex // guards Rand, too
	settings Settings   // as last read
	known    bool       // they were read
}

// New returns a claimant.
func New(cfg Config) (*Claimant, error) {
	if err := CheckPoolName(cfg.Pool); err != nil {
		return nil, err
	}
	switch {
	case cfg.Store == nil:
		return nil, errors.New("lease: Config.Store is nil")
	case cfg.Zone == "":
		return nil, errors.New("lease: Config.Zone is empty")
	case cfg.Owner == "":
		return nil, errors.New("lease: Config.Owner is empty")
	}
	if cfg.Elapsed == nil {
		cfg.Elapsed = Elapsed
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	c := &Claimant{Config: cfg, settings: DefaultSettings()}
	c.clock.elapsed = cfg.Elapsed
	return c, nil
}

// LostRaces is how often another claimant was faster.
func (c *Claimant) LostRaces() int64 { return c.lostRaces.Load() }

// random is a number below n.
func (c *Claimant) random(n int) int { return int(c.about(time.Duration(n))) }

// about is a time below d.
func (c *Claimant) about(d time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Duration(c.Rand.Int64N(int64(d)))
}

// Settings are the pool's, as the last claim read them.
func (c *Claimant) Settings() Settings {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.settings
}

// Settle waits until every claim of unknown outcome that was given up has been
// undone. A process that claimed calls it before it ends.
func (c *Claimant) Settle() { c.settling.Wait() }

// windowGrowth is how much wider each lost race makes the window.
const windowGrowth = 16

// maxWindow bounds how many candidates one Query reads: an index entry has
// some 150 bytes, so that 64 of them cost about three read units.
const maxWindow = 64

// Claim takes the lowest-ordered free volume that is not in skip. Alone it is
// always the lowest, for two small requests; after each lost race it chooses at
// random within a window that grows, so that a herd spreads out instead of
// walking the list in step.
//
// It ends with [ErrNoFree], [ErrPaused], [ErrNoZone], a [*StoreError], or
// ctx's. Whatever the error, nothing stays held: a claim whose outcome is not
// known is undone in the background (see [Claimant.Settle]).
func (c *Claimant) Claim(ctx context.Context, skip map[string]bool) (*Lease, error) {
	skip = maps.Clone(skip)
	if skip == nil {
		skip = map[string]bool{}
	}
	rest := firstRest
	for window := 1; ; window = min(window*windowGrowth, maxWindow) {
		free, err := c.candidates(ctx, window, skip)
		if err != nil {
			return nil, err
		}
		pick := free[c.random(min(window, len(free)))]
		l, err := c.take(ctx, claim(pick.key(), pick.Generation, c.holder()), pick)
		switch {
		case errors.Is(err, errRaceLost):
			c.lostRaces.Add(1)
			if odd, ok := errors.AsType[*ItemError](err); ok {
				c.Log.Warn("left alone", zap.Error(odd))
				skip[pick.Volume] = true // the index will go on offering it
			}
		case errors.Is(err, errNotTried):
			// By the time that the table listens again the choice would be stale.
			if !c.rest(ctx, rest) {
				return nil, err
			}
			rest = min(2*rest, maxRest)
		default:
			return l, err
		}
	}
}

// candidates reads the settings and the first free volumes in one Query, and in
// a further one where all of them are entries that cannot be understood. Those
// are added to skip.
func (c *Claimant) candidates(ctx context.Context, n int, skip map[string]bool) ([]Record, error) {
	for {
		before := len(skip)
		found, err := c.query(ctx, n, skip)
		if err != nil || len(found) > 0 {
			return found, err
		}
		if len(skip) == before {
			return nil, ErrNoFree
		}
	}
}

func (c *Claimant) query(ctx context.Context, n int, skip map[string]bool) ([]Record, error) {
	limit := int32(1 + n + len(skip))
	in := List{Partition: Partition(c.Pool, c.Zone), Free: true, Limit: limit}
	page, err := again(ctx, c, func() (Page, error) { return c.Store.List(ctx, in) })
	if err != nil {
		return nil, err
	}
	c.clock.heard(page.Time)
	if len(page.Items) == 0 || text(page.Items[0], FreeSlot) != settingsSlot {
		return nil, ErrNoZone
	}
	s, err := c.learn(page.Items[0])
	if err != nil {
		return nil, err
	}
	if s.Paused {
		return nil, ErrPaused
	}
	var found []Record
	for _, item := range page.Items[1:] {
		if skip[text(item, SortKey)] {
			continue
		}
		pick, err := decodeFree(item)
		if err != nil {
			c.Log.Warn("left alone", zap.Error(err))
			skip[text(item, SortKey)] = true
			continue
		}
		found = append(found, pick)
	}
	return found, nil
}

// learn keeps the zone's settings.
func (c *Claimant) learn(item Item) (Settings, error) {
	s, err := decodeSettings(Key{Partition(c.Pool, c.Zone), settingsItem}, item[aSettings])
	if err != nil {
		return Settings{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settings, c.known = s, true
	return s, nil
}

// acquaint reads the zone's settings and DynamoDB's clock for those who have
// not claimed before: a restarted process, a janitor. Without the clock nothing
// that carries a time may be written.
func (c *Claimant) acquaint(ctx context.Context) error {
	c.mu.Lock()
	known := c.known
	c.mu.Unlock()
	if known {
		return nil
	}
	reply, err := again(ctx, c, func() (Reply, error) {
		return c.Store.Read(ctx, Key{Partition(c.Pool, c.Zone), settingsItem})
	})
	if err != nil {
		return err
	}
	c.clock.heard(reply.Time)
	if _, err := c.learn(reply.Item); err != nil {
		c.Log.Warn("the defaults are used instead", zap.Error(err)) // what is held is still to be kept
	}
	return nil
}

// ClaimVolume claims one given volume if it is free: what a holder does that
// finds itself still attached and its item free.
func (c *Claimant) ClaimVolume(ctx context.Context, volume string) (*Lease, error) {
	for {
		r, _, err := c.Look(ctx, volume)
		if err != nil {
			return nil, err
		}
		if r.State != Free {
			return nil, &StateError{Op: "claim", Record: r}
		}
		if err := c.acquaint(ctx); err != nil {
			return nil, err
		}
		l, err := c.take(ctx, claim(r.key(), r.Generation, c.holder()), r)
		if !errors.Is(err, errNotTried) || !c.rest(ctx, firstRest) {
			return l, err
		}
	}
}

// TakeOver claims a held lease exactly as it was observed. Whether it may be
// taken is for the caller to have decided: see Judge.
func (c *Claimant) TakeOver(ctx context.Context, r Record) (*Lease, error) {
	if err := c.acquaint(ctx); err != nil {
		return nil, err
	}
	return c.take(ctx, takeOver(r, c.holder()), r)
}

// Readopt claims this owner's own lease after a restart, at a generation of its
// own: whatever the former process still has under way then changes nothing.
// The caller has made sure that no other process of this machine lives that
// holds the record's mount point.
func (c *Claimant) Readopt(ctx context.Context, r Record) (*Lease, error) {
	if r.State != Held || r.Owner != c.Owner {
		return nil, &StateError{Op: "re-adopt", Record: r}
	}
	if err := c.acquaint(ctx); err != nil {
		return nil, err
	}
	return c.take(ctx, readopt(r, c.holder()), r)
}

// Look reads a volume's record in this pool and zone, with DynamoDB's time.
func (c *Claimant) Look(ctx context.Context, volume string) (Record, time.Time, error) {
	reply, err := again(ctx, c, func() (Reply, error) {
		return c.Store.Read(ctx, Key{Partition(c.Pool, c.Zone), volume})
	})
	if err != nil {
		return Record{}, time.Time{}, err
	}
	c.clock.heard(reply.Time)
	if reply.Item == nil {
		return Record{}, reply.Time, fmt.Errorf("%s in %s/%s: %w", volume, c.Pool, c.Zone, ErrNoVolume)
	}
	r, err := Decode(reply.Item)
	return r, reply.Time, err
}
