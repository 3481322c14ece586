package export

import (
	"bytes"
	"context"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// frames reads frames from a stream file.
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
	for h := x.h.(*feedHandle); h.r.Pos() != m.t.Log().End() || len(h.s.pend) > 0; off += int64(n) { // take what is there
		if n, err = x.ReadAt(buf, off); err != nil {
			t.Fatal(err)
		}
	}
	c := make(chan error, 1)
	for flushed := false; !flushed; { // a commit may say something meanwhile
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			var err error
			n, err = x.ReadAtContext(ctx, buf, off)
			c <- err
		}()
		cancel()
		if err := <-c; err == nil {
			off += int64(n)
		} else if flushed = is(err, syscall.EINTR); !flushed {
			t.Fatal(err)
		}
	}
	if _, err := root.Mkdir("made after", 0o755, 0, 0); err != nil {
		t.Fatal(err)
	}
	for found := false; !found; off += int64(n) {
		if n, err = x.ReadAt(buf, off); err != nil {
			t.Fatal(err)
		}
		found = bytes.Contains(buf[:n], []byte("made after"))
	}
	// A waiting read ends when its fid goes; a getattr does not wait for it.
	go func() {
		for {
			n, err := x.ReadAt(buf, off)
			if err != nil {
				c <- err
				return
			}
			off += int64(n)
		}
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

// TestFeedOfAReaderThatStops lets the log grow while nobody reads: the session
// holds no more than before, and the reader misses nothing when it goes on.
func TestFeedOfAReaderThatStops(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	root := as(t, m.e, me(), "")
	s := openStream(t, root, "feed", "from 0.0 crc 00000000 inline 65536\n")
	s.buf = make([]byte, 512)
	want[*feed.Greeting](s)
	for i := range 300 {
		create(t, root, hex16(uint64(i)), strings.Repeat("x", 8000))
	}
	h := s.f.(*extFile).h.(*feedHandle)
	stores := 0
	for stores < 300 {
		msg, err := s.next()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := msg.(*feed.RecordData); ok && len(d.Data) == 8000 {
			stores++
		}
		if n := cap(h.s.pend) + cap(h.s.last) + cap(h.buf); n > streamKeep+64<<10 {
			t.Fatal("the session holds", n)
		}
	}
}
