package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const qemuProgram = "qemu-system-x86_64"

// qemuModules are what a machine of QEMU needs besides 9P.
var qemuModules = [...]string{"virtio_pci", "virtio_console", "9pnet_fd", "9p"}

// The guest's card and the host, as QEMU's user network has them.
const (
	qemuHost  = "10.0.2.2"
	qemuGuest = "10.0.2.15"
	qemuMask  = "255.255.255.0"
)

// debianKernel is an unpacked package linux-image-*-amd64.
type debianKernel struct {
	image   string
	modules string // folder with modules.dep
}

// kernelCache is where testscripts/deps.sh unpacks it.
func kernelCache() (string, error) {
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "mezzo-test", "kernel"), err
}

// findKernel finds the newest of the cache.
func findKernel() (debianKernel, error) {
	dir, err := kernelCache()
	if err != nil {
		return debianKernel{}, err
	}
	deps, err := filepath.Glob(filepath.Join(dir, "lib/modules/*/modules.dep"))
	if err != nil || len(deps) == 0 {
		return debianKernel{}, fmt.Errorf("%s/lib/modules/*/modules.dep: not found", dir)
	}
	modules := filepath.Dir(slices.Max(deps))
	k := debianKernel{modules: modules, image: filepath.Join(dir, "boot", "vmlinuz-"+filepath.Base(modules))}
	_, err = os.Stat(k.image)
	return k, err
}

// files are the files of a module and what it depends on, in the order of
// loading; none for one that is built in.
func (k debianKernel) files(name string) ([]string, error) {
	f, err := os.Open(filepath.Join(k.modules, "modules.dep"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		path, deps, _ := strings.Cut(lines.Text(), ":")
		if filepath.Base(path) != name+".ko" {
			continue
		}
		all := append([]string{path}, strings.Fields(deps)...)
		slices.Reverse(all)
		for i := range all {
			all[i] = filepath.Join(k.modules, all[i])
		}
		return all, nil
	}
	builtin, err := os.ReadFile(filepath.Join(k.modules, "modules.builtin"))
	if err == nil && strings.Contains(string(builtin), "/"+name+".ko\n") {
		return nil, nil
	}
	return nil, fmt.Errorf("%s: no module %s", k.modules, name)
}

// MissingQEMU says what this machine lacks to run a guest with Config.Emulate.
func MissingQEMU() string {
	var lack []string
	if _, err := exec.LookPath(qemuProgram); err != nil {
		lack = append(lack, qemuProgram+" (package qemu-system-x86)")
	}
	if _, err := findKernel(); err != nil {
		lack = append(lack, "a kernel to boot (testscripts/deps.sh fetches one): "+err.Error())
	}
	if _, err := busybox(); err != nil {
		lack = append(lack, "a static busybox (package busybox-static)")
	}
	return strings.Join(lack, ", ")
}

// enterLoopback moves the calling thread into a network namespace of its own
// with nothing but a loopback device, where QEMU and the forwarder meet. The
// thread must be locked and never given back.
func enterLoopback() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	return up("lo")
}

// bootQEMU runs the machine to its end, as boot does.
func bootQEMU(ctx context.Context, dir string, c Config, console io.Writer) error {
	k, err := findKernel()
	if err != nil {
		return err
	}
	initramfs := filepath.Join(dir, "initramfs")
	if err := writeInitramfs(initramfs, filepath.Join(dir, "root")); err != nil {
		return err
	}
	args := []string{
		"-machine", "pc", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", fmt.Sprint(c.memory()),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", k.image, "-initrd", initramfs,
		"-append", "console=ttyS0 quiet panic=-1 rdinit=/bin/init tsc=unstable",
		"-device", "virtio-serial-pci,id=serial",
	}
	for _, p := range [...]struct{ name, file string }{{"stdout", stdoutFile}, {"stderr", stderrFile}, {"code", codeFile}} {
		args = append(args, "-chardev", "file,id="+p.name+",path="+escapeComma(filepath.Join(dir, "root", p.file)),
			"-device", "virtserialport,bus=serial.0,chardev="+p.name+",name=guest."+p.name)
	}
	for i, name := range slices.Sorted(maps.Keys(c.Ports)) {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=port%d,path=%s", i, escapeComma(c.Ports[name])),
			"-device", fmt.Sprintf("virtserialport,bus=serial.0,chardev=port%d,name=%s", i, escapeComma(name)))
	}
	if c.Forward != nil {
		if err := enterLoopback(); err != nil {
			return err
		}
		f, err := newForwarder(ctx, "127.0.0.1", c.Forward)
		if err != nil {
			return err
		}
		defer f.close()
		args = append(args, "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=")
	}
	return runKernel(ctx, exec.CommandContext(ctx, qemuProgram, args...), dir, console)
}

// escapeComma writes a value of QEMU's options.
func escapeComma(s string) string { return strings.ReplaceAll(s, ",", ",,") }

var errNoPorts = errors.New("a guest with Ports needs Emulate: user-mode Linux has no virtio")
