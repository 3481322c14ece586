package tree

import (
	"context"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// VersionHandle reads one version of a file's contents: the bytes of one store,
// never a mix. Its methods may be called at the same time.
type VersionHandle struct {
	t     *Tree
	obj   *openObject
	fd    int
	attr  Attr
	copy  bool   // fd is our own snapshot
	count uint64 // obj.writes at the store
	gen   uint64
}

// snapshotMax bounds the copy made of a file that somebody has open for
// writing, where the file system cannot share blocks.
const snapshotMax = 64 << 20

// OpenVersion opens the present version of a regular file. An open-dirty one
// gets its store cut first. Of a file somebody holds open for writing a
// snapshot is taken (shared blocks, or a copy up to 64 MiB).
func (t *Tree) OpenVersion(ctx context.Context, oid kml.OID) (*VersionHandle, error) {
	o := t.objects.acquire(oid)
	v, err := t.openVersion(ctx, o)
	if err != nil {
		t.objects.release(o)
		return nil, err
	}
	return v, nil
}

func (t *Tree) openVersion(ctx context.Context, o *openObject) (*VersionHandle, error) {
	for range maxRetry {
		f, err := t.openFile(ctx, nil, o, unix.O_RDONLY)
		if err != nil {
			return nil, err
		}
		f.release()
		v := &VersionHandle{t: t, obj: o, fd: f.fd, gen: f.gen}
		if err := v.pin(); err != nil {
			unix.Close(f.fd)
			return nil, err
		}
		if v.copy || o.gen.Load() == f.gen {
			return v, nil
		}
		unix.Close(v.fd)
	}
	return nil, syscall.ESTALE
}

// pin settles which version v is, with no write going on.
func (v *VersionHandle) pin() error {
	o, t := v.obj, v.t
	defer t.objs.lock(o.oid).unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := t.cutLocked(o); err != nil {
		return err
	}
	obj, err := t.index.Get(o.oid)
	if errors.Is(err, ErrNotFound) || err == nil && t.replica != nil && lacking(obj) {
		return syscall.ESTALE
	}
	if err != nil {
		return err
	}
	var st unix.Statx_t
	if err := unix.Statx(v.fd, "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
		return err
	}
	v.attr = t.attrOf(obj, &st)
	v.count = o.writes.Load()
	if !t.objects.hasWriter(o) {
		return nil
	}
	fd, err := t.snapshot(v.fd, int64(st.Size))
	if err != nil || fd < 0 {
		return err
	}
	unix.Close(v.fd)
	v.fd, v.copy = fd, true
	return nil
}

func (s *objects) hasWriter(o *openObject) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for h := range o.handles {
		if h.writable() {
			return true
		}
	}
	return false
}

// snapshot copies src into a nameless file of the stage; -1 when it is too
// large for a copy.
func (t *Tree) snapshot(src int, size int64) (int, error) {
	fd, err := unix.Open(t.Stage(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, err
	}
	if unix.IoctlFileClone(fd, src) == nil {
		return fd, nil
	}
	if size > snapshotMax {
		unix.Close(fd)
		return -1, nil
	}
	if err := copyRange(fd, src, size); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// copyRange copies the first size bytes by plain reads and writes, which is
// faster than copy_file_range(2) where blocks cannot be shared.
func copyRange(dst, src int, size int64) error {
	buf := make([]byte, min(size+1, 1<<20))
	for off := int64(0); off < size; {
		n, err := preadFull(src, buf[:min(int64(len(buf)), size-off)], off)
		if err != nil {
			return err
		}
		if n == 0 {
			return unix.Ftruncate(dst, size)
		}
		if _, err := pwriteFull(dst, buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// Attr is the file's attributes at this version; DataVersion is its store's
// position.
func (v *VersionHandle) Attr() Attr { return v.attr }

// ReadAt reads like Handle.ReadAt; ESTALE once the bytes are no longer to be had.
func (v *VersionHandle) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	n, err := preadFull(v.fd, p, off)
	if err != nil || v.copy {
		return n, err
	}
	// A write counts before it changes a byte, so an unmoved count means that
	// what was read is older than any write.
	if v.obj.writes.Load() != v.count && v.obj.gen.Load() == v.gen {
		return 0, syscall.ESTALE
	}
	var st unix.Statx_t
	if err := unix.Statx(v.fd, "", unix.AT_EMPTY_PATH, unix.STATX_MTIME|unix.STATX_SIZE, &st); err != nil {
		return 0, err
	}
	if st.Size != v.attr.Size || nsOf(st.Mtime) != v.attr.Mtime && v.foreign() {
		return 0, syscall.ESTALE
	}
	return n, nil
}

// foreign is true when a moved modification time was not set through the tree.
func (v *VersionHandle) foreign() bool {
	obj, err := v.t.index.Get(v.obj.oid)
	return err != nil || uint64(obj.DataVersion) != v.attr.DataVersion || !v.sameAsIndex(obj)
}

func (v *VersionHandle) sameAsIndex(obj *Object) bool {
	var st unix.Statx_t
	if err := unix.Statx(v.fd, "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
		return false
	}
	return fingerprint(&st) == obj.Fp
}

// Close releases the handle.
func (v *VersionHandle) Close() error {
	err := unix.Close(v.fd)
	v.t.objects.release(v.obj)
	return err
}
