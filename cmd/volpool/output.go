package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/urfave/cli/v2"
	"github.com/volpool/volpool/lease"
	"github.com/volpool/volpool/pool"
	"golang.org/x/sys/unix"
)

// What a person reads is written here, and nowhere else. Its rules: a result is
// one line that begins with the word that matters; what explains it is indented
// below; a table has a head and one line a thing; nothing is coloured, nothing
// asks. With -o json one object is printed instead, every key always there.

func printJSON(c *cli.Context, v any) {
	enc := json.NewEncoder(c.App.Writer)
	enc.SetEscapeHTML(false)
	enc.Encode(v)
}

// shown tells whether text is wanted; JSON is printed at once.
func shown(c *cli.Context, v any) bool {
	if c.Bool("quiet") {
		return false
	}
	if c.String("output") == "json" {
		printJSON(c, v)
		return false
	}
	return true
}

func printResult(c *cli.Context, r pool.Result) {
	if shown(c, r) {
		fmt.Fprint(c.App.Writer, resultText(r))
	}
}

func resultText(r pool.Result) string {
	took := ""
	if r.Seconds.Total != nil {
		took = fmt.Sprintf("  %.1f s", *r.Seconds.Total)
	}
	if r.Result != pool.Fallback {
		if r.Generation == nil { // mounted by a former agent, and DynamoDB does not answer
			return fmt.Sprintf("%-9s %s at %s  %d %% used%s\n  but: %s\n", r.Result, value(r.Volume), r.MountPoint,
				value(r.UsedPercent), took, value(r.Message))
		}
		return fmt.Sprintf("%-9s %s at %s  %s %d GiB  %d %% used  generation %d%s\n", r.Result, value(r.Volume), r.MountPoint,
			value(r.Filesystem), value(r.SizeGiB), value(r.UsedPercent), value(r.Generation), took)
	}
	what := "is a plain directory" + room(r.MountPoint)
	if value(r.Reason) == pool.ReasonMountPoint {
		what = "is left as it is"
	}
	s := fmt.Sprintf("%-9s %s %s%s\n  why: %s: %s\n", r.Result, r.MountPoint, what, took, value(r.Reason), value(r.Message))
	if r.Hint != nil {
		s += "  fix: " + *r.Hint + "\n"
	}
	return s
}

// room tells on which filesystem a directory is, and how much is free there.
func room(dir string) string {
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil {
		return ""
	}
	on := ""
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err == nil {
		for _, m := range mounts {
			if len(m.Mountpoint) >= len(on) {
				on = m.Mountpoint
			}
		}
	}
	return fmt.Sprintf(" on %s, %.1f GiB free", on, float64(fs.Bavail)*float64(fs.Bsize)/(1<<30))
}

func value[T any](p *T) T {
	if p == nil {
		return *new(T)
	}
	return *p
}

func printReleased(c *cli.Context, r pool.Released) {
	if !shown(c, r) {
		return
	}
	if r.Released {
		fmt.Fprintf(c.App.Writer, "released  %s from %s  generation %d\n", value(r.Volume), r.MountPoint, value(r.Generation))
		return
	}
	fmt.Fprintf(c.App.Writer, "nothing   %s\n", value(r.Message))
}

func printStatus(c *cli.Context, all []held) {
	if all == nil {
		all = []held{}
	}
	if !shown(c, map[string]any{"schema": 1, "mounts": all}) {
		return
	}
	if len(all) == 0 {
		fmt.Fprintln(c.App.Writer, "nothing   this instance holds no volume")
	}
	for _, h := range all {
		fmt.Fprint(c.App.Writer, resultText(h.Result))
		if h.Volume != nil && !h.Agent {
			fmt.Fprintf(c.App.Writer, "  why: its agent is gone: nobody renews the lease\n  fix: volpool acquire --pool %s --mount-point %s takes it up again\n", h.Pool, h.MountPoint)
		}
	}
}

// volume is a volume as the pool commands print it.
type volume struct {
	Schema           int        `json:"schema"`
	Volume           string     `json:"volume"`
	Pool             string     `json:"pool"`
	Zone             string     `json:"zone"`
	State            string     `json:"state"`
	Draining         bool       `json:"draining"`
	Generation       int64      `json:"generation"`
	Owner            *string    `json:"owner"`
	Phase            *string    `json:"phase"`
	MountPoint       *string    `json:"mount_point"`
	ClaimedAt        *time.Time `json:"claimed_at"`
	RenewedAt        *time.Time `json:"renewed_at"`
	SizeGiB          int64      `json:"size_gib"`
	Format           string     `json:"format"`
	Filesystem       *string    `json:"filesystem"`
	Clean            bool       `json:"clean"`
	UsedPercent      int64      `json:"used_percent"`
	InodesPercent    int64      `json:"inodes_percent"`
	Uses             int64      `json:"uses"`
	LastOwner        *string    `json:"last_owner"`
	ReleasedAt       *time.Time `json:"released_at"`
	Failures         int64      `json:"failures"`
	QuarantinedUntil *time.Time `json:"quarantined_until"`
	LastError        *string    `json:"last_error"`
}

func volumeOf(r lease.Record) volume {
	return volume{Schema: 1, Volume: r.Volume, Pool: r.Pool, Zone: r.Zone, State: string(r.State), Draining: r.Draining,
		Generation: r.Generation, Owner: some(r.Owner), Phase: some(string(r.Phase)), MountPoint: some(r.MountPoint),
		ClaimedAt: someTime(r.ClaimedAt), RenewedAt: someTime(r.RenewedAt), SizeGiB: r.SizeGiB, Format: string(r.Format),
		Filesystem: some(r.FSType), Clean: r.Clean, UsedPercent: r.UsedPercent, InodesPercent: r.InodesPercent, Uses: r.Uses,
		LastOwner: some(r.LastOwner), ReleasedAt: someTime(r.ReleasedAt), Failures: r.Failures,
		QuarantinedUntil: someTime(r.QuarantinedUntil), LastError: some(r.LastError)}
}

func some(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func someTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func printVolumes(c *cli.Context, p lease.Pool, rs []lease.Record, odd []error, now time.Time) {
	volumes := make([]volume, len(rs))
	for i, r := range rs {
		volumes[i] = volumeOf(r)
	}
	notes := make([]string, len(odd))
	for i, err := range odd {
		notes[i] = err.Error()
	}
	if !shown(c, map[string]any{"schema": 1, "pool": p.Name, "paused": p.Settings.Paused, "volumes": volumes, "unreadable": notes}) {
		return
	}
	if len(rs) == 0 {
		fmt.Fprintf(c.App.Writer, "pool %s has no volume\n", p.Name)
	} else {
		var table strings.Builder
		w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "VOLUME\tZONE\tSTATE\tOWNER\tSINCE\tGiB\tFS\tUSED\tUSES\tGEN\tNOTE")
		for _, r := range rs {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%d\t%d\t%s\n", r.Volume, r.Zone, r.State, dash(r.Owner), since(r, now), r.SizeGiB,
				dash(r.FSType), used(r), r.Uses, r.Generation, note(r, now))
		}
		w.Flush()
		for line := range strings.Lines(table.String()) {
			fmt.Fprintln(c.App.Writer, strings.TrimRight(line, " \n"))
		}
	}
	if p.Settings.Paused {
		fmt.Fprintf(c.App.Writer, "pool %s is paused: every acquire falls back at once\n", p.Name)
	}
	for _, n := range notes {
		fmt.Fprintln(c.App.Writer, "left alone: "+n)
	}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func used(r lease.Record) string {
	if r.Uses == 0 {
		return "-"
	}
	return fmt.Sprintf("%d%%", r.UsedPercent)
}

// since is how long the state has lasted, as far as the table knows.
func since(r lease.Record, now time.Time) string {
	at := r.ReleasedAt
	if r.State == lease.Held {
		at = r.ClaimedAt
	}
	if at.IsZero() || now.IsZero() {
		return "-"
	}
	return brief(now.Sub(at))
}

func brief(d time.Duration) string {
	switch d = max(0, d); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func note(r lease.Record, now time.Time) string {
	var notes []string
	if r.Draining {
		notes = append(notes, "draining")
	}
	if r.SilentAt(now) {
		notes = append(notes, "silent for "+brief(now.Sub(r.RenewedAt)))
	}
	if r.State == lease.Quarantined {
		notes = append(notes, "until "+r.QuarantinedUntil.Format(time.TimeOnly))
	}
	if r.LastError != "" {
		notes = append(notes, r.LastError)
	}
	return strings.Join(notes, "; ")
}

// settings are a pool's as the pool commands print them.
type settings struct {
	Schema       int      `json:"schema"`
	Pool         string   `json:"pool"`
	Zones        []string `json:"zones"`
	Filesystem   string   `json:"filesystem"`
	Lease        float64  `json:"lease"` // seconds
	Order        string   `json:"order"`
	MountOptions []string `json:"mount_options"`
	Paused       bool     `json:"paused"`
}

func printPool(c *cli.Context, p lease.Pool, head string) {
	s := settings{1, p.Name, p.Zones, p.Settings.Filesystem, p.Settings.Lease.Seconds(), p.Settings.Order, p.Settings.MountOptions, p.Settings.Paused}
	if s.Zones == nil {
		s.Zones = []string{}
	}
	if s.MountOptions == nil {
		s.MountOptions = []string{}
	}
	if !shown(c, s) {
		return
	}
	fmt.Fprintln(c.App.Writer, head)
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	for _, line := range [][2]string{{"filesystem", s.Filesystem}, {"lease", p.Settings.Lease.String()}, {"order", s.Order},
		{"mount-options", strings.Join(s.MountOptions, ",")}, {"paused", fmt.Sprint(s.Paused)}, {"zones", dash(strings.Join(s.Zones, " "))}} {
		fmt.Fprintf(w, "  %s\t%s\n", line[0], line[1])
	}
	w.Flush()
}

func printVolume(c *cli.Context, r lease.Record, verb string) {
	if shown(c, volumeOf(r)) {
		fmt.Fprintf(c.App.Writer, "%-9s %s in %s/%s  %s  generation %d\n", verb, r.Volume, r.Pool, r.Zone, r.State, r.Generation)
	}
}

// printRecord prints everything the table knows of a volume, a line each.
func printRecord(c *cli.Context, r lease.Record) {
	v := volumeOf(r)
	if !shown(c, v) {
		return
	}
	data, err := json.Marshal(v)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.Token() // {
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	for dec.More() {
		key, _ := dec.Token()
		val, _ := dec.Token()
		if val == nil {
			val = "-"
		}
		if key != "schema" {
			fmt.Fprintf(w, "%v\t%v\n", key, val)
		}
	}
	w.Flush()
}
