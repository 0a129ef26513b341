package leasetest

import (
	"context"
	"maps"
	"slices"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/volpool/volpool/lease"
)

// Write changes one item where its conditions hold.
func (m *Memory) Write(ctx context.Context, w lease.Write) (lease.Reply, error) {
	return m.write(ctx, "update item", []lease.Write{w}, 1)
}

// WriteAll makes all of the writes or none, at twice the price.
func (m *Memory) WriteAll(ctx context.Context, ws []lease.Write) (lease.Reply, error) {
	reply, err := m.write(ctx, "write transaction", ws, 2)
	reply.Item = nil
	return reply, err
}

func (m *Memory) write(ctx context.Context, op string, ws []lease.Write, price float64) (lease.Reply, error) {
	if err := ended(ctx, op); err != nil {
		return lease.Reply{}, err
	}
	if err := validate(op, ws); err != nil {
		return lease.Reply{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	refused := slices.IndexFunc(ws, func(w lease.Write) bool {
		return !holds(m.at(w.Key.Partition).items[w.Key.Item], w.If)
	})
	after := make([]lease.Item, len(ws))
	cost, total := map[string]float64{}, 0.0
	for i, w := range ws {
		before := m.at(w.Key.Partition).items[w.Key.Item]
		units := price
		if refused >= 0 { // charged for what it looked at
			units *= kilobytes(sizeOf(before))
		} else {
			after[i] = apply(before, w)
			units *= writeUnits(before, after[i])
		}
		cost[w.Key.Partition] += units
		total += units
	}
	for name, units := range cost {
		if !m.at(name).writes.has(units) {
			return lease.Reply{}, m.throttled(op)
		}
	}
	for name, units := range cost {
		m.at(name).writes.take(units)
	}
	m.usage.WriteUnits += total
	if refused >= 0 {
		m.usage.Refused++
		key := ws[refused].Key
		return lease.Reply{}, &lease.ConditionError{Item: maps.Clone(m.at(key.Partition).items[key.Item]),
			Index: refused, Time: date(), Units: total}
	}
	for i, w := range ws {
		m.at(w.Key.Partition).put(w.Key.Item, after[i])
	}
	if price > 1 {
		m.usage.Transactions++
	} else {
		m.usage.Writes++
	}
	return lease.Reply{Item: maps.Clone(after[0]), Time: date(), Units: total}, nil
}

// apply returns the changed item; attributes that the write doesn't name stay.
func apply(before lease.Item, w lease.Write) lease.Item {
	after := lease.Item{lease.PartitionKey: str(w.Key.Partition), lease.SortKey: str(w.Key.Item)}
	maps.Copy(after, before)
	maps.Copy(after, w.Set)
	for _, attr := range w.Remove {
		delete(after, attr)
	}
	return after
}

// validate refuses what DynamoDB calls invalid, whatever stands in the table.
func validate(op string, ws []lease.Write) error {
	const mostInTransaction = 100
	if len(ws) == 0 || len(ws) > mostInTransaction {
		return invalid(op, "%d writes in one transaction", len(ws))
	}
	seen := map[lease.Key]bool{}
	for _, w := range ws {
		if seen[w.Key] {
			return invalid(op, "one transaction writes %s in %s twice", w.Key.Item, w.Key.Partition)
		}
		seen[w.Key] = true
		if w.Key.Partition == "" || w.Key.Item == "" {
			return invalid(op, "a key is empty")
		}
		if len(w.Set)+len(w.Remove) == 0 {
			return invalid(op, "the update is empty")
		}
		for attr, value := range w.Set {
			slot, isString := value.(*types.AttributeValueMemberS)
			switch {
			case attr == lease.PartitionKey, attr == lease.SortKey:
				return invalid(op, "%s is part of the key", attr)
			case attr == lease.FreeSlot && (!isString || slot.Value == ""):
				return invalid(op, "%s is a key of the index, and no string or empty", attr)
			case slices.Contains(w.Remove, attr):
				return invalid(op, "%s is set and removed", attr)
			}
		}
	}
	return nil
}
