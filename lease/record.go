package lease

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// This file is the whole of what stands in the table: the names of the
// attributes, their decoding, and the condition and effect of every write.
// Nothing outside it knows an attribute's name.

// Schema is the version of the item this code writes. Items of a newer one are
// left alone: every condition below asks for it.
const Schema = 1

// The table's keys and its one local secondary index. The index is sparse: an
// item is in it only while it may be claimed (see [FreeIndexProjection]).
const (
	PartitionKey = "pool_zone"
	SortKey      = "item"
	FreeIndex    = "free"
	FreeSlot     = "free_slot"

	settingsItem = "#settings"
	poolItem     = "#pool"
	volumeItem   = "#volume"
	settingsSlot = "!" // sorts before every volume's slot
	volumePrefix = "vol-"
	maxError     = 200 // bytes of last_error: an item stays within one write unit
)

// FreeIndexProjection is what the index carries beside the keys. A projection
// can never be changed after the table was made.
var FreeIndexProjection = []string{aGeneration, aHints, aSettings}

const (
	aSchema      = "schema"
	aState       = "state"
	aDraining    = "draining"
	aGeneration  = "generation"
	aOwner       = "owner"
	aAttempt     = "attempt"
	aBeat        = "beat"
	aRev         = "rev"
	aLease       = "lease_ms"
	aPhase       = "phase"
	aMountPoint  = "mount_point"
	aBootID      = "boot_id"
	aClaimedAt   = "claimed_at"
	aRenewedAt   = "renewed_at"
	aOrder       = "order"
	aSize        = "size_gib"
	aFormat      = "format"
	aFSType      = "fs_type"
	aFSUUID      = "fs_uuid"
	aClean       = "clean"
	aUsed        = "used_percent"
	aInodes      = "inodes_percent"
	aUses        = "uses"
	aLastOwner   = "last_owner"
	aReleasedAt  = "released_at"
	aFailures    = "failures"
	aQuarantined = "quarantined_until"
	aLastError   = "last_error"
	aHints       = "hints"
	aSettings    = "settings"
	aZones       = "zones"
	aPool        = "pool"
	aZone        = "zone"
)

// State is where a volume stands in its life.
type State string

// The states of a volume. A value that is none of these was written by a newer
// version, or by hand: [Decode] refuses it, and no write touches it.
const (
	Free        State = "free"
	Held        State = "held"
	Quarantined State = "quarantined"
	Drained     State = "drained"
	Retired     State = "retired"
)

// Phase is how far the holder has come.
type Phase string

// The phases of a held lease, in their order.
const (
	Claiming  Phase = "claiming"
	Attaching Phase = "attaching"
	Preparing Phase = "preparing"
	Mounted   Phase = "mounted"
	Releasing Phase = "releasing"
)

// Format is what the table knows of the volume's filesystem.
type Format string

// Only a volume that was never formatted, or whose formatting was begun and
// never finished, or that an operator had marked for wiping, may be formatted.
const (
	FormatNever  Format = "never"
	FormatBegun  Format = "formatting"
	FormatWiping Format = "wiping"
	FormatDone   Format = "done"
)

// Record is one volume's item, decoded.
type Record struct {
	Pool, Zone, Volume string

	State      State
	Draining   bool
	Generation int64
	Rev        int64
	Order      int64
	FreeSlot   string // "" while the volume is not to be claimed

	Owner      string
	Attempt    string
	Beat       int64
	Lease      time.Duration
	Phase      Phase
	MountPoint string
	BootID     string
	ClaimedAt  time.Time
	RenewedAt  time.Time

	SizeGiB       int64
	Format        Format
	FSType        string
	FSUUID        string
	Clean         bool
	UsedPercent   int64
	InodesPercent int64
	Uses          int64

	LastOwner        string
	ReleasedAt       time.Time
	Failures         int64
	QuarantinedUntil time.Time
	LastError        string
}

// SilentAt tells whether the holder has not renewed for so long that its lease
// counts as silent. now is DynamoDB's clock, from the reply that brought the
// record.
func (r Record) SilentAt(now time.Time) bool {
	return r.State == Held && now.Sub(r.RenewedAt) > 2*r.Lease+5*time.Second
}

func (r Record) key() Key { return Key{Partition(r.Pool, r.Zone), r.Volume} }

// Partition is the partition key of one pool in one zone.
func Partition(pool, zone string) string { return pool + "/" + zone }

// slot is the range key of a free volume: the lowest is claimed first. order is
// the creation time and stays; a pool that prefers the volume released last
// turns that time round.
func (s Settings) slot(r Record) string {
	order := r.Order
	if s.Order == OrderRecent {
		last := r.Order
		if !r.ReleasedAt.IsZero() {
			last = r.ReleasedAt.UnixMilli()
		}
		order = 999_999_999_999_999 - last
	}
	return fmt.Sprintf("%015d#%s", order, r.Volume)
}

// ItemError says that an item cannot be understood: edited by hand, or written
// by a newer version. Such an item is left alone and reported.
type ItemError struct {
	Key  Key
	Attr string
	Why  string
}

func (e *ItemError) Error() string {
	return fmt.Sprintf("item %s in %s: attribute %s: %s", e.Key.Item, e.Key.Partition, e.Attr, e.Why)
}

// Decode reads a volume's item. An attribute of another type than ours, an
// unknown state, or a newer schema is an [*ItemError], never a zero value.
func Decode(item Item) (Record, error) {
	d := decoder{item: item}
	partition := d.str(PartitionKey, true)
	volume := d.str(SortKey, true)
	d.key = Key{partition, volume}
	if schema := d.num(aSchema, true); d.err == nil && schema != Schema {
		d.fail(aSchema, fmt.Sprintf("version %d is not known here (this version writes %d)", schema, Schema))
	}
	pool, zone, ok := strings.Cut(partition, "/")
	if !ok {
		d.fail(PartitionKey, "is not POOL/ZONE")
	}
	r := Record{
		Pool: pool, Zone: zone, Volume: volume,
		State: State(d.str(aState, true)), Draining: d.flag(aDraining),
		Generation: d.num(aGeneration, true), Rev: d.num(aRev, false), Order: d.num(aOrder, false),
		FreeSlot: d.str(FreeSlot, false),
		Owner:    d.str(aOwner, false), Attempt: d.str(aAttempt, false), Beat: d.num(aBeat, false),
		Lease: time.Duration(d.num(aLease, false)) * time.Millisecond,
		Phase: Phase(d.str(aPhase, false)), MountPoint: d.str(aMountPoint, false), BootID: d.str(aBootID, false),
		ClaimedAt: d.time(aClaimedAt), RenewedAt: d.time(aRenewedAt),
		SizeGiB: d.num(aSize, false), Format: Format(d.str(aFormat, true)),
		FSType: d.str(aFSType, false), FSUUID: d.str(aFSUUID, false), Clean: d.flag(aClean),
		UsedPercent: d.num(aUsed, false), InodesPercent: d.num(aInodes, false), Uses: d.num(aUses, false),
		LastOwner: d.str(aLastOwner, false), ReleasedAt: d.time(aReleasedAt),
		Failures: d.num(aFailures, false), QuarantinedUntil: d.time(aQuarantined), LastError: d.str(aLastError, false),
	}
	switch r.State {
	case Free, Quarantined, Drained, Retired:
	case Held:
		if r.Owner == "" || r.Attempt == "" || r.Lease <= 0 || r.RenewedAt.IsZero() {
			d.fail(aState, "is held, but owner, attempt, lease_ms or renewed_at is missing")
		}
		if r.Lease > MaxLease {
			d.fail(aLease, fmt.Sprintf("is more than %v", MaxLease))
		}
	default:
		d.fail(aState, fmt.Sprintf("%q is not known here", r.State))
	}
	switch r.Format {
	case FormatNever, FormatBegun, FormatWiping, FormatDone:
	default:
		d.fail(aFormat, fmt.Sprintf("%q is not known here", r.Format))
	}
	if r.State != Free && r.FreeSlot != "" {
		d.fail(FreeSlot, fmt.Sprintf("is there, but the volume is %s", r.State))
	}
	if d.err != nil {
		return Record{}, d.err
	}
	return r, nil
}

// decodeFree reads what the index shows of a free volume: its keys, its slot
// and its generation.
func decodeFree(item Item) (Record, error) {
	d := decoder{item: item}
	partition := d.str(PartitionKey, true)
	d.key = Key{partition, d.str(SortKey, true)}
	r := Record{State: Free, Volume: d.key.Item, Generation: d.num(aGeneration, true), FreeSlot: d.str(FreeSlot, true)}
	r.Pool, r.Zone, _ = strings.Cut(partition, "/")
	return r, d.err
}

// text is a string attribute, or "".
func text(item Item, attr string) string {
	s, _ := item[attr].(*types.AttributeValueMemberS)
	if s == nil {
		return ""
	}
	return s.Value
}

// What a write needs to know of the holder, beyond the record it observed.
type holder struct {
	owner, attempt, mountPoint, bootID string
	lease                              time.Duration
	now                                time.Time // DynamoDB's clock
}

// Facts is what the holder learned of the volume, carried by its next write.
// A nil field is left as it stands.
type Facts struct {
	Phase         *Phase
	FSType        *string
	FSUUID        *string
	SizeGiB       *int64
	Clean         *bool
	UsedPercent   *int64
	InodesPercent *int64
	Uses          *int64
	LastError     *string
}

// merge lays later over f.
func (f Facts) merge(later Facts) Facts {
	over(&f.Phase, later.Phase)
	over(&f.FSType, later.FSType)
	over(&f.FSUUID, later.FSUUID)
	over(&f.SizeGiB, later.SizeGiB)
	over(&f.Clean, later.Clean)
	over(&f.UsedPercent, later.UsedPercent)
	over(&f.InodesPercent, later.InodesPercent)
	over(&f.Uses, later.Uses)
	over(&f.LastError, later.LastError)
	return f
}

func over[T any](to **T, from *T) {
	if from != nil {
		*to = from
	}
}

func (f Facts) into(set Item) {
	if f.Phase != nil {
		set[aPhase] = str(string(*f.Phase))
	}
	if f.FSType != nil {
		set[aFSType] = str(*f.FSType)
	}
	if f.FSUUID != nil {
		set[aFSUUID] = str(*f.FSUUID)
	}
	if f.SizeGiB != nil {
		set[aSize] = num(*f.SizeGiB)
	}
	if f.Clean != nil {
		set[aClean] = flag(*f.Clean)
	}
	if f.UsedPercent != nil {
		set[aUsed] = num(*f.UsedPercent)
	}
	if f.InodesPercent != nil {
		set[aInodes] = num(*f.InodesPercent)
	}
	if f.Uses != nil {
		set[aUses] = num(*f.Uses)
	}
	if f.LastError != nil {
		set[aLastError] = str(cut(*f.LastError))
	}
}

// --- The holder's writes -------------------------------------------------

// claim takes a free volume that was seen at generation g.
func claim(key Key, g int64, h holder) Write {
	return Write{Key: key, Once: true,
		If:  []Condition{schemaIs(), stateIs(Free), generationIs(g)},
		Set: h.taken(g + 1), Remove: []string{FreeSlot}}
}

// takeOver claims a lease whose owner is gone or silent, exactly as it was
// observed: one more beat of the old holder, and it fails.
func takeOver(r Record, h holder) Write {
	return Write{Key: r.key(),
		If: []Condition{schemaIs(), stateIs(Held), generationIs(r.Generation), attemptIs(r.Attempt), beatIs(r.Beat),
			drainingIs(false)},
		Set: h.taken(r.Generation + 1), Remove: []string{FreeSlot}}
}

// readopt claims one's own lease after a restart: the old process's writes,
// however late, then fail.
func readopt(r Record, h holder) Write {
	return Write{Key: r.key(),
		If: []Condition{schemaIs(), stateIs(Held), {aOwner, Equal, str(h.owner)}, generationIs(r.Generation),
			attemptIs(r.Attempt)},
		Set: h.taken(r.Generation + 1), Remove: []string{FreeSlot}}
}

func (h holder) taken(generation int64) Item {
	return Item{
		aState: str(string(Held)), aGeneration: num(generation), aOwner: str(h.owner), aAttempt: str(h.attempt),
		aBeat: num(0), aLease: num(h.lease.Milliseconds()), aPhase: str(string(Claiming)),
		aMountPoint: str(h.mountPoint), aBootID: str(h.bootID),
		aClaimedAt: stamp(h.now), aRenewedAt: stamp(h.now),
	}
}

// heartbeat renews. It requires "mine, and an older beat" and not "the previous
// beat": so a lost reply does no harm, and a late duplicate cannot rewind.
func heartbeat(key Key, g int64, attempt string, beat int64, now time.Time, f Facts) Write {
	set := Item{aBeat: num(beat), aRenewedAt: stamp(now)}
	f.into(set)
	return Write{Key: key, Once: true,
		If:  []Condition{schemaIs(), stateIs(Held), generationIs(g), attemptIs(attempt), {aBeat, Less, num(beat)}},
		Set: set}
}

// formatIntended is a heartbeat that marks the volume before mkfs, after it was
// proven blank.
func formatIntended(key Key, g int64, attempt string, beat int64, now time.Time, f Facts, fsType, fsUUID string) Write {
	w := heartbeat(key, g, attempt, beat, now, f)
	w.If = append(w.If, Condition{aFormat, NotEqual, str(string(FormatDone))})
	w.Set[aFormat], w.Set[aFSType], w.Set[aFSUUID] = str(string(FormatBegun)), str(fsType), str(fsUUID)
	return w
}

// formatDone is a heartbeat that is answered before the first mount.
func formatDone(key Key, g int64, attempt string, beat int64, now time.Time, f Facts) Write {
	w := heartbeat(key, g, attempt, beat, now, f)
	w.Set[aFormat] = str(string(FormatDone))
	return w
}

// released is how a release leaves the item.
type released struct {
	settings Settings
	record   Record    // as last seen
	used     bool      // the volume was mounted: this was a good use
	now      time.Time // DynamoDB's clock
	facts    Facts
}

func (x released) leave(draining bool) (Item, []string) {
	set, r := Item{}, x.record
	x.facts.into(set)
	delete(set, aPhase)
	remove := []string{aOwner, aPhase, aMountPoint, aBootID}
	if x.used {
		r.ReleasedAt = x.now
		set[aReleasedAt], set[aLastOwner], set[aFailures] = stamp(x.now), str(r.Owner), num(0)
		delete(set, aLastError)
		remove = append(remove, aLastError, aQuarantined)
	}
	if draining {
		set[aState] = str(string(Drained))
		return set, append(remove, FreeSlot, aDraining)
	}
	slot := r.FreeSlot // a claim that comes to nothing leaves the place as it was
	if slot == "" || x.used {
		slot = x.settings.slot(r)
	}
	set[aState], set[FreeSlot] = str(string(Free)), str(slot)
	return set, remove
}

// release gives the volume back, as free, or as drained where an operator is
// draining it; draining is as last seen.
func release(key Key, g int64, attempt string, draining bool, x released) Write {
	set, remove := x.leave(draining)
	return Write{Key: key,
		If:  []Condition{schemaIs(), stateIs(Held), generationIs(g), attemptIs(attempt), drainingIs(draining)},
		Set: set, Remove: remove}
}

// freeAbandoned releases for a holder that is gone, exactly as observed.
func freeAbandoned(r Record, x released) Write {
	set, remove := x.leave(r.Draining)
	return Write{Key: r.key(),
		If: []Condition{schemaIs(), stateIs(Held), generationIs(r.Generation), attemptIs(r.Attempt), beatIs(r.Beat),
			drainingIs(r.Draining)},
		Set: set, Remove: remove}
}

// quarantine takes a held volume that misbehaved out of circulation.
func quarantine(key Key, g int64, attempt string, failures int64, until time.Time, reason string, f Facts) Write {
	set := Item{}
	f.into(set)
	delete(set, aPhase)
	set[aState], set[aFailures] = str(string(Quarantined)), num(failures)
	set[aQuarantined], set[aLastError] = stamp(until), str(cut(reason))
	return Write{Key: key,
		If:  []Condition{schemaIs(), stateIs(Held), generationIs(g), attemptIs(attempt)},
		Set: set, Remove: []string{FreeSlot, aOwner, aPhase, aMountPoint, aBootID}}
}

// burn spends the generation of a claim that was given up and never landed, so
// that it never can.
func burn(key Key, g int64) Write {
	return Write{Key: key,
		If:  []Condition{schemaIs(), {aState, NotEqual, str(string(Held))}, generationIs(g)},
		Set: Item{aGeneration: num(g + 1)}}
}

// --- The operator's writes, and the janitor's ----------------------------

// moved is any change by an operator: on state, generation and rev as observed.
func moved(r Record, set Item, remove ...string) Write {
	set[aRev] = num(r.Rev + 1)
	return Write{Key: r.key(),
		If:  []Condition{schemaIs(), stateIs(r.State), generationIs(r.Generation), revIs(r.Rev)},
		Set: set, Remove: remove}
}

// setFree puts a quarantined or drained volume back into circulation; one that
// is draining goes to drained instead.
func setFree(r Record, s Settings) Write {
	if r.Draining {
		return moved(r, Item{aState: str(string(Drained))}, FreeSlot, aDraining, aQuarantined)
	}
	return moved(r, Item{aState: str(string(Free)), FreeSlot: str(s.slot(r))}, aQuarantined)
}

// drain takes a free or quarantined volume out of circulation, and marks a held
// one so that its release does.
func drain(r Record) Write {
	if r.State == Held {
		return moved(r, Item{aDraining: flag(true)})
	}
	return moved(r, Item{aState: str(string(Drained))}, FreeSlot, aDraining)
}

// undrain takes the mark off a held volume, or sets a drained one free.
func undrain(r Record, s Settings) Write {
	if r.State == Held {
		return moved(r, Item{}, aDraining)
	}
	r.Draining = false
	w := setFree(r, s)
	w.Remove = append(w.Remove, aDraining)
	return w
}

// retire ends a volume's service. The item stays, for its generation's sake.
func retire(r Record) Write {
	return moved(r, Item{aState: str(string(Retired))}, FreeSlot, aDraining)
}

// Volume is what an operator registers.
type Volume struct {
	ID      string
	SizeGiB int64
	Created time.Time
	// FromSnapshot says that the content was somebody's from the start: such a
	// volume is never formatted.
	FromSnapshot bool
}

func (v Volume) registered(s Settings, r Record) Item {
	r.Volume, r.Order = v.ID, v.Created.UnixMilli()
	return Item{
		aSchema: num(Schema), aState: str(string(Free)), aGeneration: num(r.Generation),
		aOrder: num(r.Order), aSize: num(v.SizeGiB), FreeSlot: str(s.slot(r)),
	}
}

// addNew registers a volume that the pool has no item of. was is its record in
// the pool where it served before, or zero: what is known of its filesystem
// goes with it.
func addNew(p Pool, zone string, v Volume, was Record) Write {
	set := v.registered(p.Settings, Record{Generation: was.Generation})
	set[aRev], set[aFormat] = num(1), str(string(FormatNever))
	was.filesystemInto(set)
	if v.FromSnapshot {
		set[aFormat] = str(string(FormatDone))
	}
	return Write{Key: Key{Partition(p.Name, zone), v.ID}, If: []Condition{{aState, Absent, nil}}, Set: set}
}

func (r Record) filesystemInto(set Item) {
	if r.Format != "" {
		set[aFormat] = str(string(r.Format))
		set[aFSType], set[aFSUUID], set[aClean] = str(r.FSType), str(r.FSUUID), flag(r.Clean)
	}
}

// addAgain brings a retired volume back, at its own generation or at that of
// another pool where it served since.
func addAgain(p Pool, r Record, v Volume, was Record) Write {
	again := r
	again.Generation = max(was.Generation, r.Generation)
	set := v.registered(p.Settings, again)
	was.filesystemInto(set)
	return moved(r, set, aQuarantined, aLastError)
}

// passOn marks a retired item whose volume goes on to another pool: its rev
// grows, so that of two operators who move the volume one wins.
func passOn(r Record) Write { return moved(r, Item{}) }

// belongs says which pool and zone a volume is in; was is nil where no pool had it.
func belongs(volume string, to Home, was *Home) Write {
	w := Write{Key: Key{volume, volumeItem}, Set: Item{aPool: str(to.Pool), aZone: str(to.Zone)}}
	if was == nil {
		w.If = []Condition{{aPool, Absent, nil}}
	} else {
		w.If = []Condition{{aPool, Equal, str(was.Pool)}, {aZone, Equal, str(was.Zone)}}
	}
	return w
}

// poolWrite writes the pool's own item. rev 0: there is none yet.
func poolWrite(p Pool) Write {
	w := Write{Key: Key{p.Name, poolItem}, Set: Item{aSchema: num(Schema), aRev: num(p.Rev + 1), aSettings: p.Settings.encode()}}
	if len(p.Zones) > 0 {
		w.Set[aZones] = &types.AttributeValueMemberSS{Value: p.Zones}
	}
	if p.Rev == 0 {
		w.If = []Condition{{aRev, Absent, nil}}
	} else {
		w.If = []Condition{revIs(p.Rev)}
	}
	return w
}

// zoneSettings writes a zone's copy of the settings, always in one transaction
// with poolWrite, whose condition guards both.
func zoneSettings(p Pool, zone string) Write {
	return Write{Key: Key{Partition(p.Name, zone), settingsItem},
		Set: Item{FreeSlot: str(settingsSlot), aSettings: p.Settings.encode()}}
}

// --- Conditions and values -----------------------------------------------

func schemaIs() Condition                { return Condition{aSchema, Equal, num(Schema)} }
func stateIs(s State) Condition          { return Condition{aState, Equal, str(string(s))} }
func generationIs(g int64) Condition     { return Condition{aGeneration, Equal, num(g)} }
func attemptIs(attempt string) Condition { return Condition{aAttempt, Equal, str(attempt)} }
func beatIs(n int64) Condition           { return Condition{aBeat, Equal, num(n)} }
func revIs(rev int64) Condition          { return Condition{aRev, Equal, num(rev)} }

// drainingIs relies on the mark being there or not: it is never false.
func drainingIs(yes bool) Condition {
	if yes {
		return Condition{aDraining, Equal, flag(true)}
	}
	return Condition{aDraining, Absent, nil}
}

func str(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }
func num(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}
func flag(b bool) types.AttributeValue { return &types.AttributeValueMemberBOOL{Value: b} }

const stampLayout = "2006-01-02T15:04:05.000Z07:00"

func stamp(t time.Time) types.AttributeValue { return str(t.UTC().Format(stampLayout)) }

func cut(s string) string {
	if len(s) > maxError {
		s = strings.ToValidUTF8(s[:maxError], "")
	}
	return s
}

// decoder reads attributes and keeps the first thing that is wrong.
type decoder struct {
	item Item
	key  Key
	err  error
}

func (d *decoder) fail(attr, why string) {
	if d.err == nil {
		d.err = &ItemError{Key: d.key, Attr: attr, Why: why}
	}
}

func (d *decoder) get(attr string, must bool) types.AttributeValue {
	v, ok := d.item[attr]
	if !ok && must {
		d.fail(attr, "is missing")
	}
	return v
}

func (d *decoder) str(attr string, must bool) string {
	switch v := d.get(attr, must).(type) {
	case nil:
		return ""
	case *types.AttributeValueMemberS:
		return v.Value
	}
	d.fail(attr, "is not a string")
	return ""
}

func (d *decoder) num(attr string, must bool) int64 {
	switch v := d.get(attr, must).(type) {
	case nil:
		return 0
	case *types.AttributeValueMemberN:
		n, err := strconv.ParseInt(v.Value, 10, 64)
		if err != nil || n < 0 {
			d.fail(attr, fmt.Sprintf("%q is not a whole number from 0", v.Value))
		}
		return n
	}
	d.fail(attr, "is not a number")
	return 0
}

func (d *decoder) flag(attr string) bool {
	switch v := d.get(attr, false).(type) {
	case nil:
		return false
	case *types.AttributeValueMemberBOOL:
		return v.Value
	}
	d.fail(attr, "is not a boolean")
	return false
}

func (d *decoder) time(attr string) time.Time {
	s := d.str(attr, false)
	if s == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		d.fail(attr, fmt.Sprintf("%q is not a time in RFC 3339", s))
	}
	return t
}
