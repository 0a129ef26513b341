package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/pool"
)

func settingFlags() []cli.Flag {
	d := lease.DefaultSettings()
	return []cli.Flag{
		&cli.StringFlag{Name: "filesystem", Value: d.Filesystem, Usage: "`TYPE` that blank volumes are formatted with: ext4 or xfs"},
		&cli.DurationFlag{Name: "lease", Value: d.Lease, Usage: "`TIME` that a lease holds without a heartbeat"},
		&cli.StringFlag{Name: "order", Value: d.Order, Usage: "`ORDER` in which free volumes are taken: lowest or recent"},
		&cli.StringFlag{Name: "mount-options", Value: strings.Join(d.MountOptions, ","), Usage: "`OPTIONS` as mount(8) takes them, with commas"},
	}
}

func poolCommand() *cli.Command {
	return &cli.Command{Name: "pool", Usage: "look after pools and their volumes",
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return &usageError{fmt.Sprintf("there is no command %q", "pool "+c.Args().First()), "volpool pool --help lists the commands"}
			}
			return cli.ShowSubcommandHelp(c)
		},
		Subcommands: []*cli.Command{
			{Name: "init", Usage: "make a pool, and the table where there is none", ArgsUsage: "POOL", Flags: settingFlags(), Action: poolInit},
			{Name: "set", Usage: "change a pool's settings", ArgsUsage: "POOL", Flags: settingFlags(), Action: poolSet},
			{Name: "show", Usage: "show a pool's settings, or all that is known of a volume", ArgsUsage: "POOL|VOLUME", Action: poolShow},
			{Name: "pause", Usage: "have every acquire fall back at once", ArgsUsage: "POOL", Action: poolPause(true)},
			{Name: "resume", Usage: "take a pause back", ArgsUsage: "POOL", Action: poolPause(false)},
			{Name: "list", Usage: "list a pool's volumes", ArgsUsage: "[POOL]",
				Flags: []cli.Flag{&cli.StringFlag{Name: "pool", EnvVars: []string{"VOLPOOL_POOL"}, Usage: "`POOL` where no argument names one"}}, Action: poolList},
			{Name: "add", Usage: "register volumes", ArgsUsage: "POOL VOLUME...", Action: poolAdd},
			{Name: "drain", Usage: "take a volume out of circulation, once its holder gives it back", ArgsUsage: "VOLUME",
				Action: volumeChange("draining", lease.Registry.Drain)},
			{Name: "undrain", Usage: "put a drained or quarantined volume back", ArgsUsage: "VOLUME",
				Action: volumeChange("undrained", lease.Registry.Undrain)},
			{Name: "retire", Usage: "end a volume's service", ArgsUsage: "VOLUME",
				Flags: []cli.Flag{&cli.BoolFlag{Name: "delete", Usage: "delete it in EC2 too, for good"}}, Action: poolRetire},
		}}
}

// onPool takes the one argument that names a pool.
func onPool(c *cli.Context) (string, error) {
	args, err := needArgs(c, "POOL")
	if err == nil {
		err = noMore(c, args, 1)
	}
	if err == nil {
		err = validPool(args[0])
	}
	if err != nil {
		return "", err
	}
	return args[0], nil
}

func validPool(name string) error {
	if err := lease.CheckPoolName(name); err != nil {
		return &usageError{err.Error(), ""}
	}
	return nil
}

func onVolume(c *cli.Context) (string, error) {
	args, err := needArgs(c, "VOLUME")
	if err == nil {
		err = noMore(c, args, 1)
	}
	if err == nil {
		err = validVolume(args[0])
	}
	if err != nil {
		return "", err
	}
	return args[0], nil
}

func validVolume(id string) error {
	if err := lease.CheckVolumeID(id); err != nil {
		return &usageError{err.Error(), ""}
	}
	return nil
}

// change lays the flags that were given over settings.
func change(c *cli.Context, s *lease.Settings) {
	if c.IsSet("filesystem") {
		s.Filesystem = c.String("filesystem")
	}
	if c.IsSet("lease") {
		s.Lease = c.Duration("lease")
	}
	if c.IsSet("order") {
		s.Order = c.String("order")
	}
	if c.IsSet("mount-options") {
		s.MountOptions = strings.FieldsFunc(c.String("mount-options"), func(r rune) bool { return r == ',' })
	}
}

func validSettings(c *cli.Context) error {
	s := lease.DefaultSettings()
	change(c, &s)
	if err := s.Validate(); err != nil {
		return &usageError{err.Error(), ""}
	}
	return nil
}

func poolInit(c *cli.Context) error {
	name, err := onPool(c)
	if err == nil {
		err = validSettings(c)
	}
	if err != nil {
		return err
	}
	s, err := operator(c)
	if err != nil {
		return err
	}
	if err := lease.CreateTable(c.Context, s.dynamo, c.String("table")); err != nil {
		return err
	}
	wanted := lease.DefaultSettings()
	change(c, &wanted)
	p, err := lease.Registry{Store: s.store}.Init(c.Context, name, wanted)
	if exists, ok := errors.AsType[*lease.PoolExistsError](err); ok {
		asked := exists.Pool.Settings
		change(c, &asked)
		if fmt.Sprint(asked) != fmt.Sprint(exists.Pool.Settings) {
			return &hintError{fmt.Errorf("pool %q is there already, with other settings", name), "volpool pool set " + name + " changes them"}
		}
		printPool(c, exists.Pool, fmt.Sprintf("pool %s was there already, in table %s", name, c.String("table")))
		return nil
	}
	if err != nil {
		return err
	}
	printPool(c, p, fmt.Sprintf("pool %s made, in table %s", name, c.String("table")))
	return nil
}

func poolSet(c *cli.Context) error {
	name, err := onPool(c)
	if err == nil {
		err = validSettings(c)
	}
	if err == nil && c.NumFlags() == 0 {
		err = &usageError{"pool set: no setting is given", "volpool pool set --help lists them; flags come before the pool"}
	}
	if err != nil {
		return err
	}
	return setPool(c, name, func(s *lease.Settings) { change(c, s) }, "pool %s set")
}

func poolPause(paused bool) cli.ActionFunc {
	head := "pool %s resumed"
	if paused {
		head = "pool %s paused: every acquire falls back at once; what is held stays held"
	}
	return func(c *cli.Context) error {
		name, err := onPool(c)
		if err != nil {
			return err
		}
		return setPool(c, name, func(s *lease.Settings) { s.Paused = paused }, head)
	}
}

func setPool(c *cli.Context, name string, change func(*lease.Settings), head string) error {
	s, err := operator(c)
	if err != nil {
		return err
	}
	p, err := lease.Registry{Store: s.store}.Set(c.Context, name, change)
	if err != nil {
		return err
	}
	printPool(c, p, fmt.Sprintf(head, name))
	return nil
}

func poolShow(c *cli.Context) error {
	args, err := needArgs(c, "POOL|VOLUME")
	if err == nil {
		err = noMore(c, args, 1)
	}
	if err != nil {
		return err
	}
	isVolume := strings.HasPrefix(args[0], "vol-")
	if isVolume {
		err = validVolume(args[0])
	} else {
		err = validPool(args[0])
	}
	if err != nil {
		return err
	}
	s, err := operator(c)
	if err != nil {
		return err
	}
	registry := lease.Registry{Store: s.store}
	if isVolume {
		r, err := registry.Find(c.Context, args[0])
		if err != nil {
			return err
		}
		printRecord(c, r)
		return nil
	}
	p, err := registry.Pool(c.Context, args[0])
	if err != nil {
		return err
	}
	printPool(c, p, "pool "+p.Name)
	return nil
}

func poolList(c *cli.Context) error {
	name := c.String("pool")
	if c.Args().Present() {
		name = c.Args().First()
	}
	if name == "" {
		return &usageError{"pool list: no pool is named", "volpool pool list POOL, or set VOLPOOL_POOL"}
	}
	if err := noMore(c, c.Args().Slice(), 1); err != nil {
		return err
	}
	if err := validPool(name); err != nil {
		return err
	}
	s, err := operator(c)
	if err != nil {
		return err
	}
	registry := lease.Registry{Store: s.store}
	p, err := registry.Pool(c.Context, name)
	if err != nil {
		return err
	}
	rs, odd, now, err := registry.Volumes(c.Context, p)
	if err != nil {
		return err
	}
	if now.IsZero() {
		now = time.Now()
	}
	printVolumes(c, p, rs, odd, now)
	return nil
}

func poolAdd(c *cli.Context) error {
	args, err := needArgs(c, "POOL", "VOLUME")
	if err == nil {
		err = validPool(args[0])
	}
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, id := range args[1:] {
		if err := validVolume(id); err != nil {
			return err
		}
		if seen[id] {
			return &usageError{fmt.Sprintf("pool add: %s is named twice", id), ""}
		}
		seen[id] = true
	}
	s, err := operator(c)
	if err != nil {
		return err
	}
	added, err := pool.Admin{Registry: lease.Registry{Store: s.store}, EC2: s.ec2, Region: s.aws.Region}.Add(c.Context, args[0], args[1:])
	for _, r := range added {
		printVolume(c, r, "added")
	}
	return err
}

func volumeChange(verb string, do func(lease.Registry, context.Context, string) (lease.Record, error)) cli.ActionFunc {
	return func(c *cli.Context) error {
		id, err := onVolume(c)
		if err != nil {
			return err
		}
		s, err := operator(c)
		if err != nil {
			return err
		}
		r, err := do(lease.Registry{Store: s.store}, c.Context, id)
		if err != nil {
			return err
		}
		printVolume(c, r, verb)
		return nil
	}
}

func poolRetire(c *cli.Context) error {
	id, err := onVolume(c)
	if err != nil {
		return err
	}
	s, err := operator(c)
	if err != nil {
		return err
	}
	r, err := pool.Admin{Registry: lease.Registry{Store: s.store}, EC2: s.ec2, Region: s.aws.Region}.Retire(c.Context, id, c.Bool("delete"))
	if err != nil {
		return err
	}
	printVolume(c, r, "retired")
	return nil
}
