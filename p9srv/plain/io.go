package plain

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

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
	dotlNoatime   = 0o1000000
	dotlSync      = 0o4000000
)

// openFlags keeps of a client's flags what counts here.
func openFlags(fl p9.OpenFlags) (int, error) {
	out := int(fl & dotlAccess)
	if out == dotlAccess {
		return 0, syscall.EINVAL
	}
	for _, m := range [...]struct {
		dotl p9.OpenFlags
		flag int
	}{
		{dotlExcl, unix.O_EXCL}, {dotlTrunc, unix.O_TRUNC}, {dotlAppend, unix.O_APPEND}, {dotlDsync, unix.O_DSYNC},
		{dotlDirectory, unix.O_DIRECTORY}, {dotlSync, unix.O_SYNC},
	} {
		if fl&m.dotl != 0 {
			out |= m.flag
		}
	}
	return out, nil
}

func writes(fl int) bool { return fl&unix.O_ACCMODE != unix.O_RDONLY || fl&unix.O_TRUNC != 0 }

// Open opens a file or folder. The I/O unit is 0: messages set the limit.
func (f *File) Open(mode p9.OpenFlags) (p9.QID, uint32, error) {
	fl, err := openFlags(mode)
	if err != nil {
		return p9.QID{}, 0, err
	}
	fl &^= unix.O_EXCL // without O_CREAT it says nothing
	switch {
	case writes(fl) && f.a.t.o.ReadOnly && f.n.typ == unix.S_IFREG:
		return p9.QID{}, 0, syscall.EROFS
	case (f.n.typ == unix.S_IFCHR || f.n.typ == unix.S_IFBLK) && !f.a.t.o.Devices:
		return p9.QID{}, 0, syscall.EPERM
	}
	fd := -1
	err = f.a.do(func() (err error) {
		fd, err = f.openFD(fl)
		return err
	})
	if err != nil {
		return p9.QID{}, 0, err
	}
	var st unix.Statx_t
	if err := statFD(fd, &st); err != nil {
		unix.Close(fd)
		return p9.QID{}, 0, err
	}
	f.opened(fd, fl)
	if fl&unix.O_TRUNC != 0 {
		f.n.count.Add(1)
	}
	return f.n.qid(&st), 0, nil
}

// opened makes fd the fid's. The File may be one that was bound for the open:
// its origin gets the descriptor too.
func (f *File) opened(fd, fl int) {
	f.fd, f.flags = fd, fl
	if f.of != nil {
		f.of.fd, f.of.flags = fd, fl
	}
}

// openFD opens the object itself, by whatever name. A FIFO that has no reader yet
// is tried again until it has one.
func (f *File) openFD(fl int) (int, error) {
	fl |= unix.O_CLOEXEC
	if f.n.mayWait() {
		fl |= unix.O_NONBLOCK | unix.O_NOCTTY
	}
	for wait := time.Millisecond; ; wait = min(2*wait, maxWait) {
		fd, err := unix.Openat(f.a.t.procfd, f.n.proc(), fl, 0)
		switch {
		case err == unix.EINTR:
		case err == unix.ENXIO && f.n.typ == unix.S_IFIFO:
			if err := f.pause(wait); err != nil {
				return -1, err
			}
		default:
			return fd, err
		}
	}
}

// maxWait is the longest pause between two tries of what cannot be waited for.
const maxWait = 50 * time.Millisecond

// pause waits a while; EINTR when the request is over.
func (f *File) pause(d time.Duration) error {
	if f.ctx == nil {
		return p9srv.ErrWouldBlock
	}
	return pause(f.ctx, d)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return syscall.EINTR
	case <-t.C:
		return nil
	}
}

// Create makes a regular file, or without O_EXCL opens the one that is there,
// and returns it open.
func (f *File) Create(name string, flags p9.OpenFlags, perm p9.FileMode, _ p9.UID, gid p9.GID) (p9.File, p9.QID, uint32, error) {
	if err := f.a.writable(); err != nil {
		return nil, p9.QID{}, 0, err
	}
	fl, err := openFlags(flags)
	if err != nil {
		return nil, p9.QID{}, 0, err
	}
	fd := -1
	err = f.a.do(func() (err error) {
		how := fl&^unix.O_DIRECTORY | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
		fd, err = unix.Openat(f.n.fd, name, how, uint32(perm)&0o7777)
		return err
	})
	if err != nil {
		return nil, p9.QID{}, 0, err
	}
	g, q, err := f.created(fd, name, gid, fl)
	if err != nil {
		unix.Close(fd)
		return nil, p9.QID{}, 0, err
	}
	g.fd, g.flags = fd, fl&^unix.O_EXCL
	return g, q, 0, nil
}

// created is the File of what Create opened. Its node gets a descriptor of its
// own: one that can write would keep the file from being executed.
func (f *File) created(fd int, name string, gid p9.GID, fl int) (*File, p9.QID, error) {
	var st unix.Statx_t
	if err := statFD(fd, &st); err != nil {
		return nil, p9.QID{}, err
	}
	if uint32(st.Mode)&unix.S_IFMT != unix.S_IFREG {
		return nil, p9.QID{}, syscall.EEXIST
	}
	n := f.a.t.nodes.get(idOf(&st))
	if n == nil {
		// Whoever has the object by now has its name from somewhere else.
		path, err := unix.Openat(f.a.t.procfd, itoa(fd), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, p9.QID{}, err
		}
		var took bool
		if n, took = f.a.t.nodes.adopt(path, &st); !took {
			unix.Close(path)
		}
	}
	// An empty file without a second name is taken for a new one.
	if g, ok := f.a.group(gid); ok && st.Size == 0 && int(st.Gid) != g {
		if err := f.give(fd, g); err != nil {
			n.release()
			return nil, p9.QID{}, err
		}
	}
	if fl&unix.O_TRUNC != 0 {
		n.count.Add(1)
	}
	f.n.hold()
	return f.a.file(n, f.n, name), n.qid(&st), nil
}

// ReadAt reads from an open file: in place what the page cache has, else
// everything up to the end.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case f.fd < 0:
		return 0, syscall.EBADF
	case f.n.mayWait():
		return f.readStream(p)
	}
	if f.ctx == nil && !f.n.blind.Load() {
		n, err := unix.Preadv2(f.fd, [][]byte{p}, off, unix.RWF_NOWAIT)
		switch {
		case err == nil:
			return n, nil
		case err == unix.EAGAIN:
			return 0, p9srv.ErrWouldBlock
		case err != unix.EOPNOTSUPP:
			return 0, err
		}
		f.n.blind.Store(true)
	}
	for {
		n, err := unix.Pread(f.fd, p, off)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// readStream reads from a FIFO or device what there is, once there is some.
func (f *File) readStream(p []byte) (int, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, maxWait) {
		n, err := unix.Read(f.fd, p)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			if err := f.pause(wait); err != nil {
				return 0, err
			}
		default:
			return max(n, 0), err
		}
	}
}

// StreamReads says that a short read is all there is now.
func (f *File) StreamReads() bool { return f.n.mayWait() }

// WriteAt writes all of p; on a file opened to append, at its end. It runs as
// the user, so that the kernel clears setuid bits where it should.
func (f *File) WriteAt(p []byte, off int64) (n int, err error) {
	if f.fd < 0 {
		return 0, syscall.EBADF
	}
	defer f.n.count.Add(1)
	if f.a.as == nil {
		return f.writeAll(p, off)
	}
	err = f.a.do(func() (err error) {
		n, err = f.writeAll(p, off)
		return err
	})
	return n, err
}

func (f *File) writeAll(p []byte, off int64) (int, error) {
	done := 0
	for wait := time.Millisecond; done < len(p); {
		var n int
		var err error
		if f.n.mayWait() {
			n, err = unix.Write(f.fd, p[done:])
		} else {
			n, err = unix.Pwrite(f.fd, p[done:], off+int64(done))
		}
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN && f.n.mayWait():
			if err = f.pause(wait); err == nil {
				wait = min(2*wait, maxWait)
				continue
			}
		}
		if err != nil {
			if done > 0 && !errors.Is(err, p9srv.ErrWouldBlock) {
				return done, nil
			}
			return 0, err
		}
		done += n
	}
	return done, nil
}

// WritesInParts says that a write may be cut, where nobody could tell.
func (f *File) WritesInParts() bool { return f.flags&unix.O_APPEND == 0 && f.n.typ == unix.S_IFREG }

// FSync makes what was written durable.
func (f *File) FSync() error { return f.FSyncContext(f.ctx, false) }

// FSyncContext is FSync; with datasync, of the contents alone. It is not
// interrupted.
func (f *File) FSyncContext(_ context.Context, datasync bool) error {
	switch {
	case f.fd < 0:
		return syscall.EBADF
	case datasync:
		return unix.Fdatasync(f.fd)
	}
	return unix.Fsync(f.fd)
}
