package conflict

import "github.com/mezzofs/mezzo/kml"

// part is what of an object a record has to do with.
type part uint8

const (
	partExists  part = iota // that it is there
	partPlace               // its names
	partData                // contents
	partAttr                // attributes and xattrs
	partEntries             // of a folder: that it has some, or none
	partFolders             // of the root: where folders are
)

// key is a name, or a part of an object.
type key struct {
	oid  kml.OID
	part part
	name string // of oid, when it is not empty
}

// use is a key and how a record uses it.
type use struct {
	key
	write bool
}

// uses is what a record depends on and what it changes.
func uses(r *kml.Record, add func(use)) {
	name := func(p kml.OID, n string) {
		add(use{key{oid: p, name: n}, true})
		add(use{key{oid: p, part: partExists}, false})
		add(use{key{oid: p, part: partEntries}, true})
	}
	obj := func(oid kml.OID, p part, write bool) { add(use{key{oid: oid, part: p}, write}) }
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod:
		name(r.Parent, r.Name)
		obj(r.OID, partExists, true)
		obj(r.OID, partData, true)
	case kml.OpLink:
		name(r.Parent, r.Name)
		obj(r.OID, partExists, false)
		obj(r.OID, partPlace, true)
	case kml.OpUnlink:
		name(r.Parent, r.Name)
		obj(r.OID, partExists, true)
		obj(r.OID, partPlace, true)
		obj(r.OID, partData, false)
	case kml.OpRmdir:
		name(r.Parent, r.Name)
		obj(r.OID, partExists, true)
		obj(r.OID, partEntries, false)
	case kml.OpRename:
		name(r.Parent, r.Name)
		name(r.NewParent, r.NewName)
		obj(r.OID, partExists, false)
		obj(r.OID, partPlace, true)
		obj(kml.RootOID, partFolders, true) // it may be a folder, and lie in another's way
		if r.Victim != nil {
			obj(r.Victim.OID, partExists, true)
			obj(r.Victim.OID, partPlace, true)
			obj(r.Victim.OID, partData, false)
			obj(r.Victim.OID, partEntries, false)
		}
	case kml.OpStore:
		obj(r.OID, partExists, false)
		obj(r.OID, partData, true)
	case kml.OpSetattr, kml.OpSetxattr, kml.OpRemovexattr:
		obj(r.OID, partExists, false)
		obj(r.OID, partAttr, true)
	}
}

// Concern tells which local records a set of others concerns. The zero value
// concerns nothing. Memory is about 60 bytes for each name and object that was
// added.
type Concern struct {
	read, write map[key]bool
	placed      map[Name]kml.OID // what records in the set put at names
	removed     map[kml.OID]bool // what they took a name from
	all         bool
}

// Add puts a record into the set.
func (c *Concern) Add(r *kml.Record) {
	if c.read == nil {
		c.read, c.write, c.placed, c.removed = make(map[key]bool), make(map[key]bool), make(map[Name]kml.OID), make(map[kml.OID]bool)
	}
	if n, ok := arrives(r); ok {
		c.placed[n] = r.OID
	}
	switch {
	case r.Op == kml.OpRmdir:
		c.removed[r.OID] = true
	case r.Op == kml.OpRename && r.Victim != nil:
		c.removed[r.Victim.OID] = true
	}
	uses(r, func(u use) {
		if u.write {
			c.write[u.key] = true
		} else {
			c.read[u.key] = true
		}
	})
}

// AddSettled puts a local record into the set that is to be settled: its object
// may become the one that has its name by now.
func (c *Concern) AddSettled(r *kml.Record) {
	if n, ok := arrives(r); ok && c.placed[n] != 0 {
		c.write[key{oid: c.placed[n], part: partExists}] = true
	}
	// A folder that is gone may become whichever one has its name by now, and so
	// may those above it.
	c.all = c.all || c.removed[r.Parent] || c.removed[r.NewParent]
	c.Add(r)
	c.write[key{oid: r.OID, part: partExists}] = true
}

// Takes reports whether a record takes a name from an object and gives it none.
func Takes(r *kml.Record, oid kml.OID) bool {
	switch r.Op {
	case kml.OpUnlink, kml.OpRmdir:
		return r.OID == oid
	case kml.OpRename:
		return r.Victim != nil && r.Victim.OID == oid && r.Flags&kml.FlagExchange == 0
	}
	return false
}

// arrives is the name that a record gives its object.
func arrives(r *kml.Record) (Name, bool) {
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod, kml.OpLink:
		return Name{r.Parent, r.Name}, true
	case kml.OpRename:
		return Name{r.NewParent, r.NewName}, true
	}
	return Name{}, false
}

// Has reports whether a record has to do with one in the set: it changes what one
// depends on or changes, or depends on what one changes. Two names in one folder
// have nothing to do with each other.
func (c *Concern) Has(r *kml.Record) bool {
	has := c.all
	uses(r, func(u use) {
		switch {
		case has:
		case !u.write:
			has = c.write[u.key]
		case u.name == "" && u.part == partEntries:
			has = c.read[u.key]
		default:
			has = c.write[u.key] || c.read[u.key]
		}
	})
	return has
}

// Concerned says which local records have to be settled when the master's records
// are put under them, both in order: those that have to do with one of them, and
// those that have to do with such a local record before them. The others stay as
// they are.
func Concerned(master, local []*kml.Record) []bool {
	var c Concern
	for _, r := range master {
		c.Add(r)
	}
	out := make([]bool, len(local))
	for i, r := range local {
		if out[i] = c.Has(r); out[i] {
			c.AddSettled(r)
		}
	}
	return out
}
