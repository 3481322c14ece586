package tree

import (
	"context"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// SnapshotEntry is one name of a tree at a position: a record that would make
// it (create, mkdir, symlink, mknod; link for a further name), and the versions
// of its object.
type SnapshotEntry struct {
	Record      *kml.Record
	Version     kml.Position
	DataVersion kml.Position
}

// Snapshot calls f for oid and, as far as depth reaches, for what is below it:
// 0 the object alone, 1 a folder's entries too, -1 everything. A folder comes
// before its entries. All is as of the position returned, which begin, when not
// nil, hears first. Contents are not part of it; an open-dirty file is described
// by its last store.
func (t *Tree) Snapshot(ctx context.Context, oid kml.OID, depth int, begin func(kml.Position) error, f func(SnapshotEntry) error) (kml.Position, error) {
	if depth != 0 {
		if err := t.settle(ctx, oid, depth); err != nil {
			return 0, err
		}
	}
	t.jmu.Lock()
	pos := t.log.End()
	view, err := t.index.View()
	t.jmu.Unlock()
	if err != nil {
		return 0, err
	}
	defer view.Close()
	if begin != nil {
		if err := begin(pos); err != nil {
			return 0, err
		}
	}
	s := snapshot{t: t, ctx: ctx, view: view, f: f, seen: make(map[kml.OID]bool)}
	root, err := view.Get(oid)
	if errors.Is(err, ErrNotFound) {
		return pos, syscall.ENOENT
	}
	if err != nil {
		return pos, err
	}
	return pos, s.walk(root, root.Parent, root.Name, depth)
}

// settle journals what changed behind the tree's back in the folder that is
// about to be described.
func (t *Tree) settle(ctx context.Context, oid kml.OID, depth int) error {
	if depth < 0 {
		return nil // the whole tree is looked at by Scan, and by its use
	}
	h, err := t.OpenDir(ctx, nil, oid)
	if errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = h.ReadDir(ctx, 0, 1)
	return errors.Join(err, h.Close())
}

type snapshot struct {
	t    *Tree
	ctx  context.Context
	view *View
	f    func(SnapshotEntry) error
	seen map[kml.OID]bool // files with several names that were described
}

func (s *snapshot) walk(o *Object, parent kml.OID, name string, depth int) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	if err := s.entry(o, parent, name); err != nil {
		return err
	}
	if depth == 0 || o.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	for after := ""; ; {
		es, err := s.view.Children(o.OID, after, 1024)
		if err != nil || len(es) == 0 {
			return err
		}
		for _, e := range es {
			k, err := s.view.Get(e.OID)
			if err != nil {
				return err
			}
			if err := s.walk(k, o.OID, e.Name, depth-1); err != nil {
				return err
			}
		}
		after = es[len(es)-1].Name
	}
}

func (s *snapshot) entry(o *Object, parent kml.OID, name string) error {
	r := &kml.Record{OID: o.OID, Parent: parent, Name: name, Time: o.Ctime, Attr: o.Attr, Target: o.Target}
	isDir := o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR
	if !isDir && o.Attr.Nlink > 1 {
		if s.seen[o.OID] {
			r = &kml.Record{Op: kml.OpLink, OID: o.OID, Parent: parent, Name: name}
			return s.f(SnapshotEntry{r, o.Version, o.DataVersion})
		}
		s.seen[o.OID] = true
	}
	r.Op = opFor(o.Attr.Mode)
	r.Xattrs = s.t.xattrsOf(s.ctx, o)
	return s.f(SnapshotEntry{r, o.Version, o.DataVersion})
}

// opFor is the operation that makes an object of a mode's type.
func opFor(mode uint32) kml.Op {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return kml.OpCreate
	case unix.S_IFDIR:
		return kml.OpMkdir
	case unix.S_IFLNK:
		return kml.OpSymlink
	}
	return kml.OpMknod
}

// xattrsOf reads an object's attributes from the disk, where they are the
// truth; what cannot be read now comes with the record that changes it.
func (t *Tree) xattrsOf(ctx context.Context, o *Object) []kml.Xattr {
	fd, err := t.openNamed(o)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	xs, err := place{fd: fd}.xattrs()
	if err != nil {
		t.logger.Debug("xattrs not read", "oid", o.OID, "err", err)
	}
	return xs
}
