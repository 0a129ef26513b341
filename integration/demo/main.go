// Command demo tells package story's story. Its one argument is the volpool to
// use.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/volpool/volpool/integration/story"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: demo VOLPOOL")
		os.Exit(2)
	}
	// All of these would leave devices behind: SIGPIPE comes when nobody reads
	// the story any more. A second one doesn't stop the clearing up.
	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	err := story.Tell(ctx, story.Config{Binary: os.Args[1], Out: os.Stdout})
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "demo:", err)
	if ctx.Err() != nil {
		os.Exit(130)
	}
	os.Exit(1)
}
