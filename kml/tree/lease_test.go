package tree

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
)

// TestStoreWaitsForForeignWriter: a client's store does not take a file away from
// under a program that has it open for writing, or mapped.
func TestStoreWaitsForForeignWriter(t *testing.T) {
	tr := newTree(t)
	c := newClient(t, tr)
	path := filepath.Join(tr.dir, "f")
	store := func() ReintResult {
		o := must[*Object](t)(tr.index.Get(must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "f")).OID))
		r := c.rec(kml.OpStore)
		r.OID, r.Base.Pos, r.Attr = o.OID, o.DataVersion, kml.Attr{Size: 5, Mtime: 1e9}
		return tr.Reintegrate(ctx, nil, r, c.stage(t, r.Origin.Seq, "store"))
	}
	put(t, tr, kml.RootOID, "f", "first contents")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	ok(t, err)
	if res := store(); res.Status != ReintRefused || res.Errno != unix.ETXTBSY {
		t.Errorf("open for writing: %+v", res)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 5, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	ok(t, err)
	ok(t, f.Close())
	if res := store(); res.Status != ReintRefused || res.Errno != unix.ETXTBSY {
		t.Errorf("mapped: %+v", res)
	}
	copy(m, "saved")
	ok(t, unix.Munmap(m))
	if b, err := os.ReadFile(path); err != nil || string(b) != "saved contents" {
		t.Errorf("%q %v", b, err)
	}
	ok(t, tr.Scan(ctx))
	if res := store(); res.Status != ReintApplied {
		t.Errorf("nobody has it open: %+v", res)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "store" {
		t.Errorf("%q %v", b, err)
	}
	checkAgrees(t, tr)
}

// TestForeignWritersAndStores lets programs append lines to a file behind the
// tree's back while a client replaces it by what it has seen of it and a line
// more: every line of anybody's is there in the end.
func TestForeignWritersAndStores(t *testing.T) {
	tr := newTree(t)
	c := newClient(t, tr)
	oid := put(t, tr, kml.RootOID, "f", "begin\n").OID
	path := filepath.Join(tr.dir, "f")
	rounds := 60
	if testutil.Long() {
		rounds = 3000
	}
	end := make(chan struct{})
	var wg sync.WaitGroup
	written := make([]int, 2)
	for w := range written {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-end:
					return
				default:
				}
				f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
				if err == nil {
					_, err = fmt.Fprintf(f, "foreign %d %d\n", w, n)
					if e := f.Close(); err == nil {
						err = e
					}
				}
				if err != nil {
					t.Error(err)
					return
				}
				written[w] = n + 1
				c.seen(t, tr, oid) // some come fast one after the other, some do not
			}
		})
	}
	var stored []int
	for n := 0; len(stored) < rounds && !t.Failed(); n++ {
		text, version := c.seen(t, tr, oid)
		if text == "" {
			continue
		}
		text += fmt.Sprintf("store %d\n", n)
		r := c.rec(kml.OpStore)
		r.OID, r.Base.Pos, r.Attr = oid, version, kml.Attr{Size: uint64(len(text)), Mtime: int64(1e18) + int64(n)}
		switch res := tr.Reintegrate(ctx, nil, r, c.stage(t, r.Origin.Seq, text)); {
		case res.Status == ReintApplied:
			stored = append(stored, n)
		case res.Status != ReintConflict && res.Errno != unix.ETXTBSY && res.Errno != unix.ESTALE:
			t.Fatalf("%+v", res)
		}
	}
	close(end)
	wg.Wait()
	b, err := os.ReadFile(path)
	ok(t, err)
	lines := strings.Split(string(b), "\n")
	has := func(format string, args ...any) {
		if line := fmt.Sprintf(format, args...); !slices.Contains(lines, line) {
			t.Errorf("%q is lost", line)
		}
	}
	for _, n := range stored {
		has("store %d", n)
	}
	for w, n := range written {
		for i := range n {
			has("foreign %d %d", w, i)
		}
	}
	ok(t, tr.Scan(ctx))
	checkAgrees(t, tr)
}

// seen is what a client is shown of a file; "" when it is being written.
func (c *client) seen(t *testing.T, tr *Tree, oid kml.OID) (string, kml.Position) {
	t.Helper()
	v, err := tr.OpenVersion(ctx, oid)
	if err != nil {
		return "", 0
	}
	defer v.Close()
	a := v.Attr()
	b := make([]byte, a.Size)
	if n, err := v.ReadAt(ctx, b, 0); err != nil || n < len(b) {
		return "", 0
	}
	return string(b), kml.Position(a.DataVersion)
}
