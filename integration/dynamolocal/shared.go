package dynamolocal

import (
	"context"
	"sync"
)

var shared = sync.OnceValues(func() (*Server, error) { return Start(context.Background(), Config{}) })

// Shared returns the one server of a test binary, started by the first test
// that asks for it and ended by the kernel with the process: no TestMain, and
// nothing to stop. Tests that share it use tables of their own. Inside a
// synctest bubble it cannot be asked for.
func Shared(t interface {
	Helper()
	Fatal(...any)
}) *Server {
	t.Helper()
	s, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return s
}
