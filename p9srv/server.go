package p9srv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hugelgupf/p9/p9"
)

// Server serves one tree to any number of connections. Make it with New. Its
// methods may be called at any time, by any goroutine.
type Server struct {
	attacher p9.Attacher
	opts     Options
	count    counters
	bufs     buffers
	pipes    pipes
	trees    places
	// fewWorkers is how many workers a session starts without waiting.
	fewWorkers int

	mu        sync.Mutex
	closed    bool
	lastConn  uint64
	sessions  map[*session]struct{}
	listeners map[net.Listener]struct{}
	running   sync.WaitGroup // Serve and ServeConn
}

// New makes a Server for what a hands out; a may be an AttacherAs, and its
// Files may have the optional interfaces of this package.
func New(a p9.Attacher, o Options) *Server {
	return &Server{
		attacher:   a,
		fewWorkers: 2 * runtime.GOMAXPROCS(0),
		opts:       o.withDefaults(),
		sessions:   map[*session]struct{}{},
		listeners:  map[net.Listener]struct{}{},
	}
}

// acceptRetry is how long Serve waits after an error of Accept that passes,
// like running out of descriptors.
const acceptRetry = 50 * time.Millisecond

// Serve accepts connections from l and serves each, until ctx ends, l fails
// for good or Close is called. It closes l, waits for its connections and
// returns nil when it was told to stop.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if !s.enter(func() { s.listeners[l] = struct{}{} }) {
		l.Close()
		return ErrClosed
	}
	defer s.running.Done()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	defer func() {
		l.Close()
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			conns.Go(func() {
				if err := s.ServeConn(ctx, c); err != nil && !errors.Is(err, ErrClosed) && !hungUp(err) && ctx.Err() == nil {
					s.opts.Log.Warn("9p connection ended", "peer", peerName(c), "err", err)
				}
			})
		case ctx.Err() != nil || s.isClosed():
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("listener %v: %w", l.Addr(), err)
		default:
			s.opts.Log.Warn("9p accept", "addr", l.Addr().String(), "err", err)
			select {
			case <-time.After(acceptRetry):
			case <-ctx.Done():
			}
		}
	}
}

// ServeConn serves one connection until the client ends it, ctx ends or Close
// is called, and closes it. The end of the connection cancels what it has in
// progress, and ServeConn returns when all of it is over and every fid is
// clunked. The error is nil when the client ended it between two messages.
//
// A net.Conn that gives access to its descriptor (TCP, unix) is served with
// less work; any stream will do.
func (s *Server) ServeConn(ctx context.Context, c io.ReadWriteCloser) error {
	var ses *session
	ok := s.enter(func() {
		s.lastConn++
		ses = newSession(s, c, s.lastConn)
		s.sessions[ses] = struct{}{}
	})
	if !ok {
		c.Close()
		return ErrClosed
	}
	defer s.running.Done()
	s.count.connections.Add(1)
	s.count.open.Add(1)
	stop := context.AfterFunc(ctx, func() { ses.fail(errEnded) })
	err := ses.serve()
	stop()
	s.count.open.Add(-1)
	s.mu.Lock()
	delete(s.sessions, ses)
	closed, last := s.closed, len(s.sessions) == 0
	s.mu.Unlock()
	if last {
		s.pipes.close()
	}
	switch {
	case closed:
		return ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return err
}

// enter registers something that Close has to wait for.
func (s *Server) enter(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.running.Add(1)
	f()
	return true
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Close ends every Serve and ServeConn and waits for them. It may be called
// more than once. The error is always nil.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for l := range s.listeners {
		l.Close()
	}
	sessions := slices.Collect(maps.Keys(s.sessions))
	s.mu.Unlock()
	for _, c := range sessions {
		c.fail(ErrClosed)
	}
	s.running.Wait()
	return nil
}

func peerName(c io.ReadWriteCloser) string {
	if n, ok := c.(net.Conn); ok && n.RemoteAddr() != nil {
		return n.RemoteAddr().String()
	}
	return ""
}

// hungUp says that a connection ended because the client closed it before it had all
// its answers, as one may that is killed or unmounted.
func hungUp(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}
