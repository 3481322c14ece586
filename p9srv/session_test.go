package p9srv_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hugelgupf/p9/fsimpl/localfs"
	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
	"golang.org/x/sys/unix"
)

// expect reads the next message and compares its text.
func (r *raw) expect(want string) {
	r.t.Helper()
	tag, m := r.recv()
	if got := wire.Text(tag, m); got != want {
		r.t.Fatalf("got %s, want %s", got, want)
	}
}

func TestFlush(t *testing.T) {
	for _, kind := range []string{"concurrent", "inplace"} {
		t.Run(kind, func(t *testing.T) {
			testutil.CheckLeaks(t)
			fs := newMemfs(kind).put("block", "f")
			srv, r := serveRaw(t, fs, p9srv.Options{})
			r.attach().openPath(1, 0, "block")

			// A read that waits is cancelled; its answer comes first.
			r.send(7, &wire.Tread{FID: 1, Count: 10})
			<-fs.blocked
			r.send(8, &wire.Tflush{OldTag: 7})
			r.expect("Rlerror tag 7 errno 4")
			r.expect("Rflush tag 8")

			// Its tag is free again, and a flush may be flushed, too.
			r.send(7, &wire.Tread{FID: 1, Count: 10})
			<-fs.blocked
			r.bytes((&wire.Tflush{OldTag: 8}).Append((&wire.Tflush{OldTag: 7}).Append(nil, 8), 9))
			r.expect("Rlerror tag 7 errno 4")
			r.expect("Rflush tag 8")
			r.expect("Rflush tag 9")

			// A flush of itself, of nothing, of what is answered.
			r.send(7, &wire.Tflush{OldTag: 7})
			r.expect("Rflush tag 7")
			r.send(7, &wire.Tgetattr{FID: 99})
			r.send(8, &wire.Tflush{OldTag: 7})
			r.expect("Rlerror tag 7 errno 9")
			r.expect("Rflush tag 8")

			// What waits for a fid and has not started is dropped unanswered.
			r.send(7, &wire.Tread{FID: 1, Count: 10})
			<-fs.blocked
			r.send(8, &wire.Tclunk{FID: 1})
			r.send(9, &wire.Tflush{OldTag: 8})
			r.expect("Rflush tag 9")
			r.send(8, &wire.Tgetattr{FID: 1}) // behind the clunk, which does nothing now
			close(fs.wake)
			tag, m := r.recv()
			if d, ok := m.(*wire.Rread); tag != 7 || !ok || string(d.Data) != "contents o" {
				t.Errorf("the read: %s", wire.Text(tag, m))
			}
			if tag, m := r.recv(); tag != 8 || m.MsgType() != wire.TypeRgetattr {
				t.Errorf("the getattr: %s", wire.Text(tag, m))
			}
			if n := srv.Stats().Flushes; n != 6 {
				t.Errorf("%d flushes counted", n)
			}
		})
	}
}

// TestOutOfOrder has a read wait while other requests are answered, in place
// and on workers.
func TestOutOfOrder(t *testing.T) {
	for _, kind := range []string{"plain", "concurrent", "inplace"} {
		t.Run(kind, func(t *testing.T) {
			testutil.CheckLeaks(t)
			fs := newMemfs(kind).put("block", "d/")
			_, r := serveRaw(t, fs, p9srv.Options{})
			r.attach().openPath(1, 0, "block")
			const waiting = 100
			for i := range waiting {
				r.send(wire.Tag(1000+i), &wire.Tread{FID: 1, Count: 10})
			}
			for range waiting {
				<-fs.blocked
			}
			r.ok(&wire.Tmkdir{DFID: root, Name: "x"})
			r.ok(walk(root, 2, "x"))
			r.ok(&wire.Tgetattr{FID: 2})
			close(fs.wake)
			seen := map[wire.Tag]bool{}
			for range waiting {
				tag, m := r.recv()
				if m.MsgType() != wire.TypeRread || seen[tag] {
					t.Fatal(wire.Text(tag, m))
				}
				seen[tag] = true
			}
		})
	}
}

// TestPipeline sends everything at once: each step needs the one before.
func TestPipeline(t *testing.T) {
	for _, kind := range []string{"plain", "concurrent", "inplace"} {
		t.Run(kind, func(t *testing.T) {
			testutil.CheckLeaks(t)
			_, r := serveRaw(t, newMemfs(kind).put("a/f"), p9srv.Options{})
			r.attach()
			var b []byte
			tag := wire.Tag(0)
			const rounds = 200
			for range rounds {
				for _, m := range []wire.Msg{
					walk(root, 1, "a", "f"), &wire.Tlopen{FID: 1}, &wire.Tread{FID: 1, Count: 8}, &wire.Tclunk{FID: 1},
				} {
					b = m.Append(b, tag)
					tag++
				}
			}
			go r.c.Write(b)
			got := map[wire.Tag]wire.Msg{}
			for range tag {
				tag, m := r.recv()
				got[tag] = m
			}
			for i := range tag {
				want := [...]wire.Type{wire.TypeRwalk, wire.TypeRlopen, wire.TypeRread, wire.TypeRclunk}[i%4]
				if m := got[i]; m == nil || m.MsgType() != want {
					t.Fatalf("message %d: %v, want %v", i, m, want)
				}
			}
		})
	}
}

func TestPanicAndStrangeError(t *testing.T) {
	for _, kind := range []string{"plain", "inplace"} {
		t.Run(kind, func(t *testing.T) {
			testutil.CheckLeaks(t)
			var log lockedBuffer
			srv, r := serveRaw(t, newMemfs(kind).put("panic", "strange", "f"), p9srv.Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
			r.attach()
			r.openPath(1, 0, "panic")
			r.fails(&wire.Tread{FID: 1, Count: 1}, unix.EIO)
			if s := log.String(); !strings.Contains(s, "told to") || !strings.Contains(s, "memfs_test.go") || strings.Count(s, "\n") != 1 {
				t.Errorf("log of a panic: %s", s)
			}
			r.openPath(2, 0, "strange")
			r.fails(&wire.Tread{FID: 2, Count: 1}, unix.EIO)
			if s := log.String(); !strings.Contains(s, errStrange.Error()) || strings.Count(s, "\n") != 2 {
				t.Errorf("log of an error without an errno: %s", s)
			}
			// Life, and locks, go on.
			r.ok(&wire.Tmkdir{DFID: root, Name: "d"})
			r.ok(&wire.Tclunk{FID: 1})
			if n := srv.Stats().Panics; n != 1 {
				t.Errorf("%d panics counted", n)
			}
		})
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestDeath ends connections with requests waiting and fids open.
func TestDeath(t *testing.T) {
	for _, end := range []string{"client", "close", "context", "version"} {
		t.Run(end, func(t *testing.T) {
			testutil.CheckLeaks(t)
			fs := newMemfs("concurrent").put("block", "f")
			srv := p9srv.New(fs, p9srv.Options{})
			mine, theirs := socketpair(t)
			defer mine.Close()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- srv.ServeConn(ctx, theirs) }()
			r := &raw{t, mine}
			r.attach().openPath(1, 0, "block")
			r.openPath(2, 0, "f")
			for i := range 10 {
				r.send(wire.Tag(10+i), &wire.Tread{FID: 1, Count: 10})
				<-fs.blocked
			}
			r.send(30, &wire.Tclunk{FID: 1}) // waits for the reads
			var want error
			switch end {
			case "client":
				mine.Close()
			case "close":
				srv.Close()
				want = p9srv.ErrClosed
			case "context":
				cancel()
				want = context.Canceled
			case "version":
				// The session starts anew: nothing of the old one is answered.
				r.send(wire.NoTag, version())
				r.expect(`Rversion tag none msize 8192 version "9P2000.L"`)
				r.fails(&wire.Tgetattr{FID: 2}, unix.EBADF)
				mine.Close()
			}
			if err := <-done; !errors.Is(err, want) {
				t.Errorf("ServeConn: %v, want %v", err, want)
			}
			// Fid 1 was being clunked; its clunk may have run or not.
			if open, lost := fs.files(); open != 0 || lost < 2 {
				t.Errorf("%d Files are open, %d were closed as lost", open, lost)
			}
			srv.Close()
			srv.Close()
			if err := srv.ServeConn(context.Background(), mine); !errors.Is(err, p9srv.ErrClosed) {
				t.Errorf("ServeConn of a closed server: %v", err)
			}
			if s := srv.Stats(); s.Open != 0 || s.FIDs != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestFIFO opens a FIFO nobody writes to; its connection, and everybody
// else's, goes on.
func TestFIFO(t *testing.T) {
	testutil.CheckLeaks(t)
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	_, r := serveRaw(t, localfs.Attacher(dir), p9srv.Options{})
	r.attach()
	r.ok(walk(root, 1, "fifo"))
	r.send(50, &wire.Tlopen{FID: 1})
	r.ok(&wire.Tmkdir{DFID: root, Name: "d"})
	r.ok(&wire.Trenameat{OldDFID: root, OldName: "d", NewDFID: root, NewName: "e"})
	r.ok(walk(root, 2, "e"))
	// A writer lets it go.
	w, err := unix.Open(fifo, unix.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(w)
	tag, m := r.recv()
	if tag != 50 || m.MsgType() != wire.TypeRlopen {
		t.Fatal(wire.Text(tag, m))
	}
}

// TestSlowClient has a client ask for much and read nothing: it is held back,
// and others are not.
func TestSlowClient(t *testing.T) {
	testutil.CheckLeaks(t)
	fs := newMemfs("inplace").put("f")
	fs.root.kids["f"].data = make([]byte, 1<<20)
	srv := p9srv.New(fs, p9srv.Options{MaxMessageSize: 64 << 10, MaxBytes: 1 << 20})
	defer srv.Close()
	conns := make([]*raw, 2)
	for i := range conns {
		mine, theirs := socketpair(t)
		defer mine.Close()
		go srv.ServeConn(context.Background(), theirs)
		conns[i] = &raw{t, mine}
		conns[i].attach().openPath(1, 0, "f")
	}
	slow, quick := conns[0], conns[1]
	const asked = 4000 // 256 MB of answers
	sent := make(chan error, 1)
	go func() {
		for i := range asked {
			if _, err := slow.c.Write((&wire.Tread{FID: 1, Count: 64 << 10}).Append(nil, wire.Tag(i))); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for range 1000 {
		quick.ok(&wire.Tread{FID: 1, Count: 4096})
	}
	for i := range asked {
		if tag, m := slow.recv(); tag != wire.Tag(i) || m.MsgType() != wire.TypeRread {
			t.Fatal(wire.Text(tag, m))
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

func TestBadFrames(t *testing.T) {
	huge := (&wire.Tclunk{}).Append(nil, 1)
	copy(huge, []byte{0, 0, 0, 0x7f})
	for name, c := range map[string]struct {
		bytes []byte
		end   bool // the connection ends; else EINVAL or EOPNOTSUPP
	}{
		"size 0":        {make([]byte, 7), true},
		"size 6":        {[]byte{6, 0, 0, 0, 120, 1, 0}, true},
		"huge":          {huge, true},
		"short body":    {[]byte{9, 0, 0, 0, 120, 1, 0, 0, 0}, false},
		"long body":     {append([]byte{12, 0, 0, 0, 120, 1, 0}, make([]byte, 5)...), false},
		"an answer":     {[]byte{7, 0, 0, 0, 121, 1, 0}, false},
		"unknown":       {[]byte{7, 0, 0, 0, 200, 1, 0}, false},
		"tflush short":  {[]byte{7, 0, 0, 0, 108, 1, 0}, false},
		"version short": {[]byte{7, 0, 0, 0, 100, 1, 0}, false},
		"count > data":  {[]byte{24, 0, 0, 0, 118, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 'x'}, false},
		"renameat":      {[]byte{13, 0, 0, 0, 74, 1, 0, 0, 0, 0, 0, 0xff, 0xff}, false},
	} {
		t.Run(name, func(t *testing.T) {
			testutil.CheckLeaks(t)
			srv := p9srv.New(newMemfs("inplace").put("f"), p9srv.Options{})
			mine, theirs := socketpair(t)
			defer mine.Close()
			done := make(chan error, 1)
			go func() { done <- srv.ServeConn(context.Background(), theirs) }()
			r := &raw{t, mine}
			r.attach()
			r.bytes(c.bytes)
			if c.end {
				r.closed()
				if err := <-done; !errors.Is(err, p9srv.ErrProtocol) {
					t.Errorf("ServeConn: %v", err)
				}
				return
			}
			tag, m := r.recv()
			e, ok := m.(*wire.Rlerror)
			if !ok || tag != 1 || e.Errno != uint32(unix.EINVAL) && e.Errno != uint32(unix.EOPNOTSUPP) {
				t.Errorf("%s", wire.Text(tag, m))
			}
			r.ok(&wire.Tgetattr{FID: root})
			mine.Close()
			if err := <-done; err != nil {
				t.Errorf("ServeConn: %v", err)
			}
		})
	}
}

func TestProtocolErrors(t *testing.T) {
	testutil.CheckLeaks(t)
	for name, f := range map[string]func(r *raw, fs *memfs){
		"before version": func(r *raw, _ *memfs) { r.send(1, &wire.Tgetattr{}) },
		"cut off": func(r *raw, _ *memfs) {
			r.attach()
			r.bytes([]byte{11, 0, 0, 0, 120})
			r.c.(*net.UnixConn).CloseWrite()
		},
		"tag in use": func(r *raw, fs *memfs) {
			r.attach().openPath(1, 0, "block")
			r.send(5, &wire.Tread{FID: 1, Count: 1})
			<-fs.blocked
			r.send(5, &wire.Tgetattr{FID: 1})
		},
	} {
		fs := newMemfs("concurrent").put("block")
		srv := p9srv.New(fs, p9srv.Options{})
		mine, theirs := socketpair(t)
		done := make(chan error, 1)
		go func() { done <- srv.ServeConn(context.Background(), theirs) }()
		r := &raw{t, mine}
		f(r, fs)
		r.closed()
		if err := <-done; !errors.Is(err, p9srv.ErrProtocol) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: ServeConn: %v", name, err)
		}
		mine.Close()
	}
}

func TestLimits(t *testing.T) {
	testutil.CheckLeaks(t)
	fs := newMemfs("concurrent").put("block")
	_, r := serveRaw(t, fs, p9srv.Options{MaxFIDs: 3, MaxRequests: 4})
	r.attach()
	r.openPath(1, 0, "block")
	r.ok(walk(root, 2))
	r.fails(walk(root, 3), unix.EMFILE)
	r.fails(&wire.Tattach{FID: 4, AFID: wire.NoFID}, unix.EMFILE)
	r.ok(&wire.Tclunk{FID: 2})
	r.ok(walk(root, 3))
	r.ok(&wire.Tclunk{FID: 3})
	for i := range 4 {
		r.send(wire.Tag(10+i), &wire.Tread{FID: 1, Count: 1})
		<-fs.blocked
	}
	r.fails(walk(root, 3), unix.EAGAIN)
	// A flush gets through all the same.
	r.send(9, &wire.Tflush{OldTag: 10})
	r.expect("Rlerror tag 10 errno 4")
	r.expect("Rflush tag 9")
	r.ok(walk(root, 3))
	close(fs.wake)
	for range 3 {
		r.recv()
	}
}

// TestCrowded fills a connection's memory with reads that wait: it still hears
// flushes, and refuses more of the kind.
func TestCrowded(t *testing.T) {
	testutil.CheckLeaks(t)
	fs := newMemfs("concurrent").put("block")
	_, r := serveRaw(t, fs, p9srv.Options{MaxMessageSize: 64 << 10, MaxBytes: 128 << 10})
	r.attach().openPath(1, 0, "block")
	for tag := range wire.Tag(3) {
		r.send(tag, &wire.Tread{FID: 1, Count: 60 << 10})
	}
	for range 2 {
		<-fs.blocked
	}
	// The third is refused, for it would be too much, or waits with the others:
	// that depends on what was read from the socket at once.
	r.send(8, &wire.Tread{FID: 1, Count: 60 << 10})
	tag, m := r.recv()
	if e, ok := m.(*wire.Rlerror); !ok || e.Errno != uint32(unix.EAGAIN) || tag != 8 && tag != 2 {
		t.Fatal(wire.Text(tag, m))
	}
	r.send(9, &wire.Tflush{OldTag: 0})
	for {
		tag, m := r.recv()
		if tag == 9 {
			break
		}
		if m.MsgType() != wire.TypeRlerror {
			t.Fatal(wire.Text(tag, m))
		}
	}
}

// TestManyConnections serves a thousand at once.
func TestManyConnections(t *testing.T) {
	testutil.CheckLeaks(t)
	srv := p9srv.New(newMemfs("inplace").put("f"), p9srv.Options{})
	defer srv.Close()
	conns := make([]*raw, 1000)
	for i := range conns {
		mine, theirs := socketpair(t)
		defer mine.Close()
		go srv.ServeConn(context.Background(), theirs)
		conns[i] = &raw{t, mine}
		conns[i].attach()
	}
	for i, r := range conns {
		for fid := range 100 {
			r.send(wire.Tag(fid), walk(root, wire.FID(1+fid), "f"))
		}
		if i == 0 {
			continue
		}
	}
	for _, r := range conns {
		for range 100 {
			if tag, m := r.recv(); m.MsgType() != wire.TypeRwalk {
				t.Fatal(wire.Text(tag, m))
			}
		}
	}
	if s := srv.Stats(); s.Open != 1000 || s.FIDs != 101000 {
		t.Errorf("%+v", s)
	}
	for _, r := range conns {
		r.c.Close()
	}
}

// TestIdleMemory bounds what an idle connection costs.
func TestIdleMemory(t *testing.T) {
	testutil.CheckLeaks(t)
	srv := p9srv.New(newMemfs("concurrent").put("f"), p9srv.Options{})
	defer srv.Close()
	const n = 200
	memory := func() uint64 {
		// sync.Pool gives up what it holds in the second collection.
		for range 3 {
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := memory()
	for range n {
		mine, theirs := socketpair(t)
		defer mine.Close()
		go srv.ServeConn(context.Background(), theirs)
		(&raw{t, mine}).attach()
	}
	after := memory()
	per := (max(after, before) - before) / n
	t.Logf("%d bytes for a connection", per)
	if per > 64<<10 {
		t.Errorf("an idle connection takes %d bytes", per)
	}
}

func TestPeerCredentials(t *testing.T) {
	testutil.CheckLeaks(t)
	fs := newMemfs("inplace")
	users := func(uid uint32, name string) (p9srv.User, error) {
		switch {
		case uid == 1234, name == "mary":
			return p9srv.User{UID: 1234, GID: 77, Groups: []uint32{77, 78}}, nil
		}
		return p9srv.User{}, errors.New("unknown user")
	}
	_, r := serveRaw(t, memas{fs}, p9srv.Options{Users: users})
	r.ok(version())
	me := uint32(syscall.Getuid())
	r.ok(&wire.Tattach{FID: 0, AFID: wire.NoFID, UID: p9.UID(me), Aname: "tree"})
	r.ok(&wire.Tattach{FID: 1, AFID: wire.NoFID, UID: p9.NoUID})
	r.fails(&wire.Tattach{FID: 5, AFID: wire.NoFID, UID: p9.UID(me), Aname: "none"}, unix.ENOENT)
	seen, anames := fs.attached()
	u := seen[0]
	if u.UID != me || u.GID != uint32(syscall.Getgid()) || !u.Proven || u.Conn == 0 {
		t.Errorf("attached as %+v", u)
	}
	if seen[1].UID != me || anames[0] != "tree" {
		t.Errorf("attached without a number as %+v, to %q", seen[1], anames[0])
	}
	if me != 0 {
		r.fails(&wire.Tattach{FID: 2, AFID: wire.NoFID, UID: p9.UID(me + 1)}, unix.EPERM)
		return
	}
	r.ok(&wire.Tattach{FID: 2, AFID: wire.NoFID, UID: 1234})
	r.ok(&wire.Tattach{FID: 3, AFID: wire.NoFID, UID: p9.NoUID, Uname: "mary"})
	r.ok(&wire.Tattach{FID: 4, AFID: wire.NoFID, UID: 4321})
	seen, _ = fs.attached()
	for _, u := range seen[len(seen)-3 : len(seen)-1] {
		if u.UID != 1234 || u.GID != 77 || fmt.Sprint(u.Groups) != "[77 78]" || !u.Proven {
			t.Errorf("root attached another as %+v", u)
		}
	}
	if u := seen[len(seen)-1]; u.UID != 4321 || u.GID != p9srv.NoID {
		t.Errorf("root attached somebody unknown as %+v", u)
	}
}

// TestClaimedUser attaches over TCP, which proves nothing.
func TestClaimedUser(t *testing.T) {
	testutil.CheckLeaks(t)
	fs := newMemfs("inplace")
	srv := p9srv.New(memas{fs}, p9srv.Options{Users: func(uint32, string) (p9srv.User, error) {
		return p9srv.User{}, errors.New("unknown user")
	}})
	ctx, cancel := context.WithCancel(context.Background())
	l, err := p9srv.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := &raw{t, c}
	r.attach()
	seen, _ := fs.attached()
	if u := seen[0]; u.Proven || u.Peer != c.LocalAddr().String() {
		t.Errorf("attached over TCP as %+v", u)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
	r.closed()
}

// TestStream serves a stream that is no socket.
func TestStream(t *testing.T) {
	testutil.CheckLeaks(t)
	srv := p9srv.New(newMemfs("inplace").put("f"), p9srv.Options{})
	mine, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- srv.ServeConn(context.Background(), theirs) }()
	r := &raw{t, mine}
	r.attach().openPath(1, p9.ReadWrite, "f")
	big := bytes.Repeat([]byte("0123456789abcdef"), 3000)
	r.ok(&wire.Twrite{FID: 1, Data: big})
	if got := r.ok(&wire.Tread{FID: 1, Count: 60000}).(*wire.Rread).Data; !bytes.Equal(got, big) {
		t.Errorf("%d bytes came back", len(got))
	}
	mine.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
