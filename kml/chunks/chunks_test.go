package chunks_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/chunks"
)

// served is a tree as another host serves it, and counts what is read.
type served struct {
	t    *chunks.Tree
	v    kml.Position
	read int
}

func (s *served) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	n := s.t.ReadAt(p, off, s.v)
	s.read += n
	return n, nil
}

func treeOf(t *testing.T, b []byte) *chunks.Tree {
	t.Helper()
	x, err := chunks.Make(t.Context(), chunks.Plain{ReaderAt: bytes.NewReader(b)}, uint64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// edit changes contents at random: bytes, a cut, an end.
func edit(rng *rand.Rand, b []byte) []byte {
	out := bytes.Clone(b)
	for range rng.IntN(4) {
		if len(out) > 0 {
			at := rng.IntN(len(out))
			fill(rng, out[at:min(len(out), at+1+rng.IntN(40000))])
		}
	}
	switch rng.IntN(4) {
	case 0:
		out = out[:rng.IntN(len(out)+1)]
	case 1:
		more := make([]byte, rng.IntN(200000))
		fill(rng, more)
		out = append(out, more...)
	}
	return out
}

// patch makes of old what a difference says, with the bytes of now.
func patch(old, now []byte, es []kml.Extent) []byte {
	out := append(bytes.Clone(old), make([]byte, max(0, len(now)-len(old)))...)[:len(now)]
	for _, e := range es {
		copy(out[e.Off:e.Off+e.Len], now[e.Off:])
	}
	return out
}

// TestDiff compares random files, and makes one of the other by what differs.
func TestDiff(t *testing.T) {
	rng := testutil.Rand(t)
	for range 60 {
		old := make([]byte, rng.IntN(3<<20))
		fill(rng, old)
		if rng.IntN(8) == 0 {
			old = old[:rng.IntN(min(len(old)+1, 3*chunks.Size))]
		}
		now := edit(rng, old)
		mine, theirs := treeOf(t, old), &served{t: treeOf(t, now), v: 7}
		m, err := chunks.OpenRemote(t.Context(), theirs)
		if err != nil {
			t.Fatal(err)
		}
		if m.Size() != uint64(len(now)) || m.Version() != 7 {
			t.Fatalf("size %d, version %v", m.Size(), m.Version())
		}
		es, got, err := chunks.Diff(t.Context(), mine, m)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(patch(old, now, es), now) {
			t.Fatalf("%d bytes to %d: what differs makes another file", len(old), len(now))
		}
		if got.Root() != theirs.t.Root() || got.Len() != theirs.t.Len() {
			t.Fatal("the tree of what is there is another one")
		}
		// The same by what is known to be changed.
		up, err := mine.Update(t.Context(), chunks.Plain{ReaderAt: bytes.NewReader(now)}, uint64(len(now)), es)
		if err != nil {
			t.Fatal(err)
		}
		if up.Root() != theirs.t.Root() {
			t.Fatal("a tree that was brought up to date is another one")
		}
		all := make([]byte, chunks.EncodedLen(uint64(len(now)))+10)
		all = all[:up.ReadAt(all, 0, 9)]
		again, v, err := chunks.Parse(all)
		if err != nil || v != 9 || again.Root() != up.Root() {
			t.Fatalf("a tree that was read back: %v, %v", v, err)
		}
		for range 20 {
			off := rng.IntN(len(all))
			p := make([]byte, rng.IntN(len(all)-off+5))
			if n := up.ReadAt(p, int64(off), 9); !bytes.Equal(p[:n], all[off:min(len(all), off+len(p))]) {
				t.Fatalf("read of %d at %d of %d differs", len(p), off, len(all))
			}
		}
	}
}

// sparse is a file of zeros with some bytes in it.
type sparse struct {
	at   int64
	with []byte
}

func (s sparse) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	clear(p)
	if lo, hi := max(off, s.at), min(off+int64(len(p)), s.at+int64(len(s.with))); lo < hi {
		copy(p[lo-off:], s.with[lo-s.at:hi-s.at])
	}
	return len(p), nil
}

// TestDiffIsSmall counts what is read to find 4 KiB in 256 MiB.
func TestDiffIsSmall(t *testing.T) {
	const size = 256 << 20
	old, err := chunks.Make(t.Context(), sparse{}, size)
	if err != nil {
		t.Fatal(err)
	}
	now, err := old.Update(t.Context(), sparse{100 << 20, bytes.Repeat([]byte("x"), 4096)}, size, []kml.Extent{{Off: 100 << 20, Len: 4096}})
	if err != nil {
		t.Fatal(err)
	}
	s := &served{t: now}
	m, err := chunks.OpenRemote(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	es, _, err := chunks.Diff(t.Context(), old, m)
	if err != nil {
		t.Fatal(err)
	}
	if len(es) != 1 || es[0] != (kml.Extent{Off: 100 << 20, Len: chunks.Size}) {
		t.Errorf("differs at %v", es)
	}
	if s.read > 8<<10 {
		t.Errorf("%d bytes of hashes were read", s.read)
	}
}

func TestBadTrees(t *testing.T) {
	x := treeOf(t, bytes.Repeat([]byte("mezzo"), 100000))
	b := make([]byte, chunks.EncodedLen(x.Len()))
	x.ReadAt(b, 0, 3)
	for i := range b {
		if i >= 16 && i < 24 || i >= 32 && i < chunks.HeadLen {
			continue // the version, and what means nothing yet
		}
		c := bytes.Clone(b)
		c[i] ^= 1
		if _, _, err := chunks.Parse(c); err == nil && i != 8 && i != 9 {
			t.Fatalf("a tree with a bad byte at %d was taken", i)
		}
	}
	if _, _, err := chunks.Parse(b[:len(b)-1]); !errors.Is(err, chunks.ErrFormat) {
		t.Errorf("a short tree: %v", err)
	}
	if _, err := chunks.Make(t.Context(), chunks.Plain{ReaderAt: bytes.NewReader(b)}, uint64(len(b)+1)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that ends before: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(chunks.AppendHead(nil, 5, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, v, err := chunks.Parse(b)
		if err != nil {
			return
		}
		c := make([]byte, len(b))
		x.ReadAt(c, 0, v)
		if y, _, err := chunks.Parse(c); err != nil || y.Root() != x.Root() {
			t.Fatalf("does not come back: %v", err)
		}
	})
}

func fill(rng *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
}
