package local

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/zeebo/blake3"
	"pgregory.net/rapid"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
)

func rec(name string) *kml.Record {
	return &kml.Record{Op: kml.OpMkdir, OID: kml.MakeOID(3, 7), Parent: kml.RootOID, Name: name, Attr: kml.Attr{Mode: 0o40755}}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string) *Log {
	t.Helper()
	l, err := Open(dir)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// text is everything a log says.
func text(l *Log) []string {
	var out []string
	for _, e := range l.Entries() {
		r, raw := e.Now()
		out = append(out, fmt.Sprintf("%x at %v after %x data %v: %q base %v frozen %x", e.ID, e.At, e.After, e.Data, r.Name, r.Base, raw))
	}
	return out
}

// TestModel holds a log that is closed, killed and written anew against itself
// before: what was said once is said again, in the same order, byte for byte,
// and no number comes twice.
func TestModel(t *testing.T) {
	testutil.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "local-*")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		l, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { l.Close() }()
		top := uint64(0)
		fail := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		some := func(t *rapid.T, frozen bool) *Entry {
			var es []*Entry
			for _, e := range l.Entries() {
				if (e.Seq() != 0) == frozen {
					es = append(es, e)
				}
			}
			if len(es) == 0 {
				t.Skip("none")
			}
			return es[rapid.IntRange(0, len(es)-1).Draw(t, "which")]
		}
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				e := New(rec(rapid.StringN(1, 20, 200).Draw(t, "name")))
				e.At = kml.Position(rapid.Uint64().Draw(t, "at"))
				if all := l.Entries(); len(all) > 0 && rapid.Bool().Draw(t, "after") {
					e.After = all[len(all)-1].ID
				}
				fail(l.Append(e))
			},
			"insert": func(t *rapid.T) {
				at := some(t, false)
				e := New(rec("between"))
				e.ID = l.IDsAfter(at.ID, 1)[0]
				fail(l.Append(e))
				if e.ID <= at.ID || e.ID/idStep != at.ID/idStep {
					t.Fatal("not in its place")
				}
			},
			"exchange": func(t *rapid.T) {
				old := some(t, rapid.Bool().Draw(t, "frozen"))
				e := New(rec("instead"))
				e.ID = l.IDsAfter(old.ID, 1)[0]
				fail(l.Exchange([]*Entry{old}, []*Entry{e}))
				if !old.Gone() || l.Get(e.ID) != e {
					t.Fatal("not exchanged")
				}
			},
			"amend": func(t *rapid.T) {
				e := some(t, false)
				as := []Amendment{{e, rec("amended"), e}}
				for _, d := range l.Entries() {
					if d != e && d.Seq() == 0 && rapid.Bool().Draw(t, "drop") {
						as = append(as, Amendment{d, nil, nil})
						as[0].Like = d
					}
				}
				fail(l.Amend(as))
				if e.Rec().Name != "amended" || e.After != as[0].Like.After {
					t.Fatal("not amended")
				}
			},
			"before": func(t *rapid.T) {
				at := some(t, rapid.Bool().Draw(t, "frozen"))
				id := l.IDBefore(at.ID)
				if id == 0 {
					t.Skip("no room")
				}
				e := New(rec("before"))
				e.ID = id
				fail(l.Append(e))
				all := l.Entries()
				if i := slices.Index(all, at); all[i-1] != e {
					t.Fatal("not in its place")
				}
			},
			"freeze": func(t *rapid.T) {
				e := some(t, false)
				fail(l.Freeze(3, []*Entry{e}, nil))
				if e.Seq() <= top {
					t.Fatalf("number %d after %d", e.Seq(), top)
				}
				top = e.Seq()
				if b := l.Get(e.After); b != nil && b.Seq() != 0 && e.Rec().Base.Seq != b.Seq() {
					t.Fatalf("base %v, not %d", e.Rec().Base, b.Seq())
				}
			},
			"thaw":    func(t *rapid.T) { fail(l.Thaw(some(t, true))) },
			"replace": func(t *rapid.T) { fail(l.Replace(some(t, false), rec("another"))) },
			"done": func(t *rapid.T) {
				e := some(t, rapid.Bool().Draw(t, "frozen"))
				fail(l.Done(kml.Base{}, e))
				if !e.Gone() {
					t.Fatal("not gone")
				}
			},
			"above": func(t *rapid.T) {
				n := top + uint64(rapid.IntRange(0, 3).Draw(t, "n"))
				fail(l.Above(n))
				top = max(top, n)
			},
			"rewrite": func(t *rapid.T) {
				l.mu.Lock()
				err := l.rewrite()
				l.mu.Unlock()
				fail(err)
			},
			"killed": func(t *rapid.T) {
				want, known := text(l), l.Known()
				junk := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "junk")
				if _, err := l.f.WriteAt(junk, l.end); err != nil {
					t.Fatal(err)
				}
				l.Close()
				l, err = Open(dir)
				fail(err)
				if d := cmp.Diff(want, text(l)); d != "" {
					t.Fatal(d)
				}
				if k := l.Known(); k > known {
					t.Fatal(k, "was", known)
				}
			},
			"": func(t *rapid.T) {
				ids := []uint64{}
				for _, e := range l.Entries() {
					ids = append(ids, e.ID)
					if e.Seq() != 0 && (e.Seq() <= l.Known() || l.Sent(e.Seq()) != e) {
						t.Fatal(e.Seq(), l.Known())
					}
				}
				if !slices.IsSorted(ids) || len(ids) != l.Len() {
					t.Fatal(ids)
				}
			},
		})
	})
}

func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	must(t, l.Append(New(rec("first"))))
	whole := l.end
	must(t, l.Append(New(rec("second"))))
	must(t, l.Close())
	path := filepath.Join(dir, "log")
	all, err := os.ReadFile(path)
	must(t, err)
	for cut := whole; cut < int64(len(all)); cut++ {
		must(t, os.WriteFile(path, all[:cut], 0o600))
		l, err := Open(dir)
		must(t, err)
		if got := l.Entries(); len(got) != 1 || got[0].Rec().Name != "first" {
			t.Fatal(cut, got)
		}
		must(t, l.Close())
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, all[:whole]) {
			t.Fatal(cut, len(now), err)
		}
	}
	must(t, os.WriteFile(path, []byte("something else"), 0o600))
	if _, err := Open(dir); err == nil {
		t.Fatal("taken")
	}
}

// TestBases: a change of contents is based on the number of the change before,
// also when that has been forgotten meanwhile.
func TestBases(t *testing.T) {
	l := open(t, t.TempDir())
	a, b, c := New(rec("a")), New(rec("b")), New(rec("c"))
	must(t, l.Append(a))
	b.After = a.ID
	must(t, l.Append(b))
	c.After = b.ID
	must(t, l.Append(c))
	must(t, l.Freeze(3, []*Entry{a}, nil))
	must(t, l.Done(kml.Base{}, a))
	must(t, l.Freeze(3, []*Entry{b, c}, nil))
	if got := b.Rec().Base; got != (kml.Base{Seq: a.Rec().Origin.Seq}) {
		t.Error(got)
	}
	if got := c.Rec().Base; got != (kml.Base{Seq: b.Seq()}) {
		t.Error(got)
	}
}

func TestContents(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	e := &Entry{ID: l.Reserve(), Data: true, rec: rec("x")}
	must(t, os.WriteFile(l.Path(e.ID), []byte("kept"), 0o600))
	must(t, l.Append(e))
	stray := l.Reserve()
	must(t, os.WriteFile(l.Path(stray), []byte("stray"), 0o600))
	must(t, l.Close())
	l = open(t, dir)
	if _, err := os.Stat(l.Path(e.ID)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(l.Path(stray)); err == nil {
		t.Error("contents without a change are left")
	}
	must(t, l.Done(kml.Base{}, l.Get(e.ID)))
	if _, err := os.Stat(l.Path(e.ID)); err == nil {
		t.Error("contents of what is done are left")
	}
}

// TestRewritten: a log through which much goes stays small.
func TestRewritten(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	keep := New(rec("keep"))
	must(t, l.Append(keep))
	for range 20_000 {
		e := New(rec("name"))
		must(t, l.Append(e))
		must(t, l.Done(kml.Base{}, e))
	}
	if l.end > 2*rewriteAt {
		t.Errorf("%d bytes", l.end)
	}
	must(t, l.Close())
	l = open(t, dir)
	if got := l.Entries(); len(got) != 1 || got[0].Rec().Name != "keep" {
		t.Error(got)
	}
}

func BenchmarkAppend(b *testing.B) {
	l, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	for b.Loop() {
		if err := l.Append(New(rec("name"))); err != nil {
			b.Fatal(err)
		}
	}
}

// TestRecover: what was synced survives a crash of the machine, whatever became of
// the rest; of that, all from the first change on whose contents are not whole is
// forgotten, and its number is not given out again.
func TestRecover(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	store := func(name, contents string) *Entry {
		e := New(&kml.Record{Op: kml.OpStore, OID: kml.MakeOID(3, 7), Attr: kml.Attr{Size: uint64(len(contents))}, Name: name})
		e.ID, e.Data = l.Reserve(), true
		must(t, os.WriteFile(l.Path(e.ID), []byte(contents), 0o600))
		must(t, l.Append(e))
		return e
	}
	digest := func(e *Entry, r *kml.Record) error {
		b, err := os.ReadFile(l.Path(e.ID))
		sum := blake3.Sum256(b)
		r.Digest = sum[:]
		return err
	}
	var want []string
	keep := func(es ...*Entry) {
		for _, e := range es {
			want = append(want, fmt.Sprintf("%x", e.ID))
		}
	}
	synced := store("synced", "one")
	if !l.Behind() {
		t.Error("there is nothing to sync")
	}
	must(t, l.Sync())
	if l.Behind() {
		t.Error("there is something left to sync")
	}
	made, sent := New(rec("made")), store("sent", "two")
	must(t, l.Append(made))
	must(t, l.Freeze(9, []*Entry{sent}, digest))
	keep(synced, sent, made)
	torn := store("torn", "three")
	must(t, l.Append(New(rec("after it"))))
	frozen := store("frozen", "four")
	must(t, l.Freeze(9, []*Entry{frozen}, digest))
	next := frozen.Seq() + 1
	must(t, os.WriteFile(l.Path(torn.ID), []byte("th"), 0o600))
	must(t, l.Close())

	l = open(t, dir)
	n, err := l.Recover()
	must(t, err)
	if n != 3 {
		t.Errorf("%d changes were forgotten, not 3", n)
	}
	for range 2 {
		var got []string
		for _, e := range l.Entries() {
			got = append(got, fmt.Sprintf("%x", e.ID))
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		if l.Unknown(next-1) || !l.Unknown(next) {
			t.Errorf("numbers go on at another than %d", next)
		}
		if _, err := os.Stat(l.Path(torn.ID)); !os.IsNotExist(err) {
			t.Error(err)
		}
		must(t, l.Close())
		l = open(t, dir)
	}
	// A record that comes back under a number that was lost is the change it is.
	r := *made.Rec()
	r.Origin = kml.Origin{Site: 9, Seq: 77}
	e, err := l.Adopt(&r)
	must(t, err)
	if e == nil || e.ID != made.ID || e.Seq() != 77 || l.Sent(77) != e || !l.Unknown(78) {
		t.Errorf("adopted %+v", e)
	}
	if e, err := l.Adopt(&r); e != nil || err != nil {
		t.Errorf("adopted again: %v %v", e, err)
	}
}
