package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// fake is the server's end of a pipe, played by a test.
type fake struct {
	t    testing.TB
	conn net.Conn
}

// recv reads one request.
func (f *fake) recv() (wire.Tag, wire.Msg) {
	f.t.Helper()
	head := make([]byte, wire.HeaderSize)
	if _, err := io.ReadFull(f.conn, head); err != nil {
		f.t.Errorf("server: read: %v", err)
		return 0, nil
	}
	h, err := wire.ParseHeader(head)
	if err != nil {
		f.t.Errorf("server: %v", err)
		return 0, nil
	}
	frame := append(head, make([]byte, h.Size-wire.HeaderSize)...)
	if _, err := io.ReadFull(f.conn, frame[wire.HeaderSize:]); err != nil {
		f.t.Errorf("server: read: %v", err)
		return 0, nil
	}
	tag, m, err := wire.Unmarshal(frame)
	if err != nil {
		f.t.Errorf("server: %v", err)
	}
	return tag, m
}

// want reads one request, which must be of type T.
func want[T wire.Msg](f *fake) (wire.Tag, T) {
	f.t.Helper()
	tag, m := f.recv()
	v, ok := m.(T)
	if !ok {
		f.t.Errorf("server: got %T, want %T", m, v)
	}
	return tag, v
}

func (f *fake) send(tag wire.Tag, m wire.Msg) { f.raw(m.Append(nil, tag)) }

func (f *fake) raw(b []byte) {
	if _, err := f.conn.Write(b); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		f.t.Errorf("server: write: %v", err)
	}
}

// play connects a client to a server that greets it, answers an attach, and
// then does what the test says. The pipe closes when play returns.
func play(t testing.TB, o Options, server func(*fake)) (*Conn, *Fid) {
	t.Helper()
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f := &fake{t: t, conn: far}
		_, v := want[*wire.Tversion](f)
		f.send(wire.NoTag, &wire.Rversion{Msize: min(v.Msize, 8192), Version: v.Version})
		tag, _ := want[*wire.Tattach](f)
		f.send(tag, &wire.Rattach{QID: p9.QID{Type: p9.TypeDir, Path: 1}})
		server(f)
		far.Close()
	}()
	c, err := NewConn(t.Context(), near, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); <-done })
	return c, attach(t, c, "/")
}

func TestGreeting(t *testing.T) {
	testutil.CheckLeaks(t)
	version := func(msize uint32, v string) string {
		m := wire.Rversion{Msize: msize, Version: v}
		return string(m.Append(nil, wire.NoTag))
	}
	var refused *VersionError
	for name, tc := range map[string]struct {
		answer string
		want   func(error) bool
	}{
		"web server":      {"HTTP/1.1 400 Bad Request\r\n\r\n", func(err error) bool { return errors.Is(err, ErrNot9P) }},
		"ssh server":      {"SSH-2.0-OpenSSH_9.2\r\n", func(err error) bool { return errors.Is(err, ErrNot9P) }},
		"hang-up":         {"", func(err error) bool { return errors.Is(err, ErrNot9P) }},
		"half a frame":    {version(8192, "9P2000.L")[:9], func(err error) bool { return errors.Is(err, ErrNot9P) }},
		"another answer":  {string((&wire.Rclunk{}).Append(nil, wire.NoTag)), func(err error) bool { return errors.Is(err, ErrNot9P) }},
		"older dialect":   {version(8192, "9P2000"), func(err error) bool { return errors.As(err, &refused) && refused.Got == "9P2000" }},
		"unknown":         {version(8192, "unknown"), func(err error) bool { return errors.As(err, &refused) }},
		"no room":         {version(100, "9P2000.L"), func(err error) bool { return errors.Is(err, ErrProtocol) }},
		"more than asked": {version(64<<20, "9P2000.L"), func(err error) bool { return errors.Is(err, ErrProtocol) }},
	} {
		near, far := net.Pipe()
		go func() {
			(&fake{t: t, conn: far}).recv()
			io.WriteString(far, tc.answer) // the client may have gone by then
			far.Close()
		}()
		c, err := NewConn(t.Context(), near, Options{})
		if err == nil {
			c.Close()
		}
		if err == nil || !tc.want(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDialErrors(t *testing.T) {
	testutil.CheckLeaks(t)
	sock := filepath.Join(t.TempDir(), "sock")
	_, err := Dial(t.Context(), "unix!"+sock, Options{})
	if want := "unix!" + sock + ": connect: no such file or directory"; err == nil || err.Error() != want || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	if _, err := Dial(t.Context(), "nonsense", Options{}); err == nil {
		t.Error("bad address: no error")
	}
	ln, err := net.Listen("unix", sock) // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	stop := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		(&fake{t: t, conn: conn}).recv()
		cancel(stop)
		io.Copy(io.Discard, conn)
		conn.Close()
	}()
	var ended *ConnError
	if _, err := Dial(ctx, sock, Options{}); !errors.Is(err, stop) || !errors.As(err, &ended) {
		t.Errorf("canceled during the greeting: %v", err)
	}
}

func TestGreetingSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		go io.Copy(io.Discard, far)
		start := time.Now()
		_, err := NewConn(t.Context(), near, Options{Timeout: time.Minute})
		if !errors.Is(err, ErrTimeout) || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		far.Close()
	})
}

// TestBadAnswers sends what no server may as the answer to a walk and a read.
func TestBadAnswers(t *testing.T) {
	testutil.CheckLeaks(t)
	frame := func(m wire.Msg) func(wire.Tag) []byte {
		return func(tag wire.Tag) []byte { return m.Append(nil, tag) }
	}
	for name, answer := range map[string]func(wire.Tag) []byte{
		"size below a header":   func(wire.Tag) []byte { return []byte{3, 0, 0, 0, 117, 0, 0} },
		"size above msize":      func(tag wire.Tag) []byte { return []byte{0, 0, 0, 0x7f, 117, byte(tag), 0} },
		"another tag":           func(tag wire.Tag) []byte { return (&wire.Rread{}).Append(nil, tag+1) },
		"a tag out of range":    func(wire.Tag) []byte { return (&wire.Rread{}).Append(nil, 0x7000) },
		"no tag":                func(wire.Tag) []byte { return (&wire.Rread{}).Append(nil, wire.NoTag) },
		"a request":             frame(&wire.Tread{}),
		"another type":          frame(&wire.Rclunk{}),
		"an unknown type":       func(tag wire.Tag) []byte { return []byte{7, 0, 0, 0, 99, byte(tag), 0} },
		"too much data":         frame(&wire.Rread{Data: make([]byte, 11)}),
		"count above the frame": func(tag wire.Tag) []byte { return []byte{11, 0, 0, 0, 117, byte(tag), 0, 5, 0, 0, 0} },
		"a flush not asked for": func(tag wire.Tag) []byte { return (&wire.Rflush{}).Append(nil, tag|flushBit) },
		"a probe not asked for": func(wire.Tag) []byte { return (&wire.Rflush{}).Append(nil, probeTag) },
		"error cut short":       func(tag wire.Tag) []byte { return []byte{8, 0, 0, 0, 7, byte(tag), 0, 1} },
	} {
		t.Run(name, func(t *testing.T) {
			c, root := play(t, Options{}, func(f *fake) {
				tag, _ := want[*wire.Tread](f)
				f.raw(answer(tag))
			})
			_, err := root.Read(t.Context(), make([]byte, 10), 0)
			var ended *ConnError
			if !errors.As(err, &ended) || !errors.Is(err, ErrProtocol) {
				t.Errorf("the call: %v", err)
			}
			<-c.Done()
			if _, err := root.Read(t.Context(), make([]byte, 10), 0); !errors.Is(err, ErrProtocol) {
				t.Errorf("a later call: %v", err)
			}
		})
	}
}

func TestAnswerTwice(t *testing.T) {
	testutil.CheckLeaks(t)
	c, root := play(t, Options{}, func(f *fake) {
		tag, _ := want[*wire.Tread](f)
		once := (&wire.Rread{Data: []byte("x")}).Append(nil, tag)
		f.raw(append(once, once...))
		io.Copy(io.Discard, f.conn)
	})
	if n, err := root.Read(t.Context(), make([]byte, 10), 0); n != 1 || err != nil {
		t.Errorf("the call: %d, %v", n, err)
	}
	<-c.Done()
	if !errors.Is(c.Err(), ErrProtocol) {
		t.Error(c.Err())
	}
}

func TestBadContents(t *testing.T) {
	testutil.CheckLeaks(t)
	for name, tc := range map[string]struct {
		answer wire.Msg
		call   func(ctx context.Context, root *Fid) error
	}{
		"walk of too many": {&wire.Rwalk{QIDs: make([]p9.QID, 3)}, func(ctx context.Context, root *Fid) error {
			_, _, err := root.Walk(ctx, "a", "b")
			return err
		}},
		"write of too much": {&wire.Rwrite{Count: 11}, func(ctx context.Context, root *Fid) error {
			_, err := root.Write(ctx, make([]byte, 10), 0)
			return err
		}},
		"entry cut short": {&wire.Rreaddir{Data: make([]byte, 20)}, func(ctx context.Context, root *Fid) error {
			_, err := root.Readdir(ctx, 0, 100)
			return err
		}},
		"entry with a slash": {&wire.Rreaddir{Data: wire.AppendDirent(nil, p9.Dirent{Name: "../x"})}, func(ctx context.Context, root *Fid) error {
			_, err := root.Readdir(ctx, 0, 100)
			return err
		}},
		"folder without end": {&wire.Rreaddir{Data: wire.AppendDirent(nil, p9.Dirent{Name: "x"})}, func(ctx context.Context, root *Fid) error {
			for _, err := range root.Entries(ctx) {
				if err != nil {
					return err
				}
			}
			return nil
		}},
	} {
		_, root := play(t, Options{}, func(f *fake) {
			tag, _ := f.recv()
			f.send(tag, tc.answer)
		})
		if err := tc.call(t.Context(), root); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestErrnoZero(t *testing.T) {
	testutil.CheckLeaks(t)
	_, root := play(t, Options{}, func(f *fake) {
		for range 2 {
			tag, _ := want[*wire.Tread](f)
			f.send(tag, &wire.Rlerror{Errno: 0})
		}
	})
	for range 2 {
		if _, err := root.Read(t.Context(), make([]byte, 1), 0); !errors.Is(err, syscall.EIO) {
			t.Errorf("error 0: %v", err)
		}
	}
}

// TestCut ends the connection with many requests in flight and half an answer.
func TestCut(t *testing.T) {
	testutil.CheckLeaks(t)
	const calls = 100
	c, root := play(t, Options{}, func(f *fake) {
		var tag wire.Tag
		for range calls {
			tag, _ = want[*wire.Tread](f)
		}
		whole := (&wire.Rread{Data: []byte("0123456789")}).Append(nil, tag)
		f.raw(whole[:len(whole)-1])
	})
	errs := make(chan error)
	for range calls {
		go func() {
			_, err := root.Read(t.Context(), make([]byte, 10), 0)
			errs <- err
		}()
	}
	for range calls {
		var ended *ConnError
		if err := <-errs; !errors.As(err, &ended) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a call in flight: %v", err)
		}
	}
	if !errors.Is(c.Err(), io.ErrUnexpectedEOF) {
		t.Errorf("the connection: %v", c.Err())
	}
}

func TestCloseFailsCalls(t *testing.T) {
	testutil.CheckLeaks(t)
	arrived := make(chan struct{})
	c, root := play(t, Options{}, func(f *fake) {
		want[*wire.Tread](f)
		close(arrived)
		io.Copy(io.Discard, f.conn)
	})
	errs := make(chan error)
	go func() {
		_, err := root.Read(t.Context(), make([]byte, 10), 0)
		errs <- err
	}()
	<-arrived
	c.Close()
	if err := <-errs; !errors.Is(err, ErrClosed) {
		t.Errorf("a call in flight: %v", err)
	}
	if _, _, err := root.Walk(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("a later call: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
}

// FuzzAnswers feeds a client with requests of every shape in flight what a
// fuzzer makes of a server's answers: every call must end.
func FuzzAnswers(f *testing.F) {
	f.Add((&wire.Rread{Data: []byte("x")}).Append(nil, 1))
	f.Add((&wire.Rwalk{QIDs: make([]p9.QID, 2)}).Append((&wire.Rlerror{Errno: 2}).Append(nil, 2), 1))
	f.Add((&wire.Rreaddir{Data: wire.AppendDirent(nil, p9.Dirent{Name: "x"})}).Append(nil, 3))
	f.Add(bytes.Repeat((&wire.Rflush{}).Append(nil, 0x8001), 3))
	f.Add((&wire.Rstat{Stat: wire.Stat{Name: "x", Mode: wire.DMDevice, Extension: "c 1 3"}}).Append(nil, 5))
	f.Add((&wire.Rread{Data: wire.AppendStat(nil, &wire.Stat{Name: "x"})}).Append((&wire.Rerror{Ename: "no"}).Append(nil, 2), 1))
	f.Fuzz(func(t *testing.T, answers []byte) {
		for _, version := range []string{wire.Version9P2000L, wire.Version9P2000U, wire.Version9P2000} {
			fuzzAnswers(t, version, answers)
		}
	})
}

func fuzzAnswers(t *testing.T, version string, answers []byte) {
	c, root := play(t, Options{Versions: []string{version}, Requests: 8, Grace: time.Millisecond}, func(f *fake) {
		go io.Copy(io.Discard, f.conn)
		f.conn.Write(answers) // the client may end it
	})
	ctx, cancel := context.WithCancel(t.Context())
	calls := []func(){
		func() { root.Walk(ctx, "a", "b") },
		func() { root.Read(ctx, make([]byte, 100), 0) },
		func() { root.Readdir(ctx, 0, 1000) },
		func() { root.GetXattr(ctx, "user.x") },
		func() { root.SetXattr(ctx, "user.x", []byte("v"), 0) },
		func() { root.GetAttr(ctx, p9.AttrMaskAll) },
		func() { root.Symlink(ctx, "l", "to", p9.NoGID) },
	}
	done := make(chan struct{})
	for _, call := range calls {
		go func() { call(); done <- struct{}{} }()
	}
	<-c.Done() // the pipe closes behind the answers
	cancel()
	for range calls {
		<-done
	}
}
