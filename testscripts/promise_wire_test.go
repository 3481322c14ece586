package testscripts

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv/client"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// rawConn is a connection whose bytes the test makes itself.
type rawConn struct {
	s *served
	net.Conn
}

// raw is a connection after Tversion and an attach as fid 0.
func (s *served) raw() *rawConn {
	s.Helper()
	c, err := net.Dial("unix", s.unix)
	s.ok(err)
	s.Cleanup(func() { c.Close() })
	r := &rawConn{s, c}
	r.is(&wire.Tversion{Msize: 8192, Version: wire.Version9P2000L}, wire.TypeRversion)
	r.is(&wire.Tattach{FID: 0, AFID: wire.NoFID, UID: p9.UID(os.Geteuid()), Aname: s.in}, wire.TypeRattach)
	return r
}

// rpc sends a message and returns the answer.
func (r *rawConn) rpc(m wire.Msg) wire.Msg {
	r.s.Helper()
	tag := wire.Tag(1)
	if m.MsgType() == wire.TypeTversion {
		tag = wire.NoTag
	}
	return r.bytes(m.Append(nil, tag))
}

// bytes sends bytes and returns the answer.
func (r *rawConn) bytes(b []byte) wire.Msg {
	r.s.Helper()
	_, err := r.Write(b)
	r.s.ok(err)
	return r.recv()
}

// recv is the next answer.
func (r *rawConn) recv() wire.Msg {
	r.s.Helper()
	frame := make([]byte, 4)
	_, err := io.ReadFull(r, frame)
	r.s.ok(err)
	frame = append(frame, make([]byte, binary.LittleEndian.Uint32(frame)-4)...)
	_, err = io.ReadFull(r, frame[4:])
	r.s.ok(err)
	_, m, err := wire.Unmarshal(frame)
	r.s.ok(err)
	return m
}

// is wants an answer of a type.
func (r *rawConn) is(m wire.Msg, want wire.Type) {
	r.s.Helper()
	if got := r.rpc(m); got.MsgType() != want {
		r.s.Errorf("%s is answered with %s", wire.Text(1, m), wire.Text(1, got))
	}
}

// fails wants an error.
func (r *rawConn) fails(m wire.Msg, want syscall.Errno) {
	r.s.Helper()
	got := r.rpc(m)
	if e, ok := got.(*wire.Rlerror); !ok || e.Errno != uint32(want) {
		r.s.Errorf("%s is answered with %s, want %v", wire.Text(1, m), wire.Text(1, got), want)
	}
}

func versionDropsFids(s *served) {
	r := s.raw()
	r.is(&wire.Tlcreate{FID: 0, Name: "f", Flags: p9.ReadWrite, Mode: 0o644}, wire.TypeRlcreate)
	r.is(&wire.Tlock{FID: 0, Type: p9.WriteLock, Client: "a"}, wire.TypeRlock)
	r.is(&wire.Tversion{Msize: 8192, Version: wire.Version9P2000L}, wire.TypeRversion)
	r.fails(&wire.Tgetattr{FID: 0}, unix.EBADF)
	r.fails(&wire.Tclunk{FID: 0}, unix.EBADF)
	// Its lock is gone as well.
	f := s.open(s.attach(), "f", p9.ReadWrite)
	st, err := f.Lock(s.Context(), client.Lock{Type: p9.WriteLock, Client: "b"})
	if err != nil || st != p9.LockStatusOK {
		s.Errorf("lock after the session that had it: %v, %v", st, err)
	}
}

func fsyncs(s *served) {
	r := s.raw()
	r.is(&wire.Tlcreate{FID: 0, Name: "f", Flags: p9.ReadWrite, Mode: 0o644}, wire.TypeRlcreate)
	r.is(&wire.Twrite{FID: 0, Data: []byte("x")}, wire.TypeRwrite)
	r.is(&wire.Tfsync{FID: 0}, wire.TypeRfsync)
	r.is(&wire.Tfsync{FID: 0, Datasync: 1}, wire.TypeRfsync)
	r.is(&wire.Tfsync{FID: 0, Short: true}, wire.TypeRfsync)
}

func writesWhatWasSent(s *served) {
	r := s.raw()
	r.is(&wire.Tlcreate{FID: 0, Name: "f", Flags: p9.ReadWrite, Mode: 0o644}, wire.TypeRlcreate)
	m := (&wire.Twrite{FID: 0, Data: []byte("abc")}).Append(nil, 1)
	const count = 4 + 1 + 2 + 4 + 8
	binary.LittleEndian.PutUint32(m[count:], 1000)
	if got, ok := r.bytes(m).(*wire.Rlerror); !ok || got.Errno != uint32(unix.EINVAL) {
		s.Errorf("a count of 1000 for 3 bytes is answered with %v", got)
	}
	if st, err := os.Stat(s.host("f")); err != nil || st.Size() != 0 {
		s.Errorf("written: %v, %v", st, err)
	}
}

func refusesAuth(s *served) {
	r := s.raw()
	r.fails(&wire.Tauth{AFID: 5, Uname: "root", UID: 0}, unix.EOPNOTSUPP)
	r.fails(&wire.Tattach{FID: 6, AFID: 5, UID: p9.UID(os.Geteuid())}, unix.EBADF)
	r.is(&wire.Tattach{FID: 6, AFID: wire.NoFID, UID: p9.UID(os.Geteuid())}, wire.TypeRattach)
}

// noStalls writes and reads over TCP in the ways that make a sender wait for an
// acknowledgement that the other end delays by 40 ms (Nagle's algorithm).
func noStalls(s *served) {
	ctx := s.Context()
	f, err := s.dial(s.tcp, client.Options{}).Attach(ctx, "", p9.UID(os.Geteuid()), s.in)
	s.ok(err)
	_, err = f.Create(ctx, "f", p9.ReadWrite, 0o644, p9.NoGID)
	s.ok(err)
	buf := make([]byte, 100_000)
	var half time.Duration
	for range 10 { // on a busy machine all is slow for a while
		var took []time.Duration
		for i := range 60 {
			start := time.Now()
			size := []int{1, 1449, 3000, 65_536, 100_000}[i%5]
			_, err := f.WriteAt(ctx, buf[:size], 0)
			s.ok(err)
			_, err = f.ReadAt(ctx, buf[:size], 0)
			s.ok(err)
			s.attr(f)
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		if half = took[len(took)/2]; half < 40*time.Millisecond {
			return
		}
	}
	s.Errorf("half of all rounds take %v and more", half)
}

// usersAreThemselves has many users work at the same time, on one connection of
// root's and on one of each.
func usersAreThemselves(s *served) {
	ctx := s.Context()
	s.ok(os.WriteFile(s.host("secret"), []byte("root's"), 0o600))
	s.await("root's file is there", func() bool { _, err := s.try(s.attachAs(0), "secret"); return err == nil })
	shared := s.dial(s.unix, client.Options{})
	var wg sync.WaitGroup
	for u := range 8 {
		uid := p9.UID(3000 + u)
		for i, c := range []*client.Conn{shared, s.dial(s.unix, client.Options{})} {
			wg.Go(func() {
				root, err := c.Attach(ctx, "", uid, s.in)
				if err != nil {
					s.Errorf("attach as %d: %v", uid, err)
					return
				}
				for n := range 20 {
					if err := workAs(s, root, uid, fmt.Sprintf("%d-%d-%d", uid, i, n)); err != nil {
						s.Errorf("user %d: %v", uid, err)
						return
					}
				}
			})
		}
		wg.Go(func() { // root, in between
			root, err := shared.Attach(ctx, "", 0, s.in)
			if err == nil {
				err = workAs(s, root, 0, fmt.Sprintf("root-%d", u))
			}
			if err != nil {
				s.Errorf("root: %v", err)
			}
		})
	}
	wg.Wait()
	made, err := os.ReadDir(s.host(""))
	s.ok(err)
	if len(made) != 1+8*2*20+8 {
		s.Errorf("%d files were made", len(made))
	}
}

// workAs makes a file as a user, who may then do what that user may.
func workAs(s *served, root *client.Fid, uid p9.UID, name string) error {
	ctx := s.Context()
	f, err := root.Clone(ctx)
	if err != nil {
		return err
	}
	defer f.Clunk(ctx)
	if _, err := f.Create(ctx, name, p9.ReadWrite, 0o600, p9.NoGID); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(s.host(""), name), &st); err != nil || st.Uid != uint32(uid) {
		return fmt.Errorf("%s belongs to %d: %v", name, st.Uid, err)
	}
	secret, _, err := root.Walk(ctx, "secret")
	if err != nil {
		return err
	}
	defer secret.Clunk(ctx)
	_, err = secret.Open(ctx, p9.ReadOnly)
	if uid == 0 && err != nil || uid != 0 && !errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("opens root's file: %v", err)
	}
	err = f.SetAttr(ctx, p9.SetAttrMask{UID: true}, p9.SetAttr{UID: 1})
	if uid == 0 && err != nil || uid != 0 && !errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("gives a file away: %v", err)
	}
	return nil
}

// walkAll walks to the files 0, 1, ... as fids 1, 2, ..., all at once.
func (r *rawConn) walkAll(n int) {
	r.s.Helper()
	var b []byte
	for i := range n {
		m := wire.Twalk{FID: 0, NewFID: wire.FID(1 + i), Names: []string{fmt.Sprint(i)}}
		b = m.Append(b, wire.Tag(i))
	}
	_, err := r.Write(b)
	r.s.ok(err)
	for range n {
		if m := r.recv(); m.MsgType() != wire.TypeRwalk {
			r.s.Fatal(wire.Text(0, m))
		}
	}
}

// attrOf asks for the last fid's attributes.
func (r *rawConn) attrOf(fid int) {
	r.s.Helper()
	r.is(&wire.Tgetattr{FID: wire.FID(fid), Mask: p9.AttrMaskAll}, wire.TypeRgetattr)
}
