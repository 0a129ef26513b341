// The whole job in virtual machines, with the kernel's own NVMe driver, events
// and filesystem: make test-vm. What boots is shared by the tests, for that
// takes seconds.
package vm_test

import (
	"context"
	"flag"
	"os"
	"os/signal"
	"syscall"
	"testing"
)

var (
	boot  = flag.Bool("vm", false, "boot virtual machines")
	accel = flag.String("vm.accel", "tcg", "QEMU's accelerator; a kvm that is there may still not work")
)

// interrupted ends with Ctrl-C: then there is time to clear up.
var interrupted context.Context

func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	interrupted = ctx
	code := m.Run()
	stop()
	os.Exit(code)
}

func TestVM(t *testing.T) {
	if !*boot {
		t.Skip("NOT TESTED here: make test-vm boots virtual machines")
	}
	s := openStage(t)
	for _, scenario := range []struct {
		name string
		play func(*world)
	}{
		{"race", race},
		{"ways to notice a device", waysToNotice},
		{"no device shows", noDevice},
		{"device before the reply", deviceFirst},
		{"detached while mounted", busyDetach},
		{"power cut", powerCut},
	} {
		t.Run(scenario.name, func(t *testing.T) { scenario.play(s.newWorld(t)) })
	}
}
