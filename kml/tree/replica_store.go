package tree

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/internal/node"
	"github.com/mezzofs/mezzo/kml"
)

// store gives a file the contents that came with the record; without them it
// goes on with those it has until Bring.
func (r *Replica) store(rec *kml.Record, data []byte) ([]change, error) {
	o, err := r.t.index.Get(rec.OID)
	if err != nil {
		return nil, ignore(err, ErrNotFound)
	}
	all := r.t.index.Names(o.OID)
	a := o.Attr
	a.Size, a.Mtime = rec.Attr.Size, rec.Attr.Mtime
	names := r.keptNames(all, &a)
	if len(names) == 0 {
		if len(o.Handle) == 0 {
			return nil, nil
		}
		for _, n := range all { // it outgrew what is kept
			err = errors.Join(err, r.dropTree(n, o))
		}
		return []change{{oid: o.OID}}, err
	}
	switch {
	case a.Size == 0:
		data = []byte{}
	case data != nil && uint64(len(data)) != a.Size:
		data = nil
	case data == nil && o.Whole && rec.Extents != nil && len(rec.Extents) == 0 && a.Size == o.Attr.Size:
		return r.touch(o, a)
	}
	if data == nil || len(o.Handle) == 0 {
		r.deltas.add(o, rec)
		return []change{{oid: o.OID, keep: len(o.Handle) != 0, lacks: true}}, nil
	}
	r.deltas.drop(o.OID)
	s, err := r.stageContents(o, a, data)
	if err != nil {
		return []change{{oid: o.OID, keep: true, lacks: true}}, err
	}
	fault.Point("replica.staged")
	in, err := r.swapIn(o, names, s, rec)
	if err != nil {
		return []change{{oid: o.OID, keep: true, lacks: true}}, err
	}
	return []change{{oid: o.OID, inode: in}}, nil
}

// touch gives a file a store's time: its bytes are the same.
func (r *Replica) touch(o *Object, a kml.Attr) ([]change, error) {
	fd, _, err := r.openObject(o)
	if err != nil {
		return []change{{oid: o.OID, lacks: true}}, err
	}
	defer unix.Close(fd)
	err = node.SetTimes(node.At{FD: fd}, a, kml.MaskMtime)
	in, e := inodeOf(fd)
	if err = errors.Join(err, e); err != nil {
		return []change{{oid: o.OID, keep: true, lacks: true}}, err
	}
	return []change{{oid: o.OID, inode: in}}, nil
}

// stageContents makes an inode that is to take the place of an object's, with
// its attributes.
func (r *Replica) stageContents(o *Object, a kml.Attr, data []byte) (*staged, error) {
	rec := &kml.Record{Op: kml.OpCreate, OID: o.OID, Xattrs: r.xattrsHere(o)}
	return r.stageNew(rec, a, data)
}

// xattrsHere are the extended attributes of an object in the directory.
func (r *Replica) xattrsHere(o *Object) []kml.Xattr {
	if len(o.Handle) == 0 {
		return nil
	}
	fd, _, err := r.openObject(o)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	xs, err := place{fd: fd}.xattrs()
	if err != nil {
		r.t.logger.Warn("xattrs of a file are not read; they are not carried to its new contents", "oid", o.OID, "err", err)
	}
	return xs
}

// swapIn puts a staged file under each of an object's names, and takes s over.
// The caller holds the locks of the names and of the object. Open handles of
// front ends keep what they read.
func (r *Replica) swapIn(o *Object, names []Name, s *staged, rec *kml.Record) (*inode, error) {
	t := r.t
	placed := false
	defer func() {
		if placed {
			unix.Close(s.fd)
		} else {
			r.dropStaged(s)
		}
	}()
	open := t.objects.acquire(o.OID)
	defer t.objects.release(open)
	open.mu.Lock()
	defer open.mu.Unlock()
	done, replaced := t.objects.replacing(open, o.DataVersion), false
	defer func() { done(replaced) }()
	in, err := inodeOf(s.fd)
	if err != nil {
		return nil, err
	}
	s.slot = -1
	if len(names) > 1 || s.noted != nil {
		// One intent over all names: a restart links the rest, and finds whose
		// inode it is.
		m := mutation{rec: rec, handle: in.handle}
		b, err := m.intent(nil)
		if err == nil {
			s.slot, err = t.intents.Put(t.ctx, b)
		}
		if err != nil {
			return nil, err
		}
	}
	for i, n := range names {
		from := s.name
		if i < len(names)-1 {
			from = fmt.Sprintf("%s.%d", s.name, i)
			_ = unix.Unlinkat(r.stage, from, 0)
			if err = unix.Linkat(r.stage, s.name, r.stage, from, 0); err != nil {
				break
			}
		}
		if err = r.replaceName(n, from, o); err != nil {
			break
		}
		replaced = true
		fault.Point("replica.replaced")
	}
	if err == nil {
		placed = true
		if in, err = inodeOf(s.fd); err == nil && s.noted != nil {
			err = s.noted(in)
		}
	}
	if s.slot >= 0 {
		t.intents.Clear(s.slot)
	}
	return in, err
}

// replaceName puts what is staged in the place of a name's inode, and looks at
// what comes out: what a local program wrote there meanwhile is set aside.
func (r *Replica) replaceName(n Name, from string, o *Object) error {
	ref, err := r.folder(n.Parent)
	if err != nil {
		return err
	}
	defer ref.release()
	if len(o.Handle) == 0 && r.foldsOther(ref.fd, n, o) {
		return errFolds
	}
	defer r.folderTime(n.Parent)
	err = unix.Renameat2(r.stage, from, ref.fd, n.Name, unix.RENAME_EXCHANGE)
	switch {
	case errors.Is(err, syscall.ENOENT):
		return r.putName(ref.fd, n, from)
	case errors.Is(err, syscall.EINVAL):
		return r.replacePlain(ref.fd, n, from, o)
	case err != nil:
		return err
	}
	// Out of everybody's reach, it is written to by who has it open or by nobody.
	if r.writtenAt(from) {
		return r.aside(r.stage, from, n, "being written here while the master changed it")
	}
	var st unix.Statx_t
	if err := unix.Statx(r.stage, from, unix.AT_SYMLINK_NOFOLLOW, statxMask, &st); err != nil {
		return err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	known := st.Ino == o.Ino && len(o.Handle) > 0 || r.doubt.Load() && !isDir
	if h, err := HandleAt(r.stage, from); err == nil && r.standIns.is(n, h, true) && !isDir {
		return unix.Unlinkat(r.stage, from, 0)
	}
	if !known || r.edited(o, &st) {
		return r.takeAway(r.stage, from, n, "written here while the master changed it")
	}
	return unix.Unlinkat(r.stage, from, 0)
}

// writtenAt reports whether what is in the stage is a file open for writing.
func (r *Replica) writtenAt(name string) bool {
	fd, err := unix.Openat(r.stage, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	lease, err := place{fd: fd}.lease()
	if lease >= 0 {
		unix.Close(lease)
	}
	return err != nil
}

// replacePlain is replaceName where the file system cannot exchange: it looks
// first.
func (r *Replica) replacePlain(dirfd int, n Name, from string, o *Object) error {
	p, st, h, err := lookAtName(dirfd, n.Name)
	if err == nil {
		unix.Close(p.fd)
		if string(h) != string(o.Handle) || r.edited(o, &st) {
			if err := r.makeWay(dirfd, n); err != nil {
				return err
			}
		}
	}
	return unix.Renameat(r.stage, from, dirfd, n.Name)
}

// finishIntents links files with several names that a kill left half replaced:
// the names that are left get the inode that the others have.
func (r *Replica) finishIntents() error {
	t := r.t
	for slot, b := range t.intents.All() {
		rec, _, _, err := kml.ParseRecord(b, 0)
		if err != nil {
			return fmt.Errorf("intents: slot %d: %w", slot, err)
		}
		if err := r.finishIntent(rec); err != nil {
			return fmt.Errorf("intent of %v: %w", rec.OID, err)
		}
		t.intents.Clear(slot)
	}
	return nil
}

func (r *Replica) finishIntent(rec *kml.Record) error {
	ts, err := r.t.lookAt(r.t.index.Names(rec.OID))
	defer closeTargets(ts)
	if err != nil {
		return err
	}
	source := -1
	for i, k := range ts {
		if h, err := HandleAt(k.fd, ""); err == nil && string(h) == string(rec.Value) {
			source = i
		}
	}
	if source < 0 {
		return nil
	}
	defer r.dirty.Store(true)
	for _, k := range ts {
		if h, err := HandleAt(k.fd, ""); err == nil && string(h) == string(rec.Value) {
			continue
		}
		tmp := fmt.Sprintf("%016x.again", uint64(rec.OID))
		_ = unix.Unlinkat(r.stage, tmp, 0)
		if err := unix.Linkat(ts[source].dir.fd, ts[source].name, r.stage, tmp, 0); err != nil {
			return err
		}
		if err := unix.Renameat(r.stage, tmp, k.dir.fd, k.name); err != nil {
			return err
		}
		r.folderTime(k.dir.oid)
	}
	return r.adopt(rec.OID)
}

// adopt takes the inode under an object's name for the object: its record was
// applied, and the index never heard of it. A file that is not what the record
// says lacks its contents.
func (r *Replica) adopt(oid kml.OID) error {
	o, err := r.t.index.Get(oid)
	if err != nil || oid == kml.RootOID {
		return ignore(err, ErrNotFound)
	}
	c := change{oid: oid, lacks: true}
	ts, err := r.t.lookAt(r.t.index.Names(oid))
	defer closeTargets(ts)
	if err != nil {
		return err
	}
	for _, k := range ts {
		if !sameType(k.fd, o.Attr.Mode) {
			continue
		}
		if o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR { // what was done in it last moved its time
			if err := node.SetTimes(node.At{FD: k.fd}, o.Attr, kml.MaskMtime); err != nil {
				r.skip("times", err)
			}
		}
		in, err := inodeOf(k.fd)
		if err != nil {
			return err
		}
		like := looksLike(o, &in.st)
		if c.inode == nil || c.lacks && like {
			if c.inode != nil && string(c.inode.handle) != string(in.handle) {
				r.unsure = append(r.unsure, oid)
			}
			c.inode, c.lacks = in, !like
		} else if string(c.inode.handle) != string(in.handle) {
			r.unsure = append(r.unsure, oid)
		}
	}
	if c.inode == nil {
		r.unsure = append(r.unsure, oid)
	}
	return r.t.index.Update(c.note)
}

// adoptUnsure looks again at what was not where the index has it, and at files
// whose names hold several inodes: the record that was being done when the
// process was killed is done by now.
func (r *Replica) adoptUnsure() {
	list := r.unsure
	r.unsure = nil
	for _, oid := range list {
		var parents []kml.OID
		for _, n := range r.t.index.Names(oid) {
			parents = append(parents, n.Parent)
		}
		names := r.t.names.lock(parents...)
		object := r.t.objs.lock(oid)
		err := r.adopt(oid)
		object.unlock()
		names.unlock()
		if err != nil {
			r.trouble(oid, r.Path(oid), "find again", err)
		} else if o, err := r.t.index.Get(oid); err == nil && lacking(o) {
			r.lack(oid)
		}
	}
	r.unsure = nil
}

// Brought is what was fetched of an object.
type Brought struct {
	// Staged is a file in the stage with the contents; for a regular file.
	Staged string
	// Version is whose contents they are, and Mtime that version's time.
	Version kml.Position
	Mtime   int64
	// Xattrs count for an object that is not in the directory.
	Xattrs []kml.Xattr
	// Patched: Staged is the name of a Patch, which makes the file that is there
	// Version.
	Patched bool
}

// Bring completes an object that is lacking: a file gets contents, anything else
// is made. The replica's cursor must have reached what was brought. ErrNotFound:
// the master removed it meanwhile. A file whose version is a later one by now
// takes what was brought all the same, and goes on lacking.
func (r *Replica) Bring(_ context.Context, oid kml.OID, b Brought) error {
	t := r.t
	for range maxRetry {
		o, err := t.index.Get(oid)
		if err != nil {
			return err
		}
		names := t.index.Names(oid)
		parents := make([]kml.OID, len(names))
		for i, n := range names {
			parents[i] = n.Parent
		}
		err = r.bringLocked(o, names, parents, b)
		if !errors.Is(err, errAgain) {
			if err == nil {
				r.troubles.clear(oid)
			}
			return err
		}
	}
	return syscall.ESTALE
}

func (r *Replica) bringLocked(o *Object, names []Name, parents []kml.OID, b Brought) error {
	t := r.t
	defer t.names.lock(parents...).unlock()
	defer t.objs.lock(o.OID).unlock()
	now, err := t.index.Get(o.OID)
	if err != nil {
		return err
	}
	if now.Parent != o.Parent || now.Name != o.Name || len(t.index.Names(o.OID)) != len(names) {
		return errAgain
	}
	o = now
	if names = r.keptNames(names, &o.Attr); len(names) == 0 {
		return ErrNotFound
	}
	if !lacking(o) {
		return nil // somebody else brought it
	}
	c := change{oid: o.OID}
	if o.Attr.Mode&unix.S_IFMT != unix.S_IFREG {
		rec := &kml.Record{Op: opFor(o.Attr.Mode), OID: o.OID, Parent: names[0].Parent, Name: names[0].Name, Target: o.Target, Attr: o.Attr, Xattrs: b.Xattrs}
		cs, err := r.make(rec, o.Attr, nil)
		if err != nil {
			return err
		}
		if len(cs) == 0 {
			return nil
		}
		c = cs[0]
	} else if c.inode, err = r.bringFile(o, names, b); err != nil {
		return err
	}
	defer r.dirty.Store(true)
	if c.inode != nil {
		made := *o
		made.Handle = c.inode.handle
		for _, n := range names[1:] {
			if err := r.linkFrom(names[0], n, &made); err != nil {
				r.trouble(o.OID, r.Path(n.Parent)+"/"+n.Name, "link", err)
			}
		}
	}
	c.lacks = o.Attr.Mode&unix.S_IFMT == unix.S_IFREG && b.Version != o.DataVersion
	if c.inode != nil {
		r.deltas.drop(o.OID)
	}
	for _, n := range names {
		r.folderTime(n.Parent)
	}
	if err := t.index.Update(c.note); err != nil {
		return err
	}
	if b.Patched {
		r.dropPatch(b.Staged)
	}
	kind := ChangeData | ChangeAttr
	t.watch.emit(Change{Kind: kind, OID: o.OID})
	if o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
		t.watcher.added(o.OID)
		return r.loseBelow(o.OID, 0)
	}
	return nil
}

// linkFrom makes a further name of what the first one holds.
func (r *Replica) linkFrom(first, n Name, o *Object) error {
	fd, err := r.openAt(first, o)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ref, err := r.folder(n.Parent)
	if err != nil {
		return err
	}
	defer ref.release()
	return r.linkTo(fd, ref.fd, n, o)
}

// bringFile puts staged contents in place.
func (r *Replica) bringFile(o *Object, names []Name, b Brought) (*inode, error) {
	a := o.Attr
	if b.Version != o.DataVersion {
		a.Mtime = b.Mtime
	}
	here := len(o.Handle) != 0
	if b.Patched {
		return r.patchIn(o, b.Staged, a)
	}
	xs := b.Xattrs
	if here {
		if fd, _, err := r.openObject(o); err == nil {
			xs, err = place{fd: fd}.xattrs()
			unix.Close(fd)
			if err != nil {
				return nil, err
			}
		}
	}
	fd, err := unix.Openat(r.stage, b.Staged, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	s := &staged{fd: fd, name: b.Staged, noted: func(in *inode) error {
		fault.Point("replica.brought")
		c := change{oid: o.OID, inode: in, lacks: b.Version != o.DataVersion}
		return r.t.index.Update(c.note)
	}}
	if err := r.dress(node.At{FD: fd}, a, xs); err != nil {
		unix.Close(fd)
		return nil, err
	}
	fault.Point("replica.staged")
	rec := &kml.Record{Op: kml.OpStore, OID: o.OID, Attr: kml.Attr{Size: a.Size, Mtime: a.Mtime}}
	return r.swapIn(o, names, s, rec)
}

// loseBelow notes that nothing of what the index has below a folder is in the
// directory: the folder was made anew.
func (r *Replica) loseBelow(oid kml.OID, depth int) error {
	if depth > maxDepth {
		return syscall.ELOOP
	}
	return r.eachChild(oid, func(n Name, _ NameEntry, o *Object) error {
		if o == nil {
			return nil
		}
		if len(o.Handle) == 0 || !r.onDiskAs(n, o) {
			if err := r.t.index.Update((&change{oid: o.OID, lacks: true}).note); err != nil {
				return err
			}
			if r.kept(n, &o.Attr) {
				r.lack(o.OID)
			}
		}
		if o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
			return r.loseBelow(o.OID, depth+1)
		}
		return nil
	})
}

// onDiskAs reports whether a name holds an object's inode.
func (r *Replica) onDiskAs(n Name, o *Object) bool {
	fd, err := r.openAt(n, o)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}
