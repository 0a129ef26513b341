// Package loopdev gives simulated instances real block devices: each volume is
// a sparse file, and while it is attached a loop device shows it, laid out as
// the kernel lays out an EBS volume on NVMe:
//
//	SYSFS/block/nvme1n1/{dev,size,device/serial,device/model}
//	SYSFS/class/block/nvme1n1 and SYSFS/dev/block/7:3, links to it
//	DEV/nvme1n1, the block node
//
// where SYSFS and DEV are folders of the instance's own. nvme0n1 is its root
// disk: to be seen and left alone, for it has no node.
//
// A device appears whole: its node first, its tree by one rename, and then a
// kernel event of subsystem block, the one that is to be had: it carries the
// loop device's name.
//
// A device is in use while anybody has it open exclusively, as mount, mkfs and
// e2fsck do, in whatever mount namespace; and, once it was taken out of the
// instance's sight, while anybody has it open at all. A loop device in use
// cannot be pulled as EBS pulls a volume from a machine that is gone: here
// Unplug says that it is busy until the last user is gone, so the same file is
// never behind two devices.
//
// It needs root, and a folder on a filesystem that honours device nodes.
package loopdev
