package tree

import (
	"context"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// Unlink is FS.Unlink.
func (t *Tree) Unlink(ctx context.Context, c *Cred, parent kml.OID, name string) error {
	r := t.record(c, kml.OpUnlink)
	r.Parent, r.Name = parent, name
	return t.remove(ctx, c, r, nil)
}

// Rmdir is FS.Rmdir.
func (t *Tree) Rmdir(ctx context.Context, c *Cred, parent kml.OID, name string) error {
	r := t.record(c, kml.OpRmdir)
	r.Parent, r.Name = parent, name
	return t.remove(ctx, c, r, nil)
}

// remove takes a name away. check, when given, may refuse what the name holds
// now; it runs under the locks.
func (t *Tree) remove(ctx context.Context, c *Cred, r *kml.Record, check func(k child) error) error {
	if err := checkName(r.Parent, r.Name); err != nil {
		return err
	}
	flags := 0
	if r.Op == kml.OpRmdir {
		flags = unix.AT_REMOVEDIR
	}
	in := func(f func(dirfd int) error) error { return t.inDir(ctx, r.Parent, r.Name, true, f) }
	if r.Op == kml.OpRmdir {
		in = func(f func(dirfd int) error) error { return t.inDirEmptied(ctx, r.Parent, r.Name, f) }
	}
	return t.answer(in(func(dirfd int) error {
		k, err := t.child(dirfd, r.Parent, r.Name)
		if err != nil {
			return err
		}
		if check != nil {
			if err := check(k); err != nil {
				return err
			}
		}
		defer t.objs.lock(k.oid).unlock()
		if err := t.refresh(&k, dirfd, r.Name); err != nil {
			return err
		}
		r.OID = k.oid
		r.Victim = t.victim(dirfd, r.Name, k)
		if r.Op == kml.OpRmdir || k.st.Nlink <= 1 {
			r.Flags |= kml.FlagGone
		}
		err = t.mutate(ctx, mutation{
			rec:    r,
			handle: k.handle,
			call:   func() error { return c.as(func() error { return unix.Unlinkat(dirfd, r.Name, flags) }) },
			result: func() (err error) {
				r.ParentMtime, err = mtimeOf(dirfd)
				return err
			},
		})
		if err == nil && r.Op == kml.OpRmdir {
			t.dirs.forget(k.oid)
			t.watcher.removed(k.handle)
		}
		return err
	}))
}

// refresh looks at a child's attributes again once its lock is held, if anything
// was journaled of it since: links may have come and gone.
func (t *Tree) refresh(k *child, dirfd int, name string) error {
	if now, err := t.index.Get(k.oid); err == nil && now == k.obj {
		return nil
	}
	return statAt(dirfd, name, &k.st)
}

// victim is what a record keeps of an object that loses a name.
func (t *Tree) victim(dirfd int, name string, k child) *kml.Victim {
	v := &kml.Victim{OID: k.oid, Version: k.obj.Version, DataVersion: k.obj.DataVersion, Attr: kmlAttr(&k.st)}
	if k.st.Mode&unix.S_IFMT == unix.S_IFLNK {
		b := make([]byte, unix.PathMax)
		if n, err := unix.Readlinkat(dirfd, name, b); err == nil {
			v.Target = string(b[:n])
		}
	}
	return v
}

// Rename is FS.Rename.
func (t *Tree) Rename(ctx context.Context, c *Cred, parent kml.OID, name string, newParent kml.OID, newName string, flags uint32) error {
	r := t.record(c, kml.OpRename)
	r.Parent, r.Name, r.NewParent, r.NewName = parent, name, newParent, newName
	if flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 || flags == unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE {
		return syscall.EINVAL
	}
	if flags&unix.RENAME_NOREPLACE != 0 {
		r.Flags |= kml.FlagNoReplace
	}
	if flags&unix.RENAME_EXCHANGE != 0 {
		r.Flags |= kml.FlagExchange
	}
	return t.rename(ctx, c, r, nil)
}

// rename moves r.Name to r.NewName. check, when given, may refuse what the two
// names hold now (the target's oid is 0 when it is free); it runs under the locks.
func (t *Tree) rename(ctx context.Context, c *Cred, r *kml.Record, check func(src, dst child) error) error {
	if err := checkName(r.Parent, r.Name); err != nil {
		return err
	}
	if err := checkName(r.NewParent, r.NewName); err != nil {
		return err
	}
	for range maxRetry {
		err := t.renameOnce(ctx, c, r, check)
		if errors.Is(err, errAgain) {
			continue
		}
		if !errors.Is(err, errMismatch) {
			return t.answer(err)
		}
		settle := settling(ctx)
		if err := t.reconcileName(settle, r.Parent, r.Name); err != nil {
			return err
		}
		if err := t.reconcileName(settle, r.NewParent, r.NewName); err != nil {
			return err
		}
	}
	return syscall.ESTALE
}

func (t *Tree) renameOnce(ctx context.Context, c *Cred, r *kml.Record, check func(src, dst child) error) error {
	held, _, _ := t.index.Child(r.NewParent, r.NewName)
	defer t.names.lock(r.Parent, r.NewParent, held).unlock() // a folder that is replaced must stay empty
	if now, _, _ := t.index.Child(r.NewParent, r.NewName); now != held {
		return errAgain
	}
	from, err := t.dirs.get(r.Parent)
	if err != nil {
		return mapDirErr(err)
	}
	defer from.release()
	to, err := t.dirs.get(r.NewParent)
	if err != nil {
		return mapDirErr(err)
	}
	defer to.release()
	look := t.childOnly
	if check != nil {
		look = t.child
	}
	src, err := look(from.fd, r.Parent, r.Name)
	if err != nil {
		return err
	}
	dst, err := t.target(to.fd, r, held, check != nil)
	if err != nil {
		return err
	}
	if check != nil {
		if err := check(src, dst); err != nil {
			return err
		}
	}
	if dst.oid == src.oid && r.Flags&kml.FlagNoReplace == 0 {
		return nil // rename(2): two names of one file, nothing happens
	}
	defer t.objs.lock(src.oid, dst.oid).unlock()
	if dst.oid != 0 {
		if err := t.refresh(&dst, to.fd, r.NewName); err != nil {
			return err
		}
	}
	r.OID = src.oid
	r.Victim, r.Flags = nil, r.Flags&^kml.FlagGone
	var how uint
	switch {
	case r.Flags&kml.FlagExchange != 0:
		how = unix.RENAME_EXCHANGE
		if dst.oid != 0 {
			r.Victim = t.victim(to.fd, r.NewName, dst)
		}
	case r.Flags&kml.FlagNoReplace != 0:
		how = unix.RENAME_NOREPLACE
	case dst.oid != 0:
		r.Victim = t.victim(to.fd, r.NewName, dst)
		if dst.st.Nlink <= 1 || dst.st.Mode&unix.S_IFMT == unix.S_IFDIR {
			r.Flags |= kml.FlagGone
		}
	default:
		return t.renameFree(ctx, c, r, src, from.fd, to.fd)
	}
	return t.renameCall(ctx, c, r, src, from.fd, to.fd, how)
}

// target is what the new name of a rename holds, with oid 0 when that is nothing.
// A plain rename to a name that the index does not know leaves the look at the
// disk to the kernel (see renameFree), unless it must be sure.
func (t *Tree) target(dirfd int, r *kml.Record, held kml.OID, sure bool) (child, error) {
	if held == 0 && !sure && r.Flags&(kml.FlagExchange|kml.FlagNoReplace) == 0 {
		return child{}, nil
	}
	k, err := t.child(dirfd, r.NewParent, r.NewName)
	return k, ignore(err, syscall.ENOENT)
}

// renameFree is a rename to a name that holds nothing as far as the index knows:
// the kernel is asked to see to that.
func (t *Tree) renameFree(ctx context.Context, c *Cred, r *kml.Record, src child, from, to int) error {
	err := t.renameCall(ctx, c, r, src, from, to, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, syscall.EEXIST):
		return errMismatch // somebody made it behind our back
	case !errors.Is(err, syscall.EINVAL):
		return err
	}
	// A folder into itself, or a file system that does not know the flag.
	if _, err := t.child(to, r.NewParent, r.NewName); !errors.Is(err, syscall.ENOENT) {
		if err == nil {
			err = errAgain
		}
		return err
	}
	return t.renameCall(ctx, c, r, src, from, to, 0)
}

func (t *Tree) renameCall(ctx context.Context, c *Cred, r *kml.Record, src child, from, to int, how uint) error {
	return t.mutate(ctx, mutation{
		rec:    r,
		handle: src.handle,
		call: func() error {
			return c.as(func() error { return unix.Renameat2(from, r.Name, to, r.NewName, how) })
		},
		result: func() (err error) {
			if r.ParentMtime, err = mtimeOf(from); err != nil {
				return err
			}
			if r.NewParent != r.Parent {
				r.NewParentMtime, err = mtimeOf(to)
			}
			return err
		},
	})
}
