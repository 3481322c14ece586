package export

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/hugelgupf/p9/linux"
	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv"
)

// peer serves e with hugelgupf's server and gives the root as its client sees it.
func peer(t *testing.T, e *Export) p9.File {
	t.Helper()
	a, b := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { _ = p9.NewServer(e).Handle(b, b) })
	c, err := p9.NewClient(a)
	if err != nil {
		t.Fatal(err)
	}
	root, err := c.Attach("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		a.Close()
		wg.Wait()
	})
	return root
}

// as attaches u to e directly.
func as(t *testing.T, e *Export, u p9srv.User, aname string) *File {
	t.Helper()
	f, err := e.AttachAs(t.Context(), u, aname)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f.(*File)
}

func walk(t *testing.T, f p9.File, names ...string) p9.File {
	t.Helper()
	_, g, err := f.Walk(names)
	if err != nil {
		t.Fatalf("walk %q: %v", names, err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func create(t *testing.T, dir p9.File, name, text string) {
	t.Helper()
	d := walk(t, dir)
	f, _, _, err := d.Create(name, p9.ReadWrite, 0o644, p9.NoUID, p9.NoGID)
	if err != nil {
		t.Fatalf("create %q: %v", name, err)
	}
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, f p9.File) string {
	t.Helper()
	if _, _, err := f.Open(p9.ReadOnly); err != nil {
		t.Fatal(err)
	}
	var all []byte
	buf := make([]byte, 4096)
	for {
		n, err := f.ReadAt(buf, int64(len(all)))
		all = append(all, buf[:n]...)
		if n == 0 || errors.Is(err, io.EOF) {
			return string(all)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// is reports whether err has the errno, in either of its two types.
func is(err error, want syscall.Errno) bool {
	return errors.Is(err, want) || errors.Is(err, linux.Errno(want))
}

func TestFilesThroughPeer(t *testing.T) {
	testutil.CheckLeaks(t)
	m := newMemFS()
	root := peer(t, New(m, Options{Door: 3}))
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
	if _, err := d.Mknod("p", unix.S_IFCHR|0o600, 5, 9, p9.NoUID, p9.NoGID); err != nil {
		t.Fatal(err)
	}
	_, _, a, err := walk(t, d, "p").GetAttr(p9.AttrMaskAll)
	if err != nil || uint64(a.RDev) != unix.Mkdev(5, 9) || uint32(a.Mode) != unix.S_IFCHR|0o600 {
		t.Fatal(a, err)
	}
	if _, err := d.Mknod("r", unix.S_IFREG|0o640, 0, 0, p9.NoUID, p9.NoGID); err != nil {
		t.Fatal("mknod of a regular file:", err)
	}
	if err := d.Link(walk(t, root, "a b\n\xff"), "hard"); err != nil {
		t.Fatal(err)
	}
	if err := d.RenameAt("hard", root, "moved"); err != nil {
		t.Fatal(err)
	}
	if got := content(t, walk(t, root, "moved")); got != "hello" {
		t.Fatalf("%q", got)
	}
	// The peer's server makes EEXIST of ENOTEMPTY.
	if err := root.UnlinkAt("d", unix.AT_REMOVEDIR); !is(err, syscall.EEXIST) {
		t.Fatal(err)
	}
	for _, n := range []string{"l", "p", "r"} {
		if err := d.UnlinkAt(n, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := root.UnlinkAt("d", unix.AT_REMOVEDIR); err != nil {
		t.Fatal(err)
	}
	if st, err := root.StatFS(); err != nil || st.BlocksAvailable != 400 || st.FSID != 8<<32|7 || st.NameLength != 255 {
		t.Fatal(st, err)
	}
	if m.doors[0] != 0 || m.doors[3] == 0 {
		t.Fatal("calls by door:", m.doors)
	}
}

func TestAttributesAreWhole(t *testing.T) {
	m := newMemFS()
	root := peer(t, New(m, Options{}))
	create(t, root, "f", "12345")
	f := walk(t, root, "f")
	q, mask, a, err := f.GetAttr(p9.AttrMaskAll)
	if err != nil {
		t.Fatal(err)
	}
	o := m.objs[m.objs[1].kids["f"]]
	if mask != attrMask || q.Version == 0 || q.Path != uint64(o.a.OID) || a.Size != 5 || a.BTimeSeconds == 0 || a.Gen == 0 || a.DataVersion != o.a.DataVersion {
		t.Fatal(q, mask, a)
	}
	old := stamp(-1500000000)
	set := p9.SetAttr{Permissions: 0o1600, UID: 11, GID: 12, Size: 3, ATimeSeconds: 5, ATimeNanoSeconds: 6, MTimeSeconds: old.sec, MTimeNanoSeconds: old.nsec}
	all := p9.SetAttrMask{Permissions: true, UID: true, GID: true, Size: true, ATime: true, MTime: true, ATimeNotSystemTime: true, MTimeNotSystemTime: true}
	if err := f.SetAttr(all, set); err != nil {
		t.Fatal(err)
	}
	q2, _, a, err := f.GetAttr(p9.AttrMaskAll)
	if err != nil || uint32(a.Mode) != unix.S_IFREG|0o1600 || a.UID != 11 || a.GID != 12 || a.Size != 3 || a.ATimeSeconds != 5 || a.ATimeNanoSeconds != 6 || o.a.Mtime != -1500000000 || a.MTimeSeconds != old.sec {
		t.Fatal(a, o.a, err)
	}
	if q2.Version == q.Version {
		t.Fatal("the version did not move with the contents")
	}
	if err := f.SetAttr(p9.SetAttrMask{MTime: true}, p9.SetAttr{}); err != nil || o.a.Mtime < o.a.Btime || o.a.Atime != 5e9+6 {
		t.Fatal("now:", o.a, err)
	}
	if err := f.SetAttr(p9.SetAttrMask{MTime: true, MTimeNotSystemTime: true}, p9.SetAttr{MTimeNanoSeconds: 1e9}); !is(err, syscall.EINVAL) {
		t.Fatal(err)
	}
}

type wireTime struct{ sec, nsec uint64 }

func stamp(ns int64) wireTime { s, n := split(ns); return wireTime{s, n} }

func TestTimesRoundTrip(t *testing.T) {
	for _, ns := range []int64{0, 1, -1, 1e9, -1e9, 1_763_700_000_123_456_789, -62_135_596_800} {
		s, n := split(ns)
		if back, err := join(s, n); back != ns || err != nil {
			t.Errorf("%d: %d, %v", ns, back, err)
		}
	}
	for _, sec := range []int64{1<<62 + 5, -1 << 62} {
		if _, err := join(uint64(sec), 0); !is(err, syscall.EOVERFLOW) {
			t.Errorf("%d: %v", sec, err)
		}
	}
}

func TestUnlinkedOpenFile(t *testing.T) {
	m := newMemFS()
	e := New(m, Options{})
	root := as(t, e, p9srv.User{UID: uint32(os.Geteuid())}, "")
	create(t, root, "f", "abc")
	f := walk(t, root, "f")
	if _, _, err := f.Open(p9.ReadWrite); err != nil {
		t.Fatal(err)
	}
	if err := root.UnlinkAt("f", 0); err != nil {
		t.Fatal(err)
	}
	if err := f.(p9srv.SetAttrer).SetAttrContext(t.Context(), p9.SetAttrMask{Size: true, Permissions: true}, p9.SetAttr{Size: 1, Permissions: 0o400}); err != nil {
		t.Fatal(err)
	}
	g := walk(t, f) // a copy of the fid lives by the open one
	if _, _, a, err := g.GetAttr(p9.AttrMaskAll); err != nil || a.Size != 1 || a.NLink != 0 {
		t.Fatal(a, err)
	}
	if err := g.SetAttr(p9.SetAttrMask{Size: true}, p9.SetAttr{Size: 2}); err != nil {
		t.Fatal(err)
	}
	if n, err := f.ReadAt(make([]byte, 9), 0); n != 2 || err != nil {
		t.Fatal(n, err)
	}
}

func TestOpenFlags(t *testing.T) {
	m := newMemFS()
	root := as(t, New(m, Options{}), p9srv.User{UID: uint32(os.Geteuid())}, "")
	create(t, root, "f", "abc")
	f := walk(t, root, "f")
	if _, _, err := f.Open(p9.WriteOnly | dotlAppend | dotlDsync); err != nil {
		t.Fatal(err)
	}
	if f.(*File).InPlace(p9srv.OpWrite) {
		t.Fatal("a synced write in place")
	}
	if n, err := f.WriteAt([]byte("de"), 0); n != 2 || err != nil || m.syncs != 1 {
		t.Fatal(n, err, m.syncs)
	}
	if _, err := f.ReadAt(make([]byte, 1), 0); !is(err, syscall.EBADF) {
		t.Fatal(err)
	}
	if got := content(t, walk(t, root, "f")); got != "abcde" {
		t.Fatalf("%q", got)
	}
	if _, _, err := walk(t, root, "f").Open(p9.WriteOnly | dotlTrunc); err != nil {
		t.Fatal(err)
	}
	if got := content(t, walk(t, root, "f")); got != "" {
		t.Fatalf("%q", got)
	}
	for _, c := range []struct {
		name  string
		flags p9.OpenFlags
		want  syscall.Errno
	}{{"", p9.ReadWrite, syscall.EISDIR}, {"f", 3, syscall.EINVAL}, {"f", dotlDirectory, syscall.ENOTDIR}} {
		g := walk(t, root)
		if c.name != "" {
			g = walk(t, root, c.name)
		}
		if _, _, err := g.Open(c.flags); !is(err, c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, _, _, err := root.Create("f", dotlExcl|p9.ReadWrite, 0o644, 0, 0); !is(err, syscall.EEXIST) {
		t.Fatal(err)
	}
	g, _, _, err := root.Create("f", p9.ReadOnly, 0o644, 0, 0)
	if err != nil {
		t.Fatal("without O_EXCL the file is opened:", err)
	}
	if _, _, err := g.Open(p9.ReadOnly); !is(err, syscall.EBADF) {
		t.Fatal("opened twice:", err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReaddirGoesOnWhereItStopped(t *testing.T) {
	m := newMemFS()
	root := as(t, New(m, Options{}), p9srv.User{UID: uint32(os.Geteuid())}, "")
	want := []string{".", ".."}
	for i := range 700 {
		name := fmt.Sprintf("file-%03d", i)
		create(t, root, name, "")
		want = append(want, name)
	}
	d := walk(t, root)
	if _, _, err := d.Open(p9.ReadOnly); err != nil {
		t.Fatal(err)
	}
	var got []string
	off := uint64(0)
	for {
		ents, err := d.Readdir(off, 1000)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range ents[:max(1, len(ents)-1)] { // the last is asked for again
			got = append(got, e.Name)
			off = e.Offset
		}
	}
	if !slices.Equal(got, want) {
		t.Fatal(len(got), len(want))
	}
	if err := d.FSync(); err != nil || m.syncs != 1 {
		t.Fatal("fsync of a folder:", err)
	}
	var types []uint8
	if err := d.(p9srv.DirReader).ReadDirContext(t.Context(), 1, func(e p9srv.Dirent) bool {
		types = append(types, e.Type)
		return len(types) < 2
	}); err != nil || !bytes.Equal(types, []byte{unix.DT_DIR, unix.DT_REG}) {
		t.Fatal(types, err)
	}
}

func TestUsers(t *testing.T) {
	m := newMemFS()
	e := New(m, Options{})
	e.uid = 0 // as a root server
	for _, c := range []struct {
		name string
		o    Options
		u    p9srv.User
		want *tree.Cred
	}{
		{"root", Options{}, p9srv.User{UID: 0}, nil},
		{"user", Options{}, p9srv.User{UID: 1000, GID: 100, Groups: []uint32{5}}, &tree.Cred{UID: 1000, GID: 100, Groups: []uint32{5}}},
		{"unknown", Options{}, p9srv.User{UID: p9srv.NoID, GID: p9srv.NoID}, &tree.Cred{UID: Nobody, GID: Nobody}},
		{"root squashed", Options{Squash: SquashRoot}, p9srv.User{UID: 0}, &tree.Cred{UID: Nobody, GID: Nobody}},
		{"not squashed", Options{Squash: SquashRoot}, p9srv.User{UID: 7, GID: 8}, &tree.Cred{UID: 7, GID: 8}},
		{"all squashed", Options{Squash: SquashAll, SquashUID: 3, SquashGID: 4}, p9srv.User{UID: 7, GID: 8}, &tree.Cred{UID: 3, GID: 4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := New(m, c.o)
			e.uid = 0
			got := as(t, e, c.u, "").n.s.cred
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Fatalf("%+v, want %+v", got, c.want)
			}
		})
	}
	own := New(m, Options{})
	own.uid = 1000
	if c := as(t, own, p9srv.User{UID: 7, GID: 8}, "").n.s.cred; c != nil {
		t.Fatal("a server that is not root cannot be", c)
	}
	u := as(t, e, p9srv.User{UID: 1000, GID: 100, Groups: []uint32{5}}, "")
	create(t, u, "mine", "x")
	if _, err := u.Mkdir("group", 0o700, 0, 5); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Mkdir("foreign", 0o700, 0, 6); err != nil {
		t.Fatal(err)
	}
	for name, gid := range map[string]p9.GID{"mine": 100, "group": 5, "foreign": 100} {
		if _, _, a, err := walk(t, u, name).GetAttr(p9.AttrMaskAll); err != nil || a.UID != 1000 || a.GID != gid {
			t.Fatal(name, a, err)
		}
	}
	other := as(t, e, p9srv.User{UID: 1001, GID: 101}, "")
	f := walk(t, other, "mine")
	if _, _, err := f.Open(p9.ReadWrite); !is(err, syscall.EACCES) {
		t.Fatal(err)
	}
	if err := f.SetAttr(p9.SetAttrMask{Permissions: true}, p9.SetAttr{Permissions: 0o777}); !is(err, syscall.EPERM) {
		t.Fatal(err)
	}
	if _, _, err := other.Walk([]string{"group", "x"}); !is(err, syscall.EACCES) {
		t.Fatal(err)
	}
	if _, err := e.AttachAs(t.Context(), p9srv.User{UID: 1001, GID: 101}, "/group/x"); !is(err, syscall.EACCES) {
		t.Fatal(err)
	}
}

func TestAttachBelow(t *testing.T) {
	m := newMemFS()
	e := New(m, Options{})
	me := p9srv.User{UID: uint32(os.Geteuid())}
	root := as(t, e, me, "/")
	if _, err := root.Mkdir("d", 0o755, 0, 0); err != nil {
		t.Fatal(err)
	}
	create(t, walk(t, root, "d"), "f", "x")
	d := as(t, e, me, "d")
	qids, _, err := d.Walk([]string{"..", "..", "f"})
	if err != nil || len(qids) != 3 || qids[0].Path != uint64(d.n.oid) {
		t.Fatal(".. leads out of what was attached to:", qids, err)
	}
	if _, err := e.AttachAs(t.Context(), me, "d/none"); !is(err, syscall.ENOENT) {
		t.Fatal(err)
	}
	qids, _, err = root.Walk([]string{"d", "none", "x"})
	if !is(err, syscall.ENOENT) || len(qids) != 1 {
		t.Fatal(qids, err)
	}
}

func TestReadOnly(t *testing.T) {
	m := newMemFS()
	me := p9srv.User{UID: uint32(os.Geteuid())}
	create(t, as(t, New(m, Options{}), me, ""), "f", "x")
	root := as(t, New(m, Options{ReadOnly: true}), me, "")
	f := walk(t, root, "f")
	_, _, _, err := root.Create("g", p9.ReadOnly, 0o644, 0, 0)
	_, err2 := root.Mkdir("g", 0o755, 0, 0)
	_, err3 := root.Symlink("x", "g", 0, 0)
	_, err4 := root.Mknod("g", unix.S_IFIFO, 0, 0, 0, 0)
	_, _, err5 := walk(t, root, "f").Open(p9.ReadOnly | dotlTrunc)
	for i, err := range []error{err, err2, err3, err4, err5,
		root.UnlinkAt("f", 0), root.RenameAt("f", root, "g"), root.Link(f, "g"),
		f.SetAttr(p9.SetAttrMask{Permissions: true}, p9.SetAttr{}), f.SetXattr("user.a", nil, 0), f.RemoveXattr("user.a"),
		f.(*File).Remove(t.Context()), f.Rename(root, "g"),
	} {
		if !is(err, syscall.EROFS) {
			t.Errorf("change %d: %v", i, err)
		}
	}
	if got := content(t, f); got != "x" {
		t.Fatalf("%q", got)
	}
}

func TestRenameAndRemoveByFid(t *testing.T) {
	m := newMemFS()
	root := as(t, New(m, Options{}), p9srv.User{UID: uint32(os.Geteuid())}, "")
	create(t, root, "a", "1")
	f := walk(t, root, "a").(*File)
	if err := f.Rename(root, "b"); err != nil {
		t.Fatal(err)
	}
	if err := f.Rename(root, "c"); err != nil {
		t.Fatal("by its new name:", err)
	}
	if err := root.RenameAt("c", root, "d"); err != nil {
		t.Fatal(err)
	}
	create(t, root, "c", "2")
	if err := f.Rename(root, "e"); !is(err, syscall.ESTALE) {
		t.Fatal("moved another file:", err)
	}
	if err := f.Remove(t.Context()); !is(err, syscall.ESTALE) {
		t.Fatal("removed another file:", err)
	}
	if err := walk(t, root, "c").(*File).Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := root.Walk([]string{"c"}); !is(err, syscall.ENOENT) {
		t.Fatal(err)
	}
	if err := root.Rename(root, "x"); !is(err, syscall.EBUSY) {
		t.Fatal(err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "a\x00b"} {
		if _, err := root.Mkdir(name, 0o755, 0, 0); !is(err, syscall.EINVAL) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := root.Mkdir(tree.ExtDirName, 0o755, 0, 0); !is(err, syscall.EPERM) {
		t.Fatal(err)
	}
}

func TestXattrs(t *testing.T) {
	m := newMemFS()
	root := as(t, New(m, Options{InPlace: true}), p9srv.User{UID: uint32(os.Geteuid())}, "")
	create(t, root, "f", "")
	f := walk(t, root, "f").(*File)
	if _, err := f.GetXattr("security.capability"); !is(err, syscall.ENODATA) || !f.InPlace(p9srv.OpName) {
		t.Fatal(err)
	}
	if err := f.SetXattr("user.a", []byte("v"), p9.XattrCreate); err != nil {
		t.Fatal(err)
	}
	if err := f.SetXattr("user.a", []byte("w"), p9.XattrCreate); !is(err, syscall.EEXIST) {
		t.Fatal(err)
	}
	if v, err := f.GetXattr("user.a"); string(v) != "v" || err != nil {
		t.Fatal(v, err)
	}
	if l, err := f.ListXattrs(); !slices.Equal(l, []string{"user.a"}) || err != nil {
		t.Fatal(l, err)
	}
	if err := f.RemoveXattr("user.a"); err != nil {
		t.Fatal(err)
	}
	if err := f.RemoveXattr("user.a"); !is(err, syscall.ENODATA) {
		t.Fatal(err)
	}
}
