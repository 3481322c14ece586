package tree

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

const utimeOmit = int64(-1) << 62

// utimes sets the times of what p holds; utimeOmit leaves one alone.
func (p place) utimes(atime, mtime int64) error {
	ts := []unix.Timespec{timespec(atime), timespec(mtime)}
	// AT_EMPTY_PATH for utimensat came with Linux 5.8; following the link
	// in /proc reaches the object itself on every kernel.
	return unix.UtimesNanoAt(unix.AT_FDCWD, p.path(), ts, 0)
}

func timespec(ns int64) unix.Timespec {
	if ns == utimeOmit {
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return unix.NsecToTimespec(ns)
}

// Setattr is FS.Setattr.
func (t *Tree) Setattr(ctx context.Context, c *Cred, oid kml.OID, h Handle, s SetAttr) (Attr, error) {
	if s.Mask&SetSize != 0 {
		if err := t.truncate(ctx, c, oid, h, s.Size); err != nil {
			return Attr{}, err
		}
		s.Mask &^= SetSize
		if s.Mask&(SetAtime|SetMtime|SetAtimeNow|SetMtimeNow) == SetMtimeNow {
			// ftruncate(2) has set it, as anybody may who may write;
			// utimensat(2) leaves a single time to the owner.
			s.Mask &^= SetMtimeNow
		}
	}
	r := t.record(c, kml.OpSetattr)
	r.OID = oid
	if s.Mask != 0 {
		if a, err := t.setattr(ctx, c, r, s, nil); err != nil || a.OID != 0 {
			return a, err
		}
	}
	return t.Getattr(ctx, c, oid)
}

// setattr changes everything but the size under the object's lock and journals
// what really changed. An access time alone is nobody else's business. a is what
// the object is then, where that was looked at: else its oid is 0.
// check, when given, may refuse what the object has now; it runs under the lock.
func (t *Tree) setattr(ctx context.Context, c *Cred, r *kml.Record, s SetAttr, check func(now kml.Attr) error) (a Attr, err error) {
	err = t.atLocked(ctx, r.OID, func(p place) error {
		var old, st unix.Statx_t
		if err := statAt(p.fd, "", &old); err != nil {
			return err
		}
		if s.Mask&SetMode != 0 && old.Mode&unix.S_IFMT == unix.S_IFLNK {
			return syscall.EOPNOTSUPP
		}
		if err := t.lookFirst(ctx, p, &old); err != nil {
			return err
		}
		was := kmlAttr(&old)
		if check != nil {
			if err := check(was); err != nil {
				return err
			}
		}
		r.HadOld, r.Old, r.Attr, r.Mask = true, was, was, kml.MaskMode|kml.MaskUID|kml.MaskGID|kml.MaskMtime
		t.wanted(&r.Attr, s)
		call := func() error { return p.applyAs(c, &old, s) }
		if !changes(was, r.Attr) && r.Origin == (kml.Origin{}) {
			return call() // nothing to log; the kernel still says whether it is allowed
		}
		err := t.mutate(ctx, mutation{
			rec:  r,
			call: call,
			result: func() error {
				if err := statAt(p.fd, "", &st); err != nil {
					return err
				}
				r.Attr = kmlAttr(&st)
				r.Mask = changed(was, r.Attr)
				return nil
			},
			index: func(b *Batch) error { return noteChange(b, r.OID, &st) },
		})
		if err == nil && r.Mask&kml.MaskMode != 0 {
			err = t.followACL(p, r.OID, r)
		}
		if obj, e := t.index.Get(r.OID); err == nil && e == nil && st.Mask != 0 && len(p.handle) > 0 {
			a = t.attrOf(obj, &st)
			a.contentIs(p.handle)
		}
		return err
	})
	return a, t.answer(err)
}

// wanted is what a should become, as far as can be said beforehand.
func (t *Tree) wanted(a *kml.Attr, s SetAttr) {
	if s.Mask&SetMode != 0 {
		a.Mode = a.Mode&unix.S_IFMT | s.Mode&07777
	}
	if s.Mask&SetUID != 0 {
		a.UID = s.UID
	}
	if s.Mask&SetGID != 0 {
		a.GID = s.GID
	}
	if s.Mask&SetMtime != 0 {
		a.Mtime = s.Mtime
	}
	if s.Mask&SetMtimeNow != 0 {
		a.Mtime = t.now().UnixNano()
	}
}

func changed(a, b kml.Attr) kml.AttrMask {
	var m kml.AttrMask
	if a.Mode != b.Mode {
		m |= kml.MaskMode
	}
	if a.UID != b.UID {
		m |= kml.MaskUID
	}
	if a.GID != b.GID {
		m |= kml.MaskGID
	}
	if a.Mtime != b.Mtime {
		m |= kml.MaskMtime
	}
	return m
}

func changes(a, b kml.Attr) bool { return changed(a, b) != 0 }

// applyAs is apply by c. A change of mode that takes set-id bits and nothing
// else is also for who may write: a write has that effect, and clients whose
// kernel strips the bits itself, such as Linux's 9P client before an O_TRUNC,
// send it as the writer's own (ATTR_KILL_SUID in notify_change of fs/attr.c).
func (p place) applyAs(c *Cred, old *unix.Statx_t, s SetAttr) error {
	was := uint32(old.Mode) & 07777
	if s.Mask&SetMode == 0 || c.asProcess() || c.UID == old.Uid || was&^06000 != s.Mode&^06000&07777 || s.Mode&06000&^was != 0 {
		return c.as(func() error { return p.apply(s) })
	}
	rest := s
	rest.Mask &^= SetMode
	err := c.as(func() error {
		if err := unix.Faccessat(unix.AT_FDCWD, p.path(), unix.W_OK, unix.AT_EACCESS); err != nil {
			return syscall.EPERM
		}
		return p.apply(rest)
	})
	if err != nil {
		return err
	}
	return fchmod(p, s.Mode&07777)
}

// apply makes the system calls: owner, then mode (a change of owner clears
// the set-id bits), then times.
func (p place) apply(s SetAttr) error {
	if s.Mask&(SetUID|SetGID) != 0 {
		uid, gid := -1, -1
		if s.Mask&SetUID != 0 {
			uid = int(s.UID)
		}
		if s.Mask&SetGID != 0 {
			gid = int(s.GID)
		}
		if err := unix.Fchownat(p.fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if s.Mask&SetMode != 0 {
		if err := fchmod(p, s.Mode&07777); err != nil {
			return err
		}
	}
	if s.Mask&(SetAtime|SetMtime|SetAtimeNow|SetMtimeNow) == 0 {
		return nil
	}
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	if s.Mask&SetAtime != 0 {
		ts[0] = unix.NsecToTimespec(s.Atime)
	}
	if s.Mask&SetAtimeNow != 0 {
		ts[0].Nsec = unix.UTIME_NOW
	}
	if s.Mask&SetMtime != 0 {
		ts[1] = unix.NsecToTimespec(s.Mtime)
	}
	if s.Mask&SetMtimeNow != 0 {
		ts[1].Nsec = unix.UTIME_NOW
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, p.path(), ts, 0)
}

// lookFirst journals what others did to the attributes of an object before a
// change of our own, which is to be the last that the index hears of. st is what
// the object is now; it is locked, and one that is open-dirty looks when its
// store is cut.
func (t *Tree) lookFirst(ctx context.Context, p place, st *unix.Statx_t) error {
	o, err := t.index.Get(p.obj.OID)
	if err != nil || o.Fp == fingerprint(st) || len(o.Handle) == 0 {
		return ignore(err, ErrNotFound)
	}
	if open := t.objects.find(o.OID); open != nil {
		defer t.objects.release(open)
		open.mu.Lock()
		defer open.mu.Unlock()
		if open.dirty.Load() {
			return nil
		}
	}
	return t.foreignChangeLocked(ctx, p, o.OID, 0)
}

// noteChange refreshes the fingerprint after a change of our own.
func noteChange(b *Batch, oid kml.OID, st *unix.Statx_t) error {
	if st.Mask == 0 {
		return nil
	}
	return ignore(b.change(oid, func(o *Object) { o.Fp, o.Ctime = fingerprint(st), nsOf(st.Ctime) }), ErrNotFound)
}

func ignore(err, which error) error {
	if errors.Is(err, which) {
		return nil
	}
	return err
}

// journaledXattr is false for attributes that belong to the host and not to
// the tree.
func journaledXattr(name string) bool {
	switch name {
	case "security.selinux", "security.ima":
		return false
	}
	return !strings.HasPrefix(name, "trusted.overlay.")
}

// getxattr reads one attribute of any size.
func (p place) getxattr(name string) ([]byte, error) {
	b := make([]byte, 256)
	for {
		n, err := unix.Getxattr(p.path(), name, b)
		if err == nil {
			return b[:n], nil
		}
		if err != unix.ERANGE {
			return nil, err
		}
		if n, err = unix.Getxattr(p.path(), name, nil); err != nil {
			return nil, err
		}
		b = make([]byte, n+64)
	}
}

func (p place) listxattr() ([]string, error) {
	b := make([]byte, 1024)
	for {
		n, err := unix.Listxattr(p.path(), b)
		if err == unix.ERANGE {
			b = make([]byte, 4*len(b))
			continue
		}
		if err != nil || n == 0 {
			return nil, err
		}
		return strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00"), nil
	}
}

// xattrs reads all that a record carries. A file system without them has none.
func (p place) xattrs() ([]kml.Xattr, error) { return p.xattrsOf(-1) }

// xattrsOf is xattrs with a descriptor of the same object that may be read or
// written, or -1: mostly there are none, which that tells sooner.
func (p place) xattrsOf(fd int) ([]kml.Xattr, error) {
	if fd >= 0 {
		if n, err := unix.Flistxattr(fd, nil); err == nil && n == 0 {
			return nil, nil
		}
	}
	names, err := p.listxattr()
	if err == unix.EOPNOTSUPP {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []kml.Xattr
	for _, n := range names {
		if !journaledXattr(n) {
			continue
		}
		v, err := p.getxattr(n)
		if err == unix.ENODATA || err == unix.EPERM {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, kml.Xattr{Name: n, Value: v})
	}
	return out, nil
}

// Getxattr is FS.Getxattr.
func (t *Tree) Getxattr(ctx context.Context, c *Cred, oid kml.OID, name string) ([]byte, error) {
	var v []byte
	err := t.at(ctx, c, oid, func(p place) (err error) {
		v, err = p.getxattr(name)
		return err
	})
	return v, err
}

// Listxattr is FS.Listxattr.
func (t *Tree) Listxattr(ctx context.Context, c *Cred, oid kml.OID) ([]string, error) {
	var names []string
	err := t.at(ctx, c, oid, func(p place) (err error) {
		names, err = p.listxattr()
		return err
	})
	return names, err
}

// Setxattr is FS.Setxattr.
func (t *Tree) Setxattr(ctx context.Context, c *Cred, oid kml.OID, name string, value []byte, flags int) error {
	r := t.record(c, kml.OpSetxattr)
	r.OID, r.Name, r.Value = oid, name, value
	return t.changeXattr(ctx, r, func(p place) error {
		return c.as(func() error { return unix.Setxattr(p.path(), name, value, flags) })
	})
}

// Removexattr is FS.Removexattr.
func (t *Tree) Removexattr(ctx context.Context, c *Cred, oid kml.OID, name string) error {
	r := t.record(c, kml.OpRemovexattr)
	r.OID, r.Name = oid, name
	return t.changeXattr(ctx, r, func(p place) error {
		return c.as(func() error { return unix.Removexattr(p.path(), name) })
	})
}

// changeXattr journals one attribute's change. An access ACL is a mode too:
// when the mode moved with it, a setattr record follows.
func (t *Tree) changeXattr(ctx context.Context, r *kml.Record, call func(p place) error) error {
	return t.answer(t.atLocked(ctx, r.OID, func(p place) error {
		if !journaledXattr(r.Name) {
			return call(p)
		}
		old, err := p.getxattr(r.Name)
		switch err {
		case nil:
			r.HadOld, r.OldValue = true, old
			if len(old)+len(r.Value)+len(r.Name)+slack > kml.MaxRecord {
				r.HadOld, r.OldValue = false, nil // two of the largest values do not fit a record
			}
		case unix.ENODATA, unix.EPERM, unix.EACCES, unix.EOPNOTSUPP:
		default:
			return err
		}
		var before, after unix.Statx_t
		if err := statAt(p.fd, "", &before); err != nil {
			return err
		}
		if err := t.lookFirst(ctx, p, &before); err != nil {
			return err
		}
		err = t.mutate(ctx, mutation{
			rec:  r,
			call: func() error { return call(p) },
			result: func() error {
				return errors.Join(unix.Statx(p.fd, "", unix.AT_EMPTY_PATH, statxMask, &after), settleACL(r, p))
			},
			index: func(b *Batch) error { return noteChange(b, r.OID, &after) },
		})
		if err != nil || after.Mask == 0 || after.Mode == before.Mode {
			return err
		}
		m := &kml.Record{Op: kml.OpSetattr, Time: r.Time, UID: r.UID, GID: r.GID, OID: r.OID,
			HadOld: true, Old: kmlAttr(&before), Attr: kmlAttr(&after), Mask: kml.MaskMode}
		return t.mutate(ctx, mutation{rec: m, call: func() error { return nil }})
	}))
}

// settleACL makes r say what a file system has made of an ACL: one that says no
// more than the mode is not kept at all (posix_acl_equiv_mode of the kernel).
func settleACL(r *kml.Record, p place) error {
	if r.Op != kml.OpSetxattr || !strings.HasPrefix(r.Name, "system.posix_acl_") {
		return nil
	}
	v, err := p.getxattr(r.Name)
	switch err {
	case nil:
		r.Value = v
	case unix.ENODATA:
		r.Op, r.Value = kml.OpRemovexattr, nil
	default:
		return err
	}
	return nil
}

// now is the time for records, in the tree's own clock.
func (t *Tree) now() time.Time {
	if t.opt.Now != nil {
		return t.opt.Now()
	}
	return time.Now()
}

// JournaledXattr is false for attributes that belong to the host and not to the
// tree: a client has none of them.
func JournaledXattr(name string) bool { return journaledXattr(name) }
