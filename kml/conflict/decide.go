package conflict

import (
	"errors"
	"fmt"

	"github.com/mezzofs/mezzo/kml"
)

// maxDepth is how many folders may lie within each other, as much as a path of
// names of one letter could say.
const maxDepth = 1 << 12

var errDeep = errors.New("folders lie within each other too deeply")

// decider makes one verdict.
type decider struct {
	h Host
	s State
	p func(Name) Policy
	w *Settler // what the pass remembers; not changed here

	r    *kml.Record // with aliases and moves put in; may be changed
	orig *kml.Record // as it was given
	v    *Verdict

	// made are the objects and names that items of this verdict add to s.
	made map[kml.OID]Name
}

func (d *decider) settle() error {
	switch d.r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod:
		return d.create()
	case kml.OpLink:
		return d.link()
	case kml.OpUnlink:
		return d.unlink()
	case kml.OpRmdir:
		return d.rmdir()
	case kml.OpRename:
		return d.rename()
	case kml.OpStore:
		return d.store()
	case kml.OpSetattr:
		return d.setattr()
	case kml.OpSetxattr, kml.OpRemovexattr:
		return d.xattr()
	}
	d.item(d.r, BytesNone) // nothing about the tree
	return nil
}

func (d *decider) item(r *kml.Record, b Bytes) { d.v.Items = append(d.v.Items, Item{r, b}) }

// row notes what the verdict is about; the last one said counts.
func (d *decider) row(r Row) { d.v.Row = r }

func (d *decider) lose(l Loss) {
	l.Rec = d.orig
	d.v.Losses = append(d.v.Losses, l)
}

// child is what a name holds, with what this verdict has made.
func (d *decider) child(n Name) (kml.OID, bool) {
	for oid, at := range d.made {
		if at == n {
			return oid, true
		}
	}
	return d.s.Child(n)
}

func (d *decider) object(oid kml.OID) (Object, bool) {
	if _, ok := d.made[oid]; ok {
		g, _ := d.s.Grave(oid)
		return g.Object, true
	}
	return d.s.Object(oid)
}

// free is a name of the form of a conflict copy's that holds nothing.
func (d *decider) free(n Name) Name {
	for i := 1; ; i++ {
		c := Name{n.Parent, CopyName(n.Name, d.h.Name, d.h.Now(), i)}
		if _, taken := d.child(c); !taken {
			return c
		}
	}
}

// stamp makes a record that this host adds while it settles r.
func (d *decider) stamp(op kml.Op) *kml.Record {
	return &kml.Record{Op: op, Flags: kml.FlagConflict, Time: d.h.Now().UnixNano(), UID: d.orig.UID, GID: d.orig.GID}
}

// parent makes sure that a folder is there: where it is gone it is made again,
// with its oid, and so are the folders above it. It answers with the folder that
// is to be used, which is another one when its name is now another folder's.
func (d *decider) parent(oid kml.OID) (kml.OID, error) { return d.folder(oid, 0) }

func (d *decider) folder(oid kml.OID, depth int) (kml.OID, error) {
	if depth > maxDepth {
		return 0, errDeep
	}
	if to, ok := d.w.alias[oid]; ok {
		oid = to
	}
	if o, ok := d.object(oid); ok && isDir(o) {
		return oid, nil
	}
	g, ok := d.s.Grave(oid)
	if !ok || !isDir(g.Object) {
		g = Grave{Object: Object{Attr: kml.Attr{Mode: modeDir | 0o700, UID: d.orig.UID, GID: d.orig.GID}}}
	}
	at := g.At
	if want, ok := d.w.wanted[oid]; ok {
		at = want
	}
	if at.Parent == 0 || at.Name == "" {
		// Nobody knows any more where it was.
		at = Name{kml.RootOID, fmt.Sprintf("recovered folder %d-%d", oid.Site(), oid.Counter())}
	}
	up, err := d.folder(at.Parent, depth+1)
	if err != nil {
		return 0, err
	}
	at.Parent = up
	if held, taken := d.child(at); taken {
		if o, ok := d.object(held); ok && isDir(o) {
			d.v.Aliases = append(d.v.Aliases, Alias{oid, held})
			d.row(RowFolder)
			return held, nil
		}
		at = d.free(at)
	}
	r := d.stamp(kml.OpMkdir)
	r.OID, r.Parent, r.Name, r.Attr, r.Xattrs = oid, at.Parent, at.Name, bare(g.Attr), g.Xattrs
	for _, l := range d.w.late[oid] {
		dress(r, l)
	}
	d.item(r, BytesNone)
	d.made[oid] = at
	d.row(RowParent)
	return oid, nil
}

// bare is attributes as a record that makes an object has them.
func bare(a kml.Attr) kml.Attr {
	a.Nlink = 1
	if a.Mode&modeType == modeDir {
		a.Nlink = 2
	}
	if a.Mode&modeType != modeLink {
		a.Size = 0
	}
	a.Atime = 0
	return a
}

// again makes an object that is gone once more at a name, with its oid. whole
// says that its contents are to be put in from what this host has of them. It is
// false when the host does not have enough of it.
func (d *decider) again(oid kml.OID, at Name, whole bool) bool {
	g, ok := d.s.Grave(oid)
	if !ok || isDir(g.Object) || whole && isFile(g.Object) && g.Attr.Size > 0 && !g.Whole {
		return false
	}
	var op kml.Op
	switch g.Attr.Mode & modeType {
	case modeReg:
		op = kml.OpCreate
	case modeLink:
		op = kml.OpSymlink
	default:
		op = kml.OpMknod
	}
	r := d.stamp(op)
	r.OID, r.Parent, r.Name, r.Attr, r.Target, r.Xattrs = oid, at.Parent, at.Name, bare(g.Attr), g.Target, g.Xattrs
	for _, l := range d.w.late[oid] {
		dress(r, l)
	}
	d.item(r, BytesNone)
	d.made[oid] = at
	if whole && op == kml.OpCreate && g.Attr.Size > 0 {
		s := d.stamp(kml.OpStore)
		s.OID, s.Attr = oid, kml.Attr{Size: g.Attr.Size, Mtime: g.Attr.Mtime}
		d.item(s, BytesGrave)
	}
	d.row(RowGone)
	return true
}

// dress puts a change of attributes into the record that makes the object.
func dress(r, change *kml.Record) {
	if change.Op == kml.OpSetattr {
		set(&r.Attr, change.Attr, change.Mask)
		return
	}
	var xs []kml.Xattr
	for _, x := range r.Xattrs {
		if x.Name != change.Name {
			xs = append(xs, x)
		}
	}
	if change.Op == kml.OpSetxattr {
		xs = append(xs, kml.Xattr{Name: change.Name, Value: change.Value})
	}
	r.Xattrs = xs
}

func set(to *kml.Attr, from kml.Attr, m kml.AttrMask) {
	if m&kml.MaskMode != 0 {
		to.Mode = from.Mode
	}
	if m&kml.MaskUID != 0 {
		to.UID = from.UID
	}
	if m&kml.MaskGID != 0 {
		to.GID = from.GID
	}
	if m&kml.MaskMtime != 0 {
		to.Mtime = from.Mtime
	}
}

// holds reports whether contents are those that a record was made against.
func (d *decider) holds(oid kml.OID, o Object, b kml.Base) bool {
	return o.Local && !d.w.merged[oid] || b.Pos != 0 && b.Pos == o.DataVersion ||
		b.Seq != 0 && o.DataOrigin == (kml.Origin{Site: d.h.Site, Seq: b.Seq}) ||
		o.DataVersion != 0 && d.w.based[oid] == o.DataVersion
}

// rebased is the base of a record that is put on what is there now.
func (d *decider) rebased(oid kml.OID, o Object, b kml.Base) kml.Base {
	if o.Local {
		return b // of an own record that stands; it has the number, or gets it
	}
	return kml.Base{Pos: o.DataVersion}
}

// loser is whose version is kept aside under a policy that chooses one, nobody's
// where both stay. mine and theirs are modification times.
func (d *decider) loser(p Policy, mine, theirs int64) Side {
	switch p.Kind {
	case Master, Manual:
		return KeepMine
	case Client:
		return KeepTheirs
	case Newest:
		switch {
		case !d.h.clocks():
		case mine > theirs:
			return KeepTheirs
		case mine < theirs:
			return KeepMine
		}
	}
	return KeepNothing
}
