package fusefs

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// Lookup finds a name. That it is missing is cached too.
func (r *raw) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	c := r.begin(cancel, h)
	defer c.end()
	p, st := r.node(h.NodeId)
	if st != fuse.OK {
		return st
	}
	if p.ext.Load() != nil {
		return r.extLookup(c, h, p.ext.Load(), name, out)
	}
	if p.oid == kml.RootOID && name == tree.ExtDirName {
		if r.o.Ext == nil {
			return fuse.ENOENT
		}
		return r.extRoot(c, out)
	}
	since := r.ring.now()
	a, target, err := r.find(c, h, p, name)
	if errors.Is(err, unix.ENOENT) {
		// No node id: the kernel keeps that there is nothing.
		out.EntryValid, out.EntryValidNsec = r.entryFor, r.entryNs
		return fuse.OK
	}
	if err != nil {
		return r.status("lookup", err)
	}
	n := r.entry(out, &a, p.id, name, since, false)
	if target != nil {
		n.target.Store(target)
	}
	return fuse.OK
}

// find looks a name up, and a link's target with it: the kernel asks for that
// next, and by then a link that is being replaced may be gone.
func (r *raw) find(c *call, h *fuse.InHeader, p *node, name string) (a tree.Attr, target *string, err error) {
	const tries = 10
	for range tries {
		a, err = r.fs.Lookup(c, cred(h), p.oid, name)
		if err != nil || a.Mode&unix.S_IFMT != unix.S_IFLNK {
			return a, nil, err
		}
		if n := r.nodes.current(a.OID); n != nil && n.target.Load() != nil {
			return a, nil, nil
		}
		var s string
		if s, err = r.fs.Readlink(c, cred(h), a.OID); err == nil {
			return a, &s, nil
		}
		if !errors.Is(err, unix.ESTALE) && !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	return a, nil, err
}

// dirInfo is what new objects in a folder depend on.
func (r *raw) dirInfo(c *call, h *fuse.InHeader, p *node) (dirInfo, error) {
	if d := p.dir.Load(); d != nil {
		return *d, nil
	}
	since := p.changes.Load()
	a, err := r.fs.Getattr(c, cred(h), p.oid)
	if err != nil {
		return dirInfo{}, err
	}
	d := dirInfo{gid: a.GID, setgid: a.Mode&unix.S_ISGID != 0}
	switch _, err := r.fs.Getxattr(c, cred(h), p.oid, "system.posix_acl_default"); {
	case err == nil:
		d.acl = true
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP):
	default:
		return dirInfo{}, err
	}
	p.dir.Store(&d)
	if p.changes.Load() != since {
		p.dir.Store(nil)
	}
	return d, nil
}

// born is who owns a new object and its mode, after umask and folder.
func (r *raw) born(c *call, h *fuse.InHeader, p *node, mode, umask uint32) (*tree.Cred, uint32, error) {
	d, err := r.dirInfo(c, h, p)
	if err != nil {
		return nil, 0, err
	}
	cr := cred(h)
	if !d.acl {
		mode &^= umask & 0o777
	}
	if d.setgid {
		cr.GID = d.gid
		if mode&unix.S_IFMT == unix.S_IFDIR {
			mode |= unix.S_ISGID
		}
	}
	return cr, mode, nil
}

// make runs what makes an object and hands it out.
func (r *raw) make(op string, cancel <-chan struct{}, h *fuse.InHeader, name string, mode, umask uint32, out *fuse.EntryOut,
	f func(*call, *tree.Cred, kml.OID, uint32) (tree.Attr, error)) fuse.Status {
	c := r.begin(cancel, h)
	defer c.end()
	p, st := r.folder(h.NodeId)
	if st != fuse.OK {
		return st
	}
	cr, mode, err := r.born(c, h, p, mode, umask)
	if err != nil {
		return r.status(op, err)
	}
	since := r.ring.now()
	a, err := f(c, cr, p.oid, mode)
	r.caughtUp(c)
	if err != nil {
		return r.status(op, err)
	}
	r.entry(out, &a, p.id, name, since, true)
	return fuse.OK
}

// Mkdir is mkdir(2).
func (r *raw) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return r.make("mkdir", cancel, &in.InHeader, name, in.Mode&0o7777|unix.S_IFDIR, in.Umask, out,
		func(c *call, cr *tree.Cred, p kml.OID, mode uint32) (tree.Attr, error) {
			return r.fs.Mkdir(c, cr, p, name, mode&0o7777)
		})
}

// Mknod is mknod(2), for regular files too.
func (r *raw) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return r.make("mknod", cancel, &in.InHeader, name, in.Mode, in.Umask, out,
		func(c *call, cr *tree.Cred, p kml.OID, mode uint32) (tree.Attr, error) {
			if t := mode & unix.S_IFMT; t != unix.S_IFREG && t != 0 {
				return r.fs.Mknod(c, cr, p, name, mode, uint64(in.Rdev))
			}
			a, h, err := r.fs.Create(c, cr, p, name, unix.O_EXCL|unix.O_WRONLY, mode&0o7777)
			if err != nil {
				return a, err
			}
			return a, h.Close()
		})
}

// Symlink is symlink(2).
func (r *raw) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return r.make("symlink", cancel, h, name, unix.S_IFLNK|0o777, 0, out,
		func(c *call, cr *tree.Cred, p kml.OID, _ uint32) (tree.Attr, error) {
			return r.fs.Symlink(c, cr, p, name, target)
		})
}

// Readlink is readlink(2); an object's target never changes.
func (r *raw) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	c := r.begin(cancel, h)
	defer c.end()
	n, st := r.folder(h.NodeId)
	if st != fuse.OK {
		return nil, st
	}
	if t := n.target.Load(); t != nil {
		return []byte(*t), fuse.OK
	}
	target, err := r.fs.Readlink(c, cred(h), n.oid)
	return []byte(target), r.status("readlink", err)
}

// Link is link(2).
func (r *raw) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	p, st := r.folder(in.NodeId)
	if st != fuse.OK {
		return st
	}
	n, st := r.folder(in.Oldnodeid)
	if st != fuse.OK {
		return st
	}
	if r.nodes.isRetired(n) {
		return fuse.Status(unix.ESTALE)
	}
	since := r.ring.now()
	a, err := r.fs.Link(c, cred(&in.InHeader), n.oid, p.oid, name)
	r.caughtUp(c)
	if err != nil {
		return r.status("link", err)
	}
	r.entry(out, &a, p.id, name, since, true)
	out.AttrValid, out.AttrValidNsec = 0, 0
	return fuse.OK
}

// Unlink is unlink(2).
func (r *raw) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	c := r.begin(cancel, h)
	defer c.end()
	p, st := r.node(h.NodeId)
	if st != fuse.OK {
		return st
	}
	if p.ext.Load() != nil {
		return r.extRemove(c, h, p.ext.Load(), name)
	}
	return r.status("unlink", r.fs.Unlink(c, cred(h), p.oid, name))
}

// Rmdir is rmdir(2).
func (r *raw) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	c := r.begin(cancel, h)
	defer c.end()
	p, st := r.folder(h.NodeId)
	if st != fuse.OK {
		return st
	}
	return r.status("rmdir", r.fs.Rmdir(c, cred(h), p.oid, name))
}

// Rename is renameat2(2).
func (r *raw) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	p, st := r.folder(in.NodeId)
	if st != fuse.OK {
		return st
	}
	q, st := r.folder(in.Newdir)
	if st != fuse.OK {
		return st
	}
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL // RENAME_WHITEOUT
	}
	var victim tree.Handle
	if in.Flags == 0 {
		victim = r.victim(c, q.oid, to)
	}
	err := r.fs.Rename(c, cred(&in.InHeader), p.oid, from, q.oid, to, in.Flags)
	r.caughtUp(c)
	if victim != nil {
		r.limbo.keep(victim)
	}
	return r.status("rename", err)
}
