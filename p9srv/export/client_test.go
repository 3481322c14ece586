package export

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv"
	p9client "github.com/mezzofs/mezzo/p9srv/client"
)

// pair is a connected socket pair, of which each end proves who is at the other.
func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var cs [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if cs[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return cs[0], cs[1]
}

// dial serves the master over a socket pair and attaches with our client.
func (m *master) dial(t *testing.T) *p9client.Fid {
	t.Helper()
	a, b := pair(t)
	srv := p9srv.New(m.e, p9srv.Options{})
	done := make(chan error, 1)
	go func() { done <- srv.ServeConn(context.Background(), b) }()
	c, err := p9client.NewConn(t.Context(), a, p9client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		srv.Close()
	})
	root, err := c.Attach(t.Context(), "", p9.UID(os.Geteuid()), "/")
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func step(t *testing.T, f *p9client.Fid, names ...string) *p9client.Fid {
	t.Helper()
	g, _, err := f.Walk(t.Context(), names...)
	if err != nil {
		t.Fatalf("walk %q: %v", names, err)
	}
	return g
}

// TestClientOperations sends every kind of request that Linux sends.
func TestClientOperations(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root, ctx := m.dial(t), t.Context()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	f := step(t, root)
	_, err := f.Create(ctx, "f", p9.ReadWrite|dotlExcl, 0o4755, p9.NoGID)
	check(err)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	n, err := f.WriteFull(ctx, big, 0, 4)
	check(err)
	got := make([]byte, n+5)
	k, err := f.ReadFull(ctx, got, 0, 4)
	if !bytes.Equal(got[:k], big) {
		t.Fatal(k, err)
	}
	check(f.FSync(ctx, true))
	check(f.FSync(ctx, false))
	check(f.SetXattr(ctx, "user.k", []byte("value"), p9.XattrCreate))
	if v, err := f.GetXattr(ctx, "user.k"); string(v) != "value" {
		t.Fatal(v, err)
	}
	if _, err := f.GetXattr(ctx, "security.capability"); !is(err, syscall.ENODATA) {
		t.Fatal(err)
	}
	if l, err := f.ListXattrs(ctx); !slices.Contains(l, "user.k") {
		t.Fatal(l, err)
	}
	acl := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 6, 0, 0xd2, 4, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255}
	check(f.SetXattr(ctx, "system.posix_acl_access", acl, 0))
	if v, err := f.GetXattr(ctx, "system.posix_acl_access"); !bytes.Equal(v, acl) {
		t.Fatal(v, err)
	}
	check(f.RemoveXattr(ctx, "user.k"))
	_, _, a, err := f.GetAttr(ctx, p9.AttrMaskAll)
	if err != nil || a.Size != uint64(n) || uint32(a.Mode)&0o7000 != 0o4000 {
		t.Fatal(a, err)
	}
	_, err = root.Mkdir(ctx, "d", 0o1777, p9.NoGID)
	check(err)
	d := step(t, root, "d")
	_, err = d.Symlink(ctx, "l", "target", p9.NoGID)
	check(err)
	if s, err := step(t, d, "l").Readlink(ctx); s != "target" {
		t.Fatal(s, err)
	}
	_, err = d.Mknod(ctx, p9client.Node{Name: "p", Mode: unix.S_IFIFO | 0o600, GID: p9.NoGID})
	check(err)
	check(d.Link(ctx, f, "hard"))
	check(step(t, d, "hard").Rename(ctx, root, "moved"))
	check(root.RenameAt(ctx, "moved", d, "back"))
	check(step(t, d, "back").Remove(ctx))
	check(d.UnlinkAt(ctx, "l", 0))
	check(d.UnlinkAt(ctx, "p", 0))
	check(root.UnlinkAt(ctx, "d", unix.AT_REMOVEDIR))
	var names []string
	o := step(t, root)
	_, err = o.Open(ctx, p9.ReadOnly)
	check(err)
	for e, err := range o.Entries(ctx) {
		check(err)
		names = append(names, e.Name)
	}
	slices.Sort(names)
	if !slices.Equal(slices.DeleteFunc(names, func(s string) bool { return s == "." || s == ".." }), []string{"f"}) {
		t.Fatal(names)
	}
	l := p9client.Lock{Type: p9.WriteLock, Length: 10, PID: 1, Client: "h"}
	if s, err := f.Lock(ctx, l); s != p9.LockStatusOK {
		t.Fatal(s, err)
	}
	g := step(t, root, "f")
	_, err = g.Open(ctx, p9.ReadWrite)
	check(err)
	l.PID = 2
	if s, err := g.Lock(ctx, l); s != p9.LockStatusBlocked {
		t.Fatal(s, err)
	}
	if have, err := g.GetLock(ctx, l); err != nil || have.Type != p9.WriteLock || have.PID != 1 || have.Length != 10 {
		t.Fatalf("%+v, %v", have, err)
	}
	// A waiting lock is given up by a flush, and had when the holder's fid goes.
	l.Flags = p9.LockFlagsBlock
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	_, err = g.Lock(short, l)
	cancel()
	if err == nil {
		t.Fatal("a lock that is held was had")
	}
	c := make(chan error, 1)
	go func() {
		s, err := g.Lock(ctx, l)
		if err == nil && s != p9.LockStatusOK {
			err = syscall.EAGAIN
		}
		c <- err
	}()
	check(f.Clunk(ctx))
	check(<-c)
}

// TestClientFlushesFeed gives up a read that waits, and goes on where it was.
func TestClientFlushesFeed(t *testing.T) {
	m := newMaster(t, JournalOptions{Heartbeat: time.Hour})
	root, ctx := m.dial(t), t.Context()
	f := step(t, root, tree.ExtDirName, "feed")
	if _, err := f.Open(ctx, p9.ReadWrite); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(ctx, []byte("from 0.0 crc 00000000 inline 4096\n"), 0); err != nil {
		t.Fatal(err)
	}
	var d feed.Decoder
	buf := make([]byte, 1<<16)
	off := int64(0)
	next := func(n int) (names []string) { // at least n, and then a read that is given up
		for {
			short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			n, err := f.Read(short, buf, off)
			cancel()
			if err != nil {
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Fatal(err)
				}
				if len(names) < n {
					continue // a busy machine
				}
				return names
			}
			off += int64(n)
			d.Write(buf[:n])
			for {
				fr, ok, err := d.Next()
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					break
				}
				msg, err := fr.Message()
				if err != nil {
					t.Fatal(err)
				}
				if r, ok := msg.(*feed.Record); ok && r.Record.Name != "" {
					names = append(names, r.Record.Name)
				}
			}
		}
	}
	next(0)
	var want, got []string
	for i := range 20 {
		name := hex16(uint64(i))
		want = append(want, name)
		if _, err := root.Mkdir(ctx, name, 0o755, p9.NoGID); err != nil {
			t.Fatal(err)
		}
		got = append(got, next(1)...)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%q", got)
	}
}

// TestClientGoes cuts the connection under a waiting read, a waiting lock and a
// session: nothing stays behind.
func TestClientGoes(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	a, b := pair(t)
	srv := p9srv.New(m.e, p9srv.Options{})
	done := make(chan error, 1)
	go func() { done <- srv.ServeConn(context.Background(), b) }()
	c, err := p9client.NewConn(t.Context(), a, p9client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	root, err := c.Attach(ctx, "", p9.UID(os.Geteuid()), "")
	if err != nil {
		t.Fatal(err)
	}
	f := step(t, root)
	if _, err := f.Create(ctx, "f", p9.ReadWrite, 0o644, p9.NoGID); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(ctx, []byte("kept"), 0); err != nil {
		t.Fatal(err)
	}
	l := p9client.Lock{Type: p9.WriteLock, PID: 1, Client: "h"}
	if s, err := f.Lock(ctx, l); s != p9.LockStatusOK {
		t.Fatal(s, err)
	}
	errs := make(chan error, 3)
	for _, name := range []string{"feed", "reint", "snapshot"} {
		s := step(t, root, tree.ExtDirName, name)
		if _, err := s.Open(ctx, p9.ReadWrite); err != nil {
			t.Fatal(err)
		}
		go func() {
			buf := make([]byte, 1<<16)
			for off := int64(0); ; {
				n, err := s.Read(ctx, buf, off)
				if err != nil || n == 0 {
					errs <- err
					return
				}
				off += int64(n)
			}
		}()
	}
	if err := <-errs; err != nil { // the snapshot ends
		t.Fatal(err)
	}
	c.Close()
	for range 2 {
		if err := <-errs; err == nil {
			t.Fatal("a stream ended in peace")
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	srv.Close()
	if n := m.j.clients.connected(); n != 0 {
		t.Fatal(n)
	}
	// The lock is free, and what was written is a store.
	again := as(t, m.e, me(), "")
	g := walk(t, again, "f")
	if s, err := g.(*File).LockContext(ctx, p9srv.Lock{Type: p9.WriteLock, PID: 9}); s != p9.LockStatusOK {
		t.Fatal(s, err)
	}
	if m.t.Dirty(g.(*File).n.oid) || content(t, g) != "kept" {
		t.Fatal("the store was not cut")
	}
}
