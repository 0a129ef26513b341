package cloud

import (
	"math/rand/v2"
	"time"
)

// A Span is a duration that varies: Base, give or take Jitter.
type Span struct {
	Base, Jitter time.Duration
}

// Draw picks a duration out of the span.
func (s Span) Draw(rng *rand.Rand) time.Duration {
	d := s.Base
	if s.Jitter > 0 {
		d += time.Duration(rng.Int64N(int64(2*s.Jitter)+1)) - s.Jitter
	}
	return max(d, 0)
}

// Timing says how long each passing state lasts. What is zero gets the
// default, which is as short as a test wants it: EC2 needs 1 to 4 s to attach.
type Timing struct {
	Boot     Span // pending, until running
	Stop     Span // stopping, until stopped
	ShutDown Span // shutting-down, until terminated and its volumes detaching
	Create   Span // creating, until available
	Delete   Span // deleting, until gone
	Attach   Span // attaching, until attached
	Device   Span // from AttachVolume until the device shows; it may be before or after attached
	Detach   Span // detaching, until the device is looked at
	Modify   Span // modifying, until optimizing
	Optimize Span // optimizing, until completed

	// Forget is how long a terminated instance is still described; EC2 does
	// so for about an hour.
	Forget time.Duration
	// Recheck is how often a busy device is looked at again.
	Recheck time.Duration
}

func (t Timing) withDefaults() Timing {
	for _, s := range []struct {
		span *Span
		base time.Duration
	}{
		{&t.Boot, time.Millisecond},
		{&t.Stop, time.Millisecond},
		{&t.ShutDown, 5 * time.Millisecond},
		{&t.Create, time.Millisecond},
		{&t.Delete, time.Millisecond},
		{&t.Attach, 5 * time.Millisecond},
		{&t.Device, 2 * time.Millisecond},
		{&t.Detach, 5 * time.Millisecond},
		{&t.Modify, 5 * time.Millisecond},
		{&t.Optimize, 5 * time.Millisecond},
	} {
		if *s.span == (Span{}) {
			s.span.Base = s.base
		}
	}
	if t.Forget == 0 {
		t.Forget = time.Hour
	}
	if t.Recheck == 0 {
		t.Recheck = 10 * time.Millisecond
	}
	return t
}
