package tree

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/node"
	"github.com/mezzofs/mezzo/kml"
)

// revert looks at what a name holds and undoes what a local program did: what
// only this host has is set aside, what is gone or was written to is brought
// again, what was moved goes back. wrote: its file was seen to be written.
func (r *Replica) revert(parent kml.OID, name string, wrote bool) error {
	if r.copying.Load() {
		return nil
	}
	if r.doubt.Load() {
		r.unseen.Store(true)
		return nil
	}
	n := Name{parent, name}
	for range maxRetry {
		oid, _, _ := r.t.index.Child(parent, name)
		unlock := r.t.names.lock(parent, oid).unlock
		now, _, known := r.t.index.Child(parent, name)
		if now != oid {
			unlock()
			continue
		}
		err := r.revertLocked(n, oid, known, wrote)
		unlock()
		if errors.Is(err, errNoFolder) {
			return nil
		}
		return err
	}
	return nil
}

func (r *Replica) revertLocked(n Name, oid kml.OID, known, wrote bool) error {
	ref, err := r.folder(n.Parent)
	if err != nil {
		return err
	}
	defer ref.release()
	p, st, h, err := lookAtName(ref.fd, n.Name)
	if errors.Is(err, syscall.ENOENT) {
		if known {
			return r.missing(ref.fd, n, oid)
		}
		if !removed(ref.fd) {
			r.folderTime(n.Parent) // it came and went
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(p.fd)
	if st.Dev_major != r.t.dev[0] || st.Dev_minor != r.t.dev[1] {
		r.t.mounts.Store(n, struct{}{})
		return nil
	}
	obj := r.t.objectFor(&st, h)
	if obj != nil && r.standIns.is(n, h, false) {
		return nil
	}
	switch {
	case known && obj != nil && obj.OID == oid:
		return r.revertChange(ref.fd, n, p, wrote)
	case obj != nil:
		if err := r.moveBack(ref.fd, n, obj); err != nil {
			return err
		}
	case r.standIns.is(n, h, false), known && r.brought(oid, p, &st, h):
		return nil
	default:
		if err := r.setAside(ref.fd, n, "not on the master"); err != nil && !errors.Is(err, syscall.ENOENT) {
			return err
		}
	}
	r.folderTime(n.Parent)
	if known {
		return r.missing(ref.fd, n, oid)
	}
	return nil
}

// brought takes a file for what was brought for an object when the process was
// killed before that was in the index's file: it has the version's size and time.
func (r *Replica) brought(oid kml.OID, p place, st *unix.Statx_t, handle []byte) bool {
	o, err := r.t.index.Get(oid)
	if err != nil || o.Attr.Mode&unix.S_IFMT != unix.S_IFREG || !looksLike(o, st) || o.Whole && st.Mtime.Nsec == 0 {
		return false
	}
	c := change{oid: oid, inode: &inode{*st, handle}}
	return r.revertAttrs(p, o, &c.inode.st) == nil && r.t.index.Update(c.note) == nil
}

// missing has an object that its name does not hold brought again. The caller
// holds the lock of the name.
func (r *Replica) missing(dirfd int, n Name, oid kml.OID) error {
	o, err := r.t.index.Get(oid)
	if err != nil || len(o.Handle) == 0 || o.Attr.Mode&unix.S_IFMT == unix.S_IFREG && !o.Whole {
		return ignore(err, ErrNotFound) // it is on its way, or not wanted here
	}
	if !r.kept(n, &o.Attr) {
		return nil
	}
	if removed(dirfd) {
		// Not the name went but its folder, whose own name tells.
		r.t.dirs.forget(n.Parent)
		return nil
	}
	defer r.t.objs.lock(oid).unlock()
	if _, err := HandleAt(dirfd, n.Name); err == nil {
		return nil // it came back
	}
	r.reverted.Add(1)
	if o.Attr.Mode&unix.S_IFMT != unix.S_IFDIR && o.Attr.Nlink > 1 {
		if fd, _, err := r.openObject(o); err == nil {
			defer unix.Close(fd)
			return r.linkTo(fd, dirfd, n, o)
		}
	}
	r.t.logger.Warn("something was removed here; it is brought again", "fileset", r.t.dir, "path", r.Path(oid))
	r.t.dirs.forget(oid)
	return r.lose(oid)
}

// lose notes that an object, and what is below it, is not in the directory, and
// has it brought.
func (r *Replica) lose(oid kml.OID) error {
	if err := r.t.index.Update((&change{oid: oid, lacks: true}).note); err != nil {
		return err
	}
	r.lack(oid)
	o, err := r.t.index.Get(oid)
	if err != nil || o.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
		return ignore(err, ErrNotFound)
	}
	return r.loseBelow(oid, 0)
}

// moveBack undoes what brought a known object under a name that is not its own:
// a rename, or one more link.
func (r *Replica) moveBack(dirfd int, n Name, o *Object) error {
	r.reverted.Add(1)
	for _, own := range r.t.index.Names(o.OID) {
		ref, err := r.folder(own.Parent)
		if err != nil {
			continue
		}
		err = unix.Renameat2(dirfd, n.Name, ref.fd, own.Name, unix.RENAME_NOREPLACE)
		ref.release()
		if err == nil {
			r.t.logger.Warn("something was renamed here; it was moved back", "fileset", r.t.dir, "path", r.Path(o.OID), "from", n.Name)
			r.folderTime(own.Parent)
			return nil
		}
		if err != syscall.EEXIST {
			return err
		}
	}
	if o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil // seen twice while it moves
	}
	r.t.logger.Warn("a name that the master does not have was removed", "fileset", r.t.dir, "path", r.Path(n.Parent)+"/"+n.Name)
	return ignore(unix.Unlinkat(dirfd, n.Name, 0), syscall.ENOENT)
}

// revertChange undoes a change of contents or attributes of what a name holds.
func (r *Replica) revertChange(dirfd int, n Name, p place, wrote bool) error {
	oid, _, _ := r.t.index.Child(n.Parent, n.Name)
	defer r.t.objs.lock(oid).unlock()
	o, err := r.t.index.Get(oid)
	if err != nil {
		return ignore(err, ErrNotFound)
	}
	var st unix.Statx_t
	if err := unix.Statx(p.fd, "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
		return err
	}
	if o.Fp == fingerprint(&st) && !wrote {
		return nil
	}
	file := o.Attr.Mode&unix.S_IFMT == unix.S_IFREG
	if file && o.Whole && (r.edited(o, &st) || wrote && o.Fp != fingerprint(&st)) && !r.doubt.Load() {
		r.reverted.Add(1)
		if err := r.aside(dirfd, n.Name, n, "written here"); err != nil {
			return err
		}
		r.folderTime(n.Parent)
		return r.lose(oid)
	}
	return r.revertAttrs(p, o, &st)
}

// revertAttrs gives an object the attributes it has at the master.
func (r *Replica) revertAttrs(p place, o *Object, st *unix.Statx_t) error {
	want := o.Attr
	want.UID, want.GID = r.ownerHere(o.Attr)
	m := differing(kmlAttr(st), want)
	if !r.t.root {
		m &^= kml.MaskUID | kml.MaskGID
	}
	if o.Attr.Mode&unix.S_IFMT == unix.S_IFREG && !o.Whole {
		m &^= kml.MaskMtime
	}
	if m != 0 {
		r.reverted.Add(1)
		if err := node.Dress(node.At{FD: p.fd}, want, m, nil, o.Attr.Mode&unix.S_IFMT == unix.S_IFLNK, r.forgive()); err != nil {
			return err
		}
		if err := unix.Statx(p.fd, "", unix.AT_EMPTY_PATH, statxMask, st); err != nil {
			return err
		}
	}
	return r.t.index.Update((&change{oid: o.OID, keep: true, lookUp: true, fp: st}).note)
}

// revertFolder is revert for a folder itself, which the caller has locked.
func (r *Replica) revertFolder(fd int, oid kml.OID) error {
	defer r.t.objs.lock(oid).unlock()
	o, err := r.t.index.Get(oid)
	if err != nil || r.copying.Load() {
		return ignore(err, ErrNotFound)
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
		return err
	}
	if o.Fp == fingerprint(&st) {
		return nil
	}
	return r.revertAttrs(place{fd: fd}, o, &st)
}

// has reports whether the directory has what a name holds.
func (r *Replica) has(n Name) bool {
	oid, _, known := r.t.index.Child(n.Parent, n.Name)
	if !known {
		return r.t.onDisk(n)
	}
	o, err := r.t.index.Get(oid)
	return err == nil && len(o.Handle) > 0
}
