// Command volpool gives autoscaled instances a warm EBS volume each, out of a
// pool that a DynamoDB table keeps.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set when a release is linked.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
