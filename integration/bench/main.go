// Command bench prints the project's figures (see package figure). It exits with 1 where one is missed. It needs root, for loop devices.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/volpool/volpool/integration/dynamolocal"
	"github.com/volpool/volpool/integration/ec2sim"
	"github.com/volpool/volpool/integration/ec2sim/loopdev"
	"github.com/volpool/volpool/integration/figure"
)

const (
	zone   = "us-east-1a"
	binary = "bin/volpool"
)

func main() {
	// A second signal doesn't stop the clearing up.
	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	err := run(ctx)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "bench:", context.Cause(ctx))
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// errMissed ends a run in which a figure was beyond its limit.
var errMissed = errors.New("a figure was missed")

// bench is what all figures are measured on.
type bench struct {
	dynamo *dynamolocal.Server
	ec2    *ec2sim.Sim
	dir    string
	missed bool
}

func run(ctx context.Context) (err error) {
	if err := loopdev.Supported(); err != nil {
		return err
	}
	b := &bench{}
	if b.dir, err = os.MkdirTemp("", "volpool-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if b.dynamo, err = dynamolocal.Start(ctx, dynamolocal.Config{}); err != nil {
		return err
	}
	defer b.dynamo.Stop()
	backend, err := loopdev.New(loopdev.Config{Dir: b.dir + "/ec2"})
	if err != nil {
		return err
	}
	if b.ec2, err = ec2sim.Start(ec2sim.Config{Zones: []string{zone}, Backend: backend}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.ec2.Close()) }()
	for _, group := range []func(context.Context) error{b.size, b.acquire, b.race, b.oldWay, b.flat} {
		if err := group(ctx); err != nil {
			return err
		}
	}
	if b.missed {
		return errMissed
	}
	return nil
}

func (b *bench) atMost(name string, value float64, unit string, limit float64) {
	b.missed = !figure.AtMost(name, value, unit, limit) || b.missed
}

func (b *bench) atLeast(name string, value float64, unit string, limit float64) {
	b.missed = !figure.AtLeast(name, value, unit, limit) || b.missed
}

// dynamoDB is the SDK's client of a DynamoDB Local, or of what stands before it.
func dynamoDB(endpoint string) *dynamodb.Client {
	return dynamodb.New(dynamodb.Options{Region: dynamolocal.Region, BaseEndpoint: &endpoint,
		Credentials: credentials.NewStaticCredentialsProvider(dynamolocal.AccessKey, dynamolocal.SecretKey, "")})
}
