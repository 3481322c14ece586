package export

import (
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv"
)

// site is a client's end of a reint session.
type site struct {
	*frames
	root p9.File
	woff int64
	feed.Welcome
	batch uint64
}

// enter begins a session; hello.Host may be left out.
func enter(t *testing.T, root p9.File, hello feed.Hello) *site {
	t.Helper()
	s := &site{frames: openStream(t, root, "reint", ""), root: root}
	hello.Version, hello.Host = feed.Version, "laptop"
	s.send(&hello)
	s.Welcome = *want[*feed.Welcome](s.frames)
	return s
}

func (s *site) send(m feed.Message) {
	s.t.Helper()
	b, err := feed.Append(nil, m)
	if err != nil {
		s.t.Fatal(err)
	}
	for len(b) > 0 { // in pieces, as a small msize would
		n, err := s.f.WriteAt(b[:min(len(b), max(100, len(b)/4))], s.woff)
		if err != nil {
			s.t.Fatal(err)
		}
		b, s.woff = b[n:], s.woff+int64(n)
	}
}

// apply sends records and gives what became of them.
func (s *site) apply(rs ...*kml.Record) []feed.Outcome {
	s.t.Helper()
	s.batch++
	s.send(&feed.Batch{ID: s.batch, Records: rs})
	res := want[*feed.Result](s.frames)
	if res.ID != s.batch || len(res.Outcomes) != len(rs) {
		s.t.Fatal(res)
	}
	return res.Outcomes
}

// upload puts the contents of record seq into the stage.
func (s *site) upload(seq uint64, text string) {
	s.t.Helper()
	d := walk(s.t, s.root, tree.ExtDirName, "stage")
	f, _, _, err := d.Create(upload{s.Site, seq}.name(), p9.ReadWrite, 0o600, p9.NoUID, p9.NoGID)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		s.t.Fatal(err)
	}
	if err := f.FSync(); err != nil {
		s.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) mkfile(seq uint64, name string) *kml.Record {
	return &kml.Record{Op: kml.OpCreate, Origin: kml.Origin{Site: s.Site, Seq: seq}, Time: 1e18, OID: kml.MakeOID(s.Site, seq),
		Parent: kml.RootOID, Name: name, Attr: kml.Attr{Mode: unix.S_IFREG | 0o644, Nlink: 1, Mtime: 1e18}}
}

func (s *site) store(seq uint64, oid kml.OID, base kml.Base, text string) *kml.Record {
	return &kml.Record{Op: kml.OpStore, Origin: kml.Origin{Site: s.Site, Seq: seq}, Time: 1e18, OID: oid, Base: base,
		Attr: kml.Attr{Size: uint64(len(text)), Mtime: 1e18 + 5}}
}

func TestReintegration(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := m.serve(t)
	s := enter(t, root, feed.Hello{})
	if s.Site == 0 || len(s.Key) != 64 || s.LastSeq != 0 || s.Position == 0 {
		t.Fatalf("%+v", s.Welcome)
	}
	s.upload(2, "hello")
	oid := kml.MakeOID(s.Site, 1)
	batch := []*kml.Record{s.mkfile(1, "f"), s.store(2, oid, kml.Base{Seq: 1}, "hello")}
	first := s.apply(batch...)
	for i, o := range first {
		if o.Status != feed.Applied || o.Seq != uint64(i+1) || o.Pos == 0 {
			t.Fatalf("%+v", o)
		}
	}
	if got := content(t, walk(t, root, "f")); got != "hello" {
		t.Fatalf("%q", got)
	}
	if _, _, a, err := walk(t, root, "f").GetAttr(p9.AttrMaskAll); err != nil || a.DataVersion != uint64(first[1].Pos) || a.MTimeSeconds != 1e9 {
		t.Fatal(a, err)
	}
	if es, err := os.ReadDir(m.t.Stage()); err != nil || len(es) != 0 || m.j.stage.used() != 0 {
		t.Fatal("left in the stage:", es, m.j.stage.used(), err)
	}
	again := func(s *site) {
		t.Helper()
		end := m.t.Log().End().Recno()
		for i, o := range s.apply(batch...) {
			if o.Status != feed.Duplicate || o.Pos != first[i].Pos {
				t.Fatalf("sent again: %+v", o)
			}
		}
		if got := m.t.Log().End().Recno(); got != end {
			t.Fatal("records were logged:", got-end)
		}
	}
	again(s)
	key := s.Key
	m.end()

	m = openMaster(t, m.dir, JournalOptions{})
	root = m.serve(t)
	s = enter(t, root, feed.Hello{Site: s.Site, Key: key})
	if s.Site != oid.Site() || s.Key == key || s.LastSeq != 2 || s.MaxCounter != 1 {
		t.Fatalf("%+v", s.Welcome)
	}
	again(s)
	s = enter(t, root, feed.Hello{Site: s.Site, Key: s.Key, Known: 2})
	for _, o := range s.apply(batch...) {
		if o.Status != feed.Duplicate {
			t.Fatalf("acknowledged, and sent again: %+v", o)
		}
	}
	if line := content(t, walk(t, root, tree.ExtDirName, "clients")); !strings.Contains(line, " write ") || !strings.HasSuffix(line, " laptop\n") {
		t.Fatalf("%q", line)
	}
}

func TestReintegrationRefusesAndConflicts(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := m.serve(t)
	create(t, root, "taken", "x")
	s := enter(t, root, feed.Hello{})
	end := m.t.Log().End()
	oid := kml.MakeOID(s.Site, 99)
	foreign := s.mkfile(1, "f")
	foreign.Origin.Site++
	stolen := s.mkfile(2, "f")
	stolen.OID = kml.MakeOID(s.Site+1, 5)
	dir := s.mkfile(3, "d")
	dir.Op = kml.OpMkdir
	rec := func(seq uint64, op kml.Op) *kml.Record {
		return &kml.Record{Op: op, Origin: kml.Origin{Site: s.Site, Seq: seq}, OID: oid, Parent: kml.RootOID, Name: "f", NewParent: kml.RootOID, NewName: "g"}
	}
	rootGone := rec(8, kml.OpRmdir)
	rootGone.OID = kml.RootOID
	mark := rec(9, kml.OpMark)
	mark.Mark = kml.MarkNote
	size := rec(10, kml.OpSetattr)
	size.Mask = kml.MaskSize
	toExt := rec(11, kml.OpRename)
	toExt.NewName = tree.ExtDirName
	slash := s.mkfile(12, "a/b")
	for _, c := range []struct {
		r    *kml.Record
		want syscall.Errno
	}{
		{foreign, syscall.EPERM}, {stolen, syscall.EPERM}, {dir, syscall.EINVAL},
		{s.mkfile(4, ""), syscall.EINVAL}, {s.mkfile(5, ".."), syscall.EINVAL}, {slash, syscall.EINVAL},
		{s.mkfile(6, strings.Repeat("n", 256)), syscall.ENAMETOOLONG}, {s.mkfile(7, tree.ExtDirName), syscall.EPERM},
		{rootGone, syscall.EBUSY}, {mark, syscall.EPERM}, {size, syscall.EINVAL}, {toExt, syscall.EPERM},
	} {
		if _, _, err := kml.AppendRecord(nil, c.r, 0); err != nil {
			t.Logf("%v: cannot be sent: %v", c.r.Op, err)
			if o := (&reintSession{site: s.Site}).one(c.r); o.Status != feed.Refused || o.Errno != uint32(c.want) {
				t.Errorf("%+v", o)
			}
			continue
		}
		if o := s.apply(c.r)[0]; o.Status != feed.Refused || o.Errno != uint32(c.want) || o.Reason == "" {
			t.Errorf("%v %q: %+v", c.r.Op, c.r.Name, o)
		}
	}
	if got := m.t.Log().End(); got != end {
		t.Error("a refused record was logged", got, end)
	}
	out := s.apply(s.mkfile(20, "taken"), s.mkfile(21, "free"), s.store(22, kml.MakeOID(s.Site, 21), kml.Base{Pos: 1}, ""))
	if out[0].Status != feed.Conflict || out[1].Status != feed.Applied || out[2].Status != feed.Conflict {
		t.Fatalf("%+v", out)
	}
	if got := content(t, walk(t, root, "taken")); got != "x" {
		t.Fatalf("%q", got)
	}
	// Contents that never came, or are of another length.
	if o := s.apply(s.store(23, kml.MakeOID(s.Site, 21), kml.Base{Seq: 21}, "abc"))[0]; o.Status != feed.Refused {
		t.Fatalf("%+v", o)
	}
	s.upload(24, "four")
	if o := s.apply(s.store(24, kml.MakeOID(s.Site, 21), kml.Base{Seq: 21}, "abc"))[0]; o.Status != feed.Refused {
		t.Fatalf("%+v", o)
	}
	if n, ok := m.j.stage.size(upload{s.Site, 24}); !ok || n != 4 {
		t.Fatal("an upload that was not taken is gone", n, ok)
	}
	sum := sha256.Sum256([]byte("four"))
	wrong := s.store(24, kml.MakeOID(s.Site, 21), kml.Base{Seq: 21}, "four")
	wrong.Digest = sum[:] // not its BLAKE3
	if o := s.apply(wrong)[0]; o.Status != feed.Refused {
		t.Fatalf("%+v", o)
	}
}

func TestSitesAndTheirSessions(t *testing.T) {
	m := newMaster(t, JournalOptions{Access: []Grant{{UID: 4711, Rights: RightWrite}}})
	root := m.serve(t)
	old := enter(t, root, feed.Hello{})
	// The answer with the new key was lost: the old key is good once more.
	lost := enter(t, root, feed.Hello{Site: old.Site, Key: old.Key})
	if f := want[*feed.Failure](old.frames); f.Code != feed.CodeReplaced || lost.Site != old.Site {
		t.Fatal(f, lost.Site)
	}
	if _, err := old.next(); err != io.EOF {
		t.Fatal(err)
	}
	if _, err := old.f.WriteAt([]byte{1, 0, 0, 0, 200}, old.woff); !is(err, syscall.EPIPE) {
		t.Fatal(err)
	}
	s := enter(t, root, feed.Hello{Site: old.Site, Key: old.Key})
	if s.Site != old.Site {
		t.Fatal(s.Site)
	}
	s.apply(s.mkfile(1, "f")) // it keeps the new key: from now on the old one is a copy's
	clone := enter(t, root, feed.Hello{Site: old.Site, Key: old.Key})
	if clone.Site == old.Site || clone.Site == 0 {
		t.Fatal("a clone has the site's number:", clone.Site)
	}
	if o := clone.apply(clone.mkfile(1, "g"))[0]; o.Status != feed.Applied {
		t.Fatal(o)
	}
	if o := s.apply(s.mkfile(2, "h"))[0]; o.Status != feed.Applied {
		t.Fatal("the clone's session ended the site's:", o)
	}
	// Another user cannot take it, nor see its uploads.
	s.upload(3, "abc")
	u := as(t, m.e, p9srv.User{UID: 4711, GID: 4711, Proven: true}, "")
	x := &site{frames: openStream(t, u, "reint", ""), root: u}
	x.send(&feed.Hello{Version: feed.Version, Site: s.Site, Key: s.Key})
	if f := want[*feed.Failure](x.frames); f.Code != feed.CodeNotAllowed {
		t.Fatal(f)
	}
	if _, _, err := walk(t, u, tree.ExtDirName, "stage").Walk([]string{upload{s.Site, 3}.name()}); !is(err, syscall.EACCES) {
		t.Fatal(err)
	}
	newer := &site{frames: openStream(t, root, "reint", ""), root: root}
	newer.send(&feed.Hello{Version: feed.Version + 1})
	if f := want[*feed.Failure](newer.frames); f.Code != feed.CodeNewer {
		t.Fatal(f)
	}
	rude := &site{frames: openStream(t, root, "reint", ""), root: root}
	rude.send(&feed.Batch{ID: 1})
	if f := want[*feed.Failure](rude.frames); f.Code != feed.CodeBadRequest {
		t.Fatal(f)
	}
	bad := openStream(t, root, "reint", "")
	if _, err := bad.f.WriteAt([]byte{0xff, 0xff, 0xff, 0xff, 1}, 0); !is(err, syscall.EPROTO) {
		t.Fatal(err)
	}
	if f := want[*feed.Failure](bad); f.Code != feed.CodeBadRequest {
		t.Fatal(f)
	}
}

func TestUploads(t *testing.T) {
	m := newMaster(t, JournalOptions{StageQuota: 10})
	root := m.serve(t)
	s := enter(t, root, feed.Hello{})
	s.upload(1, "12345")
	s.upload(2, "67")
	d := walk(t, root, tree.ExtDirName, "stage")
	f, _, _, err := walk(t, d).Create(upload{s.Site, 3}.name(), p9.ReadWrite, 0o600, p9.NoUID, p9.NoGID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("abcd"), 0); !is(err, syscall.EDQUOT) {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("abc"), 0); err != nil {
		t.Fatal(err)
	}
	// A record whose upload is going on has to wait.
	if o := s.apply(s.mkfile(100, "f"), s.store(3, kml.MakeOID(s.Site, 100), kml.Base{Seq: 100}, "abc"))[1]; o.Status != feed.Refused || o.Errno != uint32(syscall.EBUSY) {
		t.Fatalf("%+v", o)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	// It goes on where it stopped: the size tells.
	if _, _, a, err := walk(t, d, upload{s.Site, 2}.name()).GetAttr(p9.AttrMaskAll); err != nil || a.Size != 2 {
		t.Fatal(a, err)
	}
	if got := content(t, walk(t, d, upload{s.Site, 2}.name())); got != "67" {
		t.Fatalf("%q", got)
	}
	o := walk(t, d)
	if _, _, err := o.Open(p9.ReadOnly); err != nil {
		t.Fatal(err)
	}
	ents, err := o.Readdir(2, 4096)
	if err != nil || len(ents) != 3 || ents[0].Name != (upload{s.Site, 1}).name() {
		t.Fatal(ents, err)
	}
	if err := d.UnlinkAt(upload{s.Site, 3}.name(), 0); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x", "1", "01-1", "1-", "-1", "1-0", "1-1-1", "99999999-1"} {
		if _, _, _, err := walk(t, d).Create(name, p9.ReadWrite, 0o600, p9.NoUID, p9.NoGID); !is(err, syscall.EINVAL) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, _, _, err := walk(t, d).Create(upload{s.Site + 1, 1}.name(), p9.ReadWrite, 0o600, p9.NoUID, p9.NoGID); !is(err, syscall.EACCES) {
		t.Error(err)
	}
	m.end()
	// Uploads outlive a restart; what the site acknowledges goes.
	m = openMaster(t, m.dir, JournalOptions{})
	if m.j.stage.used() != 7 {
		t.Fatal(m.j.stage.used())
	}
	enter(t, m.serve(t), feed.Hello{Site: s.Site, Key: s.Key, Known: 1})
	if _, err := os.Stat(filepath.Join(m.t.Stage(), upload{s.Site, 1}.name())); !os.IsNotExist(err) || m.j.stage.used() != 2 {
		t.Fatal(err, m.j.stage.used())
	}
}

// TestContentsInTheStream: small contents come before their batch, and what is
// wrong with them is their record's outcome.
func TestContentsInTheStream(t *testing.T) {
	m := newMaster(t, JournalOptions{StageQuota: 10})
	root := m.serve(t)
	s := enter(t, root, feed.Hello{})
	oid := kml.MakeOID(s.Site, 100)
	s.send(&feed.Contents{Seq: 2, Data: []byte("abc")})
	out := s.apply(s.mkfile(100, "f"), s.store(2, oid, kml.Base{Seq: 100}, "abc"))
	if out[0].Status != feed.Applied || out[1].Status != feed.Applied {
		t.Fatalf("%+v", out)
	}
	if b, err := os.ReadFile(filepath.Join(m.dir, "f")); string(b) != "abc" || err != nil {
		t.Fatal(string(b), err)
	}
	if n := m.j.stage.used(); n != 0 {
		t.Error(n, "bytes left in the stage")
	}
	s.upload(7, "12345")
	s.send(&feed.Contents{Seq: 3, Data: []byte("0123456789")})
	if o := s.apply(s.store(3, oid, kml.Base{Seq: 2}, "0123456789"))[0]; o.Status != feed.Refused || o.Errno != uint32(syscall.EDQUOT) {
		t.Fatalf("%+v", o)
	}
	s.send(&feed.Contents{Seq: 4, Data: []byte("other")})
	if o := s.apply(s.store(4, oid, kml.Base{Seq: 2}, "byte"))[0]; o.Status != feed.Refused || o.Errno != uint32(syscall.EINVAL) {
		t.Fatalf("%+v", o)
	}
}

// TestUploadOfOldConnection: what a connection that was given up still brings
// does not get into an upload that a newer session goes on with.
func TestUploadOfOldConnection(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	s := enter(t, m.serve(t), feed.Hello{})
	oid := kml.MakeOID(s.Site, 100)
	d := walk(t, s.root, tree.ExtDirName, "stage")
	f, _, _, err := d.Create(upload{s.Site, 2}.name(), p9.ReadWrite, 0o600, p9.NoUID, p9.NoGID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("ab"), 0); err != nil {
		t.Fatal(err)
	}
	n := enter(t, m.serve(t), feed.Hello{Site: s.Site, Key: s.Key})
	if n.Site != s.Site {
		t.Fatal(n.Site)
	}
	g := walk(t, n.root, tree.ExtDirName, "stage", upload{s.Site, 2}.name())
	if _, _, err := g.Open(p9.ReadWrite); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("xxx"), 0); !is(err, syscall.ESTALE) {
		t.Fatal(err)
	}
	if _, err := g.WriteAt([]byte("c"), 2); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if o := n.apply(n.mkfile(100, "f"), n.store(2, oid, kml.Base{Seq: 100}, "abc"))[1]; o.Status != feed.Applied {
		t.Fatalf("%+v", o)
	}
	if _, err := f.WriteAt([]byte("xxx"), 0); !is(err, syscall.ESTALE) {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(m.dir, "f")); string(b) != "abc" || err != nil {
		t.Fatal(string(b), err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestWriteSentAgain sends bytes twice, as who has flushed a write may have to.
func TestWriteSentAgain(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := as(t, m.e, me(), "")
	s := &site{frames: openStream(t, root, "reint", ""), root: root}
	b, err := feed.Append(nil, &feed.Hello{Version: feed.Version, Host: "h"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]int{{0, 10}, {0, 10}, {4, len(b)}, {0, len(b)}} {
		if n, err := s.f.WriteAt(b[c[0]:c[1]], int64(c[0])); n != c[1]-c[0] || err != nil {
			t.Fatal(n, err)
		}
	}
	want[*feed.Welcome](s.frames)
	if _, err := s.f.WriteAt(b, int64(len(b)+1)); !is(err, syscall.ESPIPE) {
		t.Fatal(err)
	}
}

// TestLargestBatch has every record refused with a long reason.
func TestLargestBatch(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := as(t, m.e, me(), "")
	s := enter(t, root, feed.Hello{})
	var rs []*kml.Record
	size := 0
	for size < feed.MaxPayload-300 {
		r := &kml.Record{Op: kml.OpUnlink, Origin: kml.Origin{Site: s.Site, Seq: uint64(len(rs) + 1)}, OID: 7, Parent: kml.RootOID, Name: tree.ExtDirName}
		n, err := kml.EncodedLen(nil, r)
		if err != nil {
			t.Fatal(err)
		}
		rs, size = append(rs, r), size+n
	}
	out := s.apply(rs...)
	if last := out[len(out)-1]; last.Status != feed.Refused || out[0].Reason == "" || last.Seq != uint64(len(rs)) {
		t.Fatalf("%+v", last)
	}
}

// TestOneUploadOfAnySize: the quota is for all together.
func TestOneUploadOfAnySize(t *testing.T) {
	m := newMaster(t, JournalOptions{StageQuota: 10})
	s := enter(t, m.serve(t), feed.Hello{})
	s.upload(1, "0123456789 and more")
	if n := m.j.stage.used(); n != 19 {
		t.Error(n)
	}
}
