package export

import (
	"context"
	"sync"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv"
)

// File is an object of the tree in the hands of one fid. All methods may be
// called at the same time; Close waits for those that use the open handle.
//
// It finds its object by oid, so renames and unlinks by anybody do not make it
// lose its object while it is open.
type File struct {
	n *node
	// ctx ends with the request, where the engine has bound one; else it is
	// the session's, which does not end.
	ctx context.Context
	// bound: the operation may wait.
	bound bool
}

// node is what all views of one fid share.
type node struct {
	s   *session
	oid kml.OID
	typ uint32 // S_IFMT bits

	placeMu sync.Mutex
	parent  kml.OID // where the walk came by it; Rename and Remove need it
	name    string

	mu     sync.RWMutex // held for reading while a handle is used
	h      tree.Handle
	d      tree.DirHandle
	flags  int // of the open
	closed bool

	locks lockHolder
}

var (
	_ p9.File             = (*File)(nil)
	_ p9srv.Concurrent    = (*File)(nil)
	_ p9srv.Binder        = (*File)(nil)
	_ p9srv.Walker        = (*File)(nil)
	_ p9srv.DirReader     = (*File)(nil)
	_ p9srv.Remover       = (*File)(nil)
	_ p9srv.Renamer       = (*File)(nil)
	_ p9srv.InPlacer      = (*File)(nil)
	_ p9srv.ContextReader = (*File)(nil)
	_ p9srv.PipeReader    = (*File)(nil)
	_ p9srv.ContextWriter = (*File)(nil)
	_ p9srv.FSyncer       = (*File)(nil)
	_ p9srv.SetAttrer     = (*File)(nil)
	_ p9srv.ContextLocker = (*File)(nil)
	_ p9srv.LockTester    = (*File)(nil)
)

func (s *session) file(a tree.Attr, parent kml.OID, name string) *File {
	return &File{n: &node{s: s, oid: a.OID, typ: a.Mode & unix.S_IFMT, parent: parent, name: name}, ctx: s.ctx}
}

func (n *node) isDir() bool { return n.typ == unix.S_IFDIR }

// Concurrent says that the engine need not lock for File.
func (f *File) Concurrent() {}

// Bind is f for one operation that ends with ctx.
func (f *File) Bind(ctx context.Context) p9.File {
	return &File{n: f.n, ctx: f.n.s.request(ctx), bound: true}
}

// InPlace says whether op runs without waiting for anything but the disk.
func (f *File) InPlace(op p9srv.InPlaceOp) bool {
	if !f.n.s.e.o.InPlace {
		return false
	}
	switch op {
	case p9srv.OpClose:
		return f.n.closesFast()
	case p9srv.OpName:
		return !f.n.s.e.waits
	case p9srv.OpOpen:
		return !f.n.s.e.waits || !f.n.isDir() // what is made is made in a folder
	case p9srv.OpWrite:
	default:
		return true
	}
	f.n.mu.RLock()
	defer f.n.mu.RUnlock()
	return f.n.flags&(unix.O_SYNC|unix.O_DSYNC) == 0
}

// closesFast reports whether a clunk waits for nobody: what was written becomes a
// store, which goes to the page cache.
func (n *node) closesFast() bool {
	if !n.mu.TryLock() {
		return false // an operation, such as an fsync, uses the handle
	}
	defer n.mu.Unlock()
	return n.h == nil || n.flags&unix.O_ACCMODE == unix.O_RDONLY || !n.s.e.waits
}

// Walk steps along names; none makes a second File, unopened, of the same
// object. On an error the files on the way are given up.
func (f *File) Walk(names []string) ([]p9.QID, p9.File, error) {
	qids, g, _, _, err := f.WalkGetAttr(names)
	return qids, g, err
}

// WalkGetAttr is Walk with the attributes of the last step, which come with the
// look-up at no further cost.
func (f *File) WalkGetAttr(names []string) ([]p9.QID, p9.File, p9.AttrMask, p9.Attr, error) {
	qids, g, a, err := f.walk(nil, names)
	if err != nil {
		return qids, nil, p9.AttrMask{}, p9.Attr{}, err
	}
	if a == nil {
		_, m, pa, err := g.GetAttr(attrMask)
		return qids, g, m, pa, err
	}
	return qids, g, attrMask, attrOf(a), nil
}

// WalkNames is Walk for an engine that keeps the qids' room.
func (f *File) WalkNames(qids []p9.QID, names []string) ([]p9.QID, p9.File, error) {
	qids, g, _, err := f.walk(qids, names)
	return qids, g, err
}

// walk appends a qid for each name it got through. The attributes are nil where
// the walk ended outside the tree.
func (f *File) walk(qids []p9.QID, names []string) ([]p9.QID, p9.File, *tree.Attr, error) {
	s, at := f.n.s, f.n
	if len(names) == 0 {
		g, a, err := f.clone()
		if err != nil {
			return qids, nil, nil, err
		}
		return qids, g, &a, nil
	}
	var a tree.Attr
	for i, name := range names {
		if at.isExt(name) {
			x := s.extRoot()
			qids, g, err := x.walk(append(qids, x.qid()), names[i+1:])
			return qids, g, nil, err
		}
		var err error
		if a, at, err = s.step(f.ctx, at, name); err != nil {
			return qids, nil, nil, err
		}
		qids = append(qids, qidOf(&a))
	}
	return qids, &File{n: at, ctx: s.ctx}, &a, nil
}

// clone answers the walk of no names. The object may have no name any more and
// live by an open handle alone.
func (f *File) clone() (*File, tree.Attr, error) {
	a, err := f.attr(f.ctx)
	if err != nil {
		return nil, a, err
	}
	parent, name := f.place()
	return f.n.s.file(a, parent, name), a, nil
}

// step is one element of a walk.
func (s *session) step(ctx context.Context, at *node, name string) (tree.Attr, *node, error) {
	if !at.isDir() {
		return tree.Attr{}, nil, syscall.ENOTDIR
	}
	switch name {
	case "", ".":
		return tree.Attr{}, nil, syscall.EINVAL
	case "..":
		up, err := s.up(ctx, at.oid)
		if err != nil {
			return tree.Attr{}, nil, err
		}
		a, err := s.e.fs.Getattr(ctx, s.cred, up)
		if err != nil {
			return tree.Attr{}, nil, err
		}
		return a, s.file(a, kml.RootOID, "").n, nil
	}
	a, err := s.e.fs.Lookup(ctx, s.cred, at.oid, name)
	if err != nil {
		return tree.Attr{}, nil, err
	}
	return a, s.file(a, at.oid, name).n, nil
}

// up is the parent of a folder; what the session attached to is its own.
func (s *session) up(ctx context.Context, oid kml.OID) (kml.OID, error) {
	if oid == s.root || oid == kml.RootOID {
		return oid, nil
	}
	return s.e.fs.Parent(ctx, oid)
}

// place is where the file was last known to be. Names move under others' hands,
// so it has to be looked at before it is used.
func (f *File) place() (kml.OID, string) {
	f.n.placeMu.Lock()
	defer f.n.placeMu.Unlock()
	return f.n.parent, f.n.name
}

// Renamed tells the file its new place.
func (f *File) Renamed(newDir p9.File, newName string) {
	d, ok := newDir.(*File)
	if !ok {
		return
	}
	f.n.placeMu.Lock()
	defer f.n.placeMu.Unlock()
	f.n.parent, f.n.name = d.n.oid, newName
}

// attr asks the open handle where there is one: it answers for its version.
func (f *File) attr(ctx context.Context) (tree.Attr, error) {
	n := f.n
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.h != nil {
		return n.h.Attr(ctx)
	}
	return n.s.e.fs.Getattr(ctx, n.s.cred, n.oid)
}

// GetAttr answers every attribute, whichever are asked for: all come with one.
func (f *File) GetAttr(p9.AttrMask) (p9.QID, p9.AttrMask, p9.Attr, error) {
	a, err := f.attr(f.ctx)
	if err != nil {
		return p9.QID{}, p9.AttrMask{}, p9.Attr{}, err
	}
	return qidOf(&a), attrMask, attrOf(&a), nil
}

// SetAttr changes attributes; see SetAttrContext.
func (f *File) SetAttr(valid p9.SetAttrMask, attr p9.SetAttr) error {
	return f.setAttr(f.ctx, valid, attr)
}

// SetAttrContext changes attributes, of an object without a name too while it
// is open. A time without its "not system time" bit becomes now.
func (f *File) SetAttrContext(ctx context.Context, valid p9.SetAttrMask, attr p9.SetAttr) error {
	return f.setAttr(f.n.s.request(ctx), valid, attr)
}

func (f *File) setAttr(ctx context.Context, valid p9.SetAttrMask, attr p9.SetAttr) error {
	n := f.n
	if err := n.s.writable(); err != nil {
		return err
	}
	set, err := setAttrOf(valid, attr)
	if err != nil || set.Mask == 0 {
		return err
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	_, err = n.s.e.fs.Setattr(ctx, n.s.cred, n.oid, n.h, set)
	return errno(err)
}

// Readlink reads a symbolic link.
func (f *File) Readlink() (string, error) {
	if f.n.typ != unix.S_IFLNK {
		return "", syscall.EINVAL
	}
	return f.n.s.e.fs.Readlink(f.ctx, f.n.s.cred, f.n.oid)
}

// StatFS describes the file system below.
func (f *File) StatFS() (p9.FSStat, error) { return f.n.s.statfs(f.ctx, f.n.oid) }

func (s *session) statfs(ctx context.Context, oid kml.OID) (p9.FSStat, error) {
	st, err := s.e.fs.Statfs(ctx, oid)
	if err != nil {
		return p9.FSStat{}, err
	}
	return p9.FSStat{
		Type: st.Type, BlockSize: st.Bsize,
		Blocks: st.Blocks, BlocksFree: st.Bfree, BlocksAvailable: st.Bavail,
		Files: st.Files, FilesFree: st.Ffree,
		FSID:       uint64(st.FsidHigh)<<32 | uint64(st.FsidLow),
		NameLength: st.Namelen,
	}, nil
}

// Close gives the file up: what was written becomes a store, then its locks go.
// The error is that of the store.
func (f *File) Close() error {
	n := f.n
	n.locks.cancel()
	n.mu.Lock()
	h, d, was := n.h, n.d, n.closed
	n.h, n.d, n.closed = nil, nil, true
	n.mu.Unlock()
	if was {
		return nil
	}
	var err error
	if h != nil {
		err = h.Close()
	}
	if d != nil {
		err = d.Close()
	}
	n.locks.release(n.s.e.fs, n.oid)
	return err
}
