// Package dynamolocal runs Amazon's DynamoDB Local, for the tests, the demo and
// the benchmarks: the release that pom.xml pins, fetched once from Maven
// Central into a cache folder (VOLPOOL_CACHE, else volpool in the user's), in
// memory, on a free port.
//
// It needs Java 17 and, the first time, Maven; on Debian and Ubuntu it
// installs them where it is root. VOLPOOL_TEST_DYNAMODB names an endpoint to be
// used instead, which then has to be one of DynamoDB Local too.
//
// What it promises of the server's end: Stop ends it, and the kernel does when
// this process is gone, however it went. What it doesn't: that the server
// listens on 127.0.0.1 alone. It has no setting for that, so it listens on
// every address while it runs.
package dynamolocal

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/volpool/volpool/integration/child"
	"go.uber.org/zap"
)

// Region and credentials for the server. It takes access keys of letters and
// digits only, and whoever has whichever sees the same tables.
const (
	Region    = "us-east-1"
	AccessKey = "volpool"
	SecretKey = "volpool"
)

const endpointVariable = "VOLPOOL_TEST_DYNAMODB"

// Config of a Server; all may be left out.
type Config struct {
	Log *zap.Logger
}

// A Server is a DynamoDB Local that answers.
type Server struct {
	endpoint string
	client   *dynamodb.Client
	process  *os.Process     // nil where the endpoint is somebody else's
	ended    <-chan struct{} // closed when the process is gone
	output   *child.Tail
}

// Start returns when the server has answered its first call. It may take
// minutes where things have to be fetched and installed; then it says so in the
// log. The server outlives ctx; Stop it.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	log := cfg.Log
	if log == nil {
		log = zap.NewNop()
	}
	if url := os.Getenv(endpointVariable); url != "" {
		s := newServer(url)
		if err := s.await(ctx); err != nil {
			return nil, fmt.Errorf("DynamoDB at %s, which %s names: %w", url, endpointVariable, err)
		}
		return s, nil
	}
	java, jars, err := provide(ctx, log)
	if err != nil {
		return nil, err
	}
	// Another process may take the port between its choice and its use.
	for range 3 {
		var s *Server
		if s, err = launch(ctx, java, jars); err == nil {
			log.Info("DynamoDB Local is ready", zap.String("endpoint", s.endpoint), zap.Int("pid", s.process.Pid))
			return s, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("start DynamoDB Local: %w", err)
}

// Endpoint is the URL for AWS_ENDPOINT_URL_DYNAMODB.
func (s *Server) Endpoint() string { return s.endpoint }

// Client calls the server.
func (s *Server) Client() *dynamodb.Client { return s.client }

// Stop ends the server and waits until it is gone. It may be called twice.
func (s *Server) Stop() {
	if s.process == nil {
		return
	}
	_ = s.process.Kill() // it keeps nothing, and may be gone already
	<-s.ended
}

func newServer(url string) *Server {
	return &Server{endpoint: url, client: dynamodb.New(dynamodb.Options{
		BaseEndpoint: aws.String(url),
		Region:       Region,
		Credentials:  credentials.NewStaticCredentialsProvider(AccessKey, SecretKey, ""),
	})}
}

// launch starts one JVM and waits until it answers.
func launch(ctx context.Context, java, jars string) (*Server, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	// The JVM copies SQLite's library to its temporary folder, and removes it
	// at an orderly end only; once it answers, it has loaded it.
	temp, err := os.MkdirTemp("", "dynamolocal-")
	if err != nil {
		return nil, fmt.Errorf("make temporary folder: %w", err)
	}
	defer os.RemoveAll(temp)
	s := newServer("http://127.0.0.1:" + strconv.Itoa(port))
	s.output = &child.Tail{Limit: 4 << 10}
	cmd := exec.Command(java,
		"-XX:+UseSerialGC", "-XX:-UsePerfData", // UsePerfData leaves a file in /tmp
		"-Djava.library.path="+jars, "-Djava.io.tmpdir="+temp, "-cp", filepath.Join(jars, "*"),
		"software.amazon.dynamodb.services.local.main.ServerRunner",
		"-inMemory", "-sharedDb", "-disableTelemetry", "-port", strconv.Itoa(port))
	cmd.Dir = jars
	cmd.Stdout, cmd.Stderr = s.output, s.output
	if s.ended, err = child.Start(cmd); err != nil {
		return nil, fmt.Errorf("run java: %w", err)
	}
	s.process = cmd.Process
	if err := s.await(ctx); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

// await calls the server until it answers.
func (s *Server) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := s.client.ListTables(ctx, &dynamodb.ListTablesInput{}, func(o *dynamodb.Options) {
			o.RetryMaxAttempts = 1
		})
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.ended: // never, where the server isn't ours
			return fmt.Errorf("it ended by itself: %s", s.output)
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find free port: %w", err)
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
