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

// Arrival is a record of the master's as it came.
type Arrival struct {
	Record *kml.Record
	// Data is all of the contents that a store left, when they came along; nil
	// when they did not.
	Data []byte
}

// Apply brings the replica over records, which follow each other and the cursor;
// those it has already are passed over. What cannot be done in the directory is
// noted as a trouble of the object concerned and does not stop the rest. An
// error means that log or index cannot be written (ENOSPC among others): the
// record it stopped at is to be given again.
func (r *Replica) Apply(ctx context.Context, as []Arrival) error {
	at, _ := r.Cursor()
	for len(as) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := 1
		if len(as) > 1 && fills(&as[0], &as[1]) {
			n = 2
		}
		if as[0].Record.Pos > at {
			err := r.apply(as[:n])
			if err != nil {
				// The directory may have what the log has not.
				r.doubt.Store(true)
				r.doubtful.Store(true)
				return fmt.Errorf("record %v: %w", as[0].Record.Pos, err)
			}
			if r.doubtful.CompareAndSwap(true, false) {
				r.sure() // a kill leaves no more than one record undecided
			}
		}
		as = as[n:]
	}
	r.advanced()
	return nil
}

// fills reports whether the second record fills the file that the first one
// makes: then it appears with its contents.
func fills(a, b *Arrival) bool {
	return a.Record.Op == kml.OpCreate && a.Record.Attr.Size == 0 && b.Record.Op == kml.OpStore && a.Record.OID == b.Record.OID && b.Data != nil &&
		len(b.Data) == int(b.Record.Attr.Size)
}

// change is what an object becomes in the directory, for the index.
type change struct {
	oid    kml.OID
	inode  *inode // what it is now; nil: it is not there
	keep   bool   // it is what it was: only fp counts
	fp     *unix.Statx_t
	lacks  bool // its contents are not those of its version
	lookUp bool // whether they are was not looked at: Whole stays
}

// inode is what an object is in the directory.
type inode struct {
	st     unix.Statx_t
	handle []byte
}

// note brings the index up to a change.
func (c *change) note(b *Batch) error {
	o, err := b.Get(c.oid)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	n := *o
	switch {
	case c.inode != nil:
		n.Ino, n.Handle, n.Fp = c.inode.st.Ino, c.inode.handle, fingerprint(&c.inode.st)
		n.Btime, n.Ctime = nsOf(c.inode.st.Btime), nsOf(c.inode.st.Ctime)
	case c.fp != nil:
		n.Fp, n.Ctime = fingerprint(c.fp), nsOf(c.fp.Ctime)
	case !c.keep:
		n.Ino, n.Handle, n.Fp = 0, nil, Fingerprint{}
	}
	if !c.lookUp {
		n.Whole = !c.lacks && (c.inode != nil || c.keep)
	}
	return b.Put(&n)
}

// apply does one record, or two that make one file.
func (r *Replica) apply(as []Arrival) error {
	t, rec := r.t, as[0].Record
	recs := []*kml.Record{rec}
	if len(as) == 2 {
		recs = append(recs, as[1].Record)
	}
	defer t.names.lock(r.concerned(rec)...).unlock()
	if rec.OID != 0 {
		defer t.objs.lock(rec.OID).unlock()
	}
	changes, err := r.act(as)
	if err != nil {
		r.trouble(rec.OID, pathOf(r, rec), rec.Op.String(), err)
	}
	fault.Point("replica.done")
	if err := r.journal(recs, changes); err != nil {
		return err
	}
	r.settleTimes(rec)
	fault.Point("replica.applied")
	for _, c := range changes {
		if c.lacks {
			r.lack(c.oid)
		}
	}
	r.applied.Store(uint64(recs[len(recs)-1].Pos))
	switch rec.Op {
	case kml.OpMkdir:
		t.watcher.added(rec.OID)
	case kml.OpRename:
		r.chooseAgain(rec.OID)
	}
	return nil
}

// pathOf is where a record's object is, or is to be.
func pathOf(r *Replica, rec *kml.Record) string {
	if rec.Parent != 0 && rec.Name != "" {
		if up := r.Path(rec.Parent); up != "" {
			return up + "/" + rec.Name
		}
		return rec.Name
	}
	return r.Path(rec.OID)
}

// concerned are the folders whose entries a record changes.
func (r *Replica) concerned(rec *kml.Record) []kml.OID {
	switch rec.Op {
	case kml.OpStore:
		var ps []kml.OID
		for _, n := range r.t.index.Names(rec.OID) {
			ps = append(ps, n.Parent)
		}
		return ps
	case kml.OpRmdir:
		return []kml.OID{rec.Parent, rec.OID}
	case kml.OpRename:
		ps := []kml.OID{rec.Parent, rec.NewParent}
		if rec.Victim != nil && rec.Victim.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
			ps = append(ps, rec.Victim.OID)
		}
		return ps
	}
	return []kml.OID{rec.Parent}
}

// act does to the directory what records say, and tells what came of it. With an
// error the changes tell how far it got.
func (r *Replica) act(as []Arrival) ([]change, error) {
	rec := as[0].Record
	switch rec.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod:
		a, data := rec.Attr, as[0].Data
		if len(as) == 2 {
			a.Size, a.Mtime, data = as[1].Record.Attr.Size, as[1].Record.Attr.Mtime, as[1].Data
		}
		return r.make(rec, a, data)
	case kml.OpLink:
		return nil, r.link(rec)
	case kml.OpUnlink, kml.OpRmdir:
		return nil, r.remove(Name{rec.Parent, rec.Name}, rec.OID)
	case kml.OpRename:
		return r.rename(rec)
	case kml.OpSetattr, kml.OpSetxattr, kml.OpRemovexattr:
		return r.attribute(rec)
	case kml.OpStore:
		return r.store(rec, as[0].Data)
	}
	return nil, nil
}

// journal appends records to the log and brings the index up to them.
func (r *Replica) journal(recs []*kml.Record, changes []change) error {
	t := r.t
	t.jmu.Lock()
	defer t.jmu.Unlock()
	if err := t.log.AppendReplica(recs...); err != nil {
		return err
	}
	fault.Point("replica.logged")
	var seen []Change
	err := t.index.Update(func(b *Batch) error {
		for _, rec := range recs {
			cs, err := applyRecord(b, rec, false)
			if err != nil {
				return err
			}
			seen = append(seen, cs...)
			b.SetCursor(rec.Pos)
		}
		for i := range changes {
			if err := changes[i].note(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	for _, c := range seen {
		t.watch.emit(c)
	}
	return nil
}

// settleTimes gives the folders of a record the times they have at the master:
// what was done in them moved these.
func (r *Replica) settleTimes(rec *kml.Record) {
	switch rec.Op {
	case kml.OpSetattr, kml.OpSetxattr, kml.OpRemovexattr, kml.OpMark:
		return
	case kml.OpStore:
		for _, n := range r.t.index.Names(rec.OID) {
			r.folderTime(n.Parent)
		}
		return
	}
	r.folderTime(rec.Parent)
	if rec.NewParent != rec.Parent {
		r.folderTime(rec.NewParent)
	}
}

// folderTime sets a folder's time to what the index has.
func (r *Replica) folderTime(oid kml.OID) {
	o, err := r.t.index.Get(oid)
	if oid == 0 || err != nil {
		return
	}
	ref, err := r.t.dirs.get(oid)
	if err != nil {
		return
	}
	defer ref.release()
	if err := node.SetTimes(node.At{FD: ref.fd}, o.Attr, kml.MaskMtime); err != nil {
		r.skip("times", err)
	}
}

// skip counts what this process may not set.
func (r *Replica) skip(what string, err error) {
	if r.skipped.Add(1) == 1 {
		r.t.logger.Warn("not all attributes can be set here; run as root to have owners kept", "fileset", r.t.dir, "what", what, "err", err)
	}
}

func (r *Replica) forgive() node.Skip { return node.Forgive(r.skip) }

// dress gives what p stands for an object's attributes. What it is made by
// belongs to this process so far.
func (r *Replica) dress(p node.At, a kml.Attr, xs []kml.Xattr) error {
	a = r.here(a)
	m := kml.MaskMode | kml.MaskMtime
	if a.UID != r.uid {
		m |= kml.MaskUID
	}
	if a.GID != r.gid {
		m |= kml.MaskGID
	}
	return node.Dress(p, a, m, xs, a.Mode&unix.S_IFMT == unix.S_IFLNK, r.forgive())
}

// errNoFolder is an object whose folder is not in the directory.
var errNoFolder = errors.New("its folder is not there")

// folder is the descriptor of a folder in the directory.
func (r *Replica) folder(oid kml.OID) (*dirRef, error) {
	ref, err := r.t.dirs.get(oid)
	if err == nil {
		return ref, nil
	}
	if errors.Is(err, ErrNotFound) || errors.Is(err, errMoved) || errors.Is(err, syscall.ENOTDIR) {
		return nil, errNoFolder
	}
	return nil, err
}

// openAt opens what a name holds when that is the object; what else is there is
// errMismatch, nothing ENOENT. In doubt any inode of its type is the object.
func (r *Replica) openAt(n Name, o *Object) (int, error) {
	ref, err := r.folder(n.Parent)
	if err != nil {
		return -1, err
	}
	defer ref.release()
	fd, err := unix.Openat(ref.fd, n.Name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	h, err := HandleAt(fd, "")
	if err == nil && (len(o.Handle) == 0 || string(h) != string(o.Handle)) {
		if !r.doubt.Load() || !sameType(fd, o.Attr.Mode) {
			err = errMismatch
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func sameType(fd int, mode uint32) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == mode&unix.S_IFMT
}

// open opens an object under any of its names.
func (r *Replica) openObject(o *Object) (fd int, n Name, err error) {
	if o.OID == kml.RootOID {
		fd, err = unix.Openat(r.t.rootfd, ".", unix.O_PATH|unix.O_CLOEXEC, 0)
		return fd, Name{}, err
	}
	err = syscall.ENOENT
	for _, n := range r.t.index.Names(o.OID) {
		var e error
		if fd, e = r.openAt(n, o); e == nil {
			return fd, n, nil
		}
		err = e
	}
	return -1, Name{}, err
}
