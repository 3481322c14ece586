package tree

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// applyRecord brings the index from before a record to behind it, and says
// what became visible. It is the one place that knows what a record means for
// names, link counts and versions: masters run it after the system call,
// restarts for records behind the cursor, clients for what they follow.
//
// It is idempotent by position: a name or an object that is as of the record or
// later is left alone. With partial (a cache) unknown objects and names in
// folders that are not listed are skipped, and a folder about which the record
// does not say enough is no longer listed.
func applyRecord(b *Batch, r *kml.Record, partial bool) ([]Change, error) {
	return applyInto(b, r, partial, nil)
}

// applyInto is applyRecord that appends what became visible to changes.
func applyInto(b *Batch, r *kml.Record, partial bool, changes []Change) ([]Change, error) {
	a := applier{b: b, r: r, partial: partial, changes: changes}
	var err error
	var made kml.OID
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod:
		made = r.OID
		err = a.create()
	case kml.OpLink:
		err = a.link()
	case kml.OpUnlink, kml.OpRmdir:
		err = a.remove()
	case kml.OpRename:
		err = a.rename()
	case kml.OpSetattr, kml.OpSetxattr, kml.OpRemovexattr, kml.OpStore:
		err = a.change()
	case kml.OpMark:
	default:
		if r.Op&kml.OpOptional == 0 {
			err = kml.ErrNewer
		}
	}
	if err != nil {
		return changes, fmt.Errorf("%v of %v: %w", r.Op, r.OID, err)
	}
	if r.Origin != (kml.Origin{}) {
		b.SetApplied(r.Origin, r.Pos, made)
	}
	return a.changes, nil
}

type applier struct {
	b       *Batch
	r       *kml.Record
	partial bool
	changes []Change
}

func (a *applier) entry(n Name, oid kml.OID, gone bool) {
	a.changes = append(a.changes, Change{Kind: ChangeEntry, OID: oid, Parent: n.Parent, Name: n.Name, Gone: gone})
}

func (a *applier) changed(kind ChangeKind, oid kml.OID) {
	a.changes = append(a.changes, Change{Kind: kind, OID: oid})
}

// edit changes an object that is older than the record. An unknown one, and one
// that has the record already, is left alone.
func (a *applier) edit(oid kml.OID, f func(o *Object)) error {
	old, err := a.b.Get(oid)
	if errors.Is(err, ErrNotFound) && a.partial {
		return nil
	}
	if err != nil || old.Known >= a.r.Pos {
		return err
	}
	return a.b.change(oid, func(o *Object) {
		f(o)
		o.Known, o.Version = a.r.Pos, a.r.Pos
	})
}

// parentTime gives a folder the time the record left it with.
func (a *applier) parentTime(oid kml.OID, mtime int64) error {
	if mtime == 0 {
		return nil
	}
	return a.edit(oid, func(o *Object) {
		o.Attr.Mtime, o.Ctime = mtime, a.r.Time
		a.changed(ChangeAttr, oid)
	})
}

// shows reports whether names of a folder are kept: always in a tree, in a
// cache for folders that are listed.
func (a *applier) shows(parent kml.OID) bool {
	if !a.partial {
		return true
	}
	o, err := a.b.Get(parent)
	return err == nil && o.Listed
}

// unlist makes a folder be listed again before its next use.
func (a *applier) unlist(oid kml.OID) error {
	o, err := a.b.Get(oid)
	if err != nil {
		return ignore(err, ErrNotFound)
	}
	n := *o
	n.Listed = false
	a.changed(ChangeAttr, oid)
	return a.b.Put(&n)
}

// setName makes a name hold oid, unless it is newer.
func (a *applier) setName(n Name, oid kml.OID) {
	if _, known, _ := a.b.Child(n); known < a.r.Pos {
		a.b.SetName(n, oid, a.r.Pos)
		a.entry(n, oid, false)
	}
}

// delName empties a name, unless it is newer.
func (a *applier) delName(n Name, oid kml.OID) {
	held, known, ok := a.b.Child(n)
	if known >= a.r.Pos || !ok && a.partial {
		return
	}
	a.b.DelName(n, a.r.Pos)
	if held == 0 {
		held = oid
	}
	a.entry(n, held, true)
}

// fresh is true of a record whose object cannot be in a tree's index: it is
// beyond all that its site's records have made. A cache has objects without their
// records.
func (a *applier) fresh() bool {
	r := a.r
	return !a.partial && r.OID.Site() == r.Origin.Site && r.OID.Counter() > a.b.MaxCounter(r.Origin.Site)
}

func (a *applier) create() error {
	r := a.r
	n := Name{r.Parent, r.Name}
	if err := a.parentTime(r.Parent, r.ParentMtime); err != nil {
		return err
	}
	var old *Object
	fresh := a.fresh()
	if !fresh {
		var err error
		if old, err = a.b.Get(r.OID); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	shows := a.shows(r.Parent)
	if !shows && old == nil {
		return nil
	}
	if old == nil || old.Known < r.Pos {
		o := &Object{OID: r.OID, Attr: r.Attr, Ctime: r.Time, Btime: r.Time, Version: r.Pos, DataVersion: r.Pos,
			DataOrigin: r.Origin, Target: r.Target, Parent: r.Parent, Name: r.Name, Known: r.Pos,
			Xattrs: digestXattrs(r.Xattrs)}
		if r.Op != kml.OpMkdir {
			o.Attr.Nlink = 1
		}
		if a.partial {
			o.Xattrs = r.Xattrs
			o.Listed = r.Op == kml.OpMkdir // nothing can be in it yet
			o.Whole = r.Op == kml.OpCreate && r.Attr.Size == 0
		}
		if fresh {
			a.b.putNew(o)
		} else if err := a.b.Put(o); err != nil {
			return err
		}
	}
	if shows {
		a.setName(n, r.OID)
	}
	return nil
}

func (a *applier) link() error {
	r := a.r
	n := Name{r.Parent, r.Name}
	if err := a.parentTime(r.Parent, r.ParentMtime); err != nil {
		return err
	}
	_, err := a.b.Get(r.OID)
	if errors.Is(err, ErrNotFound) && a.partial {
		if a.shows(r.Parent) {
			a.entry(n, r.OID, false)
			return a.unlist(r.Parent)
		}
		return nil
	}
	if err != nil {
		return err
	}
	if err := a.edit(r.OID, func(o *Object) {
		for _, has := range a.b.Names(r.OID) {
			a.b.SetLink(r.OID, has, true)
		}
		a.b.SetLink(r.OID, n, true)
		o.Attr.Nlink++
		o.Ctime = r.Time
		if o.Parent == 0 {
			o.Parent, o.Name = n.Parent, n.Name
		}
		a.changed(ChangeAttr, r.OID)
	}); err != nil {
		return err
	}
	if a.shows(r.Parent) {
		a.setName(n, r.OID)
		a.noteLink(r.OID, n)
	}
	return nil
}

// noteLink makes the link table agree with a name, whatever the object is as
// of: a listing may know an object later than its names.
func (a *applier) noteLink(oid kml.OID, n Name) {
	o, err := a.b.Get(oid)
	if err != nil || o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR || o.Attr.Nlink <= 1 {
		return
	}
	held, _, ok := a.b.Child(n)
	a.b.SetLink(oid, n, ok && held == oid)
}

// noteLate is noteLink for an object that may be as of later than the record,
// which then did not edit it.
func (a *applier) noteLate(oid kml.OID, ns ...Name) {
	if o, err := a.b.Get(oid); err == nil && o.Known >= a.r.Pos {
		for _, n := range ns {
			a.noteLink(oid, n)
		}
	}
}

func (a *applier) remove() error {
	r := a.r
	n := Name{r.Parent, r.Name}
	if err := a.parentTime(r.Parent, r.ParentMtime); err != nil {
		return err
	}
	a.delName(n, r.OID)
	return a.lose(r.OID, n, r.Flags&kml.FlagGone != 0)
}

// lose takes one name from an object, and the object itself with its last.
func (a *applier) lose(oid kml.OID, n Name, gone bool) error {
	old, err := a.b.Get(oid)
	if errors.Is(err, ErrNotFound) {
		if a.partial {
			return nil
		}
		return err
	}
	if err != nil {
		return err
	}
	if old.Known >= a.r.Pos {
		a.noteLink(oid, n)
		return nil
	}
	if gone || old.Attr.Nlink <= 1 || old.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
		a.forgetNames(old)
		a.b.Delete(oid)
		return nil
	}
	a.b.SetLink(oid, n, false)
	var left []Name
	for _, other := range a.b.Names(oid) {
		if other != n {
			left = append(left, other)
		}
	}
	if len(left) == 1 {
		a.b.SetLink(oid, left[0], false) // a single name stands in the object
	}
	return a.edit(oid, func(o *Object) {
		o.Attr.Nlink--
		o.Ctime = a.r.Time
		if o.Parent == n.Parent && o.Name == n.Name || len(left) == 1 {
			o.Parent, o.Name = 0, ""
		}
		if o.Parent == 0 && len(left) > 0 {
			o.Parent, o.Name = left[0].Parent, left[0].Name
		}
		if o.Attr.Nlink == 1 { // the object itself has its only name
			for _, other := range a.b.Names(oid) {
				a.b.SetLink(oid, other, false)
			}
		}
		a.changed(ChangeAttr, oid)
	})
}

// forgetNames drops what is left of an object that goes: its further names,
// and what a cache still knew of a folder's entries.
func (a *applier) forgetNames(o *Object) {
	if o.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
		if !a.partial && o.Attr.Nlink <= 1 {
			return // it has its only name itself
		}
		for _, n := range a.b.Names(o.OID) {
			a.b.SetLink(o.OID, n, false)
		}
		return
	}
	for {
		es := a.b.Children(o.OID, "", 256)
		if len(es) == 0 {
			return
		}
		for _, e := range es {
			a.b.DelName(Name{o.OID, e.Name}, a.r.Pos)
		}
	}
}

func (a *applier) rename() error {
	r := a.r
	from, to := Name{r.Parent, r.Name}, Name{r.NewParent, r.NewName}
	if err := a.parentTime(r.Parent, r.ParentMtime); err != nil {
		return err
	}
	if err := a.parentTime(r.NewParent, r.NewParentMtime); err != nil {
		return err
	}
	exchange := r.Flags&kml.FlagExchange != 0
	if !exchange {
		a.delName(from, r.OID)
	}
	if err := a.move(r.OID, from, to); err != nil {
		return err
	}
	switch {
	case r.Victim == nil:
	case exchange:
		if err := a.move(r.Victim.OID, to, from); err != nil {
			return err
		}
		a.noteLate(r.Victim.OID, from, to)
	default:
		if err := a.lose(r.Victim.OID, to, r.Flags&kml.FlagGone != 0); err != nil {
			return err
		}
	}
	a.noteLate(r.OID, from, to)
	return nil
}

// move gives an object one name for another.
func (a *applier) move(oid kml.OID, from, to Name) error {
	o, err := a.b.Get(oid)
	if errors.Is(err, ErrNotFound) && a.partial {
		// What arrives is not known here: its new folder has to be listed again.
		if held, known, ok := a.b.Child(to); ok && held != oid && known < a.r.Pos {
			a.b.DelName(to, a.r.Pos)
		}
		if a.shows(to.Parent) {
			a.entry(to, oid, false)
			return a.unlist(to.Parent)
		}
		return nil
	}
	if err != nil {
		return err
	}
	if _, _, held := a.b.Child(to); held || a.shows(to.Parent) {
		a.setName(to, oid)
	}
	several := o.Attr.Mode&unix.S_IFMT != unix.S_IFDIR && o.Attr.Nlink > 1
	return a.edit(oid, func(o *Object) {
		if several {
			a.b.SetLink(oid, from, false)
			a.b.SetLink(oid, to, true)
		}
		if !several || o.Parent == from.Parent && o.Name == from.Name || o.Parent == 0 {
			o.Parent, o.Name = to.Parent, to.Name
		}
		o.Ctime = a.r.Time
		a.changed(ChangeAttr, oid)
	})
}

// change is a record about one object.
func (a *applier) change() error {
	r := a.r
	return a.edit(r.OID, func(o *Object) {
		o.Ctime = r.Time
		kind := ChangeAttr
		switch r.Op {
		case kml.OpSetattr:
			setFields(&o.Attr, r.Attr, r.Mask)
		case kml.OpStore:
			kind |= ChangeData
			o.Attr.Size, o.Attr.Mtime = r.Attr.Size, r.Attr.Mtime
			o.DataVersion, o.DataOrigin = r.Pos, r.Origin
			if a.partial {
				o.Whole, o.Present = r.Attr.Size == 0, nil
			}
		case kml.OpSetxattr:
			v := r.Value
			if !a.partial {
				v = digestXattr(v)
			}
			setXattr(o, r.Name, v, true)
		default:
			setXattr(o, r.Name, nil, false)
		}
		a.changed(kind, r.OID)
	})
}

func setFields(to *kml.Attr, from kml.Attr, mask kml.AttrMask) {
	if mask&kml.MaskMode != 0 {
		to.Mode = from.Mode
	}
	if mask&kml.MaskUID != 0 {
		to.UID = from.UID
	}
	if mask&kml.MaskGID != 0 {
		to.GID = from.GID
	}
	if mask&kml.MaskMtime != 0 {
		to.Mtime = from.Mtime
	}
}

// setXattr changes the list of a copied object without touching the original's.
func setXattr(o *Object, name string, value []byte, there bool) {
	list := make([]kml.Xattr, 0, len(o.Xattrs)+1)
	for _, x := range o.Xattrs {
		if x.Name != name {
			list = append(list, x)
		}
	}
	if there {
		list = append(list, kml.Xattr{Name: name, Value: value})
	}
	o.Xattrs = list
}
