package kml

import (
	"fmt"
	"time"

	"github.com/mezzofs/mezzo/internal/fault"
)

// DropBefore removes the oldest segments that hold only records before p, and
// says how many went. The last segment always stays. Readers still in one read
// it to its end and then get ErrTruncated if the next has gone as well.
func (l *Log) DropBefore(p Position) (int, error) {
	if err := l.usable(); err != nil {
		return 0, err
	}
	l.mu.Lock() // appends and cuts change the row, too
	l.pub.Lock()
	n := 0
	for n+1 < len(l.segs) && l.segs[n+1].hdr.tail.pos < p {
		n++
	}
	drop := l.segs[:n]
	l.segs = l.segs[n:]
	l.pub.Unlock()
	l.mu.Unlock()
	// Oldest first: killed in between, what is left is still one row.
	for i, s := range drop {
		if err := l.o.fs.Remove(s.path); err != nil {
			return i, err
		}
		fault.Point("kml.drop.removed")
	}
	if n > 0 {
		if err := l.o.fs.SyncDir(l.dir); err != nil {
			return n, fmt.Errorf("%s: %w", l.dir, err)
		}
	}
	return n, nil
}

// Segment describes one segment of a log.
type Segment struct {
	Path  string
	After Position // of the last record before it
	Size  int64    // bytes
}

// Segments lists the segments, oldest first.
func (l *Log) Segments() []Segment {
	l.pub.Lock()
	defer l.pub.Unlock()
	out := make([]Segment, len(l.segs))
	for i, s := range l.segs {
		out[i] = Segment{s.path, s.hdr.tail.pos, s.size.Load()}
	}
	return out
}

// Expired is the position that DropBefore may be given so that segments go
// that are older than age as long as more than keep bytes stay: whichever
// keeps more. 0 when nothing is due.
func (l *Log) Expired(age time.Duration, keep int64) (Position, error) {
	l.pub.Lock()
	segs := l.segs
	l.pub.Unlock()
	rest := l.Size()
	oldest := l.o.Now().Add(-age).UnixNano()
	var due Position
	for i := 0; i+1 < len(segs); i++ {
		if rest -= segs[i].size.Load(); rest < keep {
			break
		}
		t, err := l.lastTime(segs[i])
		if err != nil {
			return due, err
		}
		if t >= oldest {
			break
		}
		due = segs[i+1].hdr.tail.pos + 1
	}
	return due, nil
}

// What Retain keeps by default.
const (
	DefaultRetainSize = 1 << 30             // bytes
	DefaultRetainAge  = 30 * 24 * time.Hour // since a segment's last record
)

// Retain drops the oldest segments that are older than age, as long as more than
// size bytes stay: whichever keeps more. What is not durable stays, and the last
// segment. Zeros are the defaults. ready is called before anything goes, with
// the position up to which records go; its error keeps them all. It says how
// many segments went.
func (l *Log) Retain(size int64, age time.Duration, ready func(Position) error) (int, error) {
	if size == 0 {
		size = DefaultRetainSize
	}
	if age == 0 {
		age = DefaultRetainAge
	}
	p, err := l.Expired(age, size)
	if p = min(p, l.Durable()); err != nil || p <= l.First() {
		return 0, err
	}
	if err := ready(p); err != nil {
		return 0, err
	}
	return l.DropBefore(p)
}

// lastTime is the time of the last record of s.
func (l *Log) lastTime(s *segment) (int64, error) {
	f, err := s.acquire(l.o.fs)
	if err != nil {
		return 0, gone(err)
	}
	defer s.release()
	w := window{f: f}
	b, err := w.recordBefore(s.size.Load(), headerLen)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.path, err)
	}
	return rawTime(b), nil
}
