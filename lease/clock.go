package lease

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Elapsed reads CLOCK_BOOTTIME: unlike Go's own timers and time.Since, it goes
// on while the machine is suspended (golang/go#24595). It means nothing beside
// another machine's.
func Elapsed() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("clock_gettime(CLOCK_BOOTTIME): " + err.Error()) // every Linux since 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}

// serverClock carries DynamoDB's clock forward: the last Date that a reply
// brought, plus what has passed here since.
type serverClock struct {
	elapsed func() time.Duration

	mu   sync.Mutex
	date time.Time
	at   time.Duration
}

// heard notes a reply's Date. One that is not newer than the last is left out: it
// came late through the network, or within the same second. A newer one counts
// even where it is behind what was reckoned, for this machine's clock may run
// fast.
func (c *serverClock) heard(date time.Time) {
	if date.IsZero() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if date.After(c.date) {
		c.date, c.at = date, c.elapsed()
	}
}

// now is DynamoDB's time as best known; zero before the first reply.
func (c *serverClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.date.IsZero() {
		return time.Time{}
	}
	return c.date.Add(c.elapsed() - c.at)
}
