package cli

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxSocketPath is the longest path a unix socket can have: sun_path of
// unix(7) without its final zero.
const maxSocketPath = 107

// listenAll opens every address, or none.
func listenAll(addrs []address, insecure bool) (ls []net.Listener, err error) {
	defer func() {
		if err != nil {
			closeAll(ls)
			ls = nil
		}
	}()
	for _, a := range addrs {
		if !a.loopback() && !insecure {
			return ls, &problem{Thing: a.String(), Err: errors.New("is reached from other machines, where nobody is asked who he is"),
				Remedy: "listen at 127.0.0.1 or at a unix socket, or allow it with --insecure", Code: exitUsage}
		}
		l, err := listen(a)
		if err != nil {
			return ls, listenProblem(a, err)
		}
		ls = append(ls, l)
	}
	return ls, nil
}

func closeAll(ls []net.Listener) {
	for _, l := range ls {
		l.Close() // of no use any more; a unix listener removes its socket
	}
}

// listen opens one address. A socket nobody listens at any more is replaced.
func listen(a address) (net.Listener, error) {
	if a.Net == "unix" {
		if len(a.Path) > maxSocketPath {
			return nil, fmt.Errorf("path has %d bytes, and a socket's at most %d", len(a.Path), maxSocketPath)
		}
		if err := removeStaleSocket(a.Path); err != nil {
			return nil, err
		}
	}
	return net.Listen(a.Net, a.dial())
}

// removeStaleSocket removes the socket of a process that is gone. What is no
// socket, or answers, is in use.
func removeStaleSocket(path string) error {
	st, err := os.Lstat(path)
	if err != nil {
		return nil // nothing there, or listening says why not
	}
	if st.Mode()&os.ModeSocket == 0 {
		return syscall.EADDRINUSE
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return syscall.EADDRINUSE
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return syscall.EADDRINUSE
	}
	return os.Remove(path)
}

func listenProblem(a address, err error) error {
	p := &problem{Thing: a.String(), Err: err}
	var op *net.OpError
	if errors.As(err, &op) {
		p.Err = op.Err
		var sys *os.SyscallError
		if errors.As(op.Err, &sys) {
			p.Err = sys.Err
		}
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		p.Err, p.Remedy, p.Code = errors.New("address in use"), "listen elsewhere with --listen, or end the process that is there", exitInUse
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		p.Remedy = "that address is not of this machine"
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		p.Remedy = "take a port above 1023, or a folder you may write to"
	}
	return p
}

// defaultSocket is where the master of the fileset in dir listens: beside its
// state, or where that path is too long for a socket, in the folder for things
// that live as long as the machine runs.
func defaultSocket(dir, uuid string, getenv func(string) string) (string, error) {
	p := filepath.Join(dir, ".mezzo", "socket")
	if len(p) <= maxSocketPath {
		return p, nil
	}
	run := filepath.Join(runtimeDir(getenv), "mezzo")
	if err := privateDir(run); err != nil {
		return "", err
	}
	return filepath.Join(run, uuid+".socket"), nil
}

func runtimeDir(getenv func(string) string) string {
	switch {
	case getenv("XDG_RUNTIME_DIR") != "":
		return getenv("XDG_RUNTIME_DIR")
	case os.Getuid() == 0:
		return "/run"
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("mezzo-%d", os.Getuid()))
}

// privateDir makes a folder that is this user's alone, and refuses one that is
// somebody else's: in a shared folder another user may have made it first.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return &problem{Thing: dir, Err: errors.New("is not a folder of this user alone"), Remedy: "remove it, or set XDG_RUNTIME_DIR"}
	}
	return nil
}
