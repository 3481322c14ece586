package tree

import (
	"bytes"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/internal/node"
	"github.com/mezzofs/mezzo/kml"
)

// limboOID is the folder in the state folder for objects on their way to another
// name. No master mints it.
const limboOID = kml.OID(2)

// adoptLimbo gives the index the folder of objects on their way. No name leads
// to it.
func (r *Replica) adoptLimbo() error {
	t := r.t
	name := ExtDirName + "/limbo"
	p, st, h, err := lookAtName(t.rootfd, name)
	if err != nil {
		return err
	}
	unix.Close(p.fd)
	return t.index.Update(func(b *Batch) error {
		return b.Put(&Object{OID: limboOID, Attr: kmlAttr(&st), Parent: kml.RootOID, Name: name, Ino: st.Ino, Handle: h})
	})
}

// CopyEntry is one entry of the master's snapshot, a folder before what is in it.
type CopyEntry struct {
	SnapshotEntry
	Data []byte // all of a file's contents, when they came along
}

// Copy makes the directory what a snapshot of the master's says. What is there
// already is used: what the index knows by its oid, anything else when type,
// size and time are those of the master's. A copy that did not end is taken up
// by the next one.
type Copy struct {
	r     *Replica
	pos   kml.Position
	taken int64
	cut   bool // the master may have lost what is here
}

// BeginCopy begins a copy of the snapshot at pos. head is the header of the
// segment of the master's log with which this one begins.
func (r *Replica) BeginCopy(pos kml.Position, head []byte) (*Copy, error) {
	if !r.copying.Load() {
		return nil, fmt.Errorf("%s: is no copy that has begun: %w", r.t.dir, syscall.EINVAL)
	}
	if err := r.openLog(head); err != nil {
		return nil, err
	}
	return &Copy{r: r, pos: pos, cut: r.t.state.Fileset().Cut}, nil
}

// Log appends records of the master's log, as far as the snapshot's position.
// done is true when it has been reached.
func (c *Copy) Log(recs []*kml.Record) (done bool, err error) {
	for i, rec := range recs {
		if rec.Pos > c.pos {
			recs = recs[:i]
			break
		}
	}
	if err := c.r.t.log.AppendReplica(recs...); err != nil {
		return false, err
	}
	return c.r.t.log.End() >= c.pos, nil
}

// Has reports whether a file that an entry tells of is in the directory with
// these contents, as far as type, size and time tell.
func (c *Copy) has(o *Object, e *CopyEntry, st *unix.Statx_t) bool {
	return o != nil && o.Whole && o.DataVersion == e.DataVersion && o.Attr.Size == e.Record.Attr.Size &&
		st.Size == o.Fp.Size && nsOf(st.Mtime) == o.Fp.Mtime && st.Size == e.Record.Attr.Size
}

// Take takes the next entry.
func (c *Copy) Take(e *CopyEntry) error {
	r, rec := c.r, e.Record
	c.taken++
	if rec.OID == kml.RootOID {
		return c.root(e)
	}
	if rec.Op == kml.OpLink {
		return c.link(e)
	}
	old, err := r.t.index.Get(rec.OID)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if err != nil {
		old = nil
	}
	ch, err := c.place(old, e)
	if err != nil {
		r.trouble(rec.OID, pathOf(r, rec), rec.Op.String(), err)
		ch = change{oid: rec.OID, lacks: true}
	}
	fault.Point("replica.copied")
	if err := c.note(old, e, ch); err != nil {
		return err
	}
	if ch.lacks && r.kept(Name{rec.Parent, rec.Name}, &rec.Attr) {
		r.lack(rec.OID)
	}
	return nil
}

func (c *Copy) root(e *CopyEntry) error {
	r := c.r
	m := kml.MaskMode | kml.MaskUID | kml.MaskGID
	if err := node.Dress(node.At{FD: r.t.rootfd}, r.here(e.Record.Attr), m, e.Record.Xattrs, false, r.forgive()); err != nil {
		r.trouble(kml.RootOID, ".", "setattr", err)
	}
	return r.t.index.Update(func(b *Batch) error {
		o, err := b.Get(kml.RootOID)
		if err != nil {
			return err
		}
		n := *o
		n.Attr, n.Ctime, n.Version, n.Known = e.Record.Attr, e.Record.Time, e.Version, c.pos
		return b.Put(&n)
	})
}

// note brings the index up to an entry and to what is in the directory.
func (c *Copy) note(old *Object, e *CopyEntry, ch change) error {
	rec := e.Record
	n := Name{rec.Parent, rec.Name}
	left := false // its old name
	if old != nil {
		was := Name{old.Parent, old.Name}
		now := *old
		if ch.inode != nil { // it may have been replaced, under that name too
			now.Handle = ch.inode.handle
		}
		left = was != n && old.Parent != 0 && !c.r.onDiskAs(was, old) && !c.r.onDiskAs(was, &now)
	}
	return c.r.t.index.Update(func(b *Batch) error {
		several := rec.Op != kml.OpMkdir && rec.Attr.Nlink > 1
		if old != nil {
			// Names that it has no longer stay until they are swept.
			for _, was := range b.Names(rec.OID) {
				if old.Attr.Mode&unix.S_IFMT != unix.S_IFDIR && (old.Attr.Nlink > 1 || was != Name{old.Parent, old.Name}) {
					several = true
				}
			}
			if was := (Name{old.Parent, old.Name}); left {
				if held, _, _ := b.Child(was); held == rec.OID {
					b.DelName(was, c.pos)
					b.SetLink(rec.OID, was, false)
				}
			}
		}
		o := &Object{OID: rec.OID, Attr: rec.Attr, Ctime: rec.Time, Btime: rec.Time, Version: e.Version, DataVersion: e.DataVersion,
			Target: rec.Target, Parent: n.Parent, Name: n.Name, Known: c.pos}
		if several {
			b.SetLink(rec.OID, n, true)
		}
		if err := b.Put(o); err != nil {
			return err
		}
		if err := c.setName(b, n, rec.OID); err != nil {
			return err
		}
		return ch.note(b)
	})
}

// setName makes a name an object's in the index; it is no more another's.
func (c *Copy) setName(b *Batch, n Name, oid kml.OID) error {
	held, _, _ := b.Child(n)
	b.SetName(n, oid, c.pos)
	if held == 0 || held == oid {
		return nil
	}
	o, err := b.Get(held)
	if err != nil || o.Known == c.pos || len(b.Names(held)) > 1 {
		return dropLink(b, held, n)
	}
	// Without a name nothing would find it again, should it be gone.
	now := *o
	now.Parent, now.Name = limboOID, limboName(held)
	b.SetLink(held, n, false)
	b.SetName(Name{now.Parent, now.Name}, held, 0)
	return b.Put(&now)
}

// limboName is an object's name in the folder of those on their way.
func limboName(oid kml.OID) string { return fmt.Sprintf("%016x", uint64(oid)) }

// dropLink takes a name from those of an object that has, or had, several. A
// single name stands in the object.
func dropLink(b *Batch, oid kml.OID, n Name) error {
	b.SetLink(oid, n, false)
	o, err := b.Get(oid)
	if err != nil {
		return ignore(err, ErrNotFound)
	}
	names := b.Names(oid)
	if len(names) != 1 || o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if o.Attr.Nlink <= 1 {
		b.SetLink(oid, names[0], false)
	}
	if (Name{o.Parent, o.Name}) == n {
		now := *o
		now.Parent, now.Name = names[0].Parent, names[0].Name
		return b.Put(&now)
	}
	return nil
}

// place makes a name hold what an entry says.
func (c *Copy) place(old *Object, e *CopyEntry) (change, error) {
	r, rec := c.r, e.Record
	n := Name{rec.Parent, rec.Name}
	gone := change{oid: rec.OID}
	if !r.kept(n, &rec.Attr) {
		if old != nil && len(old.Handle) > 0 {
			return gone, r.dropTree(Name{old.Parent, old.Name}, old)
		}
		return gone, nil
	}
	if err := checkName(n.Parent, n.Name); err != nil {
		return gone, err
	}
	ref, err := r.folder(n.Parent)
	if err != nil {
		return gone, err
	}
	defer ref.release()
	for range maxRetry {
		p, st, h, err := lookAtName(ref.fd, n.Name)
		if err == nil {
			ch, again, err := c.over(ref.fd, p, &inode{st, h}, old, e)
			unix.Close(p.fd)
			if !again {
				return ch, err
			}
			continue
		}
		if !errors.Is(err, syscall.ENOENT) {
			return gone, err
		}
		if old != nil && len(old.Handle) > 0 {
			moved, err := c.fetchOver(ref.fd, n, old)
			if err != nil {
				return gone, err
			}
			if moved {
				continue
			}
		}
		return c.fresh(ref.fd, n, e)
	}
	return gone, syscall.EBUSY
}

// fresh makes what is nowhere in the directory yet.
func (c *Copy) fresh(dirfd int, n Name, e *CopyEntry) (change, error) {
	r, rec := c.r, e.Record
	if rec.Op == kml.OpCreate && e.Data == nil && rec.Attr.Size > 0 {
		return change{oid: rec.OID, lacks: true}, nil
	}
	s, err := r.stageNew(rec, rec.Attr, e.Data)
	if err != nil {
		return change{oid: rec.OID, lacks: true}, err
	}
	if err := r.putName(dirfd, n, s.name); err != nil {
		r.dropStaged(s)
		return change{oid: rec.OID, lacks: true}, err
	}
	defer unix.Close(s.fd)
	in, err := inodeOf(s.fd)
	return change{oid: rec.OID, inode: in}, err
}

// fetchOver moves an object from where it is to its name, which is free.
func (c *Copy) fetchOver(dirfd int, n Name, old *Object) (bool, error) {
	r := c.r
	names := r.t.index.Names(old.OID)
	for _, was := range names {
		if was == n {
			continue
		}
		fd, err := r.openAt(was, old)
		if err != nil {
			continue
		}
		defer unix.Close(fd)
		if old.Attr.Mode&unix.S_IFMT != unix.S_IFDIR && len(names) > 1 && was.Parent != limboOID {
			return true, r.linkTo(fd, dirfd, n, old)
		}
		from, err := r.folder(was.Parent)
		if err != nil {
			return false, err
		}
		defer from.release()
		return true, unix.Renameat2(from.fd, was.Name, dirfd, n.Name, unix.RENAME_NOREPLACE)
	}
	return false, nil
}

// over decides about what a name holds already; again asks for another look.
func (c *Copy) over(dirfd int, p place, in *inode, old *Object, e *CopyEntry) (ch change, again bool, err error) {
	r, rec := c.r, e.Record
	n := Name{rec.Parent, rec.Name}
	ch = change{oid: rec.OID}
	known := r.t.objectFor(&in.st, in.handle)
	switch {
	case known != nil && known.OID != rec.OID:
		if known.Known == c.pos { // a name too many of what has its place
			if in.st.Mode&unix.S_IFMT == unix.S_IFDIR {
				return ch, false, syscall.EBUSY
			}
			return ch, true, unix.Unlinkat(dirfd, n.Name, 0)
		}
		return ch, true, c.toLimbo(dirfd, n, known)
	case uint32(in.st.Mode)&unix.S_IFMT != rec.Attr.Mode&unix.S_IFMT || in.st.Dev_major != r.t.dev[0] || in.st.Dev_minor != r.t.dev[1]:
		return ch, true, r.setAside(dirfd, n, "of another type than the master's")
	}
	switch rec.Op {
	case kml.OpCreate:
		return c.overFile(dirfd, p, in, known, e)
	case kml.OpSymlink:
		if target, err := readlinkFd(p.fd); err != nil || target != rec.Target {
			return ch, true, r.setAside(dirfd, n, "another symbolic link than the master's")
		}
	case kml.OpMknod:
		if unix.Mkdev(in.st.Rdev_major, in.st.Rdev_minor) != rec.Attr.Rdev {
			return ch, true, r.setAside(dirfd, n, "another device than the master's")
		}
	}
	ch.inode, err = c.redress(p, in, rec)
	return ch, false, err
}

// overFile takes a file over, or has it replaced.
func (c *Copy) overFile(dirfd int, p place, in *inode, known *Object, e *CopyEntry) (ch change, again bool, err error) {
	r, rec := c.r, e.Record
	n := Name{rec.Parent, rec.Name}
	ch = change{oid: rec.OID}
	same := c.has(known, e, &in.st)
	if known == nil {
		same = in.st.Size == rec.Attr.Size && nsOf(in.st.Mtime) == rec.Attr.Mtime && in.st.Mtime.Nsec != 0
	}
	if !same && in.st.Size == rec.Attr.Size && e.Data != nil {
		same, err = holdsBytes(p, e.Data)
	}
	if err == nil && same || err == nil && rec.Attr.Size == 0 && in.st.Size == 0 {
		ch.inode, err = c.redress(p, in, rec)
		return ch, false, err
	}
	if err != nil {
		return ch, false, err
	}
	if err := r.keepLost(p, known, e.DataVersion, &in.st); err != nil {
		r.t.logger.Warn("a version that the master may have lost is not kept", "fileset", r.t.dir, "oid", rec.OID, "err", err)
	}
	if c.cut && known != nil && known.Whole {
		return ch, true, r.aside(dirfd, n.Name, n, lostWhy)
	}
	switch {
	case e.Data != nil || rec.Attr.Size == 0:
		ch, err = c.replace(n, known, e)
		return ch, false, err
	case known == nil && in.st.Size != rec.Attr.Size:
		return ch, true, r.setAside(dirfd, n, "not what the master has")
	}
	// It may be the same, or nearly: what is fetched is compared with it first.
	ch.lacks = true
	edited := known == nil || r.edited(known, &in.st)
	if ch.inode, err = c.redress(p, in, rec); err == nil && edited {
		ch.inode.st.Size = ^uint64(0) // replaced, it is put aside
	}
	return ch, false, err
}

// replace puts a new file in the place of one that is not what it should be.
func (c *Copy) replace(n Name, known *Object, e *CopyEntry) (change, error) {
	r, rec := c.r, e.Record
	lost := change{oid: rec.OID, lacks: true}
	s, err := r.stageNew(rec, rec.Attr, e.Data)
	if err != nil {
		return lost, err
	}
	names := []Name{n}
	if known == nil {
		known = &Object{OID: rec.OID, Attr: rec.Attr}
	} else {
		// Its other names go along; those that are too many are swept.
		for _, other := range r.t.index.Names(rec.OID) {
			if other != n && r.onDiskAs(other, known) {
				names = append(names, other)
			}
		}
	}
	in, err := r.swapIn(known, names, s, rec)
	if err != nil {
		return lost, err
	}
	return change{oid: rec.OID, inode: in}, nil
}

// holdsBytes compares a file with contents.
func holdsBytes(p place, data []byte) (bool, error) {
	fd, err := unix.Open(p.path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	b := make([]byte, len(data)+1)
	n, err := preadFull(fd, b, 0)
	return n == len(data) && bytes.Equal(b[:n], data), err
}

// redress gives what is there the attributes it should have.
func (c *Copy) redress(p place, in *inode, rec *kml.Record) (*inode, error) {
	have := kmlAttr(&in.st)
	want := c.r.here(rec.Attr)
	m := differing(have, want)
	if rec.Op == kml.OpMkdir || in.st.Size != rec.Attr.Size && rec.Op == kml.OpCreate {
		m &^= kml.MaskMtime // at the end; with the contents
	}
	xs, err := p.xattrs()
	if err != nil {
		return nil, err
	}
	extra, missing := xattrDiff(xs, rec.Xattrs)
	for _, name := range extra {
		if err := node.RemoveXattr(node.At{FD: p.fd}, name); err != nil {
			c.r.skip("xattr "+name, err)
		}
	}
	if m == 0 && len(extra)+len(missing) == 0 {
		return in, nil
	}
	if err := node.Dress(node.At{FD: p.fd}, want, m, missing, rec.Op == kml.OpSymlink, c.r.forgive()); err != nil {
		return nil, err
	}
	return inodeOf(p.fd)
}

// xattrDiff is which attributes are too many, and which are missing or other.
func xattrDiff(have, want []kml.Xattr) (extra []string, missing []kml.Xattr) {
	m := make(map[string][]byte, len(have))
	for _, x := range have {
		m[x.Name] = x.Value
	}
	for _, x := range want {
		if v, ok := m[x.Name]; !ok || !bytes.Equal(v, x.Value) {
			missing = append(missing, x)
		}
		delete(m, x.Name)
	}
	for name := range m {
		extra = append(extra, name)
	}
	return extra, missing
}

// toLimbo takes an object that is in the way off its name until its own turn.
func (c *Copy) toLimbo(dirfd int, n Name, o *Object) error {
	t := c.r.t
	ref, err := t.dirs.get(limboOID)
	if err != nil {
		return err
	}
	defer ref.release()
	name := limboName(o.OID)
	err = unix.Renameat2(dirfd, n.Name, ref.fd, name, unix.RENAME_NOREPLACE)
	if err == syscall.EEXIST && c.r.onDiskAs(Name{limboOID, name}, o) {
		err = unix.Unlinkat(dirfd, n.Name, 0) // another of its names was there first
	}
	if err != nil {
		return err
	}
	return t.index.Update(func(b *Batch) error {
		if held, _, _ := b.Child(n); held == o.OID {
			b.DelName(n, c.pos)
		}
		to := Name{limboOID, name}
		b.SetName(to, o.OID, 0)
		now := *o
		several := o.Attr.Nlink > 1 || len(b.Names(o.OID)) > 1
		b.SetLink(o.OID, n, false) // also when it stands there as the only one left
		if several && o.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
			b.SetLink(o.OID, to, true)
		}
		if (Name{o.Parent, o.Name}) == n {
			now.Parent, now.Name = to.Parent, to.Name
		}
		return b.Put(&now)
	})
}

// link takes a further name of a file that came before.
func (c *Copy) link(e *CopyEntry) error {
	r, rec := c.r, e.Record
	n := Name{rec.Parent, rec.Name}
	o, err := r.t.index.Get(rec.OID)
	if err != nil {
		return fmt.Errorf("link %q to %v: %w", rec.Name, rec.OID, err)
	}
	if r.kept(n, &o.Attr) {
		if err := c.placeLink(n, o); err != nil {
			r.trouble(rec.OID, pathOf(r, rec), "link", err)
		}
	}
	return r.t.index.Update(func(b *Batch) error {
		b.SetLink(rec.OID, n, true)
		return c.setName(b, n, rec.OID)
	})
}

// placeLink makes a name one of an object's; what it holds makes way. One that is
// not here yet comes with all its names.
func (c *Copy) placeLink(n Name, o *Object) error {
	r := c.r
	if len(o.Handle) > 0 {
		return r.linkName(n, o, func(dirfd int) error { return c.clear(dirfd, n, o) })
	}
	ref, err := r.folder(n.Parent)
	if err != nil {
		return err
	}
	defer ref.release()
	return c.clear(ref.fd, n, o)
}

// clear has what is not an object's inode make way for it.
func (c *Copy) clear(dirfd int, n Name, o *Object) error {
	p, st, h, err := lookAtName(dirfd, n.Name)
	if err != nil {
		return ignore(err, syscall.ENOENT)
	}
	unix.Close(p.fd)
	known := c.r.t.objectFor(&st, h)
	switch {
	case string(h) == string(o.Handle):
		return nil
	case known != nil && known.Known != c.pos:
		return c.toLimbo(dirfd, n, known)
	case known != nil && st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return unix.Unlinkat(dirfd, n.Name, 0) // a name too many of what has its place
	case known == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && looksLike(o, &st):
		return unix.Unlinkat(dirfd, n.Name, 0) // another copy of the same file
	}
	return c.r.setAside(dirfd, n, "not what the master has")
}
