package kml

import (
	"bytes"
	"slices"
)

// OptimizeOptions say what the caller knows of the records. The zero value works.
type OptimizeOptions struct {
	// Frozen reports whether a record, by its index, has its number already: it
	// stays as it is, and nothing is taken out around it that it depends on. Nil:
	// none is.
	Frozen func(i int) bool
	// File reports whether an object is known not to be a folder. Nil: none is, and
	// renames are joined in fewer places.
	File func(oid OID) bool
}

// Kept is what stands in the place of a record of a local log.
type Kept struct {
	// Rec is the record: the same, another one that does what several did, or nil
	// when it is dropped. Contents of a store are those of the record in this place.
	Rec *Record
	// First is the index of the record whose base this one has: its own, or that of
	// a store that it took in, or of the rename whose victim it took over. Where a
	// caller keeps more than the record says of what it was made against, that is
	// to be taken over, too.
	First int
}

// Optimize says what a local log can do without, before it is sent: out[i] stands
// in the place of rs[i]. The tree that comes of it is the same, each record holds
// the bases and replaced values of the first that it stands for, and on no state
// of the master's tree is there a conflict that would not be without it.
//
//	store, store              the last, made against what the first was made against
//	setattr, setattr          one, with the values that the first replaced
//	setxattr, removexattr     likewise, by name
//	rename a b, rename b c    rename a c
//	link, unlink              nothing
//	create ... unlink         nothing, with all between that is about the object
//	mkdir ... rmdir           nothing, when nothing is left that was in it
//	create t, store, rename t f, create t, store, rename t f
//	                          the second save only, which replaces what the first did
//
// Nothing is joined across a record that uses the same object or name, nor with one
// that is frozen. A rename is never joined with the creation of its object: who
// makes a file under another name does not want it seen before it is whole.
//
// Records are not changed. Optimize is idempotent. It takes time and memory in
// proportion to rs (about 400 bytes a record): a caller with a longer log hands it
// in by windows.
func Optimize(rs []*Record, o OptimizeOptions) []Kept {
	out := make([]Kept, len(rs))
	for i, r := range rs {
		out[i] = Kept{r, i}
	}
	for {
		z := optimizer{o: o, out: out, objs: make(map[OID]*objectUse), names: make(map[optName]int), lastRename: -1}
		for i := range out {
			if out[i].Rec != nil {
				z.take(i)
			}
		}
		if !z.changed {
			return out
		}
	}
}

// optName is a name in a folder.
type optName struct {
	parent OID
	name   string
}

// objectUse is what the records so far have to do with an object.
type objectUse struct {
	self int   // the last record about it, or -1
	in   int   // the last record that has it as a folder, or -1
	kids int   // how many records that stand have it as a folder
	recs []int // of an object that was made in the log: those about it
	born bool
	bad  bool // it cannot be taken out as a whole
	// names is how many names the object has that was made in the log.
	names int
	over  int // the rename of it that replaced something, or -1
}

// optimizer is one pass.
type optimizer struct {
	o          OptimizeOptions
	out        []Kept
	objs       map[OID]*objectUse
	names      map[optName]int // the last record that uses it
	lastRename int
	changed    bool
}

func (z *optimizer) obj(oid OID) *objectUse {
	u := z.objs[oid]
	if u == nil {
		u = &objectUse{self: -1, in: -1, over: -1}
		z.objs[oid] = u
	}
	return u
}

func (z *optimizer) frozen(i int) bool { return z.o.Frozen != nil && z.o.Frozen(i) }

// take takes up a record: it cancels it with what came before, or notes what it
// uses.
func (z *optimizer) take(i int) {
	r := z.out[i].Rec
	if z.frozen(i) {
		z.note(i, r)
		z.spoil(r)
		return
	}
	switch r.Op {
	case OpStore:
		z.join(i, r, joinStores)
	case OpSetattr:
		z.join(i, r, joinAttrs)
	case OpSetxattr, OpRemovexattr:
		z.join(i, r, joinXattrs)
	case OpUnlink, OpRmdir:
		z.remove(i, r)
	case OpRename:
		z.rename(i, r)
	default:
		z.note(i, r)
	}
}

// skip takes out a record that has not been noted.
func (z *optimizer) skip(i int) { z.out[i].Rec, z.changed = nil, true }

// drop takes out a record that was noted.
func (z *optimizer) drop(i int) {
	r := z.out[i].Rec
	if r == nil {
		return
	}
	z.folders(r, func(u *objectUse) { u.kids-- })
	z.out[i].Rec, z.changed = nil, true
}

func (z *optimizer) folders(r *Record, f func(*objectUse)) {
	if r.Parent != 0 {
		f(z.obj(r.Parent))
	}
	if r.NewParent != 0 {
		f(z.obj(r.NewParent))
	}
}

// note takes up what a record that stands uses.
func (z *optimizer) note(i int, r *Record) {
	u := z.obj(r.OID)
	u.self = i
	if r.Victim != nil {
		z.obj(r.Victim.OID).self = i
	}
	z.folders(r, func(p *objectUse) {
		p.in = i
		p.kids++
	})
	switch r.Op {
	case OpCreate, OpMkdir, OpSymlink, OpMknod:
		u.born, u.names = true, 1
	case OpLink:
		u.names++
	case OpUnlink, OpRmdir:
		u.names--
	case OpRename:
		z.names[optName{r.NewParent, r.NewName}] = i
		z.lastRename = i
		if r.Victim != nil {
			u.bad = u.bad || u.over >= 0
			u.over = i
			v := z.obj(r.Victim.OID)
			v.bad = true
		}
	}
	if r.Parent != 0 {
		z.names[optName{r.Parent, r.Name}] = i
	}
	if u.born {
		u.recs = append(u.recs, i)
	}
	if r.Flags&FlagExchange != 0 {
		z.spoil(r)
	}
}

// spoil keeps the objects of a record from being taken out.
func (z *optimizer) spoil(r *Record) {
	z.obj(r.OID).bad = true
	if r.Victim != nil {
		z.obj(r.Victim.OID).bad = true
	}
}

// before is the record about an object before this one, when nothing else used the
// object since and it is not frozen; nil when there is none.
func (z *optimizer) before(r *Record) (*Record, int) {
	u := z.obj(r.OID)
	if u.self < 0 || u.in > u.self || z.frozen(u.self) || z.out[u.self].Rec == nil {
		return nil, -1
	}
	return z.out[u.self].Rec, u.self
}

// join puts a record and the one before it about the same object into one. join
// says what they come to: ok is false when they cannot be joined, nil that they
// cancel out.
func (z *optimizer) join(i int, r *Record, join func(a, b *Record) (*Record, bool)) {
	a, j := z.before(r)
	if a == nil {
		z.note(i, r)
		return
	}
	n, ok := join(a, r)
	if !ok {
		z.note(i, r)
		return
	}
	first := z.out[j].First
	z.drop(j)
	if n == nil {
		z.skip(i)
		return
	}
	z.out[i] = Kept{n, first}
	z.note(i, n)
}

// maxExtents is how many ranges a joined store may have; beyond, all of it counts
// as changed.
const maxExtents = 1024

func joinStores(a, b *Record) (*Record, bool) {
	if a.Op != OpStore || a.UID != b.UID {
		return nil, false
	}
	n := *b
	n.Base = a.Base
	n.Extents = nil
	if a.Extents != nil && b.Extents != nil {
		n.Extents = unionExtents(a.Extents, b.Extents)
	}
	return &n, true
}

func unionExtents(a, b []Extent) []Extent {
	all := append(slices.Clone(a), b...)
	slices.SortFunc(all, func(x, y Extent) int {
		switch {
		case x.Off < y.Off:
			return -1
		case x.Off > y.Off:
			return 1
		}
		return 0
	})
	out := []Extent{}
	for _, e := range all {
		if e.Off+e.Len < e.Off {
			return nil
		}
		if n := len(out); n > 0 && e.Off <= out[n-1].Off+out[n-1].Len {
			out[n-1].Len = max(out[n-1].Off+out[n-1].Len, e.Off+e.Len) - out[n-1].Off
			continue
		}
		out = append(out, e)
	}
	if len(out) > maxExtents {
		return nil
	}
	return out
}

func joinAttrs(a, b *Record) (*Record, bool) {
	if a.Op != OpSetattr || a.UID != b.UID {
		return nil, false
	}
	n := *b
	n.Base = a.Base
	n.Mask |= a.Mask
	for _, f := range []struct {
		m       AttrMask
		get     func(*Attr) int64
		set     func(to, from *Attr)
		settles bool // when the value is again what it was, nothing was done
	}{
		{MaskMode, func(x *Attr) int64 { return int64(x.Mode) }, func(to, from *Attr) { to.Mode = from.Mode }, true},
		{MaskUID, func(x *Attr) int64 { return int64(x.UID) }, func(to, from *Attr) { to.UID = from.UID }, true},
		{MaskGID, func(x *Attr) int64 { return int64(x.GID) }, func(to, from *Attr) { to.GID = from.GID }, true},
		{MaskMtime, func(x *Attr) int64 { return x.Mtime }, func(to, from *Attr) { to.Mtime = from.Mtime }, false},
		{MaskAtime, func(x *Attr) int64 { return x.Atime }, func(to, from *Attr) { to.Atime = from.Atime }, false},
	} {
		if a.Mask&f.m != 0 {
			f.set(&n.Old, &a.Old)
			if b.Mask&f.m == 0 {
				f.set(&n.Attr, &a.Attr)
			}
		}
		if f.settles && n.Mask&f.m != 0 && f.get(&n.Old) == f.get(&n.Attr) {
			n.Mask &^= f.m
			f.set(&n.Old, &Attr{})
			f.set(&n.Attr, &Attr{})
		}
	}
	if n.Mask == 0 {
		return nil, true
	}
	return &n, true
}

func joinXattrs(a, b *Record) (*Record, bool) {
	if a.Op != OpSetxattr && a.Op != OpRemovexattr || a.Name != b.Name || a.UID != b.UID {
		return nil, false
	}
	n := *b
	n.Base = a.Base
	n.HadOld, n.OldValue = a.HadOld, a.OldValue
	had := a.HadOld || a.Op == OpRemovexattr
	if has := n.Op == OpSetxattr; has == had && bytes.Equal(n.Value, n.OldValue) || !has && !had {
		return nil, true
	}
	return &n, true
}
