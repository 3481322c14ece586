package p9srv_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"syscall"
	"testing"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
	"golang.org/x/sys/unix"
)

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

// TestSlowClientAtOnce has it ask for all of that in one piece.
func TestSlowClientAtOnce(t *testing.T) {
	for _, kind := range []string{"inplace", "concurrent"} {
		t.Run(kind, func(t *testing.T) {
			testutil.CheckLeaks(t)
			const size, limit, asked = 64 << 10, 1 << 20, 1000
			fs := newMemfs(kind).put("f")
			fs.root.kids["f"].data = make([]byte, size)
			_, r := serveRaw(t, fs, p9srv.Options{MaxMessageSize: size, MaxBytes: limit})
			r.attach().openPath(1, 0, "f")
			var all []byte
			for i := range asked {
				all = (&wire.Tread{FID: 1, Count: size}).Append(all, wire.Tag(i))
			}
			if _, err := r.c.Write(all); err != nil {
				t.Fatal(err)
			}
			done := 0
			for range asked {
				// What was read of the file is at most what went out, what the socket
				// holds and what the connection may.
				if n := int(fs.given.Load()) - done*size; n > 2*limit+4<<20 {
					t.Fatalf("%d bytes of answers that nobody took", n)
				}
				if _, m := r.recv(); m.MsgType() == wire.TypeRread {
					done++
				}
			}
			if done < asked/2 {
				t.Errorf("%d of %d reads were answered", done, asked)
			}
		})
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
	// The third is refused, for it would be too much, or waits with the others: that
	// depends on what was read from the socket at once. Then the next one is refused,
	// if it is read by itself: after the answer to a flush.
	r.send(7, &wire.Tflush{OldTag: 50})
	tag, m := r.recv()
	refused := tag == 2
	if refused {
		wantCrowded(t, tag, m)
		tag, m = r.recv()
	}
	if _, ok := m.(*wire.Rflush); !ok || tag != 7 {
		t.Fatal(wire.Text(tag, m))
	}
	if !refused {
		r.send(8, &wire.Tread{FID: 1, Count: 60 << 10})
		tag, m := r.recv()
		if tag != 8 {
			t.Fatal(wire.Text(tag, m))
		}
		wantCrowded(t, tag, m)
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

func wantCrowded(t *testing.T, tag wire.Tag, m wire.Msg) {
	t.Helper()
	if e, ok := m.(*wire.Rlerror); !ok || e.Errno != uint32(unix.EAGAIN) {
		t.Fatal(wire.Text(tag, m))
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
	r.ok(&wire.Tattach{FID: 6, AFID: wire.NoFID, UID: p9.NoUID, Uname: "1234"})
	r.ok(&wire.Tattach{FID: 4, AFID: wire.NoFID, UID: 4321})
	seen, _ = fs.attached()
	for _, u := range seen[len(seen)-4 : len(seen)-1] {
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
