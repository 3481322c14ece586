package tree

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/internal/node"
	"github.com/mezzofs/mezzo/kml"
)

// staged is a new inode in the stage, on its way to a name.
type staged struct {
	fd   int // of it: open for writing when it is a regular file, else O_PATH
	name string
	// noted, when not nil, is called with what the names have by now, before the
	// intent is cleared: nothing else tells a restart of it.
	noted func(*inode) error
	slot  int // of the intent
}

// stageNewExt is in the name of what is made in the stage in one go.
const stageNewExt = ".new"

// dropStaged drops what did not get to a name.
func (r *Replica) dropStaged(s *staged) {
	unix.Close(s.fd)
	_ = unix.Unlinkat(r.stage, s.name, 0)
	_ = unix.Unlinkat(r.stage, s.name, unix.AT_REMOVEDIR)
}

// stageNew makes in the stage, where no default ACL reaches it, what a record
// makes, with contents.
func (r *Replica) stageNew(rec *kml.Record, a kml.Attr, data []byte) (*staged, error) {
	s := &staged{fd: -1, name: fmt.Sprintf("%016x%s", uint64(rec.OID), stageNewExt)}
	p := node.At{FD: r.stage, Name: s.name}
	err := r.create(s, rec, data)
	if errors.Is(err, syscall.EEXIST) { // of a run that was killed
		_ = unix.Unlinkat(r.stage, s.name, 0)
		_ = unix.Unlinkat(r.stage, s.name, unix.AT_REMOVEDIR)
		err = r.create(s, rec, data)
	}
	if err != nil {
		if s.fd >= 0 {
			r.dropStaged(s)
		}
		return nil, err
	}
	if s.fd >= 0 && rec.Op == kml.OpCreate {
		p = node.At{FD: s.fd}
	}
	if err := r.dress(p, a, rec.Xattrs); err != nil {
		r.dropStaged(s)
		return nil, err
	}
	return s, nil
}

func (r *Replica) create(s *staged, rec *kml.Record, data []byte) (err error) {
	if rec.Op == kml.OpCreate {
		s.fd, err = unix.Openat(r.stage, s.name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err == nil && len(data) > 0 {
			_, err = pwriteFull(s.fd, data, 0)
		}
		return err
	}
	if err := node.Make(node.At{FD: r.stage, Name: s.name}, rec); err != nil {
		return err
	}
	s.fd, err = unix.Openat(r.stage, s.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	return err
}

// inodeOf is what a descriptor stands for.
func inodeOf(fd int) (*inode, error) {
	in := new(inode)
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, statxMask, &in.st); err != nil {
		return nil, err
	}
	var err error
	in.handle, err = HandleAt(fd, "")
	return in, err
}

// make brings a new object to its name.
func (r *Replica) make(rec *kml.Record, a kml.Attr, data []byte) ([]change, error) {
	n := Name{rec.Parent, rec.Name}
	if !r.kept(n, &a) {
		return nil, nil
	}
	lost := []change{{oid: rec.OID, lacks: true}}
	if rec.Op == kml.OpCreate && uint64(len(data)) != a.Size {
		return lost, nil // it was found with contents, which did not come along
	}
	if err := checkName(n.Parent, n.Name); err != nil {
		return lost, err
	}
	ref, err := r.folder(n.Parent)
	if err != nil {
		return lost, err
	}
	defer ref.release()
	if rec.Op == kml.OpMkdir {
		if in, err := r.adoptFolder(ref.fd, n.Name, a, rec.Xattrs); in != nil || err != nil {
			return []change{{oid: rec.OID, inode: in}}, err
		}
	}
	s, err := r.stageNew(rec, a, data)
	if err != nil {
		return lost, err
	}
	fault.Point("replica.staged")
	if err := r.putName(ref.fd, n, s.name); err != nil {
		r.dropStaged(s)
		return lost, err
	}
	defer unix.Close(s.fd)
	in, err := inodeOf(s.fd)
	if err != nil {
		return lost, err
	}
	return []change{{oid: rec.OID, inode: in}}, nil
}

// adoptFolder takes a folder that is there already for one that is to be made;
// nil when there is none.
func (r *Replica) adoptFolder(dirfd int, name string, a kml.Attr, xs []kml.Xattr) (*inode, error) {
	p, st, h, err := lookAtName(dirfd, name)
	if err != nil {
		return nil, nil
	}
	defer unix.Close(p.fd)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || r.t.objectFor(&st, h) != nil || st.Dev_major != r.t.dev[0] || st.Dev_minor != r.t.dev[1] {
		return nil, nil
	}
	m := kml.MaskMode | kml.MaskUID | kml.MaskGID | kml.MaskMtime
	if err := node.Dress(node.At{FD: p.fd}, r.here(a), m, xs, false, r.forgive()); err != nil {
		return nil, err
	}
	return inodeOf(p.fd)
}

// putName moves something from the stage to a name that should be free. What a
// local program put there is set aside.
func (r *Replica) putName(dirfd int, n Name, from string) error {
	for range maxRetry {
		err := unix.Renameat2(r.stage, from, dirfd, n.Name, unix.RENAME_NOREPLACE)
		if err != syscall.EEXIST {
			return err
		}
		if err := r.makeWay(dirfd, n); err != nil && !errors.Is(err, syscall.ENOENT) {
			return err
		}
	}
	return syscall.EEXIST
}

// makeWay frees a name that holds what it should not. In doubt that is what
// this replica made before it was killed, or a file that a crash left in pieces.
func (r *Replica) makeWay(dirfd int, n Name) error {
	p, st, h, err := lookAtName(dirfd, n.Name)
	if err != nil {
		return err
	}
	defer unix.Close(p.fd)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && r.standIns.is(n, h, true) {
		return unix.Unlinkat(dirfd, n.Name, 0)
	}
	if r.doubt.Load() && st.Mode&unix.S_IFMT != unix.S_IFDIR && r.t.objectFor(&st, h) == nil {
		return unix.Unlinkat(dirfd, n.Name, 0)
	}
	return r.setAside(dirfd, n, "in the way of what the master has")
}

// link gives an object one more name.
func (r *Replica) link(rec *kml.Record) error {
	n := Name{rec.Parent, rec.Name}
	o, err := r.t.index.Get(rec.OID)
	if err != nil || len(o.Handle) == 0 || !r.kept(n, &o.Attr) {
		return nil // not here yet: it comes with all its names
	}
	return r.linkName(n, o, nil)
}

// linkName makes n one more name of an object that is in the directory. clear,
// when not nil, frees the name in the folder dirfd first.
func (r *Replica) linkName(n Name, o *Object, clear func(dirfd int) error) error {
	ref, err := r.folder(n.Parent)
	if err != nil {
		return err
	}
	defer ref.release()
	fd, _, err := r.openObject(o)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if clear != nil {
		if err := clear(ref.fd); err != nil {
			return err
		}
	}
	return r.linkTo(fd, ref.fd, n, o)
}

// linkTo makes n a name of the inode behind fd, in place of what it holds.
func (r *Replica) linkTo(fd, dirfd int, n Name, o *Object) error {
	h, err := HandleAt(fd, "")
	if err != nil {
		return err
	}
	if got, err := HandleAt(dirfd, n.Name); err == nil && string(got) == string(h) {
		return nil
	}
	from := place{fd: fd}.path()
	err = unix.Linkat(unix.AT_FDCWD, from, dirfd, n.Name, unix.AT_SYMLINK_FOLLOW)
	if err != syscall.EEXIST {
		return err
	}
	tmp := fmt.Sprintf("%016x.link", uint64(o.OID))
	_ = unix.Unlinkat(r.stage, tmp, 0)
	if err := unix.Linkat(unix.AT_FDCWD, from, r.stage, tmp, unix.AT_SYMLINK_FOLLOW); err != nil {
		return err
	}
	return r.putName(dirfd, n, tmp)
}

// remove takes a name away, if it holds the object. What a local program put
// there, or wrote to, is set aside.
func (r *Replica) remove(n Name, oid kml.OID) error {
	o, err := r.t.index.Get(oid)
	if err != nil {
		return ignore(err, ErrNotFound)
	}
	ref, err := r.folder(n.Parent)
	if err != nil {
		return nil // nothing is there
	}
	defer ref.release()
	p, st, h, err := lookAtName(ref.fd, n.Name)
	if err != nil {
		return ignore(err, syscall.ENOENT)
	}
	defer unix.Close(p.fd)
	if len(o.Handle) == 0 || string(h) != string(o.Handle) {
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && r.standIns.is(n, h, true) {
			return unix.Unlinkat(ref.fd, n.Name, 0)
		}
		if r.doubt.Load() {
			return nil // done before the kill, and another object has the name by now
		}
		return r.setAside(ref.fd, n, "in the place of what the master removed")
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return r.removeFolder(ref.fd, n, o)
	}
	if r.edited(o, &st) {
		return r.aside(ref.fd, n.Name, n, "written here, and removed at the master")
	}
	return unix.Unlinkat(ref.fd, n.Name, 0)
}

// edited reports whether a file is not what the replica left.
func (r *Replica) edited(o *Object, st *unix.Statx_t) bool {
	return o.Attr.Mode&unix.S_IFMT == unix.S_IFREG && !r.doubt.Load() && o.Fp != (Fingerprint{}) &&
		(st.Size != o.Fp.Size || nsOf(st.Mtime) != o.Fp.Mtime)
}

// removeFolder removes a folder that is empty at the master.
func (r *Replica) removeFolder(dirfd int, n Name, o *Object) error {
	r.t.dirs.forget(o.OID)
	err := unix.Unlinkat(dirfd, n.Name, unix.AT_REMOVEDIR)
	if err != syscall.ENOTEMPTY {
		return ignore(err, syscall.ENOENT)
	}
	all := func(int, string) bool { return true }
	if err := r.setEntriesAside(dirfd, n.Name, o.OID, "in a folder that the master removed", all); err != nil {
		return err
	}
	return ignore(unix.Unlinkat(dirfd, n.Name, unix.AT_REMOVEDIR), syscall.ENOENT)
}

// rename moves an object, over another one or in exchange for it.
func (r *Replica) rename(rec *kml.Record) ([]change, error) {
	from, to := Name{rec.Parent, rec.Name}, Name{rec.NewParent, rec.NewName}
	o, err := r.t.index.Get(rec.OID)
	if err != nil {
		return nil, ignore(err, ErrNotFound)
	}
	if c := r.renamedBefore(from, to, rec, o); c != nil {
		return c, nil
	}
	if rec.Flags&kml.FlagExchange != 0 && rec.Victim != nil {
		return r.exchange(from, to, o, rec.Victim.OID)
	}
	if rec.Victim != nil && rec.Victim.OID != rec.OID {
		defer r.t.dirs.forget(rec.Victim.OID)
	}
	if o.Attr.Mode&unix.S_IFMT == unix.S_IFREG && !o.Whole && r.kept(to, &o.Attr) {
		return r.renameLater(from, to, o)
	}
	if len(o.Handle) == 0 || !r.kept(to, &o.Attr) {
		// Not here, or no longer wanted here: only what it replaces goes.
		return r.renameAway(from, to, rec, o)
	}
	if !r.kept(from, &o.Attr) { // it is here under another name
		if rec.Victim != nil && rec.Victim.OID != o.OID {
			if err := r.remove(to, rec.Victim.OID); err != nil {
				return []change{r.without(o)}, err
			}
		}
		return []change{{oid: o.OID, keep: true, lookUp: true}}, r.linkName(to, o, nil)
	}
	src, err := r.folder(from.Parent)
	if err != nil {
		return []change{{oid: o.OID, lacks: true}}, err
	}
	defer src.release()
	dst, err := r.folder(to.Parent)
	if err != nil {
		return []change{{oid: o.OID, lacks: true}}, err
	}
	defer dst.release()
	h, err := HandleAt(src.fd, from.Name)
	if err == nil && string(h) == string(o.Handle) {
		err = r.moveOver(src.fd, dst.fd, from, to, rec)
	} else if got, e := HandleAt(dst.fd, to.Name); e == nil && string(got) == string(o.Handle) {
		err = nil // before the kill
	} else {
		return []change{{oid: o.OID, lacks: true}}, errors.Join(err, errMismatch)
	}
	if err != nil {
		return []change{{oid: o.OID, lacks: true}}, err
	}
	fault.Point("replica.renamed")
	c := change{oid: o.OID, keep: true, lookUp: true}
	var st unix.Statx_t
	if unix.Statx(dst.fd, to.Name, unix.AT_SYMLINK_NOFOLLOW, statxMask, &st) == nil {
		c.fp = &st
	}
	return []change{c}, nil
}

// renamedBefore finds a new object, whose inode nothing tells but its name, under
// the name that a rename gave it just before a kill; nil when it is not there.
func (r *Replica) renamedBefore(from, to Name, rec *kml.Record, o *Object) []change {
	if !r.doubt.Load() || len(o.Handle) != 0 || r.t.onDisk(from) {
		return nil
	}
	dst, err := r.folder(to.Parent)
	if err != nil {
		return nil
	}
	defer dst.release()
	p, st, h, err := lookAtName(dst.fd, to.Name)
	if err != nil {
		return nil
	}
	unix.Close(p.fd)
	if known := r.t.objectFor(&st, h); known != nil && r.victimOf(rec, &st, h) == nil || !looksLike(o, &st) {
		return nil
	}
	return []change{{oid: o.OID, inode: &inode{st, h}}}
}

// moveOver renames; what is at the new name is the victim, or is set aside.
func (r *Replica) moveOver(srcfd, dstfd int, from, to Name, rec *kml.Record) error {
	flags := uint(unix.RENAME_NOREPLACE)
	for range maxRetry {
		p, st, h, err := lookAtName(dstfd, to.Name)
		if err == nil {
			unix.Close(p.fd)
			if v := r.victimOf(rec, &st, h); v != nil && !r.edited(v, &st) {
				flags = 0
				if st.Mode&unix.S_IFMT == unix.S_IFDIR {
					if err := r.removeFolder(dstfd, to, v); err != nil {
						return err
					}
				}
			} else if same, err := HandleAt(srcfd, from.Name); err == nil && string(same) == string(h) {
				return unix.Unlinkat(srcfd, from.Name, 0) // two names of one file
			} else if err := r.makeWay(dstfd, to); err != nil {
				return err
			}
		}
		err = unix.Renameat2(srcfd, from.Name, dstfd, to.Name, flags)
		if err != syscall.EEXIST {
			return err
		}
	}
	return syscall.EEXIST
}

// victimOf is the object that a rename replaces, when it is what lies there.
func (r *Replica) victimOf(rec *kml.Record, st *unix.Statx_t, h []byte) *Object {
	if rec.Victim == nil {
		return nil
	}
	o := r.t.objectFor(st, h)
	if o == nil || o.OID != rec.Victim.OID {
		return nil
	}
	return o
}

// renameAway is a rename of what is not in the directory, or leaves it.
func (r *Replica) renameAway(from, to Name, rec *kml.Record, o *Object) ([]change, error) {
	var errs []error
	if rec.Victim != nil {
		errs = append(errs, r.remove(to, rec.Victim.OID))
	}
	if len(o.Handle) != 0 {
		errs = append(errs, r.dropTree(from, o))
		c := r.without(o) // it may be here under another name
		c.lacks, c.lookUp = false, c.keep
		return []change{c}, errors.Join(errs...)
	}
	if r.kept(to, &o.Attr) {
		r.lack(o.OID)
	}
	return nil, errors.Join(errs...)
}

// renameLater is a rename of a file whose contents are still on their way: nobody
// may see under the new name what belongs to no version of it. What is there
// stands in until they have come.
func (r *Replica) renameLater(from, to Name, o *Object) ([]change, error) {
	gone := []change{{oid: o.OID, lacks: true}}
	if dst, err := r.folder(to.Parent); err == nil {
		if h, err := HandleAt(dst.fd, to.Name); err == nil {
			r.standIns.put(to, h)
		}
		dst.release()
	}
	r.deltas.drop(o.OID)
	if len(o.Handle) == 0 {
		return gone, nil
	}
	if err := r.remove(from, o.OID); err != nil {
		return gone, err
	}
	return []change{r.without(o)}, nil
}

// without is an object that lost a name and lacks its contents: its other names
// stay what they are.
func (r *Replica) without(o *Object) change {
	c := change{oid: o.OID, lacks: true}
	if fd, _, err := r.openObject(o); err == nil {
		unix.Close(fd)
		c.keep = true
	}
	return c
}

// exchange swaps two names.
func (r *Replica) exchange(from, to Name, o *Object, other kml.OID) ([]change, error) {
	v, err := r.t.index.Get(other)
	if err != nil {
		return nil, ignore(err, ErrNotFound)
	}
	lost := []change{{oid: o.OID, lacks: true}, {oid: v.OID, lacks: true}}
	src, err := r.folder(from.Parent)
	if err != nil {
		return lost, err
	}
	defer src.release()
	dst, err := r.folder(to.Parent)
	if err != nil {
		return lost, err
	}
	defer dst.release()
	a, _ := HandleAt(src.fd, from.Name)
	b, _ := HandleAt(dst.fd, to.Name)
	switch {
	case string(a) == string(o.Handle) && string(b) == string(v.Handle) && a != nil && b != nil:
		if err := unix.Renameat2(src.fd, from.Name, dst.fd, to.Name, unix.RENAME_EXCHANGE); err != nil {
			return lost, err
		}
	case string(a) == string(v.Handle) && string(b) == string(o.Handle) && a != nil && b != nil: // before the kill
	default: // one of them is still on its way: both come to their new names
		err := errors.Join(r.remove(from, o.OID), r.remove(to, v.OID))
		return []change{r.without(o), r.without(v)}, err
	}
	return []change{{oid: o.OID, keep: true, lookUp: true}, {oid: v.OID, keep: true, lookUp: true}}, nil
}

// attribute sets attributes and xattrs.
func (r *Replica) attribute(rec *kml.Record) ([]change, error) {
	o, err := r.t.index.Get(rec.OID)
	if err != nil || rec.OID != kml.RootOID && len(o.Handle) == 0 {
		return nil, ignore(err, ErrNotFound) // not here: it comes with all it has
	}
	fd, _, err := r.openObject(o)
	if err != nil {
		return []change{{oid: o.OID, lacks: true}}, err
	}
	defer unix.Close(fd)
	p := node.At{FD: fd}
	skip := r.forgive()
	switch rec.Op {
	case kml.OpSetxattr:
		if err = node.SetXattr(p, rec.Name, rec.Value); err != nil {
			err = skip("xattr "+rec.Name, err)
		}
	case kml.OpRemovexattr:
		if err = node.RemoveXattr(p, rec.Name); err != nil {
			err = skip("xattr "+rec.Name, err)
		}
	default:
		m := rec.Mask
		if o.Attr.Mode&unix.S_IFMT == unix.S_IFREG && !o.Whole {
			m &^= kml.MaskMtime // of the contents that come
		}
		err = node.Dress(p, r.here(rec.Attr), m, nil, o.Attr.Mode&unix.S_IFMT == unix.S_IFLNK, skip)
	}
	c := change{oid: o.OID, keep: true, lookUp: true}
	var st unix.Statx_t
	if e := unix.Statx(fd, "", unix.AT_EMPTY_PATH, statxMask, &st); e == nil {
		c.fp = &st
	}
	return []change{c}, err
}
