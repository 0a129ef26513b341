package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// run is the whole program but for os.Exit.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := &cli.App{
		Name:      "volpool",
		Usage:     "a warm EBS volume for every autoscaled instance",
		Version:   version,
		Writer:    stdout,
		ErrWriter: stderr,
		// urfave/cli would print usage and exit by itself: errors are ours.
		ExitErrHandler:  func(*cli.Context, error) {},
		OnUsageError:    wrongUsage,
		HideHelpCommand: true,
		Before:          applyConfig,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Value: defaultConfig, EnvVars: []string{"VOLPOOL_CONFIG"}, Usage: "configuration `FILE`, if it is there"},
			&cli.StringFlag{Name: "table", Value: "volpool", EnvVars: []string{"VOLPOOL_TABLE"}, Usage: "DynamoDB `TABLE`"},
			&cli.StringFlag{Name: "region", EnvVars: []string{"VOLPOOL_REGION"}, Usage: "AWS `REGION` (else AWS_REGION, the profile's, the instance's)"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "text", EnvVars: []string{"VOLPOOL_OUTPUT"}, Usage: "`FORMAT` of results: text or json"},
			&cli.BoolFlag{Name: "quiet", EnvVars: []string{"VOLPOOL_QUIET"}, Usage: "print no result"},
			&cli.StringFlag{Name: "log-level", Value: "info", EnvVars: []string{"VOLPOOL_LOG_LEVEL"}, Usage: "`LEVEL`: debug, info, warn or error"},
			&cli.StringFlag{Name: "log-format", Value: "console", EnvVars: []string{"VOLPOOL_LOG_FORMAT"}, Usage: "`FORMAT` of logs: console or json"},
			&cli.StringFlag{Name: "run-dir", Value: "/run/volpool", EnvVars: []string{"VOLPOOL_RUN_DIR"}, Usage: "`DIR` for the instance's state"},
			&cli.StringFlag{Name: "sysfs-root", Value: "/sys", EnvVars: []string{"VOLPOOL_SYSFS_ROOT"}, Hidden: true},
			&cli.StringFlag{Name: "dev-root", Value: "/dev", EnvVars: []string{"VOLPOOL_DEV_ROOT"}, Hidden: true},
		},
		Commands: []*cli.Command{acquireCommand(), agentCommand(), releaseCommand(), statusCommand(), poolCommand()},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return &usageError{fmt.Sprintf("there is no command %q", c.Args().First()), "volpool --help lists the commands"}
			}
			return cli.ShowAppHelp(c)
		},
	}
	each(app.Commands, func(cmd *cli.Command) {
		cmd.OnUsageError, cmd.HideHelpCommand = wrongUsage, true
		cmd.Before = applyConfig
	})
	return report(stderr, app.RunContext(ctx, hoist(args)))
}

func each(cmds []*cli.Command, do func(*cli.Command)) {
	for _, cmd := range cmds {
		do(cmd)
		each(cmd.Subcommands, do)
	}
}

// hoist lets the output's format stand where people write it ("pool list ci -o
// json"), where the flag package does not look for it. What follows "--" stays.
func hoist(args []string) []string {
	for i := 1; i+1 < len(args); i++ {
		if args[i] == "--" {
			break
		}
		out := args[i] == "-o" || args[i] == "--output"
		if out {
			moved := append([]string{args[0], args[i], args[i+1]}, args[1:i]...)
			return append(moved, args[i+2:]...)
		}
	}
	for i := 1; i < len(args) && args[i] != "--"; i++ {
		if strings.HasPrefix(args[i], "-o=") || strings.HasPrefix(args[i], "--output=") {
			moved := append([]string{args[0], args[i]}, args[1:i]...)
			return append(moved, args[i+1:]...)
		}
	}
	return args
}

func wrongUsage(c *cli.Context, err error, _ bool) error {
	name := "volpool"
	if c.Command != nil && c.Command.Name != "" && c.Command.Name != "volpool" {
		name = c.Command.HelpName
	}
	return &usageError{err.Error(), name + " --help lists the flags"}
}

// logger writes to stderr, which a result never does.
func logger(c *cli.Context) (*zap.Logger, error) {
	level, err := zapcore.ParseLevel(c.String("log-level"))
	if err != nil {
		return nil, &usageError{fmt.Sprintf("--log-level: %q is not a level", c.String("log-level")), "debug, info, warn or error"}
	}
	cfg := zap.NewProductionEncoderConfig()
	cfg.EncodeTime = zapcore.RFC3339TimeEncoder
	var enc zapcore.Encoder
	switch c.String("log-format") {
	case "json":
		enc = zapcore.NewJSONEncoder(cfg)
	case "console":
		enc = zapcore.NewConsoleEncoder(cfg)
	default:
		return nil, &usageError{fmt.Sprintf("--log-format: %q is not a format", c.String("log-format")), "console or json"}
	}
	return zap.New(zapcore.NewCore(enc, zapcore.AddSync(c.App.ErrWriter), level)), nil
}

// needArgs takes the command's positional arguments, by name.
func needArgs(c *cli.Context, names ...string) ([]string, error) {
	args := c.Args().Slice()
	for i, name := range names {
		if i >= len(args) {
			return nil, &usageError{fmt.Sprintf("%s: %s is missing", c.Command.HelpName, name), c.Command.HelpName + " " + strings.Join(names, " ")}
		}
	}
	for _, arg := range args {
		if strings.HasPrefix(arg, "-") {
			return nil, &usageError{fmt.Sprintf("%s: flag %s stands behind an argument", c.Command.HelpName, arg), "flags come first"}
		}
	}
	return args, nil
}

func noMore(c *cli.Context, args []string, n int) error {
	if len(args) > n {
		return &usageError{fmt.Sprintf("%s: %q is one argument too many", c.Command.HelpName, args[n]), c.Command.HelpName + " --help"}
	}
	return nil
}

var errNotRoot = &hintError{errors.New("not running as root: attaching and mounting need it"), "run it with sudo, or from user-data"}
