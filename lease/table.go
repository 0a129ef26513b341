package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

type tableAPI interface {
	CreateTable(context.Context, *dynamodb.CreateTableInput, ...func(*dynamodb.Options)) (*dynamodb.CreateTableOutput, error)
	DescribeTable(context.Context, *dynamodb.DescribeTableInput, ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error)
}

// CreateTable makes the table, on demand, and waits until it can be used. Where
// there is one of that name already, it checks it as [CheckTable] does.
func CreateTable(ctx context.Context, api tableAPI, name string) error {
	key := func(sort string) []types.KeySchemaElement {
		return []types.KeySchemaElement{
			{AttributeName: aws.String(PartitionKey), KeyType: types.KeyTypeHash},
			{AttributeName: aws.String(sort), KeyType: types.KeyTypeRange},
		}
	}
	in := &dynamodb.CreateTableInput{
		TableName: &name, BillingMode: types.BillingModePayPerRequest, KeySchema: key(SortKey),
		LocalSecondaryIndexes: []types.LocalSecondaryIndex{{
			IndexName: aws.String(FreeIndex), KeySchema: key(FreeSlot),
			Projection: &types.Projection{ProjectionType: types.ProjectionTypeInclude, NonKeyAttributes: FreeIndexProjection},
		}},
	}
	for _, attr := range []string{PartitionKey, SortKey, FreeSlot} {
		in.AttributeDefinitions = append(in.AttributeDefinitions,
			types.AttributeDefinition{AttributeName: aws.String(attr), AttributeType: types.ScalarAttributeTypeS})
	}
	if _, err := api.CreateTable(ctx, in); err != nil {
		if _, exists := errors.AsType[*types.ResourceInUseException](err); !exists {
			return storeError("make keys and index", name, err)
		}
	}
	table, err := awaitTable(ctx, api, name)
	if err != nil {
		return err
	}
	return checkTable(table, name)
}

// awaitTable waits while the table is being made, which takes DynamoDB some ten
// seconds.
func awaitTable(ctx context.Context, api tableAPI, name string) (*types.TableDescription, error) {
	const patience = 20 // answers that the new table is not found may come from the past
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for unknown := 0; ; {
		table, err := describeTable(ctx, api, name)
		switch {
		case errors.Is(err, ErrNoTable) && unknown < patience:
			unknown++
		case err != nil:
			return nil, err
		case table.TableStatus == types.TableStatusActive, table.TableStatus == types.TableStatusUpdating:
			return table, nil
		case table.TableStatus != types.TableStatusCreating:
			return nil, fmt.Errorf("table %q is %s", name, table.TableStatus)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for table %q: %w", name, context.Cause(ctx))
		}
	}
}

func describeTable(ctx context.Context, api tableAPI, name string) (*types.TableDescription, error) {
	out, err := api.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &name})
	if err != nil {
		return nil, storeError("look up keys", name, err)
	}
	return out.Table, nil
}

// CheckTable tells whether the table is one that volpool can use. It ends with
// [ErrNoTable] where there is none, and with [ErrTableSchema] and all that
// differs where it was made for something else. A global table is refused: its
// conditions hold within one region only.
func CheckTable(ctx context.Context, api tableAPI, name string) error {
	table, err := describeTable(ctx, api, name)
	if err != nil {
		return err
	}
	return checkTable(table, name)
}

func checkTable(t *types.TableDescription, name string) error {
	var differs []string
	want := func(what, have, want string) {
		if have != want {
			differs = append(differs, fmt.Sprintf("%s is %s, not %s", what, have, want))
		}
	}
	want("its key", keys(t, t.KeySchema), ourKeys(SortKey))
	free := slices.IndexFunc(t.LocalSecondaryIndexes, func(i types.LocalSecondaryIndexDescription) bool {
		return aws.ToString(i.IndexName) == FreeIndex
	})
	if free < 0 {
		differs = append(differs, fmt.Sprintf("it has no local secondary index %q, which cannot be added later", FreeIndex))
	} else {
		index := t.LocalSecondaryIndexes[free]
		what := fmt.Sprintf("the key of index %q", FreeIndex)
		want(what, keys(t, index.KeySchema), ourKeys(FreeSlot))
		what = fmt.Sprintf("the projection of index %q", FreeIndex)
		want(what, projection(index.Projection), projection(&types.Projection{
			ProjectionType: types.ProjectionTypeInclude, NonKeyAttributes: FreeIndexProjection}))
	}
	if len(t.Replicas) > 0 || t.GlobalTableVersion != nil {
		differs = append(differs, "it is a global table, whose conditions hold within one region only")
	}
	if differs == nil {
		return nil
	}
	return &StoreError{Op: fmt.Sprintf("check table %q", name), Kind: ErrTableSchema,
		Err: errors.New(strings.Join(differs, "; "))}
}

func ourKeys(sort string) string { return fmt.Sprintf("%s HASH S, %s RANGE S", PartitionKey, sort) }

// keys renders a key schema with the types of its attributes.
func keys(t *types.TableDescription, schema []types.KeySchemaElement) string {
	var parts []string
	for _, k := range schema {
		kind := "?"
		for _, a := range t.AttributeDefinitions {
			if aws.ToString(a.AttributeName) == aws.ToString(k.AttributeName) {
				kind = string(a.AttributeType)
			}
		}
		parts = append(parts, fmt.Sprintf("%s %s %s", aws.ToString(k.AttributeName), k.KeyType, kind))
	}
	return strings.Join(parts, ", ")
}

func projection(p *types.Projection) string {
	if p == nil {
		return "unknown"
	}
	attrs := slices.Sorted(slices.Values(p.NonKeyAttributes))
	return strings.TrimSpace(string(p.ProjectionType) + " " + strings.Join(attrs, ", "))
}
