package fusefs

import (
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml/tree"
)

// file is an open file or folder: one of h, d and ext is set.
type file struct {
	n      *node
	h      tree.Handle
	d      tree.DirHandle
	ext    tree.ExtHandle
	list   []fuse.DirEntry // an open folder of the extension
	writes bool            // h may write
	append bool            // h was opened with O_APPEND
	shared *atomic.Int32   // files that have h

	mu     sync.Mutex
	other  tree.Handle                 // as h, with O_APPEND the other way; nil until needed
	owners map[tree.LockOwner]struct{} // who took locks through it
	locks  atomic.Bool                 // owners are or were some
}

// close ends a file that no request uses any more.
func (f *file) close(r *raw) {
	f.mu.Lock()
	owners := f.owners
	f.owners = nil
	other := f.other
	f.other = nil
	f.mu.Unlock()
	for o := range owners {
		r.fs.Unlock(f.n.oid, o)
	}
	var err error
	switch {
	case f.h != nil:
		r.nodes.closed(f, f.writes)
		err = f.letGo()
	case f.d != nil:
		err = f.d.Close()
	case f.ext != nil:
		err = f.ext.Close()
	}
	if other != nil {
		err = errors.Join(err, other.Close())
	}
	if err != nil {
		// Nobody waits for this answer; what close(2) reports was the flush's.
		r.log.Warn("close ended with an error", slog.Uint64("oid", uint64(f.n.oid)), slog.Any("err", err))
	}
}

const openFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_TRUNC

// Open is open(2) of an existing file.
func (r *raw) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	n, st := r.node(in.NodeId)
	if st != fuse.OK {
		return st
	}
	if n.ext.Load() != nil {
		return r.extOpen(c, in, n, out)
	}
	flags := int(in.Flags) & openFlags
	if flags&unix.O_TRUNC != 0 && in.Mode&fuse.OPEN_KILL_SUIDGID != 0 {
		if err := r.clearPriv(c, &in.InHeader, n, nil); err != nil {
			return r.status("open", err)
		}
	}
	h, err := r.fs.Open(c, cred(&in.InHeader), n.oid, flags)
	if errors.Is(err, unix.ESTALE) && flags&(unix.O_ACCMODE|unix.O_TRUNC) == unix.O_RDONLY {
		if h = r.limbo.take(n.oid); h != nil {
			err = nil
		}
	}
	if err != nil {
		return r.status("open", err)
	}
	return r.opened(c, n, newFile(h, flags), out)
}

// letGo gives the handle up; the last of those who have it closes it.
func (f *file) letGo() error {
	if f.shared.Add(-1) == 0 {
		return f.h.Close()
	}
	return nil
}

// newFile is an open file with a handle of its own.
func newFile(h tree.Handle, flags int) *file {
	f := &file{h: h, writes: flags&unix.O_ACCMODE != unix.O_RDONLY, append: flags&unix.O_APPEND != 0, shared: new(atomic.Int32)}
	f.shared.Store(1)
	return f
}

// contentOf is the contents that a handle reads.
func contentOf(h tree.Handle) uint64 {
	if p, ok := h.(tree.Pinner); ok {
		return p.Content()
	}
	return 0
}

// opened enters an open of a node the kernel has when its handle reads what the
// kernel has of it. Else the kernel has to look the name up again, which it does
// after ESTALE, once: who comes too late again gets the contents that the node
// was left with, or reads past the kernel's pages.
func (r *raw) opened(c *call, n *node, f *file, out *fuse.OpenOut) fuse.Status {
	f.n = n
	t := r.nodes.tell(n, wanted{content: contentOf(f.h), file: f})
	r.follow(n, &t)
	if !t.refused {
		r.late.forget(c.pid)
		r.handOut(f, out)
		return fuse.OK
	}
	if !r.late.again(c.pid, n.oid) {
		_ = f.h.Close() // not written through
		return fuse.Status(unix.ESTALE)
	}
	r.late.forget(c.pid)
	if f.writes {
		// What it writes goes past the pages, which older readers keep.
		r.nodes.write(f)
		r.handOut(f, out)
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
		return fuse.OK
	}
	unused, direct := r.nodes.rescue(f, contentOf(f.h))
	if unused != nil {
		_ = unused.Close() // it only reads
	}
	r.handOut(f, out)
	if direct {
		// The size that the kernel has is of what the node was before.
		r.queue.tell("inode", r.kernel.inode(n.id, 0))
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	}
	return fuse.OK
}

// handOut gives an open file that is entered to the kernel and says how to treat
// it.
func (r *raw) handOut(f *file, out *fuse.OpenOut) {
	n := f.n
	n.used.Store(true)
	out.Fh = r.files.put(f)
	// What the kernel has of older contents, the size too, goes before the
	// answer, so that all else stays.
	r.queue.drop(n)
	out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	// A close that has nothing to flush still ends POSIX locks.
	if !f.writes && !n.locked.Load() {
		out.OpenFlags |= fuse.FOPEN_NOFLUSH
	}
}

// Create is open(2) of a name the kernel takes to be free.
func (r *raw) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	p, st := r.node(in.NodeId)
	if st != fuse.OK {
		return st
	}
	if p.ext.Load() != nil {
		return r.extCreate(c, in, p.ext.Load(), name, out)
	}
	cr, mode, err := r.born(c, &in.InHeader, p, in.Mode&0o7777|unix.S_IFREG, in.Umask)
	if err != nil {
		return r.status("create", err)
	}
	since := r.ring.now()
	flags := int(in.Flags) & (openFlags | unix.O_EXCL)
	a, h, err := r.fs.Create(c, cr, p.oid, name, flags, mode&0o7777)
	r.caughtUp(c)
	if err != nil {
		return r.status("create", err)
	}
	if content := contentOf(h); content != a.Content { // replaced since
		if a, err = h.Attr(c); err != nil {
			return r.status("create", errors.Join(err, h.Close()))
		}
	}
	f := newFile(h, flags)
	f.n = r.entryOpen(&out.EntryOut, &a, p.id, name, since, true, f)
	r.handOut(f, &out.OpenOut)
	return fuse.OK
}

// open is the file of a request that reads or writes; EIO, once, when locks that
// were taken through it were lost.
func (r *raw) open(fh uint64) (*file, fuse.Status) {
	f := r.files.get(fh)
	if f == nil {
		return nil, fuse.EBADF
	}
	if r.lost(f, true) {
		return nil, fuse.EIO
	}
	return f, fuse.OK
}

// spliceFrom is the smallest read that is worth the pipe's system calls.
const spliceFrom = 64 << 10

// Read is read(2) of what the kernel has no pages of.
func (r *raw) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f, st := r.open(in.Fh)
	if st != fuse.OK {
		return nil, st
	}
	if f.ext != nil {
		return r.extRead(cancel, in, f, buf)
	}
	if f.h == nil {
		return nil, fuse.EBADF
	}
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	if len(buf) >= spliceFrom {
		if fd, ok := f.h.Fd(); ok {
			return fuse.ReadResultFd(uintptr(fd), int64(in.Offset), len(buf)), fuse.OK
		}
	}
	n, err := f.h.ReadAt(c, buf, int64(in.Offset))
	if err != nil {
		return nil, r.status("read", err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write is write(2).
func (r *raw) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	f, st := r.open(in.Fh)
	if st != fuse.OK {
		return 0, st
	}
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	if f.ext != nil {
		n, err := f.ext.WriteAt(c, data, int64(in.Offset))
		if c.caught.Load() {
			r.queue.barrier(c, true)
		}
		return uint32(n), r.status("write", err)
	}
	if f.h == nil {
		return 0, fuse.EBADF
	}
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := r.clearPriv(c, &in.InHeader, f.n, f.h); err != nil {
			return 0, r.status("write", err)
		}
	}
	// Pages of a mapping go where they belong, and fcntl(2) can change the flag.
	end := in.Flags&unix.O_APPEND != 0 && in.WriteFlags&fuse.WRITE_CACHE == 0
	h, err := r.appending(c, f, end)
	if err != nil {
		return 0, r.status("write", err)
	}
	n, err := h.WriteAt(c, data, int64(in.Offset))
	if n == 0 && err != nil {
		return 0, r.status("write", err)
	}
	if end {
		// The kernel put the bytes where it took the end to be.
		if a, err := f.h.Attr(c); err != nil || a.Size != in.Offset+uint64(n) {
			r.queue.addInode(f.n, true)
		}
	}
	if in.Flags&unix.O_DSYNC != 0 {
		if err := f.h.Fsync(c, in.Flags&unix.O_SYNC != unix.O_SYNC); err != nil {
			return 0, r.status("write", err)
		}
	}
	return uint32(n), fuse.OK
}

// appending is f's handle that appends, or does not.
func (r *raw) appending(c *call, f *file, yes bool) (tree.Handle, error) {
	if f.append == yes {
		return f.h, nil
	}
	f.mu.Lock()
	other := f.other
	f.mu.Unlock()
	if other != nil {
		return other, nil
	}
	flags := unix.O_RDWR
	if yes {
		flags |= unix.O_APPEND
	}
	h, err := r.fs.Open(c, nil, f.n.oid, flags)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	if f.other == nil {
		f.other, h = h, nil
	}
	other = f.other
	f.mu.Unlock()
	if h != nil { // another write was first
		err = h.Close()
	}
	return other, err
}

// Lseek is lseek(2) for SEEK_DATA and SEEK_HOLE.
func (r *raw) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	f, st := r.open(in.Fh)
	if st != fuse.OK {
		return st
	}
	if f.h == nil {
		return fuse.EINVAL
	}
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	off, err := f.h.Seek(c, int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return r.status("lseek", err)
}

// Fallocate is fallocate(2).
func (r *raw) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	f, st := r.open(in.Fh)
	if st != fuse.OK {
		return st
	}
	if f.h == nil {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	if in.Uid != 0 {
		if err := r.clearPriv(c, &in.InHeader, f.n, f.h); err != nil {
			return r.status("fallocate", err)
		}
	}
	return r.status("fallocate", f.h.Allocate(c, in.Offset, in.Length, in.Mode))
}

// Flush is a close(2) of one descriptor.
func (r *raw) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	f := r.files.get(in.Fh)
	if f == nil {
		return fuse.EBADF
	}
	if f.h == nil {
		return fuse.OK
	}
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	err := f.h.Flush(c)
	if r.lost(f, false) { // it may be the close of another process, which does not look
		err = unix.EIO
	}
	if f.n.locked.Load() {
		// Not at the last close too, which is later: by then the number may be
		// another's.
		o := r.owner(in.LockOwner)
		f.mu.Lock()
		delete(f.owners, o)
		f.mu.Unlock()
		r.fs.Unlock(f.n.oid, o)
	}
	return r.status("flush", err)
}

// Fsync is fsync(2) and fdatasync(2).
func (r *raw) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	f, st := r.open(in.Fh)
	if st != fuse.OK {
		return st
	}
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	var s any = f.h
	switch {
	case f.d != nil:
		s = f.d
	case f.ext != nil:
		s = f.ext
	}
	y, ok := s.(tree.Syncer)
	if !ok {
		return fuse.EINVAL
	}
	return r.status("fsync", y.Fsync(c, in.FsyncFlags&1 != 0))
}

// FsyncDir is fsync(2) of a folder.
func (r *raw) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return r.Fsync(cancel, in)
}

// Release is the last close of an open file.
func (r *raw) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	f := r.files.take(in.Fh)
	if f == nil {
		return
	}
	f.close(r) // with its locks
}

// ReleaseDir is the last close of an open folder.
func (r *raw) ReleaseDir(in *fuse.ReleaseIn) { r.Release(nil, in) }
