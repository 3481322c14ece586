package conflicttest

import (
	"fmt"
	"slices"
	"time"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/conflict"
)

// settling is a client's tree while it settles: conflict.State.
type settling struct {
	c     *Client
	view  *Tree
	grave map[kml.OID]conflict.Grave
	mine  *Tree // as it was here before
	local []Change
	data  string // of the record that is settled
}

// Object is conflict.State's.
func (s *settling) Object(oid kml.OID) (conflict.Object, bool) {
	o := s.view.Objects[oid]
	if o == nil {
		return conflict.Object{}, false
	}
	k := o.Object
	k.Attr.Nlink = uint32(len(s.view.Of(oid)))
	return k, true
}

// Child is conflict.State's.
func (s *settling) Child(n Name) (kml.OID, bool) {
	oid, ok := s.view.Names[n]
	return oid, ok
}

// Name is conflict.State's.
func (s *settling) Name(oid kml.OID) (Name, bool) {
	ns := s.view.Of(oid)
	if len(ns) == 0 {
		return Name{}, false
	}
	return ns[0], true
}

// Empty is conflict.State's.
func (s *settling) Empty(oid kml.OID) bool { return s.view.Empty(oid) }

// Xattr is conflict.State's.
func (s *settling) Xattr(oid kml.OID, name string) ([]byte, bool) {
	v, ok := s.view.Objects[oid].Xattrs[name]
	return []byte(v), ok
}

// Grave is conflict.State's.
func (s *settling) Grave(oid kml.OID) (conflict.Grave, bool) {
	g, ok := s.grave[oid]
	return g, ok
}

// SameContents is conflict.State's.
func (s *settling) SameContents(mine, theirs kml.OID) bool {
	a, b := s.mine.Objects[mine], s.view.Objects[theirs]
	return a != nil && b != nil && a.Data == b.Data
}

// SameBytes is conflict.State's.
func (s *settling) SameBytes(_ *kml.Record, theirs kml.OID) bool {
	b := s.view.Objects[theirs]
	return b != nil && b.Data == s.data
}

// Later is conflict.State's.
func (s *settling) Later(r *kml.Record, oid kml.OID) bool {
	i := slices.IndexFunc(s.local, func(k Change) bool { return k.Rec == r })
	return slices.ContainsFunc(s.local[i+1:], func(k Change) bool { return k.Rec.Op == kml.OpStore && k.Rec.OID == oid })
}

// Removes is conflict.State's.
func (s *settling) Removes(r *kml.Record, oid kml.OID) bool {
	i := slices.IndexFunc(s.local, func(k Change) bool { return k.Rec == r })
	return slices.ContainsFunc(s.local[i+1:], func(k Change) bool { return conflict.Takes(k.Rec, oid) })
}

// Err is conflict.State's.
func (s *settling) Err() error { return nil }

// Sync takes up the master's records, settles the local log, and sends it. An
// error is a fault: a record that does not fit, or that the master refuses.
func (c *Client) Sync() error {
	if err := c.Settle(); err != nil {
		return err
	}
	return c.Send()
}

// Settle puts the local log on top of the master's newest records.
func (c *Client) Settle() error { return c.settle(nil) }

// SettleOnly is Settle of the local records that are concerned, and no others.
func (c *Client) SettleOnly() error {
	var master, local []*kml.Record
	for _, k := range c.m.Log[c.cursor:] {
		master = append(master, k.Rec)
	}
	for _, k := range c.Local {
		local = append(local, k.Rec)
	}
	return c.settle(conflict.Concerned(master, local))
}

func (c *Client) settle(only []bool) error {
	s := &settling{c: c, mine: c.View, local: c.Local, grave: make(map[kml.OID]conflict.Grave)}
	for ; c.cursor < len(c.m.Log); c.cursor++ {
		k := c.m.Log[c.cursor]
		before := c.base.Clone()
		if err := c.base.Apply(k.Rec, k.Data); err != nil {
			return err
		}
		for oid, o := range before.Objects {
			if c.base.Objects[oid] == nil {
				s.grave[oid] = c.bury(before, oid, o)
			}
		}
	}
	s.view = c.base.Clone()
	set := conflict.Settler{Tree: s, Policy: c.Policy, Host: conflict.Host{Site: c.site, Name: c.name, Mint: c.mint, Skew: c.Skew, SkewKnown: !c.SkewUnknown,
		Now: func() time.Time { return time.Unix(0, c.m.now()) }, CopyOf: func(oid kml.OID) kml.OID { return c.copy[oid] }}}
	local := c.Local
	c.Local, c.View = nil, s.view
	for i, k := range local {
		s.data = k.Data
		if only != nil && !only[i] {
			if err := c.put(k); err != nil {
				return fmt.Errorf("not concerned: %w", err)
			}
			continue
		}
		v, err := set.Settle(k.Rec)
		if err != nil {
			return err
		}
		if err := c.take(s, &set, v, k); err != nil {
			return fmt.Errorf("%s (%s): %w", kml.AppendText(nil, k.Rec), v.Row, err)
		}
	}
	return nil
}

// bury is what is known of an object before it goes.
func (c *Client) bury(t *Tree, oid kml.OID, o *Object) conflict.Grave {
	g := conflict.Grave{Object: o.Object, Whole: true}
	for _, x := range sortedXattrs(o.Xattrs) {
		g.Xattrs = append(g.Xattrs, kml.Xattr{Name: x, Value: []byte(o.Xattrs[x])})
	}
	if ns := t.Of(oid); len(ns) > 0 {
		g.At = ns[0]
	}
	return g
}

func sortedXattrs(m map[string]string) (names []string) {
	for x := range m {
		names = append(names, x)
	}
	slices.Sort(names)
	return names
}

// put adds a change to the local log and lays it over the tree.
func (c *Client) put(k Change) error {
	if err := c.View.Apply(k.Rec, k.Data); err != nil {
		return err
	}
	c.mine(k.Rec)
	c.Local = append(c.Local, k)
	return nil
}

// take puts a verdict in a change's place.
func (c *Client) take(s *settling, set *conflict.Settler, v *conflict.Verdict, k Change) error {
	c.Rows[v.Row]++
	items, losses, merged := v.Items, v.Losses, ""
	if m := v.Merge; m != nil && c.Merge != nil {
		if out, ok := c.merge(s, m, k.Data); ok {
			items, losses, merged = m.Items, nil, out
			set.Merged(v)
		}
	}
	for _, l := range losses {
		c.lose(s, l, k)
	}
	if v.Copy != nil && len(losses) > 0 {
		c.copy[v.Copy.Of] = v.Copy.OID
	}
	for _, it := range items {
		n := Change{Rec: it.Rec}
		switch it.Bytes {
		case conflict.BytesOwn:
			n.Data = k.Data
		case conflict.BytesGrave:
			n.Data = c.m.seen[s.grave[it.Rec.OID].DataVersion]
		case conflict.BytesMerged:
			r := *it.Rec
			r.Attr = kml.Attr{Size: uint64(len(merged)), Mtime: c.m.now()}
			n.Rec, n.Data = &r, merged
		}
		if err := c.put(n); err != nil {
			return err
		}
	}
	return nil
}

// merge joins contents, if they are there and can be joined.
func (c *Client) merge(s *settling, m *conflict.Merge, ours string) (string, bool) {
	if m.Mine != 0 {
		o := s.mine.Objects[m.Mine]
		if o == nil {
			return "", false
		}
		ours = o.Data
	}
	return c.Merge(m, c.m.seen[m.Base.Pos], ours, s.view.Objects[m.OID].Data)
}

func (c *Client) lose(s *settling, l conflict.Loss, k Change) {
	c.Losses = append(c.Losses, l)
	switch {
	case l.Keep == conflict.KeepNothing:
	case l.Field != "" && l.Keep == conflict.KeepMine:
		c.Kept = append(c.Kept, l.Field+"="+string(l.Mine))
	case l.Field != "":
		c.Kept = append(c.Kept, l.Field+"="+string(l.Theirs))
	case l.Keep == conflict.KeepTheirs:
		c.Kept = append(c.Kept, c.m.seen[l.Version])
	case k.Rec.Op == kml.OpStore:
		c.Kept = append(c.Kept, k.Data)
	case s.mine.Objects[l.Other] != nil:
		c.Kept = append(c.Kept, s.mine.Objects[l.Other].Data)
	}
}

// Send sends the local log and takes it back as the master's.
func (c *Client) Send() error {
	last := make(map[kml.OID]uint64)
	for _, k := range c.Local {
		r := *k.Rec
		c.seq++
		r.Origin = kml.Origin{Site: c.site, Seq: c.seq}
		if n := last[r.OID]; n != 0 && r.Op == kml.OpStore {
			r.Base = kml.Base{Seq: n}
		}
		if r.Victim != nil && last[r.Victim.OID] != 0 && r.VictimBase != (kml.Base{}) {
			r.VictimBase = kml.Base{Seq: last[r.Victim.OID]}
		}
		if r.Op == kml.OpStore || r.Op == kml.OpCreate {
			last[r.OID] = c.seq
		}
		if err := c.m.Take(&r, k.Data); err != nil {
			return fmt.Errorf("the master refuses: %w", err)
		}
	}
	c.Local = nil
	return c.Settle()
}
