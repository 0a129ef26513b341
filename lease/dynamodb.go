package lease

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
)

type dynamoAPI interface {
	UpdateItem(context.Context, *dynamodb.UpdateItemInput, ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error)
	TransactWriteItems(context.Context, *dynamodb.TransactWriteItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error)
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	Query(context.Context, *dynamodb.QueryInput, ...func(*dynamodb.Options)) (*dynamodb.QueryOutput, error)
}

// DynamoDB is the [Store] that counts. It knows no protocol: it translates
// writes into expressions and the SDK's errors into ours, each once.
type DynamoDB struct {
	api   dynamoAPI
	table string
}

// NewDynamoDB returns a store in the given table.
func NewDynamoDB(api dynamoAPI, table string) *DynamoDB { return &DynamoDB{api: api, table: table} }

// Write makes one conditional UpdateItem.
func (d *DynamoDB) Write(ctx context.Context, w Write) (Reply, error) {
	x := express(w)
	out, err := d.api.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: &d.table, Key: w.Key.item(),
		ConditionExpression: x.condition, UpdateExpression: x.update,
		ExpressionAttributeNames: x.names, ExpressionAttributeValues: x.values,
		ReturnValues:                        types.ReturnValueAllNew,
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
		ReturnConsumedCapacity:              types.ReturnConsumedCapacityTotal,
	}, sentOnce(w.Once)...)
	if err != nil {
		if failed, ok := errors.AsType[*types.ConditionalCheckFailedException](err); ok {
			return Reply{}, &ConditionError{Item: present(failed.Item), Time: errorTime(err)}
		}
		return Reply{}, storeError("update item", d.table, err)
	}
	return Reply{Item: out.Attributes, Time: serverTime(out.ResultMetadata), Units: units(out.ConsumedCapacity)}, nil
}

// WriteAll makes one transaction.
func (d *DynamoDB) WriteAll(ctx context.Context, ws []Write) (Reply, error) {
	in := &dynamodb.TransactWriteItemsInput{ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal}
	for _, w := range ws {
		x := express(w)
		in.TransactItems = append(in.TransactItems, types.TransactWriteItem{Update: &types.Update{
			TableName: &d.table, Key: w.Key.item(),
			ConditionExpression: x.condition, UpdateExpression: x.update,
			ExpressionAttributeNames: x.names, ExpressionAttributeValues: x.values,
			ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
		}})
	}
	out, err := d.api.TransactWriteItems(ctx, in)
	if err != nil {
		if cancelled, ok := errors.AsType[*types.TransactionCanceledException](err); ok {
			for i, reason := range cancelled.CancellationReasons {
				if aws.ToString(reason.Code) == "ConditionalCheckFailed" {
					return Reply{}, &ConditionError{Item: present(reason.Item), Index: i, Time: errorTime(err)}
				}
			}
			return Reply{}, &StoreError{Op: "write transaction", Kind: ErrThrottled, Err: err}
		}
		return Reply{}, storeError("write transaction", d.table, err)
	}
	reply := Reply{Time: serverTime(out.ResultMetadata)}
	for i := range out.ConsumedCapacity {
		reply.Units += units(&out.ConsumedCapacity[i])
	}
	return reply, nil
}

// Read makes one consistent GetItem.
func (d *DynamoDB) Read(ctx context.Context, key Key) (Reply, error) {
	out, err := d.api.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &d.table, Key: key.item(), ConsistentRead: aws.Bool(true),
		ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
	})
	if err != nil {
		return Reply{}, storeError("get item", d.table, err)
	}
	return Reply{Item: present(out.Item), Time: serverTime(out.ResultMetadata), Units: units(out.ConsumedCapacity)}, nil
}

// List makes one consistent Query. The lower bound is given always: without
// one, DynamoDB Local reads an index's whole partition.
func (d *DynamoDB) List(ctx context.Context, in List) (Page, error) {
	sort, after := SortKey, in.After
	q := &dynamodb.QueryInput{
		TableName: &d.table, ConsistentRead: aws.Bool(true),
		ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
	}
	if in.Free {
		sort, q.IndexName = FreeSlot, aws.String(FreeIndex)
	}
	if after == "" {
		after = " " // below every key of ours; DynamoDB takes no empty one
	}
	if in.Limit > 0 {
		q.Limit = &in.Limit
	}
	q.KeyConditionExpression = aws.String("#p = :p AND #s > :s")
	q.ExpressionAttributeNames = map[string]string{"#p": PartitionKey, "#s": sort}
	q.ExpressionAttributeValues = Item{":p": str(in.Partition), ":s": str(after)}
	out, err := d.api.Query(ctx, q)
	if err != nil {
		return Page{}, storeError("query", d.table, err)
	}
	return Page{Items: out.Items, More: len(out.LastEvaluatedKey) > 0,
		Time: serverTime(out.ResultMetadata), Units: units(out.ConsumedCapacity)}, nil
}

func (k Key) item() Item { return Item{PartitionKey: str(k.Partition), SortKey: str(k.Item)} }

type expression struct {
	condition, update *string
	names             map[string]string
	values            Item
}

// express renders a write. Every attribute goes by a placeholder: many of our
// names are DynamoDB's reserved words.
func express(w Write) expression {
	x := expression{names: map[string]string{}, values: Item{}}
	name := func(attr string) string { x.names["#"+attr] = attr; return "#" + attr }
	value := func(v types.AttributeValue) string {
		key := fmt.Sprintf(":v%d", len(x.values))
		x.values[key] = v
		return key
	}
	var clauses, sets, removes []string
	for _, c := range w.If {
		switch c.Op {
		case Equal:
			clauses = append(clauses, name(c.Attr)+" = "+value(c.Value))
		case NotEqual:
			clauses = append(clauses, name(c.Attr)+" <> "+value(c.Value))
		case Less:
			clauses = append(clauses, name(c.Attr)+" < "+value(c.Value))
		case Absent:
			clauses = append(clauses, "attribute_not_exists("+name(c.Attr)+")")
		}
	}
	for attr, v := range w.Set {
		sets = append(sets, name(attr)+" = "+value(v))
	}
	for _, attr := range w.Remove {
		removes = append(removes, name(attr))
	}
	var update []string
	if len(sets) > 0 {
		update = append(update, "SET "+strings.Join(sets, ", "))
	}
	if len(removes) > 0 {
		update = append(update, "REMOVE "+strings.Join(removes, ", "))
	}
	x.update = aws.String(strings.Join(update, " "))
	if len(clauses) > 0 {
		x.condition = aws.String(strings.Join(clauses, " AND "))
	}
	if len(x.values) == 0 {
		x.values = nil
	}
	return x
}

func sentOnce(once bool) []func(*dynamodb.Options) {
	if !once {
		return nil
	}
	return []func(*dynamodb.Options){func(o *dynamodb.Options) { o.Retryer = aws.NopRetryer{} }}
}

func storeError(op, table string, err error) error {
	e := &StoreError{Op: fmt.Sprintf("%s in table %q", op, table), Err: err}
	api, answered := errors.AsType[smithy.APIError](err)
	if !answered {
		e.Kind = ErrUnreachable
		if sent, ok := errors.AsType[*url.Error](err); ok {
			e.Err = sent.Err // without the SDK's account of its tries
		}
		return e
	}
	switch api.ErrorCode() {
	case "ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded", "TransactionConflictException":
		e.Kind = ErrThrottled
	case "AccessDeniedException", "UnrecognizedClientException", "ExpiredTokenException", "InvalidSignatureException",
		"MissingAuthenticationTokenException", "IncompleteSignatureException":
		e.Kind = ErrDenied
	case "ResourceNotFoundException":
		e.Kind = ErrNoTable
	case "ValidationException":
		// Our requests are well formed: what DynamoDB finds invalid is that
		// they don't fit the table's keys, or that it lacks the index.
		e.Kind = ErrTableSchema
	}
	e.Err = fmt.Errorf("%s: %s", api.ErrorCode(), api.ErrorMessage())
	return e
}

func serverTime(m middleware.Metadata) time.Time {
	t, _ := awsmiddleware.GetServerTime(m)
	return t
}

// errorTime reads the clock from a failed reply, where the SDK has no output to
// carry it.
func errorTime(err error) time.Time {
	if e, ok := errors.AsType[*awshttp.ResponseError](err); ok && e.Response != nil && e.Response.Response != nil {
		if t, err := http.ParseTime(e.Response.Header.Get("Date")); err == nil {
			return t
		}
	}
	return time.Time{}
}

func units(c *types.ConsumedCapacity) float64 {
	if c == nil {
		return 0
	}
	return aws.ToFloat64(c.CapacityUnits)
}

func present(item Item) Item {
	if len(item) == 0 {
		return nil
	}
	return item
}
