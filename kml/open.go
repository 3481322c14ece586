package kml

import (
	"errors"
	"fmt"
	"os"
)

// Open opens the log in folder dir, and makes both when they are not there;
// dir's parent must exist. It reads the log from the last commit mark on, finds
// the last whole record and cuts off what a killed process left behind it; see
// Repaired. *DamageError: bytes before a commit mark are not what was written.
// ErrFileset, ErrNewer: this log is not for this opener.
func Open(dir string, o Options) (*Log, error) {
	o.fill()
	l := &Log{dir: dir, o: o}
	if err := l.open(); err != nil {
		l.releaseAll()
		return nil, err
	}
	return l, nil
}

func (l *Log) open() error {
	if !l.o.ReadOnly {
		if err := l.o.fs.Mkdir(l.dir); err != nil {
			return err
		}
	}
	if err := l.load(); err != nil {
		return err
	}
	if len(l.segs) == 0 {
		if l.o.ReadOnly {
			return fmt.Errorf("%s: no log here: %w", l.dir, os.ErrNotExist)
		}
		if err := l.create(); err != nil {
			return err
		}
	} else if err := l.scan(); err != nil {
		return err
	}
	l.seen = l.at
	l.end.Store(uint64(l.at.pos))
	if l.o.ReadOnly {
		l.commit, l.durable = l.at.mark, l.at.firm()
		return nil
	}
	return l.settle()
}

// settle makes what was found durable: a killed process may have left it in
// the page cache only, and a mark must be on disk to count.
func (l *Log) settle() error {
	last := l.segs[len(l.segs)-1]
	last.rw = true
	if _, err := last.acquire(l.o.fs); err != nil {
		return err
	}
	l.alloc = last.size.Load()
	for i, s := range l.segs {
		if s == last || l.segs[i+1].hdr.tail.pos >= l.at.mark {
			s.rw = true
			if _, err := s.acquire(l.o.fs); err != nil {
				return err
			}
			l.unsynced = append(l.unsynced, s)
		}
	}
	l.newDir = true
	if err := l.rewriteTail(); err != nil {
		return err
	}
	if _, err := l.syncRound(0); err != nil {
		return err
	}
	l.commit, l.durable = l.at.mark, l.at.firm()
	l.syncs.reset(l.at.pos)
	l.commits.reset(l.durable)
	return nil
}

// rewriteTail writes what no mark covers once more, as it is. When the last run
// ended with a sync that failed, the kernel may hold these bytes for written and
// have them in memory alone: a sync now would promise what is not so.
func (l *Log) rewriteTail() error {
	firm := l.at.firm()
	if firm >= l.at.pos {
		return nil
	}
	first, from, err := l.locate(firm)
	buf := make([]byte, windowLen)
	for _, s := range l.unsynced {
		off := int64(0)
		if err == nil && s.num < first.num {
			continue
		} else if err == nil && s == first {
			off = from.off
		}
		for size := s.size.Load(); off < size; {
			b := buf[:min(int64(len(buf)), size-off)]
			if _, err := s.f.ReadAt(b, off); err != nil {
				return fmt.Errorf("%s: offset %d: %w", s.path, off, err)
			}
			if _, err := s.f.WriteAt(b, off); err != nil {
				return fmt.Errorf("%s: offset %d: %w", s.path, off, err)
			}
			off += int64(len(b))
		}
	}
	return nil
}

// releaseAll closes what a failed open left open.
func (l *Log) releaseAll() {
	for _, s := range l.segs {
		if s.f != nil {
			s.f.Close()
			s.f = nil
		}
	}
}

// load lists the segments and reads their headers. Segments made ahead of
// their use are empty and go.
func (l *Log) load() error {
	nums, err := listSegments(l.o.fs, l.dir)
	if err != nil {
		return err
	}
	for i, num := range nums {
		s := &segment{num: num, path: segmentPath(l.dir, num)}
		if i > 0 && num != nums[i-1]+1 {
			// What the row lacks is bad; scan says whether it mattered.
			gap := nums[i-1] + 1
			l.segs = append(l.segs, &segment{num: gap, path: segmentPath(l.dir, gap),
				bad: fmt.Errorf("segment is missing: %w", ErrShort)})
		}
		f, err := s.acquire(l.o.fs)
		if err != nil {
			return err
		}
		size, err := f.Size()
		var head [headerLen]byte
		if err == nil && size > 0 {
			_, err = f.ReadAt(head[:min(size, headerLen)], 0)
		}
		s.release()
		if err != nil {
			return fmt.Errorf("%s: %w", s.path, err)
		}
		s.size.Store(size)
		if size == 0 && i == len(nums)-1 {
			return l.unlink(s)
		}
		if s.hdr, err = parseHeader(head[:min(size, headerLen)]); err != nil {
			if errors.Is(err, ErrNewer) {
				return fmt.Errorf("%s: %w", s.path, err)
			}
			s.bad = err
		} else if l.o.Fileset != [16]byte{} && s.hdr.fileset != l.o.Fileset {
			return fmt.Errorf("%s: fileset %x, want %x: %w", s.path, s.hdr.fileset, l.o.Fileset, ErrFileset)
		}
		l.segs = append(l.segs, s)
	}
	if len(l.segs) == 1 && l.segs[0].bad != nil && l.segs[0].size.Load() <= headerLen {
		// Killed while it made the log: nothing was ever in it.
		s := l.segs[0]
		l.segs = nil
		return l.unlink(s)
	}
	return nil
}

// unlink removes a segment's file, unless the log is only read.
func (l *Log) unlink(s *segment) error {
	if l.o.ReadOnly {
		return nil
	}
	return l.o.fs.Remove(s.path)
}

// create makes the first segment.
func (l *Log) create() error {
	l.at = tail{pos: l.o.After, crc: l.o.AfterCRC}
	if l.o.Head != nil {
		h, err := parseHeader(l.o.Head)
		if err != nil {
			return fmt.Errorf("%s: %w", l.dir, err)
		}
		if l.o.Fileset != [16]byte{} && h.fileset != l.o.Fileset {
			return fmt.Errorf("%s: fileset %x, want %x: %w", l.dir, h.fileset, l.o.Fileset, ErrFileset)
		}
		l.o.Fileset, l.at = h.fileset, h.tail
	}
	s, err := l.newSegment(1, header{fileset: l.o.Fileset, tail: l.at})
	if err != nil {
		return err
	}
	defer s.release()
	l.segs = []*segment{s}
	if _, err := s.f.WriteAt(s.hdr.append(nil), 0); err != nil {
		_ = l.o.fs.Remove(s.path) // left behind it is cut by the next Open
		return err
	}
	s.size.Store(headerLen)
	return nil
}

// scan checks the log. Of segments that a later header says are durable only
// the ends are looked at; the rest is read.
func (l *Log) scan() error {
	if err := l.segs[0].bad; err != nil {
		return &DamageError{Segment: l.segs[0].path, Err: err}
	}
	// Behind what the last header says is durable, anything may be bad, the
	// commit mark it speaks of included.
	var durable Position
	for _, s := range l.segs {
		if s.bad == nil {
			durable = max(durable, s.hdr.tail.durable)
		}
	}
	first := 0
	for i, s := range l.segs {
		if s.bad == nil && s.hdr.tail.pos <= durable {
			first = i
		}
	}
	for i := 1; i <= first; i++ {
		if err := l.checkJoint(l.segs[i-1], l.segs[i]); err != nil {
			return err
		}
	}
	l.at = l.segs[first].hdr.tail
	for i := first; i < len(l.segs); i++ {
		off, err := l.scanSegment(l.segs[i])
		if err == nil {
			continue
		}
		if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrShort) || errors.Is(err, ErrChain) {
			return l.repair(i, off, err)
		}
		return fmt.Errorf("%s: offset %d: %w", l.segs[i].path, off, err)
	}
	return nil
}

// checkJoint checks that b begins where a ends.
func (l *Log) checkJoint(a, b *segment) error {
	damage := func(err error) error {
		return &DamageError{Segment: a.path, Offset: a.size.Load(), After: a.hdr.tail.pos, Mark: b.hdr.tail.mark, Err: err}
	}
	if b.bad != nil {
		return &DamageError{Segment: b.path, After: a.hdr.tail.pos, Err: b.bad}
	}
	f, err := a.acquire(l.o.fs)
	if err != nil {
		return err
	}
	defer a.release()
	w := window{f: f}
	rec, err := w.recordBefore(a.size.Load(), headerLen)
	if err == nil {
		_, _, _, err = checkFrame(rec)
	}
	if err != nil {
		if errors.Is(err, ErrNewer) {
			return fmt.Errorf("%s: %w", a.path, err)
		}
		return damage(err)
	}
	if _, _, crc, _ := checkFrame(rec); crc != b.hdr.tail.crc || rawPos(rec) != b.hdr.tail.pos {
		return damage(fmt.Errorf("ends with %s, next segment begins after %s: %w", rawPos(rec), b.hdr.tail.pos, ErrChain))
	}
	return nil
}

// scanSegment reads s from l.at on, and gives the offset after the last good
// record.
func (l *Log) scanSegment(s *segment) (off int64, err error) {
	if s.bad != nil {
		return 0, s.bad
	}
	if s.hdr.tail != l.at || s.hdr.fileset != l.segs[0].hdr.fileset {
		return 0, fmt.Errorf("segment begins after %s, not after %s: %w", s.hdr.tail.pos, l.at.pos, ErrChain)
	}
	f, err := s.acquire(l.o.fs)
	if err != nil {
		return 0, err
	}
	defer s.release()
	w := window{f: f}
	size := s.size.Load()
	index := []waypoint{s.start()}
	for off = headerLen; off < size; {
		b, err := w.record(off, size)
		if err != nil {
			return off, err
		}
		n, crc, err := checkChained(b, l.at.crc)
		if err == nil {
			err = l.at.advance(b, crc)
		}
		if err != nil {
			return off, err
		}
		if off += int64(n); off-index[len(index)-1].off >= indexEvery {
			index = append(index, waypoint{l.at.pos, off, l.at.crc})
		}
		s.index = index
	}
	s.index, s.indexed = index, true
	return off, nil
}
