package integration_test

import (
	"errors"
	"testing"

	"github.com/volpool/volpool/integration/dynamolocal"
	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

// TestLeaseConformance: DynamoDB passes the suite that the memory store passes.
func TestLeaseConformance(t *testing.T) {
	api := dynamolocal.Shared(t).Client()
	const table = "lease-conformance"
	if err := lease.CheckTable(t.Context(), api, table); !errors.Is(err, lease.ErrNoTable) {
		t.Errorf("before it was made: %v", err)
	}
	for range 2 { // the second time it is there
		if err := lease.CreateTable(t.Context(), api, table); err != nil {
			t.Fatal(err)
		}
	}
	store := lease.NewDynamoDB(api, table)
	leasetest.Run(t, func(*testing.T) lease.Store { return store })
}
