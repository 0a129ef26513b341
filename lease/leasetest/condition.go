package leasetest

import (
	"math/big"
	"reflect"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/volpool/volpool/lease"
)

// holds evaluates a condition as DynamoDB does: an absent attribute equals
// nothing, is less than nothing, and differs from all; values of different
// types differ, and none is less than the other.
func holds(item lease.Item, clauses []lease.Condition) bool {
	for _, c := range clauses {
		v, there := item[c.Attr]
		var ok bool
		switch c.Op {
		case lease.Equal:
			ok = there && equal(v, c.Value)
		case lease.NotEqual:
			ok = !there || !equal(v, c.Value)
		case lease.Less:
			ok = there && less(v, c.Value)
		case lease.Absent:
			ok = !there
		}
		if !ok {
			return false
		}
	}
	return true
}

// equal compares numbers by value: 1.0 is 1.
func equal(a, b types.AttributeValue) bool {
	if x, y, numbers := rationals(a, b); numbers {
		return x.Cmp(y) == 0
	}
	return reflect.DeepEqual(a, b)
}

func less(a, b types.AttributeValue) bool {
	if x, y, numbers := rationals(a, b); numbers {
		return x.Cmp(y) < 0
	}
	x, one := a.(*types.AttributeValueMemberS)
	y, two := b.(*types.AttributeValueMemberS)
	return one && two && x.Value < y.Value
}

func rationals(a, b types.AttributeValue) (x, y *big.Rat, numbers bool) {
	n, one := a.(*types.AttributeValueMemberN)
	m, two := b.(*types.AttributeValueMemberN)
	if !one || !two {
		return nil, nil, false
	}
	x, one = new(big.Rat).SetString(n.Value)
	y, two = new(big.Rat).SetString(m.Value)
	return x, y, one && two
}
