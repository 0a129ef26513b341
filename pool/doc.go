// Package pool brings a leased volume to its mount point and back.
//
// An [Agent] is one process that owns one mount point's lease from claim to
// release. Its way in is a list of steps (acquire.go): who am I, what did a
// former process leave (resume), claim a free volume or one whose owner is gone
// (takeover.go), attach it and wait for its device (attach.go), confirm the
// lease, format or check (prepare.go), mount. A step that fails says what is to
// blame, and that alone decides what becomes of the volume: it goes back, or it
// is quarantined; and whether the next one is tried. Its way out (hold.go) is
// unmount, detach, wait until EC2 shows it gone, release; what fails on the way
// stays held, and is tried again from there.
//
// Whatever happens there is a result by the deadline, and a directory to work
// in. What may not be broken off, a format or a check, goes on behind a result
// that says so.
//
// An [Admin] is an operator's hand: it keeps the table and EC2 in step.
package pool
