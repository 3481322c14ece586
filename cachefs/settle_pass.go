package cachefs

import (
	"context"
	"errors"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/conflict"
	"github.com/mezzofs/mezzo/kml/local"
	"github.com/mezzofs/mezzo/kml/tree"
)

// settling is one pass over the changes that have to be settled.
type settling struct {
	c      *Client
	ctx    context.Context
	d      *tree.Draft
	s      conflict.Settler
	open   []*local.Entry // all changes that are not the master's, in order
	seeds  []*sending
	absent map[kml.OID]bool // objects that the master does not have

	given  map[*kml.Record]*local.Entry
	stored map[kml.OID]uint64 // the ID of the last store of each object
	made   map[kml.OID]bool   // by changes that are not the master's
	// removed are the IDs of the last changes that take a name from each object.
	removed map[kml.OID]uint64
	own     map[kml.OID]kml.OID
	losses  []lost
	moved   []alias
	placed  map[*local.Entry]*local.Entry // what stands for a change, by what does
	taken   []*local.Entry                // the changes that were settled
	err     error
}

// lost is what goes to the conflicts store.
type lost struct {
	conflict.Loss
	e   *local.Entry
	n   int // among those of e
	rec *kml.Record
}

// cut cuts the stores of everything that stuck changes are about.
func (s *settling) cut() error {
	var errs []error
	for _, k := range s.seeds {
		r := k.e.Rec()
		errs = append(errs, s.c.cache.CutOf(r.OID))
		if r.Victim != nil {
			errs = append(errs, s.c.cache.CutOf(r.Victim.OID))
		}
	}
	return errors.Join(errs...)
}

// run settles on a draft.
func (s *settling) run(d *tree.Draft) error {
	s.d = d
	s.given, s.stored, s.made = make(map[*kml.Record]*local.Entry), make(map[kml.OID]uint64), make(map[kml.OID]bool)
	s.removed = make(map[kml.OID]uint64)
	s.placed, s.own, s.losses, s.moved = make(map[*local.Entry]*local.Entry), make(map[kml.OID]kml.OID), nil, nil
	s.open = d.Changes()
	for _, e := range s.open {
		r := e.Rec()
		switch {
		case r.Op == kml.OpStore:
			s.stored[r.OID] = e.ID
		case isMaking(r.Op):
			s.made[r.OID] = true
		}
		if conflict.Takes(r, r.OID) {
			s.removed[r.OID] = e.ID
		} else if r.Victim != nil && conflict.Takes(r, r.Victim.OID) {
			s.removed[r.Victim.OID] = e.ID
		}
	}
	s.taken = s.concerned()
	if err := s.c.push.maySettle(s.taken); err != nil {
		return err
	}
	d.Off(s.taken...)
	s.s = conflict.Settler{Tree: s, Host: s.c.host(), Policy: s.policy}
	for _, e := range s.taken {
		if err := s.one(e); err != nil {
			return err
		}
	}
	for here, to := range s.own {
		if to = s.final(here); to != here {
			d.Become(here, to)
		}
	}
	if err := s.keepLosses(); err != nil {
		return err
	}
	return s.thaw()
}

// maySettle is an error while the master has not decided on changes that it may have
// been sent, or that somebody waits for.
func (p *pusher) maySettle(es []*local.Entry) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range es {
		s := p.st[e.ID]
		switch {
		case e.Gone() || e.Back() != 0:
			return tree.ErrMoved
		case s != nil && s.waited > 0 || e.Seq() != 0 && (s == nil || !s.decided):
			return errUndecided
		}
	}
	return nil
}

// final is what stands for an object here in the end.
func (s *settling) final(oid kml.OID) kml.OID {
	for range maxSettle * maxPasses {
		to, ok := s.own[oid]
		if !ok || to == oid {
			break
		}
		oid = to
	}
	return oid
}

// thaw takes the numbers of what is settled away: the master refused them.
func (s *settling) thaw() error {
	for _, e := range s.taken {
		if err := s.c.cache.Local().Thaw(e); err != nil {
			return err
		}
	}
	return nil
}

// concerned are the stuck changes, and those that depend on them.
func (s *settling) concerned() (out []*local.Entry) {
	var set conflict.Concern
	seed := make(map[*local.Entry]bool, len(s.seeds))
	for _, k := range s.seeds {
		seed[k.e] = true
	}
	for _, e := range s.open {
		r := e.Rec()
		if !seed[e] && (len(out) == 0 || !set.Has(r)) {
			continue
		}
		s.beside(&set, r)
		set.AddSettled(r)
		out = append(out, e)
	}
	return out
}

// beside puts what the master has at the place of a change into the set of what it
// concerns: they may become one.
func (s *settling) beside(set *conflict.Concern, r *kml.Record) {
	at := []conflict.Name{{Parent: r.Parent, Name: r.Name}}
	if r.Op == kml.OpRename {
		at = append(at, conflict.Name{Parent: r.NewParent, Name: r.NewName})
	} else if !isMaking(r.Op) && r.Op != kml.OpLink {
		return
	}
	for _, n := range at {
		if held, ok := s.c.cache.MasterChild(n.Parent, n.Name); ok && held != r.OID {
			set.Add(&kml.Record{Op: kml.OpCreate, OID: held, Parent: n.Parent, Name: n.Name})
		}
		if _, err := s.c.cache.MasterObject(n.Parent); errors.Is(err, tree.ErrNotFound) && !s.made[n.Parent] {
			set.Add(&kml.Record{Op: kml.OpRmdir, OID: n.Parent}) // it is gone
		}
	}
}

// host is who settles.
func (c *Client) host() conflict.Host {
	skew, known := c.clockSkew()
	return conflict.Host{Site: c.cache.State().Fileset().Site, Name: c.o.Host, Now: c.o.Now, Skew: skew, SkewKnown: known,
		Mint: func() (kml.OID, error) { return c.cache.State().MintOID() }, CopyOf: c.conflicts.CopyOf}
}

// policy is the policy of a name.
func (s *settling) policy(n conflict.Name) conflict.Policy {
	p := s.c.Policies()
	if len(p.Rules()) == 0 {
		return conflict.Policy{}
	}
	return p.For(s.path(n))
}

// path is where a name is on the draft, from the root.
func (s *settling) path(n conflict.Name) string {
	path := n.Name
	for range 4096 {
		if n.Parent == kml.RootOID || n.Parent == 0 {
			break
		}
		at, ok := s.Name(n.Parent)
		if !ok {
			g, _ := s.c.cache.Grave(n.Parent)
			if g == nil {
				break
			}
			at = conflict.Name{Parent: g.Parent, Name: g.Name}
		}
		n = at
		path = n.Name + "/" + path
	}
	return path
}

// marker says in a base that contents are those of a change in the local log. No
// number of a record has that bit.
const marker = 1 << 63

// prepared is a change as it is given to the settler.
func (s *settling) prepared(e *local.Entry) *kml.Record {
	r := *e.Rec()
	r.Origin = kml.Origin{}
	base := func(b *kml.Base, id uint64) {
		on := s.c.cache.Local().Get(id)
		switch {
		case id == 0 || on == nil:
		case on.Back() != 0 && on.Seq() != 0:
			*b = kml.Base{Seq: on.Seq()}
		default:
			*b = kml.Base{Seq: marker | id}
		}
	}
	base(&r.Base, e.After)
	base(&r.VictimBase, e.Over)
	return &r
}

// one settles one change.
func (s *settling) one(e *local.Entry) error {
	r := s.prepared(e)
	s.given[r] = e
	v, err := s.s.Settle(r)
	if err != nil {
		return err
	}
	items, losses := v.Items, v.Losses
	var joined string
	if v.Merge != nil {
		if joined, err = s.join(e, r, v.Merge); err != nil {
			return err
		}
		if joined != "" {
			items, losses = v.Merge.Items, nil
			s.s.Merged(v)
		}
	}
	for _, a := range v.Aliases {
		s.own[a.From] = a.To
		s.moved = append(s.moved, alias{a.From, a.To})
	}
	if v.Copy != nil && joined == "" {
		s.own[v.Copy.Here] = v.Copy.OID
	}
	for i, l := range losses {
		s.losses = append(s.losses, lost{Loss: l, e: e, n: i, rec: r})
	}
	if v.Row == conflict.RowSame && len(items) == 0 && r.Op == kml.OpStore {
		if o, ok := s.Object(s.final(r.OID)); ok && !o.Local {
			s.d.Rebase(s.final(r.OID), kml.Base{Pos: o.DataVersion})
		}
	}
	return s.place(e, r, items, joined)
}

// place puts records in the place of a change.
func (s *settling) place(e *local.Entry, r *kml.Record, items []conflict.Item, joined string) error {
	if len(items) == 0 {
		s.d.Drop(e)
		return nil
	}
	if it := items[0]; len(items) == 1 && (it.Bytes == conflict.BytesOwn || it.Bytes == conflict.BytesNone && r.Op != kml.OpStore) {
		rec := it.Rec
		if rec == r {
			rec = e.Rec()
			if rec.Origin != (kml.Origin{}) {
				rec = bare(r)
			}
		} else {
			rec = bare(rec)
		}
		s.d.Keep(e, rec, s.after(it.Rec, e.ID), s.over(it.Rec, e.ID))
		return nil
	}
	out := make([]tree.Item, len(items))
	for i, it := range items {
		rec := bare(it.Rec)
		n := tree.Item{Rec: rec, After: func(id uint64) uint64 { return s.after(rec, id) }, Over: func(id uint64) uint64 { return s.over(it.Rec, id) }}
		if err := s.contents(e, it, &n, joined); err != nil {
			return err
		}
		out[i] = n
	}
	in, err := s.d.Replace(e, out)
	for _, n := range in {
		s.placed[n] = e
	}
	return err
}

// bare is a record as the local log has it: without numbers, and without bases
// that are changes there.
func bare(r *kml.Record) *kml.Record {
	n := *r
	n.Origin = kml.Origin{}
	if n.Base.Seq&marker != 0 {
		n.Base = kml.Base{}
	}
	if n.VictimBase.Seq&marker != 0 {
		n.VictimBase = kml.Base{}
	}
	return &n
}

// after is the change here whose contents a store in front of an ID replaces.
func (s *settling) after(r *kml.Record, id uint64) uint64 {
	if r.Op != kml.OpStore {
		return 0
	}
	return s.d.WrittenBy(r.OID, id)
}

// over is the change here whose contents a victim has that a record in front of an
// ID takes away, when it says which contents that are.
func (s *settling) over(r *kml.Record, id uint64) uint64 {
	if r.Victim == nil || r.VictimBase == (kml.Base{}) {
		return 0
	}
	return s.d.WrittenBy(r.Victim.OID, id)
}

// contents says where the bytes of an item come from.
func (s *settling) contents(e *local.Entry, it conflict.Item, n *tree.Item, joined string) error {
	l := s.c.cache.Local()
	link := func(from string) func(string) error {
		return func(path string) error { return linkOrCopy(from, path) }
	}
	switch it.Bytes {
	case conflict.BytesOwn:
		if e.Data {
			n.Contents = link(l.Path(e.ID))
		}
	case conflict.BytesGrave:
		path, _, err := s.c.cache.OwnBytes(it.Rec.OID)
		if err != nil {
			path = s.c.cache.GravePath(it.Rec.OID)
		}
		n.Contents, n.Fresh = link(path), true
	case conflict.BytesMerged:
		size, err := sizeOf(joined)
		if err != nil {
			return err
		}
		n.Rec.Attr = kml.Attr{Size: uint64(size), Mtime: s.c.o.Now().UnixNano()}
		n.Fresh = true
		if size > 0 {
			n.Contents = link(joined)
		}
		s.d.Still(it.Rec.OID)
	}
	return nil
}

// done has what stands sent.
func (s *settling) done() {
	p := &s.c.push
	p.mu.Lock()
	often := make(map[*local.Entry]int)
	for _, e := range s.taken {
		k := p.of(e)
		k.settles++
		often[e] = k.settles
		k.decided, k.on, k.staged = false, nil, nil
		if e.Gone() {
			delete(p.st, e.ID)
			delete(p.again, e.ID)
		} else {
			p.again[e.ID] = true
		}
	}
	for n, e := range s.placed {
		p.of(n).settles = often[e]
		p.again[n.ID] = true
	}
	p.stepped()
	p.mu.Unlock()
	s.c.aliases.add(s.moved)
	for _, l := range s.losses {
		s.c.log.Info("a conflict was settled", "what", l.Row.String(), "path", s.path(l.Name), "oid", l.OID, "other", l.Other)
	}
}
