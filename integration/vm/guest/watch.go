//go:build linux

package guest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/volpool/volpool/mount"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// A Watch waits for a volume's device as package mount does, with the kernel's
// events alone or with the ticker alone: the binary has no flag for that.
type Watch struct {
	Volume             string
	NoEvents, NoRescan bool
	Limit              time.Duration
}

// A Sighting is how a Watch ended.
type Sighting struct {
	Path   string   // of the device
	Events []string // of the kernel, that package mount heard of
}

// watches are those that go on, by volume.
type watches struct {
	sync.Mutex
	waiting map[string]<-chan sighted
}

type sighted struct {
	Sighting
	err error
}

// Watch returns once it listens.
func (g *Guest) Watch(w Watch, _ *struct{}) error {
	var heard events
	host, err := mount.New(mount.Config{NoEvents: w.NoEvents, NoRescan: w.NoRescan, Log: zap.New(&heard)})
	if err != nil {
		return err
	}
	listener, err := host.Listen()
	if err != nil {
		return err
	}
	done := make(chan sighted, 1)
	g.watches.Lock()
	defer g.watches.Unlock()
	if g.watches.waiting == nil {
		g.watches.waiting = map[string]<-chan sighted{}
	}
	g.watches.waiting[w.Volume] = done
	go func() {
		defer listener.Close()
		ctx, cancel := context.WithTimeout(context.Background(), w.Limit)
		defer cancel()
		d, err := listener.Wait(ctx, mount.Target{VolumeID: w.Volume})
		if err != nil {
			done <- sighted{Sighting{Events: heard.list()}, err}
			return
		}
		defer d.Close()
		done <- sighted{Sighting{d.Path(), heard.list()}, nil}
	}()
	return nil
}

// Watched waits for the end of a volume's Watch.
func (g *Guest) Watched(volume string, s *Sighting) error {
	g.watches.Lock()
	done := g.watches.waiting[volume]
	delete(g.watches.waiting, volume)
	g.watches.Unlock()
	if done == nil {
		return fmt.Errorf("nobody watches for %s", volume)
	}
	result := <-done
	*s = result.Sighting
	return result.err
}

// events is a zapcore.Core that keeps what package mount says of the kernel's
// events.
type events struct {
	mu   sync.Mutex
	seen []string
}

func (e *events) list() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]string{}, e.seen...)
}

func (*events) Enabled(zapcore.Level) bool          { return true }
func (e *events) With([]zapcore.Field) zapcore.Core { return e }
func (*events) Sync() error                         { return nil }

func (e *events) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return checked.AddCore(entry, e)
}

func (e *events) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	if entry.Message != "block event" {
		return nil
	}
	text := ""
	for _, f := range fields {
		text += f.String + " "
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seen = append(e.seen, text[:len(text)-1])
	return nil
}
