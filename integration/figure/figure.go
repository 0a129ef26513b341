// Package figure prints what is measured, each figure on a line of its own:
//
//	figure NAME VALUE UNIT limit OP N ok|MISSED
//
// without the limit where nothing is asked for.
package figure

import (
	"fmt"
	"math"
)

// Tell prints a value that nothing is asked of.
func Tell(name string, value float64, unit string) {
	fmt.Printf("figure %s %s %s\n", name, number(value), unit)
}

// AtMost prints a value, and tells whether it keeps within its limit.
func AtMost(name string, value float64, unit string, limit float64) bool {
	return judge(name, value, unit, "<=", limit, value <= limit)
}

// AtLeast prints a value, and tells whether it comes up to its limit.
func AtLeast(name string, value float64, unit string, limit float64) bool {
	return judge(name, value, unit, ">=", limit, value >= limit)
}

func judge(name string, value float64, unit, op string, limit float64, ok bool) bool {
	word := "ok"
	if !ok {
		word = "MISSED"
	}
	fmt.Printf("figure %s %s %s limit %s %s %s\n", name, number(value), unit, op, number(limit), word)
	return ok
}

// number leaves counts whole, and measures at four digits.
func number(v float64) string {
	if v == math.Trunc(v) {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.4g", v)
}
