package tree

import (
	"context"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// making is a new object on its way.
type making struct {
	c    *Cred
	rec  *kml.Record // Op, Parent, Name, Target; Attr.Mode and Attr.Rdev as asked for
	call func(dirfd int) error
	// fd is the new object, opened, when call opened it; else -1.
	fd *int
	// exact owners and times come from the record (a client's) and not from c.
	exact bool
}

// asMaker runs f as the user where the record says what becomes of the object.
func (m *making) asMaker(f func() error) error {
	if !m.exact {
		return f()
	}
	return m.c.as(f)
}

// make creates what m says under the folder's lock and returns it, with the
// handle of its inode.
func (t *Tree) make(ctx context.Context, m making) (Attr, []byte, error) {
	r := m.rec
	if err := checkName(r.Parent, r.Name); err != nil {
		return Attr{}, nil, err
	}
	if err := t.broken(); err != nil {
		return Attr{}, nil, err
	}
	var a Attr
	var handle []byte
	var now kml.OID // the folder, when it is another object by now
	err := t.inDir(ctx, r.Parent, r.Name, true, func(dirfd int) error {
		if err := t.nameFree(dirfd, r.Parent, r.Name); err != nil {
			return err
		}
		if r.OID == 0 {
			oid, err := t.state.MintOID()
			if err != nil {
				return err
			}
			r.OID = oid
		}
		if !m.exact {
			r.Attr.UID, r.Attr.GID = t.author(m.c)
		}
		var st unix.Statx_t
		err := t.mutate(ctx, mutation{
			rec:  r,
			call: func() error { return taken(m.c.as(func() error { return m.call(dirfd) })) },
			result: func() (err error) {
				handle, err = t.finishNew(dirfd, m, &st)
				return err
			},
			index: func(b *Batch) error { return noteInode(b, r.OID, &st, handle) },
		})
		if errors.Is(err, errFolderGone) {
			now = t.folderAt(dirfd)
		}
		if err != nil {
			return err
		}
		obj, err := t.index.Get(r.OID)
		if err != nil {
			return err
		}
		a = t.attrOf(obj, &st)
		a.contentIs(handle)
		if w := t.watcher; r.Op == kml.OpMkdir && w != nil && !w.perDir {
			w.removed(handle)
		}
		return nil
	})
	if now != 0 {
		// What was made there is nobody's record, and was not looked at since.
		err = errors.Join(err, t.reconcileName(ctx, now, r.Name))
	}
	return a, handle, t.answer(err)
}

// folderAt is the known folder behind a descriptor, or 0.
func (t *Tree) folderAt(fd int) kml.OID {
	var st unix.Statx_t
	handle, err := HandleAt(fd, "")
	if err != nil || statAt(fd, "", &st) != nil {
		return 0
	}
	if o := t.objectFor(&st, handle); o != nil {
		return o.OID
	}
	return 0
}

// nameFree refuses a name that the index knows to be taken. Of others the system
// call that takes the name says what is there on disk; see taken.
func (t *Tree) nameFree(dirfd int, parent kml.OID, name string) error {
	if _, _, known := t.index.Child(parent, name); !known {
		return nil
	}
	switch _, err := t.child(dirfd, parent, name); {
	case err == nil:
		return syscall.EEXIST
	case !errors.Is(err, syscall.ENOENT):
		return err
	}
	return nil
}

// taken makes of EEXIST for a name that the index does not know that somebody
// took it behind the tree's back.
func taken(err error) error {
	if err == syscall.EEXIST {
		return errMismatch
	}
	return err
}

// finishNew gives a new object its owner, then its mode (a change of owner
// clears the set-id bits), and reads back what it really became.
func (t *Tree) finishNew(dirfd int, m making, st *unix.Statx_t) (handle []byte, err error) {
	r := m.rec
	fd := *m.fd
	if fd < 0 {
		if fd, err = openNew(dirfd, r); err != nil {
			return nil, err
		}
		defer unix.Close(fd)
	}
	p := place{fd: fd}
	var parent unix.Statx_t
	if err := statAt(dirfd, "", &parent); err != nil {
		return nil, err
	}
	r.ParentMtime = nsOf(parent.Mtime)
	uid, gid, chown := m.c.owner()
	if m.exact || chown {
		if m.exact {
			uid, gid, chown = r.Attr.UID, r.Attr.GID, t.root
		}
		if err := m.dress(p, &parent, uid, gid, chown); err != nil {
			return nil, err
		}
	}
	if err := statAt(fd, "", st); err != nil {
		return nil, err
	}
	r.Attr = kmlAttr(st)
	if r.Xattrs, err = p.xattrsOf(fd); err != nil {
		return nil, err
	}
	if handle, err = HandleAt(fd, ""); err == nil && r.Op == kml.OpMkdir {
		t.watcher.made(r.OID, fd, handle)
	}
	return handle, err
}

// openNew opens what a record has just made: a folder so that its attributes can
// be read from the descriptor, where that is allowed.
func openNew(dirfd int, r *kml.Record) (int, error) {
	if r.Op == kml.OpMkdir {
		fd, err := unix.Openat(dirfd, r.Name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			return fd, nil
		}
	}
	return unix.Openat(dirfd, r.Name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// dress gives a new object its owner, with chown, and then its mode, and what
// else an exact record says.
func (m *making) dress(p place, parent *unix.Statx_t, uid, gid uint32, chown bool) error {
	r, fd, want := m.rec, p.fd, m.rec.Attr
	var st unix.Statx_t
	if chown && m.exact && !m.c.asProcess() {
		// It is the user's; the group is what the user may give it.
		err := m.c.as(func() error { return unix.Fchownat(fd, "", -1, int(gid), unix.AT_EMPTY_PATH) })
		if err != nil && err != unix.EPERM {
			return err
		}
	} else if chown {
		g := int(gid)
		if parent.Mode&unix.S_ISGID != 0 && !m.exact {
			g = -1 // the kernel gave it the folder's group
		}
		if err := unix.Fchownat(fd, "", int(uid), g, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if err := statAt(fd, "", &st); err != nil {
		return err
	}
	mode := want.Mode & 07777
	if m.exact || chown && mode&06000 != 0 {
		if r.Op == kml.OpMkdir && !m.exact {
			mode |= uint32(st.Mode) & unix.S_ISGID
		}
		if r.Op != kml.OpSymlink && uint32(st.Mode)&07777 != mode {
			if err := m.asMaker(func() error { return fchmod(p, mode) }); err != nil {
				return err
			}
		}
	}
	if m.exact && want.Mtime != 0 {
		if err := p.utimes(utimeOmit, want.Mtime); err != nil {
			return err
		}
	}
	if m.exact {
		for _, x := range r.Xattrs {
			if err := m.asMaker(func() error { return unix.Setxattr(p.path(), x.Name, x.Value, 0) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// noteInode tells the index which inode an object is.
func noteInode(b *Batch, oid kml.OID, st *unix.Statx_t, handle []byte) error {
	return b.change(oid, func(o *Object) {
		if handle == nil {
			return
		}
		o.Ino, o.Handle, o.Fp = st.Ino, handle, fingerprint(st)
		o.Btime, o.Ctime = nsOf(st.Btime), nsOf(st.Ctime)
	})
}

func fingerprint(st *unix.Statx_t) Fingerprint {
	return Fingerprint{Size: st.Size, Mtime: nsOf(st.Mtime), Ctime: nsOf(st.Ctime)}
}

// Create is FS.Create.
func (t *Tree) Create(ctx context.Context, c *Cred, parent kml.OID, name string, flags int, mode uint32) (Attr, Handle, error) {
	for range maxRetry {
		r := t.record(c, kml.OpCreate)
		r.Parent, r.Name, r.Attr.Mode = parent, name, unix.S_IFREG|mode&07777
		fd := -1
		open := flags&^(unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_DIRECTORY|unix.O_SYNC|unix.O_DIRECT) | unix.O_CREAT | unix.O_EXCL | unix.O_CLOEXEC
		a, inode, err := t.make(ctx, making{c: c, rec: r, fd: &fd, call: func(dirfd int) (err error) {
			fd, err = unix.Openat(dirfd, name, open, mode&07777)
			return err
		}})
		if err == nil {
			return a, t.created(a.OID, inode, fd, flags, c), nil
		}
		if fd >= 0 {
			unix.Close(fd)
		}
		if !errors.Is(err, syscall.EEXIST) || flags&unix.O_EXCL != 0 {
			return Attr{}, nil, err
		}
		if a, err = t.Lookup(ctx, c, parent, name); errors.Is(err, syscall.ENOENT) {
			continue // removed again in between
		}
		if err != nil {
			return Attr{}, nil, err
		}
		h, err := t.Open(ctx, c, a.OID, flags)
		if err != nil {
			return Attr{}, nil, err
		}
		a, err = h.Attr(ctx)
		return a, h, err
	}
	return Attr{}, nil, syscall.ESTALE
}

// Mkdir is FS.Mkdir.
func (t *Tree) Mkdir(ctx context.Context, c *Cred, parent kml.OID, name string, mode uint32) (Attr, error) {
	r := t.record(c, kml.OpMkdir)
	r.Parent, r.Name, r.Attr.Mode = parent, name, unix.S_IFDIR|mode&07777
	return t.made(ctx, c, r)
}

// Symlink is FS.Symlink.
func (t *Tree) Symlink(ctx context.Context, c *Cred, parent kml.OID, name, target string) (Attr, error) {
	r := t.record(c, kml.OpSymlink)
	r.Parent, r.Name, r.Target, r.Attr.Mode = parent, name, target, unix.S_IFLNK|0777
	return t.made(ctx, c, r)
}

// Mknod is FS.Mknod.
func (t *Tree) Mknod(ctx context.Context, c *Cred, parent kml.OID, name string, mode uint32, rdev uint64) (Attr, error) {
	op := kml.OpMknod
	switch mode & unix.S_IFMT {
	case 0, unix.S_IFREG:
		op, mode = kml.OpCreate, mode|unix.S_IFREG
	case unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
	default:
		return Attr{}, syscall.EINVAL
	}
	r := t.record(c, op)
	r.Parent, r.Name, r.Attr.Mode, r.Attr.Rdev = parent, name, mode, rdev
	return t.made(ctx, c, r)
}

// made makes what is not opened by being made.
func (t *Tree) made(ctx context.Context, c *Cred, r *kml.Record) (Attr, error) {
	a, _, err := t.make(ctx, t.makingOf(c, r))
	return a, err
}

// makingOf is the making of everything that is not opened by being made.
func (t *Tree) makingOf(c *Cred, r *kml.Record) making {
	fd := -1
	m := making{c: c, rec: r, fd: &fd}
	perm := r.Attr.Mode & 07777
	switch r.Op {
	case kml.OpMkdir:
		m.call = func(dirfd int) error { return unix.Mkdirat(dirfd, r.Name, perm) }
	case kml.OpSymlink:
		m.call = func(dirfd int) error { return unix.Symlinkat(r.Target, dirfd, r.Name) }
	default:
		m.call = func(dirfd int) error { return unix.Mknodat(dirfd, r.Name, r.Attr.Mode, int(r.Attr.Rdev)) }
	}
	return m
}

// Link is FS.Link.
func (t *Tree) Link(ctx context.Context, c *Cred, oid, parent kml.OID, name string) (Attr, error) {
	r := t.record(c, kml.OpLink)
	r.OID, r.Parent, r.Name = oid, parent, name
	return t.link(ctx, c, r)
}

func (t *Tree) link(ctx context.Context, c *Cred, r *kml.Record) (Attr, error) {
	if err := checkName(r.Parent, r.Name); err != nil {
		return Attr{}, err
	}
	var a Attr
	for range maxRetry {
		err := t.at(ctx, nil, r.OID, func(p place) error {
			return t.inDir(ctx, r.Parent, r.Name, true, func(dirfd int) (err error) {
				a, err = t.linkIn(ctx, c, r, dirfd, p)
				return err
			})
		})
		if !errors.Is(err, errAgain) {
			return a, t.answer(err)
		}
	}
	return a, syscall.ESTALE
}

// linkIn gives p's object one more name in a folder that is locked.
func (t *Tree) linkIn(ctx context.Context, c *Cred, r *kml.Record, dirfd int, p place) (a Attr, err error) {
	if err := t.nameFree(dirfd, r.Parent, r.Name); err != nil {
		return a, err
	}
	defer t.objs.lock(r.OID).unlock()
	obj, err := t.index.Get(r.OID)
	if err != nil || obj.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
		return a, orErrno(err, ErrNotFound, syscall.ENOENT, syscall.EPERM)
	}
	handle, err := HandleAt(p.fd, "")
	if err != nil {
		return a, err
	}
	if !obj.is(handle) {
		return a, errAgain // replaced since it was opened
	}
	var st unix.Statx_t
	err = t.mutate(ctx, mutation{
		rec:    r,
		handle: handle,
		// linkat(2) through /proc needs no right that AT_EMPTY_PATH would.
		call: func() error {
			return taken(c.as(func() error {
				return unix.Linkat(unix.AT_FDCWD, p.path(), dirfd, r.Name, unix.AT_SYMLINK_FOLLOW)
			}))
		},
		result: func() (err error) {
			if r.ParentMtime, err = mtimeOf(dirfd); err != nil {
				return err
			}
			return unix.Statx(p.fd, "", unix.AT_EMPTY_PATH, statxMask, &st)
		},
	})
	if err != nil {
		return a, err
	}
	a = t.attrOf(obj, &st)
	if h, err := HandleAt(p.fd, ""); err == nil {
		a.contentIs(h)
	}
	return a, nil
}

// orErrno maps a missing object to one errno and no error to another.
func orErrno(err, missing error, ifMissing, ifNil syscall.Errno) error {
	switch {
	case err == nil:
		return ifNil
	case errors.Is(err, missing):
		return ifMissing
	}
	return err
}
