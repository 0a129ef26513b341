//go:build linux

// Package mount finds an EBS volume's block device, decides whether it is blank,
// formats or checks it, mounts it, and gives it back. It knows no AWS and no
// lease: the caller proves that the volume is its own before it calls Format,
// Overwrite, Check or Mount.
//
// # What it promises
//
//  1. A [Device] is an opened file, locked by flock(2) until Close. mkfs and
//     e2fsck inherit the descriptor, so an orphan of theirs keeps the lock and
//     the next process waits for it.
//  2. A disk is recognised by its serial, never by its name. Serial, device
//     number and size are compared once more right before each step that writes
//     and right before the mount, for names move.
//  3. [Device.Format] runs mkfs only on what a [Device.Probe] of the same Device
//     proved blank: blkid finds nothing, and every sampled range was read and is
//     zero. An error is never Blank.
//  4. mkfs and e2fsck are never killed, neither by a context nor by a signal to
//     our process group.
//  5. [Host.Unmount] never detaches lazily, and is done only when the kernel
//     hands the disk out exclusively: nobody holds it, in no mount namespace.
//
// # What it does not promise
//
// Data that lies between the samples on a disk without any signature, such as
// the middle of a raw image, is not seen. The caller's record (was it ever
// formatted?) is the second lock on that door.
//
// An error is this machine's fault unless it is a [*VolumeError]; [ErrGone] is
// nobody's: EC2 took the device away.
package mount
