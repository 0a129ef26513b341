package vm

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
)

// guestPath has busybox last: its blkid is not the one that volpool needs.
const guestPath = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/busybox"

// initScript is the guest's first process. As such it reaps what agents leave,
// while it waits for the init that serves the host.
const initScript = `#!/busybox/busybox sh
export PATH=` + guestPath + `
/busybox/busybox --install -s /busybox
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o mode=755 tmpfs /run
for module in %s; do
	insmod /modules/$module.ko || echo "module $module is missing"
done
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
echo 7 >/proc/sys/kernel/printk # from now on all that the kernel has to say is worth its time on the console
echo "calling the host at $guest_host"
/usr/local/bin/init "$guest_host"
poweroff -f
`

// tools are what volpool runs.
var tools = []string{"mkfs.ext4", "e2fsck", "blkid"}

// writeInitramfs makes the guests' root filesystem, with these binaries in
// /usr/local/bin.
func writeInitramfs(to string, k kernel, binaries map[string]string) (err error) {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buffered := bufio.NewWriter(f)
	a := &archive{out: buffered, made: map[string]bool{".": true}}
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "mnt", "etc"} {
		a.folder(dir)
	}
	names := ""
	for i, file := range k.modules {
		a.copy("modules/"+modules[i]+".ko", file)
		names += modules[i] + " "
	}
	a.file("init", fmt.Appendf(nil, initScript, names))
	a.copy("etc/mke2fs.conf", "/etc/mke2fs.conf")
	a.tool("busybox/busybox", "busybox")
	for _, name := range tools {
		a.tool("usr/sbin/"+name, name)
	}
	for name, file := range binaries {
		a.copy("usr/local/bin/"+name, file)
	}
	a.end()
	return errors.Join(a.err, buffered.Flush())
}

// archive writes what the kernel unpacks: cpio in the format newc
// (https://docs.kernel.org/driver-api/early-userspace/buffer-format.html). After
// an error it writes nothing more.
type archive struct {
	out  io.Writer
	made map[string]bool
	err  error
}

func (a *archive) folder(name string) {
	if a.made[name] {
		return
	}
	a.folder(path.Dir(name))
	a.entry(name, 0o040755, nil)
}

func (a *archive) file(name string, content []byte) {
	if !a.made[name] {
		a.folder(path.Dir(name))
		a.entry(name, 0o100755, content)
	}
}

func (a *archive) copy(name, from string) {
	content, err := os.ReadFile(from)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.file(name, content)
}

// tool copies a program of this machine, with the libraries it needs.
func (a *archive) tool(name, program string) {
	file, err := lookPath(program)
	if err != nil {
		a.err = errors.Join(a.err, fmt.Errorf("%w (make test-vm installs it)", err))
		return
	}
	a.copy(name, file)
	said, err := exec.Command("ldd", file).CombinedOutput()
	if err != nil && !bytes.Contains(said, []byte("not a dynamic executable")) {
		a.err = errors.Join(a.err, fmt.Errorf("ldd %s: %w: %s", file, err, said))
	}
	for _, library := range libraryPath.FindAllSubmatch(said, -1) {
		a.copy(string(library[1][1:]), string(library[1]))
	}
}

var libraryPath = regexp.MustCompile(`(?m)(/\S+) \(0x`)

func lookPath(program string) (string, error) {
	for _, candidate := range []string{program, "/usr/sbin/" + program, "/sbin/" + program} {
		if file, err := exec.LookPath(candidate); err == nil {
			return filepath.EvalSymlinks(file)
		}
	}
	return "", &exec.Error{Name: program, Err: exec.ErrNotFound}
}

func (a *archive) entry(name string, mode int, content []byte) {
	a.made[name] = true
	if a.err != nil {
		return
	}
	var b bytes.Buffer
	// Inode, mode, owner, group, links, time, size, device, its own device,
	// length of the name, checksum.
	fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		len(a.made), mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	b.WriteString(name + "\x00")
	pad(&b)
	b.Write(content)
	pad(&b)
	_, a.err = a.out.Write(b.Bytes())
}

func (a *archive) end() { a.entry("TRAILER!!!", 0, nil) }

func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
