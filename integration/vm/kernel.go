package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/volpool/volpool/integration/cache"
	"go.uber.org/zap"
)

// kernelPackage always depends on the newest kernel, which is the only one that
// Debian's archive keeps: so there is no version to pin.
const kernelPackage = "linux-image-cloud-amd64"

// modules are what a guest loads to reach the host, in this order. NVMe and
// ext4 are built in.
var modules = []string{
	"failover", "net_failover", "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_net",
}

// kernel is an unpacked one.
type kernel struct {
	image   string
	modules []string // files
}

var kernelDependency = regexp.MustCompile(`Depends:.*\b(linux-image-\S+-cloud-amd64) \(= (\S+)\)`)

// provideKernel finds Debian's kernel in the cache, or fetches it. A folder that
// has its final name is complete.
func provideKernel(ctx context.Context, log *zap.Logger) (kernel, error) {
	if runtime.GOARCH != "amd64" {
		return kernel{}, fmt.Errorf("the virtual machines get tools of this machine, which is %s and not amd64", runtime.GOARCH)
	}
	cached, err := cache.Dir()
	if err != nil {
		return kernel{}, err
	}
	unlock, err := cache.Lock(ctx, filepath.Join(cached, "lock"))
	if err != nil {
		return kernel{}, err
	}
	defer unlock()
	old, err := filepath.Glob(filepath.Join(cached, "kernel-*"))
	if err != nil {
		return kernel{}, fmt.Errorf("list cache folder: %w", err)
	}
	if len(old) > 0 {
		return findKernel(old[len(old)-1])
	}
	dir, err := fetchKernel(ctx, log, cached)
	if err != nil && os.Geteuid() == 0 { // what the lists name is gone from the archive, or there are none
		if _, err := apt(ctx, cached, "apt-get", "update", "-q"); err != nil {
			return kernel{}, err
		}
		dir, err = fetchKernel(ctx, log, cached)
	}
	if err != nil {
		return kernel{}, fmt.Errorf("fetch what %s of Debian names: %w", kernelPackage, err)
	}
	return findKernel(dir)
}

func fetchKernel(ctx context.Context, log *zap.Logger, cached string) (string, error) {
	said, err := apt(ctx, cached, "apt-cache", "show", "--no-all-versions", kernelPackage)
	if err != nil {
		return "", err
	}
	found := kernelDependency.FindStringSubmatch(said)
	if found == nil {
		return "", fmt.Errorf("it depends on no kernel: %s", said)
	}
	name, version := found[1], found[2]
	log.Info("fetching a kernel, 27 MB, once", zap.String("package", name), zap.String("version", version), zap.String("into", cached))
	work, err := cache.Unfinished(cached)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if _, err := apt(ctx, work, "apt-get", "download", "-q", name+"="+version); err != nil {
		return "", err
	}
	packages, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(packages) != 1 {
		return "", fmt.Errorf("apt-get left %v: %w", packages, err)
	}
	unpacked := filepath.Join(work, "unpacked")
	if _, err := apt(ctx, work, "dpkg-deb", "-x", packages[0], unpacked); err != nil {
		return "", err
	}
	dir := filepath.Join(cached, "kernel-"+strings.TrimPrefix(name, "linux-image-")+"-"+version)
	if err := os.Rename(unpacked, dir); err != nil {
		return "", fmt.Errorf("keep what was fetched: %w", err)
	}
	return dir, nil
}

func apt(ctx context.Context, dir, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	var said, complained strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &complained
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(complained.String()))
	}
	return said.String(), nil
}

func findKernel(dir string) (kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return kernel{}, fmt.Errorf("%d kernels in %s: %w", len(images), dir, err)
	}
	k := kernel{image: images[0]}
	files := map[string]string{}
	err = filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		files[entry.Name()] = path
		return err
	})
	if err != nil {
		return kernel{}, fmt.Errorf("look through %s: %w", dir, err)
	}
	for _, name := range modules {
		path := files[name+".ko"]
		if path == "" {
			return kernel{}, fmt.Errorf("%s has no module %s", dir, name)
		}
		k.modules = append(k.modules, path)
	}
	return k, nil
}
