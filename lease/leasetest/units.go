package leasetest

import (
	"math"
	"reflect"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/volpool/volpool/lease"
)

// What one partition takes in a second. See "Partition throughput" in
// https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/bp-partition-key-design.html
const (
	writeLimit = 1000
	readLimit  = 3000
)

// bucket holds one second's worth of units.
type bucket struct {
	perSecond, left float64
	at              time.Time
}

func newBucket(perSecond float64) bucket { return bucket{perSecond, perSecond, time.Now()} }

func (b *bucket) has(units float64) bool {
	now := time.Now()
	b.left = min(b.perSecond, b.left+now.Sub(b.at).Seconds()*b.perSecond)
	b.at = now
	return b.left >= units
}

func (b *bucket) take(units float64) { b.left -= units }

// writeUnits is what a write costs: a unit for each kilobyte of the item, and
// the same again for each entry of the index that is put, removed or changed. See
// https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/LSI.html#LSI.ThroughputConsiderations.Writes
func writeUnits(before, after lease.Item) float64 {
	units := kilobytes(max(sizeOf(before), sizeOf(after)))
	was, is := projected(before), projected(after)
	slotBefore, _ := slotOf(before)
	slotAfter, _ := slotOf(after)
	switch {
	case was == nil && is == nil, reflect.DeepEqual(was, is):
	case was == nil:
		units += kilobytes(sizeOf(is))
	case is == nil:
		units += kilobytes(sizeOf(was))
	case slotBefore != slotAfter: // removed and put
		units += kilobytes(sizeOf(was)) + kilobytes(sizeOf(is))
	default:
		units += kilobytes(max(sizeOf(was), sizeOf(is)))
	}
	return units
}

// readUnits is what a consistent read costs: a unit for each four kilobytes.
func readUnits(bytes int) float64 { return max(1, math.Ceil(float64(bytes)/4096)) }

func kilobytes(bytes int) float64 { return max(1, math.Ceil(float64(bytes)/1024)) }

// sizeOf is an item's size as DynamoDB counts it. See
// https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
func sizeOf(item lease.Item) int {
	bytes := 0
	for attr, v := range item {
		bytes += len(attr) + sizeOfValue(v)
	}
	return bytes
}

func sizeOfValue(v types.AttributeValue) int {
	bytes := 0
	switch v := v.(type) {
	case *types.AttributeValueMemberS:
		return len(v.Value)
	case *types.AttributeValueMemberN:
		return sizeOfNumber(v.Value)
	case *types.AttributeValueMemberBOOL, *types.AttributeValueMemberNULL:
		return 1
	case *types.AttributeValueMemberB:
		return len(v.Value)
	case *types.AttributeValueMemberSS:
		for _, s := range v.Value {
			bytes += len(s)
		}
	case *types.AttributeValueMemberNS:
		for _, n := range v.Value {
			bytes += sizeOfNumber(n)
		}
	case *types.AttributeValueMemberBS:
		for _, b := range v.Value {
			bytes += len(b)
		}
	case *types.AttributeValueMemberM:
		return 3 + len(v.Value) + sizeOf(v.Value)
	case *types.AttributeValueMemberL:
		bytes = 3 + len(v.Value)
		for _, one := range v.Value {
			bytes += sizeOfValue(one)
		}
	}
	return bytes
}

// sizeOfNumber: a byte for each two significant digits, and one more.
func sizeOfNumber(n string) int {
	digits := strings.Trim(strings.Trim(n, "-+0"), ".")
	return (len(digits)+1)/2 + 1
}
