// Package guest runs shell scripts on a real Linux kernel of their own, so that
// tests can mount with the kernel's 9P client (v9fs) on hosts whose kernel
// lacks it.
//
// Unless told otherwise, the kernel is Debian's user-mode Linux (package
// user-mode-linux): an ordinary program that boots in about a second and needs
// no privileges. [Run] builds a root folder from busybox, the 9P modules and the
// files and programs of the test, boots, runs the script as root, and gives back
// what it wrote and its exit code:
//
//	r, err := guest.Run(ctx, guest.Config{
//		Script:   "mount -t 9p -o trans=tcp,port=5640,version=9p2000.L $HOST /mnt && ls /mnt",
//		Forward:  map[int]string{5640: "unix!/run/server.sock"},
//	})
//
// A script reaches a server in one of two ways. A server on the host is named
// in Config.Forward: the guest gets a network card, and a connection to that
// port of $HOST is carried to the address given. The card is a TAP device in a
// network namespace that only the guest and the forwarder are in, so nothing
// on the host can collide with it and nothing is left behind; this needs root
// and /dev/net/tun. Otherwise the server runs in the guest itself, as one of
// Config.Binaries, and is reached over 127.0.0.1; this needs nothing.
//
// With Config.Emulate the kernel is Debian's own (package linux-image-amd64, which
// testscripts/deps.sh unpacks into the user's cache folder and never installs),
// on a machine that QEMU emulates. It boots in some six seconds and adds
// virtio-serial ports to sockets on the host (Config.Ports); Config.Forward leads
// through QEMU's user network. The root folder is an initramfs ([Run] packs the
// same folder as for user-mode Linux), and what the script says comes back by
// three more ports.
//
// # The work
//
// testdata/work is a program that does to a mounted folder what programs do to
// file systems, a line of output for each kind of work. The tests run it with
// every cache and access mode of the kernel's client; what that client cannot do
// itself in a mode is in mode.limits, with the reason.
//
// # What runs where
//
// One goroutine owns a guest from start to end and keeps its thread: the
// thread enters the network namespace and installs the system call filter (see
// below), the kernel is started from it and so inherits both, and the thread
// ends with the goroutine. The kernel and its helper processes form one process group
// (and, as root, one PID namespace), which is killed whatever happens; should
// the test binary itself be killed, the parent-death signal takes the guest
// with it.
//
// # Wide registers
//
// User-mode Linux 6.1 saves at most 2,696 bytes of register state, which is
// less than processors with AMX have, and dies there at its first program. On
// such a host the kernel is started under a seccomp filter that makes it fall
// back to the classic 512 bytes. Then the upper halves of AVX registers are
// lost at every page fault and shared by the threads of a guest program, so the
// guest's environment switches AVX off in Go (GODEBUG) and C (GLIBC_TUNABLES)
// programs; libraries that look at the processor themselves must be built
// with the tag purego, as [Build] does.
package guest
