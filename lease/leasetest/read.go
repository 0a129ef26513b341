package leasetest

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/volpool/volpool/lease"
)

// Read reads one item.
func (m *Memory) Read(ctx context.Context, key lease.Key) (lease.Reply, error) {
	const op = "get item"
	if err := ended(ctx, op); err != nil {
		return lease.Reply{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.at(key.Partition)
	item := p.items[key.Item]
	units := readUnits(sizeOf(item))
	if !p.reads.has(units) {
		return lease.Reply{}, m.throttled(op)
	}
	p.reads.take(units)
	m.usage.Reads++
	m.usage.ReadUnits += units
	return lease.Reply{Item: maps.Clone(item), Time: date(), Units: units}, nil
}

// List reads a partition, or its part of the free index, in order. As with
// DynamoDB, More tells that the page ended early, and not that anything follows.
func (m *Memory) List(ctx context.Context, in lease.List) (lease.Page, error) {
	const op = "query"
	const mostInPage = 1 << 20 // bytes
	if err := ended(ctx, op); err != nil {
		return lease.Page{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.at(in.Partition)
	names, after := p.order, in.After
	if in.Free {
		names, after = p.free, in.After+slotEnd+"\xff" // beyond all items of that slot
	}
	from, _ := slices.BinarySearch(names, after)
	var page lease.Page
	bytes := 0
	for _, name := range names[from:] {
		if name == after {
			continue
		}
		if page.More = bytes >= mostInPage || in.Limit > 0 && len(page.Items) == int(in.Limit); page.More {
			break
		}
		item := maps.Clone(p.items[name])
		if in.Free {
			_, sort, _ := strings.Cut(name, slotEnd)
			item = projected(p.items[sort])
		}
		bytes += sizeOf(item)
		page.Items = append(page.Items, item)
	}
	page.More = page.More || in.Limit > 0 && len(page.Items) == int(in.Limit)
	page.Time, page.Units = date(), readUnits(bytes)
	if !p.reads.has(page.Units) {
		return lease.Page{}, m.throttled(op)
	}
	p.reads.take(page.Units)
	m.usage.Lists++
	m.usage.ReadUnits += page.Units
	return page, nil
}

// projected is an item as the index shows it.
func projected(item lease.Item) lease.Item {
	if _, in := slotOf(item); !in {
		return nil
	}
	entry := lease.Item{}
	for _, attr := range append([]string{lease.PartitionKey, lease.SortKey, lease.FreeSlot}, lease.FreeIndexProjection...) {
		if v, ok := item[attr]; ok {
			entry[attr] = v
		}
	}
	return entry
}
