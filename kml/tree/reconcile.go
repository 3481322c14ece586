package tree

import (
	"context"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// reconcileName looks at what a name holds on disk and journals what differs
// from the index as foreign: a new object (a folder with all that is in it), a
// name that is gone, an object renamed to here, an editor's save, changed
// contents or attributes. It takes the locks it needs; the caller holds none.
func (t *Tree) reconcileName(ctx context.Context, parent kml.OID, name string) error {
	return t.reconcileSeen(ctx, parent, name, 0)
}

// hint is what is known of a change before anybody looks.
type hint uint8

const (
	// seenWriting: the file was written, which is a store although size and mtime
	// may be as before.
	seenWriting hint = 1 << iota
	// seenAttrs: mode, owner, times or extended attributes were set, and a change
	// of our own may have come behind.
	seenAttrs
)

// reconcileSeen is reconcileName for a name at which something was seen to be done.
func (t *Tree) reconcileSeen(ctx context.Context, parent kml.OID, name string, how hint) error {
	if checkName(parent, name) != nil {
		return nil
	}
	if t.replica != nil {
		return t.replica.revert(parent, name, how&seenWriting != 0)
	}
	for range maxRetry {
		sub, again, err := t.reconcileOnce(ctx, parent, name, how)
		if err != nil {
			return err
		}
		if sub != 0 {
			t.watcher.added(sub)
			var gone []Name // what the new folder lost again is looked at on use
			if err := t.reconcilePresent(ctx, sub, true, &gone); err != nil {
				return err
			}
		}
		if !again {
			return nil
		}
	}
	return nil
}

// reconcileOnce settles one name. sub is a folder that is new or came from
// elsewhere, whose entries are to be looked at; again asks for another look.
func (t *Tree) reconcileOnce(ctx context.Context, parent kml.OID, name string, how hint) (sub kml.OID, again bool, err error) {
	// With the name, what it holds is locked: a folder's time changes with its
	// own names.
	oid, _, known := t.index.Child(parent, name)
	unlock := t.names.lock(parent, oid).unlock
	if now, _, _ := t.index.Child(parent, name); now != oid {
		unlock()
		return 0, true, nil
	}
	ref, err := t.dirs.get(parent)
	if err != nil {
		unlock()
		if errors.Is(mapDirErr(err), syscall.ESTALE) {
			return 0, false, syscall.ESTALE
		}
		return 0, false, err
	}
	defer ref.release()
	done := func() { unlock() }
	defer func() { done() }()

	p, st, handle, err := lookAtName(ref.fd, name)
	if errors.Is(err, syscall.ENOENT) {
		if !known && !removed(ref.fd) {
			// It came and went, which left its folder's time behind.
			return 0, false, t.foreignChange(ctx, place{fd: ref.fd}, parent, 0)
		}
		if !known {
			return 0, false, nil
		}
		if removed(ref.fd) {
			// Not the name went but its folder: the folder's own name tells what
			// is there now.
			t.dirs.forget(parent)
			return 0, false, syscall.ESTALE
		}
		if d, bad := t.damage.has(oid); bad && d.Missing {
			return 0, false, errDamaged
		}
		if t.leaves(ctx) {
			return 0, false, nil
		}
		return 0, false, t.foreignRemove(ctx, ref.fd, Name{parent, name}, oid)
	}
	if err != nil {
		return 0, false, err
	}
	defer unix.Close(p.fd)
	if st.Dev_major != t.dev[0] || st.Dev_minor != t.dev[1] {
		t.mounts.Store(Name{parent, name}, struct{}{})
		return 0, false, nil // another file system is mounted here
	}
	obj := t.objectFor(&st, handle)
	switch {
	case known && obj != nil && obj.OID == oid:
		return 0, false, t.foreignChange(ctx, p, obj.OID, how)
	case obj != nil:
		// The inode is known under other names: a link, or a rename to here.
		from, gone := t.goneName(obj)
		if gone && from != (Name{parent, name}) {
			done()
			done = func() {}
			return 0, true, t.foreignRename(ctx, from, Name{parent, name}, obj)
		}
		if obj.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
			return 0, false, nil // seen twice while it moves: the next look settles it
		}
		if known {
			if err := t.foreignRemove(ctx, ref.fd, Name{parent, name}, oid); err != nil {
				return 0, false, err
			}
		}
		return 0, false, t.foreignLink(ctx, ref.fd, Name{parent, name}, obj)
	case known:
		old, err := t.index.Get(oid)
		if err != nil {
			return 0, false, err
		}
		if len(old.Handle) == 0 && looksLike(old, &st) {
			// The index was made again and has not seen the object yet.
			if err := t.index.Update(func(b *Batch) error { return noteInode(b, oid, &st, handle) }); err != nil {
				return 0, false, err
			}
			return 0, false, t.foreignAttrs(ctx, p, old, &st, func(b *Batch) error { return noteChange(b, oid, &st) })
		}
		if old.Attr.Mode&unix.S_IFMT == uint32(st.Mode)&unix.S_IFMT && !t.livesElsewhere(old, Name{parent, name}) {
			sub, again, err := t.foreignSave(ctx, p, old, &st, handle)
			if err == nil { // its folder's time went with it, and no record of ours says so
				err = t.foreignChange(ctx, place{fd: ref.fd}, parent, 0)
			}
			return sub, again, err
		}
		if err := t.foreignRemove(ctx, ref.fd, Name{parent, name}, oid); err != nil {
			return 0, false, err
		}
	}
	made, err := t.foreignMake(ctx, ref.fd, Name{parent, name}, p, &st, handle)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		sub = made
	}
	return sub, false, err
}

// lookAtName opens what a name holds, whatever it is.
func lookAtName(dirfd int, name string) (place, unix.Statx_t, []byte, error) {
	var st unix.Statx_t
	fd, err := unix.Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return place{}, st, nil, err
	}
	if err = unix.Statx(fd, "", unix.AT_EMPTY_PATH, statxMask, &st); err == nil {
		var h []byte
		if h, err = HandleAt(fd, ""); err == nil {
			return place{fd: fd}, st, h, nil
		}
	}
	unix.Close(fd)
	return place{}, st, nil, err
}

// objectFor is the known object behind an inode, or nil.
func (t *Tree) objectFor(st *unix.Statx_t, handle []byte) *Object {
	oid, ok := t.index.ByIno(st.Ino)
	if !ok {
		return nil
	}
	o, err := t.index.Get(oid)
	if err != nil || string(o.Handle) != string(handle) {
		return nil
	}
	return o
}

// goneName is a name the index has for o that does not hold it any more.
func (t *Tree) goneName(o *Object) (Name, bool) {
	for _, n := range t.index.Names(o.OID) {
		ref, err := t.dirs.get(n.Parent)
		if err != nil {
			return n, true
		}
		h, err := HandleAt(ref.fd, n.Name)
		ref.release()
		if errors.Is(err, syscall.ENOENT) || err == nil && !o.is(h) {
			return n, true
		}
	}
	return Name{}, false
}

// livesElsewhere reports whether an object has, besides one name, another
// where its inode still is.
func (t *Tree) livesElsewhere(o *Object, but Name) bool {
	for _, n := range t.index.Names(o.OID) {
		if n == but {
			continue
		}
		ref, err := t.dirs.get(n.Parent)
		if err != nil {
			continue
		}
		h, err := HandleAt(ref.fd, n.Name)
		ref.release()
		if err == nil && o.is(h) {
			return true
		}
	}
	return false
}

// foreign journals a record of a change that is on disk already.
func (t *Tree) foreign(r *kml.Record, index func(b *Batch) error) error {
	r.Flags |= kml.FlagForeign
	return t.commitIntent(r, index)
}

func (t *Tree) foreignRemove(_ context.Context, dirfd int, n Name, oid kml.OID) error {
	o, err := t.index.Get(oid)
	if err != nil {
		return ignore(err, ErrNotFound)
	}
	if o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := t.foreignEmpty(oid, 0); err != nil {
			return err
		}
	}
	return t.removeRecord(o, n, dirfd)
}

// foreignEmpty journals the removal of all that was in a folder that is gone.
func (t *Tree) foreignEmpty(oid kml.OID, depth int) error {
	if depth > maxDepth {
		return syscall.ELOOP
	}
	for {
		es, err := t.index.Children(oid, "", 512)
		if err != nil || len(es) == 0 {
			return err
		}
		for _, e := range es {
			o, err := t.index.Get(e.OID)
			if err != nil {
				return err
			}
			if o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
				if err := t.foreignEmpty(e.OID, depth+1); err != nil {
					return err
				}
			}
			if err := t.removeRecord(o, Name{oid, e.Name}, -1); err != nil {
				return err
			}
		}
	}
}

func (t *Tree) removeRecord(o *Object, n Name, dirfd int) error {
	r := t.record(nil, kml.OpUnlink)
	if o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
		r.Op = kml.OpRmdir
		t.dirs.forget(o.OID)
	}
	r.OID, r.Parent, r.Name = o.OID, n.Parent, n.Name
	r.Victim = &kml.Victim{OID: o.OID, Version: o.Version, DataVersion: o.DataVersion, Attr: o.Attr, Target: o.Target}
	if r.Op == kml.OpRmdir || o.Attr.Nlink <= 1 {
		r.Flags |= kml.FlagGone
	}
	if dirfd >= 0 {
		var err error
		if r.ParentMtime, err = mtimeOf(dirfd); err != nil {
			return err
		}
	}
	return t.foreign(r, nil)
}

func (t *Tree) foreignMake(_ context.Context, dirfd int, n Name, p place, st *unix.Statx_t, handle []byte) (kml.OID, error) {
	oid, err := t.state.MintOID()
	if err != nil {
		return 0, err
	}
	r := t.record(nil, opFor(uint32(st.Mode)))
	r.OID, r.Parent, r.Name, r.Attr = oid, n.Parent, n.Name, kmlAttr(st)
	r.UID, r.GID = st.Uid, st.Gid
	if r.Op == kml.OpSymlink {
		if r.Target, err = readlinkFd(p.fd); err != nil {
			return 0, err
		}
	}
	if r.Xattrs, err = p.xattrs(); err != nil {
		return 0, err
	}
	if r.ParentMtime, err = mtimeOf(dirfd); err != nil {
		return 0, err
	}
	return oid, t.foreign(r, func(b *Batch) error { return noteInode(b, oid, st, handle) })
}

func (t *Tree) foreignLink(_ context.Context, dirfd int, n Name, o *Object) error {
	r := t.record(nil, kml.OpLink)
	r.OID, r.Parent, r.Name = o.OID, n.Parent, n.Name
	var err error
	if r.ParentMtime, err = mtimeOf(dirfd); err != nil {
		return err
	}
	return t.foreign(r, nil)
}

// foreignRename journals that an object went from one name to another.
func (t *Tree) foreignRename(ctx context.Context, from, to Name, o *Object) error {
	defer t.names.lock(from.Parent, to.Parent).unlock()
	if h, fromGone := t.goneName(o); !fromGone || h != from {
		return nil // it moved on: look again
	}
	ref, err := t.dirs.get(to.Parent)
	if err != nil {
		return mapDirErr(err)
	}
	defer ref.release()
	p, _, h, err := lookAtName(ref.fd, to.Name)
	if err != nil {
		return ignore(err, syscall.ENOENT)
	}
	defer unix.Close(p.fd)
	if !o.is(h) {
		return nil
	}
	// What was written under the old name comes before the new one: who follows
	// the log never sees a beginning of it there.
	if err := t.foreignChange(ctx, p, o.OID, 0); err != nil {
		return err
	}
	if o, err = t.index.Get(o.OID); err != nil {
		return ignore(err, ErrNotFound)
	}
	r := t.record(nil, kml.OpRename)
	r.OID, r.Parent, r.Name, r.NewParent, r.NewName = o.OID, from.Parent, from.Name, to.Parent, to.Name
	if oid, _, known := t.index.Child(to.Parent, to.Name); known && oid != o.OID {
		v, err := t.index.Get(oid)
		if err != nil {
			return err
		}
		if v.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := t.foreignEmpty(oid, 0); err != nil {
				return err
			}
			t.dirs.forget(oid)
		}
		r.Victim = &kml.Victim{OID: oid, Version: v.Version, DataVersion: v.DataVersion, Attr: v.Attr, Target: v.Target}
		if v.Attr.Nlink <= 1 || v.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
			r.Flags |= kml.FlagGone
		}
	}
	if r.NewParentMtime, err = mtimeOf(ref.fd); err != nil {
		return err
	}
	if old, err := t.dirs.get(from.Parent); err == nil {
		r.ParentMtime, err = mtimeOf(old.fd)
		old.release()
		if err != nil {
			return err
		}
	}
	if from.Parent == to.Parent {
		r.ParentMtime, r.NewParentMtime = r.NewParentMtime, 0
	}
	if o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
		t.dirs.forget(o.OID)
	}
	return t.foreign(r, nil)
}

// foreignSave is another inode of the same type under a known name, the old
// inode being nowhere: an editor's save, a restored folder. The object stays.
func (t *Tree) foreignSave(ctx context.Context, p place, o *Object, st *unix.Statx_t, handle []byte) (sub kml.OID, again bool, err error) {
	note := func(b *Batch) error { return noteInode(b, o.OID, st, handle) }
	switch uint32(st.Mode) & unix.S_IFMT {
	case unix.S_IFREG:
		if t.suspects(st) {
			return 0, false, t.foundDamaged(o, st, handle)
		}
		r := t.record(nil, kml.OpStore)
		r.OID, r.Base.Pos = o.OID, o.DataVersion
		r.Attr = kml.Attr{Size: st.Size, Mtime: nsOf(st.Mtime)}
		if err := t.foreignInode(o, func() error { return t.foreign(r, note) }); err != nil {
			return 0, false, err
		}
		if err := t.damage.clear(o.OID); err != nil {
			return 0, false, err
		}
	case unix.S_IFDIR:
		t.dirs.forget(o.OID)
		if err := t.index.Update(note); err != nil {
			return 0, false, err
		}
		sub = o.OID
	default:
		// A link or device has no contents to replace: another one is another object.
		n := Name{o.Parent, o.Name}
		return 0, true, t.removeRecord(o, n, -1)
	}
	fresh, err := t.index.Get(o.OID)
	if err != nil {
		return 0, false, err
	}
	return sub, false, t.foreignAttrs(ctx, p, fresh, st, func(b *Batch) error { return noteChange(b, o.OID, st) })
}

// foreignInode journals that an object has another inode, which open handles
// learn of. The caller holds the lock of its folder.
func (t *Tree) foreignInode(obj *Object, journal func() error) error {
	defer t.objs.lock(obj.OID).unlock()
	o := t.objects.acquire(obj.OID)
	defer t.objects.release(o)
	o.mu.Lock()
	defer o.mu.Unlock()
	defer t.objects.replacing(o, obj.DataVersion)(true)
	return journal()
}

// foreignChange compares the object behind p with what the index saw last. The
// object is held still meanwhile, so that no change of our own, which is on disk
// before it is in the index, is taken for another's.
func (t *Tree) foreignChange(ctx context.Context, p place, oid kml.OID, how hint) error {
	defer t.objs.lock(oid).unlock()
	if open := t.objects.find(oid); open != nil {
		defer t.objects.release(open)
		open.mu.Lock()
		defer open.mu.Unlock()
		if open.dirty.Load() {
			return t.foreignWhileDirty(ctx, p, oid, how)
		}
	}
	return t.foreignChangeLocked(ctx, p, oid, how)
}

// foreignWhileDirty looks at what the store that will be cut anyway does not tell.
func (t *Tree) foreignWhileDirty(ctx context.Context, p place, oid kml.OID, how hint) error {
	o, err := t.index.Get(oid)
	if err != nil || how&seenAttrs == 0 {
		return ignore(err, ErrNotFound)
	}
	var st unix.Statx_t
	if err := statAt(p.fd, "", &st); err != nil {
		return err
	}
	st.Mtime.Sec, st.Mtime.Nsec = split(o.Attr.Mtime) // the store brings it
	return t.foreignAttrs(ctx, p, o, &st, nil)
}

// split makes seconds and nanoseconds of a time.
func split(ns int64) (sec int64, nsec uint32) {
	ts := unix.NsecToTimespec(ns)
	return ts.Sec, uint32(ts.Nsec)
}

// foreignChangeLocked is foreignChange for who holds the object's lock; it is not
// open-dirty, or its contents are held still as well.
func (t *Tree) foreignChangeLocked(ctx context.Context, p place, oid kml.OID, how hint) error {
	o, err := t.index.Get(oid)
	if err != nil {
		return ignore(err, ErrNotFound)
	}
	st := new(unix.Statx_t)
	if err := statAt(p.fd, "", st); err != nil {
		return err
	}
	file := uint32(st.Mode)&unix.S_IFMT == unix.S_IFREG
	wrote := file && how&seenWriting != 0
	other := changed(o.Attr, kmlAttr(st))
	if uint32(st.Mode)&unix.S_IFMT != unix.S_IFDIR {
		other &^= kml.MaskMtime
	} // but a folder that was taken on as it is after a crash has the log's time
	if o.Fp == fingerprint(st) && !wrote && how&seenAttrs == 0 && other == 0 {
		return nil
	}
	if wrote || file && (o.Fp.Size != st.Size || o.Fp.Mtime != nsOf(st.Mtime)) {
		if t.suspects(st) {
			return t.foundDamaged(o, st, nil)
		}
		r := t.record(nil, kml.OpStore)
		r.OID, r.Base.Pos = o.OID, o.DataVersion
		r.Attr = kml.Attr{Size: st.Size, Mtime: nsOf(st.Mtime)}
		if err := t.foreign(r, func(b *Batch) error { return noteChange(b, o.OID, st) }); err != nil {
			return err
		}
		if err := t.damage.clear(o.OID); err != nil { // whoever wrote it has mended it
			return err
		}
		if o, err = t.index.Get(o.OID); err != nil {
			return ignore(err, ErrNotFound)
		}
	}
	return t.foreignAttrs(ctx, p, o, st, func(b *Batch) error { return noteChange(b, o.OID, st) })
}

// removed reports whether the folder behind a descriptor has no name any more.
func removed(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Nlink == 0
}

// foreignAttrs journals a difference in mode, owner, a folder's time or extended
// attributes, and has note tell the index what was looked at.
func (t *Tree) foreignAttrs(_ context.Context, p place, o *Object, st *unix.Statx_t, note func(b *Batch) error) error {
	if err := t.foreignXattrs(p, o); err != nil {
		return err
	}
	now := kmlAttr(st)
	mask := changed(o.Attr, now)
	if o.Attr.Mode&unix.S_IFMT == unix.S_IFREG && o.Fp.Mtime == now.Mtime {
		mask &^= kml.MaskMtime // its last store says so
	}
	if mask == 0 {
		if note == nil {
			return nil
		}
		return t.index.Update(note)
	}
	r := t.record(nil, kml.OpSetattr)
	r.OID, r.HadOld, r.Old, r.Attr, r.Mask = o.OID, true, o.Attr, now, mask
	return t.foreign(r, note)
}

type settlingKey struct{}

// settling marks a look at a name after which it has to be what the disk says.
// Others leave a name that holds nothing to a scan that is under way, which
// may find what it held elsewhere.
func settling(ctx context.Context) context.Context {
	return context.WithValue(ctx, settlingKey{}, true)
}

// leaves reports whether a name that is gone is left to a scan.
func (t *Tree) leaves(ctx context.Context) bool {
	return t.scanning.Load() > 0 && ctx.Value(settlingKey{}) == nil
}
