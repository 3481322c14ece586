package replay

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
)

// run replays w's log into dir.
func (w *world) run(ctx context.Context, dir string, o Options) (*Result, error) {
	s, err := kml.OpenScanner(w.kml)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return Run(ctx, s, dir, o)
}

func (w *world) replay(dir string, o Options) *Result {
	w.t.Helper()
	res, err := w.run(w.t.Context(), dir, o)
	w.must(err)
	return res
}

func (w *world) same(dir string) {
	w.t.Helper()
	if d := cmp.Diff(picture(w.t, w.dir), picture(w.t, dir)); d != "" {
		w.t.Fatal(d)
	}
}

// TestReplayFollowsRandomLife replays a life in pieces, and in one.
func TestReplayFollowsRandomLife(t *testing.T) {
	w := newWorld(t, testutil.Rand(t))
	dir := filepath.Join(t.TempDir(), "copy")
	for range 8 {
		w.live(80)
		from := w.log.End()
		res := w.replay(dir, Options{Contents: w.dir})
		if len(res.Missing) > 0 || res.To != from || res.Skipped > 0 {
			t.Fatalf("%+v", res)
		}
		w.same(dir)
		if res := w.replay(dir, Options{Contents: w.dir}); res.Records != 0 || res.Placed != 0 || res.From != from {
			t.Fatalf("%+v", res)
		}
		w.same(dir)
	}
	whole := filepath.Join(t.TempDir(), "whole")
	dry := w.replay(whole, Options{Contents: w.dir, DryRun: true})
	if _, err := os.Lstat(whole); err == nil {
		t.Fatal("a dry run made the folder")
	}
	if d := cmp.Diff(dry, w.replay(whole, Options{Contents: w.dir})); d != "" {
		t.Fatal(d)
	}
	w.same(whole)
}

func TestReplayListsMissing(t *testing.T) {
	w := newWorld(t, testutil.Rand(t))
	w.live(100)
	dir := filepath.Join(t.TempDir(), "copy")
	res := w.replay(dir, Options{})
	want := 0
	for o, k := range w.kinds {
		if st := w.stat(o); k == 0o100000 && st.Size > 0 {
			want++
		}
	}
	if len(res.Missing) != want || want == 0 {
		t.Fatalf("%d missing of %d: %+v", len(res.Missing), want, res)
	}
	for _, m := range res.Missing {
		st, err := os.Lstat(filepath.Join(dir, m.Path))
		if err != nil || uint64(st.Size()) != m.Size || m.Size == 0 {
			t.Fatal(m, err)
		}
	}
	if again := w.replay(dir, Options{}); len(again.Missing) != want {
		t.Fatalf("%+v", again)
	}
	if res = w.replay(dir, Options{Contents: w.dir}); int(res.Placed) != want || len(res.Missing) > 0 {
		t.Fatalf("%+v", res)
	}
	w.same(dir)
}

func TestReplayTakesContentsByDigest(t *testing.T) {
	w := newWorld(t, testutil.Rand(t))
	w.must(os.WriteFile(filepath.Join(w.dir, "f"), []byte("right"), 0o644))
	w.record(kml.Record{Op: kml.OpCreate, OID: 9, Parent: kml.RootOID, Name: "f", Attr: kml.Attr{Mode: 0o100644}})
	w.record(kml.Record{Op: kml.OpStore, OID: 9, Attr: kml.Attr{Size: 5, Mtime: 5}, Digest: make([]byte, 32)})
	dir := filepath.Join(t.TempDir(), "copy")
	for _, dry := range []bool{true, false} {
		if res := w.replay(dir, Options{Contents: w.dir, DryRun: dry}); len(res.Missing) != 1 || res.Placed != 0 {
			t.Fatalf("%+v", res)
		}
	}
	w.record(kml.Record{Op: kml.OpStore, OID: 9, Attr: kml.Attr{Size: 5, Mtime: 7}, Digest: digestOf("right")})
	if res := w.replay(dir, Options{Contents: w.dir}); len(res.Missing) != 0 || res.Placed != 1 {
		t.Fatalf("%+v", res)
	}
	b, err := os.ReadFile(filepath.Join(dir, "f"))
	if err != nil || string(b) != "right" {
		t.Fatalf("%q %v", b, err)
	}
}

func TestReplayRefuses(t *testing.T) {
	rng := testutil.Rand(t)
	w := newWorld(t, rng)
	w.live(30)
	dir := filepath.Join(t.TempDir(), "copy")
	w.replay(dir, Options{})
	want := func(err, is error) {
		t.Helper()
		if !errors.Is(err, is) {
			t.Fatalf("%v, not %v", err, is)
		}
	}
	_, err := w.run(t.Context(), dir, Options{Until: func(r *kml.Record) bool { return r.Pos.Recno() > 3 }})
	want(err, ErrBehind)
	full := t.TempDir()
	w.must(os.WriteFile(filepath.Join(full, "f"), nil, 0o644))
	_, err = w.run(t.Context(), full, Options{})
	want(err, ErrNotEmpty)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = w.run(ctx, dir, Options{})
	want(err, context.Canceled)

	other := newWorld(t, rng)
	other.live(60)
	_, err = other.run(t.Context(), dir, Options{})
	want(err, ErrHistory)

	// Another boot of the machine, in the middle of a record.
	state := filepath.Join(dir, StateDir, "state")
	b, err := os.ReadFile(state)
	w.must(err)
	s, err := decodeSlot(b)
	w.must(err)
	s.phase, s.boot = doing, [16]byte{1}
	w.must(os.WriteFile(state, s.encode(), 0o600))
	_, err = w.run(t.Context(), dir, Options{})
	want(err, ErrCrashed)
	b[30] ^= 1
	w.must(os.WriteFile(state, b, 0o600))
	if _, err = w.run(t.Context(), dir, Options{}); err == nil {
		t.Fatal("a damaged state passes")
	}

	for _, name := range []string{"..", ".", "a/b", "", "a\x00b", StateDir} {
		bad := newWorld(t, rng)
		w.must(bad.log.Append(&kml.Record{Op: kml.OpMkdir, OID: 5, Parent: kml.RootOID, Name: name, Attr: kml.Attr{Mode: 0o40755}}))
		_, err := bad.run(t.Context(), filepath.Join(t.TempDir(), "bad"), Options{})
		if rec := (*RecordError)(nil); !errors.As(err, &rec) {
			t.Fatalf("name %q: %v", name, err)
		}
	}
}

// TestReplayStaysInside puts a symbolic link where a folder was.
func TestReplayStaysInside(t *testing.T) {
	w := newWorld(t, testutil.Rand(t))
	w.must(os.Mkdir(filepath.Join(w.dir, "d"), 0o755))
	w.record(kml.Record{Op: kml.OpMkdir, OID: 5, Parent: kml.RootOID, Name: "d", Attr: kml.Attr{Mode: 0o40755}})
	dir, outside := filepath.Join(t.TempDir(), "copy"), t.TempDir()
	w.replay(dir, Options{})
	w.must(os.Remove(filepath.Join(dir, "d")))
	w.must(os.Symlink(outside, filepath.Join(dir, "d")))
	w.record(kml.Record{Op: kml.OpCreate, OID: 6, Parent: 5, Name: "f", Attr: kml.Attr{Mode: 0o100644}})
	if _, err := w.run(t.Context(), dir, Options{}); !errors.Is(err, ErrChanged) {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(outside); err != nil || len(names) > 0 {
		t.Fatal(names, err)
	}
}
