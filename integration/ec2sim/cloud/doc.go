// Package cloud is the part of EC2 that a volume's life depends on, as a state
// machine: instances, EBS volumes, and the attachments between them.
//
// It opens no socket and reads no clock but time.Now and time.AfterFunc, so it
// runs in a testing/synctest bubble on virtual time as well as behind the HTTP
// server of package ec2sim. What becomes of an attached volume inside the
// instance is left to a Backend.
//
// What holds, always:
//
//  1. A volume without multi-attach has one attachment at most.
//  2. A volume is available only after its device is gone from the instance:
//     the Backend has said so.
//  3. Every change of state is kept with its time, so that a Describe can
//     answer from the past, as EC2's may.
//
// What it leaves out: root volumes (an instance has one, by name only),
// snapshots, networks, quotas, and every action that is not listed in package
// ec2sim.
package cloud
