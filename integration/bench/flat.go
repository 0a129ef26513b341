package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/lease/leasetest"
)

// metered adds up what the table charges.
type metered struct {
	lease.Store
	units float64
	beats float64 // the dearest heartbeat
}

func (m *metered) Write(ctx context.Context, w lease.Write) (lease.Reply, error) {
	r, err := m.Store.Write(ctx, w)
	m.units += r.Units
	if w.Set["beat"] != nil && w.Set["state"] == nil {
		m.beats = max(m.beats, r.Units)
	}
	return r, err
}

func (m *metered) Read(ctx context.Context, key lease.Key) (lease.Reply, error) {
	r, err := m.Store.Read(ctx, key)
	m.units += r.Units
	return r, err
}

func (m *metered) List(ctx context.Context, in lease.List) (lease.Page, error) {
	p, err := m.Store.List(ctx, in)
	m.units += p.Units
	return p, err
}

// flat compares claims among few volumes and among many, nearly all of them free
// or nearly all of them held.
func (b *bench) flat(ctx context.Context) error {
	client := dynamoDB(b.dynamo.Endpoint())
	if err := lease.CreateTable(ctx, client, "flat"); err != nil {
		return err
	}
	store := &metered{Store: lease.NewDynamoDB(client, "flat")}
	type crowd struct {
		name  string
		size  int
		held  bool
		units []float64
		took  []time.Duration
	}
	var crowds []*crowd
	for _, held := range []bool{false, true} {
		for _, size := range []int{10, 1000, 100_000} {
			c := &crowd{name: fmt.Sprintf("p%d-%v", size, held), size: size, held: held}
			if err := fill(ctx, client, store, c.name, size, held, len(crowds)<<32); err != nil {
				return err
			}
			crowds = append(crowds, c)
		}
	}
	const rounds = 200
	for range rounds {
		for _, c := range crowds {
			claimant, err := lease.New(lease.Config{Store: store, Pool: c.name, Zone: zone, Owner: "i-bench"})
			if err != nil {
				return err
			}
			before, began := store.units, time.Now()
			l, err := claimant.Claim(ctx, nil)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			c.took, c.units = append(c.took, time.Since(began)), append(c.units, store.units-before)
			if err := l.Renew(ctx); err != nil {
				return err
			}
			if err := l.Release(ctx, true); err != nil {
				return err
			}
		}
	}
	var units []float64
	var took []time.Duration
	for _, c := range crowds {
		units, took = append(units, median(c.units)), append(took, median(c.took))
		fmt.Printf("claim among %6d volumes, nearly all held %-5v  %.1f units  %.2f ms\n", c.size, c.held, median(c.units), median(c.took).Seconds()*1000)
	}
	b.atMost("claim.flat.units", slices.Max(units)/slices.Min(units), "ratio", 1.2)
	b.atMost("claim.flat.time", float64(slices.Max(took))/float64(slices.Min(took)), "ratio", 1.5)
	b.atMost("heartbeat.units", store.beats, "units", 1)
	return nil
}

func median[T cmp.Ordered](values []T) T { return slices.Sorted(slices.Values(values))[len(values)/2] }

// fill registers so many volumes: the first as the registry does, the others as
// copies of it, or of what a claim makes of it.
func fill(ctx context.Context, client *dynamodb.Client, store lease.Store, pool string, size int, held bool, firstID int) error {
	first := lease.Volume{ID: fmt.Sprintf("vol-%017x", firstID), SizeGiB: 1, Created: time.UnixMilli(1)}
	if held { // the free one is the last, behind all others
		first.Created = time.UnixMilli(int64(size))
	}
	if err := register(ctx, store, pool, first); err != nil {
		return err
	}
	model, err := modelOf(ctx, pool, first, held)
	if err != nil {
		return err
	}
	var batch []types.WriteRequest
	for i := 1; i < size; i++ {
		item := maps.Clone(model)
		volume := fmt.Sprintf("vol-%017x", firstID+i)
		item[lease.SortKey] = &types.AttributeValueMemberS{Value: volume}
		item["order"] = &types.AttributeValueMemberN{Value: strconv.Itoa(i + 1)}
		if !held {
			item[lease.FreeSlot] = &types.AttributeValueMemberS{Value: fmt.Sprintf("%015d#%s", i+1, volume)}
		}
		batch = append(batch, types.WriteRequest{PutRequest: &types.PutRequest{Item: item}})
		if len(batch) == 25 || i == size-1 {
			out, err := client.BatchWriteItem(ctx, &dynamodb.BatchWriteItemInput{RequestItems: map[string][]types.WriteRequest{"flat": batch}})
			if err != nil {
				return err
			}
			if left := len(out.UnprocessedItems); left > 0 {
				return fmt.Errorf("%d items were not written", left)
			}
			batch = nil
		}
	}
	return nil
}

// register makes a pool with one volume.
func register(ctx context.Context, s lease.Store, pool string, v lease.Volume) error {
	registry := lease.Registry{Store: s}
	if _, err := registry.Init(ctx, pool, lease.DefaultSettings()); err != nil {
		return err
	}
	_, err := registry.Add(ctx, pool, zone, v)
	return err
}

// modelOf is the item of a volume, free or held.
func modelOf(ctx context.Context, pool string, v lease.Volume, held bool) (lease.Item, error) {
	memory := leasetest.NewMemory()
	if err := register(ctx, memory, pool, v); err != nil {
		return nil, err
	}
	if held {
		c, err := lease.New(lease.Config{Store: memory, Pool: pool, Zone: zone, Owner: "i-other"})
		if err != nil {
			return nil, err
		}
		l, err := c.Claim(ctx, nil)
		if err != nil {
			return nil, err
		}
		l.Abandon()
	}
	return memory.Item(lease.Key{Partition: lease.Partition(pool, zone), Item: v.ID}), nil
}
