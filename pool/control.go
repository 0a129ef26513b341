package pool

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"
)

// The agent listens on a socket beside its state file. One request is one line
// of JSON, and so is its answer, which comes when there is one: the result, once
// the acquire is decided; the release, once the volume is given back. That the
// socket answers is the sign that the agent lives.

type request struct {
	Op   string `json:"op"` // "result" or "release"
	Kill bool   `json:"kill,omitempty"`
	// Patience is how long the caller of a release will wait.
	Patience time.Duration `json:"patience,omitempty"`
}

type answer struct {
	Result  *Result   `json:"result,omitempty"`
	Release *Released `json:"release,omitempty"`
	Error   string    `json:"error,omitempty"`
	Ended   bool      `json:"ended,omitempty"` // the agent holds nothing and is about to go
}

// Released is what a release prints.
type Released struct {
	Schema     int     `json:"schema"`
	Released   bool    `json:"released"` // false: there was nothing to give back
	MountPoint string  `json:"mount_point"`
	Volume     *string `json:"volume"`
	Generation *int64  `json:"generation"`
	Message    *string `json:"message"`
}

// ErrNoAgent says that no agent lives for the mount point.
var ErrNoAgent = errors.New("no agent lives for this mount point")

// AskResult waits for the living agent's result.
func (d RunDir) AskResult(ctx context.Context, point string) (Result, error) {
	a, err := d.ask(ctx, point, request{Op: "result"})
	if err != nil {
		return Result{}, err
	}
	if a.Result == nil {
		return Result{}, fmt.Errorf("the agent of %s answered without a result", point)
	}
	return *a.Result, nil
}

// AskRelease has the living agent give the volume back, and waits for it.
func (d RunDir) AskRelease(ctx context.Context, point string, kill bool) (Released, error) {
	r := request{Op: "release", Kill: kill}
	if deadline, ok := ctx.Deadline(); ok {
		r.Patience = time.Until(deadline)
	}
	a, err := d.ask(ctx, point, r)
	if err != nil {
		return Released{}, err
	}
	if a.Release == nil {
		return Released{}, fmt.Errorf("the agent of %s answered without saying what it released", point)
	}
	return *a.Release, nil
}

func (d RunDir) ask(ctx context.Context, point string, r request) (answer, error) {
	address, done, err := short(d.path(point, ".sock"))
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", point, ErrNoAgent)
	}
	defer done()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", address)
	if err != nil {
		if ctx.Err() != nil {
			return answer{}, ctx.Err()
		}
		return answer{}, fmt.Errorf("%s: %w", point, ErrNoAgent)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var a answer
	if err := json.NewEncoder(conn).Encode(r); err == nil {
		err = json.NewDecoder(conn).Decode(&a)
		if err == nil && a.Error == "" && !a.Ended {
			return a, nil
		}
	}
	switch {
	case a.Error != "":
		return answer{}, errors.New(a.Error)
	case ctx.Err() != nil:
		return answer{}, ctx.Err()
	}
	return answer{}, fmt.Errorf("%s: %w", point, ErrNoAgent) // it ended while we waited
}

// short gives a socket's path a form that fits into the kernel's 108 bytes.
func short(path string) (address string, done func(), err error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), func() { dir.Close() }, nil
}

// control is the agent's side of the socket.
type control struct {
	listener net.Listener
	serving  sync.WaitGroup
}

// listen makes the socket. The lock is held: a socket file that is there was
// left by a dead agent.
func listen(path string) (net.Listener, error) {
	if err := remove(path); err != nil {
		return nil, err
	}
	address, done, err := short(path)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.Listen("unix", address)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // its path would be the short form
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// serve answers requests until close.
func serve(l net.Listener, log *zap.Logger, handle func(ctx context.Context, r request) answer) *control {
	c := &control{listener: l}
	c.serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					log.Error("control socket", zap.Error(err))
				}
				return
			}
			c.serving.Go(func() { c.answer(conn, handle) })
		}
	})
	return c
}

func (c *control) answer(conn net.Conn, handle func(ctx context.Context, r request) answer) {
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(5 * time.Second)) // who connects has something to say
	reader := bufio.NewReader(conn)
	line, err := reader.ReadBytes('\n')
	if err != nil {
		return
	}
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		json.NewEncoder(conn).Encode(answer{Error: "the request is not understood: " + err.Error()})
		return
	}
	conn.SetReadDeadline(time.Time{})
	// The caller that goes away ends its request, not the agent's work.
	ctx, gone := context.WithCancel(context.Background())
	defer gone()
	go func() {
		reader.ReadByte()
		gone()
	}()
	json.NewEncoder(conn).Encode(handle(ctx, r))
}

// close stops listening, and waits for the answers under way. The agent has
// decided all there is to decide by then.
func (c *control) close() {
	c.listener.Close()
	c.serving.Wait()
}
