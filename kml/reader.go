package kml

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// Raw is one record as it stands in a log.
type Raw struct {
	Pos   Position
	Op    Op
	CRC   uint32 // of the chain, after it
	Bytes []byte // good until the reader's next call
}

// Record decodes it; the result does not alias Bytes.
func (w Raw) Record() (*Record, error) {
	r := new(Record)
	if err := parseChecked(w.Bytes, r); err != nil {
		return nil, err
	}
	return r, nil
}

// AppendFrozen appends the record to dst as it would be encoded with a
// previous CRC of 0.
func (w Raw) AppendFrozen(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, w.Bytes...)
	seal(dst[start:], 0)
	return dst
}

// Reader reads a log forward. It is for one goroutine; Close gives back what it
// holds.
type Reader struct {
	l      *Log
	seg    *segment
	w      window
	off    int64
	pos    Position
	crc    uint32
	gen    uint32
	closed bool
}

// ReaderAfter is a reader whose first record is the one after p. 0 is the
// beginning of a log that is whole. ErrTruncated: retention took what comes
// after p. ErrHistoryCut: p is not in this log.
func (l *Log) ReaderAfter(p Position) (*Reader, error) {
	if l.closed.Load() {
		return nil, fmt.Errorf("%s: %w", l.dir, ErrClosed)
	}
	gen := l.cutGen.Load()
	s, w, err := l.locate(p)
	if err != nil {
		return nil, err
	}
	f, err := s.acquire(l.o.fs)
	if err != nil {
		return nil, gone(err)
	}
	return &Reader{l: l, seg: s, w: window{f: f}, off: w.off, pos: w.after, crc: w.crc, gen: gen}, nil
}

// CRCAt is the chain's CRC after the record at p; errors as of ReaderAfter.
func (l *Log) CRCAt(p Position) (uint32, error) {
	if t := l.state(); t.pos == p {
		return t.crc, nil
	}
	_, w, err := l.locate(p)
	return w.crc, err
}

// gone turns a segment file that is no longer there into ErrTruncated.
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrTruncated, err)
	}
	return err
}

// Pos is the position of the last record read, or where the reader began.
func (r *Reader) Pos() Position { return r.pos }

// CRC is the chain's CRC after Pos.
func (r *Reader) CRC() uint32 { return r.crc }

// Close ends the reader. It may be called twice.
func (r *Reader) Close() error {
	if !r.closed {
		r.closed = true
		r.seg.release()
	}
	return nil
}

// TryNext is the next record, or io.EOF at the tail. ErrNewer: the record must
// be understood and is not; the reader stays before it. ErrHistoryCut: the log
// was cut under the reader.
func (r *Reader) TryNext() (*Record, error) {
	off, pos, crc := r.off, r.pos, r.crc
	w, err := r.TryNextRaw()
	if err != nil {
		return nil, err
	}
	rec, err := w.Record()
	if err != nil {
		r.off, r.pos, r.crc = off, pos, crc
		return nil, fmt.Errorf("%s: offset %d: %w", r.seg.path, off, err)
	}
	return rec, nil
}

// Next is TryNext that waits at the tail until a record is appended, ctx ends
// or the log is closed (ErrClosed).
func (r *Reader) Next(ctx context.Context) (*Record, error) {
	for {
		rec, err := r.TryNext()
		if err != io.EOF {
			return rec, err
		}
		if err := r.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// NextRaw is Next without decoding.
func (r *Reader) NextRaw(ctx context.Context) (Raw, error) {
	for {
		w, err := r.TryNextRaw()
		if err != io.EOF {
			return w, err
		}
		if err := r.wait(ctx); err != nil {
			return Raw{}, err
		}
	}
}

// Changed is a channel that is closed at the next append, commit or close of
// the log: for callers that wait for more than one thing. Look after asking.
func (l *Log) Changed() <-chan struct{} { return l.waiter() }

// wait returns when there may be more to read.
func (r *Reader) wait(ctx context.Context) error {
	ch := r.l.waiter()
	// What came before the channel was asked for does not close it.
	if r.l.End() != r.pos || r.l.closed.Load() || r.l.cutGen.Load() != r.gen {
		return nil
	}
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TryNextRaw is TryNext without decoding.
func (r *Reader) TryNextRaw() (Raw, error) {
	if r.closed || r.l.closed.Load() {
		return Raw{}, fmt.Errorf("%s: %w", r.l.dir, ErrClosed)
	}
	w, err := r.step()
	if err == io.EOF {
		return w, err
	}
	if r.l.cutGen.Load() != r.gen {
		return Raw{}, fmt.Errorf("%s: after position %s: log was cut: %w", r.l.dir, r.pos, ErrHistoryCut)
	}
	if err != nil {
		return Raw{}, r.l.damageAt(r.seg, r.off, r.pos, err)
	}
	return w, nil
}

func (r *Reader) step() (Raw, error) {
	for {
		if r.l.cutGen.Load() != r.gen {
			return Raw{}, ErrHistoryCut
		}
		size := r.seg.size.Load()
		if r.off < size {
			return r.read(size)
		}
		next, err := r.l.segmentAfter(r.seg)
		if err != nil {
			return Raw{}, err
		}
		if r.off < r.seg.size.Load() {
			continue // it grew before the next one was made
		}
		if next == nil {
			return Raw{}, io.EOF
		}
		if next.hdr.tail.pos != r.pos || next.hdr.tail.crc != r.crc {
			return Raw{}, fmt.Errorf("next segment begins after %s: %w", next.hdr.tail.pos, ErrChain)
		}
		f, err := next.acquire(r.l.o.fs)
		if err != nil {
			return Raw{}, gone(err)
		}
		r.seg.release()
		r.seg, r.off = next, headerLen
		r.w.reset(f)
	}
}

// read takes the record at off.
func (r *Reader) read(size int64) (Raw, error) {
	b, err := r.w.record(r.off, size)
	if err != nil {
		return Raw{}, err
	}
	_, crc, err := checkChained(b, r.crc)
	if err != nil {
		return Raw{}, err
	}
	p := rawPos(b)
	if p.Recno() != r.pos.Recno()+1 {
		return Raw{}, fmt.Errorf("position %s after %s: %w", p, r.pos, ErrCorrupt)
	}
	r.off += int64(len(b))
	r.pos, r.crc = p, crc
	return Raw{p, rawOp(b), crc, b}, nil
}

// segmentAfter is the segment that follows s, nil when s is the last.
func (l *Log) segmentAfter(s *segment) (*segment, error) {
	l.pub.Lock()
	defer l.pub.Unlock()
	if len(l.segs) == 0 || l.segs[0].num > s.num+1 {
		return nil, ErrTruncated
	}
	i := int(s.num + 1 - l.segs[0].num)
	if i >= len(l.segs) {
		return nil, nil
	}
	return l.segs[i], nil
}

// damageAt is the error of a reader that found bad bytes in what was there at
// the start.
func (l *Log) damageAt(s *segment, off int64, after Position, err error) error {
	if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrChain) && !errors.Is(err, ErrShort) {
		return fmt.Errorf("%s: offset %d: %w", s.path, off, err)
	}
	return &DamageError{Segment: s.path, Offset: off, After: after, Mark: l.LastCommit(), Err: err}
}

// locate finds the place after the record at p.
func (l *Log) locate(p Position) (*segment, waypoint, error) {
	l.pub.Lock()
	segs, end := l.segs, l.seen.pos
	l.pub.Unlock()
	start := segs[0].hdr.tail.pos
	switch {
	case p < start:
		return nil, waypoint{}, fmt.Errorf("%s: position %s, log begins after %s: %w", l.dir, p, start, ErrTruncated)
	case p > end:
		return nil, waypoint{}, fmt.Errorf("%s: position %s, log ends at %s: %w", l.dir, p, end, ErrHistoryCut)
	}
	i := len(segs) - 1
	for segs[i].hdr.tail.pos > p {
		i--
	}
	s := segs[i]
	at, complete := s.before(p)
	f, err := s.acquire(l.o.fs)
	if err != nil {
		return nil, waypoint{}, gone(err)
	}
	defer s.release()
	if !complete {
		if err := l.buildIndex(s, f); err != nil {
			return nil, waypoint{}, err
		}
		at, _ = s.before(p)
	}
	w := window{f: f}
	size := s.size.Load()
	for at.after < p && at.off < size {
		if err := at.step(&w, size); err != nil {
			return nil, waypoint{}, l.damageAt(s, at.off, at.after, err)
		}
	}
	if at.after != p {
		return nil, waypoint{}, fmt.Errorf("%s: position %s: %w", l.dir, p, ErrHistoryCut)
	}
	return s, at, nil
}

// step moves at over one record.
func (at *waypoint) step(w *window, limit int64) error {
	b, err := w.record(at.off, limit)
	if err != nil {
		return err
	}
	_, crc, err := checkChained(b, at.crc)
	if err != nil {
		return err
	}
	*at = waypoint{rawPos(b), at.off + int64(len(b)), crc}
	return nil
}

// buildIndex reads a segment that was there at the start, once.
func (l *Log) buildIndex(s *segment, f file) error {
	at, w, size := s.start(), window{f: f}, s.size.Load()
	index := []waypoint{at}
	for at.off < size {
		if err := at.step(&w, size); err != nil {
			return l.damageAt(s, at.off, at.after, err)
		}
		if at.off-index[len(index)-1].off >= indexEvery {
			index = append(index, at)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.indexed {
		s.index, s.indexed = index, true
	}
	return nil
}
