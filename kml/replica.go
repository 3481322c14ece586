package kml

import "fmt"

// HeadLen is the length of a segment's header in bytes.
const HeadLen = headerLen

// Head is what the header of a segment says: whose log it is part of, and where
// the segment begins.
type Head struct {
	Fileset [16]byte
	After   Position // of the last record before the segment
	CRC     uint32   // the chain's there
}

// ParseHead reads the header of a segment. Bytes that are none are ErrShort or
// ErrCorrupt.
func ParseHead(b []byte) (Head, error) {
	h, err := parseHeader(b)
	return Head{h.fileset, h.tail.pos, h.tail.crc}, err
}

// FindHead is the offset of the last segment header that lies whole in b, bytes of
// a log as one file from a multiple of eight on, or -1.
func FindHead(b []byte) int {
	for i := (len(b) - headerLen) &^ 7; i >= 0; i -= 8 {
		if string(b[i:i+8]) != headerMagic {
			continue
		}
		if _, err := parseHeader(b[i:]); err == nil {
			return i
		}
	}
	return -1
}

// Rewind takes back the records behind p, without a mark: for a copy of another
// log (see AppendReplica) whose tail is no longer known to be in the tree beside
// it, and will be copied again. Readers get ErrHistoryCut.
func (l *Log) Rewind(p Position) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	s, at, err := l.locate(p)
	if err != nil {
		return err
	}
	t, err := l.tailAt(s, at)
	if err != nil {
		return err
	}
	l.at = t
	if err := l.cutAt(s, at.off, nil); err != nil {
		return l.spoil(err)
	}
	return nil
}

// tailAt is the state of the log after the record before the place at in s.
func (l *Log) tailAt(s *segment, at waypoint) (tail, error) {
	f, err := s.acquire(l.o.fs)
	if err != nil {
		return tail{}, err
	}
	defer s.release()
	t, w := s.hdr.tail, window{f: f}
	for off := int64(headerLen); off < at.off; {
		b, err := w.record(off, at.off)
		if err != nil {
			return t, fmt.Errorf("%s: offset %d: %w", s.path, off, err)
		}
		n, crc, err := checkChained(b, t.crc)
		if err == nil {
			err = t.advance(b, crc)
		}
		if err != nil {
			return t, fmt.Errorf("%s: offset %d: %w", s.path, off, err)
		}
		off += int64(n)
	}
	return t, nil
}

// cutDone shows readers a log that was cut within s. The caller holds both locks.
func (l *Log) cutDone(s *segment) {
	l.alloc = s.size.Load()
	l.seen = l.at
	l.end.Store(uint64(l.at.pos))
	l.commit, l.durable = l.at.mark, l.at.firm()
	l.syncs.reset(l.at.pos)
	l.commits.reset(l.durable)
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
		l.waiting.Store(0)
	}
}
