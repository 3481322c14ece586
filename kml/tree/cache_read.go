package tree

import (
	"context"
	"errors"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// may checks a user's right by owner, group and mode where no kernel has done
// so. Access lists are the master's business: what it refuses is refused.
func (c *Cred) may(o *Object, want uint32) error {
	if c == nil || c.Checked || c.UID == 0 || want == 0 {
		return nil
	}
	have := o.Attr.Mode & 7
	switch {
	case c.UID == o.Attr.UID:
		have = o.Attr.Mode >> 6 & 7
	case c.inGroup(o.Attr.GID):
		have = o.Attr.Mode >> 3 & 7
	}
	if have&want != want {
		return syscall.EACCES
	}
	return nil
}

func (c *Cred) inGroup(gid uint32) bool {
	if c.GID == gid {
		return true
	}
	for _, g := range c.Groups {
		if g == gid {
			return true
		}
	}
	return false
}

// Lookup is FS.Lookup. A folder that is not listed is listed first.
func (c *Cache) Lookup(ctx context.Context, cred *Cred, parent kml.OID, name string) (Attr, error) {
	if parent == kml.RootOID && name == ExtDirName {
		return Attr{}, syscall.ENOENT
	}
	if err := checkName(parent, name); err != nil {
		return Attr{}, err
	}
	for range maxCacheRetry {
		dir, err := c.folder(ctx, cred, parent, unix.X_OK)
		if err != nil {
			return Attr{}, err
		}
		if !dir.Listed {
			if err := c.up.List(ctx, parent); err != nil {
				if a, ok := c.lookupStale(parent, name, err); ok {
					return a, nil
				}
				return Attr{}, err
			}
		}
		oid, ok := c.child(Name{parent, name})
		if !ok {
			if dir, err := c.get(parent); err == nil && dir.Listed {
				return Attr{}, syscall.ENOENT
			}
			continue
		}
		obj, err := c.get(oid)
		if err == nil {
			return c.attrOf(obj), nil
		}
		if !errors.Is(err, ErrNotFound) {
			return Attr{}, err
		}
	}
	return Attr{}, syscall.ESTALE
}

// lookupStale answers from what is left of a folder that cannot be listed
// because the master is away.
func (c *Cache) lookupStale(parent kml.OID, name string, err error) (Attr, bool) {
	if !errors.Is(err, syscall.EHOSTDOWN) {
		return Attr{}, false
	}
	oid, ok := c.child(Name{parent, name})
	if !ok {
		return Attr{}, false
	}
	obj, err := c.get(oid)
	if err != nil {
		return Attr{}, false
	}
	return c.attrOf(obj), true
}

// folder is a folder that the user may use as want says.
func (c *Cache) folder(ctx context.Context, cred *Cred, oid kml.OID, want uint32) (*Object, error) {
	dir, err := c.object(ctx, oid)
	if err != nil {
		return nil, err
	}
	if dir.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, syscall.ENOTDIR
	}
	if dir.Attr.Nlink == 0 && oid != kml.RootOID {
		return nil, syscall.ENOENT // removed while open
	}
	return dir, cred.may(dir, want)
}

// Parent is FS.Parent.
func (c *Cache) Parent(ctx context.Context, oid kml.OID) (kml.OID, error) {
	if oid == kml.RootOID {
		return oid, nil
	}
	obj, err := c.object(ctx, oid)
	if err != nil {
		return 0, err
	}
	return obj.Parent, nil
}

// Getattr is FS.Getattr.
func (c *Cache) Getattr(ctx context.Context, _ *Cred, oid kml.OID) (Attr, error) {
	obj, err := c.object(ctx, oid)
	if err != nil {
		return Attr{}, err
	}
	return c.attrOf(obj), nil
}

// attrOf joins what the master says of an object with what was written here.
func (c *Cache) attrOf(obj *Object) Attr {
	switch obj.Attr.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		a := obj.attr()
		a.Nlink = 1 // "not counted", as on btrfs: a folder's links are not in the log
		a.Size, a.Blocks = 4096, 8
		return a
	case unix.S_IFREG:
	default:
		return obj.attr()
	}
	o := c.objects.find(obj.OID)
	if o == nil {
		return obj.attr()
	}
	defer c.objects.release(o)
	o.mu.RLock()
	defer o.mu.RUnlock()
	// Where the bytes are, and what the index says of them, changes under mu.
	if now, err := c.known(o); err == nil {
		obj = now
	}
	a := obj.attr()
	if !o.local {
		return a
	}
	var st unix.Stat_t
	if unix.Stat(c.localPath(obj.OID), &st) != nil {
		return a
	}
	a.isFile(&st)
	a.DataVersion = DataDirty | o.writes.Load()
	return a
}

// attr is what the master says of an object.
func (o *Object) attr() Attr {
	k := o.Attr
	a := Attr{OID: o.OID, Mode: k.Mode, Nlink: k.Nlink, UID: k.UID, GID: k.GID, Rdev: k.Rdev, Size: k.Size,
		Atime: max(k.Atime, k.Mtime), Mtime: k.Mtime, Ctime: o.Ctime, Btime: o.Btime,
		Version: o.Version, DataVersion: uint64(o.DataVersion), Blocks: (k.Size + 511) / 512}
	if k.Mode&unix.S_IFMT == unix.S_IFREG {
		a.Content = o.content()
	}
	return a
}

// isFile takes size and times from the file that has an object's bytes.
func (a *Attr) isFile(st *unix.Stat_t) {
	a.Size, a.Blocks = uint64(st.Size), uint64(st.Blocks)
	a.Mtime, a.Atime = st.Mtim.Nano(), st.Atim.Nano()
	a.Ctime = max(a.Ctime, st.Ctim.Nano())
}

// Readlink is FS.Readlink.
func (c *Cache) Readlink(ctx context.Context, _ *Cred, oid kml.OID) (string, error) {
	obj, err := c.object(ctx, oid)
	if err != nil {
		return "", err
	}
	if obj.Attr.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", syscall.EINVAL
	}
	return obj.Target, nil
}

// Getxattr is FS.Getxattr.
func (c *Cache) Getxattr(ctx context.Context, cred *Cred, oid kml.OID, name string) ([]byte, error) {
	obj, err := c.object(ctx, oid)
	if err != nil {
		return nil, err
	}
	for _, x := range obj.Xattrs {
		if x.Name == name {
			return x.Value, nil
		}
	}
	return nil, syscall.ENODATA
}

// Listxattr is FS.Listxattr.
func (c *Cache) Listxattr(ctx context.Context, _ *Cred, oid kml.OID) ([]string, error) {
	obj, err := c.object(ctx, oid)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(obj.Xattrs))
	for i, x := range obj.Xattrs {
		names[i] = x.Name
	}
	return names, nil
}

// Statfs is FS.Statfs, of the file system the cache lies on.
func (c *Cache) Statfs(context.Context, kml.OID) (Statfs, error) {
	fd, err := unix.Open(c.dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return Statfs{}, err
	}
	defer unix.Close(fd)
	var s unix.Statfs_t
	if err := unix.Fstatfs(fd, &s); err != nil {
		return Statfs{}, err
	}
	return Statfs{
		Type: uint32(s.Type), Bsize: uint32(s.Bsize), Namelen: uint32(s.Namelen), FragmentLen: uint32(s.Frsize),
		Blocks: s.Blocks, Bfree: s.Bfree, Bavail: s.Bavail, Files: s.Files, Ffree: s.Ffree,
		FsidLow: uint32(s.Fsid.Val[0]), FsidHigh: uint32(s.Fsid.Val[1]),
	}, nil
}

// Watch is FS.Watch.
func (c *Cache) Watch(f func(Change)) (cancel func()) { return c.watch.add(f) }

// cacheDir is an open folder of a Cache.
type cacheDir struct {
	c   *Cache
	oid kml.OID

	mu  sync.Mutex
	pic picture
}

// OpenDir is FS.OpenDir.
func (c *Cache) OpenDir(ctx context.Context, cred *Cred, oid kml.OID) (DirHandle, error) {
	if _, err := c.folder(ctx, cred, oid, unix.R_OK); err != nil {
		return nil, err
	}
	return &cacheDir{c: c, oid: oid}, nil
}

// ReadDir is DirHandle.ReadDir.
func (h *cacheDir) ReadDir(ctx context.Context, off uint64, most int) ([]DirEntry, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if off == 0 || !h.pic.taken {
		list, err := h.c.list(ctx, h.oid)
		if err != nil {
			return nil, err
		}
		h.pic = takePicture(list)
	}
	return h.pic.after(off, most), nil
}

// Close is DirHandle.Close.
func (h *cacheDir) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pic = picture{}
	return nil
}

// list is the present names of a folder.
func (c *Cache) list(ctx context.Context, oid kml.OID) ([]DirEntry, error) {
	dir, err := c.object(ctx, oid)
	if err != nil {
		return nil, err
	}
	if dir.Attr.Nlink == 0 && oid != kml.RootOID && !dir.Listed {
		return nil, nil // removed while open
	}
	if !dir.Listed {
		if err := c.up.List(ctx, oid); err != nil {
			return nil, err
		}
	}
	c.amu.Lock() // one picture: no record is applied meanwhile
	defer c.amu.Unlock()
	es, err := c.children(oid)
	if err != nil {
		return nil, err
	}
	list := make([]DirEntry, 0, len(es))
	for _, e := range es {
		obj, err := c.get(e.OID)
		if err != nil {
			continue // its folder is about to be listed again
		}
		list = append(list, DirEntry{Name: e.Name, OID: e.OID, Type: obj.Attr.Mode & unix.S_IFMT})
	}
	return list, nil
}
