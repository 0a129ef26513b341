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

	"github.com/google/uuid"
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

// maxWindow bounds how many candidates one Query reads: an index entry has
// some 150 bytes, so that 96 of them cost about four read units.
const maxWindow = 96

// Claim takes the lowest-ordered free volume that is not in skip. Alone it is
// always the lowest, for two small requests; after each lost race it chooses at
// random within a window that grows eightfold, so that a herd spreads out
// instead of walking the list in step.
//
// It ends with [ErrNoFree], [ErrPaused], [ErrNoZone], a [*StoreError], or
// ctx's. Whatever the error, nothing stays held: a claim whose outcome is not
// known is undone in the background (see [Claimant.Settle]).
func (c *Claimant) Claim(ctx context.Context, skip map[string]bool) (*Lease, error) {
	skip = maps.Clone(skip)
	if skip == nil {
		skip = map[string]bool{}
	}
	for window := 1; ; window = min(window*8, maxWindow) {
		free, err := c.candidates(ctx, window, skip)
		if err != nil {
			return nil, err
		}
		pick := free[c.random(min(window, len(free)))]
		l, err := c.take(ctx, claim(pick.key(), pick.Generation, c.holder()), pick)
		if !errors.Is(err, errRaceLost) {
			return l, err
		}
		c.lostRaces.Add(1)
		if odd, ok := errors.AsType[*ItemError](err); ok {
			c.Log.Warn("left alone", zap.Error(odd))
			skip[pick.Volume] = true // the index will go on offering it
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
	return c.take(ctx, claim(r.key(), r.Generation, c.holder()), r)
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

// IsRaceLost tells whether a claim failed because another was faster.
func IsRaceLost(err error) bool { return errors.Is(err, errRaceLost) }

var errRaceLost = errors.New("another claimant was faster")

func (c *Claimant) holder() holder {
	return holder{owner: c.Owner, attempt: uuid.NewString(), mountPoint: c.MountPoint, bootID: c.BootID,
		lease: c.Settings().Lease, now: c.clock.now()}
}

// take sends a claim until its outcome is known. seen is the record it is
// conditional on.
func (c *Claimant) take(ctx context.Context, w Write, seen Record) (*Lease, error) {
	attempt, g := text(w.Set, aAttempt), seen.Generation
	start := c.Elapsed() // the lease counts from before the first send
	unknown := false
	reply, err := again(ctx, c, func() (Reply, error) {
		reply, err := c.Store.Write(ctx, w)
		unknown = unknown || !final(err)
		return reply, err
	})
	if err == nil {
		c.clock.heard(reply.Time)
		return c.held(ctx, reply.Item, seen, attempt, start)
	}
	failed, refused := errors.AsType[*ConditionError](err)
	if !refused {
		if unknown {
			c.undo(ctx, seen, attempt)
		}
		return nil, err
	}
	c.clock.heard(failed.Time)
	now, err := Decode(failed.Item)
	switch {
	case err != nil: // deleted, or of a newer schema
		return nil, fmt.Errorf("%w: %w", errRaceLost, err)
	case mine(now, g+1, attempt): // an earlier try had landed, and its reply was lost
		return c.held(ctx, failed.Item, seen, attempt, start)
	case seen.State == Free && now.State != Held && now.Generation == g:
		// Refused for its state, at a generation that may come back to free: a
		// copy of this claim that is still under way could land then.
		c.undo(ctx, now, attempt)
	}
	return nil, fmt.Errorf("claim %s at generation %d: %w", w.Key.Item, g, errRaceLost)
}

func (c *Claimant) held(ctx context.Context, item Item, seen Record, attempt string, start time.Duration) (*Lease, error) {
	r, err := Decode(item)
	if err != nil {
		// Held by us and yet not readable, so that it was edited by hand:
		// nobody could take it over. It goes back as it was.
		c.undo(ctx, seen, attempt)
		return nil, fmt.Errorf("%w: %w", errRaceLost, err)
	}
	return newLease(c, r, start), nil
}

// undo has a claim undone in the background. A re-adoption is not undone: the
// volume may be mounted, and is held by this instance whether it landed or not.
func (c *Claimant) undo(ctx context.Context, seen Record, attempt string) {
	if seen.State == Held && seen.Owner == c.Owner {
		return
	}
	c.settling.Go(func() { c.abandon(ctx, seen, attempt) })
}

// abandon undoes a claim of unknown outcome: it releases it, and where that is
// refused because the claim has not landed, it sees to it that it never can: it
// burns the generation, or frees what was to be taken over.
func (c *Claimant) abandon(ctx context.Context, seen Record, attempt string) {
	// Longer than this it need not try: by then the lease is silent.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*c.Settings().Lease+5*time.Second)
	defer cancel()
	key, g := seen.key(), seen.Generation
	w := release(key, g+1, attempt, false, released{settings: c.Settings(), record: seen})
	for {
		_, err := again(ctx, c, func() (Reply, error) { return c.Store.Write(ctx, w) })
		failed, refused := errors.AsType[*ConditionError](err)
		if !refused {
			if err != nil {
				c.Log.Error("a claim of unknown outcome could not be undone",
					zap.String("volume", key.Item), zap.Int64("generation", g+1), zap.Error(err))
			}
			return
		}
		now, err := Decode(failed.Item)
		switch {
		case err != nil:
			return
		case mine(now, g+1, attempt):
			w = release(key, g+1, attempt, now.Draining, released{settings: c.Settings(), record: now})
		case now.State != Held && now.Generation == g:
			w = burn(key, g)
		case now.State == Held && now.Generation == g && now.Attempt == seen.Attempt && now.Beat == seen.Beat:
			// A takeover that may still land. Whoever may take the lease may
			// free it, on the same condition, and then it cannot.
			w = freeAbandoned(now, released{settings: c.Settings(), record: now})
		default:
			return // undone, or it can never land any more
		}
	}
}

// mine tells whether a record is held at this generation by this attempt.
func mine(r Record, g int64, attempt string) bool {
	return r.State == Held && r.Generation == g && r.Attempt == attempt
}
