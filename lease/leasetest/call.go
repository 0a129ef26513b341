package leasetest

import (
	"slices"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/volpool/volpool/lease"
)

// Call is one call of a store: a write, a transaction, a read, or a list.
type Call struct {
	Writes      []lease.Write
	Transaction bool
	Read        *lease.Key
	List        *lease.List
	At          time.Time // when it was made
}

// All matches every call.
func All(Call) bool { return true }

// IsWrite matches writes and transactions.
func IsWrite(c Call) bool { return c.Writes != nil }

// IsList matches queries.
func IsList(c Call) bool { return c.List != nil }

// IsClaim matches claims, takeovers and re-adoptions.
func IsClaim(c Call) bool { return c.sets("state") == "held" }

// IsBeat matches heartbeats, and what else is written in one.
func IsBeat(c Call) bool { return c.Beat() > 0 }

// IsRelease matches what ends a lease or frees what was abandoned.
func IsRelease(c Call) bool {
	return c.wants("state") == "held" && slices.Contains([]string{"free", "drained"}, c.sets("state"))
}

// IsBurn matches the spending of a generation.
func IsBurn(c Call) bool {
	return c.Writes != nil && len(c.Writes[0].Set) == 1 && c.sets("generation") != ""
}

// Beat is a heartbeat's number, else 0.
func (c Call) Beat() int64 {
	n, _ := strconv.ParseInt(c.sets("beat"), 10, 64)
	return n
}

// sets is what a single write sets an attribute to, or "".
func (c Call) sets(attr string) string {
	if len(c.Writes) != 1 {
		return ""
	}
	return text(c.Writes[0].Set[attr])
}

// wants is what a single write's condition asks of an attribute, or "".
func (c Call) wants(attr string) string {
	if len(c.Writes) != 1 {
		return ""
	}
	for _, clause := range c.Writes[0].If {
		if clause.Attr == attr && clause.Op == lease.Equal {
			return text(clause.Value)
		}
	}
	return ""
}

func text(v types.AttributeValue) string {
	switch v := v.(type) {
	case *types.AttributeValueMemberS:
		return v.Value
	case *types.AttributeValueMemberN:
		return v.Value
	}
	return ""
}
