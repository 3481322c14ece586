package export

import (
	"strings"
	"testing"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
)

// TestFeedBehindTheEnd follows a log whose beginning retention has taken.
func TestFeedBehindTheEnd(t *testing.T) {
	m := newMaster(t, JournalOptions{})
	log := m.t.Log()
	old, crc := log.EndAndCRC()
	note := strings.Repeat("note ", 24<<10)
	for len(log.Segments()) == 1 {
		if err := log.Append(&kml.Record{Op: kml.OpMark, Mark: kml.MarkNote, Name: note}); err != nil {
			t.Fatal(err)
		}
	}
	root := m.serve(t)
	if _, err := root.Mkdir("kept", 0o755, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.t.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	n, err := log.Retain(1, 1, func(kml.Position) error { return nil })
	if n != 1 || err != nil {
		t.Fatal(n, err)
	}
	for _, q := range []feed.Request{{}, {From: old, CRC: crc}} {
		s := openStream(t, root, "feed", q.String())
		msg, err := s.next()
		if f, ok := msg.(*feed.Failure); err != nil || !ok || f.Code != feed.CodeTruncated {
			t.Fatalf("after %s: %+v, %v", q.From, msg, err)
		}
	}
	s := openStream(t, root, "feed", "")
	msg, err := s.next()
	g, ok := msg.(*feed.Greeting)
	if err != nil || !ok || g.First != log.First() || g.First <= old+1 {
		t.Fatalf("%+v, %v", msg, err)
	}
	for {
		msg, err := s.next()
		if err != nil {
			t.Fatal(err)
		}
		if r, ok := msg.(*feed.Record); ok && r.Record.Op == kml.OpMkdir && r.Record.Name == "kept" {
			break
		}
	}
}
