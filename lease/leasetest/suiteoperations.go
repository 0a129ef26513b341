package leasetest

import (
	"testing"

	"github.com/volpool/volpool/lease"
)

func testOperations(t *testing.T, s lease.Store) {}
func testProtocol(t *testing.T, s lease.Store)   {}
