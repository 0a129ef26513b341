package lease

// OwnerState is what EC2 says of the instance that holds a lease.
type OwnerState int

// EC2's states of an instance. OwnerGone is an instance that DescribeInstances
// does not know: long terminated, or too new for a stale reply.
const (
	OwnerGone OwnerState = iota
	OwnerPending
	OwnerRunning
	OwnerStopping
	OwnerStopped
	OwnerShuttingDown
	OwnerTerminated
)

// VolumeState is what EC2 says of the held volume, seen from a taker.
type VolumeState int

// Where the volume is.
const (
	VolumeGone         VolumeState = iota // EC2 does not know it
	VolumeAvailable                       // attached to nothing
	VolumeMine                            // attached to the taker's instance
	VolumeOwners                          // attaching or attached to the old owner
	VolumeLeavingOwner                    // detaching from the old owner
	VolumeElsewhere                       // attached to a third instance, or to one not found
	VolumeNeither                         // being made, deleted, or in error
)

// Verdict is what a taker may do with a held lease.
type Verdict int

// What may be done. Leave is the answer to all that is not understood.
const (
	Leave          Verdict = iota
	TakeNow                // nobody can be using it
	TakeWhenSilent         // only if the lease is silent too
	WaitForDetach          // EC2 is taking it away from the old owner
)

// Judge says what a taker may do, from what EC2 says of the old owner and of
// the volume. It is total: every pair that the table in the package comment
// does not name is Leave.
func Judge(owner OwnerState, volume VolumeState) Verdict {
	terminated := owner == OwnerTerminated
	ending := terminated || owner == OwnerShuttingDown
	switch {
	case volume == VolumeAvailable && terminated, volume == VolumeMine && terminated:
		return TakeNow
	case volume == VolumeAvailable, volume == VolumeMine:
		return TakeWhenSilent
	case (volume == VolumeOwners || volume == VolumeLeavingOwner) && ending:
		return WaitForDetach
	}
	return Leave
}
