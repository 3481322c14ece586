package tree

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

func (s source) site(id kml.SiteID) siteState {
	for _, l := range s.layers {
		if st, ok := l.sites[id]; ok {
			return st
		}
	}
	b := s.x.value(s.r, buckets.site, key64(uint64(id)))
	if len(b) != 24 {
		return siteState{}
	}
	return siteState{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])}
}

// site is what the log has seen of a site.
func (x *Index) site(id kml.SiteID) (st siteState) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, l := range x.layers {
		if st, ok := l.sites[id]; ok {
			return st
		}
	}
	st, ok := x.clean.site(id)
	if ok {
		return st
	}
	if x.look(func(r *reader) error {
		st = source{x: x, r: r}.site(id)
		return nil
	}) == nil {
		x.clean.keepSite(id, st)
	}
	return st
}

func (s source) origin(o kml.Origin) (kml.Position, bool) {
	for _, l := range s.layers {
		if p, ok := l.origins[o]; ok {
			return p, true
		}
	}
	b := s.x.value(s.r, buckets.origin, key64(uint64(o.Site), o.Seq))
	if len(b) != 8 {
		return 0, false
	}
	return kml.Position(binary.BigEndian.Uint64(b)), true
}

// pendingSize is how many changes stand in memory. The caller holds mu.
func (x *Index) pendingSize() int {
	n := 0
	for _, l := range x.layers {
		n += l.size
	}
	return n
}

func (x *Index) wakeFlusher() {
	select {
	case x.kick <- struct{}{}:
	default:
	}
}

// flusher writes what stands in memory to the file, when it is much or old.
func (x *Index) flusher() {
	defer close(x.done)
	tick := time.NewTicker(x.opt.FlushEvery)
	defer tick.Stop()
	for {
		late := false
		select {
		case <-x.stop:
			return
		case <-x.kick:
		case <-tick.C:
			late = true
		}
		if err := x.flush(late); err != nil {
			x.logger.Warn("index not written; it is tried again, and would be made again from the log", "err", err)
		}
	}
}

// Flush writes all changes made so far to the file, in one transaction with
// their cursor; less what is not firm yet, which waits for a commit (see
// IndexOptions.Firm).
func (x *Index) Flush() error { return x.flush(true) }

// flush is Flush; without all the next commit need not bring what waits for it,
// unless that is much: who commits all the time would write the file as often.
func (x *Index) flush(all bool) error {
	x.fmu.Lock()
	defer x.fmu.Unlock()
	old := x.due(all)
	if len(old) == 0 {
		return nil
	}
	if err := x.readers.close(); err != nil {
		return err
	}
	err := x.update(func(tx *bolt.Tx) error {
		if x.opt.failFlush != nil {
			if err := x.opt.failFlush(); err != nil {
				return err
			}
		}
		if err := fault.Err("tree.flush"); err != nil {
			return err
		}
		if x.opt.Before != nil {
			if err := x.opt.Before(old[0].cursor); err != nil {
				return err
			}
		}
		state, err := stateOf(tx)
		if err != nil {
			return err
		}
		w := &writer{tx: tx, state: state}
		for i := len(old) - 1; i >= 0; i-- {
			old[i].write(w)
		}
		w.state.cursor, w.state.crc = old[0].cursor, old[0].crc
		fault.Point("tree.flush.begun")
		return cmp.Or(w.err, w.state.put(tx))
	})
	fault.Point("tree.flush")
	x.mu.Lock()
	defer x.mu.Unlock()
	x.readers.reopen()
	x.err = err
	if err == nil {
		x.flushed = old[0].cursor
		x.clean.replace(old)
		x.layers = x.layers[: len(x.layers)-len(old) : len(x.layers)-len(old)]
	}
	x.room.Broadcast()
	return err
}

// Flushed is the cursor of the last state that was written to the file.
func (x *Index) Flushed() kml.Position {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.flushed
}

// due takes what may go to the file. When memory is full that is everything:
// changes then wait for this flush with locks held that a commit needs.
func (x *Index) due(all bool) []*overlay {
	firm := x.firm()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.pendingSize() >= x.behind()*x.opt.FlushSize && x.unfirm(firm) == x.pendingSize() {
		x.logger.Warn("index gets ahead of what is durable: changes come faster than they can be committed")
		firm = math.MaxUint64
	}
	if top := x.layers[0]; top.size > 0 || top.cursor != x.fileCursor() {
		if top.cursor <= firm {
			x.freeze()
		} else if all || x.pendingSize() >= x.opt.FlushSize {
			x.waiting = true
		}
	}
	n := 1
	for n < len(x.layers) && x.layers[n].cursor > firm {
		n++
	}
	return x.layers[n:]
}

// firm is the position up to which changes may go to the file.
func (x *Index) firm() kml.Position {
	if x.opt.Firm == nil {
		return math.MaxUint64
	}
	return x.opt.Firm()
}

// freeze puts an empty overlay on top. The caller holds mu.
func (x *Index) freeze() {
	x.layers = append([]*overlay{x.layers[0].above()}, x.layers...)
	x.waiting = false
}

// unfirm is how many changes stand in memory that are behind firm. The caller
// holds mu.
func (x *Index) unfirm(firm kml.Position) (n int) {
	for _, l := range x.layers {
		if l.cursor > firm {
			n += l.size
		}
	}
	return n
}

// Mark is called when a commit begins that covers all changes made so far: what
// comes later is kept apart from them, if they wait to be written.
func (x *Index) Mark() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.waiting && x.layers[0].size > 0 {
		x.freeze()
	}
}

// Firmer is called when the position that Firm gives has moved.
func (x *Index) Firmer() {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if len(x.layers) > 1 {
		x.wakeFlusher()
	}
}

// Pressed reports whether so much stands in memory that waits for a commit that
// one should be made.
func (x *Index) Pressed() bool {
	firm := x.firm()
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.unfirm(firm) >= x.behind()/2*x.opt.FlushSize
}

// fileCursor is the cursor of the newest state that is on its way or written; an
// idle index is not written again and again. The caller holds mu.
func (x *Index) fileCursor() kml.Position {
	if len(x.layers) > 1 {
		return x.layers[1].cursor
	}
	return x.flushed
}

// fileState is what the file says of itself.
type fileState struct {
	cursor kml.Position // it is as of here
	crc    uint32       // see SetCursorCRC
	n, sum uint64       // of its entries: how many, and their CRCs added up
}

var stateKey = []byte("state")

func stateOf(tx *bolt.Tx) (f fileState, err error) {
	b := tx.Bucket(buckets.meta).Get(stateKey)
	if b == nil {
		return f, nil // a new file
	}
	b, ok := sealed(stateKey, b)
	if !ok || len(b) != 28 {
		return f, errSeal
	}
	be := binary.BigEndian
	return fileState{be64(b), be.Uint32(b[24:]), be.Uint64(b[8:]), be.Uint64(b[16:])}, nil
}

func be64(b []byte) kml.Position { return kml.Position(binary.BigEndian.Uint64(b)) }

func (f fileState) put(tx *bolt.Tx) error {
	b := binary.BigEndian.AppendUint32(key64(uint64(f.cursor), f.n, f.sum), f.crc)
	return tx.Bucket(buckets.meta).Put(stateKey, seal(stateKey, b))
}

func (f *fileState) count(sealed []byte) {
	f.n++
	f.sum += uint64(crcOf(sealed))
}

func (f *fileState) uncount(sealed []byte) {
	f.n--
	f.sum -= uint64(crcOf(sealed))
}

// writer puts changes into the file, and keeps count.
type writer struct {
	tx    *bolt.Tx
	state fileState
	todo  []entry
	err   error
}

// entry is what becomes of a key; a nil value deletes it.
type entry struct{ k, v []byte }

func (w *writer) put(k, v []byte) { w.todo = append(w.todo, entry{k, seal(k, v)}) }

func (w *writer) del(k []byte) { w.todo = append(w.todo, entry{k: k}) }

// into writes what was put and deleted into a bucket. In the order of the keys:
// bbolt keeps what a transaction adds to a page in one row until it ends, and
// would move half of that aside for every key.
func (w *writer) into(bucket []byte) {
	slices.SortFunc(w.todo, func(x, y entry) int { return bytes.Compare(x.k, y.k) })
	b := w.tx.Bucket(bucket)
	if string(bucket) == string(buckets.obj) || string(bucket) == string(buckets.origin) {
		b.FillPercent = 0.9 // new keys are the highest
	}
	for _, e := range w.todo {
		old := b.Get(e.k)
		if old != nil {
			w.state.uncount(old)
		}
		switch {
		case w.err != nil:
		case e.v != nil:
			w.state.count(e.v)
			w.err = b.Put(e.k, e.v)
		case old != nil:
			w.err = b.Delete(e.k)
		}
	}
	clear(w.todo)
	w.todo = w.todo[:0]
}

// write puts an overlay into the file.
func (o *overlay) write(w *writer) {
	for oid, obj := range o.objs {
		if obj == nil {
			w.del(key64(uint64(oid)))
		} else {
			w.put(key64(uint64(oid)), obj.encode())
		}
	}
	w.into(buckets.obj)
	for p, m := range o.names {
		for n, v := range m {
			if v.oid == 0 {
				w.del(nameKey(Name{p, n}))
			} else {
				w.put(nameKey(Name{p, n}), key64(uint64(v.oid), uint64(v.known)))
			}
		}
	}
	w.into(buckets.name)
	for oid, m := range o.links {
		for n, there := range m {
			if there {
				w.put(linkKey(oid, n), nil)
			} else {
				w.del(linkKey(oid, n))
			}
		}
	}
	w.into(buckets.link)
	for ino, oid := range o.inos {
		if oid == 0 {
			w.del(key64(ino))
		} else {
			w.put(key64(ino), key64(uint64(oid)))
		}
	}
	w.into(buckets.ino)
	for org, p := range o.origins {
		w.put(key64(uint64(org.Site), org.Seq), key64(uint64(p)))
	}
	w.into(buckets.origin)
	for id, st := range o.sites {
		w.put(key64(uint64(id)), key64(st.lastSeq, st.maxCounter, st.forgotten))
	}
	w.into(buckets.site)
	for id, st := range o.sites {
		w.forget(id, st.forgotten)
	}
}

// forget drops the outcomes a site has acknowledged.
func (w *writer) forget(id kml.SiteID, upTo uint64) {
	c := w.tx.Bucket(buckets.origin).Cursor()
	prefix := key64(uint64(id))
	for k, v := c.Seek(prefix); w.err == nil && len(k) == 16 && string(k[:8]) == string(prefix) && binary.BigEndian.Uint64(k[8:]) <= upTo; k, v = c.Seek(prefix) {
		w.state.uncount(v)
		w.err = c.Delete()
	}
}

// Close writes what stands in memory and closes the file. It may be called
// twice.
func (x *Index) Close() error {
	x.once.Do(func() {
		close(x.stop)
		<-x.done
		err := x.Flush()
		x.mu.Lock()
		// Who looks something up holds mu, so all have ended, too.
		x.err = errors.Join(err, x.readers.close(), x.db.Close())
		x.mu.Unlock()
	})
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.err
}
