package cachefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv/client"
)

// link9P is a link over p9srv/client.
type link9P struct {
	conn *client.Conn
	root *client.Fid
	ext  *client.Fid
}

// dial9P connects, attaches and finds the journal extension.
func dial9P(ctx context.Context, o *Options, wrap wrapper) (link, error) {
	ctx, cancel := context.WithTimeout(ctx, setupTime)
	defer cancel()
	conn, err := client.Dial(ctx, o.Addr, client.Options{Timeout: o.Dead, Wrap: wrap})
	if err != nil {
		var v *client.VersionError
		if errors.Is(err, client.ErrNot9P) || errors.Is(err, client.ErrProtocol) || errors.As(err, &v) {
			return nil, fmt.Errorf("%w: %w", ErrNot9P, err)
		}
		return nil, err
	}
	l := &link9P{conn: conn}
	uname, uid := o.Uname, uint32(os.Geteuid())
	if o.as != nil {
		uid = *o.as
	}
	if uname == "" {
		uname = strconv.FormatUint(uint64(uid), 10)
	}
	if l.root, err = conn.Attach(ctx, uname, p9.UID(uid), ""); err != nil {
		return nil, errors.Join(fmt.Errorf("attach: %w", err), conn.Close())
	}
	if l.ext, _, err = l.root.Walk(ctx, tree.ExtDirName); err != nil {
		var refused *client.Error
		if errors.As(err, &refused) {
			err = fmt.Errorf("%w (%w)", ErrNotMezzo, hide(err))
		}
		return nil, errors.Join(err, conn.Close())
	}
	return l, nil
}

// lostLink is the end of a connection. It hides the errno of the socket, which
// is no answer of the server's.
type lostLink struct{ err error }

func (e *lostLink) Error() string { return e.err.Error() }

func hide(err error) error { return &lostLink{err} }

func answer(err error) error {
	var lost *client.ConnError
	if errors.As(err, &lost) {
		return hide(err)
	}
	return err
}

// Open is link's.
func (l *link9P) Open(ctx context.Context, flags int, names ...string) (linkFile, error) {
	f, _, err := l.ext.Walk(ctx, names...)
	if err != nil {
		return nil, answer(err)
	}
	if _, err := f.Open(ctx, p9.OpenFlags(flags)); err != nil {
		return nil, errors.Join(answer(err), clunk(f))
	}
	return &file9P{f}, nil
}

// Create is link's.
func (l *link9P) Create(ctx context.Context, flags int, names ...string) (linkFile, error) {
	last := len(names) - 1
	f, _, err := l.ext.Walk(ctx, names[:last]...)
	if err != nil {
		return nil, answer(err)
	}
	if _, err := f.Create(ctx, names[last], p9.OpenFlags(flags), 0o600, p9.NoGID); err != nil {
		return nil, errors.Join(answer(err), clunk(f))
	}
	return &file9P{f}, nil
}

// Statfs is link's.
func (l *link9P) Statfs(ctx context.Context) (tree.Statfs, error) {
	s, err := l.root.StatFS(ctx)
	if err != nil {
		return tree.Statfs{}, answer(err)
	}
	return tree.Statfs{Type: s.Type, Bsize: s.BlockSize, FragmentLen: s.BlockSize, Namelen: s.NameLength,
		Blocks: s.Blocks, Bfree: s.BlocksFree, Bavail: s.BlocksAvailable, Files: s.Files, Ffree: s.FilesFree,
		FsidLow: uint32(s.FSID), FsidHigh: uint32(s.FSID >> 32)}, nil
}

// Heard is link's.
func (l *link9P) Heard() uint64 { return l.conn.Heard() }

// Close is link's.
func (l *link9P) Close() error { return l.conn.Close() }

// file9P is a linkFile over a fid.
type file9P struct{ f *client.Fid }

// ReadAt is linkFile's.
func (f *file9P) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := f.f.ReadAt(ctx, p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, answer(err)
}

// ReadOnce is linkFile's.
func (f *file9P) ReadOnce(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := f.f.Read(ctx, p, off)
	return n, answer(err)
}

// WriteAt is linkFile's.
func (f *file9P) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := f.f.WriteAt(ctx, p, off)
	return n, answer(err)
}

// Stat is linkFile's.
func (f *file9P) Stat(ctx context.Context) (size, dataVersion uint64, err error) {
	_, _, a, err := f.f.GetAttr(ctx, p9.AttrMask{Size: true, DataVersion: true})
	return a.Size, a.DataVersion, answer(err)
}

// Sync is linkFile's.
func (f *file9P) Sync(ctx context.Context) error { return answer(f.f.FSync(ctx, false)) }

// Close is linkFile's.
func (f *file9P) Close() error { return clunk(f.f) }

// clunk gives a fid back whatever became of the call it was for.
func clunk(f *client.Fid) error {
	// The fid has to go even when the caller's context has ended.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return answer(f.Clunk(ctx))
}
