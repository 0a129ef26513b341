// Package story plays volpool's whole job on real parts: the built binary, on
// instances that are a mount and a pid namespace each and know themselves only
// from IMDS, with DynamoDB Local, and with package ec2sim, whose volumes are
// loop devices.
//
// The demo tells it; a test plays the same acts and looks behind them.
package story

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/volpool/volpool/integration/dynamolocal"
	"github.com/volpool/volpool/integration/ec2sim"
	"github.com/volpool/volpool/integration/ec2sim/loopdev"
	"go.uber.org/zap"
)

// Names that the story uses.
const (
	Pool       = "ci"
	Table      = "volpool"
	Zone       = "us-east-1a"
	MountPoint = "/mnt/cache"
)

// EC2 needs 1 to 4 s to attach; this one hurries a little.
var timing = ec2sim.Timing{
	Boot:   ec2sim.Span{Base: 300 * time.Millisecond, Jitter: 100 * time.Millisecond},
	Attach: ec2sim.Span{Base: 1200 * time.Millisecond, Jitter: 300 * time.Millisecond},
	Device: ec2sim.Span{Base: 800 * time.Millisecond, Jitter: 300 * time.Millisecond},
	Detach: ec2sim.Span{Base: 500 * time.Millisecond, Jitter: 200 * time.Millisecond},
}

// Config of a Story.
type Config struct {
	Binary string    // the volpool to use
	Out    io.Writer // hears the story
}

// A Story that is being played. What is exported is for the test to look at.
type Story struct {
	DynamoDB  *dynamolocal.Server
	EC2       *ec2sim.Sim
	Volumes   []string    // in the order of their making
	Retired   string      // one of them
	Instances []*Instance // all that ever booted
	Failed    bool        // the logs are to stay

	begin  time.Time
	say    *voice
	binary string
	dir    string // of everything that is gone at the end
	logs   string // stays where something went wrong
	log    *zap.Logger
}

// Tell plays all acts and clears up, also where ctx ends in between.
func Tell(ctx context.Context, cfg Config) error {
	s, err := Open(ctx, cfg)
	if err != nil {
		return err
	}
	for _, act := range s.Acts() {
		if err = s.Play(ctx, act); err != nil {
			break
		}
	}
	return errors.Join(err, s.Close())
}

// Open sets the stage. On failure nothing of it is left.
func Open(ctx context.Context, cfg Config) (_ *Story, err error) {
	if err := Missing(); err != nil {
		return nil, err
	}
	s := &Story{begin: time.Now(), say: &voice{out: cfg.Out}, log: zap.NewNop()}
	defer func() {
		if err == nil {
			return
		}
		if s.Failed = !interrupted(ctx); !s.Failed {
			err = context.Cause(ctx)
		}
		err = errors.Join(err, s.Close())
	}()
	if s.dir, err = place(); err != nil {
		return nil, err
	}
	// The copy can be seen by every instance, wherever the original lies.
	s.binary = filepath.Join(s.dir, "volpool")
	if err := copyFile(cfg.Binary, s.binary); err != nil {
		return nil, err
	}
	if s.logs, err = os.MkdirTemp("", "volpool-logs-"); err != nil {
		return nil, fmt.Errorf("make folder for logs: %w", err)
	}
	log, err := logInto(filepath.Join(s.logs, "stage.log"))
	if err != nil {
		return nil, err
	}
	s.log = log
	s.say.line("volpool on real parts: DynamoDB Local (fetched the first time), a simulated EC2 whose")
	s.say.line("volumes are loop devices, instances in namespaces of their own. No AWS account is used.")
	if s.DynamoDB, err = dynamolocal.Start(ctx, dynamolocal.Config{Log: s.log}); err != nil {
		return nil, err
	}
	backend, err := loopdev.New(loopdev.Config{Dir: filepath.Join(s.dir, "ec2")})
	if err != nil {
		return nil, fmt.Errorf("prepare loop devices: %w", err)
	}
	if s.EC2, err = ec2sim.Start(ec2sim.Config{Zones: []string{Zone}, Timing: timing, Backend: backend, Log: s.log}); err != nil {
		return nil, fmt.Errorf("start EC2: %w", err)
	}
	return s, nil
}

// Play plays one act, and shows the pool after it.
func (s *Story) Play(ctx context.Context, act Act) error {
	s.say.title(act.Title)
	err := act.play(ctx)
	if err == nil {
		err = s.showPool(ctx)
	}
	if err == nil {
		err = s.say.err
	}
	switch {
	case err == nil:
		return nil
	case interrupted(ctx):
		return context.Cause(ctx)
	}
	s.Failed = true
	return fmt.Errorf("%s: %w", act.Name, err)
}

// interrupted tells whether ctx is why something failed. Between fork and
// setpgid a child is still in our process group, and may die of the same Ctrl-C
// before we hear of it: so we listen for a moment.
func interrupted(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return true
	case <-time.After(200 * time.Millisecond):
		return false
	}
}

// Close takes everything down, in whatever state it is, and looks for what is
// left, and says so. Where an act failed the logs stay, and the error says where.
func (s *Story) Close() error {
	var errs []error
	for _, i := range s.Instances {
		i.end()
	}
	if s.EC2 != nil {
		errs = append(errs, s.EC2.Close())
	}
	if s.DynamoDB != nil {
		s.DynamoDB.Stop()
	}
	_ = s.log.Sync()
	if s.Failed && s.logs != "" {
		errs = append(errs, s.keepLogs(), fmt.Errorf("the logs are in %s", s.logs))
	} else if s.logs != "" {
		errs = append(errs, os.RemoveAll(s.logs))
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir), leftovers(s.dir))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.say.line("\nNothing is left behind: no process, no mount, no loop device, no file. %.0f s.", time.Since(s.begin).Seconds())
	return nil
}

// keepLogs saves what the agents wrote beside their state.
func (s *Story) keepLogs() error {
	var errs []error
	for _, i := range s.Instances {
		paths, err := filepath.Glob(filepath.Join(i.runDir, "*"))
		errs = append(errs, err)
		for _, path := range paths {
			if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
				errs = append(errs, copyFile(path, filepath.Join(s.logs, i.ID+"-"+filepath.Base(path))))
			}
		}
	}
	return errors.Join(errs...)
}

func logInto(path string) (*zap.Logger, error) {
	cfg := zap.NewDevelopmentConfig()
	cfg.OutputPaths, cfg.ErrorOutputPaths = []string{path}, []string{path}
	log, err := cfg.Build()
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return log, nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(fmt.Errorf("copy %s: %w", from, err), out.Close())
	}
	return out.Close()
}
