package tree

import (
	"encoding/binary"
	"errors"
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
	b := s.tx.Bucket(buckets.site).Get(key64(uint64(id)))
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
	if x.view(func(tx *bolt.Tx) error {
		st = source{tx: tx}.site(id)
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
	b := s.tx.Bucket(buckets.origin).Get(key64(uint64(o.Site), o.Seq))
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
		select {
		case <-x.stop:
			return
		case <-x.kick:
		case <-tick.C:
		}
		if err := x.Flush(); err != nil {
			x.logger.Warn("index not written; it is tried again, and would be made again from the log", "err", err)
		}
	}
}

// Flush writes all changes made so far to the file, in one transaction with
// their cursor.
func (x *Index) Flush() error {
	x.fmu.Lock()
	defer x.fmu.Unlock()
	x.mu.Lock()
	if x.layers[0].size > 0 || x.layers[0].cursor != x.fileCursor() {
		x.layers = append([]*overlay{x.layers[0].above()}, x.layers...)
	}
	old := x.layers[1:]
	x.mu.Unlock()
	if len(old) == 0 {
		return nil
	}
	err := x.update(func(tx *bolt.Tx) error {
		if x.opt.failFlush != nil {
			if err := x.opt.failFlush(); err != nil {
				return err
			}
		}
		if x.opt.Before != nil {
			if err := x.opt.Before(old[0].cursor); err != nil {
				return err
			}
		}
		for i := len(old) - 1; i >= 0; i-- {
			if err := old[i].write(tx); err != nil {
				return err
			}
		}
		meta := tx.Bucket(buckets.meta)
		if err := meta.Put([]byte("crc"), binary.BigEndian.AppendUint32(nil, old[0].crc)); err != nil {
			return err
		}
		return meta.Put([]byte("cursor"), key64(uint64(old[0].cursor)))
	})
	fault.Point("tree.flush")
	x.mu.Lock()
	defer x.mu.Unlock()
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

// fileCursor is the cursor of the oldest state that is on its way or written;
// an idle index is not written again and again.
func (x *Index) fileCursor() kml.Position {
	if len(x.layers) > 1 {
		return x.layers[1].cursor
	}
	var c kml.Position
	_ = x.view(func(tx *bolt.Tx) error {
		if b := tx.Bucket(buckets.meta).Get([]byte("cursor")); len(b) == 8 {
			c = kml.Position(binary.BigEndian.Uint64(b))
		}
		return nil
	})
	return c
}

// write puts an overlay into the file.
func (o *overlay) write(tx *bolt.Tx) error {
	var errs []error
	put := func(bucket, k, v []byte) {
		if err := tx.Bucket(bucket).Put(k, v); err != nil {
			errs = append(errs, err)
		}
	}
	del := func(bucket, k []byte) {
		if err := tx.Bucket(bucket).Delete(k); err != nil {
			errs = append(errs, err)
		}
	}
	for oid, obj := range o.objs {
		if obj == nil {
			del(buckets.obj, key64(uint64(oid)))
		} else {
			put(buckets.obj, key64(uint64(oid)), obj.encode())
		}
	}
	for p, m := range o.names {
		for n, v := range m {
			if v.oid == 0 {
				del(buckets.name, nameKey(Name{p, n}))
			} else {
				put(buckets.name, nameKey(Name{p, n}), key64(uint64(v.oid), uint64(v.known)))
			}
		}
	}
	for oid, m := range o.links {
		for n, there := range m {
			if there {
				put(buckets.link, linkKey(oid, n), []byte{})
			} else {
				del(buckets.link, linkKey(oid, n))
			}
		}
	}
	for ino, oid := range o.inos {
		if oid == 0 {
			del(buckets.ino, key64(ino))
		} else {
			put(buckets.ino, key64(ino), key64(uint64(oid)))
		}
	}
	for org, p := range o.origins {
		put(buckets.origin, key64(uint64(org.Site), org.Seq), key64(uint64(p)))
	}
	for id, st := range o.sites {
		put(buckets.site, key64(uint64(id)), key64(st.lastSeq, st.maxCounter, st.forgotten))
		errs = append(errs, forgetOrigins(tx, id, st.forgotten))
	}
	return errors.Join(errs...)
}

// forgetOrigins drops the outcomes a site has acknowledged.
func forgetOrigins(tx *bolt.Tx, id kml.SiteID, upTo uint64) error {
	c := tx.Bucket(buckets.origin).Cursor()
	prefix := key64(uint64(id))
	for k, _ := c.Seek(prefix); len(k) == 16 && string(k[:8]) == string(prefix) && binary.BigEndian.Uint64(k[8:]) <= upTo; k, _ = c.Seek(prefix) {
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// Close writes what stands in memory and closes the file. It may be called
// twice.
func (x *Index) Close() error {
	x.once.Do(func() {
		close(x.stop)
		<-x.done
		err := x.Flush()
		x.mu.Lock()
		x.err = errors.Join(err, x.db.Close())
		x.mu.Unlock()
	})
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.err
}
