package pool

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
)

func TestNameIsSystemdsEscape(t *testing.T) {
	for point, want := range map[string]string{
		"/mnt/cache": "mnt-cache", "/mnt/cache/": "mnt-cache", "/": "-", "/var/lib/docker": "var-lib-docker",
		"/mnt/my-cache": `mnt-my\x2dcache`, "/.hidden": `\x2ehidden`, "/a b": `a\x20b`,
	} {
		if got := name(point); got != want {
			t.Errorf("%s: %s, want %s", point, got, want)
		}
	}
}

func TestStateComesBackWhole(t *testing.T) {
	d := RunDir(t.TempDir())
	if s, err := d.Load("/mnt/cache"); s != nil || err != nil {
		t.Fatalf("nothing was written: %v, %v", s, err)
	}
	r := Result{Schema: 1, Result: Warm, MountPoint: "/mnt/cache", Volume: new("vol-0it's"), Generation: new(int64(7))}
	if err := d.save(State{Schema: 1, Pool: "ci", Volume: "vol-0", Generation: 7, MountPoint: "/mnt/cache", Result: &r}); err != nil {
		t.Fatal(err)
	}
	s, err := d.Load("/mnt/cache")
	if err != nil || s.Pool != "ci" || s.Generation != 7 || *s.Result.Generation != 7 {
		t.Fatalf("read back %+v, %v", s, err)
	}
	env, err := os.ReadFile(filepath.Join(string(d), "mnt-cache.env"))
	want := "VOLPOOL_RESULT='warm'\nVOLPOOL_VOLUME='vol-0it'\\''s'\nVOLPOOL_MOUNT_POINT='/mnt/cache'\nVOLPOOL_GENERATION='7'\n"
	if err != nil || string(env) != want {
		t.Errorf("environment file %q, %v, want %q", env, err, want)
	}
	left, _ := filepath.Glob(filepath.Join(string(d), "*.tmp"))
	if len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
	if err := d.forget("/mnt/cache"); err != nil {
		t.Fatal(err)
	}
	if s, err := d.Load("/mnt/cache"); s != nil || err != nil {
		t.Errorf("forgotten, but %v, %v", s, err)
	}
}

func TestStateThatCannotBeRead(t *testing.T) {
	for name, text := range map[string]string{
		"half written": `{"schema":1,"mount_point":"/mnt/cac`, "empty": "", "of another mount point": `{"schema":1,"mount_point":"/x"}`,
		"newer": `{"schema":2,"mount_point":"/mnt/cache"}`,
	} {
		d := RunDir(t.TempDir())
		if err := os.WriteFile(filepath.Join(string(d), "mnt-cache.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := d.Load("/mnt/cache")
		if _, ok := errors.AsType[*StateError](err); !ok || s != nil {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
}

func TestOneAgentForAMountPoint(t *testing.T) {
	d := RunDir(t.TempDir())
	first, err := d.lock("/mnt/cache")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.lock("/mnt/cache"); !errors.Is(err, ErrAgentLives) {
		t.Errorf("a second lock: %v", err)
	}
	other, err := d.lock("/mnt/other")
	if err != nil {
		t.Fatalf("another mount point: %v", err)
	}
	other.Close()
	first.Close()
	again, err := d.lock("/mnt/cache")
	if err != nil {
		t.Fatalf("after the first is gone: %v", err)
	}
	again.Close()
}

func TestControlSocket(t *testing.T) {
	d := RunDir(filepath.Join(t.TempDir(), strings.Repeat("long", 30))) // beyond a socket's 108 bytes
	if err := d.Make(); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if _, err := d.AskResult(ctx, "/m"); !errors.Is(err, ErrNoAgent) {
		t.Fatalf("nobody listens: %v", err)
	}
	asked := make(chan context.Context, 1)
	l, err := listen(d.path("/m", ".sock"))
	if err != nil {
		t.Fatal(err)
	}
	c := serve(l, zap.NewNop(), func(ctx context.Context, r request) answer {
		switch {
		case r.Op == "release" && r.Kill:
			asked <- ctx
			<-ctx.Done()
			return answer{Error: "the caller went away"}
		case r.Op == "release":
			return answer{Error: "busy, held by 1 (init)"}
		}
		return answer{Result: &Result{Result: Cold, MountPoint: "/m"}}
	})
	if r, err := d.AskResult(ctx, "/m"); err != nil || r.Result != Cold {
		t.Errorf("result: %+v, %v", r, err)
	}
	if _, err := d.AskRelease(ctx, "/m", false); err == nil || err.Error() != "busy, held by 1 (init)" {
		t.Errorf("a refused release: %v", err)
	}
	impatient, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		_, err := d.AskRelease(impatient, "/m", true)
		done <- err
	}()
	handling := <-asked
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that gave up: %v", err)
	}
	<-handling.Done() // and the agent learns of it
	c.close()
	if _, err := d.AskResult(ctx, "/m"); !errors.Is(err, ErrNoAgent) {
		t.Errorf("after the end: %v", err)
	}
}
