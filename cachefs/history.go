package cachefs

import (
	"errors"
	"fmt"
	"os"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/local"
)

// setAsideAll gives up everything that waits to be sent. The caller has the turn.
func (c *Client) setAsideAll(why string) error {
	es := c.cache.Local().Entries()
	lost := 0
	var open []*local.Entry
	for _, e := range es {
		if e.Back() != 0 {
			continue
		}
		open = append(open, e)
		if !e.Data {
			lost++
		} else if err := c.keepRefused(e, why); err != nil {
			return err
		}
	}
	if lost > 0 {
		c.note("%d changes of names and attributes: %s", lost, why)
	}
	if err := c.undo(open...); err != nil {
		return err
	}
	c.forget(kml.Base{}, es...)
	return nil
}

// lostByMaster has changes sent again that the master had taken and no longer
// has: its machine went down before they were durable.
func (c *Client) lostByMaster(lastSeq uint64) error {
	p := &c.push
	for _, e := range c.cache.Local().Entries() {
		if e.Seq() <= lastSeq {
			continue
		}
		if err := c.cache.Again(e); err != nil {
			return err
		}
		p.mu.Lock()
		if s := p.st[e.ID]; s != nil && s.decided && applied(s.out) {
			s.decided, s.on, s.staged = false, nil, nil
		}
		p.mu.Unlock()
	}
	return nil
}

// keepSent takes the bytes of stores that came back and are not durable at the
// master into the local log again, before the cache forgets them.
func (c *Client) keepSent() {
	for _, e := range c.cache.Local().Entries() {
		if pos := e.Back(); pos != 0 && e.Data {
			if err := c.cache.LinkVersion(e.Rec().OID, pos, c.cache.Local().Path(e.ID)); err != nil && !errors.Is(err, os.ErrExist) {
				c.log.Debug("bytes of a store are no longer here", "oid", e.Rec().OID, "err", err)
			}
		}
	}
}

// renumber makes what waits to be sent changes of another site: the master took
// this cache for a copy of the site it was. What was made under the old number
// gets new oids.
func (c *Client) renumber(site kml.SiteID) error {
	l := c.cache.Local()
	var old, add []*local.Entry
	oids, ids := map[kml.OID]kml.OID{}, map[uint64]uint64{}
	to := func(oid kml.OID) kml.OID {
		if n, ok := oids[oid]; ok {
			return n
		}
		return oid
	}
	for _, e := range l.Entries() {
		old = append(old, e)
		if e.Back() != 0 {
			continue
		}
		k := *e.Rec()
		k.Origin = kml.Origin{}
		if isMaking(k.Op) {
			oid, err := c.cache.State().MintOID()
			if err != nil {
				return err
			}
			oids[k.OID] = oid
		}
		k.OID, k.Parent, k.NewParent = to(k.OID), to(k.Parent), to(k.NewParent)
		if k.Victim != nil {
			v := *k.Victim
			v.OID = to(v.OID)
			k.Victim = &v
		}
		if k.Base.Seq != 0 && k.Base.Pos == 0 {
			k.Base.Seq = 0 // a number of the other site's: its change has come back, or it is ID's below
			if obj, err := c.cache.MasterObject(e.Rec().OID); err == nil {
				k.Base.Pos = obj.DataVersion
			}
		}
		n := local.New(&k)
		n.ID, n.At, n.After, n.Over, n.Data = l.Reserve(), e.At, ids[e.After], ids[e.Over], e.Data
		defer l.Release(n.ID) // unless it is appended
		ids[e.ID] = n.ID
		if n.Data {
			if err := os.Link(l.Path(e.ID), l.Path(n.ID)); err != nil {
				return fmt.Errorf("contents of change %x: %w", e.ID, err)
			}
		}
		add = append(add, n)
	}
	var open []*local.Entry
	for _, e := range old {
		if e.Back() == 0 {
			open = append(open, e)
		}
	}
	if err := c.cache.Exchange(open, add); err != nil {
		return err
	}
	c.forget(kml.Base{}, old...)
	c.log.Info("changes were numbered anew", "site", site, "changes", len(add))
	return nil
}
