package kml

// The type of an object in Attr.Mode, as in stat(2).
const (
	modeType = 0o170000
	modeDir  = 0o040000
)

// remove takes out an object that was made in the log and loses its last name, or
// a link with its removal.
func (z *optimizer) remove(i int, r *Record) {
	u := z.obj(r.OID)
	last := r.Op == OpRmdir || u.names == 1
	if u.born && !u.bad && u.over < 0 && last && u.kids == 0 {
		z.dropAll(u)
		z.skip(i)
		return
	}
	if a, j := z.before(r); a != nil && a.Op == OpLink && a.Parent == r.Parent && a.Name == r.Name && z.names[optName{r.Parent, r.Name}] == j {
		u.names--
		z.drop(j)
		z.skip(i)
		return
	}
	z.note(i, r)
}

// dropAll takes out every record about an object that was made in the log.
func (z *optimizer) dropAll(u *objectUse) {
	for _, j := range u.recs {
		z.drop(j)
	}
	*u = objectUse{self: -1, in: -1, over: -1}
}

// rename joins a rename with one before it, or takes out what it replaces.
func (z *optimizer) rename(i int, r *Record) {
	if r.Flags&FlagExchange != 0 {
		z.note(i, r)
		return
	}
	if z.chain(i, r) {
		return
	}
	z.save(i, r)
}

// chain joins a rename with the one of the same object before it.
func (z *optimizer) chain(i int, r *Record) bool {
	a, j := z.before(r)
	if a == nil || a.Op != OpRename || a.Victim != nil || a.Flags&FlagExchange != 0 || a.UID != r.UID ||
		a.NewParent != r.Parent || a.NewName != r.Name {
		return false
	}
	from, by, to := optName{a.Parent, a.Name}, optName{r.Parent, r.Name}, optName{r.NewParent, r.NewName}
	unused := func(n optName) bool { k, ok := z.names[n]; return !ok || k <= j }
	if !unused(from) || !unused(by) || !unused(to) || z.obj(from.parent).self > j || z.obj(to.parent).self > j {
		return false
	}
	// A folder must not be led around another that moved meanwhile.
	if z.lastRename != j && (z.o.File == nil || !z.o.File(r.OID)) {
		return false
	}
	if r.Victim != nil && r.Victim.Attr.Mode&modeType == modeDir {
		return false // what was in it has to be out of it first
	}
	z.drop(j)
	if from == to {
		z.skip(i)
		return true
	}
	n := *r
	n.Parent, n.Name, n.Base = a.Parent, a.Name, a.Base
	z.out[i].Rec = &n
	z.note(i, &n)
	return true
}

// save takes out an object that was made in the log and is replaced: an editor's
// save before this one.
func (z *optimizer) save(i int, r *Record) {
	if r.Victim == nil {
		z.note(i, r)
		return
	}
	u := z.obj(r.Victim.OID)
	if !u.born || u.bad || u.names != 1 || r.Victim.Attr.Mode&modeType == modeDir || u.kids != 0 || u.in >= 0 || r.Victim.OID == r.OID {
		z.note(i, r)
		return
	}
	n := *r
	n.Victim, n.VictimBase, n.Flags = nil, Base{}, n.Flags&^FlagGone
	first := i
	if u.over >= 0 {
		// The victim of the save before is this one's, unless something was done to
		// it or the victim before was moved on since.
		a := z.out[u.over].Rec
		if a.NewParent != r.NewParent || a.NewName != r.NewName || z.obj(a.Victim.OID).self != u.over || a.UID != r.UID || a.Victim.OID == r.OID {
			z.note(i, r)
			return
		}
		n.Victim, n.VictimBase, n.Flags = a.Victim, a.VictimBase, n.Flags|a.Flags&FlagGone
		first = z.out[u.over].First
	}
	z.dropAll(u)
	z.out[i] = Kept{&n, first}
	z.changed = true
	z.note(i, &n)
}
