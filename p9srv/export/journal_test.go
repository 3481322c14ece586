package export

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
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
	if got := strings.Join(names, " "); got != ". .. kml log feed snapshot oid status clients" || err != nil {
		t.Fatal(got, err)
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

// stream reads frames from a stream file.
type frames struct {
	t   *testing.T
	f   p9.File
	off int64
	d   feed.Decoder
	buf []byte
}

func openStream(t *testing.T, root p9.File, name, request string) *frames {
	t.Helper()
	f := walk(t, root, tree.ExtDirName, name)
	if _, _, err := f.Open(p9.ReadWrite); err != nil {
		t.Fatal(err)
	}
	if request != "" {
		if n, err := f.WriteAt([]byte(request), 0); n != len(request) || err != nil {
			t.Fatal(n, err)
		}
	}
	return &frames{t: t, f: f, buf: make([]byte, 64<<10)}
}

// next is the next message; io.EOF at the end.
func (s *frames) next() (feed.Message, error) {
	s.t.Helper()
	for {
		fr, ok, err := s.d.Next()
		if err != nil {
			s.t.Fatal(err)
		}
		if ok {
			m, err := fr.Message()
			if err != nil {
				s.t.Fatal(err)
			}
			return m, nil
		}
		n, err := s.f.ReadAt(s.buf, s.off)
		if n == 0 {
			if err == nil {
				err = io.EOF
			}
			return nil, err
		}
		s.off += int64(n)
		s.d.Write(s.buf[:n])
	}
}

// want is the next message but heartbeats, of type M.
func want[M feed.Message](s *frames) M {
	s.t.Helper()
	for {
		m, err := s.next()
		if err != nil {
			s.t.Fatal(err)
		}
		if _, ok := m.(*feed.Heartbeat); ok {
			if h, ok := m.(M); ok {
				return h
			}
			continue
		}
		got, ok := m.(M)
		if !ok {
			s.t.Fatalf("got %T %+v", m, m)
		}
		return got
	}
}

func TestFeedFromTheBeginning(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := m.serve(t)
	create(t, root, "f", "abc")
	s := openStream(t, root, "feed", "from 0.0 crc 00000000 inline 65536\n")
	g := want[*feed.Greeting](s)
	if g.Fileset != m.t.State().Fileset().UUID || g.End != m.t.Log().End() || g.First != m.t.Log().First() {
		t.Fatal(g)
	}
	r, err := m.t.Log().ReaderAfter(0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data := ""
	for {
		logged, err := r.TryNext()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		msg, err := s.next()
		if err != nil {
			t.Fatal(err)
		}
		switch msg := msg.(type) {
		case *feed.Record:
			if msg.Record.Pos != logged.Pos {
				t.Fatal(msg.Record.Pos, logged.Pos)
			}
		case *feed.RecordData:
			if msg.Record.Pos != logged.Pos {
				t.Fatal(msg.Record.Pos, logged.Pos)
			}
			data += string(msg.Data)
		default:
			t.Fatalf("%T", msg)
		}
	}
	if data != "abc" {
		t.Fatalf("contents: %q", data)
	}
	// What happens now comes now.
	d := make(chan error, 1)
	go func() {
		_, err := root.Mkdir("later", 0o755, p9.NoUID, p9.NoGID)
		d <- err
	}()
	if rec := want[*feed.Record](s); rec.Record.Op != kml.OpMkdir || rec.Record.Name != "later" {
		t.Fatal(rec.Record)
	}
	if err := <-d; err != nil {
		t.Fatal(err)
	}
	if err := m.t.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for {
		if h := want2(t, s); h != nil && h.Durable >= m.t.Durable() {
			break
		}
	}
	line := content(t, walk(t, root, tree.ExtDirName, "clients"))
	if f := strings.Fields(line); len(f) != 8 || f[0] != "0" || f[3] != "follow" {
		t.Fatalf("%q", line)
	}
}

// want2 is the next message if it is a heartbeat.
func want2(t *testing.T, s *frames) *feed.Heartbeat {
	t.Helper()
	m, err := s.next()
	if err != nil {
		t.Fatal(err)
	}
	h, _ := m.(*feed.Heartbeat)
	return h
}

func TestFeedFromAPosition(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := m.serve(t)
	create(t, root, "f", "abc")
	end, crc := m.t.Log().EndAndCRC()
	if _, err := root.Mkdir("d", 0o755, p9.NoUID, p9.NoGID); err != nil {
		t.Fatal(err)
	}
	s := openStream(t, root, "feed", feed.Request{From: end, CRC: crc}.String())
	want[*feed.Greeting](s)
	if r := want[*feed.Record](s); r.Record.Name != "d" {
		t.Fatal(r.Record)
	}
	for _, c := range []struct {
		request string
		want    feed.Code
	}{
		{feed.Request{From: end, CRC: crc + 1}.String(), feed.CodeHistoryCut},
		{feed.Request{From: kml.MakePosition(end.Epoch(), 1<<40), CRC: crc}.String(), feed.CodeHistoryCut},
		{feed.Request{From: kml.MakePosition(end.Epoch()+1, end.Recno()), CRC: crc}.String(), feed.CodeHistoryCut},
		{"from here\n", feed.CodeBadRequest},
	} {
		s := openStream(t, root, "feed", c.request)
		if f := want[*feed.Failure](s); f.Code != c.want {
			t.Errorf("%q: %v", c.request, f)
		}
		if _, err := s.next(); err != io.EOF {
			t.Errorf("%q: after a failure: %v", c.request, err)
		}
	}
	f := walk(t, root, tree.ExtDirName, "feed")
	if _, _, err := f.Open(p9.ReadWrite); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, feed.MaxLine+1), 0); !is(err, syscall.EINVAL) {
		t.Fatal(err)
	}
}

// TestFeedRepeats loses answers: a read at the offset of the last one gets it
// again, and a read that was flushed while it waited has taken nothing.
func TestFeedRepeats(t *testing.T) {
	m := newMaster(t, JournalOptions{Heartbeat: time.Hour})
	root := as(t, m.e, me(), "")
	s := openStream(t, root, "feed", "from 0.0 crc 00000000 inline 0\n")
	x := s.f.(*extFile)
	buf := make([]byte, 1<<16)
	n, err := x.ReadAt(buf, 30) // any offset will do to begin with
	if err != nil {
		t.Fatal(err)
	}
	first := string(buf[:n])
	for _, k := range []int{n, 7} {
		if n2, err := x.ReadAt(buf[:k], 30); err != nil || string(buf[:n2]) != first[:k] {
			t.Fatal(n2, err)
		}
	}
	if n2, err := x.ReadAt(buf, 40); err != nil || string(buf[:n2]) != first[10:] {
		t.Fatal(n2, err)
	}
	if _, err := x.ReadAt(buf, 29); !is(err, syscall.ESPIPE) {
		t.Fatal(err)
	}
	if _, err := x.ReadAt(buf, int64(31+n)); !is(err, syscall.ESPIPE) {
		t.Fatal(err)
	}
	off := 30 + int64(n)
	for m.t.Log().End().Recno() > 0 { // drain what is there
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		n, err := x.ReadAtContext(ctx, buf, off)
		if is(err, syscall.EINTR) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		off += int64(n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c := make(chan error, 1)
	go func() {
		_, err := x.ReadAtContext(ctx, buf, off)
		c <- err
	}()
	cancel()
	if err := <-c; !is(err, syscall.EINTR) {
		t.Fatal(err)
	}
	if _, err := root.Mkdir("d", 0o755, 0, 0); err != nil {
		t.Fatal(err)
	}
	if n, err = x.ReadAt(buf, off); err != nil || !bytes.Contains(buf[:n], []byte("d")) {
		t.Fatal(n, err)
	}
	// A waiting read ends when its fid goes, and when the journal closes.
	go func() {
		_, err := x.ReadAt(make([]byte, 1<<16), off+int64(n))
		c <- err
	}()
	if _, _, _, err := x.GetAttr(attrMask); err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-c; !is(err, syscall.EINTR) && !is(err, syscall.EBADF) {
		t.Fatal(err)
	}
}

func TestFeedEndsWithTheJournal(t *testing.T) {
	m := newMaster(t, JournalOptions{Heartbeat: time.Hour})
	root := as(t, m.e, me(), "")
	late := walk(t, root, tree.ExtDirName, "feed")
	s := openStream(t, root, "feed", "")
	want[*feed.Greeting](s)
	c := make(chan feed.Message, 1)
	go func() {
		for {
			msg, err := s.next()
			if err != nil {
				close(c)
				return
			}
			if _, ok := msg.(*feed.Failure); ok {
				c <- msg
			}
		}
	}()
	m.end()
	f, _ := (<-c).(*feed.Failure)
	if f == nil || f.Code != feed.CodeStopped {
		t.Fatal(f)
	}
	<-c
	if _, _, err := late.Open(p9.ReadWrite); !is(err, syscall.ESHUTDOWN) {
		t.Fatal(err)
	}
}

// TestFeedSaysWhatChanges has a writer that does not stop: its stores come
// without contents.
func TestFeedSaysWhatChanges(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := as(t, m.e, me(), "")
	create(t, root, "f", "one")
	f := walk(t, root, "f")
	if _, _, err := f.Open(p9.WriteOnly); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("two"), 0); err != nil {
		t.Fatal(err)
	}
	oid := f.(*File).n.oid
	if !m.t.Dirty(oid) {
		t.Fatal("not open-dirty")
	}
	s := openStream(t, root, "feed", "from 0.0 crc 00000000 inline 65536\n")
	want[*feed.Greeting](s)
	for {
		msg, err := s.next()
		if err != nil {
			t.Fatal(err)
		}
		if c, ok := msg.(*feed.Changing); ok {
			if c.OID != oid {
				t.Fatal(c.OID)
			}
			break
		}
		if d, ok := msg.(*feed.RecordData); ok {
			t.Fatal("contents that are changing:", d)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for {
		msg, err := s.next()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := msg.(*feed.RecordData); ok {
			if string(d.Data) != "two" {
				t.Fatalf("%q", d.Data)
			}
			break
		}
	}
}

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
		if b := want[*feed.SnapBegin](s); b.Position != m.t.Log().End() {
			t.Fatal(b)
		}
		for {
			msg, err := s.next()
			if err != nil {
				t.Fatal(err)
			}
			switch msg := msg.(type) {
			case *feed.Entry:
				names = append(names, msg.Record.Op.String()+" "+msg.Record.Name)
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
	for i := range 2000 {
		create(t, root, strings.Repeat("n", 100)+hex16(uint64(i)), "")
	}
	s := openStream(t, root, "snapshot", "")
	s.buf = make([]byte, 16)
	want[*feed.SnapBegin](s)
	h := s.f.(*extFile).h.(*snapshotHandle)
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
