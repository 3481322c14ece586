package p9srv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"syscall"

	"github.com/mezzofs/mezzo/p9srv/wire"
	"golang.org/x/sys/unix"
)

// session is a connection: its reader, its fids and what is in progress.
//
// Order of locks: mu, then outq.mu. No File is called under either.
type session struct {
	srv  *Server
	conn io.ReadWriteCloser
	raw  syscall.RawConn // nil: not a socket
	num  uint64
	peer string
	cred *peerCred
	ctx  context.Context // values only
	q    outq

	// The reader's own: what came in, answers not queued yet, what it counted.
	in       []byte // buffer; nil while nothing is expected soon
	r, w     int    // in[r:w] is unread
	readN    int
	readErr  error
	readFunc func(uintptr) bool
	out      []byte
	queued   int  // bytes of full buffers before out that may not be on their way yet
	call     call // what runs in place
	scratch  scratch
	requests uint64
	inPlace  uint64
	msize    uint32 // 0 before the first Tversion
	dialect  dialect
	crowded  bool // requests in progress hold all the memory there is
	spent    int  // bytes of answers and requests since makeRoom

	group sync.WaitGroup // workers, timers and the writer

	mu       sync.Mutex
	fids     map[wire.FID]*slot
	tags     map[wire.Tag]*request
	runq     []*request
	pending  int // requests
	workers  int
	idle     int
	watching bool // unstick will come
	ending   bool
	muted    bool  // answers are not sent
	err      error // why it failed
	work     sync.Cond
	quiet    sync.Cond
}

// Sizes of the reader's buffer and of what it collects before writing.
const (
	inSize     = 64 << 10
	slowInSize = 8 << 10 // where a read holds its buffer while it waits
	outSize    = 32 << 10
	maxQueued  = 128 << 10
	firstFrame = 8 << 10 // largest frame before the first Tversion
	stealFrame = 32 << 10
	unixBuffer = 1 << 20 // of a unix socket; TCP finds its own
	smallMove  = 4 << 10 // what is moved to the front of the buffer to make room behind
)

func newSession(srv *Server, c io.ReadWriteCloser, num uint64) *session {
	s := &session{
		srv: srv, conn: c, num: num, peer: peerName(c),
		// Every request of the session ends with it; there is nothing above.
		ctx:  context.Background(),
		fids: map[wire.FID]*slot{}, tags: map[wire.Tag]*request{},
	}
	s.work.L, s.quiet.L = &s.mu, &s.mu
	switch n := c.(type) {
	case *net.UnixConn:
		s.raw, _ = n.SyscallConn()
		s.cred = peerCredentials(s.raw)
		// As much as the system allows: less only means more turns.
		_ = n.SetWriteBuffer(unixBuffer)
	case *net.TCPConn:
		s.raw, _ = n.SyscallConn()
	}
	s.readFunc = s.rawRead
	s.q.init(c, s.raw, srv, &s.group, s.fail)
	return s
}

// fail ends the session; the first reason counts.
func (s *session) fail(err error) {
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = err
	}
	s.mu.Unlock()
	if first {
		s.q.stop()
		s.conn.Close()
	}
}

// serve runs the session to its end.
func (s *session) serve() error {
	err := s.readLoop()
	s.fail(err)
	s.mu.Lock()
	err = s.err
	s.mu.Unlock()
	s.quiesce()
	s.clunkAll()
	s.mu.Lock()
	s.ending = true
	s.work.Broadcast()
	s.mu.Unlock()
	s.group.Wait()
	s.tally()
	if errors.Is(err, io.EOF) || errors.Is(err, errEnded) {
		return nil
	}
	return fmt.Errorf("%s: %w", s.peer, err)
}

// readLoop takes message after message.
func (s *session) readLoop() error {
	for {
		frame, err := s.next()
		if err != nil {
			return err
		}
		if s.srv.opts.Trace != nil {
			s.trace("<-", frame)
		}
		s.requests++
		if err := s.dispatch(frame); err != nil {
			return err
		}
		if len(s.out) >= outSize {
			s.flushOut()
		}
		if s.spent >= s.srv.opts.MaxBytes/8 {
			// One read may have brought requests for far more than there is room for.
			s.flushOut()
			s.makeRoom()
		}
	}
}

// next returns the next frame, which is valid until the next call. It sends
// what was answered before it waits.
func (s *session) next() ([]byte, error) {
	for {
		have := s.in[s.r:s.w]
		need := wire.HeaderSize
		if len(have) >= 4 {
			size := binary.LittleEndian.Uint32(have)
			limit := s.msize
			if limit == 0 {
				limit = firstFrame
			}
			if size < wire.HeaderSize || size > limit {
				return nil, fmt.Errorf("%w: frame of %d bytes, msize is %d", ErrProtocol, size, limit)
			}
			need = max(int(size), need)
			if len(have) >= int(size) {
				s.r += int(size)
				return have[:size:size], nil
			}
			if size >= partsMin && s.raw != nil {
				if done, err := s.writeParts(have); err != nil {
					return nil, midFrame(err)
				} else if done {
					continue
				}
			}
		}
		if err := s.fill(need); err != nil {
			if len(have) > 0 {
				err = midFrame(err)
			}
			return nil, err
		}
	}
}

// midFrame makes the end of the stream an error.
func midFrame(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// fill reads more; in[r:] gets room for need bytes.
func (s *session) fill(need int) error {
	s.flushOut()
	s.tally()
	s.makeRoom()
	have := s.in[s.r:s.w]
	switch {
	case len(have) == 0 && cap(s.in) > inSize && need <= inSize:
		s.srv.bufs.put(s.in)
		s.in, s.r, s.w = nil, 0, 0
	case cap(s.in)-s.r < need || s.r > 0 && len(have) < smallMove:
		b := s.in
		if cap(b) < need {
			b = s.srv.bufs.get(max(need, s.inSize()))
		}
		b = b[:cap(b)]
		copy(b, have)
		if cap(s.in) > 0 && &b[0] != &s.in[:1][0] {
			s.srv.bufs.put(s.in)
		}
		s.in, s.r, s.w = b, 0, len(have)
	case len(have) == 0:
		s.r, s.w = 0, 0
	}
	n, err := s.read()
	if n > 0 {
		s.w += n
		s.srv.count.reads.Add(1)
		s.srv.count.bytesIn.Add(uint64(n))
		return nil
	}
	if err == nil {
		err = io.EOF
	}
	return err
}

// makeRoom waits until the connection is within its memory.
func (s *session) makeRoom() {
	s.spent = 0
	s.crowded = !s.q.waitRoom(s.srv.opts.MaxBytes, !s.crowded)
}

func (s *session) inSize() int {
	if s.raw == nil {
		return slowInSize
	}
	return inSize
}

func (s *session) read() (int, error) {
	if s.raw == nil {
		s.needIn()
		return s.conn.Read(s.in[s.w:])
	}
	if err := s.raw.Read(s.readFunc); err != nil {
		return 0, err
	}
	return s.readN, s.readErr
}

func (s *session) needIn() {
	if s.in == nil {
		s.in = s.srv.bufs.get(s.inSize())
		s.in = s.in[:cap(s.in)]
	}
}

// rawRead reads without waiting. An idle connection keeps no buffer.
func (s *session) rawRead(fd uintptr) bool {
	s.needIn()
	for {
		s.readN, s.readErr = unix.Read(int(fd), s.in[s.w:])
		switch s.readErr {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			if s.w == 0 {
				s.srv.bufs.put(s.in)
				s.in = nil
			}
			return false
		}
		s.readN = max(s.readN, 0)
		return true
	}
}

// steal makes the frame that next returned last the caller's: buf is the memory
// it is in now.
func (s *session) steal(frame []byte) (buf, own []byte) {
	if len(frame) < stealFrame {
		buf = append(s.srv.bufs.get(len(frame)), frame...)
		return buf, buf
	}
	buf = s.in
	have := s.in[s.r:s.w]
	s.in, s.r, s.w = nil, 0, 0
	if len(have) > 0 {
		s.in = s.srv.bufs.get(max(len(have), s.inSize()))
		s.in = s.in[:cap(s.in)]
		s.w = copy(s.in, have)
	}
	return buf, frame
}

// send queues answers. It does no I/O.
func (s *session) send(b []byte) {
	if s.srv.opts.Trace != nil {
		s.trace("->", b)
	}
	s.q.add(b)
}

// queue queues a buffer of answers given in place; they leave together, unless
// they are many.
func (s *session) queue(b []byte) {
	s.send(b)
	s.spent += len(b)
	if s.queued += len(b); s.queued >= maxQueued {
		s.queued = 0
		s.q.flush(false)
	}
}

// flushOut sends what was answered in place.
func (s *session) flushOut() {
	if len(s.out) > 0 {
		s.send(s.out)
		s.spent += len(s.out)
		s.queued += len(s.out)
		s.out = nil
	} else if s.out != nil {
		s.srv.bufs.put(s.out)
		s.out = nil
	}
	if s.queued > 0 {
		s.queued = 0
		s.q.flush(false)
	}
}

// tally adds what the reader counted to the server's counts.
func (s *session) tally() {
	s.srv.count.requests.Add(s.requests)
	s.srv.count.inPlace.Add(s.inPlace)
	s.requests, s.inPlace = 0, 0
}

// guard turns a panic of f into an error.
func (s *session) guard(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			s.srv.count.panics.Add(1)
			err = &panicError{value: v, stack: debug.Stack()}
		}
	}()
	return f()
}

// log is the one line for an error that the client is told little about.
func (s *session) log(msg string, err error, args ...any) {
	args = append([]any{"conn", s.num, "peer", s.peer, "err", err}, args...)
	var p *panicError
	if errors.As(err, &p) {
		args = append(args, "stack", string(p.stack))
	}
	s.srv.opts.Log.Error(msg, args...)
}
