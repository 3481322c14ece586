package export

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv"
)

// extPath is set in the qid path of everything in the journal extension: an oid
// of site 0, which mints nothing but the root.
const extPath = uint64(1) << 43

// emptyReads is how many reads below the told size an open file of the journal
// extension may answer with nothing before the reader gets EIO: a kernel that
// believes the size asks again without end (Linux 6.12, cache=none).
const emptyReads = 4

// extFile is a file or folder of the journal extension in the hands of one fid.
// Its qid version is 0, which keeps new kernels from caching it.
type extFile struct {
	s    *session
	up   *extFile // nil for the extension itself, which lies in the root
	node tree.ExtNode

	// told is the size last answered to a getattr; a text made at the open is
	// filled up to it, so that the reader finds what it was promised.
	told  atomic.Uint64
	empty atomic.Int32

	mu     sync.RWMutex // held for reading while the handle is used
	h      tree.ExtHandle
	list   []tree.ExtNode // of an open folder
	flags  int
	opened bool
	closed bool

	end lockHolder // ends reads that wait when the fid goes
}

var (
	_ p9.File             = (*extFile)(nil)
	_ p9srv.Concurrent    = (*extFile)(nil)
	_ p9srv.Walker        = (*extFile)(nil)
	_ p9srv.DirReader     = (*extFile)(nil)
	_ p9srv.Remover       = (*extFile)(nil)
	_ p9srv.InPlacer      = (*extFile)(nil)
	_ p9srv.StreamReader  = (*extFile)(nil)
	_ p9srv.ContextReader = (*extFile)(nil)
	_ p9srv.ContextWriter = (*extFile)(nil)
	_ p9srv.FSyncer       = (*extFile)(nil)
	_ p9srv.LockTester    = (*extFile)(nil)
)

func (s *session) extRoot() *extFile {
	return &extFile{s: s, node: tree.ExtNode{Name: tree.ExtDirName, Mode: unix.S_IFDIR | 0o555, Dir: s.e.o.Ext}}
}

func (x *extFile) qid() p9.QID {
	return p9.QID{Type: qidType(x.node.Mode), Path: extPath | x.node.ID&(extPath-1)}
}

// Concurrent says that the engine need not lock for extFile.
func (x *extFile) Concurrent() {}

// StreamReads is true for what has no size: reads answer with what there is.
func (x *extFile) StreamReads() bool { return x.node.Size == nil && x.node.Dir == nil }

// InPlace is true for nothing that may wait: streams are among these files.
func (x *extFile) InPlace(op p9srv.InPlaceOp) bool {
	return x.s.e.o.InPlace && op == p9srv.OpMeta
}

// Walk steps along names.
func (x *extFile) Walk(names []string) ([]p9.QID, p9.File, error) { return x.walk(nil, names) }

// WalkNames is Walk for an engine that keeps the qids' room.
func (x *extFile) WalkNames(qids []p9.QID, names []string) ([]p9.QID, p9.File, error) {
	return x.walk(qids, names)
}

func (x *extFile) walk(qids []p9.QID, names []string) ([]p9.QID, p9.File, error) {
	at := &extFile{s: x.s, up: x.up, node: x.node}
	at.told.Store(x.told.Load())
	for i, name := range names {
		switch {
		case at.node.Dir == nil:
			return qids, nil, syscall.ENOTDIR
		case name == ".." && at.up == nil:
			return x.s.leave(qids, names[i+1:])
		case name == "..":
			at = &extFile{s: x.s, up: at.up.up, node: at.up.node}
		default:
			node, err := at.node.Dir.Lookup(x.s.ctx, x.s.cred, name)
			if err != nil {
				return qids, nil, err
			}
			at = &extFile{s: x.s, up: at, node: node}
		}
		qids = append(qids, at.qid())
	}
	return qids, at, nil
}

// leave walks on from the root of the tree, into which ".." led.
func (s *session) leave(qids []p9.QID, rest []string) ([]p9.QID, p9.File, error) {
	a, err := s.e.fs.Getattr(s.ctx, s.cred, kml.RootOID)
	if err != nil {
		return qids, nil, err
	}
	root := s.file(a, kml.RootOID, "")
	qids = append(qids, qidOf(&a))
	if len(rest) == 0 {
		return qids, root, nil
	}
	return root.WalkNames(qids, rest)
}

// WalkGetAttr is Walk and GetAttr.
func (x *extFile) WalkGetAttr(names []string) ([]p9.QID, p9.File, p9.AttrMask, p9.Attr, error) {
	qids, f, err := x.Walk(names)
	if err != nil {
		return qids, nil, p9.AttrMask{}, p9.Attr{}, err
	}
	_, m, a, err := f.GetAttr(attrMask)
	return qids, f, m, a, err
}

// GetAttr answers what the entry is; a file that stands for one of the tree, once
// it is open, with that one's attributes.
func (x *extFile) GetAttr(p9.AttrMask) (p9.QID, p9.AttrMask, p9.Attr, error) {
	now := time.Now().UnixNano()
	a := tree.Attr{
		Mode: x.node.Mode, Nlink: 1, UID: x.s.e.uid, GID: x.s.e.gid,
		Atime: now, Mtime: now, Ctime: now, Btime: x.s.e.started,
	}
	if x.node.Dir != nil {
		a.Nlink = 2
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.h != nil {
		if b, ok := x.h.Attr(); ok {
			a = b
			a.Mode = x.node.Mode
		}
	}
	if a.Size == 0 && x.node.Size != nil {
		size, err := x.node.Size(x.s.ctx)
		if err != nil {
			return p9.QID{}, p9.AttrMask{}, p9.Attr{}, err
		}
		a.Size = size
	}
	if x.h != nil && x.node.Text {
		a.Size = max(a.Size, x.told.Load())
	}
	x.told.Store(a.Size)
	a.Blocks = (a.Size + 511) / 512
	return x.qid(), attrMask, attrOf(&a), nil
}

// StatFS describes the file system of the tree.
func (x *extFile) StatFS() (p9.FSStat, error) { return x.s.statfs(x.s.ctx, kml.RootOID) }

// Open opens the entry, rights permitting.
func (x *extFile) Open(mode p9.OpenFlags) (p9.QID, uint32, error) {
	fl, err := openFlags(mode)
	if err != nil {
		return p9.QID{}, 0, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.opened || x.closed {
		return p9.QID{}, 0, syscall.EBADF
	}
	if x.node.Dir != nil {
		if writes(fl) {
			return p9.QID{}, 0, syscall.EISDIR
		}
		if x.list, err = x.node.Dir.List(x.s.ctx, x.s.cred); err != nil {
			return p9.QID{}, 0, err
		}
		x.opened = true
		return x.qid(), 0, nil
	}
	if x.node.Open == nil {
		return p9.QID{}, 0, syscall.EACCES
	}
	h, err := x.node.Open(x.s.ctx, x.s.cred, fl)
	if err != nil {
		return p9.QID{}, 0, err
	}
	x.h, x.flags, x.opened = h, fl, true
	return x.qid(), 0, nil
}

// Create makes a file in a folder that takes some.
func (x *extFile) Create(name string, flags p9.OpenFlags, _ p9.FileMode, _ p9.UID, _ p9.GID) (p9.File, p9.QID, uint32, error) {
	fl, err := openFlags(flags)
	if err != nil {
		return nil, p9.QID{}, 0, err
	}
	m, err := x.maker()
	if err != nil {
		return nil, p9.QID{}, 0, err
	}
	node, h, err := m.Create(x.s.ctx, x.s.cred, name, fl)
	if err != nil {
		return nil, p9.QID{}, 0, err
	}
	g := &extFile{s: x.s, up: x, node: node, h: h, flags: fl, opened: true}
	return g, g.qid(), 0, nil
}

func (x *extFile) maker() (tree.ExtMaker, error) {
	if x.node.Dir == nil {
		return nil, syscall.ENOTDIR
	}
	m, ok := x.node.Dir.(tree.ExtMaker)
	if !ok {
		return nil, syscall.EPERM
	}
	return m, x.s.writable()
}

// UnlinkAt removes a file from a folder that takes some.
func (x *extFile) UnlinkAt(name string, flags uint32) error {
	m, err := x.maker()
	if err != nil {
		return err
	}
	if flags&unix.AT_REMOVEDIR != 0 {
		return syscall.ENOTDIR
	}
	return m.Remove(x.s.ctx, x.s.cred, name)
}

// Remove removes the file from its folder.
func (x *extFile) Remove(context.Context) error {
	if x.up == nil {
		return syscall.EPERM
	}
	return x.up.UnlinkAt(x.node.Name, 0)
}

// Readdir lists a folder.
func (x *extFile) Readdir(offset uint64, count uint32) (p9.Dirents, error) {
	return collect(x, x.s.ctx, offset, count)
}

// ReadDirContext hands out the entries as they were at the open.
func (x *extFile) ReadDirContext(_ context.Context, offset uint64, add func(p9srv.Dirent) bool) error {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if !x.opened || x.node.Dir == nil {
		return syscall.EBADF
	}
	for i := offset; i < uint64(len(x.list))+dots; i++ {
		e := p9srv.Dirent{QID: x.qid(), Offset: i + 1, Type: unix.DT_DIR, Name: "."}
		switch {
		case i == 1:
			e.Name = ".."
			e.QID.Path = uint64(kml.RootOID)
			if x.up != nil {
				e.QID = x.up.qid()
			}
		case i >= dots:
			c := extFile{node: x.list[i-dots]}
			e.QID, e.Name, e.Type = c.qid(), c.node.Name, uint8(c.node.Mode&unix.S_IFMT>>12)
		}
		if !add(e) {
			return nil
		}
	}
	return nil
}

// ReadAt reads; see ReadAtContext.
func (x *extFile) ReadAt(p []byte, off int64) (int, error) {
	return x.ReadAtContext(x.s.ctx, p, off)
}

// ReadAtContext reads; on a stream it waits until ctx ends, which is EINTR.
func (x *extFile) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	switch {
	case x.node.Dir != nil:
		return 0, syscall.EISDIR
	case x.h == nil || x.flags&unix.O_ACCMODE == unix.O_WRONLY:
		return 0, syscall.EBADF
	case off < 0:
		return 0, syscall.EINVAL
	}
	ctx, done := x.end.wait(x.s.request(ctx))
	defer done()
	n, err := x.h.ReadAt(ctx, p, off)
	if n > 0 {
		return n, nil
	}
	if err != nil {
		return 0, errno(err)
	}
	if len(p) > 0 && uint64(off) < x.told.Load() {
		return x.short(p, off)
	}
	return 0, nil
}

// short answers a read of what is not there though it was told to be: blank
// lines where the entry is a text, else nothing, and EIO when the reader does not
// take that for an answer.
func (x *extFile) short(p []byte, off int64) (int, error) {
	if x.node.Text {
		n := min(uint64(len(p)), x.told.Load()-uint64(off))
		for i := range p[:n] {
			p[i] = '\n'
		}
		return int(n), nil
	}
	if x.empty.Add(1) > emptyReads {
		return 0, syscall.EIO
	}
	return 0, nil
}

// WriteAt writes; see WriteAtContext.
func (x *extFile) WriteAt(p []byte, off int64) (int, error) {
	return x.WriteAtContext(x.s.ctx, p, off)
}

// WriteAtContext writes.
func (x *extFile) WriteAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	switch {
	case x.h == nil || x.flags&unix.O_ACCMODE == unix.O_RDONLY:
		return 0, syscall.EBADF
	case off < 0:
		return 0, syscall.EINVAL
	}
	ctx, done := x.end.wait(x.s.request(ctx))
	defer done()
	n, err := x.h.WriteAt(ctx, p, off)
	return n, errno(err)
}

// FSync makes an upload durable.
func (x *extFile) FSync() error { return x.FSyncContext(x.s.ctx, false) }

// FSyncContext makes an upload durable.
func (x *extFile) FSyncContext(ctx context.Context, datasync bool) error {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if !x.opened {
		return syscall.EBADF
	}
	if s, ok := x.h.(tree.Syncer); ok {
		return errno(s.Fsync(x.s.request(ctx), datasync))
	}
	return syscall.EINVAL
}

// SetAttr lets a file be cut to nothing and its times be set, as opening it to
// write and cp do, and changes nothing.
func (x *extFile) SetAttr(valid p9.SetAttrMask, attr p9.SetAttr) error {
	if valid.Permissions || valid.UID || valid.GID || valid.Size && attr.Size != 0 {
		return syscall.EPERM
	}
	return nil
}

// Close gives the file up.
func (x *extFile) Close() error {
	x.end.cancel()
	x.mu.Lock()
	defer x.mu.Unlock()
	h := x.h
	x.h, x.list, x.closed = nil, nil, true
	if h != nil {
		return h.Close()
	}
	return nil
}
