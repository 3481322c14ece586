package export

import (
	"context"
	"errors"
	"io"
	"syscall"
)

// stream is what is read by offset and goes by once: a read at the offset of the
// last answer gets that answer again, so that a read that was flushed, or whose
// reply was lost, loses nothing; a read behind it gets what is next. It holds
// one answer and less than one frame and a read's length besides.
//
// Reads take turns; each may wait until its context ends.
type stream struct {
	turn chan struct{} // holds a token while a read is going on
	// more appends to its argument, at least one byte; it may wait, and returns
	// io.EOF at the end. want is how much would be welcome.
	more func(ctx context.Context, b []byte, want int) ([]byte, error)

	began bool
	base  int64  // offset of last
	last  []byte // the last answer
	pend  []byte // made and not yet answered
	ended bool
}

func newStream(more func(context.Context, []byte, int) ([]byte, error)) *stream {
	return &stream{turn: make(chan struct{}, 1), more: more}
}

// readAt is ReadAt of a tree.ExtHandle. The first read may be at any offset: a
// request that was written through the same descriptor has moved it.
func (s *stream) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if !s.began {
		s.base, s.began = off, true
	}
	end := s.base + int64(len(s.last))
	switch {
	case off < s.base || off > end:
		return 0, syscall.ESPIPE
	case off < end:
		return copy(p, s.last[off-s.base:]), nil
	case len(p) == 0:
		return 0, nil
	}
	for len(s.pend) == 0 && !s.ended {
		b, err := s.more(ctx, s.pend, len(p))
		s.pend = b
		if errors.Is(err, io.EOF) {
			s.ended = true
		} else if err != nil && len(b) == 0 {
			return 0, err
		}
	}
	n := min(len(p), len(s.pend))
	s.base, s.last = off, append(s.last[:0], s.pend[:n]...)
	s.pend = s.pend[:copy(s.pend, s.pend[n:])]
	if cap(s.pend) > streamKeep && len(s.pend) == 0 {
		s.pend = nil
	}
	return copy(p, s.last), nil
}

// streamKeep is the room for frames that an idle stream keeps, in bytes.
const streamKeep = 128 << 10
