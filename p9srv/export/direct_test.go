package export

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv"
)

// TestDirectReads reads a file that the page cache has and one that it may have
// lost, in place, bound to a request, and through a pipe.
func TestDirectReads(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	data := bytes.Repeat([]byte("0123456789abcdef"), 20000)
	root := as(t, m.e, p9srv.User{}, "")
	f, _, _, err := root.Create("f", p9.ReadWrite, 0o644, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	g := walk(t, root, "f").(*File)
	defer g.Close()
	if n := g.PipeSize(0, 10); n != 0 {
		t.Errorf("%d bytes can be spliced of a file that is not open", n)
	}
	if _, _, err := g.Open(p9.ReadOnly); err != nil {
		t.Fatal(err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	bound := g.Bind(context.Background()).(*File)
	buf := make([]byte, len(data))
	for _, evict := range []bool{false, true} {
		if evict {
			host, err := os.Open(filepath.Join(m.dir, "f"))
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(host.Sync(), unix.Fadvise(int(host.Fd()), 0, 0, unix.FADV_DONTNEED), host.Close()); err != nil {
				t.Fatal(err)
			}
		}
		// What is gone from the cache, if it went, is not waited for in place.
		n, err := g.ReadAt(buf, 100)
		if want := data[100:]; err == nil && !bytes.HasPrefix(want, buf[:n]) || err != nil && (!evict || !errors.Is(err, p9srv.ErrWouldBlock)) {
			t.Errorf("in place: %d bytes, %v", n, err)
		}
		if n := g.PipeSize(100, len(data)); n != len(data)-100 && n != 0 {
			t.Errorf("%d bytes can be spliced in place", n)
		}
		if n, err := bound.ReadAt(buf, 100); err != nil || !bytes.Equal(buf[:n], data[100:]) {
			t.Errorf("bound: %d bytes, %v", n, err)
		}
		if n := bound.PipeSize(100, len(data)); n != len(data)-100 {
			t.Errorf("%d bytes can be spliced", n)
		}
		n, err = bound.ReadToPipe(pipe[1], 100, 5000)
		if err != nil || n != 5000 {
			t.Fatalf("spliced %d bytes, %v", n, err)
		}
		if n, err := unix.Read(pipe[0], buf); err != nil || !bytes.Equal(buf[:n], data[100:5100]) {
			t.Errorf("spliced %d other bytes, %v", n, err)
		}
	}
	if n := bound.PipeSize(int64(len(data)), 1); n != 0 {
		t.Errorf("%d bytes behind the end", n)
	}
}
