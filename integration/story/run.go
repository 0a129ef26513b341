package story

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/volpool/volpool/integration/dynamolocal"
)

const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// limit is more than any command of the story may take.
const limit = 90 * time.Second

// env is what every volpool is told, wherever it runs.
func (s *Story) env() []string {
	return []string{
		"PATH=" + searchPath,
		"VOLPOOL_TABLE=" + Table,
		"AWS_ENDPOINT_URL_DYNAMODB=" + s.DynamoDB.Endpoint(),
		"AWS_ENDPOINT_URL_EC2=" + s.EC2.Endpoint(),
	}
}

// volpool runs the binary as on the administrator's own machine.
func (s *Story) volpool(ctx context.Context, args ...string) (string, error) {
	env := append(s.env(),
		"AWS_REGION="+s.EC2.Region(),
		"AWS_ACCESS_KEY_ID="+dynamolocal.AccessKey,
		"AWS_SECRET_ACCESS_KEY="+dynamolocal.SecretKey,
		"AWS_EC2_METADATA_DISABLED=true",
		"VOLPOOL_RUN_DIR="+filepath.Join(s.dir, "run", "admin"),
	)
	return s.run(ctx, "admin", env, s.binary, args...)
}

// run runs a command that has to succeed, and returns its stdout. What it logs
// goes into a file named for who runs it.
func (s *Story) run(ctx context.Context, who string, env []string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took more than %v", limit))
	defer cancel()
	var out, logged bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = "/", env, &out, &logged
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second // a child that keeps our pipe open is an error
	err := cmd.Run()
	told := fmt.Sprintf("$ volpool %s\n%s%s\n", command(args, s.binary), &logged, &out)
	if logErr := appendFile(filepath.Join(s.logs, who+".log"), told); logErr != nil {
		return "", logErr
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("volpool %s (%s): %w: %s", command(args, s.binary), who, err, strings.TrimSpace(logged.String()))
	}
	return out.String(), nil
}

// command is what comes after the binary's name, wherever that is.
func command(args []string, binary string) string {
	text := strings.Join(args, " ")
	if _, after, entered := strings.Cut(text, binary+" "); entered {
		return after
	}
	return text
}

func appendFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if _, err := f.WriteString(text); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	return f.Close()
}
