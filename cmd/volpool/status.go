package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"
	"github.com/volpool/volpool/pool"
)

func statusCommand() *cli.Command {
	return &cli.Command{Name: "status", Usage: "tell what this instance holds",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "wait", EnvVars: []string{"VOLPOOL_STATUS_WAIT"}, Usage: "wait up to `TIME` for a result"},
		}, Action: status}
}

// held is one mount point as status tells it.
type held struct {
	pool.Result
	Agent bool `json:"agent"` // its agent lives
}

func status(c *cli.Context) error {
	if err := noMore(c, c.Args().Slice(), 0); err != nil {
		return err
	}
	wait := c.Duration("wait")
	if wait < 0 {
		return &usageError{fmt.Sprintf("--wait: %v is negative", wait), ""}
	}
	ctx, cancel := context.WithTimeout(c.Context, max(wait, time.Second)) // a living agent answers at once
	defer cancel()
	dir := pool.RunDir(c.String("run-dir"))
	var all []held
	for {
		var err error
		var pending bool
		all, pending, err = look(ctx, dir)
		if err != nil {
			return err
		}
		if len(all) > 0 && !pending || wait == 0 || ctx.Err() != nil {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond): // nothing tells of a state file to come
			continue
		}
		break
	}
	printStatus(c, all)
	for _, h := range all {
		if h.Volume != nil {
			return nil
		}
	}
	return exitError(exitNothing)
}

// look reads every mount point's result; one that is not known yet is waited
// for until ctx ends.
func look(ctx context.Context, dir pool.RunDir) (all []held, pending bool, err error) {
	points, err := dir.Points()
	if err != nil {
		return nil, false, err
	}
	for _, point := range points {
		r, err := dir.AskResult(ctx, point)
		if err == nil {
			all = append(all, held{r, true})
			continue
		}
		living := !errors.Is(err, pool.ErrNoAgent)
		s, err := dir.Load(point)
		switch {
		case err != nil:
			return nil, false, err
		case s != nil && s.Result != nil:
			all = append(all, held{*s.Result, living})
		case s != nil:
			pending = pending || living
		}
	}
	return all, pending, nil
}
