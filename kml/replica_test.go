package kml

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// copyLog appends the records of one log to another, as far as until.
func copyLog(t *testing.T, to, from *Log, until Position) {
	t.Helper()
	for _, r := range readAll(t, from, to.End()) {
		if r.Pos > until {
			return
		}
		if err := to.AppendReplica(r); err != nil {
			t.Fatal(err)
		}
	}
}

func rawLog(t *testing.T, l *Log) []byte {
	t.Helper()
	b := make([]byte, l.Size())
	if _, err := l.ReadAt(b, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return b
}

// A copy that begins with the header of the master's last segment has the same
// bytes as that from there on.
func TestCopyFromAHead(t *testing.T) {
	o := Options{SegmentSize: minSegmentSize, Fileset: [16]byte{7}}
	l := testLog(t, o)
	if _, err := l.StartEpoch("init", [16]byte{1}); err != nil {
		t.Fatal(err)
	}
	appendN(t, l, 0, 200)
	if err := l.Commit(); err != nil {
		t.Fatal(err)
	}
	raw := rawLog(t, l)
	at := FindHead(raw)
	if at <= 0 || FindHead(raw[:at+HeadLen-8]) >= at {
		t.Fatal(at)
	}
	h, err := ParseHead(raw[at:])
	if err != nil || h.Fileset != o.Fileset || h.After == 0 {
		t.Fatal(h, err)
	}
	c := testLog(t, Options{SegmentSize: minSegmentSize, Head: raw[at : at+HeadLen]})
	if c.End() != h.After || c.EndCRC() != h.CRC || c.Fileset() != o.Fileset {
		t.Fatal(c.End(), c.Fileset())
	}
	copyLog(t, c, l, l.End())
	if !bytes.Equal(rawLog(t, c), raw[at:]) {
		t.Fatal("the copy has other bytes")
	}
	if _, err := Open(filepath.Join(t.TempDir(), "kml"), Options{Head: raw[at+1:]}); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "kml"), Options{Fileset: [16]byte{8}, Head: raw}); !errors.Is(err, ErrFileset) {
		t.Fatal(err)
	}
}

// A copy that is rewound and copied on is the same again, wherever it is cut.
func TestRewind(t *testing.T) {
	o := Options{SegmentSize: minSegmentSize, Fileset: [16]byte{7}}
	l := testLog(t, o)
	if _, err := l.StartEpoch("init", [16]byte{1}); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		appendN(t, l, 20*i, 20)
		if err := l.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	raw, all := rawLog(t, l), readAll(t, l, 0)
	dir := filepath.Join(t.TempDir(), "kml")
	c := openLog(t, dir, Options{SegmentSize: minSegmentSize, Head: raw[:HeadLen]})
	for n := len(all) - 1; n >= 0; n -= 13 {
		copyLog(t, c, l, l.End())
		rd, err := c.ReaderAfter(c.End())
		if err != nil {
			t.Fatal(err)
		}
		p := all[n].Pos
		if err := c.Rewind(p); err != nil {
			t.Fatal(err)
		}
		if _, err := rd.TryNext(); !errors.Is(err, ErrHistoryCut) {
			t.Fatal("reader of a rewound log:", err)
		}
		rd.Close()
		if c.End() != p || c.Durable() > p {
			t.Fatal(c.End(), c.Durable())
		}
		if d := cmp.Diff(all[:n+1], readAll(t, c, 0)); d != "" {
			t.Fatal(d)
		}
		if n%2 == 0 { // the same after it was closed
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			c = openLog(t, dir, Options{SegmentSize: minSegmentSize})
			if c.End() != p {
				t.Fatal(c.End(), p)
			}
		}
	}
	copyLog(t, c, l, l.End())
	if !bytes.Equal(rawLog(t, c), raw) {
		t.Fatal("the copy has other bytes")
	}
	if err := c.Rewind(l.End() + 1); !errors.Is(err, ErrHistoryCut) {
		t.Fatal(err)
	}
	if es, err := os.ReadDir(dir); err != nil || len(es) != len(c.Segments()) {
		t.Fatal(len(es), len(c.Segments()), err)
	}
}
