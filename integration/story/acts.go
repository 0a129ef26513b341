package story

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/volpool/volpool/integration/ec2sim"
)

// An Act is one step of the story.
type Act struct {
	Name, Title string
	play        func(context.Context) error
}

// Acts returns them in their order. Each takes up where the last one ended.
func (s *Story) Acts() []Act {
	return []Act{
		{"pool", "A table, a pool, and three new volumes of 1 GiB", s.makePool},
		{"race", "Four instances boot at once and race for the three volumes", s.race},
		{"release", "Each writes a file, gives back what it holds, and is scaled in", s.release},
		{"warm", "Three new instances find the files again", s.warm},
		{"retire", "One gives its volume back, and the volume is retired", s.retire},
		{"power cut", "One is terminated without a word; a new instance takes its volume over", s.powerCut},
		{"end", "All give back", s.giveBack},
	}
}

func (s *Story) makePool(ctx context.Context) error {
	if err := s.show(ctx, "pool", "init", Pool); err != nil {
		return err
	}
	for range 3 {
		v, err := s.EC2.CreateVolume(ec2sim.CreateVolumeInput{Zone: Zone, SizeGiB: 1})
		if err != nil {
			return fmt.Errorf("create volume: %w", err)
		}
		s.Volumes = append(s.Volumes, v.ID)
	}
	return s.show(ctx, append([]string{"pool", "add", Pool}, s.Volumes...)...)
}

func (s *Story) race(ctx context.Context) error {
	if err := s.boot(ctx, 4); err != nil {
		return err
	}
	got, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	if got["cold"] != 3 || got["fallback"] != 1 {
		return fmt.Errorf("expected 3 cold and 1 fallback, not %v", got)
	}
	return nil
}

// Greeting is the file that an instance leaves in its cache.
const Greeting = MountPoint + "/greeting"

func (s *Story) release(ctx context.Context) error {
	s.say.command("echo \"built by $INSTANCE\" >%s   # on %s", Greeting, amount(len(s.running()), "instance"))
	for _, i := range s.running() {
		i.Wrote = "built by " + i.ID
		if err := os.WriteFile(i.Path(Greeting), []byte(i.Wrote+"\n"), 0o644); err != nil {
			return fmt.Errorf("write file: %w", err)
		}
	}
	if err := s.giveBack(ctx); err != nil {
		return err
	}
	for _, i := range s.running() {
		if err := s.terminate(i); err != nil {
			return err
		}
	}
	return nil
}

func (s *Story) warm(ctx context.Context) error {
	if err := s.boot(ctx, 3); err != nil {
		return err
	}
	got, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	if got["warm"] != 3 {
		return fmt.Errorf("expected 3 warm, not %v", got)
	}
	s.say.blank()
	for _, i := range s.running() {
		if err := s.readGreeting(i); err != nil {
			return err
		}
	}
	return nil
}

func (s *Story) retire(ctx context.Context) error {
	last := s.running()[2]
	s.Retired = last.Acquired.Volume
	if err := s.giveBackOf(ctx, last); err != nil {
		return err
	}
	if err := s.terminate(last); err != nil {
		return err
	}
	s.say.blank()
	return s.show(ctx, "pool", "retire", s.Retired)
}

func (s *Story) powerCut(ctx context.Context) error {
	dead := s.running()[0]
	dead.end()
	if err := s.terminate(dead); err != nil {
		return err
	}
	s.say.line("   %s  is gone, and the table still says that it holds %s", dead.ID, dead.Acquired.Volume)
	if err := s.boot(ctx, 1); err != nil {
		return err
	}
	heir := s.Instances[len(s.Instances)-1]
	if _, err := s.acquire(ctx); err != nil {
		return err
	}
	if heir.Acquired.Result != "warm" || heir.Acquired.Volume != dead.Acquired.Volume {
		return fmt.Errorf("expected warm on %s, not %s on %s", dead.Acquired.Volume, heir.Acquired.Result, heir.Acquired.Volume)
	}
	s.say.blank()
	return s.readGreeting(heir)
}

// boot starts instances at once.
func (s *Story) boot(ctx context.Context, n int) error {
	booted := make([]*Instance, n)
	err := forAll(booted, func(k int, _ *Instance) (err error) {
		booted[k], err = s.bootOne(ctx)
		return err
	})
	for _, i := range booted {
		if i != nil {
			s.Instances = append(s.Instances, i)
		}
	}
	return err
}

// acquire lets all that run, and hold nothing yet, acquire at once. It counts
// the results.
func (s *Story) acquire(ctx context.Context) (map[string]int, error) {
	var waiting []*Instance
	for _, i := range s.running() {
		if i.Acquired == nil {
			waiting = append(waiting, i)
		}
	}
	s.say.command("volpool acquire --pool %s -o json   # on %s", Pool, amount(len(waiting), "instance"))
	err := forAll(waiting, func(_ int, i *Instance) error { return i.acquire(ctx) })
	if err != nil {
		return nil, err
	}
	got := map[string]int{}
	for _, i := range waiting {
		got[i.Acquired.Result]++
		s.say.acquired(i)
	}
	return got, nil
}

func (s *Story) giveBack(ctx context.Context) error {
	return s.giveBackOf(ctx, s.running()...)
}

func (s *Story) giveBackOf(ctx context.Context, instances ...*Instance) error {
	s.say.command("volpool release   # on %s", amount(len(instances), "instance"))
	told := make([]string, len(instances))
	err := forAll(instances, func(k int, i *Instance) (err error) {
		told[k], err = i.volpool(ctx, "release")
		return err
	})
	if err != nil {
		return err
	}
	for k, i := range instances {
		s.say.line("   %s  %s", i.ID, strings.TrimSpace(told[k]))
	}
	return nil
}

// terminate tells EC2; the machine itself ends too, if it hasn't.
func (s *Story) terminate(i *Instance) error {
	i.end()
	if err := s.EC2.Terminate(i.ID); err != nil {
		return fmt.Errorf("terminate %s: %w", i.ID, err)
	}
	return nil
}

func (s *Story) readGreeting(i *Instance) error {
	text, err := os.ReadFile(i.Path(Greeting))
	if err != nil {
		return fmt.Errorf("find the file again: %w", err)
	}
	i.Found = strings.TrimSpace(string(text))
	s.say.line("   %s  reads in %s: %s", i.ID, i.Acquired.Volume, i.Found)
	return nil
}

func (s *Story) running() []*Instance {
	var up []*Instance
	for _, i := range s.Instances {
		if !i.ended {
			up = append(up, i)
		}
	}
	return up
}

// show runs volpool as its administrator does, and shows what it prints.
func (s *Story) show(ctx context.Context, args ...string) error {
	s.say.command("volpool %s", strings.Join(args, " "))
	out, err := s.volpool(ctx, args...)
	if err == nil {
		s.say.output(out)
	}
	return err
}

func (s *Story) showPool(ctx context.Context) error {
	s.say.blank()
	return s.show(ctx, "pool", "list", Pool)
}

// forAll does it to all at once.
func forAll[T any](all []T, do func(int, T) error) error {
	errs := make([]error, len(all))
	var group sync.WaitGroup
	for k, one := range all {
		group.Go(func() { errs[k] = do(k, one) })
	}
	group.Wait()
	return errors.Join(errs...)
}
