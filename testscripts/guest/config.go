package guest

import (
	"io"
	"os"
	"time"
)

// Config says what to run. Script is all that is needed.
type Config struct {
	// Script is run by busybox sh as root in /, with every busybox applet on
	// the path, /proc, /sys, /dev and a tmpfs on /tmp mounted, the loopback
	// device up and standard input empty. The root folder itself has no file
	// handles (name_to_handle_at(2)); /tmp has.
	Script string

	// Emulate boots Debian's own kernel on a machine of QEMU, all in software,
	// instead of user-mode Linux. It takes some six seconds and has virtio.
	Emulate bool

	// Ports gives a guest of QEMU virtio-serial ports: a port's name to the
	// unix socket on the host that it is connected to.
	Ports map[string]string

	// Files are put into the root folder: path to contents. A file under
	// /bin is executable.
	Files map[string]string

	// Binaries are copied to /bin: name to path on the host. They must be
	// static, as those of Build are.
	Binaries map[string]string

	// Modules names kernel modules to load besides those of 9P, such as
	// "fuse", in this order; one's dependencies come before it.
	Modules []string

	// Forward gives the guest a network and carries connections to a TCP port
	// of $HOST to an address on the host, "unix!PATH" or "tcp!HOST!PORT". It
	// needs root and, without Emulate, /dev/net/tun. A map that is not nil but empty gives the
	// network alone.
	Forward map[int]string

	// Env is added to the script's environment, each "NAME=value".
	Env []string

	// Timeout bounds the whole run, boot included. Zero means one minute; an
	// earlier deadline of the context holds too.
	Timeout time.Duration

	// Memory of the guest in MiB. Zero means 512.
	Memory int

	// Console, when set, gets the kernel's messages as they come; they are in
	// Result.Console too.
	Console io.Writer
}

// Result is what a script did.
type Result struct {
	Stdout, Stderr string
	Code           int           // exit code of the script
	Console        string        // what the kernel and the boot script said
	Took           time.Duration // boot to power-off
}

const (
	defaultTimeout = time.Minute
	defaultMemory  = 512
	maxOutput      = 16 << 20 // of each stream of a script, kept in memory
	maxConsole     = 1 << 20
)

func (c Config) missing() string {
	switch {
	case c.Emulate && c.Forward != nil && os.Geteuid() != 0:
		return "root (for a network namespace)"
	case c.Emulate:
		return MissingQEMU()
	case c.Forward != nil:
		return MissingNet()
	}
	return Missing()
}

func (c Config) timeout() time.Duration {
	if c.Timeout > 0 {
		return c.Timeout
	}
	return defaultTimeout
}

func (c Config) memory() int {
	if c.Memory > 0 {
		return c.Memory
	}
	return defaultMemory
}
