// Package sim runs the real code of packages lease and pool through histories
// that a seed decides: instances that claim, attach, confirm, format, use, give
// back, take over and come back after a crash, with a network, an EC2 and disks
// that fail in every way at every step.
//
// Every call that leaves an instance, and every step on its disks, waits at a
// gate. When all goroutines of the synctest bubble are blocked, the seed chooses
// which call goes on and what becomes of it, or that time moves. So a seed is a
// history, and the same seed is the same history.
//
// There are two kinds of instances. One runs pool's agent as it is. The other
// drives the lease by hand: it claims and gives back several times as often,
// looks after what the dead left, and shows whether the protocol holds for a
// holder that is not pool's. All that they write is checked in the world's
// hands: at the table, at EC2, at the disks, and where it leaves a process.
//
//	make sim N=100000           as many histories, with fresh seeds
//	make sim SEED=42            one again, with its log
//	make sim AGENTS=50          every second instance runs the agent
package sim
