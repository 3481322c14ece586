package cachefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// link is one 9P connection, attached to the root of a master's tree. Its
// methods may be called at the same time. Errors that the server answered with
// are syscall.Errno; any other means that the connection is of no use.
type link interface {
	// Open opens the file at names below the journal extension's folder.
	Open(ctx context.Context, flags int, names ...string) (linkFile, error)
	// Create makes and opens a file in a folder of the journal extension.
	Create(ctx context.Context, flags int, names ...string) (linkFile, error)
	Statfs(ctx context.Context) (tree.Statfs, error)
	// Heard changes when bytes come.
	Heard() uint64
	Close() error
}

// linkFile is an open file at the master. ReadAt gives what one or more reads
// bring: all of p unless the file ends, or on a stream what there is.
type linkFile interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// ReadOnce is a single read.
	ReadOnce(ctx context.Context, p []byte, off int64) (int, error)
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
	Stat(ctx context.Context) (size, dataVersion uint64, err error)
	Sync(ctx context.Context) error
	Close() error
}

// dialer makes a link; wrap may be nil.
type dialer func(ctx context.Context, o *Options, wrap wrapper) (link, error)

// wrapper is laid around a connection.
type wrapper func(io.ReadWriteCloser) io.ReadWriteCloser

// upstream is the client's link: one connection for what waits (feed, reint,
// permit), one for everything else.
type upstream struct {
	o       *Options
	streams link
	calls   link
	feed    *stream
	reint   *stream
	permits *permits
	greet   feed.Greeting
	welcome feed.Welcome

	pace     *pacer
	sending  atomic.Bool // the session on reint has begun
	offers   *offers
	after    atomic.Uint64  // nothing is sent before the cache is at this position
	sent     chan sentBatch // batches whose results have not come
	inFlight int            // of them; guarded by pusher.mu
	setup    *time.Timer    // bounds the making of the link

	ctx    context.Context // ends with the link
	cancel context.CancelFunc
	once   sync.Once
}

// Errors of connecting that trying again will not mend.
var (
	// ErrNotMezzo is a 9P server without the journal extension.
	ErrNotMezzo = errors.New("is a 9P server without the journal extension")
	// ErrNotAllowed is a master that does not let this user follow.
	ErrNotAllowed = errors.New("does not let this user follow it")
	// ErrNot9P is something that does not speak 9P2000.L.
	ErrNot9P = errors.New("is not a 9P2000.L server")
)

func permanent(err error) bool {
	return errors.Is(err, ErrNotMezzo) || errors.Is(err, ErrNotAllowed) || errors.Is(err, ErrNot9P) || errors.Is(err, kml.ErrNewer)
}

// mountLine is how a kernel mounts addr without Mezzo's help.
func mountLine(addr string) string {
	if path, ok := unixPath(addr); ok {
		return fmt.Sprintf("mount -t 9p -o trans=unix,version=9p2000.L,cache=none %s MNT", path)
	}
	host, port := tcpHostPort(addr)
	return fmt.Sprintf("mount -t 9p -o trans=tcp,port=%s,version=9p2000.L,cache=none %s MNT", port, host)
}

func unixPath(addr string) (string, bool) {
	if p, ok := strings.CutPrefix(addr, "unix!"); ok {
		return p, true
	}
	return addr, strings.HasPrefix(addr, "/")
}

func tcpHostPort(addr string) (host, port string) {
	if p, ok := strings.CutPrefix(addr, "tcp!"); ok {
		if i := strings.LastIndexByte(p, '!'); i >= 0 {
			return p[:i], p[i+1:]
		}
	}
	if i := strings.LastIndexByte(addr, ':'); i >= 0 {
		return strings.Trim(addr[:i], "[]"), addr[i+1:]
	}
	return addr, "564"
}

// setupTime bounds each step of connecting.
const setupTime = 5 * time.Second

// connect dials, brings a cache that cannot go on from where it is back to a
// beginning, and opens feed and reint.
func (c *Client) connect(ctx context.Context) (_ *upstream, err error) {
	up := &upstream{o: &c.o, pace: c.pace, sent: make(chan sentBatch, maxInFlight)}
	up.ctx, up.cancel = context.WithCancel(c.ctx)
	up.offers = newOffers(up, c.log, c.cache.Hold)
	defer func() {
		if err != nil {
			up.close()
			err = explain(c.o.Addr, err)
		}
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	up.setup = time.AfterFunc(4*setupTime, func() { cancel(context.DeadlineExceeded) })
	defer up.setup.Stop()
	if up.streams, err = c.o.dial(ctx, &c.o, c.limit(true)); err != nil {
		return nil, err
	}
	if up.calls, err = c.o.dial(ctx, &c.o, c.limit(false)); err != nil {
		return nil, err
	}
	if err := c.openFeed(ctx, up); err != nil {
		return nil, err
	}
	err = c.openReint(ctx, up)
	if errors.Is(err, syscall.EHOSTDOWN) {
		// A replica that has no link to its master can be followed all the same.
		c.log.Info("changes cannot be sent yet; the master is out of the replica's reach", "addr", c.o.Addr, "err", err)
		err = nil
	}
	if err != nil {
		return nil, err
	}
	if c.rules.Load() == nil { // later changes of them come with the log
		return up, c.fetchPolicies(ctx, up)
	}
	return up, nil
}

// sends reports whether changes can be sent on a link.
func (u *upstream) sends() bool { return u != nil && u.sending.Load() }

// beginSending begins the session on a link that has none, as soon as that can
// be; false when the link has ended.
func (c *Client) beginSending(up *upstream) bool {
	for pause := 100 * time.Millisecond; !up.sends(); pause = min(2*pause, c.o.Retry) {
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-up.ctx.Done():
			t.Stop()
			return false
		}
		ctx, cancel := context.WithTimeout(up.ctx, 4*setupTime)
		err := c.openReint(ctx, up)
		cancel()
		if err != nil && !errors.Is(err, syscall.EHOSTDOWN) {
			c.giveUp(up, err)
			return false
		}
	}
	c.push.wake()
	return true
}

// explain names the address and the remedy.
func explain(addr string, err error) error {
	var f *feed.Failure
	switch {
	case errors.As(err, &f) && f.Code == feed.CodeNotAllowed, errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%s: %w: %w; let it on the master (serve --allow), or mount it with: %s", addr, ErrNotAllowed, err, mountLine(addr))
	case errors.Is(err, ErrNotMezzo):
		return fmt.Errorf("%s: %w; mount it with: %s", addr, err, mountLine(addr))
	case errors.Is(err, ErrNot9P):
		return fmt.Errorf("%s: %w", addr, err)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("%s: nobody listens there: %w; start the master with: mezzo serve DIR --listen %s", addr, err, addr)
	}
	return fmt.Errorf("%s: %w", addr, err)
}

// open opens a file of the journal extension; a server that has none is
// ErrNotMezzo.
func (u *upstream) open(ctx context.Context, l link, flags int, names ...string) (linkFile, error) {
	f, err := l.Open(ctx, flags, names...)
	if errors.Is(err, syscall.ENOENT) && len(names) == 1 {
		return nil, fmt.Errorf("%w (%s/%s: %v)", ErrNotMezzo, tree.ExtDirName, names[0], err)
	}
	return f, err
}

// openFeed follows from the cache's cursor. Where the master does not have that
// position in its history, or not any more, the cache starts again from a
// snapshot; so does a new one.
func (c *Client) openFeed(ctx context.Context, up *upstream) error {
	for try := 0; ; try++ {
		pos, crc := c.cache.Cursor()
		if pos == 0 || try > 0 {
			c.rules.Store(nil) // no record said what they are
			var err error
			if pos, crc, err = c.startOver(ctx, up); err != nil {
				return err
			}
		}
		err := up.follow(ctx, feed.Request{From: pos, CRC: crc})
		var f *feed.Failure
		switch {
		case err == nil && c.sameFileset(up):
			return c.remember(up)
		case err == nil && try < 3:
			if err := c.otherFileset(up); err != nil {
				return err
			}
		case errors.As(err, &f) && (f.Code == feed.CodeHistoryCut || f.Code == feed.CodeTruncated) && try < 3:
			c.log.Warn("the master's history is not the one that was followed; what is clean is fetched again", "addr", c.o.Addr, "err", err)
		case err == nil:
			return fmt.Errorf("fileset changes with every look: %w", syscall.EIO)
		default:
			return err
		}
		if up.feed != nil {
			up.feed.close()
		}
	}
}

// follow opens the feed behind a position.
func (u *upstream) follow(ctx context.Context, q feed.Request) error {
	f, err := u.open(ctx, u.streams, unix.O_RDWR, "feed")
	if err != nil {
		return err
	}
	s := &stream{f: f}
	if err := s.write(ctx, []byte(q.String())); err != nil {
		return errors.Join(err, s.close())
	}
	m, err := s.next(ctx)
	if err == nil {
		g, ok := m.(*feed.Greeting)
		if ok && g.Version == feed.Version {
			u.feed, u.greet = s, *g
			return nil
		}
		err = unexpected(m, "a greeting")
	}
	s.close()
	return err
}

func unexpected(m feed.Message, want string) error {
	switch m := m.(type) {
	case *feed.Failure:
		return m
	case *feed.Greeting:
		return fmt.Errorf("the master speaks version %d of the protocol, this is %d: %w", m.Version, feed.Version, kml.ErrNewer)
	}
	return fmt.Errorf("%T where %s is due: %w", m, want, feed.ErrFrame)
}

func (c *Client) sameFileset(up *upstream) bool {
	fs := c.cache.State().Fileset()
	return fs.Upstream == "" || fs.UUID == up.greet.Fileset
}

// remember keeps whose cache this is.
func (c *Client) remember(up *upstream) error {
	fs := c.cache.State().Fileset()
	if fs.UUID == up.greet.Fileset && fs.Upstream == c.o.Addr && fs.Epoch == up.greet.Epoch {
		return nil
	}
	return c.cache.State().Update(func(f *tree.Fileset) {
		f.UUID, f.Upstream, f.Epoch = up.greet.Fileset, c.o.Addr, up.greet.Epoch
	})
}

// otherFileset makes the cache one of another fileset: what was not sent to the
// old one is kept aside.
func (c *Client) otherFileset(up *upstream) error {
	fs := c.cache.State().Fileset()
	c.log.Warn("another fileset is served there; the cache starts anew", "addr", c.o.Addr, "fileset", up.greet.Fileset, "was", fs.UUID)
	if err := c.cache.CutAll(); err != nil {
		return err
	}
	c.push.turn.Lock()
	defer c.push.turn.Unlock()
	if err := c.setAsideAll("made for fileset " + fs.UUID); err != nil {
		return err
	}
	return c.cache.State().Update(func(f *tree.Fileset) {
		f.UUID, f.Upstream, f.Site, f.Key = up.greet.Fileset, "", 0, ""
	})
}

// openReint begins the session in which this site's changes are sent.
func (c *Client) openReint(ctx context.Context, up *upstream) error {
	f, err := up.open(ctx, up.streams, unix.O_RDWR, "reint")
	if err != nil {
		return err
	}
	s := &stream{f: f, pace: up.pace}
	defer func() {
		if !up.sends() {
			s.close()
		}
	}()
	fs := c.cache.State().Fileset()
	hello := &feed.Hello{Version: feed.Version, Site: fs.Site, Key: fs.Key, Host: c.o.Host, Known: c.cache.Local().Known()}
	b, err := feed.Append(nil, hello)
	if err != nil {
		return err
	}
	if err := s.write(ctx, b); err != nil {
		return err
	}
	m, err := s.next(ctx)
	if err != nil {
		return err
	}
	w, ok := m.(*feed.Welcome)
	if !ok {
		return unexpected(m, "a welcome")
	}
	up.welcome = *w
	// Number and key are kept before they are used.
	if err := c.cache.State().Update(func(f *tree.Fileset) { f.Site, f.Key = w.Site, w.Key }); err != nil {
		return err
	}
	if err := c.cache.State().AboveCounter(w.MaxCounter); err != nil {
		return err
	}
	if c.cache.Local().Unknown(w.LastSeq) {
		// What of it is still here unsent is found out before anything is sent.
		up.after.Store(uint64(w.Position))
	}
	if err := c.cache.Local().Above(w.LastSeq); err != nil {
		return err
	}
	c.push.turn.Lock()
	defer c.push.turn.Unlock()
	if fs.Site != 0 && fs.Site != w.Site {
		c.log.Warn("the master takes this cache for a copy and gave it a site number of its own", "site", w.Site, "was", fs.Site)
		err = c.renumber(w.Site)
	} else {
		err = c.lostByMaster(w.LastSeq)
	}
	if err == nil {
		err = c.openPermit(ctx, up)
	}
	if err == nil {
		up.reint = s
		up.sending.Store(true)
	}
	return err
}

// close ends the link and everything that waits on it.
func (u *upstream) close() {
	u.once.Do(func() {
		u.cancel()
		if u.streams != nil {
			u.streams.Close()
		}
		if u.calls != nil {
			u.calls.Close()
		}
	})
}

// bind is ctx, ended by the link's end too.
func (u *upstream) bind(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(u.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// down makes EHOSTDOWN of what is not the master's answer but the want of one.
func (u *upstream) down(ctx context.Context, err error) error {
	var errno syscall.Errno
	switch {
	case err == nil || errors.As(err, &errno):
		return err
	case ctx.Err() != nil && u.ctx.Err() == nil:
		return ctx.Err()
	}
	return fmt.Errorf("%w: %w", syscall.EHOSTDOWN, err)
}

// stream reads frames from a file that is read by offset, and writes them.
type stream struct {
	f    linkFile
	pace *pacer
	dec  feed.Decoder
	buf  []byte
	in   int64
	out  int64
}

// write writes all of b, by pieces of the pacer when there is one.
func (s *stream) write(ctx context.Context, b []byte) (err error) {
	if s.pace != nil {
		err = s.pace.write(ctx, s.f, b, s.out, true)
	} else {
		_, err = writeAll(ctx, s.f, b, s.out)
	}
	s.out += int64(len(b)) // with an error it is of no use any more
	return err
}

// writeAll writes all of b at off. A write that was interrupted is made again.
func writeAll(ctx context.Context, f linkFile, b []byte, off int64) (n int, err error) {
	for n < len(b) {
		m, err := f.WriteAt(ctx, b[n:], off+int64(n))
		if errors.Is(err, syscall.EINTR) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			return n, fmt.Errorf("write at %d took nothing: %w", off+int64(n), syscall.EIO)
		}
		n += m
	}
	return n, nil
}

var errStreamEnd = errors.New("the master ended the stream")

// next is the next message; it waits until ctx ends.
func (s *stream) next(ctx context.Context) (feed.Message, error) {
	for {
		f, ok, err := s.dec.Next()
		if err != nil {
			return nil, err
		}
		if ok {
			m, err := f.Message()
			if err != nil || m != nil {
				return m, err
			}
			continue
		}
		if err := s.fill(ctx); err != nil {
			return nil, err
		}
	}
}

// ready is the next message when it has been read already; nil when it has not.
func (s *stream) ready() (feed.Message, error) {
	for {
		f, ok, err := s.dec.Next()
		if err != nil || !ok {
			return nil, err
		}
		if m, err := f.Message(); err != nil || m != nil {
			return m, err
		}
	}
}

// fill reads what there is. A read that was interrupted is asked for again at
// the same offset and loses nothing.
func (s *stream) fill(ctx context.Context) error {
	if s.buf == nil {
		s.buf = make([]byte, 128<<10)
	}
	for {
		n, err := s.f.ReadOnce(ctx, s.buf, s.in)
		if errors.Is(err, syscall.EINTR) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return errStreamEnd
		}
		s.in += int64(n)
		_, err = s.dec.Write(s.buf[:n])
		return err
	}
}

func (s *stream) close() error { return s.f.Close() }
