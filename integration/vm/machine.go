package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/volpool/volpool/integration/child"
	"github.com/volpool/volpool/integration/vm/guest"
)

const (
	// Host is how a guest reaches this machine's 127.0.0.1.
	Host = "10.0.2.2"

	slots     = 4 // for drives to be plugged in
	bootLimit = 90 * time.Second
	callLimit = 30 * time.Second // of a call that has no limit of its own
)

// A Machine is a QEMU process and the guest in it.
type Machine struct {
	ID string

	console string
	said    *child.Tail // by QEMU itself
	process *os.Process
	ended   <-chan struct{}
	monitor *monitor
	calls   *rpc.Client
	drives  [slots]string // by slot; guarded by the Backend
}

// boot returns when the guest has called.
func (b *Backend) boot(ctx context.Context, id string) (_ *Machine, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, fmt.Errorf("it has not called within %v", bootLimit))
	defer cancel()
	called, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for guest: %w", err)
	}
	defer called.Close()
	m := &Machine{ID: id, console: filepath.Join(b.dir, id+".console"), said: &child.Tail{Limit: 2 << 10}}
	cmd := exec.Command("qemu-system-x86_64", b.arguments(m.console, called.Addr().(*net.TCPAddr).Port)...)
	cmd.Dir, cmd.Stderr = b.dir, m.said
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	// Not StdoutPipe, for the Wait that reaps QEMU would close it under its reader.
	out, theirs, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	cmd.Stdout = theirs
	m.ended, err = child.Start(cmd)
	theirs.Close()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("run QEMU (make test-vm installs it): %w", err), out.Close())
	}
	m.process = cmd.Process
	m.monitor = newMonitor(out, in)
	defer func() {
		if err != nil {
			m.Kill()
			err = fmt.Errorf("boot %s: %w\n%s", id, err, m.Console())
		}
	}()
	if err := m.monitor.do("qmp_capabilities", object{}); err != nil {
		return nil, err
	}
	conn, err := m.accept(ctx, called)
	if err != nil {
		return nil, err
	}
	m.calls = rpc.NewClient(conn)
	return m, nil
}

// arguments of QEMU. Without a disk to boot from, the drive that is there from
// the start only takes the name nvme0n1, as an instance's root volume does.
func (b *Backend) arguments(console string, port int) []string {
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", b.accel, "-cpu", "max", "-smp", "1", "-m", "256",
		"-kernel", b.kernel.image, "-initrd", b.initramfs,
		"-append", fmt.Sprintf("console=ttyS0 panic=-1 quiet guest_host=%s:%d", Host, port),
		"-serial", "file:" + console, "-qmp", "stdio",
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
		"-blockdev", "driver=null-co,node-name=root,size=8589934592,read-zeroes=on", "-device", "nvme,serial=root,drive=root",
	}
	for n := range slots {
		args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=%s,chassis=%d,slot=%d", slot(n), n+1, n+1))
	}
	return args
}

func slot(n int) string { return "slot" + strconv.Itoa(n) }

func (m *Machine) accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	accepted := make(chan result, 1)
	go func() {
		conn, err := l.Accept() // ends when the caller closes l
		accepted <- result{conn, err}
	}()
	select {
	case r := <-accepted:
		return r.conn, r.err
	case <-m.ended:
		return nil, errMonitorClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Console is the end of what the guest's kernel and its init had to say, and QEMU.
func (m *Machine) Console() string {
	text, _ := os.ReadFile(m.console) // it is not there yet where QEMU did not start
	return fmt.Sprintf("--- console of %s ---\n%s\n--- QEMU ---\n%s", m.ID, text[max(0, len(text)-4<<10):], m.said)
}

// Kill is a power cut. It returns when the machine is gone.
func (m *Machine) Kill() {
	_ = m.process.Kill() // it may be gone already
	<-m.ended
	if m.calls != nil {
		_ = m.calls.Close() // the other end is gone
	}
}

// Alive tells whether nobody has killed the machine.
func (m *Machine) Alive() bool {
	select {
	case <-m.ended:
		return false
	default:
		return true
	}
}

// Run runs a command in the guest to its end.
func (m *Machine) Run(c guest.Command) (guest.Outcome, error) {
	var o guest.Outcome
	err := m.call("Run", c, &o, c.Limit+callLimit)
	return o, err
}

// Await waits until the guest's kernel shows the volume's disk, and answers its
// name.
func (m *Machine) Await(volume string) (string, error) {
	var name string
	err := m.call("Await", guest.Disk{Serial: serial(volume), Limit: callLimit}, &name, 2*callLimit)
	return name, err
}

// Watch lets package mount, in the guest, wait for a volume. It returns once
// that listens; Watched waits for the end.
func (m *Machine) Watch(w guest.Watch) error {
	return m.call("Watch", w, &struct{}{}, callLimit)
}

// Watched waits for the end of a Watch.
func (m *Machine) Watched(w guest.Watch) (guest.Sighting, error) {
	var s guest.Sighting
	err := m.call("Watched", w.Volume, &s, w.Limit+callLimit)
	return s, err
}

func (m *Machine) call(method string, args, reply any, limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	var err error
	select {
	case call := <-m.calls.Go(guest.Name+"."+method, args, reply, make(chan *rpc.Call, 1)).Done:
		err = call.Error
	case <-timer.C:
		err = fmt.Errorf("no reply within %v", limit)
	}
	if err != nil {
		return fmt.Errorf("%s in %s: %w\n%s", method, m.ID, err, m.Console())
	}
	return nil
}
