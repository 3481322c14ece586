package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/local"
)

// Apply brings the cache from one position to the next: r is the master's
// record behind the cursor, crc the chain's CRC after it. A record at or before
// the cursor changes nothing. A change of our own that comes back goes from the
// view into the index; it is returned, and stays in the local log.
func (c *Cache) Apply(r *kml.Record, crc uint32) (own *local.Entry, err error) {
	c.amu.Lock()
	defer c.amu.Unlock()
	if at, _ := c.Cursor(); r.Pos <= at {
		return nil, nil
	}
	if r.Origin.Site != 0 && r.Origin.Site == c.state.Fileset().Site {
		if own = c.log.Sent(r.Origin.Seq); own == nil {
			if own, err = c.log.Adopt(r); err != nil {
				return nil, err
			}
		}
	}
	back := own
	if back != nil && back.Back() != 0 {
		back = nil // it is in the index already
	}
	var changes []Change
	switch r.Op {
	case kml.OpStore:
		changes, err = c.applyStore(r, crc, back)
	case kml.OpUnlink, kml.OpRmdir, kml.OpRename:
		changes, err = c.applyRemoving(r, crc, back)
	case kml.OpCreate:
		changes, err = c.applyCreate(r, crc, back)
	default:
		changes, err = c.applyToIndex(r, crc, back, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("record %v: %w", r.Pos, err)
	}
	fault.Point("cache.applied")
	if own != nil {
		own.SetBack(r.Pos)
	}
	if c.fills > 0 {
		c.recent = append(c.recent, r)
	}
	for _, ch := range changes {
		c.watch.emit(ch)
	}
	c.advance(r.Pos, crc)
	return own, nil
}

// Skip moves the cursor over a record that says nothing of the tree.
func (c *Cache) Skip(pos kml.Position, crc uint32) error {
	c.amu.Lock()
	defer c.amu.Unlock()
	err := c.index.Load().Update(func(b *Batch) error {
		b.SetCursor(pos)
		b.SetCursorCRC(crc)
		return nil
	})
	if err == nil {
		c.advance(pos, crc)
	}
	return err
}

// applyToIndex puts a record into the index; own is the change made here that it
// is, which leaves the view.
func (c *Cache) applyToIndex(r *kml.Record, crc uint32, own *local.Entry, more func(b *Batch) error) (changes []Change, err error) {
	up := func() error {
		return c.index.Load().Update(func(b *Batch) error {
			var err error
			if changes, err = applyRecord(b, r, true); err != nil {
				return err
			}
			if more != nil {
				if err := more(b); err != nil {
					return err
				}
			}
			b.SetCursor(r.Pos)
			b.SetCursorCRC(crc)
			return nil
		})
	}
	if own == nil {
		return changes, up()
	}
	was := own.Rec()
	return c.review([]*kml.Record{was, r}, func() error {
		if err := up(); err != nil {
			return err
		}
		c.view.remove(own, was)
		return nil
	})
}

// applyCreate makes a file. One made here keeps what its readers have.
func (c *Cache) applyCreate(r *kml.Record, crc uint32, own *local.Entry) ([]Change, error) {
	if own == nil {
		return c.applyToIndex(r, crc, nil, nil)
	}
	o := c.objects.acquire(r.OID)
	defer c.objects.release(o)
	o.mu.Lock()
	defer o.mu.Unlock()
	changes, err := c.applyToIndex(r, crc, own, func(b *Batch) error {
		obj, err := b.Get(r.OID)
		if err != nil {
			return ignore(err, ErrNotFound)
		}
		n := *obj
		n.Content = madeContent | own.ID
		return b.Put(&n)
	})
	if err != nil {
		return nil, err
	}
	if o.local && o.after == own.ID {
		o.base, o.after = kml.Base{Pos: r.Pos}, 0
		if c.up.Joins(r.OID) {
			c.attic.base(r.OID, r.Pos, "")
		}
	}
	if !o.local {
		c.dropVersion(o, 0)
	}
	return changes, nil
}

// applyStore replaces contents. A store of our own that comes back brings
// attributes: its bytes are here, and become those of the version. Any other
// leaves a hole, unless bytes written here are on their way: the master will
// say what becomes of them.
func (c *Cache) applyStore(r *kml.Record, crc uint32, own *local.Entry) ([]Change, error) {
	o := c.objects.acquire(r.OID)
	defer c.objects.release(o)
	o.mu.Lock()
	defer o.mu.Unlock()
	old, err := c.index.Load().Get(r.OID)
	if errors.Is(err, ErrNotFound) {
		old, err = nil, nil
	}
	if err != nil {
		return nil, err
	}
	if own != nil {
		o.wait = slices.DeleteFunc(o.wait, func(e *local.Entry) bool { return e == own })
		o.base, o.after = kml.Base{Pos: r.Pos}, 0 // what is written here is on top of it
	}
	home := own != nil && o.local && o.settled()
	stays := own != nil && o.local
	changes, err := c.applyToIndex(r, crc, own, func(b *Batch) error {
		obj, err := b.Get(r.OID)
		if err != nil || obj.DataVersion != r.Pos {
			return ignore(err, ErrNotFound)
		}
		n := *obj
		n.Whole, n.Present, n.Content = home, nil, 0
		if o.local && old != nil {
			n.Content = old.content() // what is here stays
		}
		return b.Put(&n)
	})
	if err != nil {
		return nil, err
	}
	switch {
	case home:
		// A hole if this fails, and fetched again.
		_ = renameInto(c.localPath(r.OID), c.objectPath(r.OID, r.Pos))
		if old != nil {
			c.dropVersion(o, old.DataVersion)
		}
		o.local = false
		c.unkeep(o)
	case !o.local && old != nil:
		if own == nil && c.changedHere(r.OID, false) {
			c.keepBase(o, old)
		}
		c.dropVersion(o, old.DataVersion)
		o.leave(old)
	}
	if own != nil && own.Data && !home && o.local && c.up.Joins(r.OID) {
		c.attic.base(r.OID, r.Pos, c.log.Path(own.ID)) // what is written now is made from it
	}
	if own != nil && own.Data && r.Attr.Size > keepPicture {
		_ = os.Remove(c.log.Path(own.ID)) // the version has the bytes
	}
	if stays {
		for i := range changes {
			changes[i].Kind &^= ChangeData // readers here have seen it
		}
	}
	return changes, nil
}

// keepPicture is the size up to which the bytes of a store stay in the local log
// until it is done.
const keepPicture = 1 << 20

// applyRemoving applies what may take an object's last name.
func (c *Cache) applyRemoving(r *kml.Record, crc uint32, own *local.Entry) ([]Change, error) {
	oid := r.OID
	if r.Op == kml.OpRename {
		oid = 0
		if r.Victim != nil {
			oid = r.Victim.OID
		}
	}
	old, err := c.index.Load().Get(oid)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	if err != nil {
		return c.applyToIndex(r, crc, own, nil)
	}
	changes, err := c.applyToIndex(r, crc, own, nil)
	if err != nil {
		return nil, err
	}
	if _, err := c.index.Load().Get(oid); err == nil {
		return changes, nil
	}
	needed := own == nil && c.needed(oid, old.Attr.Mode&unix.S_IFMT == unix.S_IFDIR)
	o := c.objects.acquire(oid)
	defer c.objects.release(o)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.gone == nil {
		gone := *old
		gone.Attr.Nlink, gone.Ctime = 0, r.Time
		o.gone = &gone
	}
	bytes := c.objectPath(oid, old.DataVersion)
	if needed {
		from := ""
		if !o.local && old.Whole && old.Attr.Mode&unix.S_IFMT == unix.S_IFREG {
			from = bytes
		}
		if err := c.attic.bury(old, from); err != nil {
			c.logger.Warn("what the master removed is not kept for changes made here", "oid", oid, "err", err)
		}
	}
	if !o.local {
		_ = unix.Unlink(bytes)
	}
	return changes, nil
}

// Fill is a listing on its way from the master: records that are applied
// meanwhile are kept, so that the listing can be brought up to them.
type Fill struct {
	c    *Cache
	done bool
}

// BeginFill is called before a listing is asked for. End must follow.
func (c *Cache) BeginFill() *Fill {
	c.amu.Lock()
	defer c.amu.Unlock()
	c.fills++
	return &Fill{c: c}
}

// End gives the records up. It may be called twice.
func (f *Fill) End() {
	f.c.amu.Lock()
	defer f.c.amu.Unlock()
	if f.done {
		return
	}
	f.done = true
	if f.c.fills--; f.c.fills == 0 {
		f.c.recent = nil
	}
}

// Apply puts entries into the cache: a folder first and then what is in it,
// as of pos, which the caller has Reached. With whole the entries are all there
// are and the folder becomes Listed; without, only the first counts. ESTALE when
// the folder was removed meanwhile.
func (f *Fill) Apply(pos kml.Position, entries []SnapshotEntry, whole bool) error {
	c := f.c
	if len(entries) == 0 {
		return syscall.ESTALE
	}
	c.amu.Lock()
	defer c.amu.Unlock()
	if at, _ := c.Cursor(); at < pos {
		return fmt.Errorf("listing of %v at %v: %w", pos, at, syscall.EAGAIN)
	}
	return c.index.Load().Update(func(b *Batch) error {
		top := entries[0].Record
		if err := c.putEntry(b, pos, entries[0], true); err != nil {
			return err
		}
		if whole {
			if err := c.putNames(b, pos, top.OID, entries[1:]); err != nil {
				return err
			}
		}
		for _, r := range c.recent {
			if r.Pos <= pos {
				continue
			}
			if _, err := applyRecord(b, r, true); err != nil {
				return err
			}
		}
		return nil
	})
}

// putNames makes the names in a folder those of the entries.
func (c *Cache) putNames(b *Batch, pos kml.Position, folder kml.OID, entries []SnapshotEntry) error {
	there := make(map[string]bool, len(entries))
	for _, e := range entries {
		there[e.Record.Name] = true
	}
	for after := ""; ; {
		es := b.Children(folder, after, 1024)
		if len(es) == 0 {
			break
		}
		for _, e := range es {
			if !there[e.Name] && e.Known <= pos {
				b.DelName(Name{folder, e.Name}, pos)
			}
		}
		after = es[len(es)-1].Name
	}
	for _, e := range entries {
		if err := c.putEntry(b, pos, e, false); err != nil {
			return err
		}
		n := Name{folder, e.Record.Name}
		if _, known, ok := b.Child(n); ok && known > pos {
			continue
		}
		b.SetName(n, e.Record.OID, pos)
		if obj, err := b.Get(e.Record.OID); err == nil && obj.Attr.Nlink > 1 && obj.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
			b.SetLink(e.Record.OID, n, true)
		}
	}
	obj, err := b.Get(folder)
	if err != nil {
		return err
	}
	n := *obj
	n.Listed = true
	return b.Put(&n)
}

// putEntry brings one object up to pos. What is known as of later stays.
func (c *Cache) putEntry(b *Batch, pos kml.Position, e SnapshotEntry, top bool) error {
	r := e.Record
	old, err := b.Get(r.OID)
	if err == nil && old.Known >= pos {
		return nil
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	n := Object{OID: r.OID}
	if err == nil {
		n = *old
	}
	if r.Op == kml.OpLink { // a further name; the object came before
		if err == nil {
			return nil
		}
		return fmt.Errorf("listing: %q links to an object that is not in it: %w", r.Name, syscall.EIO)
	}
	n.Attr, n.Target, n.Xattrs, n.Ctime = r.Attr, r.Target, r.Xattrs, r.Time
	n.Version, n.Known = e.Version, pos
	if n.DataVersion != e.DataVersion {
		n.DataVersion, n.Whole, n.Present, n.Content = e.DataVersion, false, nil, 0
		n.DataOrigin = kml.Origin{}
		c.takeUp(&n)
	}
	if top || n.Parent == 0 {
		n.Parent, n.Name = r.Parent, r.Name
	}
	if r.OID == kml.RootOID {
		n.Parent, n.Name = kml.RootOID, ""
	}
	return b.Put(&n)
}

// Reset forgets everything that is not of this host's making: the master's
// history is another one, or the cache has fallen too far behind. Bytes written
// here stay; so do those of versions, which are used again where the master turns
// out to have the same. The cursor goes to pos, from where the caller follows.
func (c *Cache) Reset(pos kml.Position, crc uint32) error {
	c.amu.Lock()
	defer c.amu.Unlock()
	old := c.index.Load()
	changes := c.everything(old)
	if err := c.keepFiles(old); err != nil {
		return err
	}
	fault.Point("cache.kept")
	path := c.state.Path("index.db")
	if err := os.Remove(path); err != nil {
		return err
	}
	x, err := OpenIndex(path, c.indexOptions())
	if err != nil {
		return err
	}
	if err := x.Update(func(b *Batch) error {
		b.SetCursor(pos)
		b.SetCursorCRC(crc)
		return nil
	}); err != nil {
		return err
	}
	if err := x.Flush(); err != nil {
		return err
	}
	c.index.Store(x)
	c.retired = append(c.retired, old)
	c.objects.each(func(o *cacheObject) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.forget()
		if !o.local {
			was, _ := old.Get(o.oid)
			o.leave(was)
		}
	})
	c.recent = nil
	for _, ch := range changes {
		c.watch.emit(ch)
	}
	c.advance(pos, crc)
	return nil
}

// everything is a change of all that is known.
func (c *Cache) everything(x *Index) []Change {
	var out []Change
	todo := []kml.OID{kml.RootOID}
	for len(todo) > 0 {
		oid := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		out = append(out, Change{Kind: ChangeAttr | ChangeData, OID: oid})
		for after := ""; ; {
			es, err := x.Children(oid, after, 1024)
			if err != nil || len(es) == 0 {
				break
			}
			for _, e := range es {
				out = append(out, Change{Kind: ChangeEntry, Parent: oid, Name: e.Name, OID: e.OID})
				todo = append(todo, e.OID)
			}
			after = es[len(es)-1].Name
		}
	}
	return out
}

// each calls f for every object in use.
func (t *cacheObjects) each(f func(o *cacheObject)) {
	t.mu.Lock()
	list := make([]*cacheObject, 0, len(t.m))
	for _, o := range t.m {
		o.refs++
		list = append(list, o)
	}
	t.mu.Unlock()
	for _, o := range list {
		f(o)
		t.release(o)
	}
}

// object is what the cache knows of oid, found at the master when it does not.
func (c *Cache) object(ctx context.Context, oid kml.OID) (*Object, error) {
	for range maxCacheRetry {
		obj, err := c.get(oid)
		if !errors.Is(err, ErrNotFound) {
			return obj, err
		}
		if o := c.objects.find(oid); o != nil {
			o.mu.RLock()
			gone := o.gone
			o.mu.RUnlock()
			c.objects.release(o)
			if gone != nil {
				return gone, nil
			}
		}
		if c.removed(oid) {
			return nil, syscall.ESTALE
		}
		if err := c.up.Find(ctx, oid); err != nil {
			return nil, err
		}
	}
	return nil, syscall.ESTALE
}
