package cachefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// picture is a whole tree in text, as fs shows it: names, types, modes, owners,
// times, contents, xattrs.
func picture(ctx context.Context, fs tree.FS) (string, error) {
	var b strings.Builder
	var walk func(oid kml.OID, at string) error
	walk = func(oid kml.OID, at string) error {
		ns, err := names(ctx, fs, oid)
		if err != nil {
			return err
		}
		slices.Sort(ns)
		for _, n := range ns {
			a, err := fs.Lookup(ctx, nil, oid, n)
			if err != nil {
				return fmt.Errorf("%s/%s: %w", at, n, err)
			}
			fmt.Fprintf(&b, "%s/%q %v %o %d:%d %d", at, n, a.OID, a.Mode, a.UID, a.GID, a.Rdev)
			xs, err := fs.Listxattr(ctx, nil, a.OID)
			if err != nil && !errors.Is(err, syscall.EOPNOTSUPP) {
				return err
			}
			slices.Sort(xs)
			for _, x := range xs {
				v, err := fs.Getxattr(ctx, nil, a.OID, x)
				if err != nil {
					return err
				}
				fmt.Fprintf(&b, " %s=%q", x, v)
			}
			switch a.Mode & unix.S_IFMT {
			case unix.S_IFDIR:
				fmt.Fprintf(&b, " %d\n", a.Mtime)
				if err := walk(a.OID, at+"/"+n); err != nil {
					return err
				}
				continue
			case unix.S_IFLNK:
				s, err := fs.Readlink(ctx, nil, a.OID)
				if err != nil {
					return err
				}
				fmt.Fprintf(&b, " -> %q", s)
			case unix.S_IFREG:
				s, err := readOID(ctx, fs, a.OID)
				if err != nil {
					return fmt.Errorf("%s/%s: %w", at, n, err)
				}
				fmt.Fprintf(&b, " links %d mtime %d size %d %.40q", a.Nlink, a.Mtime, a.Size, s)
			}
			b.WriteByte('\n')
		}
		return nil
	}
	err := walk(kml.RootOID, "")
	return b.String(), err
}

// equal waits until every fs shows the same tree as the first.
func equal(t *testing.T, all ...tree.FS) {
	t.Helper()
	ctx := ctxOf(t)
	deadline := time.Now().Add(time.Minute)
	var want, got string
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		ok := true
		for i, fs := range all {
			s, err := picture(ctx, fs)
			if err != nil {
				ok, got = false, err.Error()
				break
			}
			if i == 0 {
				want = s
			} else if s != want {
				ok, got = false, s
				break
			}
		}
		if ok {
			tick.Stop()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("trees differ:\n%s", cmp.Diff(want, got))
		}
	}
}

// everyOp makes one change of each kind.
func everyOp(ctx context.Context, c tree.FS) error {
	root := kml.RootOID
	d, err := c.Mkdir(ctx, nil, root, "d", 0o751)
	if err != nil {
		return fmt.Errorf("mkdir: %w", err)
	}
	if err := writeFile(ctx, c, "f", "contents"); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	f, err := c.Lookup(ctx, nil, root, "f")
	if err != nil {
		return err
	}
	steps := []struct {
		name string
		f    func() error
	}{
		{"symlink", func() error { _, err := c.Symlink(ctx, nil, d.OID, "l", "../f\xff"); return err }},
		{"mknod", func() error { _, err := c.Mknod(ctx, nil, d.OID, "p", unix.S_IFIFO|0o640, 0); return err }},
		{"link", func() error { _, err := c.Link(ctx, nil, f.OID, d.OID, "hard"); return err }},
		{"setattr", func() error {
			_, err := c.Setattr(ctx, nil, f.OID, nil, tree.SetAttr{Mask: tree.SetMode | tree.SetMtime, Mode: 0o4755, Mtime: 1e18 + 7})
			return err
		}},
		{"setxattr", func() error { return c.Setxattr(ctx, nil, f.OID, "user.a", []byte("x\x00y"), 0) }},
		{"setxattr 2", func() error { return c.Setxattr(ctx, nil, f.OID, "user.b", []byte("b"), unix.XATTR_CREATE) }},
		{"removexattr", func() error { return c.Removexattr(ctx, nil, f.OID, "user.b") }},
		{"rename", func() error { return c.Rename(ctx, nil, root, "f", d.OID, "g", 0) }},
		{"write g", func() error { return writeFile(ctx, c, "h", "other") }},
		{"exchange", func() error { return c.Rename(ctx, nil, d.OID, "g", root, "h", unix.RENAME_EXCHANGE) }},
		{"replace", func() error { return c.Rename(ctx, nil, d.OID, "g", root, "h", 0) }},
		{"unlink", func() error { return c.Unlink(ctx, nil, d.OID, "p") }},
		{"mkdir 2", func() error { _, err := c.Mkdir(ctx, nil, d.OID, "gone", 0o700); return err }},
		{"rmdir", func() error { return c.Rmdir(ctx, nil, d.OID, "gone") }},
		{"truncate", func() error {
			a, err := c.Lookup(ctx, nil, root, "h")
			if err == nil {
				_, err = c.Setattr(ctx, nil, a.OID, nil, tree.SetAttr{Mask: tree.SetSize, Size: 3})
			}
			return err
		}},
	}
	for _, s := range steps {
		if err := s.f(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func TestEveryOperation(t *testing.T) {
	m := newMaster(t)
	a, b := m.client(m.sock), m.client(m.sock)
	ctx := ctxOf(t)
	if _, err := names(ctx, b, kml.RootOID); err != nil {
		t.Fatal(err)
	}
	must(t, everyOp(ctx, a))
	must(t, a.Sync(ctx))
	equal(t, m.tree, a, b, m.client(m.sock))
	if s := a.Status(); s.Unsent != 0 || s.OpenDirty != 0 || len(s.Notes) != 0 {
		t.Errorf("%+v", s)
	}
}

func TestErrors(t *testing.T) {
	m := newMaster(t)
	c := m.client(m.sock)
	ctx := ctxOf(t)
	root := kml.RootOID
	must(t, writeFile(ctx, c, "f", "x"))
	d, err := c.Mkdir(ctx, nil, root, "d", 0o755)
	must(t, err)
	_, err = c.Mkdir(ctx, nil, d.OID, "e", 0o755)
	must(t, err)
	for _, x := range []struct {
		name string
		want syscall.Errno
		f    func() error
	}{
		{"create excl", syscall.EEXIST, func() error { _, _, err := c.Create(ctx, nil, root, "f", os.O_RDWR|os.O_EXCL, 0o600); return err }},
		{"mkdir", syscall.EEXIST, func() error { _, err := c.Mkdir(ctx, nil, root, "f", 0o700); return err }},
		{"rmdir of a file", syscall.ENOTDIR, func() error { return c.Rmdir(ctx, nil, root, "f") }},
		{"unlink of a folder", syscall.EISDIR, func() error { return c.Unlink(ctx, nil, root, "d") }},
		{"rmdir", syscall.ENOTEMPTY, func() error { return c.Rmdir(ctx, nil, root, "d") }},
		{"unlink", syscall.ENOENT, func() error { return c.Unlink(ctx, nil, root, "no") }},
		{"state folder", syscall.EPERM, func() error { _, err := c.Mkdir(ctx, nil, root, ".mezzo", 0o700); return err }},
		{"long name", syscall.ENAMETOOLONG, func() error { _, err := c.Mkdir(ctx, nil, root, strings.Repeat("x", 256), 0o700); return err }},
		{"into itself", syscall.EINVAL, func() error { return c.Rename(ctx, nil, root, "d", d.OID, "x", 0) }},
		{"noreplace", syscall.EEXIST, func() error { return c.Rename(ctx, nil, root, "d", root, "f", unix.RENAME_NOREPLACE) }},
		{"folder over file", syscall.ENOTDIR, func() error { return c.Rename(ctx, nil, root, "d", root, "f", 0) }},
		{"xattr create", syscall.ENODATA, func() error { return c.Setxattr(ctx, nil, d.OID, "user.x", nil, unix.XATTR_REPLACE) }},
		{"below a file", syscall.ENOTDIR, func() error {
			a, err := c.Lookup(ctx, nil, root, "f")
			must(t, err)
			_, err = c.Lookup(ctx, nil, a.OID, "x")
			return err
		}},
	} {
		if err := x.f(); !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", x.name, err, x.want)
		}
	}
}

func TestDisconnected(t *testing.T) {
	m := newMaster(t)
	p := newProxy(t, m.sock)
	c := m.client(p.addr)
	ctx := ctxOf(t)
	must(t, writeFile(ctx, c, "f", "one"))
	a, err := c.Lookup(ctx, nil, kml.RootOID, "f")
	must(t, err)
	must(t, writeFile(ctx, m.tree, "absent", "x"))
	same(t, "absent f", func() (string, error) { ns, err := names(ctx, c, kml.RootOID); return strings.Join(ns, " "), err })
	h, err := c.Open(ctx, nil, a.OID, os.O_RDWR)
	must(t, err)
	must(t, c.Sync(ctx))
	p.cut(true)
	must(t, c.WaitState(ctx, func(s State) bool { return s == Disconnected }))
	if s, err := readFile(ctx, c, "f"); s != "one" || err != nil {
		t.Fatal(s, err)
	}
	before := time.Now()
	d, err := c.Mkdir(ctx, nil, kml.RootOID, "d", 0o700)
	must(t, err)
	_, err = c.Mkdir(ctx, nil, d.OID, "e", 0o700)
	must(t, err)
	if _, err := readFile(ctx, c, "absent"); !errors.Is(err, syscall.EHOSTDOWN) {
		t.Fatal(err)
	}
	if d := time.Since(before); d > 15*time.Second {
		t.Fatal(d)
	}
	_, err = h.WriteAt(ctx, []byte("two, offline"), 0)
	must(t, err)
	must(t, h.Fsync(ctx, false))
	if s, err := readFile(ctx, c, "f"); s != "two, offline" || err != nil {
		t.Fatal(s, err)
	}
	must(t, writeFile(ctx, m.tree, "meanwhile", "y"))
	p.open()
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, h.Close())
	must(t, c.Sync(ctx))
	b, err := os.ReadFile(filepath.Join(m.dir, "f"))
	if string(b) != "two, offline" || err != nil {
		t.Fatal(string(b), err)
	}
	same(t, "y", func() (string, error) { return readFile(ctx, c, "meanwhile") })
	equal(t, m.tree, c)
}

func TestSentLater(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	dir := t.TempDir()
	c := openClient(t, dir, m.sock)
	must(t, writeFile(ctx, c, "f", "one"))
	must(t, c.Sync(ctx))
	a, err := c.Lookup(ctx, nil, kml.RootOID, "f")
	must(t, err)
	m.stop()
	must(t, c.WaitState(ctx, func(s State) bool { return s == Disconnected }))
	h, err := c.Open(ctx, nil, a.OID, os.O_WRONLY|os.O_TRUNC)
	must(t, err)
	_, err = h.WriteAt(ctx, []byte("kept"), 0)
	must(t, err)
	must(t, h.Close())
	must(t, c.Close(ctx))
	c = openClient(t, dir, m.sock)
	if s, err := readFile(ctx, c, "f"); s != "kept" || err != nil {
		t.Fatal(s, err)
	}
	if s := c.Status(); s.Unsent != 1 {
		t.Errorf("%+v", s)
	}
	m.start()
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, c.Sync(ctx))
	b, err := os.ReadFile(filepath.Join(m.dir, "f"))
	if string(b) != "kept" || err != nil {
		t.Fatal(string(b), err)
	}
	equal(t, m.tree, c)
}

func TestConflictCopy(t *testing.T) {
	m := newMaster(t)
	p := newProxy(t, m.sock)
	a, b := m.client(p.addr), m.client(m.sock)
	ctx := ctxOf(t)
	must(t, writeFile(ctx, a, "f.txt", "base"))
	must(t, a.Sync(ctx))
	must(t, b.Sync(ctx)) // what it has not seen it does not write over
	fa, err := a.Lookup(ctx, nil, kml.RootOID, "f.txt")
	must(t, err)
	h, err := a.Open(ctx, nil, fa.OID, os.O_RDWR)
	must(t, err)
	p.cut(true)
	must(t, a.WaitState(ctx, func(s State) bool { return s == Disconnected }))
	_, err = h.WriteAt(ctx, []byte("mine"), 0)
	must(t, err)
	must(t, h.Close())
	must(t, writeFile(ctx, b, "f.txt", "theirs"))
	must(t, b.Sync(ctx))
	p.open()
	must(t, a.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, a.Sync(ctx))
	must(t, b.Sync(ctx))
	ns, err := names(ctx, b, kml.RootOID)
	must(t, err)
	if len(ns) != 2 || ns[1] != "f.txt" || !strings.HasPrefix(ns[0], "f (conflict, h, ") || !strings.HasSuffix(ns[0], ").txt") {
		t.Fatalf("%q", ns)
	}
	for name, want := range map[string]string{ns[0]: "mine", "f.txt": "theirs"} {
		for _, c := range []*Client{a, b} {
			if s, err := readFile(ctx, c, name); s != want || err != nil {
				t.Error(name, s, err)
			}
		}
	}
	equal(t, m.tree, a, b)
	if s := a.Status(); len(a.conflicts.List()) != 1 || len(s.Notes) != 0 || s.Unsent != 0 {
		t.Errorf("%+v, %v", s, a.conflicts.List())
	}
	dir, notes := a.o.Dir, a.conflictsText()
	must(t, a.Close(ctx))
	must(t, appendLine(filepath.Join(dir, tree.ExtDirName, "notes"), "not a note"))
	again := openClient(t, dir, m.sock)
	if got := again.conflictsText(); !bytes.Equal(got, notes) {
		t.Errorf("after a restart: %q, before: %q", got, notes)
	}
}

// TestSameBytes writes the same to a file on both sides of a cut link: there is
// nothing to keep apart.
func TestSameBytes(t *testing.T) {
	m := newMaster(t)
	p := newProxy(t, m.sock)
	a, b := m.client(p.addr), m.client(m.sock)
	ctx := ctxOf(t)
	for _, s := range []string{"equal", ""} {
		must(t, writeFile(ctx, a, "f", "base"))
		must(t, a.Sync(ctx))
		must(t, b.Sync(ctx))
		fa, err := a.Lookup(ctx, nil, kml.RootOID, "f")
		must(t, err)
		h, err := a.Open(ctx, nil, fa.OID, os.O_RDWR)
		must(t, err)
		p.cut(true)
		must(t, a.WaitState(ctx, func(s State) bool { return s == Disconnected }))
		_, err = a.Setattr(ctx, nil, fa.OID, h, tree.SetAttr{Mask: tree.SetSize})
		must(t, err)
		_, err = h.WriteAt(ctx, []byte(s), 0)
		must(t, err)
		must(t, h.Close())
		must(t, writeFile(ctx, b, "f", s))
		must(t, b.Sync(ctx))
		p.open()
		must(t, a.WaitState(ctx, func(s State) bool { return s == Connected }))
		must(t, a.Sync(ctx))
		equal(t, m.tree, a, b)
		ns, err := names(ctx, a, kml.RootOID)
		must(t, err)
		got, err := readFile(ctx, a, "f")
		must(t, err)
		if len(ns) != 1 || got != s || len(a.Status().Notes) != 0 {
			t.Errorf("%q %q %v", ns, got, a.Status().Notes)
		}
	}
}

// TestSyncClose: with Sync the master has a store when close returns, and
// without a link close does not hang.
func TestSyncClose(t *testing.T) {
	m := newMaster(t)
	p := newProxy(t, m.sock)
	ctx := ctxOf(t)
	c, err := Open(ctx, Options{Dir: t.TempDir(), Addr: p.addr, Host: "h", Sync: true})
	must(t, err)
	defer func() { must(t, c.Close(ctx)) }()
	for i := range 20 {
		want := fmt.Sprint(i)
		must(t, writeFile(ctx, c, "f", want))
		if got, err := readFile(ctx, m.tree, "f"); got != want || err != nil {
			t.Fatalf("the master has %q after close, want %q, %v", got, want, err)
		}
	}
	a, err := c.Lookup(ctx, nil, kml.RootOID, "f")
	must(t, err)
	h, err := c.Open(ctx, nil, a.OID, os.O_RDWR)
	must(t, err)
	p.cut(true)
	must(t, c.WaitState(ctx, func(s State) bool { return s == Disconnected }))
	_, err = h.WriteAt(ctx, []byte("cut off"), 0)
	must(t, err)
	must(t, h.Close())
	p.open()
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, c.Sync(ctx))
	if got, err := readFile(ctx, m.tree, "f"); got != "cut off" || err != nil {
		t.Fatal(got, err)
	}
}

// TestCutAnywhere ends the connections after any number of bytes while changes
// are made: each of them happens once or not at all, and what was answered has
// happened.
func TestCutAnywhere(t *testing.T) {
	m := newMaster(t)
	p := newProxy(t, m.sock)
	c := m.client(p.addr)
	ctx := ctxOf(t)
	want := map[string]string{}
	for i := range 60 {
		p.cutAfter(int64(1 + i*23))
		name, text := fmt.Sprintf("f%d", i), fmt.Sprintf("contents %d", i)
		err := writeFile(ctx, c, name, text)
		switch {
		case err == nil:
			want[name] = text
		case !errors.Is(err, syscall.EHOSTDOWN):
			t.Fatal(i, err)
		}
		must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	}
	p.cutAfter(0)
	for err := c.Sync(ctx); err != nil; err = c.Sync(ctx) { // the last cut may be noticed only now
		if !errors.Is(err, syscall.EHOSTDOWN) {
			t.Fatal(err)
		}
		must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	}
	for name, text := range want {
		b, err := os.ReadFile(filepath.Join(m.dir, name))
		if string(b) != text || err != nil {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if len(want) < 30 {
		t.Errorf("only %d of 60 files made", len(want))
	}
	once(t, m)
	equal(t, m.tree, c)
}

// once checks that no origin stands twice in the master's log.
func once(t *testing.T, m *testMaster) {
	t.Helper()
	r, err := m.tree.Log().ReaderAfter(0)
	must(t, err)
	defer r.Close()
	seen := map[kml.Origin]kml.Position{}
	for {
		rec, err := r.TryNext()
		if err != nil {
			return
		}
		if rec.Origin == (kml.Origin{}) {
			continue
		}
		if at, ok := seen[rec.Origin]; ok {
			t.Errorf("%+v at %v and %v", rec.Origin, at, rec.Pos)
		}
		seen[rec.Origin] = rec.Pos
	}
}

func TestLargeFileWithHoles(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	f, err := os.Create(filepath.Join(m.dir, "big"))
	must(t, err)
	must(t, f.Truncate(64<<20))
	_, err = f.WriteAt([]byte("start"), 0)
	must(t, err)
	_, err = f.WriteAt([]byte("middle"), 40<<20)
	must(t, err)
	must(t, f.Close())
	must(t, m.tree.Scan(ctx))
	dir := t.TempDir()
	c := openClient(t, dir, m.sock)
	a, err := c.Lookup(ctx, nil, kml.RootOID, "big")
	must(t, err)
	h, err := c.Open(ctx, nil, a.OID, os.O_RDONLY)
	must(t, err)
	b := make([]byte, 6)
	if n, err := h.ReadAt(ctx, b, 40<<20); n != 6 || err != nil || string(b) != "middle" {
		t.Fatal(n, err, string(b))
	}
	must(t, h.Close())
	w, err := c.Open(ctx, nil, a.OID, os.O_RDWR)
	must(t, err)
	_, err = w.WriteAt(ctx, []byte("END"), 64<<20)
	must(t, err)
	must(t, w.Close())
	must(t, c.Sync(ctx))
	var st unix.Stat_t
	must(t, unix.Stat(c.Cache().Dir(), &st))
	var used int64
	must(t, filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err == nil {
			used += fi.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	}))
	if used > 24<<20 {
		t.Errorf("cache takes %d bytes for a file of few", used)
	}
	got, err := os.ReadFile(filepath.Join(m.dir, "big"))
	must(t, err)
	if len(got) != 64<<20+3 || string(got[64<<20:]) != "END" || string(got[40<<20:40<<20+6]) != "middle" {
		t.Error(len(got))
	}
}
