package p9srv_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
	"golang.org/x/sys/unix"
)

// raw is a client that sends and reads single messages.
type raw struct {
	t testing.TB
	c net.Conn
}

// socketpair is two connected unix sockets.
func socketpair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := [2]net.Conn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return conns[0], conns[1]
}

// serveRaw serves a to a raw client. The session has ended when the test does.
func serveRaw(t testing.TB, a p9.Attacher, o p9srv.Options) (*p9srv.Server, *raw) {
	t.Helper()
	srv := p9srv.New(a, o)
	mine, theirs := socketpair(t)
	done := make(chan error, 1)
	go func() { done <- srv.ServeConn(context.Background(), theirs) }()
	t.Cleanup(func() {
		mine.Close()
		srv.Close()
		if err := <-done; err != nil && !errors.Is(err, p9srv.ErrClosed) {
			t.Errorf("ServeConn: %v", err)
		}
	})
	return srv, &raw{t, mine}
}

// send sends a message.
func (r *raw) send(tag wire.Tag, m wire.Msg) {
	r.t.Helper()
	r.bytes(m.Append(nil, tag))
}

func (r *raw) bytes(b []byte) {
	r.t.Helper()
	if _, err := r.c.Write(b); err != nil {
		r.t.Fatal(err)
	}
}

// recv reads a message.
func (r *raw) recv() (wire.Tag, wire.Msg) {
	r.t.Helper()
	tag, m, err := readMsg(r.c)
	if err != nil {
		r.t.Fatal(err)
	}
	return tag, m
}

func readMsg(c io.Reader) (wire.Tag, wire.Msg, error) {
	var size [4]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return 0, nil, err
	}
	frame := make([]byte, binary.LittleEndian.Uint32(size[:]))
	copy(frame, size[:])
	if _, err := io.ReadFull(c, frame[4:]); err != nil {
		return 0, nil, err
	}
	return wire.Unmarshal(frame)
}

// rpc sends a message and reads its answer.
func (r *raw) rpc(m wire.Msg) wire.Msg {
	r.t.Helper()
	tag := wire.Tag(1)
	if m.MsgType() == wire.TypeTversion {
		tag = wire.NoTag
	}
	r.send(tag, m)
	got, a := r.recv()
	if got != tag {
		r.t.Fatalf("answer to tag %d has tag %d", tag, got)
	}
	return a
}

// ok is rpc for what must not fail.
func (r *raw) ok(m wire.Msg) wire.Msg {
	r.t.Helper()
	a := r.rpc(m)
	if a.MsgType() != m.MsgType()+1 {
		r.t.Fatalf("%s: %s", wire.Text(1, m), wire.Text(1, a))
	}
	return a
}

// fails is rpc for what must fail with an errno.
func (r *raw) fails(m wire.Msg, want error) {
	r.t.Helper()
	e, ok := r.rpc(m).(*wire.Rlerror)
	if !ok || unix.Errno(e.Errno) != want {
		r.t.Errorf("%s: %+v, want %v", wire.Text(1, m), e, want)
	}
}

// attach starts a session and attaches fid 0.
func (r *raw) attach() *raw {
	r.t.Helper()
	r.ok(&wire.Tversion{Msize: 64 << 10, Version: wire.Version9P2000L})
	r.ok(&wire.Tattach{FID: 0, AFID: wire.NoFID, UID: p9.UID(os.Getuid())})
	return r
}

// closed waits until the server has closed the connection.
func (r *raw) closed() {
	r.t.Helper()
	if _, m, err := readMsg(r.c); err == nil {
		r.t.Errorf("got %s instead of the end", wire.Text(0, m))
	}
}

// openPath walks from fid 0 to fid and opens it.
func (r *raw) openPath(fid wire.FID, flags p9.OpenFlags, names ...string) {
	r.t.Helper()
	r.ok(&wire.Twalk{FID: 0, NewFID: fid, Names: names})
	r.ok(&wire.Tlopen{FID: fid, Flags: flags})
}
