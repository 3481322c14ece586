package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/hugelgupf/p9/linux"
	"github.com/hugelgupf/p9/p9"
)

// remoteExtension is the extension of a master, over 9P.
type remoteExtension struct {
	client *p9.Client
	root   p9.File
}

// dialExtension connects to the master at addr.
func (a *app) dialExtension(ctx context.Context, addr address) (extension, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, addr.Net, addr.Dial())
	if err != nil {
		return nil, dialProblem(addr.String(), err)
	}
	c, err := p9.NewClient(conn)
	if err != nil {
		conn.Close()
		return nil, &problem{Thing: addr.String(), Err: fmt.Errorf("not a 9P server: %w", err), Remedy: "is that the address of a mezzo master?", Code: exitUnreachable}
	}
	root, err := c.Attach("/")
	if err != nil {
		c.Close()
		return nil, &problem{Thing: addr.String(), Err: fmt.Errorf("attach: %w", wireError(err)), Code: exitUnreachable}
	}
	return &remoteExtension{c, root}, nil
}

func (r *remoteExtension) open(_ context.Context, name string, write bool) (extensionFile, error) {
	_, f, err := r.root.Walk(append([]string{stateDir}, strings.Split(name, "/")...))
	if err != nil {
		return nil, wireError(err)
	}
	mode := p9.ReadOnly
	if write {
		mode = p9.ReadWrite
	}
	if _, _, err := f.Open(mode); err != nil {
		return nil, errors.Join(wireError(err), f.Close())
	}
	return &remoteFile{file: f}, nil
}

// remoteFile gives a file over 9P the one position that the others have.
type remoteFile struct {
	file p9.File
	off  int64
}

func (f *remoteFile) Read(p []byte) (int, error) {
	n, err := f.file.ReadAt(p, f.off)
	f.off += int64(n)
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF
	}
	return n, wireError(err)
}

func (f *remoteFile) Write(p []byte) (int, error) {
	n, err := f.file.WriteAt(p, f.off)
	f.off += int64(n)
	return n, wireError(err)
}

func (f *remoteFile) Close() error { return f.file.Close() }

func (r *remoteExtension) Close() error { return errors.Join(r.root.Close(), r.client.Close()) }

// wireError is an error of the wire as the system's own number.
func wireError(err error) error {
	var e linux.Errno
	if errors.As(err, &e) {
		return syscall.Errno(e)
	}
	return err
}
