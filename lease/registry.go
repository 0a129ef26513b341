package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// Pool is a pool's own item: its settings, and the zones it has volumes in.
type Pool struct {
	Name     string
	Settings Settings
	Zones    []string
	Rev      int64
}

// Home is where a volume is registered.
type Home struct{ Pool, Zone string }

// Registry is the operator's side of the table: pools, their settings, and the
// volumes that belong to them. Every change is conditional on what was read, and
// tried again where somebody else's came in between.
type Registry struct{ Store Store }

// PoolExistsError refuses to make a pool that is there.
type PoolExistsError struct{ Pool Pool }

func (e *PoolExistsError) Error() string { return fmt.Sprintf("pool %q exists already", e.Pool.Name) }

// Init makes a pool.
func (g Registry) Init(ctx context.Context, name string, s Settings) (Pool, error) {
	if err := errors.Join(CheckPoolName(name), s.Validate()); err != nil {
		return Pool{}, err
	}
	p := Pool{Name: name, Settings: s}
	w := poolWrite(p)
	_, err := g.Store.Write(ctx, w)
	if _, refused := errors.AsType[*ConditionError](err); refused {
		there, err := g.Pool(ctx, name)
		if err != nil {
			return Pool{}, err
		}
		return there, &PoolExistsError{there}
	}
	p.Rev = 1
	return p, err
}

// Pool reads a pool. It ends with [ErrNoPool] where there is none.
func (g Registry) Pool(ctx context.Context, name string) (Pool, error) {
	if err := CheckPoolName(name); err != nil {
		return Pool{}, err
	}
	key := Key{name, poolItem}
	reply, err := g.Store.Read(ctx, key)
	if err != nil {
		return Pool{}, err
	}
	if reply.Item == nil {
		return Pool{}, fmt.Errorf("pool %q: %w", name, ErrNoPool)
	}
	d := decoder{item: reply.Item, key: key}
	p := Pool{Name: name, Rev: d.num(aRev, true)}
	if d.num(aSchema, true) != Schema {
		d.fail(aSchema, "was written by a newer version")
	}
	if d.err != nil {
		return Pool{}, d.err
	}
	if zones, ok := reply.Item[aZones].(*types.AttributeValueMemberSS); ok {
		p.Zones = slices.Sorted(slices.Values(zones.Value))
	}
	p.Settings, err = decodeSettings(key, reply.Item[aSettings])
	return p, err
}

// Set changes a pool's settings, in its own item and in every zone's copy.
func (g Registry) Set(ctx context.Context, name string, change func(*Settings)) (Pool, error) {
	var p Pool
	err := g.insist(func() (err error) {
		if p, err = g.Pool(ctx, name); err != nil {
			return err
		}
		change(&p.Settings)
		if err := p.Settings.Validate(); err != nil {
			return err
		}
		writes := []Write{poolWrite(p)}
		for _, zone := range p.Zones {
			writes = append(writes, zoneSettings(p, zone))
		}
		_, err = g.Store.WriteAll(ctx, writes)
		p.Rev++
		return err
	})
	return p, err
}

// Home finds a volume's pool and zone by its id. It ends with [ErrNoVolume]
// where no pool ever had it.
func (g Registry) Home(ctx context.Context, volume string) (Home, error) {
	if err := CheckVolumeID(volume); err != nil {
		return Home{}, err
	}
	key := Key{volume, volumeItem}
	reply, err := g.Store.Read(ctx, key)
	if err != nil {
		return Home{}, err
	}
	if reply.Item == nil {
		return Home{}, fmt.Errorf("%s: %w", volume, ErrNoVolume)
	}
	d := decoder{item: reply.Item, key: key}
	return Home{Pool: d.str(aPool, true), Zone: d.str(aZone, true)}, d.err
}

// Find reads a volume's record by its id alone.
func (g Registry) Find(ctx context.Context, volume string) (Record, error) {
	home, err := g.Home(ctx, volume)
	if err != nil {
		return Record{}, err
	}
	return g.record(ctx, home, volume)
}

func (g Registry) record(ctx context.Context, home Home, volume string) (Record, error) {
	reply, err := g.Store.Read(ctx, Key{Partition(home.Pool, home.Zone), volume})
	if err != nil {
		return Record{}, err
	}
	if reply.Item == nil {
		return Record{}, fmt.Errorf("%s in %s/%s: %w", volume, home.Pool, home.Zone, ErrNoVolume)
	}
	return Decode(reply.Item)
}

// RegisteredError refuses to add a volume that serves somewhere already.
type RegisteredError struct{ Record Record }

func (e *RegisteredError) Error() string {
	return fmt.Sprintf("%s is in pool %q already, %s", e.Record.Volume, e.Record.Pool, e.Record.State)
}

// Add registers a volume in a pool's zone, or brings a retired one back. Its
// generation never starts again, whatever pool it served in before. The volume's
// item, the note of where it belongs, and a zone that is new to the pool are
// written in one transaction.
func (g Registry) Add(ctx context.Context, pool, zone string, v Volume) (Record, error) {
	if err := CheckVolumeID(v.ID); err != nil {
		return Record{}, err
	}
	err := g.insist(func() error {
		p, err := g.Pool(ctx, pool)
		if err != nil {
			return err
		}
		to := Home{pool, zone}
		writes, err := g.adding(ctx, p, to, v)
		if err != nil {
			return err
		}
		if !slices.Contains(p.Zones, zone) {
			p.Zones = append(p.Zones, zone)
			writes = append(writes, poolWrite(p), zoneSettings(p, zone))
		}
		_, err = g.Store.WriteAll(ctx, writes)
		return err
	})
	if err != nil {
		return Record{}, err
	}
	return g.Find(ctx, v.ID)
}

// adding is the writes for the volume itself.
func (g Registry) adding(ctx context.Context, p Pool, to Home, v Volume) ([]Write, error) {
	home, err := g.Home(ctx, v.ID)
	if errors.Is(err, ErrNoVolume) {
		return []Write{addNew(p, to.Zone, v, Record{}), belongs(v.ID, to, nil)}, nil
	}
	if err != nil {
		return nil, err
	}
	was, err := g.record(ctx, home, v.ID)
	if err != nil {
		return nil, err
	}
	if was.State != Retired {
		return nil, &RegisteredError{was}
	}
	if home == to {
		return []Write{addAgain(p, was, v, Record{})}, nil
	}
	writes := []Write{passOn(was), belongs(v.ID, to, &home)}
	before, err := g.record(ctx, to, v.ID)
	if errors.Is(err, ErrNoVolume) {
		return append(writes, addNew(p, to.Zone, v, was)), nil
	}
	if err != nil {
		return nil, err
	}
	return append(writes, addAgain(p, before, v, was)), nil
}

// Retire ends a volume's service. A held one has to be drained first.
func (g Registry) Retire(ctx context.Context, volume string) (Record, error) {
	return g.change(ctx, volume, func(r Record, _ Settings) (*Write, error) {
		switch r.State {
		case Free, Drained, Quarantined:
			return new(retire(r)), nil
		case Retired:
			return nil, nil
		}
		return nil, &StateError{Op: "retire", Record: r}
	})
}

// Drain takes a volume out of circulation: at once, or when its holder
// releases it.
func (g Registry) Drain(ctx context.Context, volume string) (Record, error) {
	return g.change(ctx, volume, func(r Record, _ Settings) (*Write, error) {
		switch {
		case r.State == Drained, r.State == Held && r.Draining:
			return nil, nil
		case r.State == Retired:
			return nil, &StateError{Op: "drain", Record: r}
		}
		return new(drain(r)), nil
	})
}

// Undrain takes a drain back. It sets a quarantined volume free, too.
func (g Registry) Undrain(ctx context.Context, volume string) (Record, error) {
	return g.change(ctx, volume, func(r Record, s Settings) (*Write, error) {
		switch {
		case r.State == Free, r.State == Held && !r.Draining:
			return nil, nil
		case r.State == Retired:
			return nil, &StateError{Op: "undrain", Record: r}
		}
		return new(undrain(r, s)), nil
	})
}

// change writes what decide says of the record as read; nil is "nothing to do".
func (g Registry) change(ctx context.Context, volume string, decide func(Record, Settings) (*Write, error)) (Record, error) {
	var after Record
	err := g.insist(func() error {
		r, err := g.Find(ctx, volume)
		if err != nil {
			return err
		}
		p, err := g.Pool(ctx, r.Pool)
		if err != nil {
			return err
		}
		w, err := decide(r, p.Settings)
		if err != nil || w == nil {
			after = r
			return err
		}
		reply, err := g.Store.Write(ctx, *w)
		if err != nil {
			return err
		}
		after, err = Decode(reply.Item)
		return err
	})
	return after, err
}

// insist tries a change again, from its read on, when it was based on what
// changed meanwhile.
func (g Registry) insist(try func() error) error {
	var err error
	for range 5 {
		err = try()
		if _, refused := errors.AsType[*ConditionError](err); !refused {
			return err
		}
	}
	return fmt.Errorf("the table kept changing meanwhile: %w", err)
}

// Volumes reads all of a pool's records, zone by zone, in the order of their
// ids, with DynamoDB's time. Items that cannot be understood come apart.
func (g Registry) Volumes(ctx context.Context, p Pool) (rs []Record, odd []error, now time.Time, err error) {
	for _, zone := range p.Zones {
		in := List{Partition: Partition(p.Name, zone), After: volumePrefix}
		for more := true; more; {
			page, err := g.Store.List(ctx, in)
			if err != nil {
				return nil, nil, time.Time{}, err
			}
			for _, item := range page.Items {
				if r, err := Decode(item); err != nil {
					odd = append(odd, err)
				} else {
					rs = append(rs, r)
				}
				in.After = text(item, SortKey)
			}
			more, now = page.More, page.Time
		}
	}
	return rs, odd, now, nil
}
