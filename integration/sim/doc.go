// Package sim runs the real code of package lease through histories that a seed
// decides: instances that claim, attach, confirm, format, use, give back, take
// over and come back after a crash, with a network and an EC2 that fail in every
// way at every step.
//
// Every call that leaves an instance waits at a gate. When all goroutines of the
// synctest bubble are blocked, the seed chooses which call goes on and what
// becomes of it, or that time moves. So a seed is a history, and the same seed
// is the same history.
//
//	make sim N=100000           as many histories, with fresh seeds
//	make sim SEED=42            one again, with its log
package sim
