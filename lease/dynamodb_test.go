package lease_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/volpool/volpool/lease"
)

// What DynamoDB says over HTTP is told apart by what a caller can do about it,
// with the clock where there is one. What the suite proves on the real one is
// left out here.
func TestDynamoDBErrors(t *testing.T) {
	const date = "Thu, 01 Jan 2026 12:00:00 GMT"
	var answer struct {
		status int
		body   string
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", date)
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		w.WriteHeader(answer.status)
		_, _ = io.WriteString(w, answer.body)
	}))
	defer server.Close()
	store := lease.NewDynamoDB(client(server.URL), "volpool")
	w := lease.Write{Key: key(0), Set: lease.Item{"owner": str("i-me")}}
	for code, want := range map[string]error{
		"ProvisionedThroughputExceededException": lease.ErrThrottled, "ThrottlingException": lease.ErrThrottled,
		"RequestLimitExceeded": lease.ErrThrottled, "TransactionConflictException": lease.ErrThrottled,
		"AccessDeniedException": lease.ErrDenied, "ExpiredTokenException": lease.ErrDenied, "UnrecognizedClientException": lease.ErrDenied,
		"ResourceNotFoundException": lease.ErrNoTable, "ValidationException": lease.ErrTableSchema,
	} {
		answer.status, answer.body = 400, `{"__type":"com.amazonaws.dynamodb.v20120810#`+code+`","message":"because"}`
		_, err := store.Write(t.Context(), w)
		_, err2 := store.WriteAll(t.Context(), []lease.Write{w})
		_, err3 := store.Read(t.Context(), key(0))
		_, err4 := store.List(t.Context(), lease.List{Partition: "ci/a"})
		for _, err := range []error{err, err2, err3, err4} {
			if !errors.Is(err, want) || !strings.Contains(err.Error(), "because") || !strings.Contains(err.Error(), `"volpool"`) {
				t.Errorf("%s: %v", code, err)
			}
		}
	}
	answer.body = `{"__type":"com.amazonaws.dynamodb.v20120810#TransactionCanceledException","CancellationReasons":[{"Code":"None"},{"Code":"TransactionConflict"}]}`
	if _, err := store.WriteAll(t.Context(), []lease.Write{w, w}); !errors.Is(err, lease.ErrThrottled) {
		t.Errorf("a conflict of transactions: %v", err)
	}
	answer.body = `{"__type":"com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException","Item":{"owner":{"S":"i-you"}}}`
	_, err := store.Write(t.Context(), w)
	failed, ok := errors.AsType[*lease.ConditionError](err)
	if want := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC); !ok || !failed.Time.Equal(want) || len(failed.Item) != 1 {
		t.Errorf("a failed condition: %v, %+v", err, failed)
	}
	server.Close()
	if _, err := store.Write(t.Context(), w); !errors.Is(err, lease.ErrUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
}

// The SDK sends a write again after a server's error, and a heartbeat never.
func TestDynamoDBSendsABeatOnce(t *testing.T) {
	var sent atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent.Add(1)
		w.WriteHeader(500)
	}))
	defer server.Close()
	store := lease.NewDynamoDB(client(server.URL), "volpool")
	for once, want := range map[bool]int64{true: 1, false: 3} {
		sent.Store(0)
		if _, err := store.Write(t.Context(), lease.Write{Key: key(0), Set: lease.Item{"beat": num(1)}, Once: once}); err == nil {
			t.Error("a server's error is no answer")
		}
		if n := sent.Load(); n != want {
			t.Errorf("once: %v, and sent %d times", once, n)
		}
	}
}

// Every read is a consistent one, and every write asks for the item that stood
// in its way: neither shows on DynamoDB Local.
func TestDynamoDBAsks(t *testing.T) {
	var body string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		all, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		body = string(all)
		_, _ = io.WriteString(w, "{}")
	}))
	defer server.Close()
	store := lease.NewDynamoDB(client(server.URL), "volpool")
	w := lease.Write{Key: key(0), Set: lease.Item{"owner": str("i-me")}}
	for what, ask := range map[string]func() error{
		`"ConsistentRead":true`:                            func() error { _, err := store.Read(t.Context(), key(0)); return err },
		`"ConsistentRead":true,`:                           func() error { _, err := store.List(t.Context(), lease.List{Partition: "ci/a", Free: true}); return err },
		`"ReturnValuesOnConditionCheckFailure":"ALL_OLD"`:  func() error { _, err := store.Write(t.Context(), w); return err },
		`"ReturnValuesOnConditionCheckFailure":"ALL_OLD",`: func() error { _, err := store.WriteAll(t.Context(), []lease.Write{w}); return err },
	} {
		if err := ask(); err != nil || !strings.Contains(body, strings.TrimSuffix(what, ",")) {
			t.Errorf("%v; %s isn't in %s", err, what, body)
		}
	}
}

// client is the SDK's, that retries without a pause.
func client(url string) *dynamodb.Client {
	return dynamodb.New(dynamodb.Options{
		BaseEndpoint: &url, Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider("a", "b", ""),
		Retryer: retry.NewStandard(func(o *retry.StandardOptions) {
			o.RateLimiter = ratelimit.None
			o.Backoff = retry.BackoffDelayerFunc(func(int, error) (time.Duration, error) { return 0, nil })
		}),
	})
}
