package tree

import (
	"context"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// reconcileDir looks at every name of a folder, on disk and in the index; with
// deep at what is below it too. Names that are gone come last, so that what
// went elsewhere is seen to have moved.
func (t *Tree) reconcileDir(ctx context.Context, oid kml.OID, deep bool) error {
	var gone []Name
	if err := t.reconcilePresent(ctx, oid, deep, &gone); err != nil {
		return err
	}
	ctx = settling(ctx)
	for _, n := range gone {
		if err := t.reconcileName(ctx, n.Parent, n.Name); err != nil && !errors.Is(err, syscall.ESTALE) && !errors.Is(err, errDamaged) {
			return err
		}
	}
	return t.reconcileFolder(ctx, oid, 0)
}

// reconcileFolder compares a folder itself. Other folders are looked at by
// their names; the root has none.
func (t *Tree) reconcileFolder(ctx context.Context, oid kml.OID, how hint) error {
	defer t.names.lock(oid).unlock()
	ref, err := t.dirs.get(oid)
	if err != nil {
		return ignore(mapDirErr(err), syscall.ESTALE)
	}
	defer ref.release()
	if t.replica != nil {
		return t.replica.revertFolder(ref.fd, oid)
	}
	return t.foreignChange(ctx, place{fd: ref.fd}, oid, how)
}

// reconcilePresent is reconcileDir for the names on disk; it collects the others.
func (t *Tree) reconcilePresent(ctx context.Context, oid kml.OID, deep bool, gone *[]Name) error {
	onDisk, err := t.namesOnDisk(ctx, oid)
	// A folder that was removed since its name was read has nothing to look
	// at; one that is held open is not found by its descriptor's path.
	if errors.Is(err, syscall.ESTALE) || errors.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	here := make(map[string]bool, len(onDisk))
	for _, e := range onDisk {
		here[e.Name] = true
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.reconcileName(ctx, oid, e.Name); err != nil && !errors.Is(err, syscall.ESTALE) {
			return err
		}
		t.relieve()
		if !deep {
			continue
		}
		id, _, ok := t.index.Child(oid, e.Name)
		if !ok {
			continue
		}
		if o, err := t.index.Get(id); err != nil || o.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		if err := t.reconcilePresent(ctx, id, true, gone); err != nil {
			return err
		}
	}
	for after := ""; ; {
		es, err := t.index.Children(oid, after, 4096)
		if err != nil || len(es) == 0 {
			return err
		}
		for _, e := range es {
			if !here[e.Name] {
				*gone = append(*gone, Name{oid, e.Name})
			}
		}
		after = es[len(es)-1].Name
	}
}

func (t *Tree) namesOnDisk(ctx context.Context, oid kml.OID) (es []rawEntry, err error) {
	err = t.at(ctx, nil, oid, func(p place) error {
		fd, err := unix.Open(p.path(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		es, err = readNames(fd)
		return err
	})
	return es, err
}

// onDisk reports whether a name holds anything on disk.
func (t *Tree) onDisk(n Name) bool {
	ref, err := t.dirs.get(n.Parent)
	if err != nil {
		return false
	}
	defer ref.release()
	var st unix.Stat_t
	return unix.Fstatat(ref.fd, n.Name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// Scan compares the whole directory with the index and journals what differs.
func (t *Tree) Scan(ctx context.Context) error {
	t.scanning.Add(1)
	defer t.scanning.Add(-1)
	if err := t.reconcileDir(ctx, kml.RootOID, true); err != nil {
		return err
	}
	if t.suspect.Load() == nil {
		return nil
	}
	// All that a crash left has been seen; what differs from now on is an edit.
	t.suspect.Store(nil)
	return t.state.Update(func(f *Fileset) { f.Suspect = nil })
}
