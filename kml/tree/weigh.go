package tree

import (
	"errors"
	"io"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// weighing holds the records behind the last commit mark against what a crash
// left of the directory. File systems keep names and attributes in order, so
// the last record whose effect can be seen vouches for all names before it;
// contents are looked at file by file.
type weighing struct {
	t    *Tree
	tail []*kml.Record
	objs map[kml.OID]*exhibit
	ino  map[uint64]kml.OID            // inodes that were recognised
	pos  map[kml.Position]kml.Position // of records logged again, old to new
	done map[kml.Origin]kml.Position   // logged again before this try
}

// exhibit is an object that the tail names.
type exhibit struct {
	oid    kml.OID
	names  []Name      // it got in the tail
	made   *kml.Record // in the tail
	stores []*kml.Record
	gone   bool // the tail removes it
	size   uint64
	mtime  int64 // what the tail leaves it with, when it has stores

	looked, looking bool
	weighed, whole  bool // see stored
	found           bool
	at              Name
	st              unix.Statx_t
	handle          []byte
}

func (t *Tree) weigh(ev *evidence) error {
	w := &weighing{t: t, tail: ev.recs, objs: make(map[kml.OID]*exhibit), ino: make(map[uint64]kml.OID),
		pos: make(map[kml.Position]kml.Position), done: make(map[kml.Origin]kml.Position)}
	if err := w.before(ev.After); err != nil {
		return err
	}
	for _, r := range w.tail {
		w.collect(r)
	}
	seen := -1
	// Whoever got a name last has the first claim on what it holds; folders come
	// first, since the rest is looked for in them.
	w.claims(true)
	w.claims(false)
	for i, r := range w.tail {
		if w.visible(r) {
			seen = i
		}
	}
	for i, r := range w.tail {
		if err := w.again(r, i <= seen); err != nil {
			return err
		}
	}
	if err := w.settle(); err != nil {
		return err
	}
	return w.look()
}

// before finds what an earlier try has logged again.
func (w *weighing) before(p kml.Position) error {
	rd, err := w.t.log.ReaderAfter(p)
	if err != nil {
		return err
	}
	defer rd.Close()
	for {
		r, err := rd.TryNext()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if r.Origin != (kml.Origin{}) {
			w.done[r.Origin] = r.Pos
		}
	}
}

func (w *weighing) exhibit(oid kml.OID) *exhibit {
	x := w.objs[oid]
	if x == nil {
		x = &exhibit{oid: oid}
		w.objs[oid] = x
	}
	return x
}

func (w *weighing) collect(r *kml.Record) {
	if r.Op == kml.OpMark || r.OID == 0 {
		return
	}
	x := w.exhibit(r.OID)
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod:
		x.made = r
		x.names = append(x.names, Name{r.Parent, r.Name})
		x.size, x.mtime = r.Attr.Size, r.Attr.Mtime
	case kml.OpLink:
		x.names = append(x.names, Name{r.Parent, r.Name})
	case kml.OpRename:
		x.names = append(x.names, Name{r.NewParent, r.NewName})
		if r.Victim != nil && r.Flags&kml.FlagExchange != 0 {
			v := w.exhibit(r.Victim.OID)
			v.names = append(v.names, Name{r.Parent, r.Name})
		} else if r.Victim != nil && r.Flags&kml.FlagGone != 0 {
			w.exhibit(r.Victim.OID).gone = true
		}
	case kml.OpUnlink, kml.OpRmdir:
		x.gone = x.gone || r.Flags&kml.FlagGone != 0
	case kml.OpStore:
		x.stores = append(x.stores, r)
		x.size, x.mtime = r.Attr.Size, r.Attr.Mtime
	case kml.OpSetattr:
		if r.Mask&kml.MaskMtime != 0 {
			x.mtime = r.Attr.Mtime
		}
	}
}

// claims looks for objects at the names the tail gave them, last first.
func (w *weighing) claims(folders bool) {
	try := func(oid kml.OID, n Name) {
		x := w.exhibit(oid)
		if x.found || w.isFolder(x) != folders {
			return
		}
		w.try(x, n)
	}
	for i := len(w.tail) - 1; i >= 0; i-- {
		switch r := w.tail[i]; r.Op {
		case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod, kml.OpLink:
			try(r.OID, Name{r.Parent, r.Name})
		case kml.OpRename:
			try(r.OID, Name{r.NewParent, r.NewName})
			if r.Victim != nil && r.Flags&kml.FlagExchange != 0 {
				try(r.Victim.OID, Name{r.Parent, r.Name})
			}
		}
	}
	for oid, x := range w.objs {
		if w.isFolder(x) == folders {
			w.locate(oid)
		}
	}
}

func (w *weighing) isFolder(x *exhibit) bool {
	if x.made != nil {
		return x.made.Op == kml.OpMkdir
	}
	o, err := w.t.index.Get(x.oid)
	return err == nil && o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR
}

// locate finds where an object is on the disk: at the last of its names that
// holds it.
func (w *weighing) locate(oid kml.OID) *exhibit {
	x := w.exhibit(oid)
	if x.found || x.looked || x.looking {
		return x
	}
	x.looking = true
	defer func() { x.looked, x.looking = true, false }()
	names := w.t.index.Names(oid)
	names = append(names[:len(names):len(names)], x.names...)
	for i := len(names) - 1; i >= 0 && !x.found; i-- {
		w.try(x, names[i])
	}
	return x
}

func (w *weighing) try(x *exhibit, n Name) {
	dir, err := w.openDir(n.Parent, 0)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	p, st, h, err := lookAtName(dir, n.Name)
	if err != nil {
		return
	}
	defer unix.Close(p.fd)
	if w.matches(x, &st, h) {
		x.found, x.at, x.st, x.handle = true, n, st, h
		w.ino[st.Ino] = x.oid
	}
}

// matches reports whether an inode can be the object: it is by its handle; by
// its type when the index never heard of the inode.
func (w *weighing) matches(x *exhibit, st *unix.Statx_t, h []byte) bool {
	if by, taken := w.ino[st.Ino]; taken {
		return by == x.oid
	}
	o, err := w.t.index.Get(x.oid)
	var mode uint32
	switch {
	case err == nil && len(o.Handle) > 0 && o.is(h):
		return true
	case err == nil && len(o.Handle) > 0 && len(x.stores) == 0:
		return false
	case err == nil:
		mode = o.Attr.Mode
	case x.made != nil:
		mode = x.made.Attr.Mode
	default:
		return false
	}
	if x.gone && x.looking {
		return false // all it was given has been claimed by others
	}
	if mode&unix.S_IFMT != uint32(st.Mode)&unix.S_IFMT || w.t.objectFor(st, h) != nil {
		return false
	}
	// An inode that is older than the record is another's. Clients' records
	// have the time of a clock elsewhere.
	old := x.made != nil && w.t.ownSite(x.made.Origin.Site) && st.Mask&unix.STATX_BTIME != 0 &&
		nsOf(st.Btime) < x.made.Time-int64(time.Second)
	return !old
}

// openDir opens a folder where it is on the disk.
func (w *weighing) openDir(oid kml.OID, depth int) (int, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if oid == kml.RootOID {
		return unix.Openat(w.t.rootfd, ".", flags, 0)
	}
	if depth > maxDepth {
		return -1, syscall.ELOOP
	}
	x := w.locate(oid)
	if !x.found {
		return -1, syscall.ENOENT
	}
	parent, err := w.openDir(x.at.Parent, depth+1)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	return unix.Openat(parent, x.at.Name, flags, 0)
}

// holds reports whether a name has the object's inode.
func (w *weighing) holds(n Name, x *exhibit) bool {
	if !x.found {
		return false
	}
	dir, err := w.openDir(n.Parent, 0)
	if err != nil {
		return false
	}
	defer unix.Close(dir)
	h, err := HandleAt(dir, n.Name)
	return err == nil && string(h) == string(x.handle)
}

// again logs a record again when its effect is there. seen says that the
// directory is as of a later record.
func (w *weighing) again(r *kml.Record, seen bool) error {
	if pos, ok := w.done[r.Origin]; ok && r.Origin != (kml.Origin{}) {
		w.pos[r.Pos] = pos
		return nil
	}
	switch {
	case w.lost(r.OID):
		return nil
	case r.Op == kml.OpMark:
		if r.Mark == kml.MarkCommit || r.Mark == kml.MarkEpoch {
			return nil
		}
	case r.Op == kml.OpStore:
		// Of a file that is gone again, the contents no longer matter.
		x := w.objs[r.OID]
		if !w.stored(x) && !(seen && x.gone && !x.found) {
			return nil
		}
	case !seen:
		return nil
	}
	if !w.fits(r) {
		return nil
	}
	c := *r
	c.Pos = 0
	c.Flags |= kml.FlagRecovered
	w.rebase(&c.Base.Pos)
	w.rebase(&c.VictimBase.Pos)
	if c.Victim != nil {
		v := *c.Victim
		w.rebase(&v.Version)
		w.rebase(&v.DataVersion)
		c.Victim = &v
	}
	if err := w.t.commitIntent(&c, nil); err != nil {
		return err
	}
	fault.Point("tree.again")
	w.pos[r.Pos] = c.Pos
	return nil
}

// lost reports whether an object was made behind the mark and is nowhere:
// whoever has it sends it again.
func (w *weighing) lost(oid kml.OID) bool {
	x := w.objs[oid]
	return x != nil && x.made != nil && !x.found && !x.gone
}

func (w *weighing) rebase(p *kml.Position) {
	if now, ok := w.pos[*p]; ok {
		*p = now
	}
}

// fits reports whether the index has what the record is about: what it builds
// on may not have been logged again.
func (w *weighing) fits(r *kml.Record) bool {
	has := func(oid kml.OID) bool {
		_, err := w.t.index.Get(oid)
		return err == nil
	}
	for _, p := range []kml.OID{r.Parent, r.NewParent} {
		if p != 0 && !has(p) {
			return false
		}
	}
	if r.Victim != nil && r.Op == kml.OpRename && !has(r.Victim.OID) {
		return false
	}
	switch r.Op {
	case kml.OpMark:
		return true
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod:
		return !has(r.OID)
	case kml.OpUnlink, kml.OpRmdir, kml.OpRename:
		held, _, _ := w.t.index.Child(r.Parent, r.Name)
		return held == r.OID && has(r.OID)
	}
	return has(r.OID)
}

// settle compares each object of the tail with what is there: its inode is
// noted, and a file whose contents are no version's is damaged.
func (w *weighing) settle() error {
	for _, x := range w.objs {
		o, err := w.t.index.Get(x.oid)
		if errors.Is(err, ErrNotFound) || x.oid == kml.RootOID {
			continue
		}
		if err != nil {
			return err
		}
		file := o.Attr.Mode&unix.S_IFMT == unix.S_IFREG
		switch {
		case !x.found && file && !x.gone:
			if err := w.t.damage.add(damagedAs(o, nil)); err != nil {
				return err
			}
		case !x.found:
		case file && !w.intact(x, o):
			o := *o
			o.Attr.Size = max(o.Attr.Size, x.size)
			if err := w.t.foundDamaged(&o, &x.st, x.handle); err != nil {
				return err
			}
		default:
			if err := w.t.index.Update(func(b *Batch) error { return noteInode(b, x.oid, &x.st, x.handle) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// intact reports whether a file has the contents of the version the index now
// knows. A file that the tail made and filled, and that is as it was made, may
// have lost its bytes; so may an older one whose time is the lost store's.
func (w *weighing) intact(x *exhibit, o *Object) bool {
	if len(x.stores) > 0 && w.stored(x) {
		return true
	}
	if !looksLike(o, &x.st) {
		return false
	}
	if len(x.stores) == 0 {
		return true
	}
	return x.made == nil && o.Attr.Mtime != x.mtime
}

// look settles the names of the tail with what is there.
func (w *weighing) look() error {
	var names []Name
	for _, r := range w.tail {
		if r.Parent != 0 {
			names = append(names, Name{r.Parent, r.Name})
		}
		if r.NewParent != 0 {
			names = append(names, Name{r.NewParent, r.NewName})
		}
	}
	for _, n := range names {
		if _, err := w.t.index.Get(n.Parent); err != nil {
			continue
		}
		err := w.t.reconcileName(w.t.ctx, n.Parent, n.Name)
		if err != nil && !errors.Is(err, syscall.ESTALE) && !errors.Is(err, errDamaged) {
			return err
		}
	}
	return nil
}
