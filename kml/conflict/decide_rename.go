package conflict

import "github.com/mezzofs/mezzo/kml"

func (d *decider) rename() error {
	r := d.r
	if r.Flags&kml.FlagExchange != 0 {
		return d.exchange()
	}
	from := Name{r.Parent, r.Name}
	o, there := d.s.Object(r.OID)
	if !there {
		// A store of it that follows makes it again, where it was moved to.
		d.v.wanted = append(d.v.wanted, Move{r.OID, from, Name{r.NewParent, r.NewName}})
		d.row(RowLost)
		return nil
	}
	if held, taken := d.s.Child(from); !taken || held != r.OID {
		d.row(RowMoved)
		return nil
	}
	parent, err := d.parent(r.NewParent)
	if err != nil {
		return err
	}
	r.NewParent = parent
	if isDir(o) && d.inside(parent, r.OID) {
		d.row(RowCycle)
		d.v.Items = nil
		return nil
	}
	at := Name{r.NewParent, r.NewName}
	held, taken := d.child(at)
	if !taken {
		r.Victim, r.VictimBase = nil, kml.Base{}
		r.Flags &^= kml.FlagGone
		d.item(r, BytesNone)
		return nil
	}
	if held == r.OID {
		d.row(RowSame)
		if from != at { // its other name is to go
			d.remove(r.OID, o, from)
		}
		return nil
	}
	return d.over(o, from, at, held)
}

// over settles a rename to a name that holds something.
func (d *decider) over(o Object, from, at Name, held kml.OID) error {
	r := d.r
	if d.w.copies[d.orig.OID] == held {
		d.row(RowSame) // what was written here is at that name already
		return nil
	}
	x, _ := d.object(held)
	expected := r.Victim != nil && r.Victim.OID == held && isDir(o) == isDir(x)
	if expected {
		switch {
		case isDir(x) && d.s.Empty(held), !isDir(x) && !isFile(x), isFile(x) && x.Attr.Nlink > 1:
			r.VictimBase = kml.Base{}
			d.item(r, BytesNone)
			return nil
		case isFile(x) && d.mayGo(held, x):
			r.VictimBase = d.rebased(held, x, r.VictimBase)
			d.item(r, BytesNone)
			return nil
		}
	}
	d.row(RowVictim)
	if isDir(o) || isDir(x) {
		d.aside(r, at, held)
		return nil
	}
	if d.sameThing(r, o, held, x) && d.seen(o) && d.lone(held, x) {
		d.row(RowSame)
		d.remove(r.OID, o, from)
		if o.Attr.Nlink <= 1 {
			d.alias(r.OID, held)
		}
		return nil
	}
	if !isFile(o) || !isFile(x) {
		d.aside(r, at, held)
		return nil
	}
	d.save(o, x, from, at, held)
	return nil
}

// save settles an editor's save: a file was to replace one that is not the one it
// was made from. A policy sees a store to that name.
func (d *decider) save(o, x Object, from, at Name, held kml.OID) {
	r, p := d.r, d.p(at)
	replace := func() *kml.Record {
		n := *r
		n.Victim = &kml.Victim{OID: held, DataVersion: x.DataVersion, Attr: x.Attr}
		n.VictimBase = kml.Base{}
		if x.Attr.Nlink <= 1 {
			n.VictimBase = d.rebased(held, x, kml.Base{})
		}
		return &n
	}
	if x.Local {
		d.aside(r, at, held) // both are this host's
		return
	}
	switch d.loser(p, o.Attr.Mtime, x.Attr.Mtime) {
	case KeepTheirs:
		d.lose(Loss{Row: RowVictim, OID: r.OID, Name: at, Keep: KeepTheirs, Version: x.DataVersion})
		d.item(replace(), BytesNone)
		return
	case KeepMine:
		if r.Victim == nil || !d.seen(o) {
			d.lose(Loss{Row: RowVictim, OID: held, Other: r.OID, Name: at})
			return // a file that was moved here, or has changed there, stays where it was
		}
		d.lose(Loss{Row: RowVictim, OID: held, Other: d.orig.OID, Name: at, Keep: KeepMine, Manual: p.Kind == Manual})
		d.remove(r.OID, o, from)
		return
	}
	later := d.s.Later(d.orig, d.orig.OID)
	switch {
	case p.Kind != Append && p.Kind != Exec:
	case later && d.seen(o) && d.lone(held, x):
		// They become one, and the store that follows is settled as such.
		d.remove(r.OID, o, from)
		d.alias(r.OID, held)
		d.v.line = append(d.v.line, line{held, victimBase(r)})
		return
	case !later && d.current(o):
		s := d.stamp(kml.OpStore)
		s.OID, s.Base = r.OID, d.rebased(r.OID, o, kml.Base{})
		d.v.Merge = &Merge{Policy: p, OID: held, Mine: d.orig.OID, Base: victimBase(r),
			Items: []Item{{replace(), BytesNone}, {s, BytesMerged}}}
	}
	d.aside(r, at, held)
}

// seen reports whether nothing is lost when the object that is moved loses the
// name: it has another, or its contents are this host's, or those it has seen.
func (d *decider) seen(o Object) bool {
	return o.Attr.Nlink > 1 || !isFile(o) || d.current(o)
}

// current reports whether the contents of the object that is moved are what this
// host has of it.
func (d *decider) current(o Object) bool {
	return o.Local && !d.w.merged[d.r.OID] || d.s.SameContents(d.orig.OID, d.r.OID)
}

// inside reports whether a folder is another, or in it.
func (d *decider) inside(oid, of kml.OID) bool {
	for range maxDepth {
		if oid == of {
			return true
		}
		at, ok := d.made[oid]
		if !ok {
			at, ok = d.s.Name(oid)
		}
		if !ok || oid == kml.RootOID {
			return false
		}
		oid = at.Parent
	}
	return true
}

// exchange settles a swap of two names: it stands while both hold what they held;
// where one of the two is free by now the other object is moved.
func (d *decider) exchange() error {
	r := d.r
	from, to := Name{r.Parent, r.Name}, Name{r.NewParent, r.NewName}
	a, hasA := d.s.Child(from)
	b, hasB := d.s.Child(to)
	if r.Victim == nil {
		d.row(RowLost)
		return nil
	}
	mine := func(oid, want kml.OID, has bool) bool { return has && oid == want }
	folder := func(oid kml.OID) bool { o, ok := d.s.Object(oid); return ok && isDir(o) }
	switch {
	case mine(a, r.Victim.OID, hasA) && mine(b, r.OID, hasB):
		d.row(RowSame)
		return nil
	case mine(a, r.OID, hasA) && mine(b, r.Victim.OID, hasB):
		if folder(a) && d.inside(to.Parent, a) || folder(b) && d.inside(from.Parent, b) {
			d.row(RowCycle)
			return nil
		}
	case mine(a, r.OID, hasA) && !hasB:
		r.Victim, r.Flags = nil, r.Flags&^kml.FlagExchange
	case !hasA && mine(b, r.Victim.OID, hasB):
		r.OID, r.Victim, r.Flags = b, nil, r.Flags&^kml.FlagExchange
		r.Parent, r.Name, r.NewParent, r.NewName = to.Parent, to.Name, from.Parent, from.Name
	default:
		d.row(RowMoved)
		return nil
	}
	if r.Victim == nil {
		d.row(RowMoved)
		if p, ok := d.s.Object(r.NewParent); !ok || !isDir(p) || folder(r.OID) && d.inside(r.NewParent, r.OID) {
			return nil
		}
	}
	r.VictimBase = kml.Base{}
	d.item(r, BytesNone)
	return nil
}
