package tree

import (
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/local"
)

// Optimize takes out of some changes, which follow each other in the local log,
// what can be done without (kml.Optimize), and says how many went. frozen are
// those that stay as they are, besides those that have numbers. What is shown
// stays the same. changing, when given, is called with those that become others or
// go, before they do.
func (c *Cache) Optimize(es []*local.Entry, frozen func(e *local.Entry) bool, changing func([]*local.Entry)) (gone int, err error) {
	c.amu.Lock()
	defer c.amu.Unlock()
	rs := make([]*kml.Record, len(es))
	for i, e := range es {
		rs[i] = e.Rec()
	}
	out := kml.Optimize(rs, kml.OptimizeOptions{
		Frozen: func(i int) bool { return es[i].Seq() != 0 || es[i].Back() != 0 || frozen(es[i]) },
		File: func(oid kml.OID) bool {
			obj, err := c.get(oid)
			return err == nil && obj.Attr.Mode&unix.S_IFMT != unix.S_IFDIR
		},
	})
	var as []local.Amendment
	var touched []*kml.Record
	for i, k := range out {
		if k.Rec == rs[i] && k.First == i {
			continue
		}
		as = append(as, local.Amendment{Entry: es[i], Rec: k.Rec, Like: es[k.First]})
		touched = append(touched, rs[i])
		if k.Rec == nil {
			gone++
		} else {
			touched = append(touched, k.Rec)
		}
	}
	if len(as) == 0 {
		return 0, nil
	}
	was := make(map[*local.Entry]*kml.Record, len(as))
	var others []*local.Entry
	for _, a := range as {
		was[a.Entry] = a.Entry.Rec()
		others = append(others, a.Entry)
	}
	if changing != nil {
		changing(others)
	}
	if err := c.log.Amend(as); err != nil {
		return 0, err
	}
	fault.Point("local.optimized")
	changes, _ := c.review(touched, func() error {
		for _, a := range as {
			c.view.remove(a.Entry, was[a.Entry])
			if a.Rec != nil {
				c.view.add(a.Entry, a.Rec)
			}
		}
		return nil
	})
	for _, a := range as {
		if a.Rec == nil && was[a.Entry].Op == kml.OpStore {
			c.drop(a.Entry, kml.Base{})
		}
	}
	for _, ch := range changes {
		c.watch.emit(ch)
	}
	return gone, nil
}
