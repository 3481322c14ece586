package plain

import (
	"context"
	"sync"
	"syscall"
	"time"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv"
)

// File is an object in the hands of one fid. The engine lets nobody else use a
// fid that it opens or closes; all else may happen at the same time.
type File struct {
	a *attachment
	n *node
	// Where the walk came by it, for Rename and Remove: names move under others'
	// hands, so it is looked at again before it is used. parent is held; nil at
	// the root of an attach.
	where  sync.Mutex
	parent *node
	name   string
	left   []*node // parents it was renamed away from

	fd    int // open; -1 while it is not
	flags int
	dir   *listing

	ctx context.Context // of the request, when it runs on another goroutine
	of  *File           // then: the fid's own
}

var (
	_ p9.File             = (*File)(nil)
	_ p9srv.AttacherAs    = (*Tree)(nil)
	_ p9srv.Concurrent    = (*File)(nil)
	_ p9srv.InPlacer      = (*File)(nil)
	_ p9srv.Binder        = (*File)(nil)
	_ p9srv.Walker        = (*File)(nil)
	_ p9srv.DirReader     = (*File)(nil)
	_ p9srv.DirFiller     = (*File)(nil)
	_ p9srv.PipeReader    = (*File)(nil)
	_ p9srv.PartWriter    = (*File)(nil)
	_ p9srv.Remover       = (*File)(nil)
	_ p9srv.Renamer       = (*File)(nil)
	_ p9srv.FSyncer       = (*File)(nil)
	_ p9srv.ContextLocker = (*File)(nil)
	_ p9srv.LockTester    = (*File)(nil)
)

const statMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME

func statFD(fd int, st *unix.Statx_t) error {
	return unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, statMask, st)
}

// Concurrent says that the engine need not lock for File.
func (f *File) Concurrent() {}

// Bind is f for one operation on another goroutine than the connection's.
func (f *File) Bind(ctx context.Context) p9.File {
	parent, name := f.place()
	return &File{a: f.a, n: f.n, parent: parent, name: name, fd: f.fd, flags: f.flags, dir: f.dir, ctx: ctx, of: f}
}

// InPlace says whether op waits for nothing but the page cache.
func (f *File) InPlace(op p9srv.InPlaceOp) bool {
	switch {
	case f.a.as != nil:
		return op == p9srv.OpClose && !f.n.mayWait() || op == p9srv.OpRead && !f.n.mayWait()
	case op == p9srv.OpMeta || op == p9srv.OpName:
		return true
	case op == p9srv.OpWrite:
		return !f.n.mayWait() && f.flags&(unix.O_SYNC|unix.O_DSYNC) == 0
	}
	return !f.n.mayWait()
}

// Walk steps along names; none makes a second File, unopened, of the same
// object.
func (f *File) Walk(names []string) ([]p9.QID, p9.File, error) { return f.WalkNames(nil, names) }

// WalkGetAttr is Walk and GetAttr.
func (f *File) WalkGetAttr(names []string) ([]p9.QID, p9.File, p9.AttrMask, p9.Attr, error) {
	qids, g, err := f.WalkNames(nil, names)
	if err != nil {
		return qids, nil, p9.AttrMask{}, p9.Attr{}, err
	}
	_, m, a, err := g.GetAttr(p9.AttrMaskAll)
	if err != nil {
		_ = g.Close()
		return nil, nil, m, a, err
	}
	return qids, g, m, a, nil
}

// WalkNames is Walk for an engine that keeps the qids' room. The user has to be
// allowed to search each folder.
func (f *File) WalkNames(qids []p9.QID, names []string) (_ []p9.QID, _ p9.File, err error) {
	if len(names) == 0 {
		f.n.hold()
		parent, name := f.place()
		if parent != nil {
			parent.hold()
		}
		return qids, f.a.file(f.n, parent, name), nil
	}
	var at, above *node
	if f.a.as == nil {
		qids, above, at, err = f.steps(qids, names)
	} else {
		err = f.a.do(func() error {
			var err error
			qids, above, at, err = f.steps(qids, names)
			return err
		})
	}
	if err != nil {
		return qids, nil, err
	}
	g := f.a.file(at, above, names[len(names)-1])
	if g.name == ".." || g.n == f.a.root {
		if g.parent != nil {
			g.parent.release()
		}
		g.parent, g.name = nil, ""
	}
	return qids, g, nil
}

// steps walks names from f and returns the last object and the folder above it,
// both held.
func (f *File) steps(qids []p9.QID, names []string) (_ []p9.QID, above, at *node, err error) {
	at = f.n
	at.hold()
	for i, name := range names {
		var next *node
		var q p9.QID
		if next, q, err = f.a.step(at, name, i == len(names)-1); err != nil {
			break
		}
		if above != nil {
			above.release()
		}
		above, at = at, next
		qids = append(qids, q)
	}
	if err != nil {
		at.release()
		if above != nil {
			above.release()
		}
		return qids, nil, nil, err
	}
	return qids, above, at, nil
}

// step is one name of a walk. Of a folder on the way only the number is asked,
// for it is likely to be known; what stands last is opened at once.
func (a *attachment) step(at *node, name string, last bool) (*node, p9.QID, error) {
	if !at.isDir() {
		return nil, p9.QID{}, syscall.ENOTDIR
	}
	if name == ".." {
		return a.up(at)
	}
	var st unix.Statx_t
	if !last {
		if err := unix.Statx(at.fd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statMask, &st); err != nil {
			return nil, p9.QID{}, err
		}
		if n := a.t.nodes.get(idOf(&st)); n != nil {
			return n, n.qid(&st), nil
		}
	}
	n, err := a.open(at, name, &st)
	if err != nil {
		return nil, p9.QID{}, err
	}
	return n, n.qid(&st), nil
}

// open makes a node of the object that a folder has under a name.
func (a *attachment) open(at *node, name string, st *unix.Statx_t) (*node, error) {
	fd, err := unix.Openat(at.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := statFD(fd, st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	n, took := a.t.nodes.adopt(fd, st)
	if !took {
		unix.Close(fd)
	}
	return n, nil
}

// maxDepth bounds how far up is looked for the root.
const maxDepth = 1 << 14

// up is the folder above one. The root of the attach is its own; so is, for want
// of one, that of a folder that was moved out of the tree.
func (a *attachment) up(at *node) (*node, p9.QID, error) {
	var st unix.Statx_t
	if at != a.root && at != a.t.root && a.below(at) {
		n, err := a.open(at, "..", &st)
		if err != nil {
			return nil, p9.QID{}, err
		}
		return n, n.qid(&st), nil
	}
	if err := statFD(at.fd, &st); err != nil {
		return nil, p9.QID{}, err
	}
	at.hold()
	return at, at.qid(&st), nil
}

// below says whether a folder lies below the root of the attach.
func (a *attachment) below(at *node) bool {
	fd, was := at.fd, at.id
	for range maxDepth {
		next, err := unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if fd != at.fd {
			unix.Close(fd)
		}
		if err != nil {
			return false
		}
		fd = next
		var st unix.Statx_t
		err = statFD(fd, &st)
		is := idOf(&st)
		if err != nil || is == a.root.id || is == was {
			unix.Close(fd)
			return err == nil && is == a.root.id
		}
		was = is
	}
	unix.Close(fd)
	return false
}

// Renamed is not called: File is Concurrent.
func (f *File) Renamed(p9.File, string) {}

// stat asks the open descriptor where there is one.
func (f *File) stat(st *unix.Statx_t) error {
	if f.fd >= 0 {
		return statFD(f.fd, st)
	}
	return statFD(f.n.fd, st)
}

var attrMask = p9.AttrMask{
	Mode: true, NLink: true, UID: true, GID: true, RDev: true, ATime: true, MTime: true, CTime: true,
	INo: true, Size: true, Blocks: true, BTime: true, Gen: true, DataVersion: true,
}

// GetAttr answers every attribute, whichever are asked for: all come with one.
func (f *File) GetAttr(p9.AttrMask) (p9.QID, p9.AttrMask, p9.Attr, error) {
	var st unix.Statx_t
	if err := f.stat(&st); err != nil {
		return p9.QID{}, p9.AttrMask{}, p9.Attr{}, err
	}
	a := p9.Attr{
		Mode: p9.FileMode(st.Mode), UID: p9.UID(st.Uid), GID: p9.GID(st.Gid), NLink: p9.NLink(st.Nlink),
		RDev: p9.Dev(unix.Mkdev(st.Rdev_major, st.Rdev_minor)),
		Size: st.Size, BlockSize: uint64(st.Blksize), Blocks: st.Blocks,
		ATimeSeconds: uint64(st.Atime.Sec), ATimeNanoSeconds: uint64(st.Atime.Nsec),
		MTimeSeconds: uint64(st.Mtime.Sec), MTimeNanoSeconds: uint64(st.Mtime.Nsec),
		CTimeSeconds: uint64(st.Ctime.Sec), CTimeNanoSeconds: uint64(st.Ctime.Nsec),
		BTimeSeconds: uint64(st.Btime.Sec), BTimeNanoSeconds: uint64(st.Btime.Nsec),
		// An inode number that is used again has another birth.
		Gen:         uint64(fold(uint64(nanos(st.Btime)))),
		DataVersion: mix(f.n.version(&st)),
	}
	return f.n.qid(&st), attrMask, a, nil
}

// SetAttr changes attributes, of an object without a name too. A time without
// its "not system time" bit becomes now.
func (f *File) SetAttr(valid p9.SetAttrMask, attr p9.SetAttr) error {
	if err := f.a.writable(); err != nil {
		return err
	}
	return f.a.do(func() error { return f.setAttr(valid, attr) })
}

func (f *File) setAttr(valid p9.SetAttrMask, attr p9.SetAttr) error {
	defer f.n.count.Add(1)
	if valid.Size {
		if attr.Size > 1<<63-1 {
			return syscall.EINVAL
		}
		var err error
		if f.fd >= 0 && f.flags&unix.O_ACCMODE != unix.O_RDONLY {
			err = unix.Ftruncate(f.fd, int64(attr.Size))
		} else {
			err = unix.Truncate(f.n.procPath(), int64(attr.Size))
		}
		if err != nil {
			return err
		}
	}
	if valid.UID && attr.UID != p9.NoUID || valid.GID && attr.GID != p9.NoGID {
		uid, gid := -1, -1
		if valid.UID {
			uid = int(int32(attr.UID))
		}
		if valid.GID {
			gid = int(int32(attr.GID))
		}
		if err := unix.Fchownat(f.n.fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	// After a change of owner, which takes setuid bits away.
	if valid.Permissions {
		if f.n.typ == unix.S_IFLNK {
			return syscall.EOPNOTSUPP
		}
		if err := unix.Fchmodat(f.a.t.procfd, f.n.proc(), uint32(attr.Permissions)&0o7777, 0); err != nil {
			return err
		}
	}
	if !valid.ATime && !valid.MTime {
		return nil
	}
	set := func(is, given bool, sec, nsec uint64) unix.Timespec {
		switch {
		case !is:
			return unix.Timespec{Nsec: unix.UTIME_OMIT}
		case !given:
			return unix.Timespec{Nsec: unix.UTIME_NOW}
		}
		return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
	}
	if attr.ATimeNanoSeconds >= uint64(time.Second) || attr.MTimeNanoSeconds >= uint64(time.Second) {
		return syscall.EINVAL
	}
	return unix.UtimesNanoAt(f.a.t.procfd, f.n.proc(), []unix.Timespec{
		set(valid.ATime, valid.ATimeNotSystemTime, attr.ATimeSeconds, attr.ATimeNanoSeconds),
		set(valid.MTime, valid.MTimeNotSystemTime, attr.MTimeSeconds, attr.MTimeNanoSeconds),
	}, 0)
}

// Readlink reads a symbolic link.
func (f *File) Readlink() (string, error) {
	if f.n.typ != unix.S_IFLNK {
		return "", syscall.EINVAL
	}
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(f.n.fd, "", b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// StatFS describes the file system below.
func (f *File) StatFS() (p9.FSStat, error) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(f.n.fd, &s); err != nil {
		return p9.FSStat{}, err
	}
	return p9.FSStat{
		Type: uint32(s.Type), BlockSize: uint32(s.Bsize), Blocks: s.Blocks, BlocksFree: s.Bfree, BlocksAvailable: s.Bavail,
		Files: s.Files, FilesFree: s.Ffree, FSID: uint64(uint32(s.Fsid.Val[1]))<<32 | uint64(uint32(s.Fsid.Val[0])), NameLength: uint32(s.Namelen),
	}, nil
}

// Close gives the fid up, and its locks with it.
func (f *File) Close() error {
	var err error
	if f.fd >= 0 {
		err = unix.Close(f.fd)
		f.fd = -1
	}
	f.dir.close(f.a.t)
	f.n.release()
	if f.parent != nil {
		f.parent.release()
	}
	for _, n := range f.left {
		n.release()
	}
	f.a.left()
	return err
}
