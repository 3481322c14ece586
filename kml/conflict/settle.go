package conflict

import "github.com/mezzofs/mezzo/kml"

// based is a version of the master's that holds what this host had made: later
// local records stand on it.
type based struct {
	oid     kml.OID
	version kml.Position
}

// line is the version that an object's local contents were made from, when a
// store between was dropped.
type line struct {
	oid  kml.OID
	base kml.Base
}

// Settler settles local records, one after the other.
type Settler struct {
	Host Host
	Tree State
	// Policy is the policy of a name; nil: both everywhere.
	Policy func(Name) Policy

	alias   map[kml.OID]kml.OID
	moved   map[place]Name
	copies  map[kml.OID]kml.OID // by the object here, as it was before it became another
	copied  map[kml.OID]bool    // objects of the master's that have such a copy
	dropped map[kml.OID]bool
	based   map[kml.OID]kml.Position
	line    map[kml.OID]kml.Base
	merged  map[kml.OID]bool // has local bytes that were not seen under that name
	wanted  map[kml.OID]Name
	late    map[kml.OID][]*kml.Record
}

// place is an object's local name.
type place struct {
	oid kml.OID
	at  Name
}

// Settle says what becomes of a local record on the tree as it is now. The record
// is not changed; what comes back may be it. The caller puts the verdict's items
// on the tree before the next call. An error is the tree's (State.Err), or that of
// Host.Mint; nothing is remembered then, and the call may be made again.
func (s *Settler) Settle(r *kml.Record) (*Verdict, error) {
	s.init()
	v := &Verdict{}
	mine := s.rewrite(r)
	d := decider{h: s.Host, s: s.Tree, w: s, r: mine, orig: r, v: v, made: make(map[kml.OID]Name),
		p: func(n Name) Policy {
			if s.Policy == nil {
				return Policy{}
			}
			return s.Policy(n)
		}}
	if err := s.Tree.Err(); err != nil {
		return nil, err
	}
	if err := d.settle(); err != nil {
		return nil, err
	}
	if err := s.Tree.Err(); err != nil {
		return nil, err
	}
	s.remember(r, mine, v)
	for i := range v.Items {
		if v.Items[i].Rec == mine && sameRecord(mine, r) {
			v.Items[i].Rec = r
		}
	}
	return v, nil
}

// Merged says that the merge of a verdict succeeded, and that its items stand: what
// was joined has bytes in it that nobody here has seen.
func (s *Settler) Merged(v *Verdict) {
	s.init()
	if v.Copy != nil {
		delete(s.copies, v.Copy.Here)
		delete(s.copied, v.Copy.Of)
	}
	for _, oid := range v.unseen {
		delete(s.merged, oid)
	}
	for _, it := range v.Merge.Items {
		if it.Bytes == BytesMerged {
			s.merged[it.Rec.OID] = true
		}
	}
}

func (s *Settler) init() {
	if s.alias != nil {
		return
	}
	s.alias = make(map[kml.OID]kml.OID)
	s.moved = make(map[place]Name)
	s.copies = make(map[kml.OID]kml.OID)
	s.copied = make(map[kml.OID]bool)
	s.dropped = make(map[kml.OID]bool)
	s.based = make(map[kml.OID]kml.Position)
	s.merged = make(map[kml.OID]bool)
	s.line = make(map[kml.OID]kml.Base)
	s.wanted = make(map[kml.OID]Name)
	s.late = make(map[kml.OID][]*kml.Record)
}

// is is the object that stands for one.
func (s *Settler) is(oid kml.OID) kml.OID {
	for {
		to, ok := s.alias[oid]
		if !ok {
			return oid
		}
		oid = to
	}
}

// rewrite is a copy of a record with what the pass knows put in.
func (s *Settler) rewrite(r *kml.Record) *kml.Record {
	n := *r
	n.OID, n.Parent, n.NewParent = s.is(r.OID), s.is(r.Parent), s.is(r.NewParent)
	switch r.Op {
	case kml.OpUnlink, kml.OpRmdir, kml.OpRename:
		if to, ok := s.moved[place{n.OID, Name{n.Parent, n.Name}}]; ok {
			n.Parent, n.Name = to.Parent, to.Name
		}
	}
	if r.Victim == nil {
		return &n
	}
	v := *r.Victim
	v.OID = s.is(v.OID)
	n.Victim = &v
	if r.Op != kml.OpRename {
		return &n
	}
	if to, ok := s.moved[place{v.OID, Name{n.NewParent, n.NewName}}]; ok {
		n.NewParent, n.NewName = to.Parent, to.Name
	}
	// What was written here went to a copy: that is what is replaced.
	if c, ok := s.copies[r.Victim.OID]; ok && n.Flags&kml.FlagExchange == 0 {
		if at, ok := s.Tree.Name(c); ok {
			n.NewParent, n.NewName = at.Parent, at.Name
			n.Victim, n.VictimBase = &kml.Victim{OID: c, Attr: v.Attr}, kml.Base{}
		}
	}
	return &n
}

// remember takes up what a verdict says for the records that follow.
func (s *Settler) remember(r, mine *kml.Record, v *Verdict) {
	if r.Op == kml.OpRename {
		delete(s.moved, place{mine.OID, Name{s.is(r.Parent), r.Name}})
		to := Name{s.is(r.NewParent), r.NewName}
		for _, it := range v.Items {
			if at := (Name{it.Rec.NewParent, it.Rec.NewName}); it.Rec.Op == kml.OpRename && it.Rec.OID == mine.OID && at != to {
				s.moved[place{mine.OID, to}] = at
			}
		}
	}
	for _, a := range v.Aliases {
		if s.is(a.To) != a.From {
			s.alias[a.From] = a.To
		}
	}
	for _, m := range v.Moves {
		s.moved[place{m.OID, m.From}] = m.To
	}
	if v.Copy != nil {
		s.copies[v.Copy.Here], s.copied[v.Copy.Of] = v.Copy.OID, true
	}
	for _, oid := range v.dropped {
		s.dropped[oid] = true
	}
	for _, b := range v.based {
		s.based[b.oid] = b.version
	}
	for _, oid := range v.unseen {
		s.merged[oid] = true
	}
	for _, l := range v.line {
		s.line[l.oid] = l.base
	}
	for _, w := range v.wanted {
		s.wanted[w.OID] = w.To
	}
	for _, l := range v.late {
		s.late[l.OID] = append(s.late[l.OID], l)
	}
}

// sameRecord compares what Settle may change.
func sameRecord(a, b *kml.Record) bool {
	return a.OID == b.OID && a.Parent == b.Parent && a.Name == b.Name && a.NewParent == b.NewParent && a.NewName == b.NewName &&
		a.Base == b.Base && a.VictimBase == b.VictimBase && a.Flags == b.Flags && a.Mask == b.Mask && a.Old == b.Old &&
		a.HadOld == b.HadOld && string(a.OldValue) == string(b.OldValue) && (a.Extents == nil) == (b.Extents == nil) &&
		(a.Victim == nil) == (b.Victim == nil) && (a.Victim == nil || a.Victim.OID == b.Victim.OID)
}
