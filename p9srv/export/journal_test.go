package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv"
)

// master is a tree with its journal extension, exported.
type master struct {
	t   *tree.Tree
	j   *Journal
	e   *Export
	dir string
	log *bytes.Buffer
	end func()
}

// newMaster makes a fileset of an empty folder and serves it; a user may pass
// over the folder.
func newMaster(t *testing.T, o JournalOptions) *master {
	t.Helper()
	testutil.CheckLeaks(t)
	dir, err := os.MkdirTemp("", "export-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := tree.Init(dir, tree.Options{}); err != nil {
		t.Fatal(err)
	}
	return openMaster(t, dir, o)
}

func openMaster(t *testing.T, dir string, o JournalOptions) *master {
	t.Helper()
	tr, err := tree.Open(dir, tree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := &master{t: tr, dir: dir, log: new(bytes.Buffer)}
	o.Logger = slog.New(slog.NewTextHandler(m.log, nil))
	if m.j, err = NewJournal(tr, o); err != nil {
		t.Fatal(err)
	}
	m.e = New(tr, Options{Ext: m.j, Door: 7, InPlace: true})
	m.end = sync.OnceFunc(func() {
		if err := m.j.Close(); err != nil {
			t.Error(err)
		}
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(m.end)
	return m
}

// serve serves the master over a unix socket with our engine and returns the
// root as hugelgupf's client sees it.
func (m *master) serve(t *testing.T) p9.File {
	t.Helper()
	srv := p9srv.New(m.e, p9srv.Options{})
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(context.Background(), l) }()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	cl, err := p9.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	root, err := cl.Attach("/")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cl.Close()
		c.Close()
		srv.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return root
}

// me is the serving user, proven.
func me() p9srv.User { return p9srv.User{UID: uint32(os.Geteuid()), Proven: true, Peer: "test"} }

func TestTreeThroughEngine(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := m.serve(t)
	create(t, root, "a b\n\xff", "hello")
	if got := content(t, walk(t, root, "a b\n\xff")); got != "hello" {
		t.Fatalf("%q", got)
	}
	if _, err := root.Mkdir("d", 0o755, p9.NoUID, p9.NoGID); err != nil {
		t.Fatal(err)
	}
	d := walk(t, root, "d")
	if _, err := d.Symlink("../x", "l", p9.NoUID, p9.NoGID); err != nil {
		t.Fatal(err)
	}
	if s, err := walk(t, d, "l").Readlink(); s != "../x" || err != nil {
		t.Fatal(s, err)
	}
	if _, err := d.Mknod("p", unix.S_IFIFO|0o600, 0, 0, p9.NoUID, p9.NoGID); err != nil {
		t.Fatal(err)
	}
	if err := d.Link(walk(t, root, "a b\n\xff"), "hard"); err != nil {
		t.Fatal(err)
	}
	if err := d.RenameAt("hard", root, "moved"); err != nil {
		t.Fatal(err)
	}
	f := walk(t, root, "moved")
	q, _, a, err := f.GetAttr(p9.AttrMaskAll)
	if err != nil || a.NLink != 2 || a.Size != 5 || q.Version == 0 || a.BTimeSeconds == 0 {
		t.Fatal(q, a, err)
	}
	set := p9.SetAttr{Permissions: 0o640, Size: 2, MTimeSeconds: 99, MTimeNanoSeconds: 5}
	if err := f.SetAttr(p9.SetAttrMask{Permissions: true, Size: true}, set); err != nil {
		t.Fatal(err)
	}
	if err := f.SetAttr(p9.SetAttrMask{MTime: true, MTimeNotSystemTime: true}, set); err != nil {
		t.Fatal(err)
	}
	if _, _, a, err := f.GetAttr(p9.AttrMaskAll); err != nil || a.Size != 2 || uint32(a.Mode) != unix.S_IFREG|0o640 || a.MTimeSeconds != 99 {
		t.Fatal(a, err)
	}
	if err := root.UnlinkAt("d", unix.AT_REMOVEDIR); !is(err, syscall.ENOTEMPTY) {
		t.Fatal(err)
	}
	o := walk(t, root)
	if _, _, err := o.Open(p9.ReadOnly); err != nil {
		t.Fatal(err)
	}
	var names []string
	ents, err := o.Readdir(0, 8192)
	for _, e := range ents {
		names = append(names, e.Name)
	}
	if err != nil || strings.Join(names, ",") == "" || len(names) != 5 {
		t.Fatalf("%q, %v", names, err)
	}
	if err := o.FSync(); err != nil {
		t.Fatal("fsync of a folder:", err)
	}
}

func TestUnlinkedOpenFileOfTree(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := m.serve(t)
	create(t, root, "f", "abc")
	f := walk(t, root, "f")
	if _, _, err := f.Open(p9.ReadWrite); err != nil {
		t.Fatal(err)
	}
	if err := root.UnlinkAt("f", 0); err != nil {
		t.Fatal(err)
	}
	if err := f.SetAttr(p9.SetAttrMask{Size: true, Permissions: true}, p9.SetAttr{Size: 1, Permissions: 0o400}); err != nil {
		t.Fatal(err)
	}
	if _, _, a, err := f.GetAttr(p9.AttrMaskAll); err != nil || a.Size != 1 || a.NLink != 0 || uint32(a.Mode)&0o777 != 0o400 {
		t.Fatal(a, err)
	}
	if n, err := f.ReadAt(make([]byte, 9), 0); n != 1 || err != nil && err != io.EOF {
		t.Fatal(n, err)
	}
}

// TestUserOfTree runs as root: another user makes files that are his and is
// refused what permissions refuse.
func TestUserOfTree(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be served as another user")
	}
	m := newMaster(t, JournalOptions{})
	root := as(t, m.e, me(), "")
	if _, err := root.Mkdir("pub", 0o777, 0, 0); err != nil {
		t.Fatal(err)
	}
	create(t, root, "secret", "x")
	if err := walk(t, root, "secret").SetAttr(p9.SetAttrMask{Permissions: true}, p9.SetAttr{Permissions: 0o600}); err != nil {
		t.Fatal(err)
	}
	u := as(t, m.e, p9srv.User{UID: 4711, GID: 4712, Groups: []uint32{4713}, Proven: true}, "")
	create(t, walk(t, u, "pub"), "mine", "y")
	if _, err := walk(t, u, "pub").Mkdir("dir", 0o750, 0, 4713); err != nil {
		t.Fatal(err)
	}
	for name, gid := range map[string]p9.GID{"mine": 4712, "dir": 4713} {
		if _, _, a, err := walk(t, u, "pub", name).GetAttr(p9.AttrMaskAll); err != nil || a.UID != 4711 || a.GID != gid {
			t.Fatal(name, a, err)
		}
	}
	if _, _, err := walk(t, u, "secret").Open(p9.ReadOnly); !is(err, syscall.EACCES) {
		t.Fatal(err)
	}
	if _, _, _, err := u.Create("x", p9.ReadWrite, 0o644, 0, 0); !is(err, syscall.EACCES) {
		t.Fatal(err)
	}
	if err := u.UnlinkAt("secret", 0); !is(err, syscall.EACCES) {
		t.Fatal(err)
	}
	if err := walk(t, u, "secret").SetAttr(p9.SetAttrMask{UID: true}, p9.SetAttr{UID: 4711}); !is(err, syscall.EPERM) {
		t.Fatal(err)
	}
	for _, name := range []string{"kml", "log", "feed", "snapshot", "reint", "clients"} {
		if _, _, err := walk(t, u, tree.ExtDirName, name).Open(p9.ReadWrite); !is(err, syscall.EACCES) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := content(t, walk(t, u, tree.ExtDirName, "status")); !strings.Contains(got, "role: master\n") {
		t.Errorf("%q", got)
	}
	if s := m.log.String(); !strings.Contains(s, "uid=4711") || !strings.Contains(s, "remedy=") {
		t.Error("the log does not help:", s)
	}
	claimed := as(t, m.e, p9srv.User{UID: 0}, "")
	if _, _, err := walk(t, claimed, tree.ExtDirName, "kml").Open(p9.ReadOnly); !is(err, syscall.EACCES) {
		t.Error("a claim is no proof:", err)
	}
}

func TestRightsThatAreGranted(t *testing.T) {
	m := newMaster(t, JournalOptions{Access: []Grant{{UID: 4711, Rights: RightFollow}}})
	u := as(t, m.e, p9srv.User{UID: 4711, GID: 4712, Proven: true}, "")
	if _, _, err := walk(t, u, tree.ExtDirName, "kml").Open(p9.ReadOnly); err != nil {
		t.Fatal(err)
	}
	if _, _, err := walk(t, u, tree.ExtDirName, "reint").Open(p9.ReadWrite); !is(err, syscall.EACCES) {
		t.Fatal(err)
	}
	d := walk(t, u, tree.ExtDirName)
	if _, _, err := d.Open(p9.ReadOnly); err != nil {
		t.Fatal(err)
	}
	ents, err := d.Readdir(0, 1<<16)
	var names []string
	for _, e := range ents {
		names = append(names, e.Name)
		if e.QID.Version != 0 {
			t.Error(e)
		}
	}
	if got := strings.Join(names, " "); got != ". .. kml log feed snapshot oid chunks digest status clients policy damaged" || err != nil {
		t.Fatal(got, err)
	}
	for _, flags := range []p9.OpenFlags{p9.ReadWrite, p9.WriteOnly, p9.ReadOnly} {
		_, _, err := walk(t, u, tree.ExtDirName, "policy").Open(flags)
		if want := flags != p9.ReadOnly; errors.Is(err, unix.EACCES) != want || !want && err != nil {
			t.Errorf("policy, open %v: %v", flags, err)
		}
	}
}

func TestTextsAndSizes(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := m.serve(t)
	create(t, root, "f", "abc")
	ext := walk(t, root, tree.ExtDirName)
	for _, name := range []string{"status", "log", "kml", "clients"} {
		f := walk(t, ext, name)
		q, _, a, err := f.GetAttr(p9.AttrMaskAll)
		if err != nil || q.Version != 0 {
			t.Fatal(name, q, err)
		}
		if got := content(t, f); uint64(len(got)) != a.Size {
			t.Errorf("%s: %d bytes, told %d", name, len(got), a.Size)
		}
	}
	log := content(t, walk(t, ext, "log"))
	if !strings.Contains(log, ` create 1:`) || !strings.Contains(log, `"f"`) || !strings.HasSuffix(log, "\n") {
		t.Fatalf("%q", log)
	}
	if n := strings.Count(log, "\n"); uint64(n) != m.t.Log().End().Recno() {
		t.Fatal(n, m.t.Log().End())
	}
	kmlBytes := content(t, walk(t, ext, "kml"))
	raw := make([]byte, m.t.Log().Size())
	if n, err := m.t.Log().ReadAt(raw, 0); n != len(raw) || string(raw) != kmlBytes {
		t.Fatal(n, err)
	}
	// A text that got shorter after its size was told is filled up.
	f := walk(t, as(t, m.e, me(), ""), tree.ExtDirName, "status").(*extFile)
	_, _, a, err := f.GetAttr(attrMask)
	if err != nil {
		t.Fatal(err)
	}
	f.told.Store(a.Size + 3)
	if got := content(t, f); len(got) != int(a.Size)+3 || !strings.HasSuffix(got, "\n\n\n\n") {
		t.Fatalf("%q", got)
	}
}

func TestLogTextIsTakenUpAgain(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := as(t, m.e, me(), "")
	create(t, root, "f", "abc")
	before := content(t, walk(t, root, tree.ExtDirName, "log"))
	m.end()
	note, err := os.ReadFile(filepath.Join(m.dir, ".mezzo", "log.txt.end"))
	if err != nil {
		t.Fatal(err)
	}
	// What is taken up is not rendered again: a mark in the text stays.
	path := filepath.Join(m.dir, ".mezzo", "log.txt")
	text, err := os.ReadFile(path)
	if err != nil || string(text) != before {
		t.Fatal(err)
	}
	text[0] = 'X'
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	m = openMaster(t, m.dir, JournalOptions{})
	root = as(t, m.e, me(), "")
	create(t, root, "g", "")
	after := content(t, walk(t, root, tree.ExtDirName, "log"))
	if !strings.HasPrefix(after, "X"+before[1:]) || !strings.Contains(after, `"g"`) {
		t.Fatalf("%q\n%q\n%s", before, after, note)
	}
	m.j.cancel() // as if killed: no note is left
	m.j.text.drop()
	m.end()
	m = openMaster(t, m.dir, JournalOptions{})
	if again := content(t, walk(t, as(t, m.e, me(), ""), tree.ExtDirName, "log")); again[0] == 'X' || !strings.HasPrefix(again[1:], after[1:]) {
		t.Fatalf("%q", again)
	}
}

func TestReadOnlyTakesNoRecords(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := as(t, New(m.t, Options{Ext: m.j, ReadOnly: true}), me(), "")
	if _, _, err := walk(t, root, tree.ExtDirName, "reint").Open(p9.ReadWrite); !is(err, syscall.EROFS) {
		t.Fatal(err)
	}
	if _, _, _, err := walk(t, root, tree.ExtDirName, "stage").Create("1-1", p9.ReadWrite, 0, 0, 0); !is(err, syscall.EROFS) {
		t.Fatal(err)
	}
	if _, _, err := walk(t, root, tree.ExtDirName, "feed").Open(p9.ReadWrite); err != nil {
		t.Fatal(err)
	}
}

// TestVersionsTellReadersNothing: sizes are told regardless of modes, too.
func TestVersionsTellReadersNothing(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	create(t, as(t, m.e, me(), ""), "f", "abc")
	a, err := m.t.Lookup(t.Context(), nil, kml.RootOID, "f")
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("%016x", uint64(a.OID))
	walk(t, as(t, m.e, me(), ""), tree.ExtDirName, "oid", name)
	u := as(t, m.e, p9srv.User{UID: 4711, GID: 4712, Proven: true}, "")
	if _, _, err := u.Walk([]string{tree.ExtDirName, "oid", name}); !is(err, syscall.EACCES) {
		t.Error(err)
	}
}
