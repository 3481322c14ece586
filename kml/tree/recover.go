package tree

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// recoverState brings index, tree and log together after whatever ended the last
// run: records behind the index are applied, each intent is decided by looking
// at the tree, each open-dirty file becomes a store.
func (t *Tree) recoverState() (err error) {
	if err := os.MkdirAll(t.Stage(), 0o700); err != nil {
		return err
	}
	if t.sites, err = openSites(t.state.Path("sites.json")); err != nil {
		return err
	}
	// What the last run did not come to commit may not have reached the disk.
	t.fresh.all = t.log.End() > t.log.Durable()
	moved, err := t.catchUp()
	if err != nil {
		return err
	}
	fault.Point("tree.recover.applied")
	if err := t.index.Update(func(b *Batch) error {
		t.seq = b.LastSeq(t.site)
		return nil
	}); err != nil {
		return err
	}
	if t.past != nil {
		return t.recoverHistory(moved)
	}
	for slot, b := range t.intents.All() {
		r, _, _, err := kml.ParseRecord(b, 0)
		if err != nil {
			return fmt.Errorf("intents: slot %d: %w", slot, err)
		}
		if err := t.decide(r, moved); err != nil {
			return fmt.Errorf("intent %v %q: %w", r.Op, r.Name, err)
		}
		fault.Point("tree.recover.decided")
		t.intents.Clear(slot)
	}
	if err := t.sweepStage(); err != nil {
		return err
	}
	for oid := range moved {
		if err := t.adopt(oid); err != nil {
			return err
		}
	}
	for slot, b := range t.dirty.All() {
		if err := t.storeDirty(b); err != nil {
			return err
		}
		fault.Point("tree.recover.stored")
		t.dirty.Clear(slot)
	}
	return t.state.beginRun(t.opt.Boot, t.now())
}

// sweepStage removes what replacements left behind. Whole uploads stay: their
// record may come again.
func (t *Tree) sweepStage() error {
	es, err := os.ReadDir(t.Stage())
	if err != nil {
		return err
	}
	for _, e := range es {
		path := filepath.Join(t.Stage(), e.Name())
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		temporary := strings.ContainsRune(e.Name(), '.') || strings.HasPrefix(e.Name(), "recover-") || strings.HasPrefix(e.Name(), "empty-")
		if st.Mode&unix.S_IFMT == unix.S_IFREG && (temporary || st.Nlink > 1) {
			if err := unix.Unlink(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// catchUp applies the records behind the index's cursor, and says whose inodes
// or fingerprints the index has yet to learn: intents are decided first, since
// one may have put another inode under a name.
func (t *Tree) catchUp() (moved map[kml.OID]bool, err error) {
	from := t.index.Cursor()
	if t.lost.Load() {
		from = t.log.Start()
	}
	rd, err := t.log.ReaderAfter(from)
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	moved = make(map[kml.OID]bool)
	for end := false; !end; {
		err := t.index.Update(func(b *Batch) error {
			for range 256 {
				r, err := rd.TryNext()
				if err == io.EOF {
					end = true
					return nil
				}
				if err != nil {
					return err
				}
				if _, err := applyRecord(b, r, false); err != nil {
					return fmt.Errorf("record %v: %w", r.Pos, err)
				}
				b.SetCursor(r.Pos)
				switch r.Op {
				case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod, kml.OpStore, kml.OpSetattr, kml.OpSetxattr, kml.OpRemovexattr:
					moved[r.OID] = true
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		t.relieve()
	}
	return moved, nil
}

// adopt takes the inode under an object's name for the object: its record
// was written after the inode was in place, and the index never heard of it.
func (t *Tree) adopt(oid kml.OID) error {
	o, err := t.index.Get(oid)
	if err != nil || oid == kml.RootOID {
		return ignore(err, ErrNotFound)
	}
	bare := *o
	bare.Handle = nil
	fd, err := t.openNamed(&bare)
	if err != nil {
		return ignore(err, errMismatch) // a foreign edit since: found on use
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
		return err
	}
	if uint32(st.Mode)&unix.S_IFMT != o.Attr.Mode&unix.S_IFMT {
		return nil
	}
	h, err := HandleAt(fd, "")
	if err != nil {
		return err
	}
	return t.index.Update(func(b *Batch) error { return noteInode(b, oid, &st, h) })
}

// decide settles one intent: was the change made, and is it in the log?
func (t *Tree) decide(r *kml.Record, moved map[kml.OID]bool) error {
	if r.Origin != (kml.Origin{}) {
		var done bool
		if err := t.index.Update(func(b *Batch) error {
			_, done = b.Applied(r.Origin)
			return nil
		}); err != nil || done {
			return err
		}
	}
	r.Flags |= kml.FlagRecovered
	var h []byte
	if r.Op != kml.OpSetxattr {
		h, r.Value = r.Value, nil
	}
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod:
		return t.decideMake(r)
	case kml.OpLink:
		return t.decideLink(r, h)
	case kml.OpUnlink, kml.OpRmdir:
		return t.decideRemove(r, h)
	case kml.OpRename:
		return t.decideRename(r, h)
	case kml.OpSetattr, kml.OpSetxattr, kml.OpRemovexattr:
		return t.redo(r, moved[r.OID])
	case kml.OpStore:
		return t.decideReplace(r, h)
	}
	return nil
}

// commitIntent journals a change that is seen in the tree.
func (t *Tree) commitIntent(r *kml.Record, index func(b *Batch) error) error {
	res, err := t.reserve(r)
	if err != nil {
		return err
	}
	defer res.Release()
	return t.journal(mutation{rec: r, res: &res, index: index})
}

// look is what a name holds on disk: its handle, nil when it holds nothing.
func (t *Tree) look(parent kml.OID, name string) (handle []byte, ref *dirRef, err error) {
	if ref, err = t.dirs.get(parent); err != nil {
		if errors.Is(mapDirErr(err), syscall.ESTALE) {
			return nil, nil, nil
		}
		return nil, nil, err
	}
	handle, err = HandleAt(ref.fd, name)
	if errors.Is(err, syscall.ENOENT) {
		err = nil
	}
	if err != nil {
		ref.release()
		return nil, nil, err
	}
	return handle, ref, nil
}

func (t *Tree) decideMake(r *kml.Record) error {
	if _, err := t.index.Get(r.OID); err == nil {
		return nil // logged
	}
	h, ref, err := t.look(r.Parent, r.Name)
	if ref == nil || err != nil {
		return err
	}
	defer ref.release()
	if _, _, known := t.index.Child(r.Parent, r.Name); h == nil || known {
		return nil
	}
	fd := -1
	var st unix.Statx_t
	m := making{rec: r, fd: &fd, exact: true}
	if h, err = t.finishNew(ref.fd, m, &st); err != nil {
		return err
	}
	return t.commitIntent(r, func(b *Batch) error { return noteInode(b, r.OID, &st, h) })
}

func (t *Tree) decideLink(r *kml.Record, inode []byte) error {
	if _, err := t.index.Get(r.OID); err != nil {
		return ignore(err, ErrNotFound)
	}
	if _, _, known := t.index.Child(r.Parent, r.Name); known {
		return nil
	}
	h, ref, err := t.look(r.Parent, r.Name)
	if ref == nil || err != nil {
		return err
	}
	defer ref.release()
	if string(h) != string(inode) {
		return nil
	}
	if r.ParentMtime, err = mtimeOf(ref.fd); err != nil {
		return err
	}
	return t.commitIntent(r, nil)
}

func (t *Tree) decideRemove(r *kml.Record, inode []byte) error {
	if _, err := t.index.Get(r.OID); err != nil {
		return ignore(err, ErrNotFound)
	}
	if oid, _, known := t.index.Child(r.Parent, r.Name); !known || oid != r.OID {
		return nil
	}
	h, ref, err := t.look(r.Parent, r.Name)
	if ref == nil || err != nil {
		return err
	}
	defer ref.release()
	if string(h) == string(inode) {
		return nil
	}
	if r.ParentMtime, err = mtimeOf(ref.fd); err != nil {
		return err
	}
	return t.commitIntent(r, nil)
}

func (t *Tree) decideRename(r *kml.Record, inode []byte) error {
	if _, err := t.index.Get(r.OID); err != nil {
		return ignore(err, ErrNotFound)
	}
	if oid, _, known := t.index.Child(r.NewParent, r.NewName); known && oid == r.OID {
		return nil
	}
	h, to, err := t.look(r.NewParent, r.NewName)
	if to == nil || err != nil {
		return err
	}
	defer to.release()
	if string(h) != string(inode) {
		return nil
	}
	_, from, err := t.look(r.Parent, r.Name)
	if from == nil || err != nil {
		return err
	}
	defer from.release()
	if r.ParentMtime, err = mtimeOf(from.fd); err != nil {
		return err
	}
	if r.NewParent != r.Parent {
		if r.NewParentMtime, err = mtimeOf(to.fd); err != nil {
			return err
		}
	}
	return t.commitIntent(r, nil)
}

// redo makes an attribute change again: values are absolute. moved says that
// the index may know an older inode of the object.
func (t *Tree) redo(r *kml.Record, moved bool) error {
	o, err := t.index.Get(r.OID)
	if err != nil {
		return ignore(err, ErrNotFound)
	}
	if moved { // the index has yet to learn its inode
		bare := *o
		bare.Handle = nil
		o = &bare
	}
	fd, err := t.openNamed(o)
	if err != nil {
		return ignore(err, errMismatch)
	}
	defer unix.Close(fd)
	p := place{fd: fd, obj: o}
	switch r.Op {
	case kml.OpSetxattr:
		err = unix.Setxattr(p.path(), r.Name, r.Value, 0)
	case kml.OpRemovexattr:
		err = unix.Removexattr(p.path(), r.Name)
		if err == unix.ENODATA {
			err = nil
		}
	default:
		r.Mask = changed(r.Old, r.Attr)
		err = p.apply(setAttrOf(r))
	}
	var no syscall.Errno
	if errors.As(err, &no) && r.Op != kml.OpSetattr {
		t.logger.Warn("an unanswered change is not possible and is dropped", "op", r.Op, "oid", r.OID, "err", err)
		return nil
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
		return err
	}
	if r.Op == kml.OpSetattr { // in several calls: what was reached is what is logged
		r.Attr = kmlAttr(&st)
	}
	return t.commitIntent(r, func(b *Batch) error { return noteChange(b, r.OID, &st) })
}

// decideReplace finishes a store that was being renamed into place when at
// least one name has the staged inode; else nothing was visible, and the client
// sends it again.
func (t *Tree) decideReplace(r *kml.Record, inode []byte) error {
	if _, err := t.index.Get(r.OID); err != nil {
		return ignore(err, ErrNotFound)
	}
	ts, err := t.lookAt(t.index.Names(r.OID))
	defer closeTargets(ts)
	if err != nil {
		return err
	}
	var source target
	var stale []target
	for _, k := range ts {
		h, err := HandleAt(k.fd, "")
		if err != nil {
			return err
		}
		if string(h) == string(inode) {
			source = k
		} else {
			stale = append(stale, k)
		}
	}
	if source.dir == nil {
		return nil
	}
	for _, k := range stale {
		tmp := t.state.Path("stage", fmt.Sprintf("recover-%d", uint64(r.OID)))
		_ = unix.Unlink(tmp)
		if err := unix.Linkat(source.dir.fd, source.name, unix.AT_FDCWD, tmp, 0); err != nil {
			return err
		}
		if err := unix.Renameat(unix.AT_FDCWD, tmp, k.dir.fd, k.name); err != nil {
			return err
		}
	}
	for _, k := range ts {
		// New contents are no change of the folder.
		if dir, err := t.index.Get(k.dir.oid); err == nil {
			if err := (place{fd: k.dir.fd}).utimes(utimeOmit, dir.Attr.Mtime); err != nil {
				return err
			}
		}
	}
	var st unix.Statx_t
	if err := unix.Statx(source.fd, "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
		return err
	}
	r.Attr = kml.Attr{Size: st.Size, Mtime: nsOf(st.Mtime)}
	return t.commitIntent(r, func(b *Batch) error { return noteInode(b, r.OID, &st, inode) })
}

// lookAt opens what is under names, whatever it is.
func (t *Tree) lookAt(names []Name) ([]target, error) {
	var out []target
	for _, n := range names {
		ref, err := t.dirs.get(n.Parent)
		if err != nil {
			continue
		}
		fd, err := unix.Openat(ref.fd, n.Name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			ref.release()
			if err == unix.ENOENT {
				continue
			}
			return out, err
		}
		out = append(out, target{dir: ref, name: n.Name, fd: fd})
	}
	return out, nil
}

// storeDirty cuts the store of a file that was being written when the process
// died. What was written is in the page cache; which ranges is not known.
func (t *Tree) storeDirty(b []byte) error {
	oid, err := dirtyOID(b)
	if err != nil {
		return err
	}
	o, err := t.index.Get(oid)
	if err != nil {
		return ignore(err, ErrNotFound)
	}
	fd, err := t.openNamed(o)
	if err != nil {
		return ignore(err, errMismatch)
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
		return err
	}
	r := t.record(nil, kml.OpStore)
	r.Flags |= kml.FlagRecovered
	r.OID, r.Base.Pos = oid, o.DataVersion
	r.Attr = kml.Attr{Size: st.Size, Mtime: nsOf(st.Mtime)}
	return t.commitIntent(r, func(b *Batch) error { return noteChange(b, oid, &st) })
}
