package conflict

import "github.com/mezzofs/mezzo/kml"

// create settles what makes an object.
func (d *decider) create() error {
	r := d.r
	if _, ok := d.s.Object(r.OID); ok || d.w.dropped[r.OID] {
		d.row(RowSame) // it has come back, or was settled before
		return nil
	}
	parent, err := d.parent(r.Parent)
	if err != nil {
		return err
	}
	r.Parent = parent
	at := Name{r.Parent, r.Name}
	held, taken := d.child(at)
	if !taken {
		d.item(r, BytesNone)
		return nil
	}
	o, _ := d.object(held)
	mine := Object{Attr: r.Attr, Target: r.Target}
	switch {
	case r.Op == kml.OpMkdir && isDir(o):
		d.row(RowFolder)
		d.alias(r.OID, held)
		return nil
	case d.sameThing(r, mine, held, o) && d.lone(held, o):
		d.row(RowSame)
		d.alias(r.OID, held)
		return nil
	}
	p := d.p(at)
	d.row(RowName)
	switch {
	case isFile(mine) && isFile(o) && d.lone(held, o) && p.Kind != Both && (p.Kind != Newest || d.h.clocks()):
		// They become one, and the stores that follow are settled as such: nothing is
		// common to both.
		d.alias(r.OID, held)
		d.v.line = append(d.v.line, line{held, kml.Base{}})
		return nil
	case r.Op == kml.OpSymlink && o.Attr.Mode&modeType == modeLink:
		switch d.loser(p, r.Attr.Mtime, o.Attr.Mtime) {
		case KeepMine:
			d.v.dropped = append(d.v.dropped, r.OID)
			d.lose(Loss{Row: RowName, OID: held, Name: at, Keep: KeepMine, Field: "target", Mine: []byte(r.Target), Theirs: []byte(o.Target), Manual: p.Kind == Manual})
			return nil
		case KeepTheirs:
			d.lose(Loss{Row: RowName, OID: r.OID, Name: at, Keep: KeepTheirs, Field: "target", Mine: []byte(r.Target), Theirs: []byte(o.Target)})
			d.remove(held, o, at)
			d.item(r, BytesNone)
			return nil
		}
	}
	d.aside(r, at, held)
	return nil
}

// aside gives what is made or arrives at a name the conflict name instead.
func (d *decider) aside(r *kml.Record, at Name, held kml.OID) {
	to := d.free(at)
	if r.Op == kml.OpRename {
		r.NewName, r.Victim, r.VictimBase = to.Name, nil, kml.Base{}
		r.Flags &^= kml.FlagExchange
	} else {
		r.Name = to.Name
	}
	r.Flags |= kml.FlagConflict
	d.v.Moves = append(d.v.Moves, Move{r.OID, at, to})
	d.lose(Loss{Row: d.v.Row, OID: held, Other: r.OID, Name: at, Manual: d.p(at).Kind == Manual})
	d.item(r, BytesNone)
}

// lone reports whether nothing that was written here belongs to an object of the
// master's, and it is not to be removed here, under another name maybe: what is
// written to another one may go to it.
func (d *decider) lone(held kml.OID, o Object) bool {
	_, line := d.w.line[held]
	_, based := d.w.based[held]
	return !o.Local && !line && !d.w.copied[held] && !based && !d.s.Later(d.orig, held) && !d.s.Removes(d.orig, held)
}

func (d *decider) alias(from, to kml.OID) {
	d.v.Aliases = append(d.v.Aliases, Alias{from, to})
}

// sameThing reports whether what a record makes is what the name holds already.
func (d *decider) sameThing(r *kml.Record, mine Object, held kml.OID, o Object) bool {
	if (mine.Attr.Mode^o.Attr.Mode)&modeType != 0 {
		return false
	}
	switch mine.Attr.Mode & modeType {
	case modeReg:
		return d.s.SameContents(d.orig.OID, held)
	case modeLink:
		return mine.Target == o.Target
	case modeDir:
		return false
	}
	return mine.Attr.Rdev == o.Attr.Rdev
}

// remove takes a name away from an object of the master's, as it is now.
func (d *decider) remove(oid kml.OID, o Object, at Name) {
	u := d.stamp(kml.OpUnlink)
	u.OID, u.Parent, u.Name = oid, at.Parent, at.Name
	u.Victim = &kml.Victim{OID: oid, DataVersion: o.DataVersion, Attr: o.Attr, Target: o.Target}
	if isFile(o) && o.Attr.Nlink <= 1 {
		u.VictimBase = d.rebased(oid, o, kml.Base{})
	}
	d.item(u, BytesNone)
}

func (d *decider) link() error {
	r := d.r
	if d.w.dropped[r.OID] {
		d.row(RowLost)
		return nil
	}
	parent, err := d.parent(r.Parent)
	if err != nil {
		return err
	}
	r.Parent = parent
	at := Name{r.Parent, r.Name}
	held, taken := d.child(at)
	o, there := d.s.Object(r.OID)
	switch {
	case !taken && there:
		d.item(r, BytesNone)
		return nil
	case taken && held == r.OID:
		d.row(RowSame)
		return nil
	case !taken:
		if !d.again(r.OID, at, true) {
			d.row(RowLost)
			return nil
		}
		d.lose(Loss{Row: RowGone, OID: r.OID, Name: at})
		return nil
	}
	x, _ := d.object(held)
	if !there {
		g, _ := d.s.Grave(r.OID)
		o = g.Object
	}
	if d.sameThing(r, o, held, x) {
		d.row(RowSame)
		return nil
	}
	d.row(RowName)
	if d.p(at).Kind == Master {
		d.lose(Loss{Row: RowName, OID: held, Other: r.OID, Name: at, Keep: KeepMine})
		return nil
	}
	if there {
		d.aside(r, at, held)
		return nil
	}
	to := d.free(at)
	if !d.again(r.OID, to, true) {
		d.row(RowLost)
		return nil
	}
	d.v.Moves = append(d.v.Moves, Move{r.OID, at, to})
	d.lose(Loss{Row: RowName, OID: held, Other: r.OID, Name: at})
	return nil
}

func (d *decider) unlink() error {
	r := d.r
	at := Name{r.Parent, r.Name}
	held, taken := d.s.Child(at)
	if !taken || held != r.OID || d.orig.OID != r.OID {
		d.row(RowLost) // another's object stays, one that this host's became too
		return nil
	}
	o, _ := d.s.Object(held)
	if !isFile(o) || o.Attr.Nlink > 1 {
		r.VictimBase = kml.Base{}
		d.item(r, BytesNone)
		return nil
	}
	if d.mayGo(held, o) {
		r.VictimBase = d.rebased(held, o, r.VictimBase)
		d.item(r, BytesNone)
		return nil
	}
	d.row(RowRemoved)
	p := d.p(at)
	if p.Kind != Master && !o.Local && d.loser(p, r.Time, o.Attr.Mtime) == KeepTheirs {
		r.VictimBase = d.rebased(held, o, kml.Base{})
		d.lose(Loss{Row: RowRemoved, OID: held, Name: at, Keep: KeepTheirs, Version: o.DataVersion})
		d.item(r, BytesNone)
		return nil
	}
	d.lose(Loss{Row: RowRemoved, OID: held, Name: at, Manual: p.Kind == Manual})
	return nil
}

// mayGo reports whether the contents of a file that loses its last name were seen
// by who removed it. Where it had another name here, what was written to it was
// not meant to go.
func (d *decider) mayGo(oid kml.OID, o Object) bool {
	if v := d.r.Victim; v != nil && v.Attr.Nlink > 1 && o.Local {
		return false
	}
	if v := d.orig.Victim; v != nil && d.w.copies[v.OID] == oid {
		return true // what was removed here is what went to the copy
	}
	return d.holds(oid, o, victimBase(d.r))
}

// victimBase is the version of what a record removes or replaces. There is none
// where that was a local record's.
func victimBase(r *kml.Record) kml.Base {
	if r.VictimBase == (kml.Base{}) && r.Victim != nil {
		return kml.Base{Pos: r.Victim.DataVersion}
	}
	return r.VictimBase
}

func (d *decider) rmdir() error {
	r := d.r
	held, taken := d.s.Child(Name{r.Parent, r.Name})
	switch {
	case !taken || held != r.OID || d.orig.OID != r.OID:
		d.row(RowLost)
	case !d.s.Empty(held):
		d.row(RowEntries)
		d.lose(Loss{Row: RowEntries, OID: held, Name: Name{r.Parent, r.Name}})
	default:
		d.item(r, BytesNone)
	}
	return nil
}
