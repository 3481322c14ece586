package client

import (
	"context"
	"fmt"
	"io"
)

// chunk is one request of a stream and what became of it.
type chunk struct {
	buf  []byte
	off  int64
	n    int
	err  error
	done chan struct{}
}

// flight is requests in flight, in the order of their offsets.
type flight struct {
	ctx     context.Context
	cancel  context.CancelFunc
	pending []*chunk
	spare   [][]byte
}

// start begins a request that op does.
func (s *flight) start(off int64, buf []byte, op func(context.Context, []byte, int64) (int, error)) {
	k := &chunk{buf: buf, off: off, done: make(chan struct{})}
	s.pending = append(s.pending, k)
	ctx := s.ctx
	go func() { // ends with its request, which next and stop wait for
		k.n, k.err = op(ctx, k.buf, k.off)
		close(k.done)
	}()
}

// next waits for the request that stands first.
func (s *flight) next() *chunk {
	k := s.pending[0]
	<-k.done
	s.pending = s.pending[1:]
	return k
}

func (s *flight) buffer(size int) []byte {
	if n := len(s.spare); n > 0 {
		b := s.spare[n-1]
		s.spare = s.spare[:n-1]
		return b
	}
	return make([]byte, size)
}

// stop gives up what is in flight and waits until it is over.
func (s *flight) stop() {
	s.cancel()
	for len(s.pending) > 0 {
		s.spare = append(s.spare, s.next().buf)
	}
}

// CopyTo writes the open file from an offset to its end to w, and reads ahead
// with up to inFlight requests of IOSize bytes each. It begins with one and
// asks for more as long as answers are full: a file that waits for what is to
// come is read as it comes. It returns how many bytes w took.
func (f *Fid) CopyTo(ctx context.Context, w io.Writer, off int64, inFlight int) (int64, error) {
	inner, cancel := context.WithCancel(ctx)
	s := &flight{ctx: inner, cancel: cancel}
	defer func() { s.stop() }()
	size, window, ask, done := f.IOSize(), 1, off, int64(0)
	for {
		for len(s.pending) < window {
			s.start(ask, s.buffer(size), f.Read)
			ask += int64(size)
		}
		k := s.next()
		switch {
		case k.err != nil:
			return done, k.err
		case k.n == 0:
			return done, nil
		}
		n, err := w.Write(k.buf[:k.n])
		done += int64(n)
		if err != nil {
			return done, err
		}
		s.spare = append(s.spare, k.buf)
		if k.n == size {
			window = min(2*window, max(inFlight, 1))
			continue
		}
		// What was asked for behind it leaves a gap.
		window, ask = 1, off+done
		if len(s.pending) > 0 {
			s.stop()
			s.ctx, s.cancel = context.WithCancel(ctx)
		}
	}
}

// CopyFrom writes what r holds to the open file from an offset on, with up to
// inFlight requests of IOSize bytes at most. What r gives is sent as it comes.
// It returns how many bytes the server took without a gap; after an error bytes
// behind them may be written, too. A file opened to append takes them in order
// with one request in flight.
func (f *Fid) CopyFrom(ctx context.Context, r io.Reader, off int64, inFlight int) (int64, error) {
	inner, cancel := context.WithCancel(ctx)
	s := &flight{ctx: inner, cancel: cancel}
	defer s.stop()
	size, at, done := f.IOSize(), off, int64(0)
	settle := func() error {
		k := s.next()
		done += int64(k.n)
		if k.err == nil {
			s.spare = append(s.spare, k.buf[:cap(k.buf)])
		}
		return k.err
	}
	for {
		buf := s.buffer(size)
		n, err := r.Read(buf)
		if n > 0 {
			for len(s.pending) >= max(inFlight, 1) {
				if err := settle(); err != nil {
					return done, err
				}
			}
			s.start(at, buf[:n], f.WriteAt)
			at += int64(n)
		} else {
			s.spare = append(s.spare, buf)
		}
		if err == nil {
			continue
		}
		for len(s.pending) > 0 {
			if err := settle(); err != nil {
				return done, err
			}
		}
		if err != io.EOF {
			return done, fmt.Errorf("read what is to be written: %w", err)
		}
		return done, nil
	}
}
