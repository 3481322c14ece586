package cachefs

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mezzofs/mezzo/kml"
)

func TestReadTree(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	big := strings.Repeat("0123456789abcdef", 300<<10) // over WholeMax
	must(t, os.MkdirAll(filepath.Join(m.dir, "d", "e"), 0o755))
	must(t, os.WriteFile(filepath.Join(m.dir, "d", "f\n\xff"), []byte("hello"), 0o640))
	must(t, os.WriteFile(filepath.Join(m.dir, "empty"), nil, 0o600))
	must(t, os.WriteFile(filepath.Join(m.dir, "big"), []byte(big), 0o600))
	must(t, os.Symlink("d/f", filepath.Join(m.dir, "l")))
	must(t, os.Link(filepath.Join(m.dir, "d", "f\n\xff"), filepath.Join(m.dir, "hard")))
	must(t, m.tree.Scan(ctx))
	c := m.client(m.sock)
	got, err := names(ctx, c, kml.RootOID)
	if d := cmp.Diff([]string{"big", "d", "empty", "hard", "l"}, got); d != "" || err != nil {
		t.Fatal(d, err)
	}
	for name, want := range map[string]string{"empty": "", "hard": "hello", "big": big} {
		if s, err := readFile(ctx, c, name); s != want || err != nil {
			t.Errorf("%s: %d bytes, %v", name, len(s), err)
		}
	}
	l, err := c.Lookup(ctx, nil, kml.RootOID, "l")
	must(t, err)
	if s, err := c.Readlink(ctx, nil, l.OID); s != "d/f" || err != nil {
		t.Error(s, err)
	}
	d, err := c.Lookup(ctx, nil, kml.RootOID, "d")
	must(t, err)
	f, err := c.Lookup(ctx, nil, d.OID, "f\n\xff")
	must(t, err)
	hard, err := c.Lookup(ctx, nil, kml.RootOID, "hard")
	must(t, err)
	if f.OID != hard.OID || f.Nlink != 2 || f.Mode != 0o100640 {
		t.Errorf("%+v %+v", f, hard)
	}
	ns, err := names(ctx, c, d.OID)
	if slices.Sort(ns); err != nil || !slices.Equal(ns, []string{"e", "f\n\xff"}) {
		t.Error(ns, err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTwoClients(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	a, b := m.client(m.sock), m.client(m.sock)
	if ns, err := names(ctx, b, kml.RootOID); len(ns) != 0 || err != nil {
		t.Fatal(ns, err)
	}
	must(t, writeFile(ctx, a, "f", "one"))
	same(t, "one", func() (string, error) { return readFile(ctx, b, "f") })
	must(t, writeFile(ctx, b, "f", "two and more"))
	same(t, "two and more", func() (string, error) { return readFile(ctx, a, "f") })
	same(t, "two and more", func() (string, error) {
		s, err := os.ReadFile(filepath.Join(m.dir, "f"))
		return string(s), err
	})
	must(t, a.Rename(ctx, nil, kml.RootOID, "f", kml.RootOID, "g", 0))
	same(t, "g", func() (string, error) {
		ns, err := names(ctx, b, kml.RootOID)
		return strings.Join(ns, " "), err
	})
	must(t, a.Sync(ctx))
	must(t, b.Sync(ctx))
	must(t, b.Unlink(ctx, nil, kml.RootOID, "g"))
	same(t, "", func() (string, error) {
		ns, err := names(ctx, a, kml.RootOID)
		return strings.Join(ns, " "), err
	})
}

func TestReopenedCache(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	dir := t.TempDir()
	c := openClient(t, dir, m.sock)
	must(t, writeFile(ctx, c, "f", "one"))
	must(t, c.Close(context.Background()))
	m.stop()
	c = openClient(t, dir, m.sock)
	if s := c.State(); s != Disconnected {
		t.Fatal(s)
	}
	if s, err := readFile(ctx, c, "f"); s != "one" || err != nil {
		t.Fatal(s, err)
	}
}
