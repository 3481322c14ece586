package tree

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

func entriesNamed(n int) []DirEntry {
	var list []DirEntry
	for i := range n {
		list = append(list, DirEntry{Name: fmt.Sprintf("name %d", i)})
	}
	return list
}

// TestPictureGoesOnInAnother reads a folder in pieces, each from a picture of
// its own, while names that were read already go: all others come once.
func TestPictureGoesOnInAnother(t *testing.T) {
	const names = 1000
	seen, gone := map[string]int{}, map[string]bool{}
	for off := uint64(0); ; {
		var list []DirEntry
		for _, e := range entriesNamed(names) {
			if !gone[e.Name] {
				list = append(list, e)
			}
		}
		p := takePicture(list)
		part := p.after(off, 7)
		if len(part) == 0 {
			break
		}
		for i, e := range part {
			seen[e.Name]++
			gone[e.Name] = i%2 == 0
			if e.Off <= off || e.Off > 1<<62 {
				t.Fatalf("offset %d after %d", e.Off, off)
			}
			off = e.Off
		}
	}
	for _, e := range entriesNamed(names) {
		if seen[e.Name] != 1 {
			t.Errorf("%q came %d times", e.Name, seen[e.Name])
		}
	}
}

func TestPictureKeepsNamesOfOneHash(t *testing.T) {
	p := takePicture([]DirEntry{{Name: "x"}, {Name: "x"}, {Name: "x"}})
	n := 0
	for off := uint64(0); ; n++ {
		part := p.after(off, 1)
		if len(part) == 0 {
			break
		}
		off = part[0].Off
	}
	if n != 3 {
		t.Errorf("%d of 3 entries", n)
	}
}

// TestPicturesLast: a listing is made once while the folder stays as it is, and
// anew when anybody changed it.
func TestPicturesLast(t *testing.T) {
	tr := newTree(t)
	_, h, err := tr.Create(ctx, nil, kml.RootOID, "a", unix.O_RDWR, 0o644)
	ok(t, err)
	ok(t, h.Close())
	var st unix.Statx_t
	names := func() (out []string) {
		t.Helper()
		d := must[DirHandle](t)(tr.OpenDir(ctx, nil, kml.RootOID))
		defer d.Close()
		for _, e := range must[[]DirEntry](t)(d.ReadDir(ctx, 0, 100)) {
			out = append(out, e.Name)
		}
		slices.Sort(out)
		return out
	}
	ok(t, statAt(tr.rootfd, "", &st))
	waitFor(t, tr, "a picture to be kept", func() bool {
		names()
		_, kept := tr.pictures.get(kml.RootOID, &st)
		return kept
	})
	if got := names(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("kept: %q", got)
	}
	ok(t, os.WriteFile(filepath.Join(tr.Dir(), "b"), nil, 0o600)) // behind its back
	if got := names(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("after a foreign edit: %q", got)
	}
	ok(t, tr.Unlink(ctx, nil, kml.RootOID, "a"))
	if got := names(); !slices.Equal(got, []string{"b"}) {
		t.Errorf("after an unlink: %q", got)
	}
}

func TestPicturesAreBounded(t *testing.T) {
	var s pictures
	st := unix.Statx_t{Ino: 7}
	st.Ctime.Sec, st.Ctime.Nsec = 1e9, 1
	for i := range 40 {
		s.put(kml.OID(100+i), &st, picture{list: make([]DirEntry, maxPictured/10)})
		s.put(kml.OID(100+i), &st, picture{list: make([]DirEntry, maxPictured/20)}) // taken again
	}
	n := 0
	for _, p := range s.m {
		n += len(p.pic.list) + 1
	}
	if n != s.entries || n > maxPictured || n < maxPictured/2 {
		t.Errorf("%d entries are kept, %d counted, most %d", n, s.entries, maxPictured)
	}
}
