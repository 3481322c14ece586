package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// newTree makes a fileset of an empty folder.
func newTree(t *testing.T) *Tree {
	t.Helper()
	dir := t.TempDir()
	if err := Init(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	return openTree(t, dir)
}

func openTree(t *testing.T, dir string) *Tree {
	t.Helper()
	tr, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	return tr
}

// reopen ends the tree cleanly and opens it again.
func reopen(t *testing.T, tr *Tree) *Tree {
	t.Helper()
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	return openTree(t, tr.dir)
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

var ctx = context.Background()

// put makes or replaces a file through the tree.
func put(t *testing.T, tr *Tree, parent kml.OID, name, data string) Attr {
	t.Helper()
	a, h, err := tr.Create(ctx, nil, parent, name, unix.O_RDWR|unix.O_TRUNC, 0o644)
	ok(t, err)
	must[int](t)(h.WriteAt(ctx, []byte(data), 0))
	ok(t, h.Close())
	return a
}

// logOps is the log as one word a record, without marks.
func logOps(t *testing.T, tr *Tree) string {
	t.Helper()
	var out []string
	for _, r := range records(t, tr) {
		if r.Op != kml.OpMark {
			out = append(out, r.Op.String())
		}
	}
	return strings.Join(out, " ")
}

func records(t *testing.T, tr *Tree) []*kml.Record {
	t.Helper()
	rd, err := tr.log.ReaderAfter(0)
	ok(t, err)
	defer rd.Close()
	var out []*kml.Record
	for {
		r, err := rd.TryNext()
		if err == io.EOF {
			return out
		}
		ok(t, err)
		out = append(out, r)
	}
}

func TestEveryOperationIsOneRecord(t *testing.T) {
	tr := newTree(t)
	d := must[Attr](t)(tr.Mkdir(ctx, nil, kml.RootOID, "d", 0o755))
	f := put(t, tr, d.OID, "f", "hello")
	must[Attr](t)(tr.Symlink(ctx, nil, d.OID, "s", "f"))
	must[Attr](t)(tr.Mknod(ctx, nil, d.OID, "p", unix.S_IFIFO|0o600, 0))
	must[Attr](t)(tr.Link(ctx, nil, f.OID, d.OID, "g"))
	must[Attr](t)(tr.Setattr(ctx, nil, f.OID, nil, SetAttr{Mask: SetMode, Mode: 0o600}))
	ok(t, tr.Setxattr(ctx, nil, f.OID, "user.a", []byte("1"), 0))
	ok(t, tr.Removexattr(ctx, nil, f.OID, "user.a"))
	ok(t, tr.Rename(ctx, nil, d.OID, "g", kml.RootOID, "h", 0))
	ok(t, tr.Unlink(ctx, nil, kml.RootOID, "h"))
	e := must[Attr](t)(tr.Mkdir(ctx, nil, kml.RootOID, "e", 0o700))
	ok(t, tr.Rename(ctx, nil, kml.RootOID, "e", d.OID, "s", unix.RENAME_EXCHANGE))
	if a := must[Attr](t)(tr.Lookup(ctx, nil, d.OID, "s")); a.OID != e.OID {
		t.Errorf("exchange: d/s is %v, want %v", a.OID, e.OID)
	}
	ok(t, tr.Rmdir(ctx, nil, d.OID, "s"))
	want := "setattr mkdir create store symlink mknod link setattr setxattr removexattr rename unlink mkdir rename rmdir"
	if got := logOps(t, tr); got != want {
		t.Errorf("log is\n%s, want\n%s", got, want)
	}
	checkAgrees(t, tr)
	tr = reopen(t, tr)
	checkAgrees(t, tr)
	if got := logOps(t, tr); got != want {
		t.Errorf("after a restart the log is\n%s, want\n%s", got, want)
	}
}

// checkAgrees holds the index against the directory: names, types, sizes,
// modes, owners, times, link counts and inodes.
func checkAgrees(t *testing.T, tr *Tree) {
	t.Helper()
	seen := 0
	err := filepath.WalkDir(tr.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(tr.dir, path)
		if rel == ExtDirName {
			return filepath.SkipDir
		}
		oid := kml.RootOID
		if rel != "." {
			for _, name := range strings.Split(rel, "/") {
				id, _, found := tr.index.Child(oid, name)
				if !found {
					t.Errorf("%s is on disk and not in the index", rel)
					return nil
				}
				oid = id
			}
		}
		seen++
		o, err := tr.index.Get(oid)
		if err != nil {
			t.Errorf("%s: %v", rel, err)
			return nil
		}
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, statxMask, &st); err != nil {
			return err
		}
		want := kmlAttr(&st)
		got := o.Attr
		got.Atime, want.Atime = 0, 0
		if got.Mode&unix.S_IFMT == unix.S_IFDIR {
			got.Nlink, want.Nlink, got.Size, want.Size = 0, 0, 0, 0
		}
		if _, bad := tr.damage.has(oid); bad {
			got.Size, got.Mtime, want.Size, want.Mtime = 0, 0, 0, 0
		}
		if got != want {
			t.Errorf("%s: index has\n%+v, disk\n%+v", rel, got, want)
			for _, r := range records(t, tr) {
				if r.OID == oid {
					t.Logf("%s", kml.AppendText(nil, r))
				}
			}
		}
		if h, _ := HandleAt(unix.AT_FDCWD, path); rel != "." && !bytes.Equal(h, o.Handle) {
			t.Errorf("%s: index has another inode", rel)
		}
		return nil
	})
	ok(t, err)
	if n := countIndex(t, tr, kml.RootOID); n != seen {
		t.Errorf("index has %d names, the disk %d", n, seen)
	}
}

func countIndex(t *testing.T, tr *Tree, oid kml.OID) int {
	n := 1
	for after := ""; ; {
		es, err := tr.index.Children(oid, after, 7)
		ok(t, err)
		if len(es) == 0 {
			return n
		}
		for _, e := range es {
			n += countIndex(t, tr, e.OID)
		}
		after = es[len(es)-1].Name
	}
}

func TestOpenUnlinkedFileStaysUsable(t *testing.T) {
	tr := newTree(t)
	a, h, err := tr.Create(ctx, nil, kml.RootOID, "f", unix.O_RDWR, 0o644)
	ok(t, err)
	ok(t, tr.Unlink(ctx, nil, kml.RootOID, "f"))
	must[int](t)(h.WriteAt(ctx, []byte("still here"), 0))
	got := must[Attr](t)(tr.Setattr(ctx, nil, a.OID, h, SetAttr{Mask: SetMode | SetSize, Mode: 0o400, Size: 5}))
	if got.Nlink != 0 || got.Size != 5 || got.Mode&0o777 != 0o400 {
		t.Errorf("unlinked open file has %+v", got)
	}
	ok(t, h.Close())
	_, err = tr.Getattr(ctx, nil, a.OID)
	wantErr(t, err, syscall.ESTALE)
	if got := logOps(t, tr); got != "setattr create unlink" {
		t.Errorf("log is %q", got)
	}
	checkAgrees(t, tr)
}

func TestNames(t *testing.T) {
	tr := newTree(t)
	for _, name := range []string{"", ".", "..", "a/b", "a\x00b"} {
		_, err := tr.Mkdir(ctx, nil, kml.RootOID, name, 0o755)
		wantErr(t, err, syscall.EINVAL)
	}
	_, err := tr.Mkdir(ctx, nil, kml.RootOID, strings.Repeat("x", 256), 0o755)
	wantErr(t, err, syscall.ENAMETOOLONG)
	_, err = tr.Mkdir(ctx, nil, kml.RootOID, ".mezzo", 0o755)
	wantErr(t, err, syscall.EPERM)
	for _, name := range []string{strings.Repeat("x", 255), "new\nline", "\xff\xfe", " ", "é", "e\u0301"} {
		put(t, tr, kml.RootOID, name, name)
	}
	tr = reopen(t, tr)
	checkAgrees(t, tr)
	h := must[DirHandle](t)(tr.OpenDir(ctx, nil, kml.RootOID))
	es := must[[]DirEntry](t)(h.ReadDir(ctx, 0, 100))
	ok(t, h.Close())
	if len(es) != 6 || slices.ContainsFunc(es, func(e DirEntry) bool { return e.Name == ".mezzo" }) {
		t.Errorf("listing has %v", es)
	}
}

func TestStoreIsCutAtFlushAndCarriesItsExtents(t *testing.T) {
	tr := newTree(t)
	a := put(t, tr, kml.RootOID, "f", strings.Repeat("x", 10000))
	h := must[Handle](t)(tr.Open(ctx, nil, a.OID, unix.O_RDWR))
	if tr.Dirty(a.OID) {
		t.Error("dirty before a write")
	}
	must[int](t)(h.WriteAt(ctx, []byte("yy"), 100))
	if at := must[Attr](t)(tr.Getattr(ctx, nil, a.OID)); at.DataVersion&DataDirty == 0 {
		t.Error("open-dirty file shows a version")
	}
	ok(t, h.Flush(ctx))
	must[Attr](t)(tr.Setattr(ctx, nil, a.OID, h, SetAttr{Mask: SetSize, Size: 50}))
	ok(t, h.Close())
	rs := records(t, tr)
	var stores []*kml.Record
	for _, r := range rs {
		if r.Op == kml.OpStore {
			stores = append(stores, r)
		}
	}
	if len(stores) != 3 {
		t.Fatalf("%d stores", len(stores))
	}
	if !slices.Equal(stores[1].Extents, []kml.Extent{{Off: 100, Len: 2}}) || stores[1].Base.Pos != stores[0].Pos {
		t.Errorf("second store: extents %v base %v", stores[1].Extents, stores[1].Base)
	}
	if stores[2].Attr.Size != 50 || !slices.Equal(stores[2].Extents, []kml.Extent{{Off: 50}}) {
		t.Errorf("third store: %+v", stores[2])
	}
	checkAgrees(t, tr)
}

// client is a site whose records are reintegrated.
type client struct {
	tr   *Tree
	site Site
	seq  uint64
	n    uint64
}

func newClient(t *testing.T, tr *Tree) *client {
	t.Helper()
	s := must[Site](t)(tr.Enrol("host", 0, []byte("key")))
	return &client{tr: tr, site: s}
}

func (c *client) rec(op kml.Op) *kml.Record {
	c.seq++
	return &kml.Record{Op: op, Time: 1, Origin: kml.Origin{Site: c.site.ID, Seq: c.seq}}
}

func (c *client) oid() kml.OID { c.n++; return kml.MakeOID(c.site.ID, c.n) }

func (c *client) stage(t *testing.T, seq uint64, data string) string {
	t.Helper()
	p := filepath.Join(c.tr.Stage(), fmt.Sprintf("%d-%d", c.site.ID, seq))
	ok(t, os.WriteFile(p, []byte(data), 0o600))
	return p
}

func TestReintegrate(t *testing.T) {
	tr := newTree(t)
	c := newClient(t, tr)
	mk := c.rec(kml.OpCreate)
	mk.OID, mk.Parent, mk.Name, mk.Attr.Mode, mk.Attr.UID = c.oid(), kml.RootOID, "f", unix.S_IFREG|0o640, 7
	if os.Geteuid() != 0 {
		mk.Attr.UID = uint32(os.Geteuid())
		mk.Attr.GID = uint32(os.Getegid())
	}
	res := tr.Reintegrate(ctx, nil, mk, "")
	if res.Status != ReintApplied || res.Pos == 0 {
		t.Fatalf("create: %+v", res)
	}
	if again := tr.Reintegrate(ctx, nil, mk, ""); again.Status != ReintDuplicate || again.Pos != res.Pos {
		t.Fatalf("again: %+v", again)
	}
	reader := must[Handle](t)(tr.Open(ctx, nil, mk.OID, unix.O_RDONLY))
	writer := must[Handle](t)(tr.Open(ctx, nil, mk.OID, unix.O_RDWR))
	st := c.rec(kml.OpStore)
	st.OID, st.Attr.Size, st.Attr.Mtime, st.Base.Seq = mk.OID, 5, 1e9, mk.Origin.Seq
	res = tr.Reintegrate(ctx, nil, st, c.stage(t, st.Origin.Seq, "hello"))
	if res.Status != ReintApplied {
		t.Fatalf("store: %+v", res)
	}
	b := make([]byte, 10)
	if n := must[int](t)(reader.ReadAt(ctx, b, 0)); n != 0 {
		t.Errorf("a reader sees %q of a later version", b[:n])
	}
	must[int](t)(writer.WriteAt(ctx, []byte("J"), 0))
	ok(t, writer.Close())
	ok(t, reader.Close())
	if got, _ := os.ReadFile(filepath.Join(tr.dir, "f")); string(got) != "Jello" {
		t.Errorf("file is %q", got)
	}
	late := c.rec(kml.OpStore)
	late.OID, late.Attr.Size, late.Base.Seq = mk.OID, 1, st.Origin.Seq
	if res := tr.Reintegrate(ctx, nil, late, c.stage(t, late.Origin.Seq, "x")); res.Status != ReintConflict {
		t.Errorf("store on an old base: %+v", res)
	}
	rm := c.rec(kml.OpUnlink)
	rm.Parent, rm.Name, rm.OID = kml.RootOID, "f", kml.MakeOID(c.site.ID, 99)
	if res := tr.Reintegrate(ctx, nil, rm, ""); res.Status != ReintConflict {
		t.Errorf("unlink of another object: %+v", res)
	}
	checkAgrees(t, tr)
	tr = reopen(t, tr)
	if again := tr.Reintegrate(ctx, nil, mk, ""); again.Status != ReintDuplicate {
		t.Errorf("after a restart: %+v", again)
	}
	s, found := tr.Site(c.site.ID)
	if !found || s.LastSeq < st.Origin.Seq || s.MaxCounter != 1 || !s.Knows([]byte("key")) {
		t.Errorf("site %+v", s)
	}
	checkAgrees(t, tr)
}

func TestVersionHandleNeverMixes(t *testing.T) {
	tr := newTree(t)
	a := put(t, tr, kml.RootOID, "f", strings.Repeat("a", 1000))
	v := must[*VersionHandle](t)(tr.OpenVersion(ctx, a.OID))
	b := make([]byte, 500)
	must[int](t)(v.ReadAt(ctx, b, 0))
	put(t, tr, kml.RootOID, "f", strings.Repeat("b", 1000))
	if _, err := v.ReadAt(ctx, b, 500); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("half of another version: %v", err)
	}
	ok(t, v.Close())
	w := must[Handle](t)(tr.Open(ctx, nil, a.OID, unix.O_RDWR))
	must[int](t)(w.WriteAt(ctx, []byte("c"), 0))
	v = must[*VersionHandle](t)(tr.OpenVersion(ctx, a.OID))
	if v.Attr().DataVersion&DataDirty != 0 {
		t.Error("a version is open-dirty")
	}
	must[int](t)(w.WriteAt(ctx, []byte("ddd"), 0))
	must[int](t)(v.ReadAt(ctx, b, 0))
	if string(b[:3]) != "cbb" {
		t.Errorf("a snapshot shows %q", b[:3])
	}
	ok(t, v.Close())
	ok(t, w.Close())
}

func TestRunsAsTheUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to act as others")
	}
	tr := newTree(t)
	must[Attr](t)(tr.Setattr(ctx, nil, kml.RootOID, nil, SetAttr{Mask: SetMode, Mode: 0o777}))
	u := &Cred{UID: 4711, GID: 4712, Groups: []uint32{4713}}
	v := &Cred{UID: 5000, GID: 5000}
	d := must[Attr](t)(tr.Mkdir(ctx, u, kml.RootOID, "d", 0o700))
	if d.UID != 4711 || d.GID != 4712 {
		t.Errorf("folder belongs to %d:%d", d.UID, d.GID)
	}
	_, err := tr.Lookup(ctx, v, d.OID, "x")
	wantErr(t, err, syscall.EACCES)
	_, _, err = tr.Create(ctx, v, d.OID, "x", unix.O_RDWR, 0o600)
	wantErr(t, err, syscall.EACCES)
	a, h, err := tr.Create(ctx, u, d.OID, "x", unix.O_RDWR, 0o600)
	ok(t, err)
	ok(t, h.Close())
	_, err = tr.Setattr(ctx, v, a.OID, nil, SetAttr{Mask: SetMode, Mode: 0o777})
	wantErr(t, err, syscall.EPERM)
	_, err = tr.Open(ctx, v, a.OID, unix.O_RDONLY)
	wantErr(t, err, syscall.EACCES)
	checked := must[Attr](t)(tr.Mkdir(ctx, &Cred{UID: 5000, GID: 5001, Checked: true}, d.OID, "sub", 0o2755))
	if checked.UID != 5000 || checked.GID != 5001 {
		t.Errorf("a folder made for a checked user belongs to %d:%d", checked.UID, checked.GID)
	}
	checkAgrees(t, tr)
}

// TestWritersSetattr sends what a client's kernel sends for a writer who does
// not own the file: the time of a truncation, and set-id bits taken by it.
func TestWritersSetattr(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	tr := newTree(t)
	ctx := t.Context()
	a, h, err := tr.Create(ctx, nil, kml.RootOID, "f", unix.O_RDWR, 0o644)
	ok(t, err)
	ok(t, h.Close())
	u := &Cred{UID: 4711, GID: 4712}
	stripped := SetAttr{Mask: SetMode | SetSize | SetMtimeNow, Mode: 0o777}
	set := func(mode uint32) {
		t.Helper()
		must[Attr](t)(tr.Setattr(ctx, nil, a.OID, nil, SetAttr{Mask: SetMode | SetMtime, Mode: mode, Mtime: 1e9}))
	}
	set(0o6777)
	got := must[Attr](t)(tr.Setattr(ctx, u, a.OID, nil, stripped))
	if got.Mode&07777 != 0o777 || got.Mtime == 1e9 {
		t.Errorf("mode %o, mtime %d", got.Mode, got.Mtime)
	}
	for _, mode := range []uint32{0o6775, 0o6770} { // not a writer
		set(mode)
		_, err = tr.Setattr(ctx, u, a.OID, nil, SetAttr{Mask: SetMode, Mode: mode &^ 0o6000})
		wantErr(t, err, syscall.EPERM)
	}
	set(0o6777)
	for _, mode := range []uint32{0o7777, 0o776, 0o1777} {
		_, err = tr.Setattr(ctx, u, a.OID, nil, SetAttr{Mask: SetMode, Mode: mode})
		wantErr(t, err, syscall.EPERM)
	}
	_, err = tr.Setattr(ctx, u, a.OID, nil, SetAttr{Mask: SetMtimeNow})
	wantErr(t, err, syscall.EPERM)
}
