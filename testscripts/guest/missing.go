package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

const (
	kernelPath  = "/usr/bin/linux.uml"
	modulesPath = "/usr/lib/uml/modules"
	tunPath     = "/dev/net/tun"
)

// busyboxPaths are where a static busybox may be; Debian's busybox-static and
// busybox packages share the first.
var busyboxPaths = [...]string{"/bin/busybox", "/usr/bin/busybox"}

// modules are what v9fs needs, in the order of loading. A kernel may have some
// of them built in; then there is no file.
var modules = [...]string{"netfs", "fscache", "9pnet", "9pnet_fd", "9p"}

// Missing says what this machine lacks to run a guest, for the text of a skip;
// empty means nothing.
func Missing() string {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return "user-mode Linux runs on linux/amd64 only"
	}
	var lack []string
	if _, err := os.Stat(kernelPath); err != nil {
		lack = append(lack, kernelPath+" (package user-mode-linux)")
	} else if _, err := modulePath("9p"); err != nil {
		lack = append(lack, "the 9p module under "+modulesPath+" (package user-mode-linux)")
	}
	if _, err := busybox(); err != nil {
		lack = append(lack, "a static busybox (package busybox-static)")
	}
	return strings.Join(lack, ", ")
}

// MissingNet says what this machine lacks to run a guest with Config.Forward.
func MissingNet() string {
	lack := Missing()
	add := func(s string) {
		if lack != "" {
			lack += ", "
		}
		lack += s
	}
	if os.Geteuid() != 0 {
		add("root (for a TAP device)")
	}
	if _, err := os.Stat(tunPath); err != nil {
		add(tunPath)
	}
	return lack
}

func busybox() (string, error) {
	for _, p := range busyboxPaths {
		if static, err := isStatic(p); err == nil && static {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: not there or not static", busyboxPaths[0])
}

// modulePath finds a module of the newest kernel installed.
func modulePath(name string) (string, error) {
	var found string
	err := filepath.WalkDir(modulesPath, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == name+".ko" {
			found = path // WalkDir goes in lexical order: the last one wins
		}
		return nil
	})
	if err != nil || found == "" {
		return "", fmt.Errorf("%s/*/%s.ko: not found", modulesPath, name)
	}
	return found, nil
}
