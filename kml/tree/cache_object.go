package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/local"
)

// cacheObjects holds what is shared by the handles of an object, and what was
// written here and has not come back.
type cacheObjects struct {
	mu sync.Mutex
	m  map[kml.OID]*cacheObject
}

// cacheObject is an object in use. Writers hold mu for reading; a cut of its
// store, and any change of which file holds its bytes, hold it for writing.
type cacheObject struct {
	oid  kml.OID
	refs int // guarded by cacheObjects.mu, as handles are
	// handles are those of the references that are open files.
	handles map[*cacheHandle]struct{}

	mu      sync.RWMutex
	local   bool           // OID.local has the bytes, and is ahead of the master
	dirty   bool           // written since the last cut
	slots   []int          // of the dirty table
	base    kml.Base       // the version that was here when it became local
	after   uint64         // or the change in the local log that made it
	wait    []*local.Entry // stores cut, and not come back yet
	gen     uint64         // counts replacements of the inode that all handles follow
	era     *era           // of contents that readers keep: another one with a newer version
	append  sync.Mutex     // one O_APPEND write at a time
	vf      *versionFile   // of the present version
	gone    *Object        // what it was when it lost its last name
	removed bool           // that was here
	first   int64          // when it became dirty, nanoseconds
	uid     uint32
	gid     uint32
	writes  atomic.Uint64
	last    atomic.Int64 // last write, nanoseconds
}

// era is how long readers see one file: from when contents came from the master
// until others' replace them. What is written here belongs to it.
type era struct {
	left atomic.Pointer[Object] // what the object was at its end; nil when only the file tells
}

// leave ends o's era. The caller holds o.mu for writing.
func (o *cacheObject) leave(was *Object) {
	o.era.left.Store(was)
	o.era = new(era)
}

// content is the Attr.Content of an object in a cache.
func (o *Object) content() uint64 {
	if o.Content != 0 {
		return o.Content
	}
	return uint64(o.DataVersion)
}

func (t *cacheObjects) acquire(oid kml.OID) *cacheObject {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.m[oid]
	if o == nil {
		if t.m == nil {
			t.m = make(map[kml.OID]*cacheObject)
		}
		o = &cacheObject{oid: oid, era: new(era)}
		t.m[oid] = o
	}
	o.refs++
	return o
}

// attach makes h a handle of an object.
func (t *cacheObjects) attach(h *cacheHandle, oid kml.OID) {
	o := t.acquire(oid)
	t.mu.Lock()
	defer t.mu.Unlock()
	o.add(h)
}

// add counts a handle in; the caller holds t.mu and has a reference for it.
func (o *cacheObject) add(h *cacheHandle) {
	if o.handles == nil {
		o.handles = make(map[*cacheHandle]struct{})
	}
	o.handles[h] = struct{}{}
	h.o.Store(o)
}

// detach gives the reference of a handle back.
func (t *cacheObjects) detach(h *cacheHandle) {
	t.mu.Lock()
	o := h.o.Load()
	delete(o.handles, h)
	t.mu.Unlock()
	t.release(o)
}

// pass makes the handles of one object those of another. The caller holds the mu
// of both for writing, and a reference to each.
func (t *cacheObjects) pass(from, to *cacheObject) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for h := range from.handles {
		from.refs--
		to.refs++
		to.add(h)
	}
	clear(from.handles)
}

// find is acquire for an object in use; nil when it is not.
func (t *cacheObjects) find(oid kml.OID) *cacheObject {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.m[oid]
	if o != nil {
		o.refs++
	}
	return o
}

func (t *cacheObjects) release(o *cacheObject) {
	t.mu.Lock()
	o.refs--
	last := o.refs == 0
	if last {
		delete(t.m, o.oid)
	}
	t.mu.Unlock()
	if last && o.vf != nil { // nobody else can reach o
		o.vf.release()
		o.vf = nil
	}
}

func (t *cacheObjects) dirtyList() []*cacheObject {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*cacheObject
	for _, o := range t.m {
		if o.last.Load() != 0 {
			o.refs++
			out = append(out, o)
		}
	}
	return out
}

func (t *cacheObjects) closeAll() {
	t.mu.Lock()
	list := make([]*cacheObject, 0, len(t.m))
	for _, o := range t.m {
		list = append(list, o)
	}
	t.mu.Unlock()
	for _, o := range list {
		o.mu.Lock()
		if o.vf != nil {
			o.vf.release()
			o.vf = nil
		}
		o.mu.Unlock()
	}
}

// settled is true of an object whose bytes are the master's.
func (o *cacheObject) settled() bool { return !o.dirty && len(o.wait) == 0 }

// dirtyEntry is an entry of the dirty table.
type dirtyEntry struct {
	oid      kml.OID
	base     kml.Position
	uid, gid uint32
}

func (e dirtyEntry) encode() []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(e.oid))
	b = binary.LittleEndian.AppendUint64(b, uint64(e.base))
	b = binary.LittleEndian.AppendUint32(b, e.uid)
	return binary.LittleEndian.AppendUint32(b, e.gid)
}

func decodeDirty(b []byte) (dirtyEntry, error) {
	if len(b) != 24 {
		return dirtyEntry{}, fmt.Errorf("dirty: an entry of %d bytes", len(b))
	}
	le := binary.LittleEndian
	return dirtyEntry{kml.OID(le.Uint64(b)), kml.Position(le.Uint64(b[8:])), le.Uint32(b[16:]), le.Uint32(b[20:])}, nil
}

// makeDirty makes o local and open-dirty: the whole contents are here (unless
// trunc: then the file is empty afterwards), the dirty table knows of it, and
// the file is shared with no picture of an earlier store.
func (c *Cache) makeDirty(ctx context.Context, o *cacheObject, cred *Cred, trunc bool) error {
	for range maxCacheRetry {
		var v kml.Position
		if !trunc {
			var err error
			if v, err = c.bringWhole(ctx, o); err != nil {
				return err
			}
		}
		done, err := c.makeDirtyOnce(ctx, o, cred, trunc, v)
		if done || err != nil {
			return err
		}
	}
	return syscall.ESTALE
}

const maxCacheRetry = 16

func (c *Cache) makeDirtyOnce(ctx context.Context, o *cacheObject, cred *Cred, trunc bool, v kml.Position) (done bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.dirty && !trunc {
		return true, nil
	}
	obj, err := c.known(o)
	if err != nil {
		return true, err
	}
	if !o.local && !trunc && obj.DataVersion != v {
		return false, nil
	}
	e := dirtyEntry{oid: o.oid, base: obj.DataVersion}
	if o.local {
		e.base = o.base.Pos
	}
	e.uid, e.gid = cred.author()
	if !o.dirty {
		slot, err := c.dirty.Put(ctx, e.encode())
		if err != nil {
			return true, err
		}
		o.slots = append(o.slots, slot)
	}
	fault.Point("cache.dirty")
	if !o.local {
		c.keepBase(o, obj)
	}
	if err := c.makeLocalFile(o, obj.DataVersion, trunc); err != nil {
		if !o.dirty {
			c.dirty.Clear(o.slots[len(o.slots)-1])
			o.slots = o.slots[:len(o.slots)-1]
		}
		return true, err
	}
	if !o.local {
		o.local, o.base = true, kml.Base{Pos: e.base}
		c.view.mu.RLock()
		o.after = c.view.writtenBy(o.oid)
		c.view.mu.RUnlock()
		c.objects.acquire(o.oid) // kept as long as it is local
	}
	if !o.dirty {
		o.dirty, o.first = true, c.opt.Now().UnixNano()
		o.last.Store(o.first)
		c.kickCutter()
	}
	o.uid, o.gid = e.uid, e.gid
	return true, nil
}

// known is what the index holds of o, or what it was when it lost its last name.
func (c *Cache) known(o *cacheObject) (*Object, error) {
	obj, err := c.get(o.oid)
	if errors.Is(err, ErrNotFound) {
		if o.gone != nil {
			return o.gone, nil
		}
		return nil, syscall.ESTALE
	}
	return obj, err
}

// cut makes a store of what was written to o since the last one: it is in the
// local log, with a picture of the bytes, when cut returns. When nothing was
// written it is the last store on its way, or nil.
func (c *Cache) cut(o *cacheObject) (*local.Entry, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.dirty {
		if n := len(o.wait); n > 0 {
			return o.wait[n-1], nil
		}
		return nil, nil
	}
	if o.gone != nil && o.removed { // nobody can ask for the bytes
		c.dropLocalLocked(o)
		return nil, nil
	}
	path := c.localPath(o.oid)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, err
	}
	r := &kml.Record{Op: kml.OpStore, Time: c.opt.Now().UnixNano(), UID: o.uid, GID: o.gid, OID: o.oid, Base: o.base,
		Attr: kml.Attr{Size: uint64(st.Size), Mtime: st.Mtim.Nano()}}
	e := local.New(r)
	e.At, _ = c.Cursor()
	e.ID, e.After, e.Data = c.log.Reserve(), o.after, st.Size > 0
	defer c.log.Release(e.ID) // unless it is appended
	if n := len(o.wait); n > 0 {
		e.After = o.wait[n-1].ID
	}
	if e.Data {
		if err := c.picture(path, c.log.Path(e.ID)); err != nil {
			return nil, err
		}
	}
	fault.Point("cache.picture")
	if err := c.log.Append(e); err != nil {
		return nil, err
	}
	c.view.mu.Lock()
	c.view.add(e, r)
	c.view.mu.Unlock()
	slots := o.slots
	o.dirty, o.slots = false, nil
	o.last.Store(0)
	o.wait = append(o.wait, e)
	for _, slot := range slots {
		c.dirty.Clear(slot)
	}
	c.kickSync()
	c.up.Changed()
	return e, nil
}

// restoreLocal takes up what the last run left in the local log. What has come
// back since is in the index.
func (c *Cache) restoreLocal() error {
	for _, e := range c.log.Entries() {
		r := e.Rec()
		if r.Origin.Seq != 0 {
			if pos, ok := c.Origin(r.Origin); ok {
				e.SetBack(pos)
				continue
			}
		}
		c.view.add(e, r)
		if r.Op != kml.OpStore {
			continue
		}
		o := c.objects.acquire(r.OID)
		if len(o.wait) > 0 {
			c.objects.release(o) // one reference of being local
		} else {
			o.base, o.after = r.Base, e.After
		}
		o.wait = append(o.wait, e)
	}
	var errs []error
	c.objects.each(func(o *cacheObject) { errs = append(errs, c.restoreBytes(o)) })
	return errors.Join(errs...)
}

// restoreBytes makes the bytes of the last store on its way those of its object:
// they are, unless the index does not know any more that it came back.
func (c *Cache) restoreBytes(o *cacheObject) error {
	e, path := o.wait[len(o.wait)-1], c.localPath(o.oid)
	o.local = true
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil {
		return nil
	}
	from := c.log.Path(e.ID)
	if !e.Data {
		from = c.state.Path("stage", "empty")
		if err := os.WriteFile(from, nil, 0o600); err != nil {
			return err
		}
	}
	err := c.picture(from, path) // a write to either copies first
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		err = c.copyFile(from, path)
	}
	if errors.Is(err, os.ErrNotExist) {
		o.local = false // fetched again
		c.unkeep(o)
		return nil
	}
	return err
}

// drop tells the cache that the master will not take a store: what is left of
// the object's bytes is the master's, unless it was written to again: on rebase,
// when that is not zero. The caller holds amu.
func (c *Cache) drop(e *local.Entry, rebase kml.Base) {
	o := c.objects.acquire(e.Rec().OID)
	defer c.objects.release(o)
	o.mu.Lock()
	n := len(o.wait)
	o.wait = slices.DeleteFunc(o.wait, func(w *local.Entry) bool { return w == e })
	if rebase != (kml.Base{}) && len(o.wait) == 0 {
		o.base, o.after = rebase, 0
	}
	gone := o.local && n > 0 && o.settled()
	var err error
	if gone {
		c.dropLocalLocked(o)
		err = c.renewContent(o.oid)
	}
	o.mu.Unlock()
	if err != nil {
		c.logger.Warn("contents that the master refused may be seen until the file changes", "oid", o.oid, "err", err)
	}
	if gone {
		c.watch.emit(Change{Kind: ChangeData | ChangeAttr, OID: o.oid})
	}
}

// renewContent makes what the master has of an object other contents than those
// that were here, although its version may be one that was seen before.
func (c *Cache) renewContent(oid kml.OID) error {
	return c.index.Load().Update(func(b *Batch) error {
		obj, err := b.Get(oid)
		if err != nil {
			return ignore(err, ErrNotFound)
		}
		n := *obj
		n.Content = 1<<63 | uint64(c.opt.Now().UnixNano()) // no position has the top bit
		return b.Put(&n)
	})
}

// dropLocalLocked takes the bytes that were written here away. The caller holds
// o.mu and knows that o is in use.
func (c *Cache) dropLocalLocked(o *cacheObject) {
	_ = os.Remove(c.localPath(o.oid))
	for _, slot := range o.slots {
		c.dirty.Clear(slot)
	}
	o.slots, o.dirty = nil, false
	o.last.Store(0)
	if o.local {
		o.local = false
		o.leave(nil)
		c.unkeep(o)
	}
}

// unkeep gives back the reference of being local. The caller has another one.
func (c *Cache) unkeep(o *cacheObject) {
	c.objects.mu.Lock()
	o.refs--
	c.objects.mu.Unlock()
}

// restoreDirty takes up what was open-dirty when the last run ended.
func (c *Cache) restoreDirty() error {
	for slot, b := range c.dirty.All() {
		e, err := decodeDirty(b)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat(c.localPath(e.oid), &st); err != nil {
			c.dirty.Clear(slot) // killed before the first write
			continue
		}
		o := c.objects.acquire(e.oid)
		if o.local {
			c.objects.release(o)
		} else {
			c.restoreBase(o, e.base)
		}
		o.local, o.dirty, o.uid, o.gid = true, true, e.uid, e.gid
		o.slots = append(o.slots, slot)
		o.first = c.opt.Now().UnixNano()
		o.last.Store(o.first)
		c.kickCutter()
	}
	return nil
}

// restoreBase finds out what open-dirty bytes were written on: a change of this
// host that has not come back, the last one that did, or a version.
func (c *Cache) restoreBase(o *cacheObject, base kml.Position) {
	o.base, o.after = kml.Base{Pos: base}, c.view.writtenBy(o.oid)
	obj, err := c.index.Load().Get(o.oid)
	if err == nil && o.after == 0 && obj.DataOrigin.Site != 0 && obj.DataOrigin.Site == c.state.Fileset().Site {
		o.base = kml.Base{Pos: obj.DataVersion}
	}
}
