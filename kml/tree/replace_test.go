package tree

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// seen is what somebody was told of a file.
type seen struct {
	how     string
	version uint64
	size    uint64
	content uint64
}

// TestReplacementsAreSeenWhole replaces a file's contents again and again while
// others ask for its attributes, open and read it: size and version that are
// told together belong together, and with the bytes of a handle.
func TestReplacementsAreSeenWhole(t *testing.T) {
	tr := newTree(t)
	c := newClient(t, tr)
	a := put(t, tr, kml.RootOID, "f", "first")
	first := seen{"first", a.DataVersion, 5, 0}
	if now := must[Attr](t)(tr.Getattr(t.Context(), nil, a.OID)); now.Size != 5 {
		t.Fatalf("%+v", now)
	} else {
		first.version = now.DataVersion
	}

	end := make(chan struct{})
	all := make(chan []seen, 4)
	var wg sync.WaitGroup
	look := func(f func(note func(string, Attr)) error) {
		wg.Go(func() {
			var got []seen
			defer func() { all <- got }()
			note := func(how string, a Attr) { got = append(got, seen{how, a.DataVersion, a.Size, a.Content}) }
			for {
				select {
				case <-end:
					return
				default:
				}
				if err := f(note); err != nil && !errors.Is(err, syscall.ESTALE) {
					t.Error(err)
					return
				}
			}
		})
	}
	look(func(note func(string, Attr)) error {
		a, err := tr.Getattr(t.Context(), nil, a.OID)
		if err == nil {
			note("getattr", a)
		}
		return err
	})
	look(func(note func(string, Attr)) error {
		a, err := tr.Lookup(t.Context(), nil, kml.RootOID, "f")
		if err == nil {
			note("lookup", a)
		}
		return err
	})
	for range 2 {
		look(func(note func(string, Attr)) error {
			h, err := tr.Open(t.Context(), nil, a.OID, unix.O_RDONLY)
			if err != nil {
				return err
			}
			defer h.Close()
			before, err := h.Attr(t.Context())
			if err != nil {
				return err
			}
			note("open", before)
			b := make([]byte, 4096)
			n, err := h.ReadAt(t.Context(), b, 0)
			if err != nil {
				return err
			}
			if b = b[:n]; uint64(n) != before.Size || n > 5 && bytes.Count(b, b[:1]) != n {
				return fmt.Errorf("size %d, read %d bytes, from %q to %q", before.Size, n, b[0], b[n-1])
			}
			after, err := h.Attr(t.Context())
			if err != nil {
				return err
			}
			note("open", after)
			if after.Content != before.Content {
				return fmt.Errorf("a handle's contents are another's: %x, %x", before.Content, after.Content)
			}
			return nil
		})
	}

	const versions = 300
	sizes := map[uint64]uint64{first.version: first.size}
	base := first.version
	for i := range uint64(versions) {
		data := string(bytes.Repeat([]byte{byte('a' + i%26)}, 1000+int(i*7%2000)))
		r := c.rec(kml.OpStore)
		r.OID, r.Base.Pos = a.OID, kml.Position(base)
		r.Attr = kml.Attr{Size: uint64(len(data)), Mtime: int64(i)}
		res := tr.Reintegrate(t.Context(), nil, r, c.stage(t, r.Origin.Seq, data))
		if res.Status != ReintApplied {
			t.Fatalf("%+v", res)
		}
		base = uint64(res.Pos)
		sizes[base] = r.Attr.Size
	}
	close(end)
	wg.Wait()
	close(all)
	versionOf := map[uint64]uint64{}
	for got := range all {
		if len(got) < 10 {
			t.Errorf("only %d looks", len(got))
		}
		for _, s := range got {
			if size, known := sizes[s.version]; !known || size != s.size {
				t.Fatalf("%s: version %x with size %d, which has %d", s.how, s.version, s.size, size)
			}
			if v, known := versionOf[s.content]; known && v != s.version || s.content == 0 {
				t.Fatalf("%s: contents %x are of versions %x and %x", s.how, s.content, v, s.version)
			}
			versionOf[s.content] = s.version
		}
	}
}

// TestForeignSaveIsAReplacement replaces a file behind the tree's back: those
// who read it keep what they opened, as of its version.
func TestForeignSaveIsAReplacement(t *testing.T) {
	tr := newTree(t)
	a := put(t, tr, kml.RootOID, "f", "old")
	a = must[Attr](t)(tr.Getattr(t.Context(), nil, a.OID))
	h := must[Handle](t)(tr.Open(t.Context(), nil, a.OID, unix.O_RDONLY))
	defer h.Close()
	replaceForeign(t, tr, "f", "newer")
	ok(t, tr.Scan(t.Context()))
	now := must[Attr](t)(tr.Lookup(t.Context(), nil, kml.RootOID, "f"))
	if now.OID != a.OID || now.Size != 5 || now.DataVersion == a.DataVersion || now.Content == a.Content {
		t.Errorf("after the save %+v, before %+v", now, a)
	}
	if got := must[Attr](t)(h.Attr(t.Context())); got.Size != 3 || got.DataVersion != a.DataVersion || got.Content != a.Content || !h.(Pinner).Pinned() {
		t.Errorf("the reader has %+v, opened %+v", got, a)
	}
}

// replaceForeign does what an editor does that saves by a rename.
func replaceForeign(t *testing.T, tr *Tree, name, data string) {
	t.Helper()
	p := filepath.Join(tr.Dir(), name)
	ok(t, os.WriteFile(p+".new", []byte(data), 0o644))
	ok(t, os.Rename(p+".new", p))
}
