// Command scale prints the tables of docs/scale.md. What it multiplies is
// stated there and here, so that a reader can put in his own numbers.
package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"time"
)

// What the protocol costs, in DynamoDB's units. A write of an item up to 1 KB is
// one unit, one that adds or removes an entry of the index two; a strongly
// consistent read of up to 4 KB is one.
const (
	beatUnits   = 1.0 // no entry of the index changes
	beats       = 6.0 // in the time of one lease
	claimWrites = 2.0 // the entry goes
	otherWrites = 3.0 // confirm, mounted, clean: heartbeats that come early
	freeWrites  = 2.0 // the entry comes
	claimReads  = 1.0
	lookReads   = 1.0 // the janitor's look at its neighbour
	looksAnHour = 20.0
)

// What AWS sets.
const (
	writePrice    = 0.625 / 1e6 // dollars a unit, on demand, us-east-1
	readPrice     = 0.125 / 1e6
	partition     = 1000.0 // write units a second, of one pool in one zone
	attachBurst   = 50.0   // calls at once, of an account in a region
	attachRefill  = 5.0    // a second
	hoursAMonth   = 730.0
	usesADay      = 8.0 // acquires of an instance: an assumption
	partitionFull = 0.5 // of the partition, so that a herd has room beside the heartbeats
)

// leases are the settings among which to choose.
var leases = []time.Duration{time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 20 * time.Minute, time.Hour}

// fleet is what a number of instances in one zone comes to.
type fleet struct {
	instances float64
	lease     time.Duration // the shortest whose heartbeats fill half of the partition at most
	writes    float64       // units a second, while all of them hold
	silent    time.Duration // until a lease without heartbeats may be taken
	dollars   float64       // a month, all of them running
	attached  time.Duration // until the last is attached, if all boot at once
}

func beatsPerSecond(instances float64, lease time.Duration) float64 {
	return instances * beats * beatUnits / lease.Seconds()
}

func fleetOf(instances float64) fleet {
	f := fleet{instances: instances}
	for _, f.lease = range leases {
		if f.writes = beatsPerSecond(instances, f.lease); f.writes <= partitionFull*partition {
			break
		}
	}
	f.silent = 2*f.lease + 5*time.Second
	hourly := 3600*beatsPerSecond(1, f.lease)*writePrice + looksAnHour*lookReads*readPrice
	uses := usesADay / 24 * ((claimWrites+otherWrites+freeWrites)*writePrice + claimReads*readPrice)
	f.dollars = instances * hoursAMonth * (hourly + uses)
	f.attached = time.Duration(math.Max(0, instances-attachBurst)/attachRefill) * time.Second
	return f
}

func printFleets(w io.Writer) {
	fmt.Fprintln(w, "| instances in the zone | lease | writes a second | of the partition | silent after | DynamoDB a month | all attached after |")
	fmt.Fprintln(w, "| --: | --: | --: | --: | --: | --: | --: |")
	for _, n := range []float64{10, 100, 1000, 5000, 10_000, 25_000, 50_000, 100_000} {
		f := fleetOf(n)
		fmt.Fprintf(w, "| %.0f | %v | %.0f | %.0f %% | %v | $%.2f | %v |\n", n, brief(f.lease), math.Ceil(f.writes),
			math.Ceil(100*f.writes/partition), brief(f.silent), f.dollars, brief(f.attached))
	}
}

// brief leaves out the zeroes that a Duration prints.
func brief(d time.Duration) string {
	s := d.String()
	for _, tail := range []string{"m0s", "h0m"} {
		if n := len(s) - len(tail); n > 0 && s[n:] == tail {
			s = s[:n+1]
		}
	}
	return s
}

func main() { printFleets(os.Stdout) }
