package p9srv

import (
	"context"
	"errors"
	"syscall"

	"github.com/hugelgupf/p9/linux"
	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// inFolder runs f, which makes or removes name in the folder c.a, with the
// write guarantee.
func (c *call) inFolder(name string, f func(dir p9.File) error) error {
	if err := checkName(name); err != nil {
		return err
	}
	c.a.lock()
	defer c.a.unlock()
	if err := checkFolder(c.a); err != nil {
		return err
	}
	return f(c.bind(c.a.file))
}

func (c *call) mkdir() error {
	var m wire.Tmkdir
	if err := m.Decode(c.body); err != nil {
		return err
	}
	return c.inFolder(m.Name, func(dir p9.File) error {
		q, err := dir.Mkdir(m.Name, m.Mode&permissions, c.uid(), m.GID)
		if err == nil {
			c.out = (&wire.Rmkdir{QID: q}).Append(c.out, c.tag)
		}
		return err
	})
}

func (c *call) symlink() error {
	var m wire.Tsymlink
	if err := m.Decode(c.body); err != nil {
		return err
	}
	return c.inFolder(m.Name, func(dir p9.File) error {
		q, err := dir.Symlink(m.Target, m.Name, c.uid(), m.GID)
		if err == nil {
			c.out = (&wire.Rsymlink{QID: q}).Append(c.out, c.tag)
		}
		return err
	})
}

func (c *call) mknod() error {
	var m wire.Tmknod
	if err := m.Decode(c.body); err != nil {
		return err
	}
	if err := c.s.srv.opts.mayHave(m.Mode); err != nil {
		return err
	}
	return c.inFolder(m.Name, func(dir p9.File) error {
		q, err := dir.Mknod(m.Name, m.Mode&(permissions|p9.FileModeMask), m.Major, m.Minor, c.uid(), m.GID)
		if err == nil {
			c.out = (&wire.Rmknod{QID: q}).Append(c.out, c.tag)
		}
		return err
	})
}

func (c *call) link() error {
	var m wire.Tlink
	if err := m.Decode(c.body); err != nil {
		return err
	}
	if err := c.linkable(); err != nil {
		return err
	}
	return c.inFolder(m.Name, func(dir p9.File) error {
		err := dir.Link(c.b.file, m.Name)
		if err == nil {
			c.out = (&wire.Rlink{}).Append(c.out, c.tag)
		}
		return err
	})
}

// linkable says whether what c.b is may have one more name, in c.a.
func (c *call) linkable() error {
	switch {
	case c.b == nil || !c.b.live || c.b.xattr != nil:
		return syscall.EBADF
	case c.b.isDir():
		return syscall.EPERM
	case c.b.gone():
		return syscall.ENOENT
	case !sameTree(c.a, c.b):
		return syscall.EXDEV
	}
	return nil
}

// sameTree says that two fids may be arguments of one operation.
func sameTree(a, b *slot) bool {
	if a.place == nil || b.place == nil {
		return a.place == nil && b.place == nil
	}
	return a.place.tree == b.place.tree
}

func (c *call) unlinkat() error {
	var m wire.Tunlinkat
	if err := m.Decode(c.body); err != nil {
		return err
	}
	if m.Flags&^wire.UnlinkRemoveDir != 0 {
		return syscall.EINVAL
	}
	return c.inFolder(m.Name, func(dir p9.File) error {
		err := c.unlink(c.a.place, dir, m.Name, m.Flags)
		if err == nil {
			c.out = (&wire.Runlinkat{}).Append(c.out, c.tag)
		}
		return err
	})
}

// unlink removes a name from a folder that is locked.
func (c *call) unlink(pl *place, dir p9.File, name string, flags uint32) error {
	if pl == nil {
		return dir.UnlinkAt(name, flags)
	}
	// Many Files remove whatever has the name: look first.
	q, f, err := c.walkOne(pl.file, name)
	if err != nil {
		return err
	}
	_ = f.Close()
	folder := q.Type&p9.TypeDir != 0
	switch wants := flags&wire.UnlinkRemoveDir != 0; {
	case folder && !wants:
		return syscall.EISDIR
	case wants && !folder:
		return syscall.ENOTDIR
	}
	defer pl.lockChild(name)()
	if err := dir.UnlinkAt(name, flags); err != nil {
		return err
	}
	pl.removed(name)
	return nil
}

func (c *call) renameat() error {
	var m wire.Trenameat
	if err := m.Decode(c.body); err != nil {
		return err
	}
	for _, n := range []string{m.OldName, m.NewName} {
		if err := checkName(n); err != nil {
			return err
		}
	}
	if err := c.renameAt(m.OldName, m.NewName); err != nil {
		return err
	}
	c.out = (&wire.Rrenameat{}).Append(c.out, c.tag)
	return nil
}

func (c *call) renameAt(oldName, newName string) error {
	from, to := c.a, c.b
	switch {
	case !to.live:
		return syscall.EBADF
	case !sameTree(from, to):
		return syscall.EXDEV
	}
	if from.place != nil {
		from.place.tree.names.Lock()
		defer from.place.tree.names.Unlock()
	}
	for _, sl := range []*slot{from, to} {
		if err := checkFolder(sl); err != nil {
			return err
		}
	}
	if from.place != nil && from.place.into(oldName, to.place) {
		return syscall.EINVAL
	}
	if err := c.bind(from.file).RenameAt(oldName, to.file, newName); err != nil {
		return err
	}
	if from.place != nil {
		from.place.renamed(oldName, to.place, newName)
	}
	return nil
}

// rename is Trename, the rename of clients that have no Trenameat.
func (c *call) rename() error {
	var m wire.Trename
	if err := m.Decode(c.body); err != nil {
		return err
	}
	if err := checkName(m.Name); err != nil {
		return err
	}
	if err := c.renameFid(m.Name); err != nil {
		return err
	}
	c.out = (&wire.Rrename{}).Append(c.out, c.tag)
	return nil
}

// entry is the folder that has the object of a fid, and its name there. The tree's
// names are locked.
func (sl *fidState) entry() (dir *place, name string, err error) {
	switch {
	case sl.gone():
		return nil, "", syscall.ENOENT
	case sl.place.parent == nil || sl.place.node == sl.top:
		return nil, "", syscall.EBUSY
	}
	return sl.place.parent, sl.place.node.name, nil
}

func (c *call) renameFid(name string) error {
	f, to := c.a, c.b
	switch {
	case !to.live:
		return syscall.EBADF
	case !sameTree(f, to):
		return syscall.EXDEV
	}
	if f.place == nil {
		if err := checkFolder(to); err != nil {
			return err
		}
		return unsupported(c.bind(f.file).Rename(to.file, name))
	}
	t := f.place.tree
	t.names.Lock()
	defer t.names.Unlock()
	if err := checkFolder(to); err != nil {
		return err
	}
	parent, old, err := f.entry()
	if err != nil {
		return err
	}
	if parent.into(old, to.place) {
		return syscall.EINVAL
	}
	if err := c.bind(parent.file).RenameAt(old, to.file, name); err != nil {
		return err
	}
	parent.renamed(old, to.place, name)
	return nil
}

// unsupported makes ENOSYS, which some Files return for what they cannot,
// EOPNOTSUPP, which Linux takes for "try another way".
func unsupported(err error) error {
	if errors.Is(err, syscall.ENOSYS) || errors.Is(err, linux.ENOSYS) {
		return syscall.EOPNOTSUPP
	}
	return err
}

// remove is Tremove: the fid goes whether or not the file does.
func (c *call) remove() error {
	var m wire.Tremove
	if err := m.Decode(c.body); err != nil {
		return err
	}
	err := c.removeFid()
	if c.ctx == nil && errors.Is(err, ErrWouldBlock) {
		return err
	}
	_ = c.clear(c.a)
	if err != nil {
		return err
	}
	c.out = (&wire.Rremove{}).Append(c.out, c.tag)
	return nil
}

func (c *call) removeFid() error {
	f := c.a
	if f.xattr != nil {
		return syscall.EBADF
	}
	if f.place == nil {
		r, ok := f.file.(Remover)
		if !ok {
			return syscall.EOPNOTSUPP
		}
		var ctx context.Context = c.ctx
		if c.ctx == nil {
			ctx = c.s.ctx
		}
		return r.Remove(ctx)
	}
	t := f.place.tree
	t.names.Lock()
	defer t.names.Unlock()
	parent, name, err := f.entry()
	if err != nil {
		return err
	}
	flags := uint32(0)
	if f.isDir() {
		flags = wire.UnlinkRemoveDir
	}
	if err := c.bind(parent.file).UnlinkAt(name, flags); err != nil {
		return err
	}
	parent.removed(name)
	return nil
}
