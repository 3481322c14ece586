package cachefs

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/export"
)

// testMaster is a master in this process that listens on a unix socket and can
// be stopped and started again.
type testMaster struct {
	t     testing.TB
	dir   string
	sock  string
	tree  *tree.Tree
	opt   tree.Options
	lease time.Duration // 0: as in use

	stop func()
	gone bool // its disk is: what the end of it says does not count
}

func newMaster(t testing.TB) *testMaster {
	t.Helper()
	testutil.CheckLeaks(t)
	return newMasterIn(t, t.TempDir())
}

func newMasterIn(t testing.TB, dir string) *testMaster {
	t.Helper()
	return newMasterWith(t, dir, tree.Options{SyncEvery: 50 * time.Millisecond})
}

func newMasterWith(t testing.TB, dir string, o tree.Options) *testMaster {
	t.Helper()
	m := &testMaster{t: t, dir: dir, sock: filepath.Join(t.TempDir(), "s"), opt: o}
	if err := tree.Init(m.dir, tree.Options{Boot: o.Boot}); err != nil {
		t.Fatal(err)
	}
	m.start()
	t.Cleanup(func() { m.stop() })
	return m
}

func (m *testMaster) start() {
	m.t.Helper()
	tr, err := tree.Open(m.dir, m.opt)
	if err != nil {
		m.t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		quiet = slog.New(slog.NewTextHandler(os.Stderr, nil))
		m.opt.Logger = quiet
	}
	j, err := export.NewJournal(tr, export.JournalOptions{Heartbeat: 50 * time.Millisecond, Lease: m.lease, Logger: quiet})
	if err != nil {
		m.t.Fatal(err)
	}
	srv := p9srv.New(export.New(j.FS(), export.Options{Ext: j, Door: 7, InPlace: true, Logger: quiet}), p9srv.Options{})
	l, err := net.Listen("unix", m.sock)
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ctx, l)
	}()
	m.tree = tr
	m.stop = sync.OnceFunc(func() {
		cancel()
		l.Close()
		if err := j.Close(); err != nil {
			m.t.Error(err)
		}
		if err := srv.Close(); err != nil {
			m.t.Error(err)
		}
		<-done
		if err := tr.Close(); err != nil && !m.gone {
			m.t.Error(err)
		}
	})
}

// client opens a client of addr with a cache of its own.
func (m *testMaster) client(addr string) *Client {
	m.t.Helper()
	return openClient(m.t, m.t.TempDir(), addr)
}

func openClient(t testing.TB, dir, addr string) *Client {
	t.Helper()
	c, err := tryClient(t, dir, addr)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func tryClient(t testing.TB, dir, addr string) (*Client, error) {
	return clientWith(t, optionsOf(dir, addr))
}

// optionsOf is patient: a busy machine is no dead link.
func optionsOf(dir, addr string) Options {
	return Options{Dir: dir, Addr: addr, Host: "h", Dead: 20 * time.Second, Grace: 50 * time.Millisecond,
		Retry: 50 * time.Millisecond, WholeMax: 3 << 20}
}

func clientWith(t testing.TB, o Options) (*Client, error) {
	if testing.Verbose() {
		o.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	c, err := Open(context.Background(), o)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return c, nil
}

func ctxOf(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// proxy passes connections on to a master, and can cut them and refuse new ones.
type proxy struct {
	addr   string
	target string
	l      net.Listener
	wg     sync.WaitGroup
	passed atomic.Int64 // bytes, both ways

	mu    sync.Mutex
	conns map[net.Conn]bool
	shut  bool
	down  int64 // bytes from the master
	// limit, when positive, is how many more bytes go to the master before
	// everything is cut.
	limit int64
	total int64 // bytes that have gone to the master
	// delay is what each buffer to the master takes.
	delay time.Duration
	// frozen, when not nil, is closed when bytes go on again.
	frozen chan struct{}
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	p := &proxy{addr: filepath.Join(t.TempDir(), "p"), target: target, conns: make(map[net.Conn]bool)}
	l, err := net.Listen("unix", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	p.l = l
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.cut(true)
		p.wg.Wait()
	})
	return p
}

func (p *proxy) accept() {
	for {
		a, err := p.l.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("unix", p.target)
		p.mu.Lock()
		if err != nil || p.shut {
			p.mu.Unlock()
			a.Close()
			if b != nil {
				b.Close()
			}
			continue
		}
		p.conns[a], p.conns[b] = true, true
		p.mu.Unlock()
		p.wg.Go(func() { p.pipe(b, a, true) })
		p.wg.Go(func() { p.pipe(a, b, false) })
	}
}

func (p *proxy) pipe(dst, src net.Conn, up bool) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 4096)
	for {
		n, err := src.Read(buf)
		p.passed.Add(int64(n))
		p.mu.Lock()
		frozen, delay := p.frozen, p.delay
		if !up {
			p.down += int64(n)
		}
		p.mu.Unlock()
		if up && delay > 0 {
			<-time.After(delay) // the link's own slowness
		}
		if frozen != nil {
			<-frozen
		}
		if up {
			p.mu.Lock()
			p.total += int64(n)
			cut := false
			if p.limit > 0 {
				if p.limit -= int64(n); p.limit <= 0 {
					cut = true
				}
			}
			p.mu.Unlock()
			if cut {
				p.cut(false)
				return
			}
		}
		if _, werr := dst.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// cut ends all connections; with shut new ones are refused until open.
func (p *proxy) cut(shut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shut = shut
	p.limit = 0
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

// fetched is how many bytes came from the master so far.
func (p *proxy) fetched() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.down
}

// slow lets each buffer to the master take d.
func (p *proxy) slow(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// freeze holds all bytes back, or lets them go on.
func (p *proxy) freeze(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on && p.frozen == nil {
		p.frozen = make(chan struct{})
	} else if !on && p.frozen != nil {
		close(p.frozen)
		p.frozen = nil
	}
}

// sent is how many bytes have gone to the master.
func (p *proxy) sent() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total
}

func (p *proxy) open() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shut = false
}

// cutAfter cuts once n more bytes have gone to the master.
func (p *proxy) cutAfter(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = n
}

// readFile reads path, relative to the root, through fs.
func readFile(ctx context.Context, fs tree.FS, name string) (string, error) {
	a, err := fs.Lookup(ctx, nil, kml.RootOID, name)
	if err != nil {
		return "", err
	}
	return readOID(ctx, fs, a.OID)
}

func readOID(ctx context.Context, fs tree.FS, oid kml.OID) (string, error) {
	h, err := fs.Open(ctx, nil, oid, os.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer h.Close()
	r := io.NewSectionReader(readerAt{ctx, h}, 0, 1<<40)
	b, err := io.ReadAll(r)
	return string(b), err
}

type readerAt struct {
	ctx context.Context
	h   tree.Handle
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.h.ReadAt(r.ctx, p, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// writeFile makes name hold s.
func writeFile(ctx context.Context, fs tree.FS, name, s string) error {
	_, h, err := fs.Create(ctx, nil, kml.RootOID, name, os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if s != "" {
		if _, err := h.WriteAt(ctx, []byte(s), 0); err != nil {
			h.Close()
			return err
		}
	}
	return h.Close()
}

// names lists a folder, in alphabetical order.
func names(ctx context.Context, fs tree.FS, oid kml.OID) ([]string, error) {
	h, err := fs.OpenDir(ctx, nil, oid)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	var out []string
	for off := uint64(0); ; {
		es, err := h.ReadDir(ctx, off, 100)
		if err != nil || len(es) == 0 {
			slices.Sort(out)
			return out, err
		}
		for _, e := range es {
			out = append(out, e.Name)
			off = e.Off
		}
	}
}

// same waits until what f answers is want: something travels between hosts.
func same(t *testing.T, want string, f func() (string, error)) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	var got string
	var err error
	for tick := time.NewTicker(2 * time.Millisecond); time.Now().Before(deadline); <-tick.C {
		if got, err = f(); err == nil && got == want {
			tick.Stop()
			return
		}
	}
	if len(got) > 200 {
		got = got[:200]
	}
	t.Fatalf("got %q, %v, want %.200q", got, err, want)
}
