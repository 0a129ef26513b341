package lease_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

// exampleStore is a table with the pool ci and one volume in it. Outside of a
// test it is lease.NewDynamoDB(dynamodb.NewFromConfig(cfg), "volpool").
func exampleStore(ctx context.Context) lease.Store {
	store := leasetest.NewMemory()
	registry := lease.Registry{Store: store}
	if _, err := registry.Init(ctx, "ci", lease.DefaultSettings()); err != nil {
		log.Fatal(err)
	}
	v := lease.Volume{ID: "vol-0a1b2c3d4e5f60718", SizeGiB: 100, Created: time.Unix(1_700_000_000, 0)}
	if _, err := registry.Add(ctx, "ci", "us-east-1a", v); err != nil {
		log.Fatal(err)
	}
	return store
}

func exampleClaimant(store lease.Store) *lease.Claimant {
	claimant, err := lease.New(lease.Config{Store: store, Pool: "ci", Zone: "us-east-1a", Owner: "i-0123456789abcdef0",
		MountPoint: "/mnt/cache"})
	if err != nil {
		log.Fatal(err)
	}
	return claimant
}

// Claim the lowest free volume of the zone. A second claim finds none.
func ExampleClaimant_Claim() {
	ctx := context.Background()
	claimant := exampleClaimant(exampleStore(ctx))
	defer claimant.Settle()

	l, err := claimant.Claim(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer l.Abandon()
	fmt.Println(l.Volume(), "at generation", l.Generation())

	_, err = claimant.Claim(ctx, nil)
	fmt.Println(err, errors.Is(err, lease.ErrNoFree))
	// Output:
	// vol-0a1b2c3d4e5f60718 at generation 1
	// no volume is free true
}

// A lease keeps itself from the moment it was claimed. After the attach it is
// confirmed, before anything is written to the device; its context ends when
// the lease does, and says why.
func ExampleLease_Confirm() {
	ctx := context.Background()
	store := exampleStore(ctx)
	l, err := exampleClaimant(store).Claim(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	// AttachVolume comes here.
	if err := l.Confirm(ctx); err != nil {
		log.Fatal(err) // nothing may be written: detach
	}
	fmt.Println("confirmed; in danger:", l.Danger())

	// Another process of this instance, restarted, takes the lease up.
	again, err := exampleClaimant(store).Readopt(ctx, l.Record())
	if err != nil {
		log.Fatal(err)
	}
	defer again.Abandon()
	fmt.Println(l.Confirm(ctx))
	<-l.Context().Done()
	fmt.Println(errors.Is(context.Cause(l.Context()), lease.ErrLost))
	// Output:
	// confirmed; in danger: false
	// lease lost: vol-0a1b2c3d4e5f60718 at generation 1: held by i-0123456789abcdef0 at generation 2
	// true
}

// Unmounted and detached, the volume goes back, with what was learned of it.
func ExampleLease_Release() {
	ctx := context.Background()
	store := exampleStore(ctx)
	l, err := exampleClaimant(store).Claim(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	l.Note(lease.Facts{Clean: new(true), UsedPercent: new(int64(61))})
	if err := l.Release(ctx, true); err != nil {
		log.Fatal(err) // may be called again
	}
	r, err := (lease.Registry{Store: store}).Find(ctx, l.Volume())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(r.State, r.Generation, r.LastOwner, r.UsedPercent)
	fmt.Println(context.Cause(l.Context()))
	// Output:
	// free 1 i-0123456789abcdef0 61
	// lease given back
}
