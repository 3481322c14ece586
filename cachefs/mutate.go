package cachefs

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

func (c *Client) record(cred *tree.Cred, op kml.Op) *kml.Record {
	r := &kml.Record{Op: op, Time: c.o.Now().UnixNano()}
	r.UID, r.GID = cred.Author()
	return r
}

// parent checks that the user may change a folder's names.
func (c *Client) parent(cred *tree.Cred, oid kml.OID) (*tree.Object, error) {
	dir, err := c.cache.Object(oid)
	if errors.Is(err, tree.ErrNotFound) {
		return nil, syscall.ENOENT
	}
	if err != nil {
		return nil, err
	}
	return dir, cred.May(dir, unix.W_OK|unix.X_OK)
}

// free checks that a name is free and its folder the user's to change.
func (c *Client) free(ctx context.Context, cred *tree.Cred, parent kml.OID, name string) (*tree.Object, error) {
	switch _, err := c.cache.Lookup(ctx, cred, parent, name); {
	case err == nil:
		return nil, syscall.EEXIST
	case !errors.Is(err, syscall.ENOENT):
		return nil, err
	}
	return c.parent(cred, parent)
}

// make makes a new object and returns its attributes. With exclusive the master
// decides whether the name is free.
func (c *Client) make(ctx context.Context, cred *tree.Cred, r *kml.Record, exclusive bool) (tree.Attr, error) {
	err := c.change(ctx, exclusive, func() (*kml.Record, error) {
		dir, err := c.free(ctx, cred, r.Parent, r.Name)
		if err != nil {
			return nil, err
		}
		n := *r
		n.Origin = kml.Origin{}
		if n.OID, err = c.cache.State().MintOID(); err != nil {
			return nil, err
		}
		n.Time = c.o.Now().UnixNano()
		n.Attr.UID, n.Attr.GID, n.Attr.Mtime = n.UID, n.GID, n.Time
		n.Attr.Nlink = 1
		if n.Op == kml.OpMkdir {
			n.Attr.Nlink = 2
		}
		if dir.Attr.Mode&unix.S_ISGID != 0 { // as BSD and every Linux file system do
			n.Attr.GID = dir.Attr.GID
			if n.Op == kml.OpMkdir {
				n.Attr.Mode |= unix.S_ISGID
			}
		}
		r.OID = n.OID
		return &n, nil
	})
	if err != nil {
		return tree.Attr{}, err
	}
	return c.cache.Getattr(ctx, nil, r.OID)
}

// Create is tree.FS's.
func (c *Client) Create(ctx context.Context, cred *tree.Cred, parent kml.OID, name string, flags int, mode uint32) (tree.Attr, tree.Handle, error) {
	for range maxTries {
		r := c.record(cred, kml.OpCreate)
		r.Parent, r.Name, r.Attr.Mode = c.now(parent), name, unix.S_IFREG|mode&07777
		a, err := c.make(ctx, cred, r, flags&unix.O_EXCL != 0)
		if err == nil {
			// Who makes a file may write it whatever its mode says.
			owner := &tree.Cred{UID: r.UID, GID: r.GID, Checked: true}
			h, err := c.cache.Open(ctx, owner, a.OID, flags&^(unix.O_TRUNC|unix.O_CREAT|unix.O_EXCL))
			return a, h, err
		}
		if !errors.Is(err, syscall.EEXIST) || flags&unix.O_EXCL != 0 {
			return tree.Attr{}, nil, err
		}
		if a, err = c.cache.Lookup(ctx, cred, c.now(parent), name); errors.Is(err, syscall.ENOENT) {
			continue
		}
		if err != nil {
			return tree.Attr{}, nil, err
		}
		h, err := c.cache.Open(ctx, cred, a.OID, flags)
		if errors.Is(err, syscall.ESTALE) {
			continue // removed in between
		}
		if err != nil {
			return tree.Attr{}, nil, err
		}
		a, err = h.Attr(ctx)
		return a, h, err
	}
	return tree.Attr{}, nil, syscall.EEXIST
}

// Mkdir is tree.FS's.
func (c *Client) Mkdir(ctx context.Context, cred *tree.Cred, parent kml.OID, name string, mode uint32) (tree.Attr, error) {
	r := c.record(cred, kml.OpMkdir)
	r.Parent, r.Name, r.Attr.Mode = c.now(parent), name, unix.S_IFDIR|mode&07777
	return c.make(ctx, cred, r, true)
}

// Symlink is tree.FS's.
func (c *Client) Symlink(ctx context.Context, cred *tree.Cred, parent kml.OID, name, target string) (tree.Attr, error) {
	if target == "" {
		return tree.Attr{}, syscall.ENOENT
	}
	if len(target) >= unix.PathMax {
		return tree.Attr{}, syscall.ENAMETOOLONG
	}
	r := c.record(cred, kml.OpSymlink)
	r.Parent, r.Name, r.Target, r.Attr.Mode, r.Attr.Size = c.now(parent), name, target, unix.S_IFLNK|0o777, uint64(len(target))
	return c.make(ctx, cred, r, true)
}

// Mknod is tree.FS's.
func (c *Client) Mknod(ctx context.Context, cred *tree.Cred, parent kml.OID, name string, mode uint32, rdev uint64) (tree.Attr, error) {
	op := kml.OpMknod
	switch mode & unix.S_IFMT {
	case 0, unix.S_IFREG:
		op, mode, rdev = kml.OpCreate, mode|unix.S_IFREG, 0
	case unix.S_IFIFO, unix.S_IFSOCK:
		rdev = 0
	case unix.S_IFCHR, unix.S_IFBLK:
	default:
		return tree.Attr{}, syscall.EINVAL
	}
	r := c.record(cred, op)
	r.Parent, r.Name, r.Attr.Mode, r.Attr.Rdev = parent, name, mode, rdev
	return c.make(ctx, cred, r, true)
}

// Link is tree.FS's.
func (c *Client) Link(ctx context.Context, cred *tree.Cred, oid, parent kml.OID, name string) (tree.Attr, error) {
	oid, parent = c.now(oid), c.now(parent)
	err := c.change(ctx, true, func() (*kml.Record, error) {
		a, err := c.cache.Getattr(ctx, cred, oid)
		if err != nil {
			return nil, err
		}
		switch {
		case a.Mode&unix.S_IFMT == unix.S_IFDIR:
			return nil, syscall.EPERM
		case a.Nlink == 0:
			return nil, syscall.ENOENT
		}
		if _, err := c.free(ctx, cred, parent, name); err != nil {
			return nil, err
		}
		r := c.record(cred, kml.OpLink)
		r.OID, r.Parent, r.Name = oid, parent, name
		return r, nil
	})
	if err != nil {
		return tree.Attr{}, err
	}
	return c.cache.Getattr(ctx, cred, oid)
}

// Unlink is tree.FS's.
func (c *Client) Unlink(ctx context.Context, cred *tree.Cred, parent kml.OID, name string) error {
	return c.remove(ctx, cred, kml.OpUnlink, parent, name)
}

// Rmdir is tree.FS's.
func (c *Client) Rmdir(ctx context.Context, cred *tree.Cred, parent kml.OID, name string) error {
	return c.remove(ctx, cred, kml.OpRmdir, parent, name)
}

func (c *Client) remove(ctx context.Context, cred *tree.Cred, op kml.Op, parent kml.OID, name string) error {
	parent = c.now(parent)
	return c.change(ctx, false, func() (*kml.Record, error) {
		a, err := c.cache.Lookup(ctx, cred, parent, name)
		if err != nil {
			return nil, err
		}
		dir, err := c.parent(cred, parent)
		if err != nil {
			return nil, err
		}
		isDir := a.Mode&unix.S_IFMT == unix.S_IFDIR
		switch {
		case op == kml.OpUnlink && isDir:
			return nil, syscall.EISDIR
		case op == kml.OpRmdir && !isDir:
			return nil, syscall.ENOTDIR
		}
		if err := sticky(cred, dir, a); err != nil {
			return nil, err
		}
		r := c.record(cred, op)
		r.Parent, r.Name, r.OID = parent, name, a.OID
		return r, nil
	})
}

// sticky is the rule of folders such as /tmp: only owners remove.
func sticky(cred *tree.Cred, dir *tree.Object, a tree.Attr) error {
	if cred == nil || cred.Checked || cred.UID == 0 || dir.Attr.Mode&unix.S_ISVTX == 0 {
		return nil
	}
	if cred.UID != dir.Attr.UID && cred.UID != a.UID {
		return syscall.EPERM
	}
	return nil
}

// Rename is tree.FS's.
func (c *Client) Rename(ctx context.Context, cred *tree.Cred, parent kml.OID, name string, newParent kml.OID, newName string, flags uint32) error {
	if flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 || flags == unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE {
		return syscall.EINVAL
	}
	parent, newParent = c.now(parent), c.now(newParent)
	return c.change(ctx, flags == unix.RENAME_NOREPLACE, func() (*kml.Record, error) {
		src, err := c.cache.Lookup(ctx, cred, parent, name)
		if err != nil {
			return nil, err
		}
		dst, err := c.cache.Lookup(ctx, cred, newParent, newName)
		free := errors.Is(err, syscall.ENOENT)
		switch {
		case err != nil && !free:
			return nil, err
		case free && flags&unix.RENAME_EXCHANGE != 0:
			return nil, syscall.ENOENT
		case !free && flags&unix.RENAME_NOREPLACE != 0:
			return nil, syscall.EEXIST
		case !free && src.OID == dst.OID:
			return nil, nil
		}
		from, err := c.parent(cred, parent)
		if err != nil {
			return nil, err
		}
		to, err := c.parent(cred, newParent)
		if err != nil {
			return nil, err
		}
		if err := sticky(cred, from, src); err != nil {
			return nil, err
		}
		r := c.record(cred, kml.OpRename)
		r.OID, r.Parent, r.Name, r.NewParent, r.NewName = src.OID, parent, name, newParent, newName
		switch flags {
		case unix.RENAME_NOREPLACE:
			r.Flags |= kml.FlagNoReplace
		case unix.RENAME_EXCHANGE:
			r.Flags |= kml.FlagExchange
		}
		if !free {
			if err := sticky(cred, to, dst); err != nil {
				return nil, err
			}
			r.Victim = &kml.Victim{OID: dst.OID, Version: dst.Version}
		}
		return r, nil
	})
}

// Setattr is tree.FS's. Times set on a file that is open-dirty go with its next
// store; any other change is a record.
func (c *Client) Setattr(ctx context.Context, cred *tree.Cred, oid kml.OID, h tree.Handle, s tree.SetAttr) (tree.Attr, error) {
	oid = c.now(oid)
	if s.Mask&tree.SetSize != 0 {
		if err := c.cache.Truncate(ctx, cred, oid, h, s.Size); err != nil {
			return tree.Attr{}, err
		}
		s.Mask &^= tree.SetSize
	}
	if s.Mask&tree.SetMtimeNow != 0 {
		s.Mtime = c.o.Now().UnixNano()
		s.Mask |= tree.SetMtime
	}
	// An access time alone is nobody else's business, and nobody's here.
	s.Mask &^= tree.SetAtime | tree.SetAtimeNow | tree.SetMtimeNow
	if s.Mask == 0 {
		return c.cache.Getattr(ctx, cred, oid)
	}
	if s.Mask == tree.SetMtime {
		if ok, err := c.cache.SetLocalMtime(oid, s.Mtime); err != nil {
			return tree.Attr{}, err
		} else if ok {
			return c.cache.Getattr(ctx, cred, oid)
		}
	}
	err := c.change(ctx, false, func() (*kml.Record, error) { return c.setattr(ctx, cred, oid, s) })
	if err != nil {
		return tree.Attr{}, err
	}
	return c.cache.Getattr(ctx, cred, oid)
}

func (c *Client) setattr(ctx context.Context, cred *tree.Cred, oid kml.OID, s tree.SetAttr) (*kml.Record, error) {
	a, err := c.cache.Getattr(ctx, cred, oid)
	if err != nil {
		return nil, err
	}
	if a.Nlink == 0 && a.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, nil // unlinked and open: nobody can ask the master for it
	}
	if s.Mask&tree.SetMode != 0 && a.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil, syscall.EOPNOTSUPP
	}
	if cred != nil && !cred.Checked && cred.UID != 0 && cred.UID != a.UID {
		return nil, syscall.EPERM
	}
	r := c.record(cred, kml.OpSetattr)
	r.OID, r.HadOld = oid, true
	r.Old = kml.Attr{Mode: a.Mode, UID: a.UID, GID: a.GID, Mtime: a.Mtime}
	r.Attr = r.Old
	// What is as asked for already needs no record: tar sets owner and mode of
	// every file it has just made. An owner that is set takes the set-id bits
	// away, so it does not count as unchanged while there are any.
	setid := a.Mode&(unix.S_ISUID|unix.S_ISGID) != 0
	if mode := a.Mode&unix.S_IFMT | s.Mode&07777; s.Mask&tree.SetMode != 0 && (mode != a.Mode || setid) {
		r.Attr.Mode, r.Mask = mode, r.Mask|kml.MaskMode
	}
	if s.Mask&tree.SetUID != 0 && (s.UID != a.UID || setid) {
		r.Attr.UID, r.Mask = s.UID, r.Mask|kml.MaskUID
	}
	if s.Mask&tree.SetGID != 0 && (s.GID != a.GID || setid) {
		r.Attr.GID, r.Mask = s.GID, r.Mask|kml.MaskGID
	}
	if s.Mask&tree.SetMtime != 0 && s.Mtime != a.Mtime {
		r.Attr.Mtime, r.Mask = s.Mtime, r.Mask|kml.MaskMtime
	}
	if r.Mask == 0 {
		return nil, nil
	}
	if r.Mask&(kml.MaskUID|kml.MaskGID) != 0 && s.Mask&tree.SetMode == 0 && setid && a.Mode&unix.S_IFMT == unix.S_IFREG {
		r.Attr.Mode, r.Mask = a.Mode&^unix.S_ISUID, r.Mask|kml.MaskMode // as chown(2) does
		if a.Mode&unix.S_IXGRP != 0 {
			r.Attr.Mode &^= unix.S_ISGID
		}
	}
	return r, nil
}

// Setxattr is tree.FS's.
func (c *Client) Setxattr(ctx context.Context, cred *tree.Cred, oid kml.OID, name string, value []byte, flags int) error {
	if !tree.JournaledXattr(name) {
		return syscall.EOPNOTSUPP
	}
	oid = c.now(oid)
	return c.change(ctx, false, func() (*kml.Record, error) {
		if err := c.mayHave(ctx, oid, name); err != nil {
			return nil, err
		}
		old, err := c.cache.Getxattr(ctx, cred, oid, name)
		has := err == nil
		switch {
		case err != nil && !errors.Is(err, syscall.ENODATA):
			return nil, err
		case has && flags&unix.XATTR_CREATE != 0:
			return nil, syscall.EEXIST
		case !has && flags&unix.XATTR_REPLACE != 0:
			return nil, syscall.ENODATA
		}
		r := c.record(cred, kml.OpSetxattr)
		r.OID, r.Name, r.Value, r.HadOld, r.OldValue = oid, name, value, has, old
		return r, nil
	})
}

// mayHave is the rule of xattr(7): only files and folders have attributes of
// users.
func (c *Client) mayHave(ctx context.Context, oid kml.OID, name string) error {
	if !strings.HasPrefix(name, "user.") {
		return nil
	}
	a, err := c.cache.Getattr(ctx, nil, oid)
	if err != nil {
		return err
	}
	if t := a.Mode & unix.S_IFMT; t != unix.S_IFREG && t != unix.S_IFDIR {
		return syscall.EPERM
	}
	return nil
}

// Removexattr is tree.FS's.
func (c *Client) Removexattr(ctx context.Context, cred *tree.Cred, oid kml.OID, name string) error {
	oid = c.now(oid)
	return c.change(ctx, false, func() (*kml.Record, error) {
		old, err := c.cache.Getxattr(ctx, cred, oid, name)
		if err != nil {
			return nil, err
		}
		r := c.record(cred, kml.OpRemovexattr)
		r.OID, r.Name, r.HadOld, r.OldValue = oid, name, true, old
		return r, nil
	})
}
