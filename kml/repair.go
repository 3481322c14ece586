package kml

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/mezzofs/mezzo/internal/fault"
)

// Repair is what Open cut off the end of a log: a record that was being
// written when its process was killed, or what a crash of the machine left
// unwritten behind the last commit mark.
type Repair struct {
	Segment  string   // path of the segment that was cut; empty: nothing was
	Offset   int64    // its size now, before any mark that was written again
	After    Position // the last record that was kept
	Bytes    int64    // how many bytes went, later segments included
	Segments int      // how many later segments went whole
	Torn     bool     // only the beginning of one record went
	Err      error    // what was wrong at Offset
}

// repair decides on bad bytes in segs[i] at off: damage, or the end of the log.
func (l *Log) repair(i int, off int64, bad error) error {
	s := l.segs[i]
	mark, err := l.findMark(i, off)
	if err != nil {
		return err
	}
	if mark != nil && mark.Base.Pos > l.at.pos {
		return &DamageError{Segment: s.path, Offset: off, After: l.at.pos, Mark: mark.Pos, Err: bad}
	}
	l.repaired = Repair{Segment: s.path, Offset: off, After: l.at.pos, Err: bad,
		Torn: errors.Is(bad, ErrShort) && i == len(l.segs)-1}
	if off == 0 { // the header itself is bad
		i--
		s = l.segs[i]
		off = s.size.Load()
	}
	for _, t := range l.segs[i+1:] {
		l.repaired.Bytes += t.size.Load()
		l.repaired.Segments++
	}
	l.repaired.Bytes += s.size.Load() - off
	if l.o.ReadOnly {
		s.size.Store(off)
		s.indexed = true
		l.segs = l.segs[:i+1]
		return nil
	}
	var again *Record
	if mark != nil && mark.Base.Pos > l.at.durable {
		// The mark lies in what goes, but what it says holds.
		again = &Record{Op: OpMark, Mark: MarkCommit, Pos: l.at.pos + 1, Time: mark.Time, Base: mark.Base}
	}
	if err := l.cutTo(l.segs, i, off, again); err != nil {
		return err
	}
	l.segs = l.segs[: i+1 : i+1]
	return nil
}

// cutTo ends the log in segs[i] at off, with mark as its last record when
// there is one. The mark is durable before what followed goes: killed in
// between, the next Open finds both and does the rest.
func (l *Log) cutTo(segs []*segment, i int, off int64, mark *Record) error {
	s := segs[i]
	f, err := l.o.fs.Open(s.path, true, false)
	if err != nil {
		return err
	}
	defer f.Close()
	end := off
	if mark != nil {
		b, crc, err := AppendRecord(nil, mark, l.at.crc)
		if err != nil {
			return err
		}
		if _, err := f.WriteAt(b, off); err != nil {
			return fmt.Errorf("%s: %w", s.path, err)
		}
		if err := f.Datasync(); err != nil {
			return err
		}
		fault.Point("kml.cut.marked")
		end += int64(len(b))
		l.at.pos, l.at.crc = mark.Pos, crc
		l.at.mind(mark)
	}
	for j := len(segs) - 1; j > i; j-- {
		if err := l.o.fs.Remove(segs[j].path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	fault.Point("kml.cut.removed")
	if err := f.Truncate(end); err != nil {
		return err
	}
	if err := f.Datasync(); err != nil {
		return err
	}
	s.mu.Lock()
	for n := len(s.index); n > 0 && s.index[n-1].off > off; n-- {
		s.index = s.index[:n-1]
	}
	s.indexed = s.indexed || off == end // what Open read up to here is indexed
	s.mu.Unlock()
	s.size.Store(end)
	return l.o.fs.SyncDir(l.dir)
}

// findMark looks for the mark that claims most behind bad bytes. Every record
// can be checked by itself, and begins at a multiple of eight.
func (l *Log) findMark(i int, off int64) (best *Record, err error) {
	for j := i; j < len(l.segs); j++ {
		s := l.segs[j]
		if h := s.hdr.tail; off == 0 && s.bad == nil && h.mark > 0 && (best == nil || h.durable > best.Base.Pos) {
			best = &Record{Pos: h.mark, Base: Base{Pos: h.durable}}
		}
		f, err := s.acquire(l.o.fs)
		if errors.Is(err, os.ErrNotExist) {
			continue // a gap in the row
		}
		if err != nil {
			return nil, err
		}
		w := window{f: f}
		size := s.size.Load()
		for o := (off + 7) &^ 7; o+MinRecord <= size; o += 8 {
			b, err := w.bytes(o, 8, size)
			if err != nil {
				s.release()
				return nil, err
			}
			if len(b) < 8 || b[4] != recordMagic || Op(binary.LittleEndian.Uint16(b[6:])) != OpMark {
				continue
			}
			if r := markAt(&w, o, size); r != nil && (best == nil || r.Base.Pos > best.Base.Pos) {
				best = r
			}
		}
		s.release()
		off = 0
	}
	return best, nil
}

// markAt is the mark at off that says what is durable, or nil.
func markAt(w *window, off, size int64) *Record {
	b, err := w.record(off, size)
	if err != nil {
		return nil
	}
	if _, _, _, err := checkFrame(b); err != nil {
		return nil
	}
	r := new(Record)
	if err := parseChecked(b, r); err != nil || (r.Mark != MarkCommit && r.Mark != MarkEpoch) {
		return nil
	}
	return r
}

// CutAfter ends history at p and begins a new epoch there: everything behind p
// goes, and the mark of the epoch, with its random id, takes its place and is
// durable. p must be at or behind what the last mark says is durable
// (ErrInvalid). It is for recovery, before the log is served: readers get
// ErrHistoryCut.
func (l *Log) CutAfter(p Position, reason string, id [16]byte) (*Record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return nil, err
	}
	if p < l.at.durable {
		return nil, fmt.Errorf("%s: cut after %s: %s is durable: %w", l.dir, p, l.at.durable, ErrInvalid)
	}
	s, at, err := l.locate(p)
	if err != nil {
		return nil, err
	}
	r := &Record{Op: OpMark, Mark: MarkEpoch, Name: reason, Value: id[:], Time: l.o.Now().UnixNano(),
		Pos: MakePosition(l.at.pos.Epoch()+1, p.Recno()+1), Base: Base{Pos: min(p, l.at.firm())}}
	l.at.pos, l.at.crc = at.after, at.crc
	if err := l.cutAt(s, at.off, r); err != nil {
		return nil, l.spoil(err)
	}
	return r, nil
}

// cutAt ends the log in s at off, where l.at is, with mark as its last record
// when there is one, and shows readers what is left. The caller holds mu; who
// asks for the state of the log does not wait for the disk.
func (l *Log) cutAt(s *segment, off int64, mark *Record) error {
	l.dropSpare()
	l.cutGen.Add(1) // whoever reads is void
	l.pub.Lock()
	segs := l.segs // nobody changes them without mu
	l.pub.Unlock()
	i := 0
	for segs[i] != s {
		i++
	}
	last := segs[len(segs)-1]
	if err := l.cutTo(segs, i, off, mark); err != nil {
		return err
	}
	segs, err := l.reopen(segs[:i+1:i+1], s, last)
	if err != nil {
		return err
	}
	l.pub.Lock()
	defer l.pub.Unlock()
	l.segs = segs
	l.cutGen.Add(1) // and so is who began meanwhile
	l.cutDone(s)
	return nil
}

// reopen makes s, the last of segs, the segment that is written, in place of last.
func (l *Log) reopen(segs []*segment, s, last *segment) ([]*segment, error) {
	keep := l.unsynced[:0]
	for _, u := range l.unsynced {
		if u.num > s.num {
			u.release()
		} else {
			keep = append(keep, u)
		}
	}
	l.unsynced = keep
	if s == last {
		return segs, nil
	}
	last.release()
	f, err := l.o.fs.Open(s.path, true, false)
	if err != nil {
		return nil, err
	}
	// Readers may hold s with a file of their own; it gets a successor.
	n := &segment{num: s.num, path: s.path, hdr: s.hdr, rw: true, f: f, refs: 1, index: s.index, indexed: s.indexed}
	n.size.Store(s.size.Load())
	return append(append([]*segment{}, segs[:len(segs)-1]...), n), nil
}
