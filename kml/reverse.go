package kml

import (
	"fmt"
	"io"
)

// ReverseReader reads a log backward. It is for one goroutine.
type ReverseReader struct {
	l      *Log
	seg    *segment
	w      window
	off    int64
	crc    uint32 // what the next record must end the chain with
	pos    Position
	gen    uint32
	closed bool
}

// ReverseFrom is a reader whose first record is the one at p, and the ones
// before it follow. Errors as of ReaderAfter.
func (l *Log) ReverseFrom(p Position) (*ReverseReader, error) {
	if l.closed.Load() {
		return nil, fmt.Errorf("%s: %w", l.dir, ErrClosed)
	}
	gen := l.cutGen.Load()
	s, at, err := l.locate(p)
	if err != nil {
		return nil, err
	}
	f, err := s.acquire(l.o.fs)
	if err != nil {
		return nil, gone(err)
	}
	return &ReverseReader{l: l, seg: s, w: window{f: f}, off: at.off, crc: at.crc, pos: at.after, gen: gen}, nil
}

// Close ends the reader. It may be called twice.
func (r *ReverseReader) Close() error {
	if !r.closed {
		r.closed = true
		r.seg.release()
	}
	return nil
}

// Prev is the record before the last one read; io.EOF before the oldest one
// that is there.
func (r *ReverseReader) Prev() (*Record, error) {
	if r.closed || r.l.closed.Load() {
		return nil, fmt.Errorf("%s: %w", r.l.dir, ErrClosed)
	}
	for r.off <= headerLen {
		prev, err := r.l.segmentBefore(r.seg)
		if err != nil {
			return nil, err
		}
		f, err := prev.acquire(r.l.o.fs)
		if err != nil {
			return nil, gone(err)
		}
		r.seg.release()
		r.seg, r.off = prev, prev.size.Load()
		r.w.reset(f)
	}
	b, err := r.w.recordBefore(r.off, headerLen)
	var prev, crc uint32
	if err == nil {
		_, prev, crc, err = checkFrame(b)
	}
	if err == nil && (crc != r.crc || rawPos(b) != r.pos && r.pos.Recno() != rawPos(b).Recno()) {
		err = fmt.Errorf("position %s, CRC %08x, next record follows %08x: %w", rawPos(b), crc, r.crc, ErrChain)
	}
	if r.l.cutGen.Load() != r.gen {
		return nil, fmt.Errorf("%s: log was cut: %w", r.l.dir, ErrHistoryCut)
	}
	if err != nil {
		return nil, r.l.damageAt(r.seg, r.off, r.pos, err)
	}
	rec := new(Record)
	if err := parseChecked(b, rec); err != nil {
		return nil, err
	}
	r.off -= int64(len(b))
	r.crc, r.pos = prev, rec.Pos-1 // only its record number counts
	return rec, nil
}

// segmentBefore is the segment before s; io.EOF when there is none.
func (l *Log) segmentBefore(s *segment) (*segment, error) {
	l.pub.Lock()
	defer l.pub.Unlock()
	if s.num <= l.segs[0].num {
		return nil, io.EOF
	}
	return l.segs[s.num-1-l.segs[0].num], nil
}
