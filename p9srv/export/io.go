package export

import (
	"context"
	"errors"
	"math"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv"
)

// The open flags of 9P2000.L, the same on every machine (fs/9p/vfs_inode_dotl.c).
const (
	dotlAccess    = 0o3
	dotlExcl      = 0o200
	dotlTrunc     = 0o1000
	dotlAppend    = 0o2000
	dotlDsync     = 0o10000
	dotlDirectory = 0o200000
	dotlSync      = 0o4000000
)

// openFlags keeps of a client's flags what counts here.
func openFlags(fl p9.OpenFlags) (int, error) {
	acc := int(fl & dotlAccess)
	if acc == dotlAccess {
		return 0, syscall.EINVAL
	}
	out := acc // O_RDONLY, O_WRONLY, O_RDWR are 0, 1, 2 everywhere
	for _, m := range [...]struct {
		dotl p9.OpenFlags
		flag int
	}{{dotlExcl, unix.O_EXCL}, {dotlTrunc, unix.O_TRUNC}, {dotlAppend, unix.O_APPEND}, {dotlDsync, unix.O_DSYNC}} {
		if fl&m.dotl != 0 {
			out |= m.flag
		}
	}
	if fl&dotlSync != 0 {
		out |= unix.O_SYNC
	}
	return out, nil
}

// treeFlags are those the tree wants to see; syncing is done here.
func treeFlags(fl int) int { return fl &^ (unix.O_SYNC | unix.O_DSYNC) }

// writes reports whether an open with these flags may change the file.
func writes(fl int) bool { return fl&unix.O_ACCMODE != unix.O_RDONLY || fl&unix.O_TRUNC != 0 }

// Open opens a file or folder. The I/O unit is 0: messages set the limit.
func (f *File) Open(mode p9.OpenFlags) (p9.QID, uint32, error) {
	n := f.n
	fl, err := openFlags(mode)
	if err != nil {
		return p9.QID{}, 0, err
	}
	fl &^= unix.O_EXCL // without O_CREAT it says nothing
	if writes(fl) {
		if err := n.s.writable(); err != nil {
			return p9.QID{}, 0, err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.closed || n.h != nil || n.d != nil:
		return p9.QID{}, 0, syscall.EBADF
	case n.isDir():
		return n.openDir(f.ctx, fl)
	case mode&dotlDirectory != 0:
		return p9.QID{}, 0, syscall.ENOTDIR
	case n.typ == unix.S_IFLNK:
		return p9.QID{}, 0, syscall.ELOOP
	}
	h, err := n.s.e.fs.Open(f.ctx, n.s.cred, n.oid, treeFlags(fl))
	if err != nil {
		return p9.QID{}, 0, err
	}
	a, err := h.Attr(f.ctx)
	if err != nil {
		h.Close()
		return p9.QID{}, 0, err
	}
	n.h, n.flags = h, fl
	return qidOf(&a), 0, nil
}

func (n *node) openDir(ctx context.Context, fl int) (p9.QID, uint32, error) {
	if writes(fl) {
		return p9.QID{}, 0, syscall.EISDIR
	}
	d, err := n.s.e.fs.OpenDir(ctx, n.s.cred, n.oid)
	if err != nil {
		return p9.QID{}, 0, err
	}
	a, err := n.s.e.fs.Getattr(ctx, n.s.cred, n.oid)
	if err != nil {
		d.Close()
		return p9.QID{}, 0, err
	}
	n.d, n.flags = d, fl
	return qidOf(&a), 0, nil
}

// Create makes a regular file, or without O_EXCL opens the one that is there,
// and returns it open.
func (f *File) Create(name string, flags p9.OpenFlags, perm p9.FileMode, _ p9.UID, gid p9.GID) (p9.File, p9.QID, uint32, error) {
	n := f.n
	if err := n.s.writable(); err != nil {
		return nil, p9.QID{}, 0, err
	}
	fl, err := openFlags(flags)
	if err != nil {
		return nil, p9.QID{}, 0, err
	}
	if err := n.newName(name); err != nil {
		return nil, p9.QID{}, 0, err
	}
	a, h, err := n.s.e.fs.Create(f.ctx, n.s.withGroup(uint32(gid)), n.oid, name, treeFlags(fl)|unix.O_CREAT, uint32(perm)&modeBits)
	if err != nil {
		return nil, p9.QID{}, 0, err
	}
	g := n.s.file(a, n.oid, name)
	g.n.h, g.n.flags = h, fl&^unix.O_EXCL
	return g, qidOf(&a), 0, nil
}

// ReadAt reads from an open file; see ReadAtContext. In place it reads what the
// page cache has.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if !f.bound && f.n.s.e.o.InPlace {
		if n, err := f.readNow(p, off); !errors.Is(err, syscall.EOPNOTSUPP) {
			return n, err
		}
	}
	return f.readAt(f.ctx, p, off)
}

// readNow reads without waiting for the disk; EOPNOTSUPP where that cannot be
// told.
func (f *File) readNow(p []byte, off int64) (int, error) {
	f.n.mu.RLock()
	defer f.n.mu.RUnlock()
	fd := f.n.direct()
	if fd < 0 || off < 0 {
		return 0, syscall.EOPNOTSUPP
	}
	n, err := unix.Preadv2(fd, [][]byte{p}, off, unix.RWF_NOWAIT)
	if err == unix.EAGAIN {
		return 0, p9srv.ErrWouldBlock
	}
	return max(n, 0), err
}

// direct is a descriptor to read an open file from; -1 when reads have to go
// through its handle. mu is held, and while the descriptor is used.
func (n *node) direct() int {
	if n.h != nil && n.flags&unix.O_ACCMODE != unix.O_WRONLY {
		if fd, ok := n.h.Fd(); ok {
			return fd
		}
	}
	return -1
}

// PipeSize says how much of a read can be spliced.
func (f *File) PipeSize(off int64, n int) int {
	f.n.mu.RLock()
	defer f.n.mu.RUnlock()
	if fd := f.n.direct(); fd >= 0 {
		return p9srv.PipeSize(fd, off, n, f.bound)
	}
	return 0
}

// ReadToPipe splices.
func (f *File) ReadToPipe(pipe int, off int64, n int) (int, error) {
	f.n.mu.RLock()
	defer f.n.mu.RUnlock()
	if fd := f.n.direct(); fd >= 0 {
		return p9srv.SpliceFile(fd, pipe, off, n)
	}
	return 0, syscall.EBADF
}

// ReadAtContext fills p unless the file ends; at its end it returns 0, nil.
func (f *File) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	return f.readAt(ctx, p, off)
}

func (f *File) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	n := f.n
	n.mu.RLock()
	defer n.mu.RUnlock()
	switch {
	case n.d != nil:
		return 0, syscall.EISDIR
	case n.h == nil || n.flags&unix.O_ACCMODE == unix.O_WRONLY:
		return 0, syscall.EBADF
	case off < 0:
		return 0, syscall.EINVAL
	}
	k, err := n.h.ReadAt(ctx, p, off)
	if k > 0 {
		return k, nil
	}
	return 0, errno(err)
}

// WriteAt writes to an open file; see WriteAtContext.
func (f *File) WriteAt(p []byte, off int64) (int, error) { return f.writeAt(f.ctx, p, off) }

// WriteAtContext writes all of p; on a file opened to append, at its end. With
// O_SYNC or O_DSYNC it comes back when the data is durable.
func (f *File) WriteAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	return f.writeAt(f.n.s.request(ctx), p, off)
}

func (f *File) writeAt(ctx context.Context, p []byte, off int64) (int, error) {
	n := f.n
	n.mu.RLock()
	defer n.mu.RUnlock()
	switch {
	case n.h == nil || n.flags&unix.O_ACCMODE == unix.O_RDONLY:
		return 0, syscall.EBADF
	case off < 0:
		return 0, syscall.EINVAL
	case off > math.MaxInt64-int64(len(p)):
		return 0, syscall.EFBIG
	}
	k, err := n.h.WriteAt(ctx, p, off)
	if err != nil {
		return k, errno(err)
	}
	if n.flags&(unix.O_SYNC|unix.O_DSYNC) != 0 {
		if err := n.h.Fsync(ctx, n.flags&unix.O_SYNC != unix.O_SYNC); err != nil {
			return 0, errno(err)
		}
	}
	return k, nil
}

// FSync makes what was written durable.
func (f *File) FSync() error { return f.fsync(f.ctx, false) }

// FSyncContext is FSync; with datasync, of the contents alone.
func (f *File) FSyncContext(ctx context.Context, datasync bool) error {
	return f.fsync(f.n.s.request(ctx), datasync)
}

func (f *File) fsync(ctx context.Context, datasync bool) error {
	n := f.n
	n.mu.RLock()
	defer n.mu.RUnlock()
	switch {
	case n.h != nil:
		return errno(n.h.Fsync(ctx, datasync))
	case n.d == nil:
		return syscall.EBADF
	}
	if s, ok := n.d.(tree.Syncer); ok {
		return errno(s.Fsync(ctx, datasync))
	}
	return syscall.EINVAL
}
