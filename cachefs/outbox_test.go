package cachefs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
)

func rec(seq uint64, name string) *kml.Record {
	return &kml.Record{Op: kml.OpMkdir, OID: kml.MakeOID(3, seq), Parent: kml.RootOID, Name: name, Origin: kml.Origin{Site: 3, Seq: seq},
		Attr: kml.Attr{Mode: 0o40755}}
}

func raws(b *outbox) map[uint64]string {
	m := map[uint64]string{}
	for _, f := range b.pending() {
		m[f.rec.Origin.Seq] = string(f.raw)
	}
	return m
}

// TestOutboxModel holds an outbox that is closed, killed and cut at any byte
// against a map: what was frozen comes back byte for byte, what was done does
// not, and no number comes twice.
func TestOutboxModel(t *testing.T) {
	testutil.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "outbox-*")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		b, err := openOutbox(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { b.close() }()
		want, top := map[uint64]string{}, uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"freeze": func(t *rapid.T) {
				n := rapid.IntRange(1, 4).Draw(t, "n")
				first := b.number(n)
				if first <= top {
					t.Fatalf("number %d after %d", first, top)
				}
				var rs []*kml.Record
				for i := range n {
					rs = append(rs, rec(first+uint64(i), rapid.StringN(1, 20, 200).Draw(t, "name")))
				}
				fs, err := b.freeze(rs)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range fs {
					want[f.rec.Origin.Seq] = string(f.raw)
					top = max(top, f.rec.Origin.Seq)
				}
			},
			"done": func(t *rapid.T) {
				for seq := range want {
					if err := b.done(seq); err != nil {
						t.Fatal(err)
					}
					delete(want, seq)
					break
				}
			},
			"above": func(t *rapid.T) {
				n := top + uint64(rapid.IntRange(0, 3).Draw(t, "n"))
				if err := b.above(n); err != nil {
					t.Fatal(err)
				}
				top = max(top, n)
			},
			"rewrite": func(t *rapid.T) {
				b.mu.Lock()
				err := b.rewrite()
				b.mu.Unlock()
				if err != nil {
					t.Fatal(err)
				}
			},
			"killed": func(t *rapid.T) {
				junk := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "junk")
				if _, err := b.f.WriteAt(junk, b.end); err != nil {
					t.Fatal(err)
				}
				b.close()
				if b, err = openOutbox(dir); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				if d := cmp.Diff(want, raws(b)); d != "" {
					t.Fatal(d)
				}
				if k := b.known(); len(want) > 0 {
					for seq := range want {
						if seq <= k {
							t.Fatal(seq, "is not known", k)
						}
					}
				}
			},
		})
	})
}

func TestOutboxTornTail(t *testing.T) {
	dir := t.TempDir()
	b, err := openOutbox(dir)
	must(t, err)
	_, err = b.freeze([]*kml.Record{rec(b.number(1), "first")})
	must(t, err)
	whole := b.end
	_, err = b.freeze([]*kml.Record{rec(b.number(1), "second")})
	must(t, err)
	must(t, b.close())
	path := filepath.Join(dir, "log")
	all, err := os.ReadFile(path)
	must(t, err)
	for cut := whole; cut < int64(len(all)); cut++ {
		must(t, os.WriteFile(path, all[:cut], 0o600))
		b, err := openOutbox(dir)
		must(t, err)
		if got := b.pending(); len(got) != 1 || got[0].rec.Name != "first" {
			t.Fatal(cut, got)
		}
		must(t, b.close())
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, all[:whole]) {
			t.Fatal(cut, len(now), err)
		}
	}
	must(t, os.WriteFile(path, []byte("something else"), 0o600))
	if _, err := openOutbox(dir); err == nil {
		t.Fatal("taken")
	}
}

func TestOutboxStrayContents(t *testing.T) {
	dir := t.TempDir()
	b, err := openOutbox(dir)
	must(t, err)
	must(t, os.WriteFile(b.data(1), []byte("kept"), 0o600))
	_, err = b.freeze([]*kml.Record{rec(1, "x")})
	must(t, err)
	must(t, os.WriteFile(b.data(2), []byte("stray"), 0o600))
	must(t, b.close())
	b, err = openOutbox(dir)
	must(t, err)
	defer b.close()
	if _, err := os.Stat(b.data(1)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(b.data(2)); err == nil {
		t.Error("contents without a record are left")
	}
	must(t, b.done(1))
	if _, err := os.Stat(b.data(1)); err == nil {
		t.Error("contents of what is done are left")
	}
}
