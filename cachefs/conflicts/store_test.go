package conflicts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/conflict"
)

// world is a store with a clock.
type world struct {
	t   *testing.T
	dir string
	now time.Time
	o   Options
	*Store
}

func newWorld(t *testing.T, o Options) *world {
	w := &world{t: t, dir: t.TempDir(), now: time.Unix(1e9, 0).UTC(), o: o}
	w.o.Now = func() time.Time { return w.now }
	w.again()
	return w
}

func (w *world) again() {
	w.t.Helper()
	s, err := Open(w.dir, w.o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Store = s
}

func (w *world) add(c Conflict, data string) uint64 {
	w.t.Helper()
	path := ""
	if data != "" {
		path = filepath.Join(w.dir, "upload")
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	id, err := w.Add(c, path)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) kept(id uint64, want string) {
	w.t.Helper()
	b, err := os.ReadFile(w.BytesPath(id))
	if want == "" && !errors.Is(err, os.ErrNotExist) || want != "" && (err != nil || string(b) != want) {
		w.t.Errorf("%d: %q, %v, want %q", id, b, err, want)
	}
}

func TestStore(t *testing.T) {
	w := newWorld(t, Options{})
	foreign := filepath.Join(w.dir, "17-report.txt")
	if err := os.WriteFile(foreign, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := w.add(Of(conflict.Loss{Row: conflict.RowData, OID: 7, Other: 9, Keep: conflict.KeepTheirs, Version: 5}, "a/f"), "theirs")
	w.add(Of(conflict.Loss{Row: conflict.RowAttr, OID: 7, Field: "mode", Mine: []byte("600"), Theirs: []byte("644"), Keep: conflict.KeepMine}, "a/f"), "")
	m := w.add(Of(conflict.Loss{Row: conflict.RowAttr, OID: 7, Field: "mode", Mine: []byte("\xff"), Theirs: []byte("644"), Keep: conflict.KeepMine}, "a/f"), "")
	if err := os.WriteFile(w.BytesPath(99), []byte("stray"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := w.List()
	w.again()
	if diff := cmp.Diff(before, w.List()); diff != "" || len(before) != 2 || before[0].Side != "theirs" || string(before[1].Mine) != "\xff" {
		t.Errorf("%+v\n%s", before, diff)
	}
	w.kept(f, "theirs")
	w.kept(99, "")
	if w.CopyOf(7) != 9 || w.CopyOf(9) != 0 {
		t.Error(w.CopyOf(7), w.CopyOf(9))
	}
	if err := w.Settled(f); err != nil {
		t.Fatal(err)
	}
	if err := w.Settled(f); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	w.kept(f, "")
	if id := w.add(Conflict{What: "x"}, ""); id <= m || len(w.List()) != 2 {
		t.Errorf("%d, %+v", id, w.List())
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
}

func TestQuota(t *testing.T) {
	w := newWorld(t, Options{MaxBytes: 10, MaxAge: time.Hour, MaxOpen: 4})
	name := w.add(Conflict{What: "name"}, "")
	a, b := w.add(Conflict{What: "data", OID: kml.OID(1)}, "aaaa"), w.add(Conflict{What: "data"}, "bbbb")
	c := w.add(Conflict{What: "data"}, "cccc") // over ten bytes: the oldest goes
	w.kept(a, "")
	w.kept(b, "bbbb")
	w.kept(c, "cccc")
	w.now = w.now.Add(time.Hour + 1)
	gone, err := w.Expire()
	if err != nil || len(gone) != 2 || len(w.List()) != 1 || w.List()[0].ID != name {
		t.Errorf("%+v, %+v, %v", gone, w.List(), err)
	}
	for i := range 5 {
		w.add(Conflict{What: fmt.Sprint(i)}, "")
	}
	if l := w.List(); len(l) != 4 || l[0].What != "1" {
		t.Errorf("%+v", l)
	}
	if gone, err := w.Expire(); gone != nil || err != nil {
		t.Error(gone, err)
	}
}

// TestAddFails keeps a conflict in a folder that takes no list: the bytes stay the
// caller's.
func TestAddFails(t *testing.T) {
	w := newWorld(t, Options{})
	if err := os.Mkdir(filepath.Join(w.dir, "list"), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(w.dir, "mine")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Add(Conflict{What: "data"}, path); err == nil {
		t.Error("it is kept")
	}
	if _, err := os.Stat(path); err != nil || len(w.List()) != 0 {
		t.Error(err, w.List())
	}
	if _, err := w.Add(Conflict{What: "data"}, filepath.Join(w.dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestDamagedList(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "list"), []byte("{\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err == nil {
		t.Error("a damaged list passes")
	}
	if _, err := Open(filepath.Join(dir, "none"), Options{}); err == nil {
		t.Error("a folder that is not there passes")
	}
}
