package p9srv_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
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

// TestPromiseTakenBack sends messages in one batch behind others: the answers
// of those that turn out to wait stand on their own.
func TestPromiseTakenBack(t *testing.T) {
	testutil.CheckLeaks(t)
	_, r := serveRaw(t, newMemfs("fickle").put("f"), p9srv.Options{})
	r.attach()
	var b []byte
	const n = 100
	for tag := range wire.Tag(n) {
		m := wire.Msg(&wire.Tgetattr{FID: 99})
		if tag%2 == 1 {
			m = walk(root, 5, "none")
		}
		b = m.Append(b, tag)
	}
	r.bytes(b)
	for range n {
		tag, m := r.recv()
		want := uint32(unix.EBADF)
		if tag%2 == 1 {
			want = uint32(unix.ENOENT)
		}
		if e, ok := m.(*wire.Rlerror); !ok || e.Errno != want {
			t.Fatal(wire.Text(tag, m))
		}
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
		"flush with a tag in use": func(r *raw, fs *memfs) {
			r.attach().openPath(1, 0, "block")
			r.send(5, &wire.Tread{FID: 1, Count: 1})
			<-fs.blocked
			r.send(5, &wire.Tflush{OldTag: 5})
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
