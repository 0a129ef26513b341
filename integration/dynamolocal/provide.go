package dynamolocal

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/volpool/volpool/integration/cache"
	"go.uber.org/zap"
)

// Version is the release of DynamoDB Local that pom.xml pins.
const Version = "3.1.0"

//go:embed pom.xml
var pom []byte

// provide makes sure of Java and of the server's jars, one process at a time.
func provide(ctx context.Context, log *zap.Logger) (java, jars string, err error) {
	dir, err := cache.Dir()
	if err != nil {
		return "", "", err
	}
	unlock, err := cache.Lock(ctx, filepath.Join(dir, "lock"))
	if err != nil {
		return "", "", err
	}
	defer unlock()
	if java, err = provideJava(ctx, log); err != nil {
		return "", "", err
	}
	jars, err = provideJars(ctx, log, dir)
	return java, jars, err
}

// provideJars returns the folder of the server's jars; the caller holds the
// lock. A folder that has its final name is complete.
func provideJars(ctx context.Context, log *zap.Logger, cached string) (string, error) {
	dir := filepath.Join(cached, fmt.Sprintf("dynamodb-local-%s-%.4x", Version, sha256.Sum256(pom)))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	mvn, err := provideMaven(ctx, log)
	if err != nil {
		return "", err
	}
	log.Info("fetching DynamoDB Local from Maven Central, 48 MB, once", zap.String("version", Version), zap.String("into", dir))
	work, err := cache.Unfinished(cached)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	project, jars := filepath.Join(work, "pom.xml"), filepath.Join(work, "jars")
	if err := os.WriteFile(project, pom, 0o644); err != nil {
		return "", fmt.Errorf("write pom: %w", err)
	}
	out, err := command(ctx, mvn, "-B", "-q", "-ntp", "-f", project,
		"org.apache.maven.plugins:maven-dependency-plugin:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+jars).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("get software.amazon.dynamodb:DynamoDBLocal:%s from Maven Central: %w: %s", Version, failure(ctx, err), firstError(out))
	}
	if err := os.Rename(jars, dir); err != nil {
		return "", fmt.Errorf("keep what was fetched: %w", err)
	}
	return dir, nil
}

var colours = regexp.MustCompile("\x1b\\[[0-9;]*m")

// firstError is the line of Maven's output that says what went wrong.
func firstError(out []byte) string {
	lines := strings.Split(strings.TrimSpace(colours.ReplaceAllString(string(out), "")), "\n")
	for _, line := range lines {
		if text, ok := strings.CutPrefix(line, "[ERROR] "); ok {
			return text
		}
	}
	return lines[len(lines)-1]
}
