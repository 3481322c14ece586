package tree

import (
	"fmt"

	"github.com/mezzofs/mezzo/kml"
)

// Batch is one atomic change of an index. It reads its own writes. It belongs
// to one Update and to one goroutine.
type Batch struct {
	x   *Index
	own draft
}

// Update runs f, and makes its changes visible all at once, or none of them
// when f fails.
func (x *Index) Update(f func(*Batch) error) error {
	x.wmu.Lock()
	defer x.wmu.Unlock()
	if err := x.bounded(2 * x.behind()); err != nil {
		return err
	}
	b := &x.batch
	b.x = x
	x.mu.RLock()
	b.own.empty(x.layers[0].cursor, x.layers[0].crc)
	x.mu.RUnlock()
	if err := f(b); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	b.own.lay(x.layers[0])
	for x.pendingSize() >= x.opt.FlushSize {
		full := x.pendingSize() >= x.behind()*x.opt.FlushSize
		if full || !x.waiting { // else a commit comes first, and wakes it
			x.wakeFlusher()
		}
		if !full || x.err != nil {
			break
		}
		x.room.Wait() // the file cannot keep up: memory stays bounded
	}
	return nil
}

// maxBehind is how many flushes' worth of changes may stand in memory before
// changes wait for the file, or, while it cannot be written, are refused;
// maxUnfirm where a commit comes before a flush. A file or folder made is five
// changes, of some 100 bytes each.
const (
	maxBehind = 8
	maxUnfirm = 48
)

func (x *Index) behind() int {
	if x.opt.Firm != nil {
		return maxUnfirm
	}
	return maxBehind
}

// Room is nil while changes can be taken. When the file cannot be written, and
// memory holds as much as it may, it is the reason (ENOSPC); once the file can be
// written again so are changes.
func (x *Index) Room() error { return x.bounded(x.behind()) }

func (x *Index) bounded(flushes int) error {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.err == nil || x.pendingSize() < flushes*x.opt.FlushSize {
		return nil
	}
	return fmt.Errorf("index cannot be written: %w", x.err)
}

// read runs f on the batch's own changes over the index.
func (b *Batch) read(f func(s source) error) error {
	return b.x.read(func(s source) error {
		s.layers = append([]*overlay{b.own.full()}, s.layers...)
		return f(s)
	})
}

// Get is Index.Get.
func (b *Batch) Get(oid kml.OID) (o *Object, err error) {
	if o, ok := b.own.object(oid); ok {
		if o == nil {
			return nil, ErrNotFound
		}
		return o, nil
	}
	return b.x.Get(oid)
}

// Put adds or replaces an object, and finds it by its inode number from now on.
func (b *Batch) Put(o *Object) error {
	if o.OID == 0 {
		return fmt.Errorf("object without an oid: %w", kml.ErrInvalid)
	}
	old, err := b.Get(o.OID)
	if err == nil && old.Ino != 0 && old.Ino != o.Ino {
		b.dropIno(old.OID, old.Ino)
	}
	if o.Ino != 0 && (err != nil || old.Ino != o.Ino) {
		b.own.setIno(o.Ino, o.OID)
	}
	b.own.setObject(o.OID, o)
	return nil
}

// change changes an object in the hands of f, which is not to fail. What this
// Update has put is changed in place.
func (b *Batch) change(oid kml.OID, f func(o *Object)) error {
	o, own := b.own.object(oid)
	if own && o == nil {
		return ErrNotFound
	}
	if !own {
		old, err := b.x.Get(oid)
		if err != nil {
			return err
		}
		n := *old
		o = &n
	}
	ino := o.Ino
	f(o)
	if o.Ino != ino {
		if ino != 0 {
			b.dropIno(oid, ino)
		}
		if o.Ino != 0 {
			b.own.setIno(o.Ino, oid)
		}
	}
	if !own {
		b.own.setObject(oid, o)
	}
	return nil
}

// putNew is Put for an object that is in no index.
func (b *Batch) putNew(o *Object) {
	if o.Ino != 0 {
		b.own.setIno(o.Ino, o.OID)
	}
	b.own.setObject(o.OID, o)
}

// dropIno forgets an object's inode number, unless another has it by now.
func (b *Batch) dropIno(oid kml.OID, ino uint64) {
	has, ok := b.own.ino(ino)
	if !ok {
		has, ok = b.x.ByIno(ino)
	}
	if ok && has == oid {
		b.own.setIno(ino, 0)
	}
}

// Delete removes an object. Its names are the caller's business.
func (b *Batch) Delete(oid kml.OID) {
	if old, err := b.Get(oid); err == nil && old.Ino != 0 {
		b.dropIno(old.OID, old.Ino)
	}
	b.own.setObject(oid, nil)
}

// Child is Index.Child.
func (b *Batch) Child(n Name) (oid kml.OID, known kml.Position, ok bool) {
	if v, ok := b.own.name(n); ok {
		return v.oid, v.known, v.oid != 0
	}
	return b.x.Child(n.Parent, n.Name)
}

// Children is Index.Children.
func (b *Batch) Children(parent kml.OID, after string, max int) (es []NameEntry) {
	_ = b.read(func(s source) error {
		es = s.children(parent, after, max)
		return nil
	})
	return es
}

// Names is Index.Names.
func (b *Batch) Names(oid kml.OID) (out []Name) {
	_ = b.read(func(s source) error {
		out = s.namesOf(oid)
		return nil
	})
	return out
}

// SetName makes a name hold an object, as of a position.
func (b *Batch) SetName(n Name, oid kml.OID, known kml.Position) {
	b.own.setName(n, nameVal{oid, known})
}

// DelName empties a name, as of a position.
func (b *Batch) DelName(n Name, known kml.Position) { b.SetName(n, 0, known) }

// SetLink notes that an object has (or no longer has) one of several names.
func (b *Batch) SetLink(oid kml.OID, n Name, there bool) { b.own.setLink(oid, n, there) }

// SetCursor moves the index to a position of the log.
func (b *Batch) SetCursor(p kml.Position) { b.own.cursor = p }

// SetCursorCRC keeps the CRC of the log's chain at the cursor: by it a client
// finds out whether a log is still the one it followed.
func (b *Batch) SetCursorCRC(crc uint32) { b.own.crc = crc }

// Cursor is where the index is.
func (b *Batch) Cursor() kml.Position { return b.own.cursor }

func (b *Batch) site(id kml.SiteID) siteState {
	if st, ok := b.own.site(id); ok {
		return st
	}
	return b.x.site(id)
}

// Applied reports whether a record was applied, and where. For one whose
// outcome was forgotten since, the position is merely one not before it.
func (b *Batch) Applied(o kml.Origin) (pos kml.Position, ok bool) {
	if pos, ok = b.own.origin(o); !ok {
		_ = b.x.read(func(s source) error {
			pos, ok = s.origin(o)
			return nil
		})
	}
	if !ok && o.Seq != 0 && o.Seq <= b.site(o.Site).forgotten {
		return b.own.cursor, true
	}
	return pos, ok
}

// SetApplied notes where a record was applied, and the oid it made (or 0).
func (b *Batch) SetApplied(o kml.Origin, pos kml.Position, made kml.OID) {
	st := b.site(o.Site)
	changed := st
	changed.lastSeq = max(st.lastSeq, o.Seq)
	if made != 0 && made.Site() == o.Site {
		changed.maxCounter = max(st.maxCounter, made.Counter())
	}
	if changed != st {
		b.own.setSite(o.Site, changed)
	}
	if b.x.opt.Track == nil || b.x.opt.Track(o.Site) {
		b.own.setOrigin(o, pos)
	}
}

// LastSeq is the highest record number seen of a site.
func (b *Batch) LastSeq(id kml.SiteID) uint64 { return b.site(id).lastSeq }

// MaxCounter is the highest oid counter seen of a site.
func (b *Batch) MaxCounter(id kml.SiteID) uint64 { return b.site(id).maxCounter }

// Forget drops the outcomes of a site's records up to seq: the site knows them.
func (b *Batch) Forget(id kml.SiteID, seq uint64) error {
	st := b.site(id)
	if seq <= st.forgotten {
		return nil
	}
	st.forgotten = min(seq, st.lastSeq)
	b.own.setSite(id, st)
	return nil
}
