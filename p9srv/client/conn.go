package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// Conn is a connection to a 9P server.
type Conn struct {
	rwc   io.ReadWriteCloser
	addr  string
	opts  Options
	msize uint32 // agreed on; set before the goroutines start, as is version

	version string // a dialect

	wg       sync.WaitGroup
	dead     chan struct{} // closed when err is set
	wake     chan struct{} // one signal, buffered: out has bytes
	inFlight chan struct{} // holds one for each request in flight

	// mu guards what follows.
	mu      sync.Mutex
	err     error         // why the connection ended
	out     []byte        // frames to be sent
	drained chan struct{} // closed when out has been taken; nil if nobody waits
	slots   []slot        // by tag
	idle    []wire.Tag    // tags not in use
	waiting int           // slots with a call
	probing bool          // a probe is out
	heard   uint64        // reads that brought something
	fids    fidPool
}

// Dial connects to the server at addr (in a form of wire.ParseAddr) and agrees
// on version and message size. The context and Options.Timeout bound it.
func Dial(ctx context.Context, addr string, o Options) (*Conn, error) {
	a, err := wire.ParseAddr(addr)
	if err != nil {
		return nil, err
	}
	o = o.withDefaults()
	if o.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.Timeout, ErrTimeout)
		defer cancel()
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, a.Net, a.Dial())
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err // it names the address, as ConnError does
		}
		return nil, &ConnError{Addr: addr, Err: err}
	}
	return start(ctx, conn, addr, o)
}

// NewConn speaks 9P over rwc, which it owns from then on: it is closed with
// the connection, and also when NewConn fails. Close of rwc must end reads and
// writes under way.
func NewConn(ctx context.Context, rwc io.ReadWriteCloser, o Options) (*Conn, error) {
	o = o.withDefaults()
	if o.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.Timeout, ErrTimeout)
		defer cancel()
	}
	return start(ctx, rwc, "", o)
}

func start(ctx context.Context, rwc io.ReadWriteCloser, addr string, o Options) (*Conn, error) {
	if o.Wrap != nil {
		rwc = o.Wrap(rwc)
	}
	c := &Conn{
		rwc: rwc, addr: addr, opts: o,
		dead:     make(chan struct{}),
		wake:     make(chan struct{}, 1),
		inFlight: make(chan struct{}, o.Requests),
	}
	stop := context.AfterFunc(ctx, func() { rwc.Close() })
	err := c.handshake()
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		rwc.Close()
		var version *VersionError
		if errors.As(err, &version) {
			return nil, err
		}
		return nil, &ConnError{Addr: addr, Err: err}
	}
	c.wg.Go(c.read)
	c.wg.Go(c.write)
	if o.Timeout > 0 {
		c.wg.Go(c.monitor)
	}
	return c, nil
}

// Heard counts the reads that have brought something: a sign of life.
func (c *Conn) Heard() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heard
}

// maxVersion bounds the answer to Tversion; no version's name is longer than a
// few bytes.
const maxVersion = 256

// handshake agrees on a version: the first of those wanted that the server has.
func (c *Conn) handshake() error {
	var refused error
	for _, want := range c.opts.Versions {
		m, err := c.greet(want)
		if err != nil {
			return err
		}
		// It may offer another one that is wanted, too.
		if slices.Contains(c.opts.Versions, m.Version) {
			if m.Msize < minServerMsize || m.Msize > c.opts.Msize {
				return protocolError("message size %d, of %d asked for", m.Msize, c.opts.Msize)
			}
			c.msize, c.version = m.Msize, m.Version
			return nil
		}
		if refused == nil {
			refused = &VersionError{Addr: c.addr, Want: want, Got: m.Version}
		}
	}
	return refused
}

// greet sends a Tversion and reads its answer; a refusal is "unknown".
func (c *Conn) greet(version string) (m wire.Rversion, err error) {
	req := wire.Tversion{Msize: c.opts.Msize, Version: version}
	frame := req.Append(nil, wire.NoTag)
	c.trace(true, frame)
	if _, err := c.rwc.Write(frame); err != nil {
		return m, err
	}
	buf := make([]byte, maxVersion)
	if _, err := io.ReadFull(c.rwc, buf[:wire.HeaderSize]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return m, fmt.Errorf("%w: it hung up on the greeting", ErrNot9P)
		}
		return m, err
	}
	h, err := wire.ParseHeader(buf[:wire.HeaderSize])
	if err != nil || h.Size > maxVersion || h.Tag != wire.NoTag && h.Type != wire.TypeRerror {
		return m, fmt.Errorf("%w: it greets with %q", ErrNot9P, buf[:wire.HeaderSize])
	}
	body := buf[wire.HeaderSize:h.Size]
	if _, err := io.ReadFull(c.rwc, body); err != nil {
		return m, fmt.Errorf("%w: its greeting ends early: %w", ErrNot9P, err)
	}
	c.trace(false, buf[:h.Size])
	switch h.Type {
	case wire.TypeRversion:
		if err := m.Decode(body); err != nil {
			return m, fmt.Errorf("%w: %w", ErrNot9P, err)
		}
	case wire.TypeRlerror, wire.TypeRerror:
		m.Version = wire.VersionUnknown
	default:
		return m, fmt.Errorf("%w: it greets with %v", ErrNot9P, h.Type)
	}
	return m, nil
}

// minServerMsize is the smallest message size worth talking with: every
// message but those with payloads and several long names fits.
const minServerMsize = 512

// Version is the dialect agreed on, such as 9P2000.L.
func (c *Conn) Version() string { return c.version }

// Msize is the message size agreed on, in bytes.
func (c *Conn) Msize() uint32 { return c.msize }

// Addr is the address as dialed; empty for NewConn.
func (c *Conn) Addr() string { return c.addr }

// Done is closed when the connection has ended; Err then says why.
func (c *Conn) Done() <-chan struct{} { return c.dead }

// Err is why the connection ended, a *ConnError, or nil.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// failure is Err for when dead is known to be closed.
func (c *Conn) failure() error { return c.Err() }

// Close ends the connection: calls in flight return ErrClosed. The server
// clunks every fid. It waits for the connection's goroutines and may be called
// twice.
func (c *Conn) Close() error {
	c.fail(ErrClosed)
	c.wg.Wait()
	return nil
}

// fail ends the connection, if it has not ended, and returns why it did.
func (c *Conn) fail(reason error) error {
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	c.err = &ConnError{Addr: c.addr, Err: reason}
	err := c.err
	var calls []*call
	for i := range c.slots {
		if k := c.slots[i].call; k != nil {
			c.slots[i].call = nil
			calls = append(calls, k)
		}
	}
	c.waiting = 0
	c.out = nil
	close(c.dead)
	c.mu.Unlock()
	// The reason stands: an error of closing adds nothing to it.
	c.rwc.Close()
	for _, k := range calls {
		if k.state.CompareAndSwap(callWaiting, callDelivering) {
			k.err = err
			k.done <- struct{}{}
		}
	}
	return err
}

// violated ends the connection for what a call has found in its answer. The
// call's error says so even where the connection ended for another reason
// meanwhile.
func (c *Conn) violated(format string, args ...any) error {
	err := protocolError(format, args...)
	c.fail(err)
	return &ConnError{Addr: c.addr, Err: err}
}

func (c *Conn) trace(sent bool, frame []byte) {
	if c.opts.Trace != nil {
		c.opts.Trace(sent, frame)
	}
}

// firstBuffer is the size buffers start with and go back to.
const firstBuffer = 64 << 10

// read takes what the server sends apart into frames until the connection
// ends.
func (c *Conn) read() {
	buf := make([]byte, firstBuffer)
	have := 0
	for {
		n, err := c.rwc.Read(buf[have:])
		have += n
		if n > 0 {
			c.mu.Lock()
			c.heard++
			c.mu.Unlock()
		}
		used, need, perr := c.frames(buf[:have])
		if perr != nil {
			c.fail(perr)
			return
		}
		if err != nil {
			c.fail(lost(err, have > used))
			return
		}
		if need > len(buf) {
			grown := make([]byte, min(max(need, 2*len(buf)), int(c.msize)))
			have = copy(grown, buf[used:have])
			buf = grown
		} else if used > 0 {
			have = copy(buf, buf[used:have])
		}
	}
}

func lost(err error, midFrame bool) error {
	switch {
	case errors.Is(err, io.EOF) && midFrame:
		return fmt.Errorf("connection lost: %w", io.ErrUnexpectedEOF)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("connection lost: the server hung up: %w", err)
	}
	return fmt.Errorf("connection lost: %w", err)
}

// frames handles the whole frames at the start of b. It says how many bytes
// they had and how long the next one is, as far as known.
func (c *Conn) frames(b []byte) (used, need int, err error) {
	for {
		rest := b[used:]
		if len(rest) < wire.HeaderSize {
			return used, wire.HeaderSize, nil
		}
		h, err := wire.ParseHeader(rest)
		if err != nil {
			return used, 0, protocolError("%v", err)
		}
		if h.Size > c.msize {
			return used, 0, protocolError("%v of %d bytes, %d were agreed on", h.Type, h.Size, c.msize)
		}
		if int(h.Size) > len(rest) {
			return used, int(h.Size), nil
		}
		frame := rest[:h.Size:h.Size]
		c.trace(false, frame)
		if err := c.answered(h, frame[wire.HeaderSize:]); err != nil {
			return used, 0, err
		}
		used += int(h.Size)
	}
}

func (c *Conn) wakeWriter() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// write sends what the calls have put together.
func (c *Conn) write() {
	var sending []byte
	for {
		select {
		case <-c.wake:
		case <-c.dead:
			return
		}
		for {
			c.mu.Lock()
			if len(c.out) == 0 {
				c.mu.Unlock()
				break
			}
			if cap(sending) > 4*firstBuffer {
				sending = nil
			}
			sending, c.out = c.out, sending[:0]
			if c.drained != nil {
				close(c.drained)
				c.drained = nil
			}
			c.mu.Unlock()
			c.traceAll(sending)
			if _, err := c.rwc.Write(sending); err != nil {
				c.fail(lost(err, false))
				return
			}
		}
	}
}

func (c *Conn) traceAll(b []byte) {
	if c.opts.Trace == nil {
		return
	}
	for len(b) > 0 {
		h, err := wire.ParseHeader(b)
		if err != nil || int(h.Size) > len(b) {
			return
		}
		c.trace(true, b[:h.Size])
		b = b[h.Size:]
	}
}
