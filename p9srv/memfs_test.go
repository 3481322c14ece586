package p9srv_test

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hugelgupf/p9/fsimpl/templatefs"
	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// memfs is a tree in memory for tests. It comes in three kinds, which must
// look the same to clients: plain (p9.File only), concurrent (with the optional
// interfaces, run on workers), inplace (the same, run in place) and fickle
// (which takes every promise back).
//
// A regular file called "block" waits in reads until the context ends or wake
// is closed, one called "panic" panics when read, "strange" fails with an
// error that has no errno.
type memfs struct {
	kind  string
	mu    sync.Mutex
	root  *memnode
	last  uint64
	given atomic.Int64 // bytes that were read of files
	wake  chan struct{}
	// blocked gets a value when a read has begun to wait.
	blocked chan struct{}
	// closed counts Files that were closed, lost those closed by the end of a
	// session; open is Files that exist.
	open, closed, lost int
	users              []p9srv.User
	anames             []string
}

type memnode struct {
	ino           uint64
	mode          p9.FileMode
	uid           p9.UID
	gid           p9.GID
	nlink         uint64
	rdev          uint64
	mtime         time.Duration
	data          []byte
	target        string
	kids          map[string]*memnode
	parent        *memnode
	xattr         map[string][]byte
	version       uint32
	name          string // its last one
	locked        bool
	lockedByOwner string
}

func newMemfs(kind string) *memfs {
	t := &memfs{kind: kind, wake: make(chan struct{}), blocked: make(chan struct{}, 1024)}
	t.root = t.node(p9.ModeDirectory | 0o755)
	t.root.parent = t.root
	return t
}

func (t *memfs) node(mode p9.FileMode) *memnode {
	t.last++
	n := &memnode{ino: t.last, mode: mode, nlink: 1, version: 1}
	if mode.IsDir() {
		n.kids, n.nlink = map[string]*memnode{}, 2
	}
	return n
}

// attached is who attached so far, and to what.
func (t *memfs) attached() ([]p9srv.User, []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.users), slices.Clone(t.anames)
}

// files is how many Files are open, and how many were closed as lost.
func (t *memfs) files() (open, lost int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open, t.lost
}

// put makes files for a test: a path ending in / is a folder.
func (t *memfs) put(paths ...string) *memfs {
	for _, p := range paths {
		at := t.root
		names := strings.Split(strings.TrimSuffix(p, "/"), "/")
		for i, name := range names {
			if at.kids[name] == nil {
				mode := p9.ModeRegular | 0o644
				if i < len(names)-1 || strings.HasSuffix(p, "/") {
					mode = p9.ModeDirectory | 0o755
				}
				n := t.node(mode)
				n.name, n.parent = name, at
				if !mode.IsDir() {
					n.data = []byte("contents of " + name)
				}
				at.kids[name] = n
			}
			at = at.kids[name]
		}
	}
	return t
}

func (t *memfs) Attach() (p9.File, error) { return t.file(t.root), nil }

// AttachAs makes memas of it.
func (m memas) AttachAs(_ context.Context, u p9srv.User, aname string) (p9.File, error) {
	m.mu.Lock()
	m.users, m.anames = append(m.users, u), append(m.anames, aname)
	m.mu.Unlock()
	if aname == "none" {
		return nil, syscall.ENOENT
	}
	return m.file(m.root), nil
}

// memas is a memfs that wants to know who attaches.
type memas struct{ *memfs }

func (t *memfs) file(n *memnode) p9.File {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fileLocked(n)
}

func (t *memfs) fileLocked(n *memnode) p9.File {
	t.open++
	f := &memfile{t: t, n: n}
	if t.kind == "plain" {
		return f
	}
	c := &memconc{memfile: f, ctx: nil}
	if t.kind == "fickle" {
		return &memfickle{c}
	}
	return c
}

// maxMem is how large files may grow.
const maxMem = 4 << 20

// memfile is a plain File.
type memfile struct {
	templatefs.NoopFile
	t     *memfs
	n     *memnode
	flags p9.OpenFlags
}

func (n *memnode) qid() p9.QID {
	return p9.QID{Type: wire.QIDOf(n.mode), Version: n.version, Path: n.ino}
}

func (f *memfile) Walk(names []string) ([]p9.QID, p9.File, error) {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	qids, n, err := f.t.walk(nil, f.n, names)
	if err != nil {
		return nil, nil, err
	}
	return qids, f.t.fileLocked(n), nil
}

func (t *memfs) walk(qids []p9.QID, n *memnode, names []string) ([]p9.QID, *memnode, error) {
	for _, name := range names {
		if !n.mode.IsDir() {
			return qids, nil, syscall.ENOTDIR
		}
		next := n.kids[name]
		if name == ".." {
			next = n.parent
		}
		if next == nil {
			return qids, nil, syscall.ENOENT
		}
		qids, n = append(qids, next.qid()), next
	}
	return qids, n, nil
}

func (f *memfile) WalkGetAttr([]string) ([]p9.QID, p9.File, p9.AttrMask, p9.Attr, error) {
	return nil, nil, p9.AttrMask{}, p9.Attr{}, syscall.ENOSYS
}

func (f *memfile) GetAttr(p9.AttrMask) (p9.QID, p9.AttrMask, p9.Attr, error) {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	n := f.n
	return n.qid(), p9.AttrMask{Mode: true, NLink: true, UID: true, GID: true, Size: true, MTime: true, DataVersion: true}, p9.Attr{
		Mode: n.mode, UID: n.uid, GID: n.gid, NLink: p9.NLink(n.nlink), RDev: p9.Dev(n.rdev), Size: uint64(len(n.data)),
		MTimeSeconds: uint64(n.mtime.Seconds()), DataVersion: uint64(n.version),
	}, nil
}

func (f *memfile) SetAttr(v p9.SetAttrMask, a p9.SetAttr) error {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	if v.Permissions {
		f.n.mode = f.n.mode&p9.FileModeMask | a.Permissions
	}
	if v.UID {
		f.n.uid = a.UID
	}
	if v.GID {
		f.n.gid = a.GID
	}
	if v.MTime {
		f.n.mtime = time.Duration(a.MTimeSeconds) * time.Second
	}
	if v.Size && a.Size > maxMem {
		return syscall.EFBIG
	}
	if v.Size {
		f.n.data = append(f.n.data[:0:0], f.n.data[:min(len(f.n.data), int(a.Size))]...)
		f.n.data = append(f.n.data, make([]byte, int(a.Size)-len(f.n.data))...)
		f.n.version++
	}
	return nil
}

func (f *memfile) Close() error {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	f.t.open--
	f.t.closed++
	return nil
}

func (f *memfile) Open(flags p9.OpenFlags) (p9.QID, uint32, error) {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	f.flags = flags
	return f.n.qid(), 0, nil
}

var errStrange = io.ErrNoProgress // an error that maps to no errno

// place is where the file is now.
func (f *memfile) place() (parent *memnode, name string) {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	return f.n.parent, f.n.name
}

func (f *memfile) special(ctx context.Context) error {
	_, name := f.place()
	switch name {
	case "block":
		f.t.blocked <- struct{}{}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.t.wake:
		}
	case "panic":
		panic("told to")
	case "strange":
		return errStrange
	}
	return nil
}

func (f *memfile) ReadAt(p []byte, off int64) (int, error) {
	return f.read(context.Background(), p, off)
}

// read gives a few bytes at a time: the engine has to ask again.
func (f *memfile) read(ctx context.Context, p []byte, off int64) (int, error) {
	if err := f.special(ctx); err != nil {
		return 0, err
	}
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	if off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 5000)], f.n.data[off:])
	f.t.given.Add(int64(n))
	return n, nil
}

func (f *memfile) WriteAt(p []byte, off int64) (int, error) {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	if off > maxMem {
		return 0, syscall.EFBIG
	}
	if grow := int(off) + len(p) - len(f.n.data); grow > 0 {
		f.n.data = append(f.n.data, make([]byte, grow)...)
	}
	f.n.version++
	return copy(f.n.data[off:], p), nil
}

func (f *memfile) FSync() error { return nil }

func (f *memfile) add(name string, mode p9.FileMode, uid p9.UID, gid p9.GID) (*memnode, error) {
	if f.n.kids[name] != nil {
		return nil, syscall.EEXIST
	}
	n := f.t.node(mode)
	n.uid, n.gid, n.parent, n.name = uid, gid, f.n, name
	f.n.kids[name] = n
	f.n.version++
	return n, nil
}

func (f *memfile) Create(name string, flags p9.OpenFlags, perm p9.FileMode, uid p9.UID, gid p9.GID) (p9.File, p9.QID, uint32, error) {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	n, err := f.add(name, p9.ModeRegular|perm, uid, gid)
	if err != nil {
		return nil, p9.QID{}, 0, err
	}
	return f.t.fileLocked(n), n.qid(), 0, nil
}

func (f *memfile) made(name string, mode p9.FileMode, uid p9.UID, gid p9.GID, with func(*memnode)) (p9.QID, error) {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	n, err := f.add(name, mode, uid, gid)
	if err != nil {
		return p9.QID{}, err
	}
	if with != nil {
		with(n)
	}
	return n.qid(), nil
}

func (f *memfile) Mkdir(name string, perm p9.FileMode, uid p9.UID, gid p9.GID) (p9.QID, error) {
	return f.made(name, p9.ModeDirectory|perm, uid, gid, nil)
}

func (f *memfile) Symlink(target, name string, uid p9.UID, gid p9.GID) (p9.QID, error) {
	return f.made(name, p9.ModeSymlink|0o777, uid, gid, func(n *memnode) { n.target = target })
}

func (f *memfile) Mknod(name string, mode p9.FileMode, major, minor uint32, uid p9.UID, gid p9.GID) (p9.QID, error) {
	return f.made(name, mode, uid, gid, func(n *memnode) { n.rdev = uint64(major)<<8 | uint64(minor) })
}

// memfileOf is the memfile in any File of a memfs.
func memfileOf(f p9.File) *memfile {
	switch f := f.(type) {
	case *memfickle:
		return f.memfile
	case *memconc:
		return f.memfile
	}
	return f.(*memfile)
}

func (f *memfile) Link(target p9.File, name string) error {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	if f.n.kids[name] != nil {
		return syscall.EEXIST
	}
	n := memfileOf(target).n
	n.nlink++
	f.n.kids[name] = n
	return nil
}

func (f *memfile) RenameAt(oldName string, dir p9.File, newName string) error {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	n, to := f.n.kids[oldName], memfileOf(dir).n
	if n == nil {
		return syscall.ENOENT
	}
	if n.above(to) {
		return syscall.EINVAL
	}
	delete(f.n.kids, oldName)
	to.kids[newName] = n
	n.parent, n.name = to, newName
	return nil
}

// above says that to is n or under it.
func (n *memnode) above(to *memnode) bool {
	for ; to != n; to = to.parent {
		if to == to.parent {
			return false
		}
	}
	return true
}

// Rename is what Trename calls on Concurrent Files.
func (f *memfile) Rename(dir p9.File, name string) error {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	if f.n == f.t.root {
		return syscall.EBUSY
	}
	if f.n.above(memfileOf(dir).n) {
		return syscall.EINVAL
	}
	delete(f.n.parent.kids, f.n.name)
	f.n.parent, f.n.name = memfileOf(dir).n, name
	f.n.parent.kids[name] = f.n
	return nil
}

func (f *memfile) UnlinkAt(name string, flags uint32) error {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	n := f.n.kids[name]
	switch {
	case n == nil:
		return syscall.ENOENT
	case n.mode.IsDir() && flags&wire.UnlinkRemoveDir == 0:
		return syscall.EISDIR
	case !n.mode.IsDir() && flags&wire.UnlinkRemoveDir != 0:
		return syscall.ENOTDIR
	case len(n.kids) > 0:
		return syscall.ENOTEMPTY
	}
	n.nlink--
	delete(f.n.kids, name)
	return nil
}

func (f *memfile) Readlink() (string, error) { return f.n.target, nil }

func (f *memfile) Renamed(p9.File, string) {}

func (f *memfile) Readdir(off uint64, _ uint32) (p9.Dirents, error) {
	var all p9.Dirents
	for _, d := range f.entries(off) {
		all = append(all, p9.Dirent{QID: d.QID, Offset: d.Offset, Type: d.QID.Type, Name: d.Name})
		if len(all) == 7 {
			break
		}
	}
	return all, nil
}

func (f *memfile) entries(off uint64) []p9srv.Dirent {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	var all []p9srv.Dirent
	for i, name := range slices.Sorted(maps.Keys(f.n.kids)) {
		if n := f.n.kids[name]; uint64(i) >= off {
			all = append(all, p9srv.Dirent{QID: n.qid(), Offset: uint64(i + 1), Type: wire.DirentType(n.mode), Name: name})
		}
	}
	return all
}

func (f *memfile) SetXattr(name string, v []byte, flags p9.XattrFlags) error {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	_, has := f.n.xattr[name]
	switch {
	case has && flags&p9.XattrCreate != 0:
		return syscall.EEXIST
	case !has && flags&p9.XattrReplace != 0:
		return syscall.ENODATA
	case f.n.xattr == nil:
		f.n.xattr = map[string][]byte{}
	}
	f.n.xattr[name] = slices.Clone(v)
	return nil
}

func (f *memfile) GetXattr(name string) ([]byte, error) {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	v, ok := f.n.xattr[name]
	if !ok {
		return nil, syscall.ENODATA
	}
	return v, nil
}

func (f *memfile) ListXattrs() ([]string, error) {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	return slices.Sorted(maps.Keys(f.n.xattr)), nil
}

func (f *memfile) RemoveXattr(name string) error {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	if _, ok := f.n.xattr[name]; !ok {
		return syscall.ENODATA
	}
	delete(f.n.xattr, name)
	return nil
}

func (f *memfile) StatFS() (p9.FSStat, error) {
	return p9.FSStat{Type: 1, BlockSize: 4096, Blocks: 2, BlocksFree: 3, BlocksAvailable: 4, Files: 5, FilesFree: 6, FSID: 7, NameLength: 255}, nil
}

func (f *memfile) Lock(pid int, typ p9.LockType, _ p9.LockFlags, _, _ uint64, client string) (p9.LockStatus, error) {
	st, err := f.lock(p9srv.Lock{Type: typ, PID: uint32(pid), Client: client})
	return st, err
}

func (f *memfile) lock(l p9srv.Lock) (p9.LockStatus, error) {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	if l.Type != p9.Unlock && f.n.locked && f.n.lockedByOwner != l.Client {
		return p9.LockStatusBlocked, nil
	}
	f.n.locked, f.n.lockedByOwner = l.Type != p9.Unlock, l.Client
	return p9.LockStatusOK, nil
}

// memconc is a File with the optional interfaces.
type memconc struct {
	*memfile
	ctx context.Context // nil: not bound
}

func (f *memconc) Concurrent() {}

func (f *memconc) InPlace(p9srv.InPlaceOp) bool {
	_, name := f.place()
	return f.t.kind != "concurrent" && name != "never"
}

func (f *memconc) Bind(ctx context.Context) p9.File { return &memconc{f.memfile, ctx} }

// ReadAt takes its promise back for a file that waits.
func (f *memconc) ReadAt(p []byte, off int64) (int, error) {
	if _, name := f.place(); f.ctx == nil && name == "block" {
		return 0, p9srv.ErrWouldBlock
	}
	return f.read(f.ctx, p, off)
}

func (f *memconc) WalkNames(qids []p9.QID, names []string) ([]p9.QID, p9.File, error) {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	qids, n, err := f.t.walk(qids, f.n, names)
	if err != nil {
		return qids, nil, err
	}
	return qids, f.t.fileLocked(n), nil
}

func (f *memconc) ReadDirContext(_ context.Context, off uint64, add func(p9srv.Dirent) bool) error {
	for _, d := range f.entries(off) {
		if !add(d) {
			break
		}
	}
	return nil
}

func (f *memconc) LockContext(_ context.Context, l p9srv.Lock) (p9.LockStatus, error) {
	return f.lock(l)
}

func (f *memconc) CloseContext(ctx context.Context) error {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	f.t.open--
	f.t.closed++
	if ctx.Err() != nil {
		f.t.lost++
	}
	return nil
}

func (f *memconc) Remove(context.Context) error {
	flags := uint32(0)
	if f.n.mode.IsDir() {
		flags = wire.UnlinkRemoveDir
	}
	if f.n == f.t.root {
		return syscall.EBUSY
	}
	parent, name := f.place()
	return (&memfile{t: f.t, n: parent}).UnlinkAt(name, flags)
}

func (f *memconc) RenameTo(_ context.Context, name string) error {
	parent, _ := f.place()
	return f.Rename(&memfile{t: f.t, n: parent}, name)
}
