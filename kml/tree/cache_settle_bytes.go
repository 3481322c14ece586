package tree

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/mezzofs/mezzo/kml"
)

// bytes puts what was written here where the draft says: under other objects, or
// away. It says of which objects other contents are seen now. The caller holds
// the objects, and the local log has the draft: what fails is put right by the next
// start.
func (d *Draft) bytes(objs map[kml.OID]*cacheObject) (changed []kml.OID, err error) {
	passed := make(map[kml.OID]bool)
	for _, b := range d.becomes {
		if b.from == b.to {
			continue
		}
		passed[b.from], passed[b.to] = true, true
		err = errors.Join(err, d.pass(objs[b.from], objs[b.to]))
	}
	for oid, o := range objs {
		did, e := d.arrange(o)
		if did || passed[oid] {
			changed = append(changed, oid)
		}
		err = errors.Join(err, e)
	}
	return changed, err
}

// pass hands what was written to one object, if it stands, and all handles to
// another. The caller holds both.
func (d *Draft) pass(from, to *cacheObject) error {
	var err error
	if stands := from.dirty || len(d.stores(to.oid)) > 0; from.local && stands && !to.local {
		err = d.hand(from, to)
	}
	d.c.objects.pass(from, to)
	return err
}

// hand makes the file of one object's bytes that of another's.
func (d *Draft) hand(from, to *cacheObject) error {
	c := d.c
	var slots []int
	if from.dirty {
		// There is room for every open-dirty object that a store can be cut of.
		ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
		defer cancel()
		slot, err := c.dirty.Put(ctx, dirtyEntry{oid: to.oid, base: from.base.Pos, uid: from.uid, gid: from.gid}.encode())
		if err != nil {
			return err
		}
		slots = []int{slot}
	}
	if err := renameInto(c.localPath(from.oid), c.localPath(to.oid)); err != nil {
		for _, slot := range slots {
			c.dirty.Clear(slot)
		}
		return err
	}
	for _, slot := range from.slots {
		c.dirty.Clear(slot)
	}
	if to.vf != nil {
		to.vf.release()
		to.vf = nil
	}
	to.leave(nil)
	to.era, to.gen, to.local, to.dirty, to.slots = from.era, from.gen, true, from.dirty, slots
	to.base, to.first, to.uid, to.gid = from.base, from.first, from.uid, from.gid
	to.last.Store(from.last.Load())
	to.writes.Store(from.writes.Load())
	from.era, from.local, from.dirty, from.slots, from.wait = new(era), false, false, nil, nil
	from.last.Store(0)
	c.objects.mu.Lock() // the reference of being local
	from.refs--
	to.refs++
	c.objects.mu.Unlock()
	return c.renewContent(from.oid)
}

// arrange makes what is known of an object's bytes agree with its stores on the
// draft. did says that other contents are seen now. The caller holds o.
func (d *Draft) arrange(o *cacheObject) (did bool, err error) {
	c := d.c
	o.wait = d.stores(o.oid)
	o.after = d.WrittenBy(o.oid, 0)
	if b, ok := d.rebase[o.oid]; ok && len(o.wait) == 0 {
		o.base, o.after = b, 0
	}
	if _, err := d.Object(o.oid); err == nil && o.gone != nil {
		o.gone, o.removed = nil, false
	}
	switch {
	case o.local && o.settled():
		c.dropLocalLocked(o)
		return true, c.renewContent(o.oid)
	case len(o.wait) == 0:
		return false, nil
	}
	last := o.wait[len(o.wait)-1]
	switch {
	case o.dirty || o.local && !d.fresh[last]:
		return false, nil // what is here is newer, or the same
	case o.local:
		if err := os.Remove(c.localPath(o.oid)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return true, err
		}
		o.gen++
	default:
		c.objects.acquire(o.oid) // kept as long as it is local
		o.base = last.Rec().Base
	}
	err = c.restoreBytes(o)
	o.leave(nil)
	return true, errors.Join(err, c.renewContent(o.oid))
}

// undone removes the contents of changes that are not made after all.
func (d *Draft) undone() {
	for _, e := range d.in {
		if e.Data {
			_ = os.Remove(d.c.log.Path(e.ID)) // the next start looks again
		}
	}
}

// OwnBytes is where the bytes are that a file has here: written here, or the whole
// of the master's version. ErrNotExist when they are not all here. They are not to
// be changed, and stay as they are while the caller is in Settle and the object is
// not open-dirty.
func (c *Cache) OwnBytes(oid kml.OID) (path string, dirty bool, err error) {
	o := c.objects.acquire(oid)
	defer c.objects.release(o)
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.local {
		return c.localPath(oid), o.dirty, nil
	}
	obj, err := c.get(oid)
	if err != nil {
		if g, whole := c.graveOf(oid); g != nil && whole {
			return c.GravePath(oid), false, nil
		}
		return "", false, os.ErrNotExist
	}
	if !obj.Whole {
		return "", false, os.ErrNotExist
	}
	return c.objectPath(oid, obj.DataVersion), false, nil
}

// VersionPath is where the bytes of a version of the master's are, or some of them.
func (c *Cache) VersionPath(oid kml.OID, v kml.Position) string { return c.objectPath(oid, v) }

// CutOf cuts the store of an object, if it is open-dirty.
func (c *Cache) CutOf(oid kml.OID) error {
	o := c.objects.find(oid)
	if o == nil {
		return nil
	}
	defer c.objects.release(o)
	_, err := c.cut(o)
	return err
}
