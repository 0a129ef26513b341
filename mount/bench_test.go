//go:build linux

package mount

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// What the disk work costs, each figure beside what it is compared with:
//
//	go test ./mount -run '^$' -bench . -benchtime 20x

// BenchmarkArrival is the time from the device's appearance to the device opened,
// locked and verified.
func BenchmarkArrival(b *testing.B) {
	for name, change := range map[string]func(*Config){
		"events":   func(c *Config) { c.NoRescan = true },
		"rescan":   func(c *Config) { c.NoEvents = true },
		"as it is": func(*Config) {},
	} {
		b.Run(name, func(b *testing.B) {
			m := newMachine(b)
			l := m.only(change)
			disk := m.attach("nvme1n1", 1<<30)
			var took []time.Duration
			for b.Loop() {
				arrived := make(chan time.Time, 1)
				go func() {
					d, err := l.Wait(b.Context(), Target{VolumeID: testVolume})
					if err == nil {
						arrived <- time.Now()
						err = d.Close()
					}
					if err != nil {
						b.Error(err)
						close(arrived)
					}
				}()
				// It appears at any time of the ticker's round.
				time.Sleep(time.Duration(len(took)%10) * rescanInterval / 10)
				appeared := time.Now()
				disk.show("vol0123456789abcdef0")
				disk.announce()
				took = append(took, (<-arrived).Sub(appeared))
				disk.hide()
				must(b, os.RemoveAll(m.root+"/gone-nvme1n1"))
			}
			slices.Sort(took)
			b.ReportMetric(milliseconds(took[len(took)/2]), "median-ms")
			b.ReportMetric(milliseconds(took[len(took)*99/100]), "p99-ms")
		})
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// BenchmarkClean is the way from a device that is there to a usable mount of a
// clean volume, over what mount(8) takes.
func BenchmarkClean(b *testing.B) {
	needTools(b, "mkfs.ext4", "mount", "umount", "blkid")
	m := newMachine(b)
	l := m.only(func(*Config) {})
	disk := m.plug("nvme1n1", testVolume, 100<<30)
	point := m.point("cache")
	byTool("mkfs.ext4", "-q", "-E", "nodiscard,assume_storage_prezeroed=1")(disk)
	var ours, bare time.Duration
	for b.Loop() {
		start := time.Now()
		d, err := l.Wait(b.Context(), Target{VolumeID: testVolume})
		must(b, err)
		found, err := d.Probe(b.Context())
		must(b, err)
		must(b, d.Mount(b.Context(), point, MountOptions{FSType: found.FSType, Options: []string{"noatime"}}))
		ours += time.Since(start)
		must(b, m.host.Unmount(b.Context(), point, UnmountOptions{}))
		must(b, d.Close())

		start = time.Now()
		command(b, "mount", "-o", "noatime", d.Path(), point)
		bare += time.Since(start)
		command(b, "umount", point)
	}
	b.ReportMetric(milliseconds(ours)/float64(b.N), "ours-ms")
	b.ReportMetric(milliseconds(bare)/float64(b.N), "mount-ms")
	b.ReportMetric(float64(ours)/float64(bare), "ratio")
}

// BenchmarkBlank is the way to a usable mount of a blank volume of 100 GiB, over
// what mkfs.ext4 with the same flags and mount(8) take.
func BenchmarkBlank(b *testing.B) {
	needTools(b, "mkfs.ext4", "mount", "umount", "blkid")
	m := newMachine(b)
	l := m.only(func(*Config) {})
	point := m.point("cache")
	args := ext4Args(testUUID, true)
	var ours, bare time.Duration
	for n := 0; b.Loop(); n++ {
		name := fmt.Sprintf("nvme%dn1", n+1)
		disk := m.plug(name, testVolume, 100<<30)
		start := time.Now()
		d, err := l.Wait(b.Context(), Target{VolumeID: testVolume})
		must(b, err)
		_, err = d.Probe(b.Context())
		must(b, err)
		must(b, d.Format(b.Context(), "ext4", testUUID))
		must(b, d.Mount(b.Context(), point, MountOptions{FSType: "ext4", Options: []string{"noatime"}}))
		ours += time.Since(start)
		must(b, m.host.Unmount(b.Context(), point, UnmountOptions{}))
		must(b, d.Close())
		disk.hide()
		disk.detach()
		must(b, os.Remove(disk.file))

		disk = m.attach(name, 100<<30)
		start = time.Now()
		command(b, args[0], append(args[1:], disk.loop.Name())...)
		command(b, "mount", "-o", "noatime", disk.loop.Name(), point)
		bare += time.Since(start)
		command(b, "umount", point)
		disk.detach()
		must(b, os.Remove(disk.file))
	}
	b.ReportMetric(milliseconds(ours)/float64(b.N), "ours-ms")
	b.ReportMetric(milliseconds(bare)/float64(b.N), "mkfs-ms")
	b.ReportMetric(float64(ours)/float64(bare), "ratio")
}

// BenchmarkBytes counts what formatting 100 GiB writes, and what is written in
// the 10 s after the mount, beside mkfs.ext4's default. Once is enough.
func BenchmarkBytes(b *testing.B) {
	needTools(b, "mkfs.ext4", "mount", "blkid")
	for name, format := range map[string]func(m *machine, disk *loopDisk){
		"ours": func(m *machine, _ *loopDisk) {
			d := m.find(testVolume)
			_, err := d.Probe(b.Context())
			must(b, err)
			must(b, d.Format(b.Context(), "ext4", testUUID))
			must(b, d.Close())
		},
		"default": func(_ *machine, disk *loopDisk) { byTool("mkfs.ext4", "-q", "-E", "nodiscard")(disk) },
	} {
		b.Run(name, func(b *testing.B) {
			m := newMachine(b)
			var during, after int64
			for b.Loop() {
				disk := m.plug("nvme1n1", testVolume, 100<<30)
				point := m.point("cache")
				before := disk.written()
				format(m, disk)
				during += disk.written() - before
				command(b, "mount", disk.loop.Name(), point)
				before = disk.written()
				time.Sleep(10 * time.Second) // that is what is measured
				after += disk.written() - before
				command(b, "umount", point)
				disk.hide()
				disk.detach()
				must(b, os.RemoveAll(m.root+"/gone-nvme1n1"))
				must(b, os.Remove(disk.file))
			}
			b.ReportMetric(float64(during)/float64(b.N)/float64(mib), "mkfs-MiB")
			b.ReportMetric(float64(after)/float64(b.N)/float64(mib), "after-MiB")
		})
	}
}
