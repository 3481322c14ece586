package export

import (
	"context"
	"os"
	"syscall"
	"testing"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
)

func TestLocks(t *testing.T) {
	testutil.CheckLeaks(t)
	m := newMemFS()
	root := as(t, New(m, Options{}), p9srv.User{UID: uint32(os.Geteuid())}, "")
	create(t, root, "f", "")
	a, b := walk(t, root, "f").(*File), walk(t, root, "f").(*File)
	if _, _, err := a.Open(p9.ReadWrite); err != nil {
		t.Fatal(err)
	}
	if _, err := a.WriteAt([]byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	w := p9srv.Lock{Type: p9.WriteLock, Start: 10, Length: 5, PID: 1, Client: "h", Conn: 1}
	set := func(f *File, l p9srv.Lock) p9.LockStatus {
		t.Helper()
		s, err := f.LockContext(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := set(a, w); s != p9.LockStatusOK {
		t.Fatal(s)
	}
	again := w
	again.Start = 0
	again.Length = 0
	if s := set(b, again); s != p9.LockStatusOK {
		t.Fatal("the same owner through another fid:", s)
	}
	for _, l := range []p9srv.Lock{
		{Type: p9.ReadLock, PID: 2, Client: "h", Conn: 1},
		{Type: p9.ReadLock, PID: 1, Client: "g", Conn: 1},
		{Type: p9.ReadLock, PID: 1, Client: "h", Conn: 2},
	} {
		if s := set(b, l); s != p9.LockStatusBlocked {
			t.Fatalf("%+v: %v", l, s)
		}
		got, err := b.GetLock(t.Context(), l)
		if err != nil || got.Type != p9.WriteLock || got.PID != 1 || got.Start != 10 || got.Length != 5 {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	un := w
	un.Type = p9.Unlock
	// Linux asks so.
	asks := un
	asks.Conn, asks.Start, asks.Length = 2, 0, 0
	if got, err := b.GetLock(t.Context(), asks); err != nil || got.Type != p9.WriteLock || got.Start != 10 {
		t.Fatalf("%+v, %v", got, err)
	}
	un.Start, un.Length = 0, 0
	if s := set(a, un); s != p9.LockStatusOK || m.held() != 0 || !a.n.h.(*memHandle).o.clean {
		t.Fatal("unlock:", s, m.held())
	}
	if got, err := b.GetLock(t.Context(), w); err != nil || got.Type != p9.Unlock {
		t.Fatal(got, err)
	}

	// A waiting lock is granted, cancelled, and does not outlive its fid.
	set(a, w)
	other := p9srv.Lock{Type: p9.WriteLock, Flags: p9.LockFlagsBlock, PID: 9, Client: "h", Conn: 1}
	wait := func(ctx context.Context, f *File) chan error {
		c := make(chan error, 1)
		go func() {
			_, err := f.LockContext(ctx, other)
			c <- err
		}()
		return c
	}
	ctx, cancel := context.WithCancel(t.Context())
	c := wait(ctx, b)
	cancel()
	if err := <-c; !is(err, syscall.EINTR) {
		t.Fatal(err)
	}
	c = wait(t.Context(), b)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-c; !is(err, syscall.EINTR) && !is(err, syscall.EBADF) {
		t.Fatal(err)
	}
	d := walk(t, root, "f").(*File)
	c = wait(t.Context(), d)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-c; err != nil || m.held() != 1 {
		t.Fatal("not granted when the holder went:", err, m.held())
	}
	if err := d.Close(); err != nil || m.held() != 0 {
		t.Fatal(err, m.held())
	}
}
