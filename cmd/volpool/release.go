package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/urfave/cli/v2"
	"github.com/volpool/volpool/pool"
)

func releaseCommand() *cli.Command {
	return &cli.Command{Name: "release", Usage: "unmount, detach, and give the volume back",
		Flags: []cli.Flag{
			mountPointFlag(),
			&cli.DurationFlag{Name: "timeout", Value: time.Minute, EnvVars: []string{"VOLPOOL_RELEASE_TIMEOUT"}, Usage: "give up after `TIME`"},
			&cli.BoolFlag{Name: "kill", EnvVars: []string{"VOLPOOL_RELEASE_KILL"}, Usage: "end the processes that keep the mount busy"},
		}, Action: release}
}

func release(c *cli.Context) error {
	if err := noMore(c, c.Args().Slice(), 0); err != nil {
		return err
	}
	point, err := mountPoint(c)
	if err != nil {
		return err
	}
	if d := c.Duration("timeout"); d < time.Second {
		return &usageError{fmt.Sprintf("--timeout: %v is less than a second", d), ""}
	}
	log, err := logger(c)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
	defer cancel()
	dir := pool.RunDir(c.String("run-dir"))
	var r pool.Released
	for {
		r, err = dir.AskRelease(ctx, point, c.Bool("kill"))
		if !errors.Is(err, pool.ErrNoAgent) {
			break
		}
		p, perr := parts(c, log, "", "")
		if perr != nil {
			return perr
		}
		r, err = pool.NewAgent(p, pool.Options{MountPoint: point}).ReleaseLeft(ctx, c.Bool("kill"))
		if !errors.Is(err, pool.ErrAgentLives) {
			break
		}
		select { // it is starting, or about to end
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(50 * time.Millisecond):
			continue
		}
		break
	}
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("release %s: not done within %v: %w", point, c.Duration("timeout"), err)
		}
		return err
	}
	printReleased(c, r)
	return nil
}
