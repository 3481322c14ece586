package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/p9srv/client"
)

// dialTimeout is how long a master has to take a connection and to answer the
// first messages.
const dialTimeout = 10 * time.Second

// remoteExtension is the extension of a master, over 9P.
type remoteExtension struct {
	addr address
	conn *client.Conn
	root *client.Fid
}

// dialExtension connects to the master at addr as the user of this process.
func (a *app) dialExtension(ctx context.Context, addr address) (extension, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := client.Dial(ctx, addr.String(), client.Options{})
	if err != nil {
		return nil, dialProblem(addr, err)
	}
	uid := os.Geteuid()
	root, err := conn.Attach(ctx, strconv.Itoa(uid), p9.UID(uid), "")
	if err != nil {
		conn.Close()
		return nil, dialProblem(addr, err)
	}
	return &remoteExtension{addr, conn, root}, nil
}

func (r *remoteExtension) open(ctx context.Context, name string, write bool) (extensionFile, error) {
	f, qids, err := r.root.Walk(ctx, append([]string{stateDir}, strings.Split(name, "/")...)...)
	if errors.Is(err, fs.ErrNotExist) && len(qids) == 0 {
		return nil, r.addr.noMaster()
	}
	if err != nil {
		return nil, err
	}
	mode := p9.ReadOnly
	if write {
		mode = p9.ReadWrite
	}
	if _, err := f.Open(ctx, mode); err != nil {
		return nil, errors.Join(err, f.Clunk(ctx))
	}
	return &remoteFile{ctx: ctx, fid: f}, nil
}

// noMaster is that what is served at a has no log.
func (a address) noMaster() error {
	return &problem{Thing: a.String(), Err: errors.New("is a 9P server, but no mezzo master"), Remedy: "mount it with: " + a.kernelMount("MNT", maxKernelMsize, false)}
}

func (r *remoteExtension) Close() error { return r.conn.Close() }

// remoteFile gives a file over 9P the one position that files have, and the
// context of its opening.
type remoteFile struct {
	ctx context.Context
	fid *client.Fid
	off int64
}

func (f *remoteFile) Read(p []byte) (int, error) {
	n, err := f.fid.Read(f.ctx, p, f.off)
	f.off += int64(n)
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF
	}
	return n, err
}

func (f *remoteFile) Write(p []byte) (int, error) {
	n, err := f.fid.WriteAt(f.ctx, p, f.off)
	f.off += int64(n)
	return n, err
}

func (f *remoteFile) Close() error { return f.fid.Clunk(f.ctx) }

// dialProblem says why no master answers at addr, or why it does not let this
// user in.
func dialProblem(addr address, err error) error {
	p := &problem{Thing: addr.String(), Err: err, Code: exitUnreachable}
	var op *net.OpError
	var sys *os.SyscallError
	var version *client.VersionError
	var refused *client.Error
	switch {
	case errors.Is(err, client.ErrNot9P), errors.Is(err, client.ErrProtocol):
		p.Err, p.Remedy = client.ErrNot9P, "is that the address of a mezzo master?"
	case errors.As(err, &version):
		p.Err, p.Remedy = errors.New("speaks 9P, but refuses the version "+version.Want+": it offers "+strconv.Quote(version.Got)), "a mezzo master is needed"
	case errors.As(err, &refused):
		p.Err = refused
		switch {
		case errors.Is(refused, syscall.EROFS):
			p.Err, p.Remedy, p.Code = errors.New("takes no changes, and a cache has some to send"), "mount it with "+addr.kernelMount("MNT", maxKernelMsize, true), exitFailed
		case errors.Is(refused, fs.ErrPermission):
			p.Remedy = "run it as the user who serves, or as root on the same machine"
		}
	case errors.As(err, &op):
		p.Err = op.Err
		if errors.As(op.Err, &sys) {
			p.Err = sys.Err
		}
	case errors.As(err, &sys):
		p.Err = sys.Err
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		p.Err = errors.New("does not answer")
	}
	switch {
	case p.Remedy != "":
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT), p.Err.Error() == "does not answer":
		p.Remedy = "is mezzo serve or mezzo up running there?"
	case errors.Is(err, fs.ErrPermission):
		p.Remedy = "run it as the user who serves, or as root"
	}
	return p
}
