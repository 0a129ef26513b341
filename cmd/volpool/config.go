package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/urfave/cli/v2"
	"gopkg.in/yaml.v3"
)

const defaultConfig = "/etc/volpool/volpool.yaml"

// applyConfig gives every flag of this command that neither the command line nor
// a variable has set the value from the configuration file. Its keys are the
// flags' names; one that no command knows is an error that names its line.
func applyConfig(c *cli.Context) error {
	if out := c.String("output"); out != "" && out != "text" && out != "json" {
		return &usageError{fmt.Sprintf("--output: %q is not a format", out), "text or json"}
	}
	path := c.String("config")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && path == defaultConfig {
		return nil
	}
	if err != nil {
		return &usageError{"read the configuration: " + err.Error(), ""}
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return &usageError{fmt.Sprintf("configuration %s: %v", path, err), ""}
	}
	if len(doc.Content) == 0 {
		return nil
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return &usageError{fmt.Sprintf("configuration %s, line %d: not a list of KEY: VALUE", path, top.Line), ""}
	}
	known := map[string]bool{}
	for _, f := range c.App.Flags {
		known[f.Names()[0]] = true
	}
	each(c.App.Commands, func(cmd *cli.Command) {
		for _, f := range cmd.Flags {
			known[f.Names()[0]] = true
		}
	})
	delete(known, "help")
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		switch {
		case !known[key.Value]:
			return &usageError{fmt.Sprintf("configuration %s, line %d: there is no flag %q", path, key.Line, key.Value), "volpool acquire --help lists the flags"}
		case value.Kind != yaml.ScalarNode:
			return &usageError{fmt.Sprintf("configuration %s, line %d: %s takes one value", path, value.Line, key.Value), ""}
		case !has(c, key.Value) || c.IsSet(key.Value):
			continue
		}
		if err := c.Set(key.Value, value.Value); err != nil {
			return &usageError{fmt.Sprintf("configuration %s, line %d: %s: %q: %v", path, value.Line, key.Value, value.Value, err), ""}
		}
	}
	return nil
}

// has tells whether the flag belongs to the command that is being set up, or to
// the program.
func has(c *cli.Context, name string) bool {
	flags := c.App.Flags
	if c.Command != nil && c.Command.Name != "" {
		flags = c.Command.Flags
	}
	for _, f := range flags {
		if f.Names()[0] == name {
			return true
		}
	}
	return false
}
