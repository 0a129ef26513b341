package vm_test

import "strings"

// race lets two machines want the same two volumes, and then swap them.
func race(w *world) {
	w.fill(2)
	two := w.boot(2)
	first := make([]acquired, 2)
	forAll(w.T, two, func(k int, m *machine) (err error) {
		first[k], err = m.acquire(w.pool)
		return err
	})
	if first[0].Volume == first[1].Volume {
		w.Fatalf("both have %s", first[0].Volume)
	}
	for k, m := range two {
		w.holds(m, first[k], "cold", 1)
		w.write(m)
	}
	forAll(w.T, two, func(_ int, m *machine) error { return m.release() })
	for _, volume := range w.volumes {
		w.inOrder(volume)
	}
	if first[0].Volume == w.volumes[0] { // whoever had the second begins, and gets the lowest
		two[0], two[1] = two[1], two[0]
	}
	for k, m := range two {
		second, err := m.acquire(w.pool)
		if err != nil {
			w.Fatal(err)
		}
		if second.Volume != w.volumes[k] {
			w.Errorf("%s got %s, not %s", m.ID, second.Volume, w.volumes[k])
		}
		w.holds(m, second, "warm", 2)
		w.reads(m, two[1-k].ID)
	}
	forAll(w.T, two, func(_ int, m *machine) error { return m.release() })
	for _, volume := range w.volumes {
		w.inOrder(volume)
	}
}

// holds checks what an acquire says against the guest, EC2 and the table.
func (w *world) holds(m *machine, a acquired, result string, generation int) {
	w.Helper()
	w.Logf("%s: %s %s as %s, generation %d, after %.1f s", m.ID, a.Result, a.Volume, a.Device, a.Generation, a.Seconds.Total)
	if a.Result != result || a.Generation != generation || a.Filesystem != "ext4" || a.SizeGiB != 1 {
		w.Fatalf("%s should hold a %s volume at generation %d, and got %s", m.ID, result, generation, a.text)
	}
	name, err := m.Await(a.Volume)
	if err != nil {
		w.Fatal(err)
	}
	source, err := m.cacheSource()
	if err != nil {
		w.Fatal(err)
	}
	if a.Device != "/dev/"+name || source != a.Device {
		w.Errorf("%s: the kernel shows %s as %s, mounted is %q, and acquire says %s", m.ID, a.Volume, name, source, a.Device)
	}
	if r := w.record(a.Volume); r.State != "held" || r.Owner != m.ID || r.Generation != generation || r.Clean {
		w.Errorf("the table says %+v", r)
	}
	if v, _ := w.ec2.Volume(a.Volume); len(v.Attachments) != 1 || v.Attachments[0].Instance != m.ID {
		w.Errorf("EC2 says %+v", v)
	}
}

// write leaves a file in the cache; its greeting names the machine.
func (w *world) write(m *machine) {
	w.Helper()
	if _, err := m.run("sh", "-c", "echo built by "+m.ID+" >"+greeting); err != nil {
		w.Fatal(err)
	}
}

func (w *world) reads(m *machine, writer string) {
	w.Helper()
	text, err := m.run("cat", greeting)
	if err != nil || strings.TrimSpace(text) != "built by "+writer {
		w.Errorf("%s reads %q, %v", m.ID, text, err)
	}
}
