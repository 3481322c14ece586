package kml

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
)

// spare is a segment file made ahead of its use, empty but with room.
type spare struct {
	num   uint64
	f     file
	alloc int64
}

// Append writes records at the end of the log, in one write, and gives each
// its position, and the clock's time when it has none. It is in the page cache
// then, not on disk. All or nothing: with an error (ENOSPC, ErrTooLarge,
// ErrInvalid) the log is as it was, and the records' positions mean nothing.
// A crash in the middle may leave the first few of a batch.
func (l *Log) Append(recs ...*Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.append(recs, appendAssign)
}

// AppendReplica is Append for a copy of another log: the records bring their
// positions, which must follow the end's, and nothing is assigned.
func (l *Log) AppendReplica(recs ...*Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.append(recs, appendKeep)
}

// how an append treats positions and space.
type appendMode uint8

const (
	appendAssign appendMode = iota
	appendKeep              // positions are given
	appendForce             // a mark: it may use what is reserved
)

// append does the work, under mu.
func (l *Log) append(recs []*Record, mode appendMode) error {
	if err := l.usable(); err != nil {
		return err
	}
	if len(recs) == 0 {
		return nil
	}
	seg := l.last()
	after, err := l.encode(recs, mode, seg)
	if err != nil {
		return fmt.Errorf("%s: append: %w", l.dir, err)
	}
	if err := l.room(int64(len(l.buf)), seg); err != nil && mode != appendForce {
		return fmt.Errorf("%s: append: %w", l.dir, err)
	}
	added, err := l.write(seg)
	if err != nil {
		return fmt.Errorf("%s: append: %w", l.dir, err)
	}
	l.publish(after, seg, added)
	l.stats.records.Add(uint64(len(recs)))
	l.stats.bytes.Add(uint64(len(l.buf)))
	l.stats.batches.Add(1)
	return nil
}

// encode puts the batch into buf, cut into the parts that go to one segment
// each, and gives the state after it.
func (l *Log) encode(recs []*Record, mode appendMode, seg *segment) (tail, error) {
	t := l.at
	l.buf, l.ways = l.buf[:0], l.ways[:0]
	l.cuts = append(l.cuts[:0], cut{})
	off := seg.size.Load()
	lastWay := off - indexEvery // one at the batch's start; note drops it if too near
	var now int64
	for _, r := range recs {
		if mode == appendKeep {
			if r.Pos.Recno() != t.pos.Recno()+1 || r.Pos.Epoch() < t.pos.Epoch() {
				return t, fmt.Errorf("position %s after %s: %w", r.Pos, t.pos, ErrHistoryCut)
			}
		} else {
			if t.pos.Recno() == 1<<48-1 {
				return t, fmt.Errorf("position %s is the last there is: %w", t.pos, ErrInvalid)
			}
			r.Pos = t.pos + 1
			if r.Op == OpMark && r.Mark == MarkEpoch {
				r.Pos = MakePosition(t.pos.Epoch()+1, t.pos.Recno()+1)
			}
			if r.Time == 0 {
				if now == 0 {
					now = l.o.Now().UnixNano()
				}
				r.Time = now
			}
		}
		from := len(l.buf)
		b, crc, err := AppendRecord(l.buf, r, t.crc)
		l.buf = b
		if err != nil {
			return t, err
		}
		if n := int64(len(b) - from); off+n > l.o.SegmentSize && off > headerLen {
			// It is the first of a new segment: the header goes before it.
			h := header{fileset: seg.hdr.fileset, tail: t}
			l.buf = h.append(b[:from])
			l.cuts[len(l.cuts)-1].to = from
			l.cuts = append(l.cuts, cut{from: from, hdr: h})
			if l.buf, crc, err = AppendRecord(l.buf, r, t.crc); err != nil {
				return t, err
			}
			off, lastWay = headerLen, headerLen
		}
		if off-lastWay >= indexEvery {
			l.ways = append(l.ways, wayIn{len(l.cuts) - 1, waypoint{t.pos, off, t.crc}})
			lastWay = off
		}
		off = int64(len(l.buf)-l.cuts[len(l.cuts)-1].from) + l.partStart(seg)
		t.pos, t.crc = r.Pos, crc
		t.mind(r)
	}
	l.cuts[len(l.cuts)-1].to = len(l.buf)
	return t, nil
}

// partStart is where the part in hand begins in its segment.
func (l *Log) partStart(seg *segment) int64 {
	if len(l.cuts) == 1 {
		return seg.size.Load()
	}
	return 0
}

// write puts the parts where they belong. When one fails, what was written is
// taken back.
func (l *Log) write(seg *segment) (added []*segment, err error) {
	size := seg.size.Load()
	first := l.cuts[0]
	if first.to > 0 {
		if _, err = seg.f.WriteAt(l.buf[:first.to], size); err != nil {
			return nil, l.takeBack(seg, size, nil, err)
		}
	}
	for i, c := range l.cuts[1:] {
		fault.Point("kml.roll.begun")
		s, err := l.newSegment(seg.num+uint64(i)+1, c.hdr)
		if err == nil {
			added = append(added, s)
			fault.Point("kml.roll.made")
			_, err = s.f.WriteAt(l.buf[c.from:c.to], 0)
		}
		if err != nil {
			return nil, l.takeBack(seg, size, added, err)
		}
		s.size.Store(int64(c.to - c.from))
	}
	return added, nil
}

// takeBack undoes a batch that failed halfway and returns its error. A log
// whose tail cannot be restored is spoiled: whole records of a batch that was
// refused would come back at the next start.
func (l *Log) takeBack(seg *segment, size int64, added []*segment, err error) error {
	for _, s := range added {
		s.release()
		if e := l.o.fs.Remove(s.path); e != nil {
			return l.spoil(errors.Join(err, e))
		}
	}
	if e := seg.f.Truncate(size); e != nil {
		return l.spoil(errors.Join(err, e))
	}
	// Truncation gave the room ahead back. Whoever holds a reservation needs
	// it; if it is gone now, their own append says so.
	l.alloc = size
	_ = l.room(0, seg)
	return err
}

// newSegment makes the file of a new segment, or takes the spare one.
func (l *Log) newSegment(num uint64, h header) (*segment, error) {
	s := &segment{num: num, path: segmentPath(l.dir, num), hdr: h, rw: true, indexed: true, refs: 1}
	if sp := l.spare; sp != nil && sp.num == num {
		s.f = sp.f
		l.spare = nil
		l.alloc = sp.alloc
		return s, nil
	}
	f, err := l.o.fs.Open(s.path, true, true)
	if err != nil {
		return nil, err
	}
	s.f = f
	l.alloc = 0
	return s, nil
}

// publish shows the batch to readers.
func (l *Log) publish(after tail, seg *segment, added []*segment) {
	for _, w := range l.ways {
		s := seg
		if w.part > 0 {
			s = added[w.part-1]
		}
		s.note(w.waypoint)
	}
	if n := len(l.unsynced); n == 0 || l.unsynced[n-1] != seg {
		seg.hold() // until it is synced: a file opened anew may miss a write error
		l.unsynced = append(l.unsynced, seg)
	}
	for _, s := range added {
		s.hold()
		l.unsynced = append(l.unsynced, s)
	}
	l.newDir = l.newDir || len(added) > 0
	l.at = after

	if first := l.cuts[0]; first.to > 0 {
		seg.size.Add(int64(first.to))
	}
	l.pub.Lock()
	l.seen = after
	if len(added) > 0 {
		// Readers hold the old slice; it is never changed in place.
		l.segs = append(l.segs[:len(l.segs):len(l.segs)], added...)
	}
	l.end.Store(uint64(after.pos))
	l.pub.Unlock()
	if len(added) > 0 {
		seg.release()
		for _, s := range added[:len(added)-1] {
			s.release()
		}
	}
	l.wakeAll()
}

// Reservation is room in the log promised to one operation. It is for one
// goroutine.
type Reservation struct {
	l *Log
	n int64
}

// Reserve makes sure that n bytes of records can be appended later, whatever
// else fills the disk: an operation asks before it touches the tree. n is a
// bound, MaxRecord at most for each record; EncodedLen computes it. The error
// is ENOSPC or EDQUOT of fallocate(2). The caller ends the reservation with
// Release. On a file system without fallocate it checks the free space only.
func (l *Log) Reserve(n int64) (Reservation, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return Reservation{}, err
	}
	if n < 0 {
		return Reservation{}, fmt.Errorf("%s: reserve %d bytes: %w", l.dir, n, ErrInvalid)
	}
	if err := l.room(n, l.last()); err != nil {
		return Reservation{}, fmt.Errorf("%s: reserve: %w", l.dir, err)
	}
	l.reserved += n
	return Reservation{l, n}, nil
}

// Append is Log.Append into the reserved room. The reservation is used up,
// also when it fails.
func (r *Reservation) Append(recs ...*Record) error {
	if r.l == nil {
		return fmt.Errorf("reservation was released: %w", ErrInvalid)
	}
	l := r.l
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reserved -= r.n
	r.l, r.n = nil, 0
	return l.append(recs, appendAssign)
}

// Release gives back what was not used. It may be called twice.
func (r *Reservation) Release() {
	if r.l == nil {
		return
	}
	r.l.mu.Lock()
	r.l.reserved -= r.n
	r.l.mu.Unlock()
	r.l, r.n = nil, 0
}

// room makes sure that n bytes more than what is reserved can be written. A
// record that no longer fits the segment goes to the next, so near the end
// both must have room for all of it.
func (l *Log) room(n int64, seg *segment) error {
	need := l.reserved + n
	size := seg.size.Load()
	if size+need <= l.alloc && size+need <= l.o.SegmentSize {
		return nil
	}
	if l.noAlloc {
		return l.freeSpace(need)
	}
	if cur := min(size+need, max(l.o.SegmentSize, size)); cur > l.alloc {
		end, err := l.allocate(seg.f, l.alloc, size, cur)
		if err != nil {
			return err
		}
		l.alloc = end
	}
	if l.noAlloc || size+need <= l.o.SegmentSize {
		return nil
	}
	if l.spare == nil {
		f, err := l.o.fs.Open(segmentPath(l.dir, seg.num+1), true, true)
		if err != nil {
			return err
		}
		l.spare = &spare{num: seg.num + 1, f: f}
	}
	if want := headerLen + need; want > l.spare.alloc {
		end, err := l.allocate(l.spare.f, l.spare.alloc, 0, want)
		if err != nil {
			return err
		}
		l.spare.alloc = end
	}
	return nil
}

// allocate gives a file room up to want, and some ahead when the disk has it.
func (l *Log) allocate(f file, have, size, want int64) (end int64, err error) {
	from := max(have, size)
	ahead := min(max(want, from+l.o.Prealloc), max(want, l.o.SegmentSize))
	err = f.Allocate(from, ahead-from)
	if err != nil && ahead > want && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
		ahead = want
		err = f.Allocate(from, ahead-from)
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		l.noAlloc = true
		return 0, l.freeSpace(want - size)
	}
	return ahead, err
}

// freeSpace stands in where nothing can be allocated ahead.
func (l *Log) freeSpace(need int64) error {
	free, err := l.o.fs.Free(l.dir)
	if err == nil && free < need+l.o.Prealloc {
		err = unix.ENOSPC
	}
	return err
}

// dropSpare removes the segment made ahead.
func (l *Log) dropSpare() {
	if l.spare == nil {
		return
	}
	l.spare.f.Close()
	// Left behind it is harmless: Open removes an empty last segment.
	_ = l.o.fs.Remove(segmentPath(l.dir, l.spare.num))
	l.spare = nil
}
