package plain

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/client"
)

// sockets are two connected unix sockets.
func sockets(t tb) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	t.ok(err)
	conns := [2]net.Conn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		conns[i], err = net.FileConn(f)
		t.ok(errors.Join(err, f.Close()))
	}
	return conns[0], conns[1]
}

// TestSplice reads large pieces of a file that is in memory, that is not, that
// is written to, cut and grows, and leaves answers unread.
func TestSplice(tt *testing.T) {
	t := tb{tt, tt.Context()}
	testutil.CheckLeaks(t)
	dir := t.TempDir()
	before := openFDs(t)
	tree, err := Open(dir, Options{})
	t.ok(err)
	srv := p9srv.New(tree, p9srv.Options{})
	defer func() {
		t.ok(errors.Join(srv.Close(), tree.Close()))
		if n := openFDs(t); n > before {
			t.Errorf("%d descriptors are left open", n-before)
		}
	}()
	mine, theirs := sockets(t)
	done := make(chan error)
	go func() { done <- srv.ServeConn(context.Background(), theirs) }()
	c, err := client.NewConn(t.ctx, mine, client.Options{})
	t.ok(err)
	root, err := c.Attach(t.ctx, "", me(), "")
	t.ok(err)

	rnd := testutil.Rand(t)
	const size = 3<<20 + 4321
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	path := filepath.Join(dir, "f")
	t.ok(os.WriteFile(path, data, 0o666))
	host, err := os.OpenFile(path, os.O_RDWR, 0)
	t.ok(err)
	defer host.Close()
	f := t.open(root, "f", p9.ReadWrite)
	buf := make([]byte, 1<<20)
	check := func(off, n int) {
		t.Helper()
		got, err := f.Read(t.ctx, buf[:n], int64(off))
		t.ok(err)
		want := data[min(off, len(data)):min(off+n, len(data))]
		if n := f.IOSize(); len(want) > n {
			want = want[:n]
		}
		if !bytes.Equal(buf[:got], want) {
			t.Fatalf("%d bytes at %d of %d: got %d others", n, off, len(data), got)
		}
	}
	for i := range 60 {
		if i%3 == 0 {
			// Written back, it can be left to the disk. A tmpfs keeps it.
			t.ok(errors.Join(host.Sync(), unix.Fadvise(int(host.Fd()), 0, 0, unix.FADV_DONTNEED)))
		}
		check(rnd.IntN(size), rnd.IntN(1<<20))
	}
	for range 10 {
		off, n := rnd.IntN(size/2), 1+rnd.IntN(1<<20)
		part := bytes.Repeat([]byte{byte(n)}, n)
		_, err := f.WriteAt(t.ctx, part, int64(off))
		t.ok(err)
		copy(data[off:], part)
		check(off-min(off, 1000), 1<<20)
	}
	t.ok(host.Truncate(100000))
	data = data[:100000]
	check(0, 1<<20)
	check(50000, 1<<20)
	_, err = f.WriteAt(t.ctx, bytes.Repeat([]byte("x"), 200000), 100000)
	t.ok(err)
	data = append(data, bytes.Repeat([]byte("x"), 200000)...)
	check(1, 1<<20)

	// A client that goes with answers on their way.
	ctx, cancel := context.WithCancel(t.ctx)
	cancel()
	for range 100 {
		_, _ = f.Read(ctx, buf, 0)
	}
	c.Close()
	t.ok(<-done)
}
