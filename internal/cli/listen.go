package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv"
)

// maxSocketPath is the longest path a unix socket can have: sun_path of
// unix(7) without its final zero.
const maxSocketPath = 107

// listening is where and how a server listens.
type listening struct {
	addrs    []address
	insecure bool
	shared   bool // with users who are let in: without it sockets are this user's alone
}

// listenAll opens every address, or none.
func listenAll(ctx context.Context, l listening) (ls []net.Listener, err error) {
	defer func() {
		if err != nil {
			closeAll(ls)
			ls = nil
		}
	}()
	for _, a := range l.addrs {
		if !a.loopback() && !l.insecure {
			return ls, &problem{Thing: a.String(), Err: errors.New("is reached from other machines, where nobody is asked who he is"),
				Remedy: "listen at 127.0.0.1 or at a unix socket, or allow it with --insecure", Code: exitUsage}
		}
		ln, err := p9srv.Listen(ctx, a.String())
		if err != nil {
			return ls, listenProblem(a, err)
		}
		ls = append(ls, ln)
		if err := a.admit(l.shared); err != nil {
			return ls, listenProblem(a, err)
		}
	}
	return ls, nil
}

// admit lets other users connect to a socket, or keeps them out, whatever the
// umask is. Who may attach is asked besides.
func (a address) admit(others bool) error {
	if a.Net != "unix" || a.Path[0] == '@' {
		return nil
	}
	if others {
		return os.Chmod(a.Path, 0o777)
	}
	return os.Chmod(a.Path, 0o700)
}

func closeAll(ls []net.Listener) {
	for _, l := range ls {
		l.Close() // of no use any more; a unix listener removes its socket
	}
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
	case errors.Is(err, syscall.EADDRINUSE), errors.Is(err, syscall.EEXIST):
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
