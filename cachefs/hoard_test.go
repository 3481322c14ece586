package cachefs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mezzofs/mezzo/kml"
)

func TestPinPatterns(t *testing.T) {
	for _, c := range []struct{ pattern, yes, no string }{
		{"/", "/ /a /a/b", ""},
		{"/a", "/a /a/b /a/b/c", "/ /b /aa /b/a"},
		{"/a/b", "/a/b /a/b/c", "/a /a/c"},
		{"/a/*.txt", "/a/x.txt /a/x.txt/below", "/a /a/x /x.txt /a/b/x.txt"},
		{"/**/*.txt", "/x.txt /a/x.txt /a/b/c/x.txt", "/a /a/b"},
		{"/a/**", "/a /a/b /a/b/c", "/b"},
		{"/a/**/b", "/a/b /a/x/b /a/x/y/b/z", "/a /b /x/a/b"},
		{EscapePattern(`/a*[1]\?`), `/a*[1]\?`, `/ab1c`},
	} {
		parts, err := Pin{Pattern: c.pattern}.parts()
		if err != nil {
			t.Fatal(c.pattern, err)
		}
		matches := func(path string) bool {
			s := start(parts)
			for _, name := range strings.Split(strings.Trim(path, "/"), "/") {
				if s == nil || s.whole() {
					break
				}
				if name != "" {
					s = s.step(parts, name)
				}
			}
			return s != nil && s.whole()
		}
		for _, p := range strings.Fields(c.yes) {
			if !matches(p) {
				t.Errorf("%s does not match %s", c.pattern, p)
			}
		}
		for _, p := range strings.Fields(c.no) {
			if matches(p) {
				t.Errorf("%s matches %s", c.pattern, p)
			}
		}
	}
	for _, bad := range []string{"", "a", "//", "/a/", "/a//b", "/[", "/../x", "/./x", "/" + strings.Repeat("x", 5000)} {
		if _, err := (Pin{Pattern: bad}).parts(); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

// TestHoard: what is pinned is fetched, and again when it changes or something
// comes to it; it is there without the master, pins survive a restart, and what
// is missing is told.
func TestHoard(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	must(t, os.MkdirAll(filepath.Join(m.dir, "docs", "deep"), 0o755))
	must(t, os.Mkdir(filepath.Join(m.dir, "other"), 0o755))
	for _, name := range []string{"docs/a", "docs/deep/b", "other/c.txt", "other/d"} {
		must(t, os.WriteFile(filepath.Join(m.dir, name), []byte("contents of "+name), 0o644))
	}
	must(t, os.WriteFile(filepath.Join(m.dir, "docs", "big"), noise(5<<20), 0o644)) // over WholeMax
	must(t, m.tree.Scan(ctx))
	dir := t.TempDir()
	c := openClient(t, dir, m.sock)
	if err := c.Pin(Pin{Pattern: "no/slash"}); !errors.Is(err, syscall.EINVAL) {
		t.Error(err)
	}
	if err := c.Unpin("/docs"); !errors.Is(err, syscall.ENOENT) {
		t.Error(err)
	}
	must(t, c.Pin(Pin{Pattern: "/docs", Priority: 1}))
	must(t, c.Pin(Pin{Pattern: "/**/*.txt", Priority: 7}))
	must(t, c.Hoard(ctx, true))
	stats, _, _ := c.Pins()
	if len(stats) != 2 || stats[0].Pattern != "/**/*.txt" || stats[0].Files != 1 || stats[1].Files != 3 || stats[1].Bytes < 5<<20 {
		t.Fatalf("%+v", stats)
	}
	must(t, c.Hoard(ctx, false))
	stats, missing, state := c.Pins()
	if stats[0].MissingFiles+stats[1].MissingFiles != 0 || len(missing) != 0 || state != hoardIdle {
		t.Fatalf("%+v %v %s", stats, missing, state)
	}
	// As they change.
	must(t, os.WriteFile(filepath.Join(m.dir, "docs", "a"), []byte("changed"), 0o644))
	must(t, os.WriteFile(filepath.Join(m.dir, "docs", "deep", "new"), []byte("new"), 0o644))
	must(t, m.tree.Scan(ctx))
	must(t, c.Sync(ctx))
	here := func(dir kml.OID, name string) bool {
		a, err := c.Lookup(ctx, nil, dir, name)
		if err != nil {
			return false
		}
		n, err := c.Cache().Missing(a.OID)
		return n == 0 && err == nil && a.Size > 0
	}
	docs, err := c.Lookup(ctx, nil, kml.RootOID, "docs")
	must(t, err)
	deep, err := c.Lookup(ctx, nil, docs.OID, "deep")
	must(t, err)
	until(t, "what changed", func() bool { return here(docs.OID, "a") && here(deep.OID, "new") })
	other, err := c.Lookup(ctx, nil, kml.RootOID, "other")
	must(t, err)
	if here(other.OID, "d") {
		t.Error("what is not pinned was fetched")
	}
	must(t, c.Close(ctx))
	m.stop()
	c = openClient(t, dir, m.sock)
	for dir, name := range map[kml.OID]string{docs.OID: "a", deep.OID: "b", other.OID: "c.txt"} {
		a, err := c.Lookup(ctx, nil, dir, name)
		must(t, err)
		if s, err := readOID(ctx, c, a.OID); s == "" || err != nil {
			t.Error(name, s, err)
		}
	}
	must(t, c.Pin(Pin{Pattern: "/other"}))
	until(t, "the walk", func() bool { _, missing, state := c.Pins(); return len(missing) > 0 && state == hoardWaiting })
	if _, missing, _ := c.Pins(); len(missing) != 1 || missing[0] != (MissingFile{"/other/d", int64(len("contents of other/d"))}) {
		t.Errorf("%+v", missing)
	}
	if err := c.Hoard(ctx, false); !errors.Is(err, syscall.EHOSTDOWN) {
		t.Error(err)
	}
	m.start()
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, c.Hoard(ctx, false))
	if !here(other.OID, "d") {
		t.Error("not fetched with the next link")
	}
	must(t, c.Unpin("/docs"))
	if text := string(c.pinsText()); strings.Contains(text, "/docs") || !strings.Contains(text, `"/other"`) {
		t.Error(text)
	}
}

// TestHoardOrder: the highest priority comes first.
func TestHoardOrder(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	for _, d := range []string{"low", "high"} {
		must(t, os.Mkdir(filepath.Join(m.dir, d), 0o755))
		for i := range 30 {
			must(t, os.WriteFile(filepath.Join(m.dir, d, fmt.Sprint(i)), noise(100<<10), 0o644))
		}
	}
	must(t, m.tree.Scan(ctx))
	o := optionsOf(t.TempDir(), m.sock)
	o.Bandwidth = 1 << 20
	c, err := clientWith(t, o)
	must(t, err)
	must(t, c.SetOffline(true))
	must(t, c.Pin(Pin{Pattern: "/low", Priority: -1}))
	must(t, c.Pin(Pin{Pattern: "/high", Priority: 3}))
	must(t, c.SetOffline(false))
	until(t, "high", func() bool {
		s, _, _ := c.Pins()
		return s[0].Files == 30 && s[0].MissingFiles == 0
	})
	if s, _, _ := c.Pins(); s[1].Files != 30 || s[1].MissingFiles < 10 {
		t.Errorf("%+v", s)
	}
	must(t, c.SetBandwidth(0))
	must(t, c.Hoard(ctx, false))
	if s, _, _ := c.Pins(); s[1].MissingFiles != 0 {
		t.Errorf("%+v", s)
	}
}
