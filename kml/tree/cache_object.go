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
	refs int // guarded by cacheObjects.mu

	mu     sync.RWMutex
	local  bool         // OID.local has the bytes, and is ahead of the master
	dirty  bool         // written since the last cut
	slots  []int        // of the dirty table
	base   kml.Base     // the version that was here when it became local
	wait   []*Store     // cut, and not come back yet
	gen    uint64       // counts replacements of the inode that all handles follow
	era    *era         // of contents that readers keep: another one with a newer version
	append sync.Mutex   // one O_APPEND write at a time
	vf     *versionFile // of the present version
	gone   *Object      // what it was when it lost its last name
	names  []Name       // what it was called when it became local
	first  int64        // when it became dirty, nanoseconds
	uid    uint32
	gid    uint32
	door   Door
	writes atomic.Uint64
	last   atomic.Int64 // last write, nanoseconds
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

// Store is a change of contents on its way to the master. Path is a picture of
// the bytes that nobody writes to any more; "" when there are none. The taker
// owns the file.
type Store struct {
	Record *kml.Record // without origin and digest
	Path   string
	Prev   *Store // the store before it, as long as that had not come back: its base
	Names  []Name // of the object
	Door   Door

	obj   *cacheObject
	slots []int
	seq   uint64 // guarded by obj.mu; 0 until Frozen
}

// Seq is the number the store was frozen under, or 0.
func (s *Store) Seq() uint64 {
	s.obj.mu.RLock()
	defer s.obj.mu.RUnlock()
	return s.seq
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
	if err := c.makeLocalFile(o, obj.DataVersion, trunc); err != nil {
		if !o.dirty {
			c.dirty.Clear(o.slots[len(o.slots)-1])
			o.slots = o.slots[:len(o.slots)-1]
		}
		return true, err
	}
	if !o.local {
		o.local, o.base, o.names = true, kml.Base{Pos: e.base}, c.Names(o.oid)
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
	obj, err := c.index.Load().Get(o.oid)
	if errors.Is(err, ErrNotFound) {
		if o.gone != nil {
			return o.gone, nil
		}
		return nil, syscall.ESTALE
	}
	return obj, err
}

// cut makes a store of what was written to o since the last one; nil when
// nothing was.
func (c *Cache) cut(o *cacheObject) (*Store, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.dirty {
		if n := len(o.wait); n > 0 {
			return o.wait[n-1], nil
		}
		return nil, nil
	}
	if o.gone != nil && len(o.names) == 0 { // removed here: nobody can ask for the bytes
		c.dropLocalLocked(o)
		return nil, nil
	}
	local := c.localPath(o.oid)
	var st unix.Stat_t
	if err := unix.Stat(local, &st); err != nil {
		return nil, err
	}
	s := &Store{obj: o, slots: o.slots, Names: o.names, Door: o.door}
	s.Record = &kml.Record{Op: kml.OpStore, Time: c.opt.Now().UnixNano(), UID: o.uid, GID: o.gid, OID: o.oid, Base: o.base,
		Attr: kml.Attr{Size: uint64(st.Size), Mtime: st.Mtim.Nano()}}
	if n := len(o.wait); n > 0 {
		s.Prev = o.wait[n-1]
	}
	if st.Size > 0 {
		s.Path = c.state.Path("stage", fmt.Sprintf("cut-%016x-%d", uint64(o.oid), o.writes.Add(1)))
		if err := c.picture(local, s.Path); err != nil {
			return nil, err
		}
	}
	o.dirty, o.slots = false, nil
	o.last.Store(0)
	o.wait = append(o.wait, s)
	c.up.Queue(s)
	return s, nil
}

// Frozen tells the cache that s stands in the outbox under seq: the dirty table
// can let it go.
func (c *Cache) Frozen(s *Store, seq uint64) {
	s.obj.mu.Lock()
	s.seq = seq
	slots := s.slots
	s.slots = nil
	s.obj.mu.Unlock()
	for _, slot := range slots {
		c.dirty.Clear(slot)
	}
}

// Taken tells the cache that s stood in the outbox when the cache was opened.
func (c *Cache) Taken(r *kml.Record) *Store {
	o := c.objects.acquire(r.OID)
	defer c.objects.release(o)
	o.mu.Lock()
	defer o.mu.Unlock()
	s := &Store{obj: o, Record: r, seq: r.Origin.Seq, Names: c.Names(r.OID)}
	var st unix.Stat_t
	if unix.Stat(c.localPath(r.OID), &st) != nil {
		return s // it came back before: the bytes are the master's
	}
	if !o.local {
		o.local, o.names, o.base = true, s.Names, r.Base
		c.objects.acquire(r.OID)
	}
	o.wait = append(o.wait, s)
	slices.SortFunc(o.wait, func(a, b *Store) int { return int(int64(a.seq - b.seq)) })
	return s
}

// Drop tells the cache that the master will not take s: what is left of the
// object's bytes is the master's, unless it was written to again.
func (c *Cache) Drop(s *Store) {
	c.amu.Lock()
	defer c.amu.Unlock()
	o := s.obj
	defer c.objects.release(c.objects.acquire(o.oid))
	o.mu.Lock()
	o.wait = slices.DeleteFunc(o.wait, func(w *Store) bool { return w == s })
	gone := o.local && o.settled()
	var err error
	if gone {
		c.dropLocalLocked(o)
		err = c.renewContent(o.oid)
	}
	slots := s.slots
	s.slots = nil
	o.mu.Unlock()
	for _, slot := range slots {
		c.dirty.Clear(slot)
	}
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
		}
		o.local, o.dirty, o.base, o.uid, o.gid = true, true, kml.Base{Pos: e.base}, e.uid, e.gid
		o.names = c.Names(e.oid)
		o.slots = append(o.slots, slot)
		o.first = c.opt.Now().UnixNano()
		o.last.Store(o.first)
		c.kickCutter()
	}
	return nil
}
