// Package lease holds a volume of a pool for one owner at a time, by conditional
// writes to one item of a DynamoDB table.
//
// # The protocol
//
//  1. A volume is one item. Its partition is one pool in one zone; its state is
//     free, held, quarantined, drained or retired. While it is free it is also in
//     a sparse local index, in the order in which volumes are to be taken.
//  2. To claim, read the settings and the first free volumes in one consistent
//     Query, and write "held by me" on the lowest, on the condition that it is
//     still free at the generation that was read. The generation grows by one
//     with every claim and never goes back: it is the fencing token. Who loses
//     the race reads again and chooses at random in a window that grows, so that
//     a herd spreads out. Who is throttled reads again, too: the choice would be
//     stale.
//  3. Each logical claim carries an attempt, a fresh UUID. A write whose reply
//     was lost is sent again as it was; where the condition then fails, the item
//     that comes back says whether the first try had landed.
//  4. The holder renews every sixth of the lease, on the condition "mine, and an
//     older beat". A beat is never sent twice: each try is the next one, so that
//     no late copy can rewind what a taker observed.
//  5. After the attach, and before anything is written to the device, the holder
//     confirms: a beat that has to succeed. Who was paused and lost the lease
//     learns of it here.
//  6. Before mkfs the holder, who has proven the device blank, writes a mark, and
//     after it, before the first mount, that it is done. A volume with a mark and
//     without a done never had a file in it.
//  7. To release, the holder stops its beat, and writes "free" on the condition
//     that the lease is its own and that the draining mark is as it saw it.
//  8. A lease is silent when its last renewal is older than twice its length and
//     five seconds, by DynamoDB's own clock, the Date of its replies. A taker that
//     finds nothing free asks EC2 for the owners and the volumes, decides by
//     [Judge], and claims on the condition that generation, attempt and beat are
//     exactly as observed.
//  9. A process that restarts re-adopts its lease: a claim at the next
//     generation, with a new attempt. What its former self still has under way
//     then changes nothing.
//  10. A claim of unknown outcome that is given up is released; where it has not
//     landed, its generation is burned, so that it never can.
//  11. Every holder looks, from time to time, after what comes after its own
//     volume, up to the first lease that is alive, and frees what [Judge] lets be
//     taken: on the condition of the takeover. Together they go once round the zone.
//
// # What it rests on
//
// DynamoDB evaluates conditions in one region, one at a time for an item, and
// reads consistently when asked to. EC2 attaches a volume without multi-attach
// to one instance at most: that, and not time, keeps two writers off a disk. No
// two machines' clocks are compared. A holder counts its own lease from before
// the send, on CLOCK_BOOTTIME, which goes on while the machine is suspended; time
// decides only when something is tried.
//
// # What it does not promise
//
// A [Lease]'s context does not end when its time has run out, but when the table
// shows another hand: an outage of DynamoDB takes nobody's disk away. Who has no
// fence such as EC2's attachment must ask [Lease.Danger] before anything that two
// may not do at once, and hand the generation on to what can check it. Nor does
// it promise who gets a volume next, or that a dead owner's volume comes back
// before its lease is silent, unless EC2 says that the owner is terminated.
//
// Everything that is written, and every condition, is in record.go.
package lease
