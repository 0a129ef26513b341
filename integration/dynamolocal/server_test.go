package dynamolocal

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"go.uber.org/zap"
)

const childVariable = "DYNAMOLOCAL_TEST_CHILD"

// TestMain is also the process that starts a server and waits to be killed.
func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		s, err := Start(context.Background(), Config{})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(s.process.Pid)
		select {}
	}
	os.Exit(m.Run())
}

func own(t *testing.T) {
	t.Helper()
	t.Setenv(endpointVariable, "")
}

// alive is false also for one that only waits to be reaped, which in a container
// may be for ever.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

func TestStartAndStop(t *testing.T) {
	own(t)
	one, err := Start(t.Context(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(one.Stop)
	two, err := Start(t.Context(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(two.Stop)
	for _, s := range []*Server{one, two} {
		u, err := url.Parse(s.Endpoint())
		if err != nil || u.Hostname() != "127.0.0.1" || u.Port() == "8000" || u.Port() == "" {
			t.Errorf("endpoint %s, %v", s.Endpoint(), err)
		}
	}
	if one.Endpoint() == two.Endpoint() {
		t.Errorf("both are at %s", one.Endpoint())
	}
	one.Stop()
	if alive(one.process.Pid) {
		t.Errorf("process %d is left", one.process.Pid)
	}
	one.Stop() // does nothing
	if _, err := two.Client().ListTables(t.Context(), &dynamodb.ListTablesInput{}); err != nil {
		t.Errorf("the other one doesn't answer any more: %v", err)
	}
	t.Setenv(endpointVariable, two.Endpoint())
	other, err := Start(t.Context(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	if other.Endpoint() != two.Endpoint() {
		t.Errorf("%s is not used", endpointVariable)
	}
	other.Stop()
	if !alive(two.process.Pid) {
		t.Error("stopped a server of somebody else")
	}
}

func TestSharedIsOne(t *testing.T) {
	if a, b := Shared(t), Shared(t); a != b {
		t.Errorf("%s and %s", a.Endpoint(), b.Endpoint())
	}
}

func TestEndsWithAKilledParent(t *testing.T) {
	own(t)
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), childVariable+"=1")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 200)
	n, _ := out.Read(line)
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
	if err != nil {
		t.Fatalf("the child said %q", line[:n])
	}
	server, err := os.FindProcess(pid)
	if err != nil || !alive(pid) {
		t.Fatalf("no server at %d: %v", pid, err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // it was killed
	// Nobody tells us of the end of a process that isn't our child.
	for end := time.Now().Add(10 * time.Second); alive(pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			_ = server.Kill()
			t.Fatalf("the server %d outlives its killed parent", pid)
		}
	}
}

func TestCancelledStartLeavesNothing(t *testing.T) {
	own(t)
	java, jars, err := provide(t.Context(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp) // a part of the server's command line
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if s, err := launch(ctx, java, jars); err == nil {
		s.Stop()
		t.Skip("it was ready within 20 ms")
	} else if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if left, err := filepath.Glob(filepath.Join(temp, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if words, err := os.ReadFile(path); err == nil && strings.Contains(string(words), temp) {
			t.Errorf("%s is left", path)
		}
	}
}

func TestEndOfItsOwnIsTold(t *testing.T) {
	own(t)
	java := filepath.Join(t.TempDir(), "java")
	script(t, java, `echo "no such memory" >&2; exit 1`)
	_, err := launch(t.Context(), java, t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "no such memory") {
		t.Errorf("%v", err)
	}
}

// mvn is a Maven that notes its calls and does what the script says.
func mvn(t *testing.T, text string) (calls string) {
	t.Helper()
	bin := t.TempDir()
	calls = filepath.Join(bin, "calls")
	script(t, filepath.Join(bin, "mvn"), "echo call >>"+calls+"\n"+text)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return calls
}

func script(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

const fakeFetch = `for a; do case $a in -DoutputDirectory=*) d=${a#*=};; esac; done
mkdir "$d"; sleep 0.2; echo jar >"$d/DynamoDBLocal.jar"`

func TestFetchesOnceForAll(t *testing.T) {
	t.Setenv("VOLPOOL_CACHE", filepath.Join(t.TempDir(), "cache"))
	calls := mvn(t, fakeFetch)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			_, jars, err := provide(t.Context(), zap.NewNop())
			if err != nil {
				t.Error(err)
				return
			}
			if text, err := os.ReadFile(filepath.Join(jars, "DynamoDBLocal.jar")); err != nil || string(text) != "jar\n" {
				t.Errorf("jar is %q, %v", text, err)
			}
		})
	}
	all.Wait()
	if text, err := os.ReadFile(calls); err != nil || string(text) != "call\n" {
		t.Errorf("Maven was called %q, %v", text, err)
	}
}

func TestFailedFetchSaysWhatIsMissing(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("VOLPOOL_CACHE", cache)
	if err := os.Mkdir(filepath.Join(cache, "unfinished-by-a-dead-one"), 0o755); err != nil {
		t.Fatal(err)
	}
	mvn(t, `echo "[ERROR] the network is not there"; echo "[ERROR] more"; exit 1`)
	_, _, err := provide(t.Context(), zap.NewNop())
	if err == nil || !strings.Contains(err.Error(), "DynamoDBLocal:"+Version+" from Maven Central: exit status 1: the network is not there") {
		t.Errorf("%v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, "*")); len(left) != 1 || filepath.Base(left[0]) != "lock" {
		t.Errorf("left in the cache: %v", left)
	}
}

func TestCancelledFetchEnds(t *testing.T) {
	t.Setenv("VOLPOOL_CACHE", t.TempDir())
	mvn(t, "sleep 60")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, _, err := provide(ctx, zap.NewNop()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestOldJavaIsNotTaken(t *testing.T) {
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	script(t, filepath.Join(home, "bin", "java"), `echo 'openjdk version "11.0.20" 2023-07-18' >&2`)
	t.Setenv("JAVA_HOME", home)
	if _, err := findJava(t.Context()); err == nil || !strings.HasSuffix(err.Error(), "is Java 11") {
		t.Errorf("%v", err)
	}
}

func TestPomPinsTheVersion(t *testing.T) {
	if !strings.Contains(string(pom), "<version>"+Version+"</version>") {
		t.Errorf("pom.xml pins another version than %s", Version)
	}
}

// What it needs of the temporary folder it has by the time that it answers.
func TestWritesAfterTheStart(t *testing.T) {
	c, name := Shared(t).Client(), aws.String("dynamolocal")
	_, err := c.CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName:            name,
		BillingMode:          types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("id"), AttributeType: types.ScalarAttributeTypeS}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("id"), KeyType: types.KeyTypeHash}},
	})
	if err != nil {
		t.Fatal(err)
	}
	item := map[string]types.AttributeValue{"id": &types.AttributeValueMemberS{Value: "one"}}
	_, err = c.TransactWriteItems(t.Context(), &dynamodb.TransactWriteItemsInput{
		TransactItems: []types.TransactWriteItem{{Put: &types.Put{TableName: name, Item: item}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.GetItem(t.Context(), &dynamodb.GetItemInput{TableName: name, Key: item, ConsistentRead: aws.Bool(true)})
	if err != nil || len(got.Item) != 1 {
		t.Errorf("got %v, %v", got, err)
	}
}
