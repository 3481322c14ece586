package export

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// FS is the tree as the master's front ends have to serve it: a change first
// waits until no client holds a lease that is in its way. In place, that is with
// a context that never ends, it is p9srv.ErrWouldBlock instead.
func (j *Journal) FS() tree.FS { return guarded{j.t, j.leases} }

var _ tree.FS = guarded{}

// guarded is the tree behind the leases of clients.
type guarded struct {
	*tree.Tree
	l *leases
}

// names lets a change of names in folders through.
func (g guarded) names(ctx context.Context, folders ...kml.OID) (leave func(), err error) {
	return g.l.enter(ctx, 0, touch{names: folders})
}

// exclusive is names for a change by which programs exclude each other: what others
// did before shows from then on.
func (g guarded) exclusive(ctx context.Context, what touch) (leave func(), err error) {
	leave, err = g.l.enter(ctx, 0, what)
	if err == nil {
		tree.CaughtUp(ctx)
	}
	return leave, err
}

// object lets a change of an object through.
func (g guarded) object(ctx context.Context, oid kml.OID) (leave func(), err error) {
	return g.l.enter(ctx, 0, touch{objs: []kml.OID{oid}})
}

// Create is tree.FS's.
func (g guarded) Create(ctx context.Context, c *tree.Cred, parent kml.OID, name string, flags int, mode uint32) (tree.Attr, tree.Handle, error) {
	leave, err := g.exclusive(ctx, touch{names: []kml.OID{parent}})
	if err != nil {
		return tree.Attr{}, nil, err
	}
	defer leave()
	a, h, err := g.Tree.Create(ctx, c, parent, name, flags, mode)
	if err != nil {
		return a, nil, err
	}
	return a, g.handle(h, flags), nil
}

// Mkdir is tree.FS's.
func (g guarded) Mkdir(ctx context.Context, c *tree.Cred, parent kml.OID, name string, mode uint32) (tree.Attr, error) {
	leave, err := g.exclusive(ctx, touch{names: []kml.OID{parent}})
	if err != nil {
		return tree.Attr{}, err
	}
	defer leave()
	return g.Tree.Mkdir(ctx, c, parent, name, mode)
}

// Symlink is tree.FS's.
func (g guarded) Symlink(ctx context.Context, c *tree.Cred, parent kml.OID, name, target string) (tree.Attr, error) {
	leave, err := g.exclusive(ctx, touch{names: []kml.OID{parent}})
	if err != nil {
		return tree.Attr{}, err
	}
	defer leave()
	return g.Tree.Symlink(ctx, c, parent, name, target)
}

// Mknod is tree.FS's.
func (g guarded) Mknod(ctx context.Context, c *tree.Cred, parent kml.OID, name string, mode uint32, rdev uint64) (tree.Attr, error) {
	leave, err := g.exclusive(ctx, touch{names: []kml.OID{parent}})
	if err != nil {
		return tree.Attr{}, err
	}
	defer leave()
	return g.Tree.Mknod(ctx, c, parent, name, mode, rdev)
}

// Link is tree.FS's.
func (g guarded) Link(ctx context.Context, c *tree.Cred, oid, parent kml.OID, name string) (tree.Attr, error) {
	leave, err := g.exclusive(ctx, touch{names: []kml.OID{parent}, objs: []kml.OID{oid}})
	if err != nil {
		return tree.Attr{}, err
	}
	defer leave()
	return g.Tree.Link(ctx, c, oid, parent, name)
}

// Unlink is tree.FS's.
func (g guarded) Unlink(ctx context.Context, c *tree.Cred, parent kml.OID, name string) error {
	leave, err := g.names(ctx, parent)
	if err != nil {
		return err
	}
	defer leave()
	return g.Tree.Unlink(ctx, c, parent, name)
}

// Rmdir is tree.FS's.
func (g guarded) Rmdir(ctx context.Context, c *tree.Cred, parent kml.OID, name string) error {
	leave, err := g.names(ctx, parent)
	if err != nil {
		return err
	}
	defer leave()
	return g.Tree.Rmdir(ctx, c, parent, name)
}

// Rename is tree.FS's.
func (g guarded) Rename(ctx context.Context, c *tree.Cred, parent kml.OID, name string, newParent kml.OID, newName string, flags uint32) error {
	enter := g.names
	if flags&unix.RENAME_NOREPLACE != 0 {
		enter = func(ctx context.Context, dirs ...kml.OID) (func(), error) {
			return g.exclusive(ctx, touch{names: dirs})
		}
	}
	leave, err := enter(ctx, parent, newParent)
	if err != nil {
		return err
	}
	defer leave()
	return g.Tree.Rename(ctx, c, parent, name, newParent, newName, flags)
}

// Open is tree.FS's.
func (g guarded) Open(ctx context.Context, c *tree.Cred, oid kml.OID, flags int) (tree.Handle, error) {
	if flags&unix.O_ACCMODE == unix.O_RDONLY && flags&unix.O_TRUNC == 0 {
		return g.Tree.Open(ctx, c, oid, flags)
	}
	leave, err := g.object(ctx, oid)
	if err != nil {
		return nil, err
	}
	defer leave()
	h, err := g.Tree.Open(ctx, c, oid, flags)
	if err != nil {
		return nil, err
	}
	return g.handle(h, flags), nil
}

// Setattr is tree.FS's.
func (g guarded) Setattr(ctx context.Context, c *tree.Cred, oid kml.OID, h tree.Handle, s tree.SetAttr) (tree.Attr, error) {
	if w, ok := h.(*guardedHandle); ok {
		h = w.Handle
	}
	leave, err := g.object(ctx, oid)
	if err != nil {
		return tree.Attr{}, err
	}
	defer leave()
	return g.Tree.Setattr(ctx, c, oid, h, s)
}

// Setxattr is tree.FS's.
func (g guarded) Setxattr(ctx context.Context, c *tree.Cred, oid kml.OID, name string, value []byte, flags int) error {
	leave, err := g.object(ctx, oid)
	if err != nil {
		return err
	}
	defer leave()
	return g.Tree.Setxattr(ctx, c, oid, name, value, flags)
}

// Removexattr is tree.FS's.
func (g guarded) Removexattr(ctx context.Context, c *tree.Cred, oid kml.OID, name string) error {
	leave, err := g.object(ctx, oid)
	if err != nil {
		return err
	}
	defer leave()
	return g.Tree.Removexattr(ctx, c, oid, name)
}

// handle is h, whose changes pass the leases when it can make any.
func (g guarded) handle(h tree.Handle, flags int) tree.Handle {
	if flags&unix.O_ACCMODE == unix.O_RDONLY {
		return h
	}
	return &guardedHandle{h, g}
}

// guardedHandle is an open file that may be written.
type guardedHandle struct {
	tree.Handle
	g guarded
}

// WriteAt is tree.Handle's.
func (h *guardedHandle) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	leave, err := h.g.object(ctx, h.OID())
	if err != nil {
		return 0, err
	}
	defer leave()
	return h.Handle.WriteAt(ctx, p, off)
}

// Allocate is tree.Handle's.
func (h *guardedHandle) Allocate(ctx context.Context, off, length uint64, mode uint32) error {
	leave, err := h.g.object(ctx, h.OID())
	if err != nil {
		return err
	}
	defer leave()
	return h.Handle.Allocate(ctx, off, length, mode)
}

// Pinned is tree.Pinner's.
func (h *guardedHandle) Pinned() bool {
	p, ok := h.Handle.(tree.Pinner)
	return ok && p.Pinned()
}

// Content is tree.Pinner's.
func (h *guardedHandle) Content() uint64 {
	if p, ok := h.Handle.(tree.Pinner); ok {
		return p.Content()
	}
	return 0
}
