package conflict

import (
	"bytes"
	"strconv"

	"github.com/mezzofs/mezzo/kml"
)

func (d *decider) store() error {
	r := d.r
	if c, ok := d.w.copies[d.orig.OID]; ok {
		if o, ok := d.s.Object(c); ok {
			r.OID, r.Base = c, d.rebased(c, o, kml.Base{})
			d.item(r, BytesOwn)
			d.row(RowData)
			return nil
		}
	}
	o, ok := d.s.Object(r.OID)
	if !ok {
		return d.storeGone()
	}
	if base, ok := d.w.line[r.OID]; ok {
		r.Base = base
	}
	if d.holds(r.OID, o, r.Base) {
		if !o.Local && r.Base.Pos != o.DataVersion && d.w.based[r.OID] == o.DataVersion {
			r.Base = kml.Base{Pos: o.DataVersion}
		}
		d.item(r, BytesOwn)
		return nil
	}
	if d.s.SameBytes(d.orig, r.OID) || d.s.SameContents(d.orig.OID, r.OID) {
		d.row(RowSame)
		d.v.based = append(d.v.based, based{r.OID, o.DataVersion})
		return nil
	}
	if d.superseded() {
		return nil
	}
	return d.storeChanged(o)
}

// superseded drops a store that is in conflict when a later one of the same
// object has the bytes that count: that one is settled, as made against what this
// one was made against.
func (d *decider) superseded() bool {
	if !d.s.Later(d.orig, d.orig.OID) {
		return false
	}
	d.row(RowData)
	if _, ok := d.w.line[d.r.OID]; !ok {
		d.v.line = append(d.v.line, line{d.r.OID, d.r.Base})
	}
	return true
}

// storeGone settles a store of an object that is gone.
func (d *decider) storeGone() error {
	r := d.r
	if d.superseded() {
		return nil
	}
	g, known := d.s.Grave(r.OID)
	at := g.At
	if want, ok := d.w.wanted[r.OID]; ok {
		at = want
	}
	d.row(RowGone)
	p := d.p(at)
	if !known || at.Parent == 0 || p.Kind == Master || p.Kind == Manual {
		d.lose(Loss{Row: RowGone, Name: at, Keep: KeepMine, Manual: p.Kind == Manual})
		return nil
	}
	parent, err := d.parent(at.Parent)
	if err != nil {
		return err
	}
	at.Parent = parent
	lost, about := kml.OID(0), at
	if held, taken := d.child(at); taken {
		if x, ok := d.object(held); ok && isFile(x) && d.s.SameBytes(d.orig, held) && d.lone(held, x) {
			d.row(RowSame)
			d.v.Items = nil
			d.alias(r.OID, held)
			d.v.based = append(d.v.based, based{held, x.DataVersion})
			return nil
		}
		lost = held
		to := d.free(at)
		d.v.Moves = append(d.v.Moves, Move{r.OID, at, to})
		at = to
	}
	if !d.again(r.OID, at, false) {
		d.lose(Loss{Row: RowGone, Name: about, Keep: KeepMine})
		return nil
	}
	d.lose(Loss{Row: RowGone, OID: r.OID, Other: lost, Name: about})
	r.Base, r.Extents = kml.Base{}, nil
	d.item(r, BytesOwn)
	d.row(RowGone)
	return nil
}

// storeChanged settles a store of contents that have changed at the master.
func (d *decider) storeChanged(o Object) error {
	r := d.r
	d.row(RowData)
	at, named := d.s.Name(r.OID)
	p := d.p(at)
	stand := func(b Bytes) Item {
		n := *r
		n.Base, n.Extents = kml.Base{Pos: o.DataVersion}, nil
		return Item{&n, b}
	}
	switch d.loser(p, r.Attr.Mtime, o.Attr.Mtime) {
	case KeepMine:
		d.lose(Loss{Row: RowData, OID: r.OID, Name: at, Keep: KeepMine, Manual: p.Kind == Manual})
		return nil
	case KeepTheirs:
		d.lose(Loss{Row: RowData, OID: r.OID, Name: at, Keep: KeepTheirs, Version: o.DataVersion})
		d.v.Items = append(d.v.Items, stand(BytesOwn))
		return nil
	}
	if p.Kind == Append || p.Kind == Exec {
		d.v.Merge = &Merge{Policy: p, OID: r.OID, Base: r.Base, Items: []Item{stand(BytesMerged)}}
	}
	if !named {
		d.lose(Loss{Row: RowData, OID: r.OID, Keep: KeepMine})
		return nil
	}
	return d.copyOf(o, at)
}

// copyOf puts the bytes of a store into the conflict copy of its object: the one
// there is, while nobody else has written to it, whose bytes are kept; or a new
// one.
func (d *decider) copyOf(o Object, at Name) error {
	r, of := d.r, d.r.OID
	if d.h.CopyOf != nil {
		if c := d.h.CopyOf(of); c != 0 {
			if k, ok := d.s.Object(c); ok && isFile(k) && !k.Local && k.DataOrigin.Site == d.h.Site {
				// Its bytes were not before the eyes of who wrote these.
				at, _ := d.s.Name(c)
				d.lose(Loss{Row: RowData, OID: c, Name: at, Keep: KeepTheirs, Version: k.DataVersion})
				r.OID, r.Base, r.Extents = c, d.rebased(c, k, kml.Base{}), nil
				d.item(r, BytesOwn)
				d.v.Copy = &Copy{of, d.orig.OID, c}
				d.v.unseen = append(d.v.unseen, c)
				d.lose(Loss{Row: RowData, OID: of, Other: c, Name: at})
				return nil
			}
		}
	}
	oid, err := d.h.Mint()
	if err != nil {
		return err
	}
	to := d.free(at)
	c := d.stamp(kml.OpCreate)
	c.OID, c.Parent, c.Name = oid, to.Parent, to.Name
	c.Attr = bare(o.Attr)
	c.Attr.Mtime = r.Attr.Mtime
	d.item(c, BytesNone)
	r.OID, r.Base, r.Extents = oid, kml.Base{}, nil
	r.Flags |= kml.FlagConflict
	d.item(r, BytesOwn)
	d.v.Copy = &Copy{of, d.orig.OID, oid}
	d.lose(Loss{Row: RowData, OID: of, Other: oid, Name: at})
	return nil
}

// setattr settles attributes, each by its value.
func (d *decider) setattr() error {
	r := d.r
	o, ok := d.s.Object(r.OID)
	if !ok {
		d.v.late = append(d.v.late, d.r)
		d.row(RowLost)
		return nil
	}
	at, _ := d.s.Name(r.OID)
	p := d.p(at)
	for _, f := range []struct {
		m              kml.AttrMask
		name           string
		old, mine, now uint32
		base           int
		mask           uint32
		replaced       *uint32
	}{
		{kml.MaskMode, "mode", r.Old.Mode, r.Attr.Mode, o.Attr.Mode, 8, 0o7777, &r.Old.Mode},
		{kml.MaskUID, "uid", r.Old.UID, r.Attr.UID, o.Attr.UID, 10, ^uint32(0), &r.Old.UID},
		{kml.MaskGID, "gid", r.Old.GID, r.Attr.GID, o.Attr.GID, 10, ^uint32(0), &r.Old.GID},
	} {
		if r.Mask&f.m == 0 {
			continue
		}
		old, mine, now := f.old&f.mask, f.mine&f.mask, f.now&f.mask
		if now == mine {
			if old != mine {
				d.unset(f.m)
				d.same()
			}
			continue
		}
		if now == old {
			continue
		}
		d.row(RowAttr)
		l := Loss{Row: RowAttr, OID: r.OID, Name: at, Keep: KeepMine, Field: f.name, Manual: p.Kind == Manual,
			Mine: strconv.AppendUint(nil, uint64(mine), f.base), Theirs: strconv.AppendUint(nil, uint64(now), f.base)}
		if d.loser(p, r.Time, o.Ctime) == KeepTheirs {
			l.Keep = KeepTheirs
			*f.replaced = f.now
		} else {
			d.unset(f.m)
		}
		d.lose(l)
	}
	if r.Mask != 0 {
		d.item(r, BytesNone)
	}
	return nil
}

// unset takes fields out of a setattr.
func (d *decider) unset(m kml.AttrMask) {
	d.r.Mask &^= m
	d.r.Attr, d.r.Old = keep(d.r.Attr, d.r.Mask), keep(d.r.Old, d.r.Mask)
}

// keep is the fields of a under m.
func keep(a kml.Attr, m kml.AttrMask) kml.Attr {
	var n kml.Attr
	set(&n, a, m)
	if m&kml.MaskAtime != 0 {
		n.Atime = a.Atime
	}
	return n
}

// same says that both sides did the same, unless something else was said.
func (d *decider) same() {
	if d.v.Row == RowNone {
		d.row(RowSame)
	}
}

func (d *decider) xattr() error {
	r := d.r
	o, ok := d.s.Object(r.OID)
	if !ok {
		d.v.late = append(d.v.late, d.r)
		d.row(RowLost)
		return nil
	}
	now, has := d.s.Xattr(r.OID, r.Name)
	is := func(value []byte, there bool) bool { return there == has && bytes.Equal(value, now) }
	sets := r.Op == kml.OpSetxattr
	old := is(r.OldValue, r.HadOld || len(r.OldValue) > 0)
	switch {
	case is(r.Value, sets) && !old:
		d.row(RowSame)
		return nil
	case old:
		d.item(r, BytesNone)
		return nil
	}
	d.row(RowXattr)
	at, _ := d.s.Name(r.OID)
	p := d.p(at)
	l := Loss{Row: RowXattr, OID: r.OID, Name: at, Keep: KeepMine, Field: r.Name, Mine: r.Value, Theirs: now, Manual: p.Kind == Manual}
	if d.loser(p, r.Time, o.Ctime) == KeepTheirs {
		l.Keep = KeepTheirs
		r.HadOld, r.OldValue = has, now
		if !sets && !has {
			return nil // nothing to remove
		}
		d.item(r, BytesNone)
	}
	d.lose(l)
	return nil
}
