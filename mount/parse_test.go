//go:build linux

package mount

import (
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const someMounts = `22 28 0:21 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue
99 28 259:1 / /mnt/a\040b\134\011 rw - ext4 /dev/nvme1n1 rw
100 28 0:44 / /mnt/fuse rw - fuse.x  rw
`

func TestParseMountinfo(t *testing.T) {
	got, err := parseMountinfo(someMounts)
	must(t, err)
	want := []mountEntry{
		{unix.Mkdev(0, 21), "/", "/sys", "sysfs", "sysfs", "rw"},
		{unix.Mkdev(98, 0), "/mnt1", "/mnt2", "ext3", "/dev/root", "rw,errors=continue"},
		{unix.Mkdev(259, 1), "/", "/mnt/a b\\\t", "ext4", "/dev/nvme1n1", "rw"},
		{unix.Mkdev(0, 44), "/", "/mnt/fuse", "fuse.x", "", "rw"}, // a source may be empty
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	for _, bad := range []string{"\n", "36 35 98:0 /mnt1 /mnt2 rw\n", "36 35 98 / /x rw - ext4 a rw\n", "36 35 x:y / /x rw - ext4 a rw\n"} {
		if _, err := parseMountinfo(someMounts + bad); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add(someMounts)
	f.Add(`1 1 0:1 / \0401\4\04 a - b c d`)
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := parseMountinfo(text)
		if err != nil {
			return
		}
		lines := 0
		for range strings.Lines(text) {
			lines++
		}
		if len(entries) != lines { // a line left out might be the one that matters
			t.Errorf("%d entries of %d lines", len(entries), lines)
		}
	})
}

func TestParseUevent(t *testing.T) {
	for message, want := range map[string]uevent{
		"add@/devices/pci/nvme1n1\x00ACTION=add\x00DEVPATH=/devices/pci/nvme1n1\x00SUBSYSTEM=block\x00DEVNAME=nvme1n1\x00SEQNUM=7\x00": {"add", "block", "nvme1n1"},
		"libudev\x00\xfe\xed\xca\xfe\x00ACTION=add\x00SUBSYSTEM=block\x00":                                                             {},
		"add@/devices/x\x00ACTION=add\x00": {},
		"add@/devices/x":                   {},
		"":                                 {},
	} {
		got, ok := parseUevent([]byte(message))
		if ok != (want != uevent{}) || ok && got != want {
			t.Errorf("%q: %+v %v", message, got, ok)
		}
	}
}

func FuzzUevent(f *testing.F) {
	f.Add([]byte("add@/devices/pci/nvme1n1\x00ACTION=add\x00SUBSYSTEM=block\x00DEVNAME=nvme1n1\x00"))
	f.Fuzz(func(t *testing.T, message []byte) {
		if e, ok := parseUevent(message); ok && (e.action == "" || e.subsystem == "") {
			t.Errorf("%+v is complete", e)
		}
	})
}

func TestJudgeBlkid(t *testing.T) {
	for _, c := range []struct {
		exit int
		said string
		want Content
		ok   bool
	}{
		{2, "", Blank, true},
		{2, "blkid: error: /dev/nvme1n1: Input/output error", Unknown, false},
		{0, "", Unknown, false},
		{0, "DEVNAME=/dev/nvme1n1", Unknown, false},
		{0, "DEVNAME=/dev/nvme1n1\nTYPE=ext4\nUSAGE=filesystem", HasData, true},
		{0, "DEVNAME=/dev/nvme1n1\nPTTYPE=dos", HasData, true},
		{0, "TYPE=crypto_LUKS\nUSAGE=crypto", HasData, true},
		{8, "", HasData, true},
		{1, "", Unknown, false},
		{4, "", Unknown, false},
		{-1, "", Unknown, false},
	} {
		got, ok := judgeBlkid(c.exit, c.said)
		if ok != c.ok || ok && got.Content != c.want {
			t.Errorf("exit %d, %q: %+v %v", c.exit, c.said, got, ok)
		}
	}
}

// FuzzBlkid: whatever it says, only exit 2 with nothing said is blank.
func FuzzBlkid(f *testing.F) {
	f.Add(2, "")
	f.Add(0, "DEVNAME=/dev/nvme1n1\nLABEL=a\\ b^J=c\nUUID=1\nTYPE=ext4\nUSAGE=filesystem\n")
	f.Fuzz(func(t *testing.T, exit int, said string) {
		got, ok := judgeBlkid(exit, said)
		if ok && got.Content == Unknown {
			t.Error("sure of the unknown")
		}
		if ok && got.Content == Blank && (exit != 2 || said != "") {
			t.Errorf("exit %d, %q is blank", exit, said)
		}
	})
}

func TestJudgeFsck(t *testing.T) {
	missing := &MissingToolError{Tool: "e2fsck"}
	for exit, want := range map[int]string{0: "clean", 1: "repaired", 2: "clean", 3: "repaired", 4: "bad", 5: "bad", 6: "bad",
		8: "machine", 12: "machine", 16: "machine", 32: "machine", 36: "machine", 128: "machine", -1: "machine"} {
		var err error
		if exit != 0 {
			err = &ToolError{Exit: exit, Err: errors.New("exit")}
		}
		got, err := judgeFsck("", err)
		is := map[bool]string{false: "clean", true: "repaired"}[got.Repaired]
		if errors.Is(err, ErrBadFilesystem) {
			is = "bad"
		} else if err != nil {
			is = "machine"
		}
		if is != want {
			t.Errorf("exit %d: %s, want %s", exit, is, want)
		}
	}
	if _, err := judgeFsck("", missing); !errors.Is(err, missing) {
		t.Errorf("no e2fsck: %v", err)
	}
}

func TestVolumeID(t *testing.T) {
	for serial, want := range map[string]string{
		"vol0123456789abcdef0": testVolume, testVolume: testVolume, "vol0a1b2c3d": "vol-0a1b2c3d",
		"": "", "vol": "", "AWS1234567890ABCDEF": "", "xvol0123456789abcdef0": "", "vol0123456789abcdef01": "", "vol-0123/../9abcdef0": "",
	} {
		if got, _ := volumeID(serial); got != want {
			t.Errorf("%q: %q, want %q", serial, got, want)
		}
	}
}

func TestParseVersion(t *testing.T) {
	for said, want := range map[string]version{
		"mke2fs 1.47.0 (5-Feb-2023)\n\tUsing EXT2FS Library version 1.47.0": {1, 47},
		"mkfs.xfs version 6.1.0": {6, 1},
		"mke2fs 1.47-rc1":        {1, 47},
		"":                       {}, "no number": {}, "99999999999999999999.1": {},
	} {
		if got := parseVersion(said); got != want {
			t.Errorf("%q: %v, want %v", said, got, want)
		}
	}
}

func TestMountFlags(t *testing.T) {
	for options, want := range map[string]struct {
		flags uintptr
		data  []string
	}{
		"noatime":                          {unix.MS_NOATIME, nil},
		"noatime,relatime":                 {unix.MS_RELATIME, nil}, // the last one counts
		"ro,rw,nosuid,nodev,noexec,suid":   {unix.MS_NODEV | unix.MS_NOEXEC, nil},
		"defaults,nofail,x-systemd.wanted": {0, nil},
		"noatime,commit=60,discard":        {unix.MS_NOATIME, []string{"commit=60", "discard"}},
		"":                                 {0, nil},
	} {
		flags, data := mountFlags(strings.Split(options, ","))
		if flags != want.flags || !slices.Equal(data, want.data) {
			t.Errorf("%q: %#x %q", options, flags, data)
		}
	}
}

// TestSamples: all within the disk, whatever its size, and the known places.
func TestSamples(t *testing.T) {
	for _, size := range []int64{0, 512, 4 * kib, 64 * kib, mib, 16 * mib, 16*mib + 512, 64 * mib, 64*mib + 64*kib, 1 << 30, matrixSize, 64 << 40} {
		for _, s := range samplesOf(size) {
			if s.offset < 0 || s.offset+s.length > size || s.offset%512 != 0 {
				t.Errorf("disk of %d: %v", size, s)
			}
		}
	}
	var offsets []int64
	for _, s := range samplesOf(100 << 30) {
		offsets = append(offsets, s.offset)
	}
	for _, want := range []int64{0, 64 * mib, 128 * mib, 3 * 128 * mib, 5 * 128 * mib, 7 * 128 * mib, 9 * 128 * mib, 25 * 128 * mib,
		27 * 128 * mib, 49 * 128 * mib, 25 << 30, 50 << 30, 75 << 30, 100<<30 - 16*mib} {
		if !slices.Contains(offsets, want) {
			t.Errorf("nothing is read at %d", want)
		}
	}
}

func TestNewRefusesWhatIsNoRoot(t *testing.T) {
	file := t.TempDir() + "/file"
	must(t, os.WriteFile(file, nil, 0o600))
	for _, cfg := range []Config{{SysfsRoot: file}, {DevRoot: file}, {ProcRoot: "/no/such"}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}
