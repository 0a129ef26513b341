package vm_test

import (
	"encoding/binary"
	"os"
	"strings"
)

// powerCut ends a machine in the midst of writing. Its volume is left alone
// until EC2 calls the instance terminated; then the next one takes it over.
func powerCut(w *world) {
	w.fill(1)
	two := w.boot(2)
	dead, heir := two[0], two[1]
	a, err := dead.acquire(w.pool)
	if err != nil {
		w.Fatal(err)
	}
	w.holds(dead, a, "cold", 1)
	w.write(dead)
	if _, err := dead.run("sh", "-c", "sync && dd if=/dev/zero of="+mountPoint+"/lost bs=64k count=64"); err != nil {
		w.Fatal(err)
	}
	dead.Kill()
	if !w.needsRecovery(a.Volume) {
		w.Fatal("the filesystem is clean, although it was mounted to the end")
	}
	early, err := heir.acquire(w.pool)
	if err != nil {
		w.Fatal(err)
	}
	if early.Result != "fallback" || early.Reason != "no_free_volume" {
		w.Fatalf("EC2 says running, and %s got %s", heir.ID, early.text)
	}
	if err := w.ec2.Terminate(dead.ID); err != nil {
		w.Fatal(err)
	}
	b, err := heir.acquire(w.pool)
	if err != nil {
		w.Fatal(err)
	}
	w.holds(heir, b, "warm", 2)
	w.reads(heir, dead.ID)
	if said := heir.agentLog(); !strings.Contains(said, "recovering journal") {
		w.Errorf("e2fsck found nothing to do: %s", said)
	}
	if err := heir.release(); err != nil {
		w.Fatal(err)
	}
	w.inOrder(b.Volume)
	if w.needsRecovery(b.Volume) {
		w.Error("the filesystem is not clean after the release")
	}
}

// needsRecovery reads the flag in ext4's superblock that a mount sets and an
// unmount takes away
// (https://docs.kernel.org/filesystems/ext4/globals.html#super-block).
func (w *world) needsRecovery(volume string) bool {
	w.Helper()
	f, err := os.Open(w.backend.Image(volume))
	if err != nil {
		w.Fatal(err)
	}
	defer f.Close()
	const superblock, incompatible, recover = 1024, 0x60, 0x4
	var features [4]byte
	if _, err := f.ReadAt(features[:], superblock+incompatible); err != nil {
		w.Fatal(err)
	}
	return binary.LittleEndian.Uint32(features[:])&recover != 0
}
