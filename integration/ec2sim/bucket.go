package ec2sim

import "time"

// A Bucket throttles one action: Size requests at once, and Refill more each
// second (https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html).
type Bucket struct {
	Size   float64 `json:"size"`
	Refill float64 `json:"refill"`
}

// bucket is a Bucket in use.
type bucket struct {
	Bucket
	tokens float64
	filled time.Time
}

func newBucket(b Bucket, now time.Time) *bucket {
	return &bucket{Bucket: b, tokens: b.Size, filled: now}
}

// take takes one token, if there is one.
func (b *bucket) take(now time.Time) bool {
	b.tokens = min(b.Size, b.tokens+b.Refill*now.Sub(b.filled).Seconds())
	b.filled = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
