package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/mount"
	"github.com/volpool/volpool/pool"
)

// The exit codes are a contract: scripts and units rely on them.
const (
	exitDone    = 0  // a usable directory, or done
	exitFailed  = 1  // refused, or failed
	exitUsage   = 2  // wrong usage
	exitNothing = 3  // status: nothing is held
	exitRetry   = 75 // --strict: a fallback that a retry may cure (EX_TEMPFAIL)
)

// usageError is wrong usage: nothing was begun.
type usageError struct{ text, hint string }

func (e *usageError) Error() string { return e.text }

// exitError ends with a code and says nothing more: the result was printed.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// hintError is an error with its remedy.
type hintError struct {
	error
	hint string
}

func (e *hintError) Unwrap() error { return e.error }

// report writes an error as one line, and its remedy as a second, and returns
// the exit code.
func report(w io.Writer, err error) int {
	if err == nil {
		return exitDone
	}
	if code, ok := errors.AsType[exitError](err); ok {
		return int(code)
	}
	fmt.Fprintf(w, "volpool: %s\n", strings.Join(strings.Fields(err.Error()), " "))
	if hint := remedy(err); hint != "" {
		fmt.Fprintf(w, "hint: %s\n", hint)
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if errors.Is(err, mount.ErrNotDirectory) {
		return exitUsage
	}
	return exitFailed
}

func remedy(err error) string {
	if e, ok := errors.AsType[*usageError](err); ok {
		return e.hint
	}
	if e, ok := errors.AsType[*hintError](err); ok {
		return e.hint
	}
	if e, ok := errors.AsType[*lease.StateError](err); ok && e.Record.State == lease.Held {
		return "volpool pool drain " + e.Record.Volume + " takes it out of service when its holder gives it back"
	}
	if e, ok := errors.AsType[*lease.RegisteredError](err); ok {
		return "a volume is in one pool at a time: volpool pool retire " + e.Record.Volume + " ends its service there"
	}
	if e, ok := errors.AsType[*pool.StateError](err); ok {
		return "remove " + e.Path + " if no agent runs for that mount point"
	}
	if _, ok := errors.AsType[*mount.BusyError](err); ok {
		return "end those processes, or give --kill"
	}
	for _, known := range []struct {
		kind error
		hint string
	}{
		{lease.ErrNoPool, "volpool pool init makes one"},
		{lease.ErrNoVolume, "volpool pool add registers it"},
		{lease.ErrNoTable, "volpool pool init makes it; --table and --region name another one"},
		{lease.ErrTableSchema, "name another table with --table: keys and index can't be changed later"},
		{lease.ErrUnreachable, "check the network, --region, and the endpoint variables of the AWS SDK"},
		{lease.ErrDenied, "check the credentials and their IAM policy"},
		{pool.ErrDenied, "check the credentials and their IAM policy"},
		{mount.ErrNotDirectory, "choose another --mount-point"},
		{context.DeadlineExceeded, "try again, or give more time with --timeout"},
	} {
		if errors.Is(err, known.kind) {
			return known.hint
		}
	}
	return ""
}
