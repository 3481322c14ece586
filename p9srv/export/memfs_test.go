package export

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// memFS is a tree.FS in memory with the permission rules of owner and other
// bits: enough to see what an export asks of a tree and as whom.
type memFS struct {
	mu    sync.Mutex
	cond  *sync.Cond
	next  uint64
	objs  map[kml.OID]*memObj
	doors map[tree.Door]int
	locks []memLock
	syncs int
}

type memObj struct {
	a      tree.Attr
	data   []byte
	target string
	xattrs map[string][]byte
	kids   map[string]kml.OID
	parent kml.OID
	opens  int
	clean  bool // flushed since the last write
}

type memLock struct {
	oid kml.OID
	l   tree.Lock
}

func newMemFS() *memFS {
	m := &memFS{next: 1, objs: map[kml.OID]*memObj{}, doors: map[tree.Door]int{}}
	m.cond = sync.NewCond(&m.mu)
	m.objs[kml.RootOID] = m.obj(nil, unix.S_IFDIR|0o777)
	m.objs[kml.RootOID].parent = kml.RootOID
	return m
}

func (m *memFS) obj(c *tree.Cred, mode uint32) *memObj {
	oid := kml.MakeOID(1, m.next)
	if m.next == 1 {
		oid = kml.RootOID
	}
	m.next++
	now := time.Now().UnixNano()
	o := &memObj{xattrs: map[string][]byte{}, a: tree.Attr{OID: oid, Mode: mode, Nlink: 1, Atime: now, Mtime: now, Ctime: now, Btime: now,
		Version: kml.MakePosition(1, m.next), DataVersion: uint64(kml.MakePosition(1, m.next))}}
	if c != nil {
		o.a.UID, o.a.GID = c.UID, c.GID
	}
	if mode&unix.S_IFMT == unix.S_IFDIR {
		o.kids, o.a.Nlink = map[string]kml.OID{}, 2
	}
	return o
}

// enter takes the lock and finds an object that c may use with the permission
// bits want.
func (m *memFS) enter(ctx context.Context, c *tree.Cred, oid kml.OID, want uint32) (*memObj, error) {
	m.mu.Lock()
	m.doors[tree.DoorOf(ctx)]++
	o, ok := m.objs[oid]
	if !ok {
		return nil, syscall.ESTALE
	}
	bits := o.a.Mode
	if c != nil {
		if c.UID == o.a.UID {
			bits >>= 6
		} else if c.GID == o.a.GID || slices.Contains(c.Groups, o.a.GID) {
			bits >>= 3
		}
		if bits&want != want {
			return nil, syscall.EACCES
		}
	}
	return o, nil
}

func (m *memFS) dir(ctx context.Context, c *tree.Cred, oid kml.OID, want uint32) (*memObj, error) {
	o, err := m.enter(ctx, c, oid, want)
	if err == nil && o.kids == nil {
		err = syscall.ENOTDIR
	}
	return o, err
}

func (m *memFS) Lookup(ctx context.Context, c *tree.Cred, parent kml.OID, name string) (tree.Attr, error) {
	d, err := m.dir(ctx, c, parent, 1)
	defer m.mu.Unlock()
	if err != nil {
		return tree.Attr{}, err
	}
	oid, ok := d.kids[name]
	if !ok {
		return tree.Attr{}, syscall.ENOENT
	}
	return m.objs[oid].a, nil
}

func (m *memFS) Parent(ctx context.Context, oid kml.OID) (kml.OID, error) {
	o, err := m.enter(ctx, nil, oid, 0)
	defer m.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return o.parent, nil
}

func (m *memFS) Getattr(ctx context.Context, c *tree.Cred, oid kml.OID) (tree.Attr, error) {
	o, err := m.enter(ctx, nil, oid, 0)
	defer m.mu.Unlock()
	if err != nil {
		return tree.Attr{}, err
	}
	return o.a, nil
}

func (m *memFS) Setattr(ctx context.Context, c *tree.Cred, oid kml.OID, _ tree.Handle, s tree.SetAttr) (tree.Attr, error) {
	o, err := m.enter(ctx, nil, oid, 0)
	defer m.mu.Unlock()
	if err != nil {
		return tree.Attr{}, err
	}
	if c != nil && c.UID != o.a.UID {
		return tree.Attr{}, syscall.EPERM
	}
	now := time.Now().UnixNano()
	for _, f := range []struct {
		m tree.SetMask
		f func()
	}{
		{tree.SetMode, func() { o.a.Mode = o.a.Mode&unix.S_IFMT | s.Mode }},
		{tree.SetUID, func() { o.a.UID = s.UID }},
		{tree.SetGID, func() { o.a.GID = s.GID }},
		{tree.SetAtime, func() { o.a.Atime = s.Atime }},
		{tree.SetMtime, func() { o.a.Mtime = s.Mtime }},
		{tree.SetAtimeNow, func() { o.a.Atime = now }},
		{tree.SetMtimeNow, func() { o.a.Mtime = now }},
		{tree.SetSize, func() { o.resize(int(s.Size)) }},
	} {
		if s.Mask&f.m != 0 {
			f.f()
		}
	}
	o.a.Ctime = now
	return o.a, nil
}

func (o *memObj) resize(n int) {
	for len(o.data) < n {
		o.data = append(o.data, 0)
	}
	o.data, o.a.Size = o.data[:n], uint64(n)
	o.a.DataVersion++
}

func (m *memFS) Readlink(ctx context.Context, _ *tree.Cred, oid kml.OID) (string, error) {
	o, err := m.enter(ctx, nil, oid, 0)
	defer m.mu.Unlock()
	if err != nil {
		return "", err
	}
	return o.target, nil
}

func (m *memFS) Open(ctx context.Context, c *tree.Cred, oid kml.OID, flags int) (tree.Handle, error) {
	want := map[int]uint32{unix.O_RDONLY: 4, unix.O_WRONLY: 2, unix.O_RDWR: 6}[flags&unix.O_ACCMODE]
	o, err := m.enter(ctx, c, oid, want)
	defer m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return m.handle(o, flags), nil
}

func (m *memFS) handle(o *memObj, flags int) *memHandle {
	if flags&unix.O_TRUNC != 0 {
		o.resize(0)
	}
	o.opens++
	return &memHandle{m: m, o: o, flags: flags}
}

func (m *memFS) OpenDir(ctx context.Context, c *tree.Cred, oid kml.OID) (tree.DirHandle, error) {
	o, err := m.dir(ctx, c, oid, 4)
	defer m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return &memDir{m: m, o: o}, nil
}

// add makes a name for o.
func (m *memFS) add(ctx context.Context, c *tree.Cred, parent kml.OID, name string, make func() *memObj) (tree.Attr, error) {
	d, err := m.dir(ctx, c, parent, 3)
	if err != nil {
		return tree.Attr{}, err
	}
	if _, ok := d.kids[name]; ok {
		return tree.Attr{}, syscall.EEXIST
	}
	o := make()
	o.parent = parent
	m.objs[o.a.OID], d.kids[name] = o, o.a.OID
	d.a.Mtime++
	return o.a, nil
}

func (m *memFS) Create(ctx context.Context, c *tree.Cred, parent kml.OID, name string, flags int, mode uint32) (tree.Attr, tree.Handle, error) {
	a, err := m.add(ctx, c, parent, name, func() *memObj { return m.obj(c, unix.S_IFREG|mode) })
	if err == syscall.EEXIST && flags&unix.O_EXCL == 0 {
		a, err = m.objs[m.objs[parent].kids[name]].a, nil
	}
	defer m.mu.Unlock()
	if err != nil {
		return a, nil, err
	}
	h := m.handle(m.objs[a.OID], flags)
	return h.o.a, h, nil
}

func (m *memFS) Mkdir(ctx context.Context, c *tree.Cred, parent kml.OID, name string, mode uint32) (tree.Attr, error) {
	defer m.mu.Unlock()
	return m.add(ctx, c, parent, name, func() *memObj { return m.obj(c, unix.S_IFDIR|mode) })
}

func (m *memFS) Symlink(ctx context.Context, c *tree.Cred, parent kml.OID, name, target string) (tree.Attr, error) {
	defer m.mu.Unlock()
	return m.add(ctx, c, parent, name, func() *memObj {
		o := m.obj(c, unix.S_IFLNK|0o777)
		o.target, o.a.Size = target, uint64(len(target))
		return o
	})
}

func (m *memFS) Mknod(ctx context.Context, c *tree.Cred, parent kml.OID, name string, mode uint32, rdev uint64) (tree.Attr, error) {
	defer m.mu.Unlock()
	return m.add(ctx, c, parent, name, func() *memObj {
		o := m.obj(c, mode)
		o.a.Rdev = rdev
		return o
	})
}

func (m *memFS) Link(ctx context.Context, c *tree.Cred, oid, parent kml.OID, name string) (tree.Attr, error) {
	defer m.mu.Unlock()
	return m.add(ctx, c, parent, name, func() *memObj {
		o := m.objs[oid]
		o.a.Nlink++
		return o
	})
}

func (m *memFS) Unlink(ctx context.Context, c *tree.Cred, parent kml.OID, name string) error {
	return m.drop(ctx, c, parent, name, false)
}

func (m *memFS) Rmdir(ctx context.Context, c *tree.Cred, parent kml.OID, name string) error {
	return m.drop(ctx, c, parent, name, true)
}

func (m *memFS) drop(ctx context.Context, c *tree.Cred, parent kml.OID, name string, dir bool) error {
	d, err := m.dir(ctx, c, parent, 3)
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	o, ok := m.objs[d.kids[name]]
	switch {
	case !ok:
		return syscall.ENOENT
	case dir && o.kids == nil:
		return syscall.ENOTDIR
	case !dir && o.kids != nil:
		return syscall.EISDIR
	case len(o.kids) > 0:
		return syscall.ENOTEMPTY
	}
	delete(d.kids, name)
	m.unname(o)
	return nil
}

func (m *memFS) unname(o *memObj) {
	if o.a.Nlink--; o.a.Nlink == 0 || o.kids != nil {
		o.a.Nlink = 0
		if o.opens == 0 {
			delete(m.objs, o.a.OID)
		}
	}
}

func (m *memFS) Rename(ctx context.Context, c *tree.Cred, parent kml.OID, name string, newParent kml.OID, newName string, _ uint32) error {
	d, err := m.dir(ctx, c, parent, 3)
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	e, oid := m.objs[newParent], d.kids[name]
	if oid == 0 {
		return syscall.ENOENT
	}
	if v, ok := e.kids[newName]; ok {
		m.unname(m.objs[v])
	}
	delete(d.kids, name)
	e.kids[newName] = oid
	m.objs[oid].parent = newParent
	return nil
}

func (m *memFS) Getxattr(ctx context.Context, c *tree.Cred, oid kml.OID, name string) ([]byte, error) {
	o, err := m.enter(ctx, c, oid, 0)
	defer m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	v, ok := o.xattrs[name]
	if !ok {
		return nil, syscall.ENODATA
	}
	return v, nil
}

func (m *memFS) Listxattr(ctx context.Context, c *tree.Cred, oid kml.OID) ([]string, error) {
	o, err := m.enter(ctx, c, oid, 0)
	defer m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(o.xattrs)), nil
}

func (m *memFS) Setxattr(ctx context.Context, c *tree.Cred, oid kml.OID, name string, value []byte, flags int) error {
	o, err := m.enter(ctx, c, oid, 2)
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	_, ok := o.xattrs[name]
	switch {
	case ok && flags&unix.XATTR_CREATE != 0:
		return syscall.EEXIST
	case !ok && flags&unix.XATTR_REPLACE != 0:
		return syscall.ENODATA
	}
	o.xattrs[name] = slices.Clone(value)
	return nil
}

func (m *memFS) Removexattr(ctx context.Context, c *tree.Cred, oid kml.OID, name string) error {
	o, err := m.enter(ctx, c, oid, 2)
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	if _, ok := o.xattrs[name]; !ok {
		return syscall.ENODATA
	}
	delete(o.xattrs, name)
	return nil
}

func (m *memFS) Statfs(context.Context, kml.OID) (tree.Statfs, error) {
	return tree.Statfs{Type: 0xEF53, Bsize: 4096, Blocks: 1000, Bfree: 500, Bavail: 400, Files: 100, Ffree: 50, FsidLow: 7, FsidHigh: 8, Namelen: 255}, nil
}

func (m *memFS) conflict(oid kml.OID, l tree.Lock) *tree.Lock {
	for _, k := range m.locks {
		if k.oid == oid && k.l.Owner != l.Owner && k.l.Start <= l.End && l.Start <= k.l.End &&
			(k.l.Type == unix.F_WRLCK || l.Type == unix.F_WRLCK) {
			return &k.l
		}
	}
	return nil
}

func (m *memFS) SetLock(ctx context.Context, oid kml.OID, l tree.Lock, wait bool) error {
	stop := context.AfterFunc(ctx, func() { m.mu.Lock(); defer m.mu.Unlock(); m.cond.Broadcast() })
	defer stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.Type == unix.F_UNLCK {
		m.locks = slices.DeleteFunc(m.locks, func(k memLock) bool {
			return k.oid == oid && k.l.Owner == l.Owner && l.Start <= k.l.Start && k.l.End <= l.End
		})
		m.cond.Broadcast()
		return nil
	}
	for m.conflict(oid, l) != nil {
		if !wait {
			return syscall.EAGAIN
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		m.cond.Wait()
	}
	m.locks = append(m.locks, memLock{oid, l})
	return nil
}

func (m *memFS) TestLock(_ context.Context, oid kml.OID, l tree.Lock) (tree.Lock, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k := m.conflict(oid, l); k != nil {
		return *k, nil
	}
	l.Type = unix.F_UNLCK
	return l, nil
}

func (m *memFS) Unlock(oid kml.OID, o tree.LockOwner) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.locks = slices.DeleteFunc(m.locks, func(k memLock) bool { return (oid == 0 || k.oid == oid) && k.l.Owner == o })
	m.cond.Broadcast()
}

func (m *memFS) held() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.locks)
}

func (m *memFS) Watch(func(tree.Change)) func() { return func() {} }

type memHandle struct {
	m     *memFS
	o     *memObj
	flags int
}

func (h *memHandle) OID() kml.OID { return h.o.a.OID }

func (h *memHandle) Attr(context.Context) (tree.Attr, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	return h.o.a, nil
}

func (h *memHandle) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if off >= int64(len(h.o.data)) {
		return 0, nil
	}
	return copy(p, h.o.data[off:]), nil
}

func (h *memHandle) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	h.m.doors[tree.DoorOf(ctx)]++
	if h.flags&unix.O_APPEND != 0 {
		off = int64(len(h.o.data))
	}
	h.o.resize(max(len(h.o.data), int(off)+len(p)))
	h.o.clean = false
	return copy(h.o.data[off:], p), nil
}

func (h *memHandle) Flush(context.Context) error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	h.o.clean = true
	return nil
}

func (h *memHandle) Fsync(context.Context, bool) error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	h.m.syncs++
	return nil
}

func (h *memHandle) Allocate(context.Context, uint64, uint64, uint32) error {
	return syscall.EOPNOTSUPP
}

func (h *memHandle) Seek(context.Context, int64, int) (int64, error) { return 0, syscall.ENXIO }

func (h *memHandle) Fd() (int, bool) { return -1, false }

func (h *memHandle) Close() error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	h.o.clean = true
	if h.o.opens--; h.o.opens == 0 && h.o.a.Nlink == 0 {
		delete(h.m.objs, h.o.a.OID)
	}
	return nil
}

type memDir struct {
	m    *memFS
	o    *memObj
	list []tree.DirEntry
}

func (d *memDir) ReadDir(_ context.Context, off uint64, max int) ([]tree.DirEntry, error) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if off == 0 {
		d.list = nil
		for name, oid := range d.o.kids {
			d.list = append(d.list, tree.DirEntry{Name: name, OID: oid, Type: d.m.objs[oid].a.Mode & unix.S_IFMT})
		}
		slices.SortFunc(d.list, func(a, b tree.DirEntry) int { return cmp.Compare(a.Name, b.Name) })
		for i := range d.list {
			d.list[i].Off = uint64(i + 1)
		}
	}
	if off >= uint64(len(d.list)) {
		return nil, nil
	}
	return d.list[off:min(int(off)+max, len(d.list))], nil
}

func (d *memDir) Fsync(context.Context, bool) error {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	d.m.syncs++
	return nil
}

func (d *memDir) Close() error { return nil }
