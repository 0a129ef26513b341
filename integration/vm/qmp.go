package vm

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// qmpLimit is more than any command needs, and than a guest needs to let go of
// a device.
const qmpLimit = 30 * time.Second

var errMonitorClosed = errors.New("the machine is gone")

// monitor speaks QEMU's Machine Protocol
// (https://www.qemu.org/docs/master/interop/qmp-spec.html).
type monitor struct {
	out io.Writer

	mu      sync.Mutex
	last    int
	replies map[int]chan<- message
	deleted map[string]chan struct{} // devices that are asked to go
	closed  chan struct{}
}

type message struct {
	ID     int             `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Description string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
	Data  struct {
		Device string `json:"device"`
	} `json:"data"`
}

func newMonitor(in io.ReadCloser, out io.Writer) *monitor {
	m := &monitor{out: out, replies: map[int]chan<- message{}, deleted: map[string]chan struct{}{}, closed: make(chan struct{})}
	go m.read(in)
	return m
}

func (m *monitor) read(in io.ReadCloser) {
	defer close(m.closed)
	defer in.Close()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var said message
		if json.Unmarshal(lines.Bytes(), &said) != nil {
			continue // nothing that QMP says
		}
		m.mu.Lock()
		if reply := m.replies[said.ID]; reply != nil {
			reply <- said
			delete(m.replies, said.ID)
		}
		if gone := m.deleted[said.Data.Device]; gone != nil && said.Event == "DEVICE_DELETED" {
			close(gone)
			delete(m.deleted, said.Data.Device)
		}
		m.mu.Unlock()
	}
}

// do executes a command.
func (m *monitor) do(command string, arguments any) error {
	reply := make(chan message, 1)
	m.mu.Lock()
	m.last++
	id := m.last
	m.replies[id] = reply
	text, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments, "id": id})
	if err == nil {
		_, err = m.out.Write(append(text, '\n'))
	}
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	timer := time.NewTimer(qmpLimit)
	defer timer.Stop()
	select {
	case said := <-reply:
		if said.Error != nil {
			return fmt.Errorf("%s: %s", command, said.Error.Description)
		}
		return nil
	case <-m.closed:
		return fmt.Errorf("%s: %w", command, errMonitorClosed)
	case <-timer.C:
		return fmt.Errorf("%s: no reply within %v", command, qmpLimit)
	}
}

type object map[string]any

// plug adds a drive.
func (m *monitor) plug(device, image, bus, serial string) error {
	err := m.do("blockdev-add", object{
		"driver": "raw", "node-name": device, "discard": "unmap", "file": object{"driver": "file", "filename": image},
	})
	if err != nil {
		return err
	}
	err = m.do("device_add", object{"driver": "nvme", "id": device, "drive": device, "bus": bus, "serial": serial})
	if err != nil {
		return errors.Join(err, m.do("blockdev-del", object{"node-name": device}))
	}
	return nil
}

// unplug asks the guest to let go of a drive, and waits until it has.
func (m *monitor) unplug(device string) error {
	gone := make(chan struct{})
	m.mu.Lock()
	m.deleted[device] = gone
	m.mu.Unlock()
	if err := m.do("device_del", object{"id": device}); err != nil {
		return err
	}
	timer := time.NewTimer(qmpLimit)
	defer timer.Stop()
	select {
	case <-gone:
		return m.do("blockdev-del", object{"node-name": device})
	case <-m.closed:
		return errMonitorClosed
	case <-timer.C:
		return fmt.Errorf("the guest doesn't let go of %s within %v", device, qmpLimit)
	}
}
