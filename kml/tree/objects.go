package tree

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// objects holds what is shared by all handles of one object, while there are
// any.
type objects struct {
	mu sync.Mutex
	m  map[kml.OID]*openObject
}

// openObject is an object with handles. Writers hold mu for reading, a cut of
// its store and a replacement of its inode hold it for writing, so that a
// store never splits a write.
type openObject struct {
	oid kml.OID

	// guarded by objects.mu
	refs    int
	handles map[*handle]struct{}

	mu     sync.RWMutex
	writes atomic.Uint64 // counts every change of contents, before it is made
	// gen is a sequence lock: two more with every replacement of the inode, odd
	// while one is under way, from before the first name gets the new inode until
	// log and index know of it. mu is held for writing meanwhile.
	gen atomic.Uint64

	dmu     sync.Mutex // guards what follows; taken under mu
	dirty   atomic.Bool
	slot    int
	extents extentSet
	first   int64 // when the object became open-dirty, nanoseconds of the tree's clock
	last    int64 // last write
	uid     uint32
	gid     uint32
	door    Door
}

// acquire returns the shared state of oid, to be given back with release.
func (s *objects) acquire(oid kml.OID) *openObject {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.m[oid]
	if o == nil {
		if s.m == nil {
			s.m = make(map[kml.OID]*openObject)
		}
		o = &openObject{oid: oid, handles: make(map[*handle]struct{})}
		s.m[oid] = o
	}
	o.refs++
	return o
}

// find is acquire for an object that has handles; nil when it has none.
func (s *objects) find(oid kml.OID) *openObject {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.m[oid]
	if o != nil {
		o.refs++
	}
	return o
}

func (s *objects) release(o *openObject) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.refs--; o.refs == 0 {
		delete(s.m, o.oid)
	}
}

// still waits until no replacement is under way and returns gen. The caller
// holds no lock of the tree.
func (o *openObject) still() uint64 {
	for {
		gen := o.gen.Load()
		if gen&1 == 0 {
			return gen
		}
		o.mu.RLock() // the replacement ends before it gives mu back
		gen = o.gen.Load()
		o.mu.RUnlock()
		if gen&1 == 0 {
			return gen
		}
	}
}

// replacing begins a replacement of o's inode, whose contents were of version
// v. The caller holds o.mu for writing until it has called done, which takes
// whether any name has the new inode.
func (s *objects) replacing(o *openObject, v kml.Position) (done func(replaced bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for h := range o.handles {
		if h.gen.Load() == o.gen.Load() {
			h.left.Store(uint64(v))
		}
	}
	o.gen.Add(1)
	return func(replaced bool) {
		if replaced {
			o.gen.Add(1)
		} else {
			o.gen.Add(^uint64(0)) // what handles have is still the object's
		}
	}
}

// dup is a descriptor of oid's present inode, from one of its handles.
func (s *objects) dup(oid kml.OID) (fd int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.m[oid]
	if o == nil {
		return -1, false
	}
	for h := range o.handles {
		if h.gen.Load() == o.gen.Load() {
			fd, err := unix.FcntlInt(uintptr(h.fd.Load()), unix.F_DUPFD_CLOEXEC, 0)
			return fd, err == nil
		}
	}
	return -1, false
}

// borrow is a descriptor of o's present inode, a handle's own, that stays open
// until it is given back. ok is false when no handle can lend one now.
func (s *objects) borrow(o *openObject) (fd int, back func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for h := range o.handles {
		// Who holds it for writing is about to close it, or to take another.
		if h.gen.Load() == o.gen.Load() && h.mu.TryRLock() {
			return int(h.fd.Load()), h.mu.RUnlock, true
		}
	}
	return -1, nil, false
}

// dataVersion is what an open-dirty object answers instead of its position.
func (s *objects) dataVersion(oid kml.OID) (v uint64, dirty bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.m[oid]
	if o == nil || !o.dirty.Load() {
		return 0, false
	}
	return DataDirty | o.writes.Load(), true
}

// dirtyList acquires every open-dirty object.
func (s *objects) dirtyList() []*openObject {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*openObject
	for _, o := range s.m {
		if o.dirty.Load() {
			o.refs++
			out = append(out, o)
		}
	}
	return out
}

// willWrite marks o open-dirty before its contents change: once per store the
// dirty table learns of it, so that a killed process loses no change. The
// caller holds o.mu for reading.
func (t *Tree) willWrite(o *openObject, c *Cred, door Door) error {
	if !o.dirty.Load() {
		if err := t.markDirty(o); err != nil {
			return err
		}
	}
	o.writes.Add(1)
	now := t.now().UnixNano()
	o.dmu.Lock()
	o.last = now
	o.uid, o.gid = t.author(c)
	o.door = door
	o.dmu.Unlock()
	return nil
}

func (t *Tree) markDirty(o *openObject) error {
	o.dmu.Lock()
	defer o.dmu.Unlock()
	if o.dirty.Load() {
		return nil
	}
	if err := t.broken(); err != nil {
		return err
	}
	slot, err := t.dirty.Put(t.ctx, binary.LittleEndian.AppendUint64(nil, uint64(o.oid)))
	if err != nil {
		return err
	}
	fault.Point("tree.dirty")
	o.slot, o.first = slot, t.now().UnixNano()
	o.last = o.first // the cutter may look before the write is noted
	o.dirty.Store(true)
	t.kickCutter()
	return nil
}

// cut makes a store of what was written to o since the last one.
func (t *Tree) cut(o *openObject) error {
	if !o.dirty.Load() {
		return nil
	}
	// A change of attributes and the store that has its time go one by one.
	defer t.objs.lock(o.oid).unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	return t.cutLocked(o)
}

// cutLocked is cut for a caller who holds the object's lock, and o.mu for writing.
func (t *Tree) cutLocked(o *openObject) error {
	if !o.dirty.Load() {
		return nil
	}
	fd, back, ok := t.objects.borrow(o)
	if ok {
		defer back()
	} else {
		if fd, ok = t.objects.dup(o.oid); !ok {
			return nil // no handle on the present inode: whoever replaced it has cut it
		}
		defer unix.Close(fd)
	}
	var st unix.Statx_t
	if err := statAt(fd, "", &st); err != nil {
		return err
	}
	r := t.record(nil, kml.OpStore)
	r.OID, r.UID, r.GID = o.oid, o.uid, o.gid
	r.Attr = kml.Attr{Size: st.Size, Mtime: nsOf(st.Mtime)}
	r.Extents = o.extents.clip(st.Size)
	obj, err := t.index.Get(o.oid)
	if err == nil {
		r.Base.Pos = obj.DataVersion
	}
	res, err := t.reserve(r)
	if err != nil {
		return err
	}
	defer res.Release()
	m := mutation{rec: r, door: o.door, res: &res, index: func(b *Batch) error { return noteChange(b, r.OID, &st) }}
	if err := t.journal(m); err != nil {
		return err
	}
	fault.Point("tree.store")
	t.dirty.Clear(o.slot)
	o.extents = extentSet{}
	o.dirty.Store(false)
	if obj == nil || changed(obj.Attr, kmlAttr(&st))&^kml.MaskMtime == 0 {
		return nil
	}
	// Mode or owner were changed behind the tree's back, or by the kernel, which
	// takes set-id bits at a write.
	if obj, err = t.index.Get(o.oid); err != nil {
		return ignore(err, ErrNotFound)
	}
	return t.foreignAttrs(t.ctx, place{fd: fd}, obj, &st, nil)
}

// dirtyOID reads an entry of the dirty table.
func dirtyOID(b []byte) (kml.OID, error) {
	if len(b) != 8 {
		return 0, fmt.Errorf("dirty: an entry of %d bytes", len(b))
	}
	return kml.OID(binary.LittleEndian.Uint64(b)), nil
}
