package fusefs

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml/tree"
)

// capability is the xattr of file capabilities, which a write clears.
const capability = "security.capability"

// stripped is a mode without the bits a change of contents or owner clears;
// setgid without group execution once meant mandatory locking, and stays.
func stripped(mode uint32) uint32 {
	mode &^= unix.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		mode &^= unix.S_ISGID
	}
	return mode
}

// clearPriv takes setuid, setgid and capabilities from a file that somebody
// without CAP_FSETID is about to change. h may be nil.
func (r *raw) clearPriv(c *call, hd *fuse.InHeader, n *node, h tree.Handle) error {
	if n.clean.Load() {
		return nil
	}
	since := n.changes.Load()
	var a tree.Attr
	var err error
	if h != nil {
		a, err = h.Attr(c)
	} else {
		a, err = r.fs.Getattr(c, cred(hd), n.oid)
	}
	if err != nil {
		return err
	}
	changed := false
	if m := stripped(a.Mode); m != a.Mode {
		if _, err := r.fs.Setattr(c, nil, n.oid, h, tree.SetAttr{Mask: tree.SetMode, Mode: m & 0o7777}); err != nil {
			return err
		}
		changed = true
	}
	switch _, err := r.fs.Getxattr(c, nil, n.oid, capability); {
	case err == nil:
		if err := r.fs.Removexattr(c, nil, n.oid, capability); err != nil && !errors.Is(err, unix.ENODATA) {
			return err
		}
		changed = true
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ESTALE):
	default:
		return err
	}
	if changed {
		r.queue.addInode(n, false) // the kernel does not expect it
		return nil
	}
	n.clean.Store(true)
	if n.changes.Load() != since {
		n.clean.Store(false)
	}
	return nil
}

// SetAttr is chmod, chown, truncate and utimensat.
func (r *raw) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	n, st := r.node(in.NodeId)
	if st != fuse.OK {
		return st
	}
	if n.ext.Load() != nil {
		// O_TRUNC of a file of the extension arrives like this; the open saw it.
		if in.Valid&^(fuse.FATTR_SIZE|fuse.FATTR_FH|fuse.FATTR_LOCKOWNER|fuse.FATTR_KILL_SUIDGID) != 0 || in.Size != 0 {
			return fuse.EPERM
		}
		return r.extAttr(c, n, &out.Attr)
	}
	var h tree.Handle
	if in.Valid&fuse.FATTR_FH != 0 {
		if f := r.files.get(in.Fh); f != nil && f.n == n {
			h = f.h
		}
	}
	if h == nil && r.nodes.isRetired(n) {
		return fuse.Status(unix.ESTALE)
	}
	s := setAttr(in)
	if s.Mask&tree.SetSize != 0 && in.Valid&fuse.FATTR_KILL_SUIDGID != 0 {
		if err := r.clearPriv(c, &in.InHeader, n, h); err != nil {
			return r.status("setattr", err)
		}
	}
	if s.Mask&(tree.SetUID|tree.SetGID) != 0 {
		if err := r.chownMode(c, &in.InHeader, n, h, &s); err != nil {
			return r.status("setattr", err)
		}
	}
	a, err := r.fs.Setattr(c, cred(&in.InHeader), n.oid, h, s)
	if err != nil {
		return r.status("setattr", err)
	}
	t := r.nodes.tell(n, wanted{content: a.Content})
	r.follow(n, &t)
	if t.refused { // the size that belongs to the kernel's pages
		if old, ok, err := r.oldAttr(c, n); ok && err == nil {
			a.Size, a.Blocks = old.Size, old.Blocks
		}
	}
	// The kernel takes this reply even when it knows newer: it may use it, but
	// not keep it.
	fill(&out.Attr, &a)
	return fuse.OK
}

// chownMode adds to a change of owner the mode it leaves.
func (r *raw) chownMode(c *call, hd *fuse.InHeader, n *node, h tree.Handle, s *tree.SetAttr) error {
	a, _, err := r.attr(c, hd, n, false, 0)
	if h != nil {
		a, err = h.Attr(c)
	}
	if err != nil {
		return err
	}
	if a.Mode&unix.S_IFMT == unix.S_IFDIR || s.Mask&tree.SetMode != 0 {
		return nil
	}
	if m := stripped(a.Mode); m != a.Mode {
		s.Mask |= tree.SetMode
		s.Mode = m & 0o7777
	}
	switch err := r.fs.Removexattr(c, nil, n.oid, capability); {
	case err == nil, errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ESTALE):
		return nil
	default:
		return err
	}
}

// setAttr reads what the kernel asks for.
func setAttr(in *fuse.SetAttrIn) tree.SetAttr {
	s := tree.SetAttr{
		Mode: in.Mode & 0o7777, UID: in.Uid, GID: in.Gid, Size: in.Size,
		Atime: join(in.Atime, in.Atimensec), Mtime: join(in.Mtime, in.Mtimensec),
	}
	for _, x := range []struct {
		bit  uint32
		mask tree.SetMask
	}{
		{fuse.FATTR_MODE, tree.SetMode},
		{fuse.FATTR_UID, tree.SetUID},
		{fuse.FATTR_GID, tree.SetGID},
		{fuse.FATTR_SIZE, tree.SetSize},
	} {
		if in.Valid&x.bit != 0 {
			s.Mask |= x.mask
		}
	}
	if in.Valid&fuse.FATTR_ATIME_NOW != 0 {
		s.Mask |= tree.SetAtimeNow
	} else if in.Valid&fuse.FATTR_ATIME != 0 {
		s.Mask |= tree.SetAtime
	}
	if in.Valid&fuse.FATTR_MTIME_NOW != 0 {
		s.Mask |= tree.SetMtimeNow
	} else if in.Valid&fuse.FATTR_MTIME != 0 {
		s.Mask |= tree.SetMtime
	}
	return s
}

// GetXAttr is getxattr(2).
func (r *raw) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	c := r.begin(cancel, h)
	defer c.end()
	n, st := r.node(h.NodeId)
	if st != fuse.OK {
		return 0, st
	}
	if n.ext.Load() != nil {
		return 0, fuse.ENODATA
	}
	v, err := r.fs.Getxattr(c, cred(h), n.oid, name)
	if err != nil {
		return 0, r.status("getxattr", err)
	}
	if len(v) > len(dest) {
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dest, v)), fuse.OK
}

// ListXAttr is listxattr(2).
func (r *raw) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	c := r.begin(cancel, h)
	defer c.end()
	n, st := r.node(h.NodeId)
	if st != fuse.OK {
		return 0, st
	}
	if n.ext.Load() != nil {
		return 0, fuse.OK
	}
	names, err := r.fs.Listxattr(c, cred(h), n.oid)
	if err != nil {
		return 0, r.status("listxattr", err)
	}
	var all []byte
	for _, name := range names {
		all = append(append(all, name...), 0)
	}
	if len(all) > len(dest) {
		return uint32(len(all)), fuse.ERANGE
	}
	return uint32(copy(dest, all)), fuse.OK
}

// SetXAttr is setxattr(2). With an access ACL the kernel says whether setgid
// has to go, because it knows the caller's groups.
func (r *raw) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	n, st := r.folder(in.NodeId)
	if st != fuse.OK {
		return st
	}
	n.clean.Store(false)
	if err := r.fs.Setxattr(c, cred(&in.InHeader), n.oid, name, append([]byte(nil), value...), int(in.Flags)); err != nil {
		return r.status("setxattr", err)
	}
	if in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID == 0 {
		return fuse.OK
	}
	a, err := r.fs.Getattr(c, nil, n.oid)
	if err == nil && a.Mode&unix.S_ISGID != 0 {
		_, err = r.fs.Setattr(c, nil, n.oid, nil, tree.SetAttr{Mask: tree.SetMode, Mode: a.Mode & 0o7777 &^ unix.S_ISGID})
	}
	return r.status("setxattr", err)
}

// RemoveXAttr is removexattr(2).
func (r *raw) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	c := r.begin(cancel, h)
	defer c.end()
	n, st := r.folder(h.NodeId)
	if st != fuse.OK {
		return st
	}
	return r.status("removexattr", r.fs.Removexattr(c, cred(h), n.oid, name))
}
