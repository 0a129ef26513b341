//go:build linux

package mount

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
)

// What blkid -p exits with.
const (
	blkidFound      = 0
	blkidNothing    = 2 // and where it could not open or read
	blkidAmbivalent = 8 // more than one, and no telling which counts
)

// signatures asks blkid, which knows more formats than anybody.
func (d *Device) signatures(*os.File, []byte) (Probe, error) {
	said, err := run(d.file, "blkid", "-p", "-o", "export", d.path)
	exit := blkidFound
	if err != nil {
		tool, ok := errors.AsType[*ToolError](err)
		if !ok {
			return Probe{}, err
		}
		exit = tool.Exit
	}
	found, ok := judgeBlkid(exit, said)
	if !ok {
		if err == nil {
			err = fmt.Errorf("blkid says neither yes nor no: %q", said)
		}
		return Probe{}, err
	}
	if found.FSType != "" {
		if found.Clean, err = d.leftClean(found.FSType); err != nil {
			return Probe{}, err
		}
	}
	return found, nil
}

// judgeBlkid takes no answer for a no but exit 2 with nothing said at all.
func judgeBlkid(exit int, said string) (Probe, bool) {
	switch exit {
	case blkidNothing:
		return Probe{Content: Blank}, said == ""
	case blkidAmbivalent:
		return Probe{Content: HasData, Reason: "blkid finds signatures of more than one kind"}, true
	case blkidFound:
		return describe(parseExport(said))
	}
	return Probe{}, false
}

func describe(tags map[string]string) (Probe, bool) {
	kind, table := tags["TYPE"], tags["PTTYPE"]
	switch {
	case kind != "" && tags["USAGE"] == "filesystem":
		return Probe{Content: HasData, FSType: kind, FSUUID: tags["UUID"], Reason: "blkid finds a filesystem, " + kind}, true
	case kind != "":
		return Probe{Content: HasData, Reason: "blkid finds " + kind}, true
	case table != "":
		return Probe{Content: HasData, Reason: "blkid finds a partition table, " + table}, true
	}
	return Probe{}, false
}

// parseExport reads blkid's output in the form "export": KEY=value lines, the
// values with control characters as ^X and special ones behind a backslash.
func parseExport(said string) map[string]string {
	tags := map[string]string{}
	lines := bufio.NewScanner(strings.NewReader(said))
	for lines.Scan() {
		if key, value, ok := strings.Cut(lines.Text(), "="); ok {
			tags[key] = value
		}
	}
	return tags
}
