package plain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// TestListings reads folders around the length from which a listing is not made
// in place, in lots of every size, and goes on from the middle.
func TestListings(tt *testing.T) {
	t := tb{tt, tt.Context()}
	dir, attach := serve(t, Options{})
	root := attach(me())
	rnd := testutil.Rand(t)
	for _, files := range []int{0, 1, 190, 200, 210, 260, 3000} {
		name := fmt.Sprint("d", files)
		t.ok(os.Mkdir(filepath.Join(dir, name), 0o777))
		for i := range files {
			// Names of any length, so that lots end anywhere.
			f := fmt.Sprintf("%d%s", i, strings.Repeat("n", rnd.IntN(40)))
			t.ok(os.WriteFile(filepath.Join(dir, name, f), nil, 0o666))
		}
		for _, count := range []uint32{300, 4 << 10, 20 << 10, 64 << 10, 1 << 20} {
			if files > 1000 && count < 4<<10 {
				continue
			}
			f := t.open(root, name, p9.ReadOnly)
			var all p9.Dirents
			for off := uint64(0); ; off = all[len(all)-1].Offset {
				part, err := f.Readdir(t.ctx, off, count)
				t.ok(err)
				if len(part) == 0 {
					break
				}
				all = append(all, part...)
			}
			seen := map[string]bool{}
			for _, e := range all {
				seen[e.Name] = true
			}
			if len(all) != files+2 || len(seen) != len(all) {
				t.Errorf("%d entries with %d names of a folder of %d, %d bytes at a time", len(all), len(seen), files, count)
			}
			for range 5 {
				at := rnd.IntN(len(all) - 1)
				part, err := f.Readdir(t.ctx, all[at].Offset, count)
				t.ok(err)
				if len(part) == 0 || part[0] != all[at+1] {
					t.Fatalf("behind entry %d of %d, %d bytes at a time: %v, want %v", at, len(all), count, part[:min(len(part), 1)], all[at+1])
				}
			}
			t.ok(f.Clunk(t.ctx))
		}
	}
}

// TestListingInterrupted reads a long folder while signals cut what getdents(2)
// gives.
func TestListingInterrupted(tt *testing.T) {
	t := tb{tt, tt.Context()}
	dir := t.TempDir()
	const files = 1000
	for i := range files {
		t.ok(os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o666))
	}
	tree, err := Open(dir, Options{})
	t.ok(err)
	defer func() { t.ok(tree.Close()) }()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stop, stopped, tid := make(chan struct{}), make(chan struct{}), unix.Gettid()
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				// What the runtime itself sends to preempt; it does nothing.
				_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for range 200 {
		a, err := tree.Attach()
		t.ok(err)
		f := a.(*File)
		_, _, err = f.Open(p9.ReadOnly)
		t.ok(err)
		var p wire.DirPacker
		p.Begin(nil, 1, 1<<20)
		if err := f.FillDir(0, &p); errors.Is(err, p9srv.ErrWouldBlock) {
			p.Begin(p.Abort(), 1, 1<<20)
			t.ok(f.Bind(t.ctx).(*File).FillDir(0, &p))
		} else {
			t.ok(err)
		}
		n := 0
		for data := p.Finish()[wire.ReadOverhead:]; len(data) > 0; n++ {
			_, data, err = wire.NextDirent(data)
			t.ok(err)
		}
		if n != files+2 {
			t.Fatalf("%d entries of %d", n, files+2)
		}
		t.ok(f.Close())
	}
}
