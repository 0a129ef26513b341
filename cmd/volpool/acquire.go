package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/pool"
	"go.uber.org/zap"
)

func mountPointFlag() cli.Flag {
	return &cli.StringFlag{Name: "mount-point", Value: "/mnt/cache", EnvVars: []string{"VOLPOOL_MOUNT_POINT"}, Usage: "`DIR` where the cache is mounted"}
}

func acquireFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "pool", EnvVars: []string{"VOLPOOL_POOL"}, Usage: "`POOL` to take a volume from"},
		mountPointFlag(),
		&cli.DurationFlag{Name: "timeout", Value: time.Minute, EnvVars: []string{"VOLPOOL_ACQUIRE_TIMEOUT"}, Usage: "the result is there within `TIME`"},
		&cli.DurationFlag{Name: "attach-timeout", Value: 25 * time.Second, EnvVars: []string{"VOLPOOL_ACQUIRE_ATTACH_TIMEOUT"}, Usage: "`TIME` that an accepted attach may take"},
		&cli.DurationFlag{Name: "wait", EnvVars: []string{"VOLPOOL_ACQUIRE_WAIT"}, Usage: "`TIME` to wait for a volume to become free"},
		&cli.StringFlag{Name: "owner", EnvVars: []string{"VOLPOOL_ACQUIRE_OWNER"}, Usage: "`USER:GROUP` of the cache's root directory"},
		&cli.StringFlag{Name: "mode", Value: "0755", EnvVars: []string{"VOLPOOL_ACQUIRE_MODE"}, Usage: "`MODE` of the cache's root directory, octal"},
		&cli.StringFlag{Name: "fallback-dir", EnvVars: []string{"VOLPOOL_ACQUIRE_FALLBACK_DIR"}, Usage: "`DIR` to show at the mount point where there is no volume"},
		&cli.BoolFlag{Name: "strict", EnvVars: []string{"VOLPOOL_ACQUIRE_STRICT"}, Usage: "a fallback fails: 75 where a retry may help, else 1"},
		&cli.StringFlag{Name: "instance-id", EnvVars: []string{"VOLPOOL_ACQUIRE_INSTANCE_ID"}, Usage: "this instance's `ID`, instead of asking IMDS"},
		&cli.StringFlag{Name: "zone", EnvVars: []string{"VOLPOOL_ACQUIRE_ZONE"}, Usage: "this instance's `ZONE`, instead of asking IMDS"},
	}
}

func acquireCommand() *cli.Command {
	return &cli.Command{Name: "acquire", Usage: "mount a volume of the pool, and go on holding it in the background",
		Flags: acquireFlags(), Action: acquire}
}

func agentCommand() *cli.Command {
	return &cli.Command{Name: "agent", Usage: "acquire, hold, and release at SIGTERM, in the foreground",
		Flags: acquireFlags(), Action: agent}
}

// options reads the flags that acquire and agent share.
func options(c *cli.Context) (pool.Options, error) {
	o := pool.Options{Pool: c.String("pool"), Began: lease.Elapsed(), Timeout: c.Duration("timeout"), AttachTimeout: c.Duration("attach-timeout"),
		Wait: c.Duration("wait"), FallbackDir: c.String("fallback-dir")}
	if err := noMore(c, c.Args().Slice(), 0); err != nil {
		return o, err
	}
	if o.Pool == "" {
		return o, &usageError{"no pool is named", "give --pool, or set VOLPOOL_POOL"}
	}
	if err := lease.CheckPoolName(o.Pool); err != nil {
		return o, &usageError{err.Error(), ""}
	}
	for name, d := range map[string]time.Duration{"timeout": o.Timeout, "attach-timeout": o.AttachTimeout} {
		if d < time.Second {
			return o, &usageError{fmt.Sprintf("--%s: %v is less than a second", name, d), ""}
		}
	}
	if o.Wait < 0 {
		return o, &usageError{fmt.Sprintf("--wait: %v is negative", o.Wait), ""}
	}
	if (c.String("instance-id") == "") != (c.String("zone") == "") {
		return o, &usageError{"--instance-id and --zone go together", ""}
	}
	var err error
	if o.MountPoint, err = mountPoint(c); err != nil {
		return o, err
	}
	if o.FallbackDir != "" && !filepath.IsAbs(o.FallbackDir) {
		return o, &usageError{fmt.Sprintf("--fallback-dir: %q is not an absolute path", o.FallbackDir), ""}
	}
	o.Root, err = root(c.String("owner"), c.String("mode"))
	return o, err
}

func mountPoint(c *cli.Context) (string, error) {
	point := c.String("mount-point")
	if !filepath.IsAbs(point) || filepath.Clean(point) == "/" {
		return "", &usageError{fmt.Sprintf("--mount-point: %q is not an absolute path below /", point), ""}
	}
	return filepath.Clean(point), nil
}

func root(owner, mode string) (pool.Root, error) {
	var r pool.Root
	bits, err := strconv.ParseUint(mode, 8, 12)
	if err != nil {
		return r, &usageError{fmt.Sprintf("--mode: %q is not an octal mode", mode), "such as 0755 or 1777"}
	}
	m := fs.FileMode(bits & 0o777)
	for bit, flag := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if bits&bit != 0 {
			m |= flag
		}
	}
	r.Mode = &m
	if owner == "" {
		return r, nil
	}
	name, group, grouped := strings.Cut(owner, ":")
	if name != "" {
		if r.UID, err = number(name, func() (string, error) {
			u, err := user.Lookup(name)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		}); err != nil {
			return r, &usageError{fmt.Sprintf("--owner: there is no user %q here", name), ""}
		}
	}
	if grouped && group != "" {
		if r.GID, err = number(group, func() (string, error) {
			g, err := user.LookupGroup(group)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		}); err != nil {
			return r, &usageError{fmt.Sprintf("--owner: there is no group %q here", group), ""}
		}
	}
	return r, nil
}

// number is an id given as such, or looked up by name.
func number(name string, lookup func() (string, error)) (*int, error) {
	id, err := strconv.Atoi(name)
	if err != nil {
		found, err := lookup()
		if err != nil {
			return nil, err
		}
		if id, err = strconv.Atoi(found); err != nil {
			return nil, err
		}
	}
	if id < 0 {
		return nil, errors.New("negative id")
	}
	return &id, nil
}

// ready checks what no fallback can help with: that we are root, and that the
// mount point can be a directory to write to.
func ready(c *cli.Context, o pool.Options, log *zap.Logger) error {
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	host, err := machine(c, log)
	if err != nil {
		return err
	}
	err = disks{host}.MakePoint(o.MountPoint, o.Root)
	if err != nil && !errors.Is(err, pool.ErrAlreadyMounted) {
		return fmt.Errorf("mount point %s: %w", o.MountPoint, err)
	}
	return nil
}

// agent is the process that owns the lease.
func agent(c *cli.Context) error {
	o, err := options(c)
	if err != nil {
		return err
	}
	log, err := logger(c)
	if err != nil {
		return err
	}
	if err := ready(c, o, log); err != nil {
		return err
	}
	p, err := parts(c, log, c.String("instance-id"), c.String("zone"))
	if err != nil {
		return err
	}
	strict := error(nil)
	err = pool.NewAgent(p, o).Run(c.Context, func(r pool.Result) {
		printResult(c, r)
		strict = strictly(c, r)
	})
	return errors.Join(err, strict)
}

func strictly(c *cli.Context, r pool.Result) error {
	switch {
	case !c.Bool("strict") || r.Result != pool.Fallback:
		return nil
	case r.Reason != nil && r.Reason.Passing():
		return exitError(exitRetry)
	}
	return exitError(exitFailed)
}

// acquire finds the living agent, or starts one, and waits for its result.
func acquire(c *cli.Context) error {
	o, err := options(c)
	if err != nil {
		return err
	}
	log, err := logger(c)
	if err != nil {
		return err
	}
	if err := ready(c, o, log); err != nil {
		return err
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(c.Context, o.Timeout)
	defer cancel()
	r, err := resultOf(ctx, c, o)
	if err != nil {
		// There is no agent, or it does not answer: the directory is there all
		// the same, and the machine boots.
		reason, message := pool.ReasonNoAgent, err.Error()
		if errors.Is(err, context.DeadlineExceeded) {
			reason, message = pool.ReasonTimeout, fmt.Sprintf("the agent gave no result within %v", o.Timeout)
		} else if c.Context.Err() != nil {
			reason, message = pool.ReasonInterrupted, "interrupted"
		}
		hint := "see " + pool.RunDir(c.String("run-dir")).Log(o.MountPoint)
		r = pool.Result{Schema: 1, Result: pool.Fallback, Reason: &reason, Message: &message, Hint: &hint,
			Pool: o.Pool, MountPoint: o.MountPoint}
		r.Seconds.Total = new(time.Since(began).Round(time.Millisecond).Seconds())
	}
	printResult(c, r)
	return strictly(c, r)
}

// resultOf asks the agent until it answers; an agent that is starting does not
// listen yet.
func resultOf(ctx context.Context, c *cli.Context, o pool.Options) (pool.Result, error) {
	dir := pool.RunDir(c.String("run-dir"))
	r, err := dir.AskResult(ctx, o.MountPoint)
	if !errors.Is(err, pool.ErrNoAgent) {
		return r, err
	}
	if err := dir.Make(); err != nil {
		return r, fmt.Errorf("make the state folder: %w", err)
	}
	pid, exited, err := startAgent(c, o, dir.Log(o.MountPoint))
	if err != nil {
		return r, fmt.Errorf("start the agent: %w", err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for gone := false; ; {
		r, err := dir.AskResult(ctx, o.MountPoint)
		if !errors.Is(err, pool.ErrNoAgent) {
			return r, err
		}
		// It may have decided and gone before we could ask.
		if left, err := dir.Load(o.MountPoint); err == nil && left != nil && left.PID == pid && left.Result != nil {
			return *left.Result, nil
		}
		if gone {
			return r, errors.New("the agent ended without a result")
		}
		select {
		case <-exited:
			gone = true // once more: another acquire's agent may be the one that lives
		case <-tick.C:
		case <-ctx.Done():
			return r, ctx.Err()
		}
	}
}

// startAgent starts ourselves as agent, in a session of its own. It keeps
// nothing of ours open: who waits for our output must not wait for it.
func startAgent(c *cli.Context, o pool.Options, logFile string) (pid int, exited <-chan struct{}, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, nil, err
	}
	if info, err := os.Stat(logFile); err == nil && info.Size() > 1<<20 {
		if err := os.Rename(logFile, logFile+".1"); err != nil {
			return 0, nil, err
		}
	}
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return 0, nil, err
	}
	defer out.Close()
	args, err := agentArgs(c, o)
	if err != nil {
		return 0, nil, err
	}
	cmd := exec.Command(self)
	cmd.Args = append([]string{"volpool"}, args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, nil, err
	}
	done := make(chan struct{})
	go func() {
		cmd.Wait()
		close(done)
	}()
	return cmd.Process.Pid, done, nil
}

// agentArgs passes on what was set, however it was set. The agent works in /:
// paths are made absolute for it.
func agentArgs(c *cli.Context, o pool.Options) ([]string, error) {
	var args []string
	for _, name := range []string{"table", "region", "log-level", "log-format"} {
		if v := c.String(name); v != "" {
			args = append(args, "--"+name, v)
		}
	}
	paths := []string{"run-dir", "sysfs-root", "dev-root"}
	if c.IsSet("config") {
		paths = append(paths, "config")
	}
	for _, name := range paths {
		path, err := filepath.Abs(c.String(name))
		if err != nil {
			return nil, err
		}
		args = append(args, "--"+name, path)
	}
	args = append(args, "agent", "--pool", o.Pool, "--mount-point", o.MountPoint, "--timeout", o.Timeout.String(),
		"--attach-timeout", o.AttachTimeout.String(), "--wait", o.Wait.String())
	for _, name := range []string{"owner", "mode", "fallback-dir", "instance-id", "zone"} {
		if v := c.String(name); v != "" {
			args = append(args, "--"+name, v)
		}
	}
	return args, nil
}
