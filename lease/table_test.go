package lease_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
	"github.com/volpool/volpool/lease"
)

// tables is DynamoDB as far as tables go: what is made is active a while later,
// and not known at first.
type tables struct {
	table   *types.TableDescription
	unknown int // answers before the new table is known
	making  int // answers before it is active
	err     error
}

func (a *tables) CreateTable(_ context.Context, in *dynamodb.CreateTableInput, _ ...func(*dynamodb.Options)) (*dynamodb.CreateTableOutput, error) {
	if a.err != nil {
		return nil, a.err
	}
	if a.table != nil {
		return nil, &types.ResourceInUseException{}
	}
	if in.BillingMode != types.BillingModePayPerRequest || in.ProvisionedThroughput != nil {
		return nil, errors.New("not on demand")
	}
	index := in.LocalSecondaryIndexes[0]
	a.table = &types.TableDescription{TableName: in.TableName, KeySchema: in.KeySchema, AttributeDefinitions: in.AttributeDefinitions,
		LocalSecondaryIndexes: []types.LocalSecondaryIndexDescription{{IndexName: index.IndexName, KeySchema: index.KeySchema, Projection: index.Projection}}}
	return &dynamodb.CreateTableOutput{}, nil
}

func (a *tables) DescribeTable(context.Context, *dynamodb.DescribeTableInput, ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error) {
	if a.err != nil {
		return nil, a.err
	}
	if a.table == nil || a.unknown > 0 {
		a.unknown--
		return nil, &types.ResourceNotFoundException{}
	}
	if a.table.TableStatus == "" || a.table.TableStatus == types.TableStatusCreating {
		a.table.TableStatus = types.TableStatusCreating
		if a.making--; a.making < 0 {
			a.table.TableStatus = types.TableStatusActive
		}
	}
	return &dynamodb.DescribeTableOutput{Table: a.table}, nil
}

func TestCreateTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &tables{unknown: 3, making: 20}
		if err := lease.CreateTable(t.Context(), api, "volpool"); err != nil {
			t.Fatal(err)
		}
		if api.table.TableStatus != types.TableStatusActive {
			t.Error("returned before the table can be used")
		}
		if err := lease.CreateTable(t.Context(), api, "volpool"); err != nil {
			t.Errorf("create again: %v", err)
		}
		if err := lease.CheckTable(t.Context(), api, "volpool"); err != nil {
			t.Errorf("check: %v", err)
		}
		api.table.KeySchema[1].AttributeName = aws.String("id")
		if err := lease.CreateTable(t.Context(), api, "volpool"); !errors.Is(err, lease.ErrTableSchema) {
			t.Errorf("create where there is another's table: %v", err)
		}
	})
}

func TestCreateTableFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if err := lease.CreateTable(ctx, &tables{making: 1000}, "volpool"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("never active: %v", err)
		}
		if err := lease.CreateTable(t.Context(), &tables{unknown: 1000}, "volpool"); !errors.Is(err, lease.ErrNoTable) {
			t.Errorf("never known: %v", err)
		}
		leaving := &tables{table: &types.TableDescription{TableStatus: types.TableStatusDeleting}}
		if err := lease.CreateTable(t.Context(), leaving, "volpool"); err == nil || !strings.Contains(err.Error(), "DELETING") {
			t.Errorf("being deleted: %v", err)
		}
		denied := &tables{err: &smithy.GenericAPIError{Code: "AccessDeniedException", Message: "no"}}
		if err := lease.CreateTable(t.Context(), denied, "volpool"); !errors.Is(err, lease.ErrDenied) {
			t.Errorf("denied: %v", err)
		}
		if err := lease.CheckTable(t.Context(), denied, "volpool"); !errors.Is(err, lease.ErrDenied) {
			t.Errorf("check, denied: %v", err)
		}
	})
}

// Each difference is named; nothing else is.
func TestCheckTable(t *testing.T) {
	if err := lease.CheckTable(t.Context(), &tables{}, "volpool"); !errors.Is(err, lease.ErrNoTable) {
		t.Errorf("no table: %v", err)
	}
	for name, c := range map[string]struct {
		spoil func(*types.TableDescription)
		says  []string
	}{
		"another partition key": {func(d *types.TableDescription) { d.KeySchema[0].AttributeName = aws.String("id") }, []string{"its key is id HASH"}},
		"no sort key":           {func(d *types.TableDescription) { d.KeySchema = d.KeySchema[:1] }, []string{"its key is pool_zone HASH S, not"}},
		"a number as sort key": {func(d *types.TableDescription) {
			d.AttributeDefinitions[1].AttributeType = types.ScalarAttributeTypeN
		}, []string{"item RANGE N, not"}},
		"no index":      {func(d *types.TableDescription) { d.LocalSecondaryIndexes = nil }, []string{`no local secondary index "free"`}},
		"another index": {func(d *types.TableDescription) { d.LocalSecondaryIndexes[0].IndexName = aws.String("x") }, []string{`no local secondary index "free"`}},
		"index key": {func(d *types.TableDescription) {
			d.LocalSecondaryIndexes[0].KeySchema[1].AttributeName = aws.String("item")
		}, []string{`the key of index "free" is pool_zone HASH S, item RANGE S, not pool_zone HASH S, free_slot RANGE S`}},
		"keys only": {func(d *types.TableDescription) {
			d.LocalSecondaryIndexes[0].Projection = &types.Projection{ProjectionType: types.ProjectionTypeKeysOnly}
		}, []string{"KEYS_ONLY, not INCLUDE generation, hints, settings"}},
		"less projected": {func(d *types.TableDescription) {
			d.LocalSecondaryIndexes[0].Projection.NonKeyAttributes = []string{"hints", "generation"}
		}, []string{"INCLUDE generation, hints, not INCLUDE generation, hints, settings"}},
		"global table": {func(d *types.TableDescription) {
			d.Replicas = []types.ReplicaDescription{{RegionName: aws.String("eu-west-1")}}
		}, []string{"global table"}},
		"old global table": {func(d *types.TableDescription) { d.GlobalTableVersion = aws.String("2019.11.21") }, []string{"global table"}},
		"all of it": {func(d *types.TableDescription) {
			d.KeySchema, d.LocalSecondaryIndexes, d.GlobalTableVersion = nil, nil, aws.String("2019.11.21")
		}, []string{"its key", "index", "global"}},
		"nothing": {func(d *types.TableDescription) {
			slices.Reverse(d.LocalSecondaryIndexes[0].Projection.NonKeyAttributes)
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := &tables{}
				if err := lease.CreateTable(t.Context(), api, "volpool"); err != nil {
					t.Fatal(err)
				}
				api.table.LocalSecondaryIndexes[0].Projection.NonKeyAttributes = slices.Clone(lease.FreeIndexProjection)
				c.spoil(api.table)
				err := lease.CheckTable(t.Context(), api, "volpool")
				if errors.Is(err, lease.ErrTableSchema) != (c.says != nil) || err != nil && c.says == nil {
					t.Fatal(err)
				}
				for _, part := range c.says {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("%v: doesn't say %q", err, part)
					}
				}
				if err != nil && strings.Count(err.Error(), ";") != len(c.says)-1 {
					t.Errorf("%v: says more", err)
				}
			})
		})
	}
}
