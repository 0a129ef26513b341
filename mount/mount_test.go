//go:build linux

package mount

import (
	"os"
	"path/filepath"
	"testing"
)

const testUUID = "6b3f3f5e-62c5-4b7a-9a55-2f1d0c7a8e01"

// TestWholeLife goes the way of a volume: blank, formatted, mounted, given back,
// found again.
func TestWholeLife(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			needTools(t, "mkfs."+fsType)
			m := newMachine(t)
			m.plug("nvme1n1", testVolume, 1<<30)
			point := m.point("cache")
			must(t, os.WriteFile(filepath.Join(point, "before"), nil, 0o644))

			d := m.find(testVolume)
			found, err := d.Probe(t.Context())
			must(t, err)
			if found.Content != Blank {
				t.Fatalf("probe of a blank disk: %+v", found)
			}
			must(t, d.Format(t.Context(), fsType, testUUID))
			found, err = d.Probe(t.Context())
			must(t, err)
			if found.Content != HasData || found.FSType != fsType || found.FSUUID != testUUID || !found.Clean {
				t.Fatalf("probe after format: %+v", found)
			}
			must(t, d.Mount(t.Context(), point, MountOptions{FSType: fsType, Options: []string{"noatime"}}))
			mounted, ok, err := m.host.MountedAt(point)
			must(t, err)
			if !ok || mounted.VolumeID != testVolume || mounted.Source != d.Path() || mounted.FSType != fsType {
				t.Fatalf("mounted: %v %+v", ok, mounted)
			}
			entries, err := os.ReadDir(point)
			must(t, err)
			if len(entries) != 0 {
				t.Fatalf("a fresh cache holds %v", entries)
			}
			must(t, os.WriteFile(filepath.Join(point, "kept"), nil, 0o644))
			if used, err := d.InUse(); err != nil || !used {
				t.Fatalf("in use while mounted: %v %v", used, err)
			}
			must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
			if used, err := d.InUse(); err != nil || used {
				t.Fatalf("in use after unmount: %v %v", used, err)
			}
			if _, err := os.Stat(filepath.Join(point, "before")); err != nil {
				t.Fatal("what stood in the mount point is gone")
			}
			must(t, d.Close())

			d = m.find(testVolume)
			found, err = d.Probe(t.Context())
			must(t, err)
			if !found.Clean {
				t.Fatalf("not clean after unmount: %+v", found)
			}
			must(t, d.Mount(t.Context(), point, MountOptions{FSType: fsType}))
			if _, err := os.Stat(filepath.Join(point, "kept")); err != nil {
				t.Fatal("the cache's file is gone")
			}
			must(t, m.host.Unmount(t.Context(), point, UnmountOptions{}))
		})
	}
}
