//go:build linux

package mount

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The matrix of contents that must never be formatted. Each row names the checks
// that refuse it; to see a row let through, take its checks away:
//
//	VOLPOOL_TEST_WITHOUT='signatures,the start' go test ./mount -run NeverFormat/vfat
//
// TestNoCheckIsIdle shows for each sample that it alone refuses something.

// matrixSize is large enough for all of the samples to be there, for the last
// spare superblock of ext4 is at 6.1 GiB; and no two of them fall on one place.
const matrixSize = 7 << 30

type row struct {
	name      string
	tools     []string
	make      func(d *loopDisk)
	content   Content
	fsType    string
	refusedBy []string // these at least
}

// byTool is a row that a program makes; it is given the loop device.
func byTool(name string, args ...string) func(*loopDisk) {
	return func(d *loopDisk) { command(d.m.t, name, append(args, d.loop.Name())...) }
}

func matrix() []row {
	signature := []string{"signatures", "the start"}
	return []row{
		{"ext2", []string{"mkfs.ext2"}, byTool("mkfs.ext2", "-q"), HasData, "ext2", signature},
		{"ext3", []string{"mkfs.ext3"}, byTool("mkfs.ext3", "-q"), HasData, "ext3", signature},
		{"ext4", []string{"mkfs.ext4"}, byTool("mkfs.ext4", "-q"), HasData, "ext4",
			[]string{"signatures", "the start", "ext4's spare superblock"}},
		{"xfs", []string{"mkfs.xfs"}, byTool("mkfs.xfs", "-q"), HasData, "xfs",
			[]string{"signatures", "the start", "XFS's allocation groups"}},
		{"btrfs", []string{"mkfs.btrfs"}, byTool("mkfs.btrfs", "-q"), HasData, "btrfs",
			[]string{"signatures", "the start", "btrfs's second superblock"}},
		{"vfat", []string{"mkfs.vfat"}, byTool("mkfs.vfat", "-I"), HasData, "vfat", signature},
		{"swap", []string{"mkswap"}, byTool("mkswap", "-q"), HasData, "", signature},
		{"LUKS", []string{"cryptsetup"}, makeLUKS, HasData, "", signature},
		{"LVM", []string{"pvcreate"}, byTool("pvcreate", "-q"), HasData, "", signature},
		{"bcache", []string{"make-bcache"}, byTool("make-bcache", "-B"), HasData, "", signature},
		{"md raid member, metadata 1.2", nil, makeMD12, HasData, "", signature},
		{"md raid member, metadata 0.90", nil, makeMD090, HasData, "", []string{"signatures", "the end"}},
		{"zfs label", nil, makeZFS, HasData, "zfs_member", []string{"signatures", "the start", "the end"}},
		{"GPT", []string{"sfdisk"}, makeTable("label: gpt\n,,\n"), HasData, "", []string{"signatures", "the start", "the end"}},
		{"GPT, its first copy wiped", []string{"sfdisk"}, wiped(makeTable("label: gpt\n,,\n"), 0, mib), HasData, "", []string{"the end"}},
		{"MBR", []string{"sfdisk"}, makeTable("label: dos\n,,\n"), HasData, "", signature},
		{"tar, written raw", nil, makeTar, HasData, "", []string{"the start"}},
		{"ext4, its first superblock zeroed", []string{"mkfs.ext4"}, wiped(byTool("mkfs.ext4", "-q"), 0, 4*kib), HasData, "",
			[]string{"the start", "ext4's spare superblock"}},
		{"ext4, its first 16 MiB zeroed", []string{"mkfs.ext4"}, wiped(byTool("mkfs.ext4", "-q", "-E", "nodiscard"), 0, 16*mib), HasData, "",
			[]string{"ext4's spare superblock"}},
		{"xfs, its first superblock zeroed", []string{"mkfs.xfs"}, wiped(byTool("mkfs.xfs", "-q"), 0, 4*kib), HasData, "",
			[]string{"XFS's allocation groups"}},
		{"xfs, its first 16 MiB zeroed", []string{"mkfs.xfs"}, wiped(byTool("mkfs.xfs", "-q"), 0, 16*mib), HasData, "",
			[]string{"XFS's allocation groups"}},
		{"btrfs, its first 16 MiB zeroed", []string{"mkfs.btrfs"}, wiped(byTool("mkfs.btrfs", "-q"), 0, 16*mib), HasData, "",
			[]string{"btrfs's second superblock"}},
		{"ext4, half-formatted by somebody else", []string{"mkfs.ext4"}, makeHalf, HasData, "", []string{"the start"}},
		{"ambivalent signatures", []string{"mkfs.ext4", "mkfs.xfs"}, makeAmbivalent, HasData, "", signature},
		{"EIO at the start", nil, truncated(0), Unknown, "", []string{"the start"}},
		{"EIO from the middle on", nil, truncated(matrixSize / 2), Unknown, "", []string{"XFS's allocation groups"}},
		{"EIO at the end", nil, truncated(matrixSize - 4*kib), Unknown, "", []string{"the end"}},
		// Where mkfs would have been run on blkid's word alone: it cannot open the
		// superblock, says so to nobody, and exits 2.
		{"ext4, all of it unreadable", []string{"mkfs.ext4"}, func(d *loopDisk) {
			byTool("mkfs.ext4", "-q")(d)
			truncated(0)(d)
		}, Unknown, "", []string{"the start"}},
	}
}

func TestNeverFormat(t *testing.T) {
	needTools(t, "blkid", "mkfs.ext4")
	taken := strings.Split(os.Getenv("VOLPOOL_TEST_WITHOUT"), ",")
	for _, r := range matrix() {
		t.Run(r.name, func(t *testing.T) {
			needTools(t, r.tools...)
			m := newMachine(t)
			r.make(m.plug("nvme1n1", testVolume, matrixSize))
			d := m.find(testVolume)
			checks := without(checksFor(d.disk.bytes), taken)

			found, err := d.probe(t.Context(), checks)
			must(t, err)
			if found.Content != r.content || found.FSType != r.fsType || found.Reason == "" {
				t.Errorf("probe: %+v, want %v %s", found, r.content, r.fsType)
			}
			if err := d.Format(t.Context(), "ext4", testUUID); !errors.Is(err, ErrNotBlank) {
				t.Fatalf("format: %v, want ErrNotBlank", err)
			}
			t.Logf("%v: %s", found.Content, found.Reason)

			refusing := refusedBy(t, d, checks)
			for _, name := range r.refusedBy {
				if !slices.Contains(refusing, name) {
					t.Errorf("%q does not refuse it; these do: %q", name, refusing)
				}
			}
			found, err = d.probe(t.Context(), without(checks, refusing))
			must(t, err)
			if found.Content != Blank {
				t.Errorf("without %q: %+v, want it let through", refusing, found)
			}
		})
	}
}

// TestNoCheckIsIdle: a byte at either end of each sample is seen by that sample,
// and without it by nobody.
func TestNoCheckIsIdle(t *testing.T) {
	needTools(t, "blkid")
	m := newMachine(t)
	disk := m.plug("nvme1n1", testVolume, matrixSize)
	d := m.find(testVolume)
	checks := checksFor(d.disk.bytes)[1:]
	for i, s := range samplesOf(d.disk.bytes) {
		for _, at := range []int64{s.offset, s.offset + s.length - 1} {
			disk.write(at, []byte{1})
			found, err := d.Probe(t.Context())
			must(t, err)
			if found.Content != HasData || !strings.Contains(found.Reason, fmt.Sprint("data at ", at)) {
				t.Errorf("a byte at %d: %+v", at, found)
			}
			if err := d.Format(t.Context(), "ext4", testUUID); !errors.Is(err, ErrNotBlank) {
				t.Fatalf("format: %v, want ErrNotBlank", err)
			}
			found, err = d.probe(t.Context(), slices.Delete(slices.Clone(checks), i, i+1))
			must(t, err)
			if found.Content != Blank {
				t.Errorf("a byte at %d, without %q: %+v, want it let through", at, checks[i].name, found)
			}
			disk.write(at, []byte{0})
		}
	}
	if found, err := d.Probe(t.Context()); err != nil || found.Content != Blank {
		t.Errorf("all zero again: %+v %v", found, err)
	}
}

// TestVanishes: the device goes away while it is read.
func TestVanishes(t *testing.T) {
	for name, vanish := range map[string]func(d *loopDisk){
		"and reads still work": func(*loopDisk) {},
		"and reads fail":       truncated(0),
		"and another comes": func(d *loopDisk) {
			d.m.plug(d.name, "vol-0aaaaaaaaaaaaaaaa", matrixSize)
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			disk := m.plug("nvme1n1", testVolume, matrixSize)
			d := m.find(testVolume)
			checks := slices.Insert(checksFor(d.disk.bytes), 3, check{"vanish", func(*Device, *os.File, []byte) (Probe, error) {
				disk.hide()
				vanish(disk)
				return Probe{Content: Blank}, nil
			}})
			found, err := d.probe(t.Context(), checks)
			if found.Content != Unknown || !errors.Is(err, ErrGone) {
				t.Errorf("probe: %+v %v, want ErrGone", found, err)
			}
			if err := d.Format(t.Context(), "ext4", testUUID); !errors.Is(err, ErrNotBlank) {
				t.Errorf("format: %v, want ErrNotBlank", err)
			}
		})
	}
}

// TestGoneBeforeFormat: proven blank, but then not the same any more.
func TestGoneBeforeFormat(t *testing.T) {
	for name, change := range map[string]func(d *loopDisk){
		"unplugged": (*loopDisk).hide,
		"another serial": func(d *loopDisk) {
			must(d.m.t, os.WriteFile(d.sysfs()+"/device/serial", []byte("vol0aaaaaaaaaaaaaaaa\n"), 0o644))
		},
		"another number behind the name": func(d *loopDisk) {
			must(d.m.t, os.Remove(d.m.host.dev+"/"+d.name))
			must(d.m.t, unix.Mknod(d.m.host.dev+"/"+d.name, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0xffff))))
		},
		"a file behind the name": func(d *loopDisk) {
			must(d.m.t, os.Remove(d.m.host.dev+"/"+d.name))
			must(d.m.t, os.WriteFile(d.m.host.dev+"/"+d.name, nil, 0o644))
		},
		"another size": func(d *loopDisk) {
			must(d.m.t, os.Truncate(d.file, 2*matrixSize))
			must(d.m.t, unix.IoctlSetInt(int(d.loop.Fd()), unix.LOOP_SET_CAPACITY, 0))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			disk := m.plug("nvme1n1", testVolume, matrixSize)
			d := m.find(testVolume)
			if found, err := d.Probe(t.Context()); err != nil || found.Content != Blank {
				t.Fatalf("probe: %+v %v", found, err)
			}
			change(disk)
			before := disk.written()
			for step, err := range map[string]error{
				"format":    d.Format(t.Context(), "ext4", testUUID),
				"overwrite": d.Overwrite(t.Context(), "ext4", testUUID),
				"mount":     d.Mount(t.Context(), m.point("cache"), MountOptions{FSType: "ext4"}),
			} {
				if !errors.Is(err, ErrGone) {
					t.Errorf("%s: %v, want ErrGone", step, err)
				}
			}
			if _, err := d.Check(t.Context(), "ext4"); !errors.Is(err, ErrGone) {
				t.Errorf("check: %v, want ErrGone", err)
			}
			if now := disk.written(); now != before {
				t.Errorf("%d bytes were written", now-before)
			}
		})
	}
}

// TestFindRefusesWrongSize: what sysfs says and what the file is must agree.
func TestFindRefusesWrongSize(t *testing.T) {
	m := newMachine(t)
	disk := m.plug("nvme1n1", testVolume, matrixSize)
	must(t, os.WriteFile(disk.sysfs()+"/size", []byte("4096\n"), 0o644))
	if _, err := m.host.Find(t.Context(), Target{VolumeID: testVolume}); !errors.Is(err, ErrGone) {
		t.Errorf("find: %v, want ErrGone", err)
	}
}

// TestInUseIsNoAnswer: a disk that somebody has mounted is neither blank nor to
// be blamed.
func TestInUseIsNoAnswer(t *testing.T) {
	m := newMachine(t)
	disk := m.plug("nvme1n1", testVolume, matrixSize)
	d := m.find(testVolume)
	other, err := openExclusive(d.Path(), disk.number)
	must(t, err)
	defer other.Close()
	if found, err := d.Probe(t.Context()); found.Content != Unknown || !errors.Is(err, ErrInUse) {
		t.Errorf("probe: %+v %v, want ErrInUse", found, err)
	}
}

func without(checks []check, names []string) []check {
	return slices.DeleteFunc(slices.Clone(checks), func(c check) bool { return slices.Contains(names, group(c)) })
}

// group is the check's name as a row gives it: why the sample is read.
func group(c check) string {
	if _, why, ok := strings.Cut(c.name, "("); ok {
		return strings.TrimSuffix(why, ")")
	}
	return c.name
}

func refusedBy(t *testing.T, d *Device, checks []check) []string {
	t.Helper()
	var names []string
	for _, c := range checks {
		found, err := d.probe(t.Context(), []check{c})
		must(t, err)
		if found.Content != Blank && !slices.Contains(names, group(c)) {
			names = append(names, group(c))
		}
	}
	return names
}

func truncated(size int64) func(*loopDisk) {
	return func(d *loopDisk) { must(d.m.t, os.Truncate(d.file, size)) }
}

func wiped(make func(*loopDisk), offset, length int64) func(*loopDisk) {
	return func(d *loopDisk) {
		make(d)
		d.write(offset, bytes.Repeat([]byte{0}, int(length)))
	}
}

func makeTable(script string) func(*loopDisk) {
	return func(d *loopDisk) { commandWith(d.m.t, script, "sfdisk", "-q", d.loop.Name()) }
}

func makeLUKS(d *loopDisk) {
	commandWith(d.m.t, "password", "cryptsetup", "luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", d.loop.Name(), "-")
}

// makeMD12 writes the superblock as struct mdp_superblock_1 lays it out; mdadm
// needs a kernel with md.
func makeMD12(d *loopDisk) {
	const at = 8 // sectors
	b := make([]byte, 256)
	le := binary.LittleEndian
	le.PutUint32(b[0:], 0xa92b4efc)
	le.PutUint32(b[4:], 1)
	copy(b[16:], "0123456789abcdef") // set_uuid
	copy(b[32:], "volpool:0")
	le.PutUint32(b[72:], 1)                // level
	le.PutUint64(b[80:], matrixSize>>9-16) // size
	le.PutUint32(b[92:], 1)                // raid_disks
	le.PutUint64(b[128:], 16)              // data_offset
	le.PutUint64(b[136:], matrixSize>>9-16)
	le.PutUint64(b[144:], at) // super_offset
	var sum uint64
	for i := 0; i < len(b); i += 4 {
		sum += uint64(le.Uint32(b[i:]))
	}
	le.PutUint32(b[216:], uint32(sum)+uint32(sum>>32))
	d.write(at<<9, b)
}

// makeMD090 writes it at the end, where the oldest form has it.
func makeMD090(d *loopDisk) {
	b := make([]byte, 4096)
	le := binary.LittleEndian
	le.PutUint32(b[0:], 0xa92b4efc)
	le.PutUint32(b[8:], 90)
	for i := 20; i < 64; i += 4 {
		le.PutUint32(b[i:], 1)
	}
	d.write((matrixSize&^(64<<10-1))-64<<10, b)
}

// makeZFS writes uberblocks into the first and the last label.
func makeZFS(d *loopDisk) {
	for _, label := range []int64{0, matrixSize - 256<<10} {
		for i := range int64(16) {
			b := make([]byte, 64)
			binary.LittleEndian.PutUint64(b, 0x00bab10c)
			binary.LittleEndian.PutUint64(b[8:], 5000)
			d.write(label+128<<10+i<<10, b)
		}
	}
}

func makeTar(d *loopDisk) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(d.m.t, w.WriteHeader(&tar.Header{Name: "build/cache.o", Size: 5, Mode: 0o644}))
	_, err := io.WriteString(w, "hello")
	must(d.m.t, errors.Join(err, w.Close()))
	d.write(0, b.Bytes())
}

// makeHalf is an mkfs.ext4 that was ended before it wrote its superblocks: group
// descriptors and bitmaps are there.
func makeHalf(d *loopDisk) {
	byTool("mkfs.ext4", "-q", "-E", "nodiscard")(d)
	d.write(0, make([]byte, 4096))
	for _, group := range []int64{1, 3, 5, 7, 9, 25, 27, 49} {
		d.write(group*128*mib, make([]byte, 4096))
	}
}

// makeAmbivalent puts ext4's superblock back beside XFS's.
func makeAmbivalent(d *loopDisk) {
	byTool("mkfs.ext4", "-q")(d)
	super := make([]byte, 1024)
	_, err := d.loop.ReadAt(super, 1024)
	must(d.m.t, err)
	byTool("mkfs.xfs", "-q", "-f")(d)
	d.write(1024, super)
}
