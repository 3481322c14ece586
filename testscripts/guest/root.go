package guest

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Places inside the root folder by which guest and host talk.
const (
	scriptFile = "run/guest/script"
	stdoutFile = "run/guest/stdout"
	stderrFile = "run/guest/stderr"
	codeFile   = "run/guest/code"
)

// The two ends of the guest's network; nobody else is in it.
const (
	hostAddr  = "10.9.0.1"
	guestAddr = "10.9.0.2"
	netMask   = "255.255.255.252"
)

// initScript is the guest's first process, up to where it runs the script.
const initScript = `#!/bin/sh
export PATH=/bin:/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=1777 tmp /tmp
for m in %s; do insmod /lib/modules/$m.ko || echo "guest: cannot load $m"; done
ifconfig lo 127.0.0.1 up
%s
cd /
`

// runByFiles runs the script. The streams go to files of the root folder,
// which is the host's own, and are synced one by one: a sync of everything
// would wait for a mount whose server is gone. The exit code is written last
// and renamed into place, so that its presence means a whole run.
const runByFiles = `sh /%s </dev/null >/%s 2>/%s
echo $? >/%s.new
fsync /%s /%s /%s.new
mv /%s.new /%s
poweroff -f -n
`

// runByPorts is runByFiles where the root folder is not the host's: each stream
// is a virtio-serial port that the host writes to the file.
const runByPorts = `port() {
	until [ -e /sys/class/virtio-ports/vport0p1/name ]; do usleep 10000; done
	for p in /sys/class/virtio-ports/*; do
		if [ "$(cat $p/name)" = "guest.$1" ]; then echo /dev/${p##*/}; fi
	done
}
sh /%s </dev/null >$(port stdout) 2>$(port stderr)
echo $? >$(port code)
poweroff -f -n
`

// buildRoot fills dir with the guest's root folder.
func buildRoot(dir string, c Config) error {
	for _, d := range []string{"bin", "sbin", "dev", "proc", "sys", "tmp", "mnt", "root", "etc", "lib/modules", "run/guest"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := installBusybox(dir); err != nil {
		return err
	}
	loaded, err := installModules(dir, c)
	if err != nil {
		return err
	}
	for name, path := range c.Binaries {
		static, err := isStatic(path)
		if err != nil {
			return err
		}
		if !static {
			return fmt.Errorf("%s: not a static program, the guest has no libraries", path)
		}
		if err := copyFile(filepath.Join(dir, "bin", name), path, 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/tmp:/bin/sh\nbob:x:1001:1001::/tmp:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\n",
		"etc/group":  "root:x:0:\nalice:x:1000:\nbob:x:1001:\nshared:x:2000:alice,bob\nnogroup:x:65534:\n",
		"etc/hosts":  "127.0.0.1 localhost guest\n" + c.host() + " host\n",
		scriptFile:   c.Script,
		"bin/init":   bootScript(loaded, c),
	}
	for name, text := range c.Files {
		files[name] = text
	}
	for name, text := range files {
		if err := putFile(dir, name, text); err != nil {
			return err
		}
	}
	return nil
}

// moduleFiles are the files of all modules that c needs, in the order of
// loading; some may come twice.
func moduleFiles(c Config) ([]string, error) {
	var files []string
	if c.Emulate {
		k, err := findKernel()
		if err != nil {
			return nil, err
		}
		names := slices.Concat(qemuModules[:], c.Modules)
		if c.Forward != nil {
			names = append(names, "virtio_net")
		}
		for _, m := range names {
			some, err := k.files(m)
			if err != nil {
				return nil, err
			}
			files = append(files, some...)
		}
		return files, nil
	}
	for _, m := range modules {
		if path, err := modulePath(m); err == nil { // else built in, or Missing has said so
			files = append(files, path)
		}
	}
	for _, m := range c.Modules {
		path, err := modulePath(m)
		if err != nil {
			return nil, err
		}
		files = append(files, path)
	}
	return files, nil
}

// installModules copies the modules and names them in the order of loading.
func installModules(dir string, c Config) (loaded []string, err error) {
	files, err := moduleFiles(c)
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".ko")
		if slices.Contains(loaded, name) {
			continue
		}
		if err := copyFile(filepath.Join(dir, "lib/modules", name+".ko"), path, 0o644); err != nil {
			return nil, err
		}
		loaded = append(loaded, name)
	}
	return loaded, nil
}

// host is the host's address in the guest's network.
func (c Config) host() string {
	if c.Emulate {
		return qemuHost
	}
	return hostAddr
}

// bootScript is init with what this run needs.
func bootScript(loaded []string, c Config) string {
	var set strings.Builder
	switch {
	case c.Forward != nil && c.Emulate:
		fmt.Fprintf(&set, "export HOST=%s\nifconfig eth0 %s netmask %s up\n", qemuHost, qemuGuest, qemuMask)
	case c.Forward != nil:
		fmt.Fprintf(&set, "export HOST=%s\nifconfig vec0 %s netmask %s up\n", hostAddr, guestAddr, netMask)
	}
	for _, kv := range c.Env {
		name, value, _ := strings.Cut(kv, "=")
		fmt.Fprintf(&set, "export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
	}
	if c.Emulate {
		return fmt.Sprintf(initScript, strings.Join(loaded, " "), set.String()) + fmt.Sprintf(runByPorts, scriptFile)
	}
	return fmt.Sprintf(initScript, strings.Join(loaded, " "), set.String()) + fmt.Sprintf(runByFiles, scriptFile, stdoutFile, stderrFile, codeFile, stdoutFile, stderrFile, codeFile, codeFile, codeFile)
}

// installBusybox copies busybox and links every applet to it. It is a copy and
// not a hard link because the guest's root may write to it.
func installBusybox(dir string) error {
	path, err := busybox()
	if err != nil {
		return err
	}
	if err := copyFile(filepath.Join(dir, "bin/busybox"), path, 0o755); err != nil {
		return err
	}
	list, err := exec.Command(path, "--list").Output()
	if err != nil {
		return fmt.Errorf("%s --list: %w", path, err)
	}
	for applet := range strings.FieldsSeq(string(list)) {
		if applet == "busybox" || applet == "init" || strings.Contains(applet, "/") {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// putFile writes a file of the root folder; one that names an applet replaces
// it instead of writing through the link.
func putFile(dir, name, text string) error {
	name = strings.TrimPrefix(name, "/")
	if !filepath.IsLocal(name) {
		return fmt.Errorf("%s: not a path inside the guest", name)
	}
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	mode := os.FileMode(0o644)
	if filepath.Dir(name) == "bin" {
		mode = 0o755
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, []byte(text), mode)
}

func copyFile(dst, src string, mode os.FileMode) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.Remove(dst); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

// isStatic says whether the program at path needs no interpreter.
func isStatic(path string) (bool, error) {
	f, err := elf.Open(path)
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false, nil
		}
	}
	return true, nil
}
