package tree

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// place is where an object can be reached for the length of one call: an
// O_PATH descriptor of the object itself, verified against the index.
type place struct {
	fd  int
	obj *Object
	// handle is the inode's, where it was compared with the index; else empty.
	handle []byte
}

// path names the object for system calls that take no descriptor. Following
// the link jumps straight to the object, whatever its type (proc(5)).
func (p place) path() string { return "/proc/self/fd/" + strconv.Itoa(p.fd) }

// maxRetry bounds how often an operation starts over because others were quicker.
const maxRetry = 16

var (
	errMismatch = errors.New("disk and index disagree")
	errAgain    = errors.New("changed while it was locked")
)

// at calls f with the object's place. The folder it was found in is
// read-locked only while it is looked up, so f may take locks.
func (t *Tree) at(ctx context.Context, c *Cred, oid kml.OID, f func(p place) error) error {
	p, err := t.open(ctx, oid)
	if err != nil {
		return err
	}
	defer unix.Close(p.fd)
	return c.as(func() error { return f(p) })
}

// atLocked is at with the object's lock held, for changes of the inode: it is
// still the object's when f runs. A folder's entries, which move its times,
// stay as they are.
func (t *Tree) atLocked(ctx context.Context, oid kml.OID, f func(p place) error) error {
	for range maxRetry {
		stale := false
		err := t.at(ctx, nil, oid, func(p place) error {
			defer t.names.lock(oid).unlock()
			defer t.objs.lock(oid).unlock()
			if stale = !t.current(p); stale {
				return nil
			}
			return f(p)
		})
		if !stale || err != nil {
			return err
		}
	}
	return syscall.ESTALE
}

// current reports whether p holds the inode the index has for its object now.
// One without a name has none but the one that is open.
func (t *Tree) current(p place) bool {
	o, err := t.index.Get(p.obj.OID)
	if err != nil {
		return errors.Is(err, ErrNotFound)
	}
	if len(p.handle) > 0 {
		return o.is(p.handle)
	}
	return t.verifyName(p.fd, "", o) == nil
}

// open finds oid on disk. The caller closes the descriptor.
func (t *Tree) open(ctx context.Context, oid kml.OID) (place, error) {
	if fd, ok := t.objects.dup(oid); ok {
		obj, err := t.index.Get(oid)
		if err != nil {
			obj = &Object{OID: oid}
		}
		return place{fd: fd, obj: obj}, nil
	}
	for range maxRetry {
		obj, err := t.index.Get(oid)
		if errors.Is(err, ErrNotFound) {
			return place{}, syscall.ESTALE
		}
		if err != nil {
			return place{}, err
		}
		fd, err := t.openNamed(obj)
		if err == nil {
			return place{fd: fd, obj: obj, handle: obj.Handle}, nil
		}
		if !errors.Is(err, errMismatch) {
			return place{}, err
		}
		if err := t.reconcileObject(ctx, obj); err != nil {
			return place{}, err
		}
	}
	return place{}, syscall.ESTALE
}

// openNamed opens the object at the name the index has for it.
func (t *Tree) openNamed(obj *Object) (int, error) {
	if obj.OID == kml.RootOID {
		return unix.Openat(t.rootfd, ".", unix.O_PATH|unix.O_CLOEXEC, 0)
	}
	mu := t.names.of(obj.Parent)
	mu.RLock()
	defer mu.RUnlock()
	ref, err := t.dirs.get(obj.Parent)
	if err != nil {
		return -1, mismatch(err)
	}
	defer ref.release()
	fd, err := unix.Openat(ref.fd, obj.Name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, mismatch(err)
	}
	if t.verifyName(fd, "", obj) != nil {
		unix.Close(fd)
		return -1, errMismatch
	}
	return fd, nil
}

// is reports whether h is the handle the index knows. An object whose handle
// is not known yet (its record was found behind the index) is told by name.
func (o *Object) is(h []byte) bool {
	return len(o.Handle) == 0 || string(o.Handle) == string(h)
}

// mismatch turns "not there" into a reason to look at the disk again.
func mismatch(err error) error {
	if errors.Is(err, ErrNotFound) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) || errors.Is(err, errMoved) {
		return errMismatch
	}
	return err
}

// checkName is the contract of FS for names.
func checkName(parent kml.OID, name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return syscall.EINVAL
	case len(name) > 255:
		return syscall.ENAMETOOLONG
	case parent == kml.RootOID && name == ExtDirName:
		return syscall.EPERM
	}
	return nil
}

// child is an entry as the disk has it.
type child struct {
	oid    kml.OID
	obj    *Object
	st     unix.Statx_t
	handle []byte
}

const statxMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME

// child looks name up under the folder's lock, which the caller holds. A
// missing name is ENOENT; disk and index telling different things errMismatch.
func (t *Tree) child(dirfd int, parent kml.OID, name string) (child, error) {
	var k child
	oid, _, known := t.index.Child(parent, name)
	err := statAt(dirfd, name, &k.st)
	if err == syscall.ENOENT {
		if known {
			return k, errMismatch
		}
		return k, syscall.ENOENT
	}
	if err != nil {
		return k, err
	}
	if !known {
		return k, errMismatch
	}
	if k.obj, err = t.index.Get(oid); err != nil {
		return k, errMismatch
	}
	k.oid = oid
	if t.replica != nil && len(k.obj.Handle) == 0 {
		return k, errMismatch // it is on its way
	}
	k.handle, err = t.verify(dirfd, name, k.obj, &k.st)
	return k, err
}

// childOnly is child for who needs no attributes.
func (t *Tree) childOnly(dirfd int, parent kml.OID, name string) (k child, err error) {
	oid, _, known := t.index.Child(parent, name)
	if !known {
		return t.child(dirfd, parent, name)
	}
	if k.obj, err = t.index.Get(oid); err != nil || len(k.obj.Handle) == 0 {
		return t.child(dirfd, parent, name)
	}
	k.oid, k.handle = oid, k.obj.Handle
	return k, t.verifyName(dirfd, name, k.obj)
}

// inDir calls f with the folder locked (for writing when write is set) and an
// O_PATH descriptor of it; f returning errMismatch for a name makes the tree
// look at that name on disk, journal what it finds, and try again.
func (t *Tree) inDir(ctx context.Context, parent kml.OID, name string, write bool, f func(dirfd int) error) error {
	for range maxRetry {
		err := t.inDirOnce(parent, write, f)
		if !errors.Is(err, errMismatch) {
			return err
		}
		if write {
			ctx = settling(ctx)
		}
		if t.leaves(ctx) && !t.onDisk(Name{parent, name}) {
			return syscall.ENOENT
		}
		if err := t.reconcileName(ctx, parent, name); err != nil {
			return err
		}
		if t.replica != nil && !t.replica.has(Name{parent, name}) {
			return syscall.ENOENT // it is on its way
		}
	}
	if _, _, known := t.index.Child(parent, name); !known {
		return syscall.ENOENT // nothing that can be taken in, such as a mount point
	}
	return syscall.ESTALE
}

// inDirEmptied is inDir for writing when name may be a folder that goes: no
// entry of it can change meanwhile.
func (t *Tree) inDirEmptied(ctx context.Context, parent kml.OID, name string, f func(dirfd int) error) error {
	for range maxRetry {
		err := func() error {
			oid, _, _ := t.index.Child(parent, name)
			defer t.names.lock(parent, oid).unlock()
			if now, _, _ := t.index.Child(parent, name); now != oid {
				return errAgain
			}
			return t.inLocked(parent, f)
		}()
		switch {
		case errors.Is(err, errMismatch):
			if err := t.reconcileName(settling(ctx), parent, name); err != nil {
				return err
			}
		case !errors.Is(err, errAgain):
			return err
		}
	}
	return syscall.ESTALE
}

func (t *Tree) inDirOnce(parent kml.OID, write bool, f func(dirfd int) error) error {
	mu := t.names.of(parent)
	if write {
		mu.Lock()
		defer mu.Unlock()
	} else {
		mu.RLock()
		defer mu.RUnlock()
	}
	return t.inLocked(parent, f)
}

// inLocked calls f with the descriptor of a folder that the caller has locked.
func (t *Tree) inLocked(parent kml.OID, f func(dirfd int) error) error {
	ref, err := t.dirs.get(parent)
	if err != nil {
		return mapDirErr(err)
	}
	defer ref.release()
	return f(ref.fd)
}

// mapDirErr says of a folder that cannot be reached what a caller expects.
func mapDirErr(err error) error {
	if errors.Is(err, ErrNotFound) || errors.Is(err, errMoved) || errors.Is(err, syscall.ENOENT) {
		return syscall.ESTALE
	}
	return err
}
