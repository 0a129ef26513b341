//go:build linux

// Command init serves the host of the virtual machine that it runs in.
package main

import (
	"fmt"
	"os"

	"github.com/volpool/volpool/integration/vm/guest"
)

func main() {
	if err := guest.Serve(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
