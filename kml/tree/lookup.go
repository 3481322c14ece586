package tree

import (
	"context"
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// Lookup is FS.Lookup. A name that appeared or vanished behind the tree's back
// is journaled before it is answered.
func (t *Tree) Lookup(ctx context.Context, c *Cred, parent kml.OID, name string) (Attr, error) {
	if parent == kml.RootOID && name == ExtDirName {
		return Attr{}, syscall.ENOENT
	}
	if err := checkName(parent, name); err != nil {
		return Attr{}, err
	}
	var a Attr
	err := t.inDir(ctx, parent, name, false, func(dirfd int) error {
		if err := t.mayOpenDir(c, dirfd, unix.X_OK); err != nil {
			return err
		}
		for range maxRetry {
			k, err := t.child(dirfd, parent, name)
			if err != nil {
				return err
			}
			a = t.attrOf(k.obj, &k.st)
			a.contentIs(k.handle)
			if now, err := t.index.Get(k.oid); err == nil && now == k.obj {
				break // no store was cut between the looks at disk and index
			}
		}
		return nil
	})
	return a, err
}

// mayOpenDir asks the kernel whether the user may search or read a folder.
func (t *Tree) mayOpenDir(c *Cred, dirfd int, mode uint32) error {
	if c.asProcess() {
		return nil
	}
	return c.as(func() error { return unix.Faccessat(dirfd, ".", mode, unix.AT_EACCESS) })
}

// Parent is FS.Parent.
func (t *Tree) Parent(_ context.Context, oid kml.OID) (kml.OID, error) {
	if oid == kml.RootOID {
		return oid, nil
	}
	obj, err := t.index.Get(oid)
	if errors.Is(err, ErrNotFound) {
		return 0, syscall.ESTALE
	}
	if err != nil {
		return 0, err
	}
	return obj.Parent, nil
}

// Getattr is FS.Getattr. It answers what the object is before or after a
// replacement of its contents, never a mix.
func (t *Tree) Getattr(ctx context.Context, _ *Cred, oid kml.OID) (Attr, error) {
	for range maxRetry {
		a, whole, err := t.getattrNamed(oid)
		if errors.Is(err, errMismatch) || errors.Is(err, ErrNotFound) {
			err = t.at(ctx, nil, oid, func(p place) (err error) {
				a, whole, err = t.settledAttr(p.obj, p.fd)
				return err
			})
		}
		if whole || err != nil {
			return a, err
		}
	}
	return Attr{}, syscall.ESTALE
}

// getattrNamed looks at an object where the index has it, without opening it.
// whole is false when it changed meanwhile, and the error ErrNotFound or
// errMismatch when it is not there.
func (t *Tree) getattrNamed(oid kml.OID) (a Attr, whole bool, err error) {
	obj, err := t.index.Get(oid)
	if err != nil {
		return Attr{}, false, err
	}
	if oid == kml.RootOID {
		a, _, err = t.joinedAttr(obj, t.rootfd)
		return a, err == nil, err
	}
	_, dirty := t.objects.dataVersion(oid)
	mu := t.names.of(obj.Parent)
	mu.RLock()
	defer mu.RUnlock()
	ref, err := t.dirs.get(obj.Parent)
	if err != nil {
		return Attr{}, false, mismatch(err)
	}
	defer ref.release()
	var st unix.Statx_t
	if err := statAt(ref.fd, obj.Name, &st); err != nil {
		return Attr{}, false, mismatch(err)
	}
	handle, err := t.verify(ref.fd, obj.Name, obj, &st)
	if err != nil {
		return Attr{}, false, err
	}
	a = t.attrOf(obj, &st)
	a.contentIs(handle)
	now, err := t.index.Get(oid)
	return a, err == nil && now == obj && dirty == (a.DataVersion&DataDirty != 0), err
}

// settledAttr joins what the disk says of fd with what the index knows of its
// object, at one moment as far as the log tells: a store that is cut meanwhile
// is in both or in neither. obj is what the index said when fd was found. whole
// is false when the index has another inode for the object by now.
func (t *Tree) settledAttr(obj *Object, fd int) (a Attr, whole bool, err error) {
	if a, obj, err = t.joinedAttr(obj, fd); err != nil {
		return Attr{}, false, err
	}
	if a.Mode&unix.S_IFMT != unix.S_IFREG {
		return a, true, nil
	}
	var h rawHandle
	if h.at(fd, "") != nil {
		return a, true, nil // the index could not know it either
	}
	a.contentIs(h.bytes())
	return a, len(obj.Handle) == 0 || h.is(obj.Handle), nil
}

// joinedAttr is settledAttr without a look at which inode it is: it leaves
// Content alone, and gives what the index says of the object by now.
func (t *Tree) joinedAttr(obj *Object, fd int) (a Attr, now *Object, err error) {
	for range maxRetry {
		_, dirty := t.objects.dataVersion(obj.OID)
		var st unix.Statx_t
		if err = statAt(fd, "", &st); err != nil {
			return Attr{}, nil, err
		}
		a = t.attrOf(obj, &st)
		now, err = t.objectOrGone(obj.OID)
		if err != nil {
			return Attr{}, nil, err
		}
		if (now == obj || now.Version == 0 && obj.Version == 0) && dirty == (a.DataVersion&DataDirty != 0) {
			break
		}
		obj = now
	}
	return a, obj, nil
}

// objectOrGone is what the index holds of an object; of one that has no name
// any more nothing but the oid.
func (t *Tree) objectOrGone(oid kml.OID) (*Object, error) {
	obj, err := t.index.Get(oid)
	if errors.Is(err, ErrNotFound) {
		return &Object{OID: oid}, nil
	}
	return obj, err
}

// attrOf joins what the disk says with what the index knows.
func (t *Tree) attrOf(obj *Object, st *unix.Statx_t) Attr {
	a := Attr{
		OID: obj.OID, Mode: uint32(st.Mode), Nlink: st.Nlink, UID: st.Uid, GID: st.Gid,
		Rdev: unix.Mkdev(st.Rdev_major, st.Rdev_minor), Size: st.Size, Blocks: st.Blocks,
		Atime: nsOf(st.Atime), Mtime: nsOf(st.Mtime), Ctime: nsOf(st.Ctime), Btime: nsOf(st.Btime),
		Version: obj.Version, DataVersion: uint64(obj.DataVersion),
	}
	if _, bad := t.damage.has(obj.OID); bad {
		a.Size, a.Mtime = obj.Attr.Size, obj.Attr.Mtime // the version's, which the bytes are not
	}
	if v, dirty := t.objects.dataVersion(obj.OID); dirty {
		a.DataVersion = v
	}
	return a
}

func nsOf(ts unix.StatxTimestamp) int64 { return ts.Sec*int64(time.Second) + int64(ts.Nsec) }

// kmlAttr is what a record keeps of a stat.
func kmlAttr(st *unix.Statx_t) kml.Attr {
	return kml.Attr{
		Mode: uint32(st.Mode), UID: st.Uid, GID: st.Gid, Nlink: st.Nlink,
		Rdev: unix.Mkdev(st.Rdev_major, st.Rdev_minor), Size: st.Size,
		Mtime: nsOf(st.Mtime), Atime: nsOf(st.Atime),
	}
}

// Readlink is FS.Readlink.
func (t *Tree) Readlink(ctx context.Context, c *Cred, oid kml.OID) (string, error) {
	var s string
	err := t.at(ctx, c, oid, func(p place) error {
		var err error
		s, err = readlinkFd(p.fd)
		return err
	})
	return s, err
}

// readlinkFd reads the link behind an O_PATH descriptor (readlinkat(2), empty path).
func readlinkFd(fd int) (string, error) {
	for size := 256; ; size *= 2 {
		b := make([]byte, size)
		n, err := unix.Readlinkat(fd, "", b)
		if err == syscall.ENOENT {
			err = syscall.EINVAL // not a link
		}
		if err != nil {
			return "", err
		}
		if n < size {
			return string(b[:n]), nil
		}
	}
}

// Statfs is FS.Statfs.
func (t *Tree) Statfs(context.Context, kml.OID) (Statfs, error) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(t.rootfd, &s); err != nil {
		return Statfs{}, err
	}
	return Statfs{
		Type: uint32(s.Type), Bsize: uint32(s.Bsize), Namelen: uint32(s.Namelen), FragmentLen: uint32(s.Frsize),
		Blocks: s.Blocks, Bfree: s.Bfree, Bavail: s.Bavail, Files: s.Files, Ffree: s.Ffree,
		FsidLow: uint32(s.Fsid.Val[0]), FsidHigh: uint32(s.Fsid.Val[1]),
	}, nil
}

// Watch is FS.Watch.
func (t *Tree) Watch(f func(Change)) (cancel func()) { return t.watch.add(f) }
