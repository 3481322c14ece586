package tree

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// handle is an open file of a Tree. Reading keeps the inode it was opened on;
// writing follows the object when a replacement gives it another inode.
type handle struct {
	t     *Tree
	obj   *openObject
	flags int
	cred  *Cred

	mu  sync.RWMutex // held for reading by every use of fd, for writing by reopen and Close
	fd  atomic.Int64
	gen atomic.Uint64 // obj.gen the descriptor belongs to
	// content is Attr.Content of the descriptor's inode; 0 until it is asked for.
	content atomic.Uint64
	// left is Attr.DataVersion from when the descriptor's inode was replaced.
	left atomic.Uint64
}

// noGen is no generation of an object: of a descriptor that was left behind
// before its handle was entered.
const noGen = ^uint64(0)

// handle makes a handle of fd, a descriptor of oid's inode of generation gen; ok
// is false, and fd still the caller's, when that has been replaced.
func (s *objects) handle(t *Tree, oid kml.OID, fd, flags int, c *Cred, gen uint64) (h *handle, ok bool) {
	h = &handle{t: t, obj: s.acquire(oid), flags: flags, cred: c}
	h.fd.Store(int64(fd))
	h.gen.Store(gen)
	s.mu.Lock() // a replacement that begins later finds h
	if ok = gen == noGen || h.obj.gen.Load() == gen; ok {
		h.obj.handles[h] = struct{}{}
	}
	s.mu.Unlock()
	if !ok {
		s.release(h.obj)
	}
	return h, ok
}

// Open is FS.Open.
func (t *Tree) Open(ctx context.Context, c *Cred, oid kml.OID, flags int) (Handle, error) {
	o := t.objects.acquire(oid)
	defer t.objects.release(o)
	for range maxRetry {
		f, err := t.openFile(ctx, c, o, flags)
		if err != nil {
			return nil, err
		}
		h, ok := t.objects.handle(t, oid, f.fd, flags, c, f.gen)
		f.release()
		if !ok {
			unix.Close(f.fd)
			continue // replaced while it was opened
		}
		h.content.Store(f.content)
		if flags&unix.O_TRUNC != 0 && h.writable() {
			if err := h.truncate(ctx, 0); err != nil {
				return nil, errors.Join(err, h.Close())
			}
		}
		return h, nil
	}
	return nil, syscall.ESTALE
}

// created is the handle of a file that was made with its descriptor; inode is
// that one's handle.
func (t *Tree) created(oid kml.OID, inode []byte, fd, flags int, c *Cred) *handle {
	o := t.objects.acquire(oid)
	defer t.objects.release(o)
	for {
		gen := o.still()
		obj, err := t.index.Get(oid)
		if err == nil && len(inode) > 0 && !obj.is(inode) {
			gen = noGen // replaced as soon as it was visible
		}
		if h, ok := t.objects.handle(t, oid, fd, flags, c, gen); ok {
			return h
		}
	}
}

// openedFile is a regular file that was opened.
type openedFile struct {
	fd      int
	content uint64 // Attr.Content of it, or 0
	gen     uint64 // the generation of its openObject, unless that has another by now
	release func() // until then nobody replaces it, where that can be had
}

// openFile opens the regular file that o is of as c. release is to be called.
func (t *Tree) openFile(ctx context.Context, c *Cred, o *openObject, flags int) (f openedFile, err error) {
	if c.asProcess() && flags&unix.O_TRUNC == 0 {
		if f, ok := t.openDirect(o, flags); ok {
			return f, nil
		}
	}
	f = openedFile{fd: -1, gen: o.still(), release: func() {}}
	err = t.at(ctx, nil, o.oid, func(p place) error {
		var st unix.Stat_t
		if err := unix.Fstat(p.fd, &st); err != nil {
			return err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
		case unix.S_IFDIR:
			return syscall.EISDIR
		case unix.S_IFLNK:
			return syscall.ELOOP
		default:
			return syscall.EOPNOTSUPP
		}
		if flags&unix.O_TRUNC == 0 || flags&unix.O_ACCMODE == unix.O_RDONLY {
			if err := t.whole(ctx, p); err != nil {
				return err
			}
		}
		return c.as(func() (err error) {
			f.fd, err = unix.Open(p.path(), flags&openFlags|unix.O_CLOEXEC, 0)
			return err
		})
	})
	return f, err
}

// openFlags are what an open of a file takes from its caller.
const openFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_NOATIME

// openDirect opens a file that nothing is known against by its name, and looks
// afterwards whether it is the one meant. ok is false where that takes another
// way.
func (t *Tree) openDirect(o *openObject, flags int) (f openedFile, ok bool) {
	oid := o.oid
	obj, err := t.index.Get(oid)
	if err != nil || obj.Attr.Mode&unix.S_IFMT != unix.S_IFREG || len(obj.Handle) == 0 || t.suspect.Load() != nil {
		return f, false
	}
	if _, bad := t.damage.has(oid); bad {
		return f, false
	}
	mu := t.names.of(obj.Parent)
	mu.RLock()
	defer func() {
		if !ok {
			mu.RUnlock()
		}
	}()
	gen := o.gen.Load()
	if gen&1 != 0 {
		return f, false
	}
	ref, err := t.dirs.get(obj.Parent)
	if err != nil {
		return f, false
	}
	defer ref.release()
	// What stands there instead by now must not make the open wait.
	fd, err := unix.Openat(ref.fd, obj.Name, flags&openFlags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return f, false
	}
	var st unix.Statx_t
	if err = statAt(fd, "", &st); err == nil {
		_, err = t.verify(fd, "", obj, &st)
	}
	if err != nil {
		unix.Close(fd)
		return f, false
	}
	a := Attr{Mode: unix.S_IFREG}
	a.contentIs(obj.Handle)
	return openedFile{fd, a.Content, gen, mu.RUnlock}, true
}

func (h *handle) writable() bool { return h.flags&unix.O_ACCMODE != unix.O_RDONLY }

// OID is Handle.OID.
func (h *handle) OID() kml.OID { return h.obj.oid }

// Pinned is Pinner.Pinned.
func (h *handle) Pinned() bool { return !h.writable() && h.gen.Load() != h.obj.gen.Load() }

// Content is Pinner.Content.
func (h *handle) Content() uint64 {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.contentLocked()
}

// contentLocked is Content for who holds h.mu.
func (h *handle) contentLocked() uint64 {
	if v := h.content.Load(); v != 0 {
		return v
	}
	var raw rawHandle
	if raw.at(int(h.fd.Load()), "") != nil {
		return 0
	}
	a := Attr{Mode: unix.S_IFREG}
	a.contentIs(raw.bytes())
	h.content.Store(a.Content)
	return a.Content
}

// Attr is Handle.Attr.
func (h *handle) Attr(ctx context.Context) (Attr, error) {
	for range maxRetry {
		if h.writable() {
			if err := h.follow(ctx); err != nil {
				return Attr{}, err
			}
		}
		gen := h.obj.still()
		a, own, err := h.attrOnce()
		if err != nil {
			return Attr{}, err
		}
		if h.obj.gen.Load() != gen || own != gen && h.writable() {
			continue
		}
		if own != gen {
			a.DataVersion = h.left.Load()
		}
		return a, nil
	}
	return Attr{}, syscall.ESTALE
}

// attrOnce is the attributes of h's inode, and the generation it is of.
func (h *handle) attrOnce() (a Attr, gen uint64, err error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	obj, err := h.t.objectOrGone(h.obj.oid)
	if err != nil {
		return Attr{}, 0, err
	}
	if a, _, err = h.t.joinedAttr(obj, int(h.fd.Load())); err != nil {
		return Attr{}, 0, err
	}
	a.Content = h.contentLocked()
	return a, h.gen.Load(), nil
}

// ReadAt is Handle.ReadAt.
func (h *handle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if h.writable() {
		if err := h.follow(ctx); err != nil && !errors.Is(err, syscall.ESTALE) && !errors.Is(err, syscall.ENOENT) {
			return 0, err
		}
	}
	if h.t.replica != nil { // a large file may be patched where it lies
		h.obj.mu.RLock()
		defer h.obj.mu.RUnlock()
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	return preadFull(int(h.fd.Load()), p, off)
}

func preadFull(fd int, p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		m, err := unix.Pread(fd, p[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return n, nil
}

// follow gives a handle open for writing the object's present inode.
func (h *handle) follow(ctx context.Context) error {
	if h.gen.Load() == h.obj.gen.Load() {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for range maxRetry {
		if h.gen.Load() == h.obj.still() {
			return nil
		}
		f, err := h.t.openFile(ctx, nil, h.obj, h.flags)
		if err != nil {
			return err
		}
		f.release()
		if h.obj.gen.Load() != f.gen {
			unix.Close(f.fd)
			continue
		}
		s := &h.t.objects
		s.mu.Lock() // dup takes a descriptor under it
		old := h.fd.Swap(int64(f.fd))
		h.content.Store(f.content)
		h.gen.Store(f.gen)
		s.mu.Unlock()
		unix.Close(int(old))
	}
	return nil
}

// change runs one change of contents: the object is in the dirty table before
// it, and no store is cut in the middle of it.
func (h *handle) change(ctx context.Context, f func(fd int) error) error {
	if !h.writable() {
		return syscall.EBADF
	}
	for {
		if err := h.follow(ctx); err != nil {
			return err
		}
		if err := h.dropPrivs(ctx); err != nil {
			return err
		}
		done, err := h.changeOnce(ctx, f)
		if done {
			return err
		}
	}
}

func (h *handle) changeOnce(ctx context.Context, f func(fd int) error) (done bool, err error) {
	o := h.obj
	o.mu.RLock()
	defer o.mu.RUnlock()
	if h.gen.Load() != o.gen.Load() {
		return false, nil
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	door := DoorOf(ctx)
	if err := h.t.willWrite(o, h.cred, door); err != nil {
		return true, err
	}
	if err := f(int(h.fd.Load())); err != nil {
		return true, err
	}
	fault.Point("tree.write")
	h.t.watch.emit(Change{Kind: ChangeData | ChangeAttr, OID: o.oid, Door: door})
	return true, nil
}

// dirtied notes a changed range.
func (o *openObject) dirtied(off, n uint64) {
	o.dmu.Lock()
	o.extents.add(off, n)
	o.dmu.Unlock()
}

// WriteAt is Handle.WriteAt.
func (h *handle) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	n := 0
	err := h.change(ctx, func(fd int) error {
		start := off
		if h.flags&unix.O_APPEND != 0 {
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				return err
			}
			start = st.Size
		}
		var err error
		n, err = pwriteFull(fd, p, off)
		length := uint64(n)
		if h.flags&unix.O_APPEND != 0 {
			length = ^uint64(0) - uint64(start) // others may have appended in between
		}
		if n > 0 {
			h.obj.dirtied(uint64(start), length)
		}
		return err
	})
	return n, err
}

func pwriteFull(fd int, p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		m, err := unix.Pwrite(fd, p[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

func (h *handle) truncate(ctx context.Context, size uint64) error {
	return h.change(ctx, func(fd int) error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		h.obj.dirtied(min(size, uint64(st.Size)), ^uint64(0)-size)
		if err := unix.Ftruncate(fd, int64(size)); err != nil || size > 0 {
			return err
		}
		return h.t.damage.clear(h.obj.oid) // whatever was in it is gone on purpose
	})
}

// truncate sets a size: through h when it can write, else as its own open,
// which cuts a store at once.
func (t *Tree) truncate(ctx context.Context, c *Cred, oid kml.OID, h Handle, size uint64) error {
	if int64(size) < 0 {
		return syscall.EINVAL
	}
	if h, ok := h.(*handle); ok && h.writable() {
		return h.truncate(ctx, size)
	}
	flags := unix.O_WRONLY
	if size == 0 {
		flags |= unix.O_TRUNC
	}
	own, err := t.Open(ctx, c, oid, flags)
	if err != nil {
		return err
	}
	return errors.Join(own.(*handle).truncate(ctx, size), own.Close())
}

// Allocate is Handle.Allocate.
func (h *handle) Allocate(ctx context.Context, off, length uint64, mode uint32) error {
	return h.change(ctx, func(fd int) error {
		if err := unix.Fallocate(fd, mode, int64(off), int64(length)); err != nil {
			return err
		}
		if mode&(unix.FALLOC_FL_COLLAPSE_RANGE|unix.FALLOC_FL_INSERT_RANGE) != 0 {
			length = ^uint64(0) - off // everything behind it moved
		}
		h.obj.dirtied(off, length)
		return nil
	})
}

// Seek is Handle.Seek.
func (h *handle) Seek(_ context.Context, off int64, whence int) (int64, error) {
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, syscall.EINVAL
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	return unix.Seek(int(h.fd.Load()), off, whence)
}

// Flush is Handle.Flush.
func (h *handle) Flush(context.Context) error {
	if !h.writable() {
		return nil
	}
	return h.t.answer(h.t.cut(h.obj))
}

// Fsync is Handle.Fsync: the file, and the log up to its last store. What was
// written here is in the log then, and the commit syncs it with the rest.
func (h *handle) Fsync(ctx context.Context, datasync bool) error {
	written := h.obj.dirty.Load()
	if err := h.t.cut(h.obj); err != nil {
		return err
	}
	if written {
		if _, err := h.t.index.Get(h.obj.oid); err == nil {
			return h.t.commit(ctx)
		}
	}
	h.mu.RLock()
	fd := int(h.fd.Load())
	sync := unix.Fsync
	if datasync {
		sync = unix.Fdatasync
	}
	err := h.t.synced(sync(fd))
	h.mu.RUnlock()
	if err != nil {
		return err
	}
	return h.t.commit(ctx)
}

// Fd is Handle.Fd: a handle that cannot write may be read past the tree.
func (h *handle) Fd() (fd int, ok bool) {
	fd = int(h.fd.Load())
	return fd, !h.writable() && (h.t.replica == nil || !h.t.replica.patches(fd))
}

// Close is Handle.Close.
func (h *handle) Close() error {
	err := h.Flush(h.t.ctx)
	h.discard()
	return err
}

// discard forgets the handle and closes its descriptor.
func (h *handle) discard() {
	s := &h.t.objects
	s.mu.Lock()
	delete(h.obj.handles, h)
	s.mu.Unlock()
	h.mu.Lock()
	unix.Close(int(h.fd.Load()))
	h.mu.Unlock()
	s.release(h.obj)
}
