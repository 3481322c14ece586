package tree

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/local"
)

// cacheHandle is an open file of a Cache. Reading keeps the version it was
// opened on and sees what is written through this cache; writing follows the
// object.
type cacheHandle struct {
	c     *Cache
	o     atomic.Pointer[cacheObject] // another one when its bytes have gone to another object: see Cache.Settle
	flags int
	cred  *Cred

	mu  sync.RWMutex // held for reading by every use of fd, for writing to change it
	fd  int          // -1: not opened yet
	vf  *versionFile // fd is a version's file; nil: local bytes
	gen uint64       // o.gen and o.era that fd belongs to
	era *era

	content uint64 // Attr.Content of what fd has
}

// Open is FS.Open.
func (c *Cache) Open(ctx context.Context, cred *Cred, oid kml.OID, flags int) (Handle, error) {
	obj, err := c.object(ctx, oid)
	if err != nil {
		return nil, err
	}
	switch obj.Attr.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return nil, syscall.EISDIR
	case unix.S_IFLNK:
		return nil, syscall.ELOOP
	default:
		return nil, syscall.EOPNOTSUPP
	}
	if err := cred.may(obj, openRights(flags)); err != nil {
		return nil, err
	}
	h := &cacheHandle{c: c, flags: flags, cred: cred, fd: -1}
	c.objects.attach(h, oid)
	switch {
	case !h.writable():
		err = h.open(ctx)
	case flags&unix.O_TRUNC != 0:
		err = h.truncate(ctx, 0)
	}
	if err != nil {
		h.discard()
		return nil, err
	}
	return h, nil
}

func openRights(flags int) uint32 {
	switch flags & unix.O_ACCMODE {
	case unix.O_RDONLY:
		return unix.R_OK
	case unix.O_WRONLY:
		return unix.W_OK
	}
	return unix.R_OK | unix.W_OK
}

func (h *cacheHandle) writable() bool { return h.flags&unix.O_ACCMODE != unix.O_RDONLY }

// OID is Handle.OID.
func (h *cacheHandle) OID() kml.OID { return h.o.Load().oid }

// Pinned is Pinner.Pinned.
func (h *cacheHandle) Pinned() bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	o := h.hold()
	defer o.mu.RUnlock()
	return !h.writable() && h.fd >= 0 && h.era != o.era
}

// Content is Pinner.Content.
func (h *cacheHandle) Content() uint64 {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if !h.writable() {
		return h.content
	}
	o := h.hold()
	defer o.mu.RUnlock()
	obj, err := h.c.known(o)
	if err != nil {
		return 0
	}
	return obj.content()
}

// Attr is Handle.Attr.
func (h *cacheHandle) Attr(ctx context.Context) (Attr, error) {
	a, err := h.c.Getattr(ctx, nil, h.OID())
	if err != nil || !h.Pinned() {
		return a, err
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	if was := h.era.left.Load(); was != nil {
		k := was.attr()
		a.Size, a.Blocks, a.Mtime, a.DataVersion = k.Size, k.Blocks, k.Mtime, k.DataVersion
	} else {
		var st unix.Stat_t
		if err := unix.Fstat(h.fd, &st); err != nil {
			return a, err
		}
		a.isFile(&st)
	}
	a.Content = h.content
	return a, nil
}

// hold is the handle's object, with its mu held for reading: as long as it is, h
// does not go to another.
func (h *cacheHandle) hold() *cacheObject {
	for {
		o := h.o.Load()
		o.mu.RLock()
		if h.o.Load() == o {
			return o
		}
		o.mu.RUnlock()
	}
}

// stale is true when fd is no longer what h should use. The caller holds o.mu.
func (h *cacheHandle) stale(o *cacheObject) bool {
	if h.fd < 0 {
		return true
	}
	if h.era != o.era {
		return h.writable() // a reader keeps its version
	}
	return h.gen != o.gen
}

// ready makes fd what h should use.
func (h *cacheHandle) ready(ctx context.Context) error {
	h.mu.RLock()
	o := h.hold()
	stale := h.stale(o)
	o.mu.RUnlock()
	h.mu.RUnlock()
	if !stale {
		return nil
	}
	return h.open(ctx)
}

// open opens the object's present bytes. A file up to WholeMax bytes is whole
// when a reader's open returns.
func (h *cacheHandle) open(ctx context.Context) error {
	for range maxCacheRetry {
		vf, err := h.c.current(h.o.Load())
		if err != nil {
			return err
		}
		if vf == nil {
			ok, err := h.adoptLocal()
			if ok || err != nil {
				return err
			}
			continue
		}
		if !h.writable() && vf.size <= h.c.opt.WholeMax {
			err = vf.ensure(ctx, 0, vf.size)
		} else if !h.writable() && !vf.complete() {
			_, err = vf.source() // the version is pinned at the master from now on
		}
		if err != nil {
			v := vf.version
			vf.release()
			if err := h.c.newer(ctx, v, err); err != nil {
				return err
			}
			continue
		}
		ok, err := h.adopt(vf)
		if !ok || err != nil {
			vf.release()
		}
		if ok || err != nil {
			return err
		}
	}
	return syscall.ESTALE
}

// adoptLocal opens the bytes that were written here; ok is false when there
// are none any more.
func (h *cacheHandle) adoptLocal() (ok bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o := h.hold()
	defer o.mu.RUnlock()
	if !o.local {
		return false, nil
	}
	fd, err := openObjectFile(h.c.localPath(o.oid), h.mode())
	if err != nil {
		return false, err
	}
	h.use(o, fd, nil)
	return true, nil
}

// adopt opens a version's file; ok is false when another is present by now.
func (h *cacheHandle) adopt(vf *versionFile) (ok bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o := h.hold()
	defer o.mu.RUnlock()
	if o.vf != vf {
		return false, nil
	}
	fd, err := openObjectFile(vf.path, h.mode())
	if err != nil {
		return false, err
	}
	h.use(o, fd, vf)
	return true, nil
}

func (h *cacheHandle) mode() int {
	if h.writable() {
		return unix.O_RDWR
	}
	return unix.O_RDONLY
}

// use makes fd the handle's. The caller holds h.mu and, for reading, o.mu, under
// which the index changes what it says of the contents.
func (h *cacheHandle) use(o *cacheObject, fd int, vf *versionFile) {
	if obj, err := h.c.known(o); err == nil {
		h.content = obj.content()
	}
	if h.fd >= 0 {
		unix.Close(h.fd)
	}
	if h.vf != nil {
		h.vf.release()
	}
	h.fd, h.vf, h.gen, h.era = fd, vf, o.gen, o.era
}

// ReadAt is Handle.ReadAt.
func (h *cacheHandle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, syscall.EINVAL
	}
	for range maxCacheRetry {
		if err := h.ready(ctx); err != nil {
			return 0, err
		}
		n, err := h.readOnce(ctx, p, off)
		if h.writable() && errors.Is(err, syscall.ESTALE) {
			if err := h.follow(ctx, err); err != nil {
				return 0, err
			}
			continue
		}
		return n, err
	}
	return 0, syscall.ESTALE
}

// follow waits until the version that replaced the handle's is here.
func (h *cacheHandle) follow(ctx context.Context, err error) error {
	h.mu.RLock()
	vf := h.vf
	h.mu.RUnlock()
	if vf == nil {
		return err
	}
	return h.c.newer(ctx, vf.version, err)
}

func (h *cacheHandle) readOnce(ctx context.Context, p []byte, off int64) (int, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.fd < 0 {
		return 0, syscall.EBADF
	}
	if h.vf != nil {
		if err := h.vf.ensure(ctx, uint64(off), uint64(len(p))); err != nil {
			return 0, err
		}
	}
	return preadFull(h.fd, p, off)
}

// change runs one change of contents: the object is in the dirty table before
// it, and no store is cut in the middle of it.
func (h *cacheHandle) change(ctx context.Context, f func(o *cacheObject, fd int) error) error {
	if !h.writable() {
		return syscall.EBADF
	}
	for range maxCacheRetry {
		if err := h.c.makeDirty(ctx, h.o.Load(), h.cred, false); err != nil {
			return err
		}
		if err := h.ready(ctx); err != nil {
			return err
		}
		if done, err := h.changeOnce(ctx, f); done {
			return err
		}
	}
	return syscall.ESTALE
}

func (h *cacheHandle) changeOnce(ctx context.Context, f func(o *cacheObject, fd int) error) (done bool, err error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	o := h.hold()
	defer o.mu.RUnlock()
	if !o.dirty || h.stale(o) {
		return false, nil
	}
	o.writes.Add(1)
	if err := f(o, h.fd); err != nil {
		return true, err
	}
	o.last.Store(h.c.opt.Now().UnixNano())
	h.c.watch.emit(Change{Kind: ChangeData | ChangeAttr, OID: o.oid, Door: DoorOf(ctx)})
	return true, nil
}

// WriteAt is Handle.WriteAt.
func (h *cacheHandle) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, syscall.EINVAL
	}
	n := 0
	err := h.change(ctx, func(o *cacheObject, fd int) error {
		at := off
		if h.flags&unix.O_APPEND != 0 {
			o.append.Lock() // the end is looked for and written to in one
			defer o.append.Unlock()
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				return err
			}
			at = st.Size
		}
		var err error
		n, err = pwriteFull(fd, p, at)
		return err
	})
	return n, err
}

// truncate sets the size. Cutting to nothing needs none of the old bytes.
func (h *cacheHandle) truncate(ctx context.Context, size uint64) error {
	if size > 1<<63-1 {
		return syscall.EFBIG
	}
	if size == 0 {
		if err := h.c.makeDirty(ctx, h.o.Load(), h.cred, true); err != nil {
			return err
		}
	}
	return h.change(ctx, func(_ *cacheObject, fd int) error { return unix.Ftruncate(fd, int64(size)) })
}

// cut is Cache.cut of the object that h belongs to.
func (h *cacheHandle) cut() (*local.Entry, error) {
	for {
		o := h.o.Load()
		if e, err := h.c.cut(o); err != nil || h.o.Load() == o {
			return e, err
		}
	}
}

// Flush is Handle.Flush. With SyncClose it waits as Fsync does.
func (h *cacheHandle) Flush(ctx context.Context) error {
	if !h.writable() {
		return nil
	}
	s, err := h.cut()
	if s == nil || err != nil || !h.c.opt.SyncClose {
		return err
	}
	return h.c.up.Settle(ctx, s)
}

// Fsync is Handle.Fsync: the bytes are on the disk here and, while the master
// can be reached, with it.
func (h *cacheHandle) Fsync(ctx context.Context, datasync bool) error {
	h.mu.RLock()
	if h.fd >= 0 {
		if err := unix.Fdatasync(h.fd); err != nil {
			h.mu.RUnlock()
			return err
		}
	}
	h.mu.RUnlock()
	s, err := h.cut()
	if s == nil || err != nil {
		return err
	}
	return h.c.up.Settle(ctx, s)
}

// Allocate is Handle.Allocate.
func (h *cacheHandle) Allocate(ctx context.Context, off, length uint64, mode uint32) error {
	if off > 1<<63-1 || length > 1<<63-1 || length == 0 {
		return syscall.EINVAL
	}
	return h.change(ctx, func(_ *cacheObject, fd int) error { return unix.Fallocate(fd, mode, int64(off), int64(length)) })
}

// Seek is Handle.Seek.
func (h *cacheHandle) Seek(ctx context.Context, off int64, whence int) (int64, error) {
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, syscall.EINVAL
	}
	if err := h.ready(ctx); err != nil {
		return 0, err
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.vf != nil && !h.vf.complete() {
		// What is not here cannot be told from a hole: it counts as data.
		switch {
		case off < 0 || uint64(off) >= h.vf.size:
			return 0, syscall.ENXIO
		case whence == unix.SEEK_DATA:
			return off, nil
		}
		return int64(h.vf.size), nil
	}
	return unix.Seek(h.fd, off, whence)
}

// Fd is Handle.Fd.
func (h *cacheHandle) Fd() (int, bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	o := h.hold()
	defer o.mu.RUnlock()
	if h.writable() || o.local || h.fd < 0 || h.stale(o) || h.vf == nil || !h.vf.complete() {
		return -1, false
	}
	return h.fd, true
}

// Close is Handle.Close.
func (h *cacheHandle) Close() error {
	// Closing is not the closer's to cancel.
	err := h.Flush(context.Background())
	h.discard()
	return err
}

func (h *cacheHandle) discard() {
	h.mu.Lock()
	if h.fd >= 0 {
		unix.Close(h.fd)
		h.fd = -1
	}
	if h.vf != nil {
		h.vf.release()
		h.vf = nil
	}
	h.mu.Unlock()
	h.c.objects.detach(h)
}

// truncateObject is truncate(2): a size change through h, or without a handle,
// which cuts its store at once.
func (c *Cache) truncateObject(ctx context.Context, cred *Cred, oid kml.OID, h Handle, size uint64) error {
	if ch, ok := h.(*cacheHandle); ok && ch.c == c && ch.writable() {
		return ch.truncate(ctx, size)
	}
	n, err := c.Open(ctx, cred, oid, unix.O_WRONLY)
	if err != nil {
		return err
	}
	err = n.(*cacheHandle).truncate(ctx, size)
	return errors.Join(err, n.Close())
}

// Truncate is the size half of FS.Setattr.
func (c *Cache) Truncate(ctx context.Context, cred *Cred, oid kml.OID, h Handle, size uint64) error {
	return c.truncateObject(ctx, cred, oid, h, size)
}

// SetLocalMtime gives bytes that are open-dirty their modification time: the
// store that is cut next carries it, so no record is needed. ok is false when
// the object is not open-dirty.
func (c *Cache) SetLocalMtime(oid kml.OID, mtime int64) (ok bool, err error) {
	o := c.objects.find(oid)
	if o == nil {
		return false, nil
	}
	defer c.objects.release(o)
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.dirty {
		return false, nil
	}
	ts := []unix.Timespec{timespec(utimeOmit), timespec(mtime)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, c.localPath(oid), ts, 0); err != nil {
		return true, err
	}
	o.writes.Add(1)
	c.watch.emit(Change{Kind: ChangeAttr, OID: oid})
	return true, nil
}

// LinkVersion gives the whole contents of a version another name; ErrNotExist
// when they are not here.
func (c *Cache) LinkVersion(oid kml.OID, v kml.Position, path string) error {
	obj, err := c.index.Load().Get(oid)
	if err != nil || obj.DataVersion != v || !obj.Whole {
		return os.ErrNotExist
	}
	return os.Link(c.objectPath(oid, v), path)
}
