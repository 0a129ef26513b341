package story

import (
	"fmt"
	"io"
	"strings"
)

// voice tells the story. Titles stand at the margin and all else is indented:
// commands behind a $, as one would type them, then what they print, as it is.
// The first error of the writer is kept.
type voice struct {
	out  io.Writer
	acts int
	err  error
}

func (v *voice) line(format string, args ...any) {
	if v.err == nil {
		_, v.err = fmt.Fprintf(v.out, format+"\n", args...)
	}
}

func (v *voice) blank() { v.line("") }

func (v *voice) title(text string) {
	v.acts++
	v.line("\n%d. %s\n", v.acts, text)
}

func (v *voice) command(format string, args ...any) { v.line("   $ "+format, args...) }

func (v *voice) output(text string) {
	for line := range strings.Lines(text) {
		v.line("   %s", strings.TrimRight(line, "\n"))
	}
}

func (v *voice) acquired(i *Instance) {
	a := i.Acquired
	what := fmt.Sprintf("%s at %s, %s %d GiB, generation %d", a.Volume, a.MountPoint, a.Filesystem, a.SizeGiB, a.Generation)
	if a.Result == "fallback" {
		what = fmt.Sprintf("%s is a plain directory: %s", a.MountPoint, a.Reason)
	}
	if a.LostRaces > 0 {
		what += fmt.Sprintf(", after %s lost", amount(a.LostRaces, "race"))
	}
	v.line("   %s  %-8s  %4.1f s  %s", i.ID, a.Result, a.Seconds.Total, what)
}

func amount(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
