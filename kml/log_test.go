package kml

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// testLog is a log in a folder of its own, closed at the test's end.
func testLog(t testing.TB, o Options) *Log {
	t.Helper()
	return openLog(t, filepath.Join(t.TempDir(), "kml"), o)
}

func openLog(t testing.TB, dir string, o Options) *Log {
	t.Helper()
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// create is the i-th of a row of like records.
func create(i int) *Record {
	return &Record{Op: OpCreate, OID: MakeOID(1, uint64(i+2)), Parent: RootOID, Name: fmt.Sprintf("file%d", i),
		Attr: Attr{Mode: 0o100644, UID: 1000, GID: 1000, Mtime: 1763700000_000000000 + int64(i)}, Time: 1763700000_000000000}
}

func appendN(t testing.TB, l *Log, from, n int) []*Record {
	t.Helper()
	var rs []*Record
	for i := range n {
		rs = append(rs, create(from+i))
	}
	if err := l.Append(rs...); err != nil {
		t.Fatal(err)
	}
	return rs
}

// readAll is every record after p.
func readAll(t testing.TB, l *Log, p Position) []*Record {
	t.Helper()
	r, err := l.ReaderAfter(p)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var rs []*Record
	for {
		rec, err := r.TryNext()
		if err == io.EOF {
			return rs
		}
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, rec)
	}
}

func TestAppendAndReadBack(t *testing.T) {
	for _, size := range []int64{0, 4096} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "kml")
			o := Options{SegmentSize: size, Fileset: [16]byte{1, 2, 3}}
			l := openLog(t, dir, o)
			mark, err := l.StartEpoch("init", [16]byte{9})
			if err != nil {
				t.Fatal(err)
			}
			want := []*Record{mark}
			for i := range 300 {
				want = append(want, appendN(t, l, i*3, 3)...)
			}
			check := func(l *Log) {
				t.Helper()
				if d := cmp.Diff(want, readAll(t, l, 0)); d != "" {
					t.Fatal(d)
				}
				for i, r := range want {
					if r.Pos != MakePosition(1, uint64(i+1)) {
						t.Fatalf("record %d is at %s", i, r.Pos)
					}
				}
				if l.End() != want[len(want)-1].Pos || l.First() != want[0].Pos {
					t.Fatalf("first %s, end %s", l.First(), l.End())
				}
				rev, err := l.ReverseFrom(l.End())
				if err != nil {
					t.Fatal(err)
				}
				defer rev.Close()
				for i := len(want) - 1; i >= 0; i-- {
					r, err := rev.Prev()
					if err != nil {
						t.Fatal(err)
					}
					if d := cmp.Diff(want[i], r); d != "" {
						t.Fatal(d)
					}
				}
				if r, err := rev.Prev(); err != io.EOF {
					t.Fatal(r, err)
				}
			}
			check(l)
			crc := l.EndCRC()
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = openLog(t, dir, o)
			if l.EndCRC() != crc || l.EpochID() != [16]byte{9} || l.Epoch() != 1 {
				t.Fatal("state changed by opening again")
			}
			check(l)
			want = append(want, appendN(t, l, 1000, 1)...)
			check(l)
			if r := l.Repaired(); r != (Repair{}) {
				t.Fatal(r)
			}
		})
	}
}

func TestFollow(t *testing.T) {
	l := testLog(t, Options{SegmentSize: 8192})
	const writers, each, readers = 4, 500, 4
	var wg sync.WaitGroup
	for range readers {
		r, err := l.ReaderAfter(0)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer r.Close()
			for i := range writers * each {
				rec, err := r.Next(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				if rec.Pos.Recno() != uint64(i+1) {
					t.Errorf("%s, want number %d", rec.Pos, i+1)
					return
				}
			}
		})
	}
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := l.Append(create(w*each + i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	r, err := l.ReaderAfter(l.End())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestCommit(t *testing.T) {
	l := testLog(t, Options{})
	appendN(t, l, 0, 5)
	if l.Durable() != 0 {
		t.Fatal(l.Durable())
	}
	if err := l.CommitUpTo(3); err != nil {
		t.Fatal(err)
	}
	if l.Durable() != 3 || l.LastCommit() != 6 {
		t.Fatal(l.Durable(), l.LastCommit())
	}
	for range 3 { // one mark, and nothing when nothing is new
		if err := l.Commit(); err != nil {
			t.Fatal(err)
		}
		if l.Durable() != 7 || l.LastCommit() != 7 || l.End() != 7 {
			t.Fatal(l.Durable(), l.LastCommit(), l.End())
		}
	}
	if err := l.CommitUpTo(8); !errors.Is(err, ErrHistoryCut) {
		t.Fatal(err)
	}
}

func TestReserveAppend(t *testing.T) {
	l := testLog(t, Options{SegmentSize: 8192})
	for i := range 500 {
		res, err := l.Reserve(1024)
		if err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			appendN(t, l, i, 1)
		}
		if err := res.Append(create(i)); err != nil {
			t.Fatal(err)
		}
		res.Release()
		res.Release()
	}
	if l.reserved != 0 {
		t.Fatal(l.reserved)
	}
}
