package tree

import (
	"errors"
	"os"
	"slices"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/local"
)

// CameBack takes a change off the tree that the master found to change nothing:
// it has no record there.
func (c *Cache) CameBack(e *local.Entry, pos kml.Position) error {
	c.amu.Lock()
	defer c.amu.Unlock()
	if e.Back() != 0 || e.Gone() {
		return nil
	}
	r := e.Rec()
	changes, err := c.review([]*kml.Record{r}, func() error {
		c.view.remove(e, r)
		return nil
	})
	if err != nil {
		return err
	}
	e.SetBack(pos)
	for _, ch := range changes {
		c.watch.emit(ch)
	}
	return nil
}

// Again puts a change on the tree that had come back and that the master has
// lost: it will be sent again. The index does not have it any more.
func (c *Cache) Again(e *local.Entry) error {
	c.amu.Lock()
	defer c.amu.Unlock()
	if e.Back() == 0 || e.Gone() {
		return nil
	}
	r := e.Rec()
	changes, err := c.review([]*kml.Record{r}, func() error {
		c.view.add(e, r)
		return nil
	})
	if err != nil {
		return err
	}
	e.SetBack(0)
	if r.Op == kml.OpStore {
		err = c.againStore(e, r)
	}
	for _, ch := range changes {
		c.watch.emit(ch)
	}
	return err
}

// againStore makes the bytes of a store those of its object again.
func (c *Cache) againStore(e *local.Entry, r *kml.Record) error {
	o := c.objects.acquire(r.OID)
	o.mu.Lock()
	defer o.mu.Unlock()
	was := o.local
	if !was {
		o.base, o.after = r.Base, e.After
	}
	o.wait = append(o.wait, e)
	slices.SortFunc(o.wait, func(a, b *local.Entry) int { return int(int64(a.ID - b.ID)) })
	if was {
		c.objects.release(o) // it has a reference of being local
		if o.dirty || o.wait[len(o.wait)-1] != e {
			return nil // what is here is newer
		}
		if err := os.Remove(c.localPath(r.OID)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		o.gen++
	}
	if err := c.restoreBytes(o); err != nil {
		return err
	}
	o.leave(nil)
	return c.renewContent(o.oid)
}

// Exchange puts changes into the local log and takes others out, in one step: a
// killed process has done all of it or nothing.
func (c *Cache) Exchange(out, in []*local.Entry) error {
	c.amu.Lock()
	defer c.amu.Unlock()
	if err := c.log.Exchange(out, in); err != nil {
		return err
	}
	for _, e := range slices.Backward(out) {
		c.unlay(e, kml.Base{})
	}
	for _, e := range in {
		if err := c.layAgain(e); err != nil {
			return err
		}
	}
	return nil
}

// unlay takes a change off the tree; what was made on top of contents that go is
// made on rebase now, when that is not zero. The caller holds amu.
func (c *Cache) unlay(e *local.Entry, rebase kml.Base) {
	r := e.Rec()
	changes, _ := c.review([]*kml.Record{r}, func() error {
		c.view.remove(e, r)
		return nil
	})
	for _, ch := range changes {
		c.watch.emit(ch)
	}
	if r.Op == kml.OpStore {
		c.drop(e, rebase)
	}
}

// layAgain lays a change over the tree; the bytes of a store become its
// object's. The caller holds amu.
func (c *Cache) layAgain(e *local.Entry) error {
	r := e.Rec()
	changes, err := c.review([]*kml.Record{r}, func() error {
		c.view.add(e, r)
		return nil
	})
	if err == nil && r.Op == kml.OpStore {
		err = c.againStore(e, r)
	}
	for _, ch := range changes {
		c.watch.emit(ch)
	}
	return err
}

// MadeBy is the ID of the change that made an object here and has not come back,
// or 0; WrittenBy of the last one that changed its contents.
func (c *Cache) MadeBy(oid kml.OID) uint64 {
	c.view.mu.RLock()
	defer c.view.mu.RUnlock()
	if p := c.view.objs[oid]; p != nil {
		return p.madeBy
	}
	return 0
}

// WrittenBy is the ID of the last change here of an object's contents that has
// not come back, or 0.
func (c *Cache) WrittenBy(oid kml.OID) uint64 {
	c.view.mu.RLock()
	defer c.view.mu.RUnlock()
	return c.view.writtenBy(oid)
}

// Dirty reports whether an object was written to since its last store.
func (c *Cache) Dirty(oid kml.OID) bool {
	o := c.objects.find(oid)
	if o == nil {
		return false
	}
	defer c.objects.release(o)
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.dirty
}
