package export

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

func TestVersions(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := m.serve(t)
	create(t, root, "f", "one")
	q, _, _, err := walk(t, root, "f").GetAttr(p9.AttrMaskAll)
	if err != nil {
		t.Fatal(err)
	}
	name := hex16(q.Path)
	v := walk(t, root, tree.ExtDirName, "oid", name)
	if _, _, err := v.Open(p9.ReadOnly); err != nil {
		t.Fatal(err)
	}
	_, _, a, err := v.GetAttr(p9.AttrMaskAll)
	if err != nil || a.Size != 3 || a.DataVersion == 0 || a.DataVersion&tree.DataDirty != 0 {
		t.Fatal(a, err)
	}
	if err := root.UnlinkAt("f", 0); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if n, err := v.ReadAt(buf, 0); n != 3 || err != nil && err != io.EOF || string(buf[:3]) != "one" {
		t.Fatal(n, err)
	}
	create(t, root, "g", "one")
	q, _, _, err = walk(t, root, "g").GetAttr(p9.AttrMaskAll)
	if err != nil {
		t.Fatal(err)
	}
	g := walk(t, root, tree.ExtDirName, "oid", hex16(q.Path))
	if _, _, err := g.Open(p9.ReadOnly); err != nil {
		t.Fatal(err)
	}
	w := walk(t, root, "g")
	if _, _, err := w.Open(p9.WriteOnly); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("two"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := g.ReadAt(buf, 0); !is(err, syscall.ESTALE) {
		t.Fatal("bytes of another version:", err)
	}
	for _, bad := range []string{"1", "00000000000000ff", strings.ToUpper(hex16(0xabcdef)), "0000000000000001"} {
		if _, _, err := walk(t, root, tree.ExtDirName, "oid").Walk([]string{bad}); !is(err, syscall.ENOENT) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func hex16(v uint64) string {
	const digits = "0123456789abcdef"
	b := make([]byte, 16)
	for i := range b {
		b[15-i] = digits[v>>(4*i)&15]
	}
	return string(b)
}

func TestSnapshot(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := m.serve(t)
	create(t, root, "f", "abc")
	if _, err := root.Mkdir("d", 0o755, p9.NoUID, p9.NoGID); err != nil {
		t.Fatal(err)
	}
	d := walk(t, root, "d")
	for _, n := range []string{"x", "y", "z"} {
		create(t, d, n, n)
	}
	if err := d.Link(walk(t, root, "f"), "again"); err != nil {
		t.Fatal(err)
	}
	read := func(request string) (names []string) {
		s := openStream(t, root, "snapshot", request)
		b := want[*feed.SnapBegin](s)
		if crc, err := m.t.Log().CRCAt(b.Position); b.OID != kml.RootOID || crc != b.CRC || err != nil {
			t.Fatal(b, crc, err)
		}
		for {
			msg, err := s.next()
			if err != nil {
				t.Fatal(err)
			}
			switch msg := msg.(type) {
			case *feed.Entry:
				names = append(names, msg.Record.Op.String()+" "+msg.Record.Name)
			case *feed.EntryData:
				names = append(names, msg.Record.Op.String()+" "+msg.Record.Name+"="+string(msg.Data))
			case *feed.SnapEnd:
				if msg.Count != uint64(len(names)) {
					t.Fatal(msg.Count, names)
				}
				if _, err := s.next(); err != io.EOF {
					t.Fatal(err)
				}
				return names
			default:
				t.Fatalf("%T %+v", msg, msg)
			}
		}
	}
	whole := "mkdir ,mkdir d,create again,create x,create y,create z,link f"
	if got := strings.Join(read("under 0:1 depth -1\n"), ","); got != whole {
		t.Fatal(got)
	}
	if got := strings.Join(read(""), ","); got != whole {
		t.Fatal(got)
	}
	// "again" is larger than what is put in.
	if got := strings.Join(read("under 0:1 depth -1 inline 2\n"), ","); got != "mkdir ,mkdir d,create again,create x=x,create y=y,create z=z,link f" {
		t.Fatal(got)
	}
	if got := strings.Join(read("under 0:1 depth 1"), ","); got != "mkdir ,mkdir d,create f" {
		t.Fatal(got)
	}
	s := openStream(t, root, "snapshot", "under 9:9 depth 1\n")
	if f := want[*feed.Failure](s); f.Code != feed.CodeNoObject {
		t.Fatal(f)
	}
}

func TestSnapshotOfAReaderThatStaysAway(t *testing.T) {
	m := newMaster(t, JournalOptions{Idle: 20 * time.Millisecond})
	root := as(t, m.e, me(), "")
	for i := range 1500 {
		create(t, root, strings.Repeat("n", 100)+hex16(uint64(i)), "")
	}
	s := openStream(t, root, "snapshot", "")
	h := s.f.(*extFile).h.(*snapshotHandle)
	// It begins with the first read, and may end before a slow reader's second.
	buf := make([]byte, 16)
	n, err := s.f.ReadAt(buf, 0)
	if n != len(buf) || err != nil {
		t.Fatal(n, err)
	}
	s.off = int64(n)
	s.d.Write(buf)
	<-h.ctx.Done()
	s.buf = make([]byte, 1<<20)
	var f *feed.Failure
	for {
		msg, err := s.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if x, ok := msg.(*feed.Failure); ok {
			f = x
		}
	}
	if f == nil || f.Code != feed.CodeStopped || !strings.Contains(f.Text, "stayed away") {
		t.Fatal(f)
	}
}

// TestSnapshotEqualsTree compares every entry with what lies in the directory.
func TestSnapshotEqualsTree(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := as(t, m.e, me(), "")
	for _, d := range []string{"a", "b"} {
		if _, err := root.Mkdir(d, 0o750, 0, 0); err != nil {
			t.Fatal(err)
		}
		for i := range 300 {
			create(t, walk(t, root, d), hex16(uint64(i))+"\n\xff", strings.Repeat("x", i))
		}
	}
	a := walk(t, root, "a")
	if _, err := a.Symlink("target \xfe", "link", 0, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Mknod("fifo", unix.S_IFIFO|0o600, 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := walk(t, root, "b").Link(walk(t, a, hex16(7)+"\n\xff"), "hard"); err != nil {
		t.Fatal(err)
	}
	if err := walk(t, a, hex16(9)+"\n\xff").SetXattr("user.k", []byte("v"), 0); err != nil {
		t.Fatal(err)
	}
	s := openStream(t, m.serve(t), "snapshot", "")
	want[*feed.SnapBegin](s)
	paths := map[kml.OID]string{}
	seen := 0
	for {
		msg, err := s.next()
		if err != nil {
			t.Fatal(err)
		}
		e, ok := msg.(*feed.Entry)
		if !ok {
			break
		}
		r := e.Record
		path := filepath.Join(m.dir, paths[r.Parent], r.Name)
		if r.OID == kml.RootOID {
			path = m.dir
		} else if _, ok := paths[r.Parent]; !ok {
			t.Fatalf("%q comes before its folder", r.Name)
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		seen++
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			paths[r.OID] = strings.TrimPrefix(path, m.dir)
		}
		if r.Op == kml.OpLink {
			if st.Nlink != 2 || paths[r.OID] == "" {
				t.Fatalf("%q: link %+v", path, r)
			}
			continue
		}
		paths[r.OID] = path[len(m.dir):]
		link, _ := os.Readlink(path)
		if r.Attr.Mode != st.Mode || r.Attr.UID != st.Uid || r.Attr.Mtime != st.Mtim.Nano() || r.Target != link ||
			st.Mode&unix.S_IFMT == unix.S_IFREG && r.Attr.Size != uint64(st.Size) || e.Version == 0 {
			t.Fatalf("%q: %+v, %+v", path, e, st)
		}
		if strings.HasPrefix(r.Name, hex16(9)) && paths[r.Parent] == "/a" && (len(r.Xattrs) != 1 || string(r.Xattrs[0].Value) != "v") {
			t.Fatalf("%q: %+v", path, r.Xattrs)
		}
	}
	if seen != 1+2+600+3 {
		t.Fatal(seen)
	}
}
