// Command ec2simd runs package ec2sim as a process of its own. When all is
// ready it prints one line of JSON with its endpoint; at SIGINT or SIGTERM it
// gives everything back and ends.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/volpool/volpool/integration/ec2sim"
	"github.com/volpool/volpool/integration/ec2sim/loopdev"
	"go.uber.org/zap"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.As(err, new(usageError)):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "ec2simd:", err)
		os.Exit(1)
	}
}

// usageError is what package flag has told the user already.
type usageError struct{ error }

type options struct {
	cfg      ec2sim.Config
	devices  string
	dir      string
	logLevel string
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("ec2simd", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.cfg.Addr, "addr", "127.0.0.1:0", "`address` to listen on")
	flags.StringVar(&o.cfg.Region, "region", "us-east-1", "`region` to simulate")
	zones := flags.String("zones", "", "its zones, by commas (the region's a and b)")
	flags.Uint64Var(&o.cfg.Seed, "seed", 0, "seed of ids and jitter (drawn if 0)")
	flags.IntVar(&o.cfg.AttachLimit, "attach-limit", 0, "volumes an instance takes (27 if 0)")
	flags.StringVar(&o.cfg.AccessKeyID, "access-key", "", "access key `id` that each IMDS gives out (EC2SIM)")
	flags.StringVar(&o.devices, "devices", "none", "what an attached volume becomes: none, or loop (needs root)")
	flags.StringVar(&o.dir, "dir", "", "`folder` for the loop devices' files (a temporary one)")
	flags.StringVar(&o.logLevel, "log-level", "warn", "debug, info, warn or error; to stderr")
	t := &o.cfg.Timing
	for _, s := range []struct {
		name, usage string
		span        *ec2sim.Span
	}{
		{"boot", "an instance is pending", &t.Boot},
		{"stop", "an instance is stopping", &t.Stop},
		{"shut-down", "an instance is shutting-down", &t.ShutDown},
		{"create", "a volume is creating", &t.Create},
		{"delete", "a volume is deleting", &t.Delete},
		{"attach", "an attachment is attaching", &t.Attach},
		{"device", "from AttachVolume until the device shows", &t.Device},
		{"detach", "an attachment is detaching", &t.Detach},
		{"modify", "a modification is modifying", &t.Modify},
		{"optimize", "a modification is optimizing", &t.Optimize},
	} {
		flags.Func(s.name, "how long "+s.usage+": `2s`, or 2s,1s for 2 s give or take 1 s", func(text string) error {
			return parseSpan(s.span, text)
		})
	}
	flags.DurationVar(&t.Forget, "forget", time.Hour, "how long a terminated instance is described")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, usageError{err}
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *zones != "" {
		o.cfg.Zones = strings.Split(*zones, ",")
	}
	return o, nil
}

func parseSpan(into *ec2sim.Span, text string) (err error) {
	base, jitter, varies := strings.Cut(text, ",")
	if into.Base, err = time.ParseDuration(base); err != nil {
		return err
	}
	if varies {
		into.Jitter, err = time.ParseDuration(jitter)
	}
	return err
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	logConfig := zap.NewDevelopmentConfig()
	if logConfig.Level, err = zap.ParseAtomicLevel(o.logLevel); err != nil {
		return fmt.Errorf("parse log level: %w", err)
	}
	if o.cfg.Log, err = logConfig.Build(); err != nil {
		return fmt.Errorf("start log: %w", err)
	}
	if err := o.chooseBackend(); err != nil {
		return err
	}
	sim, err := ec2sim.Start(o.cfg)
	if err != nil {
		return err
	}
	ready := map[string]any{"endpoint": sim.Endpoint(), "control": sim.Endpoint() + "/_sim/", "region": sim.Region(), "pid": os.Getpid()}
	if err := json.NewEncoder(stdout).Encode(ready); err != nil {
		return errors.Join(fmt.Errorf("tell the endpoint: %w", err), sim.Close())
	}
	<-ctx.Done()
	return sim.Close()
}

func (o *options) chooseBackend() error {
	switch o.devices {
	case "none":
		return nil
	case "loop":
		b, err := loopdev.New(loopdev.Config{Dir: o.dir})
		if err != nil {
			return err
		}
		o.cfg.Backend = b
		return nil
	}
	return fmt.Errorf("no devices are named %q, only none and loop", o.devices)
}
