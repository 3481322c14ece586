package kml

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mezzofs/mezzo/internal/testutil"
)

// scanned is every record s gives and every damage.
func scanned(t testing.TB, s *Scanner) (rs []*Record, bad []*Damage) {
	t.Helper()
	for {
		w, err := s.Next()
		var d *Damage
		switch {
		case err == io.EOF:
			return rs, bad
		case errors.As(err, &d):
			bad = append(bad, d)
		case err != nil:
			t.Fatal(err)
		default:
			r, err := w.Record()
			if err != nil {
				t.Fatal(err)
			}
			rs = append(rs, r)
		}
	}
}

// scanFixture is a log of some segments and commits, its bytes segment by
// segment, and its records.
func scanFixture(t testing.TB) (dir string, segs [][]byte, want []*Record) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "kml")
	l := openLog(t, dir, Options{SegmentSize: 4096, Fileset: [16]byte{1}})
	if _, err := l.StartEpoch("init", [16]byte{2}); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		appendN(t, l, i*10, 10)
		if i < 9 {
			if err := l.Commit(); err != nil {
				t.Fatal(err)
			}
		}
	}
	want = readAll(t, l, 0)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for i := 1; ; i++ {
		b, err := os.ReadFile(segmentPath(dir, uint64(i)))
		if err != nil {
			break
		}
		segs = append(segs, b)
	}
	if len(segs) < 3 {
		t.Fatal(len(segs))
	}
	return dir, segs, want
}

func TestScanReadsFolderAndStream(t *testing.T) {
	dir, segs, want := scanFixture(t)
	folder, err := OpenScanner(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	one := filepath.Join(t.TempDir(), "one")
	if err := os.WriteFile(one, bytes.Join(segs, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := OpenScanner(one)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for i, s := range []*Scanner{folder, file, NewScanner("pipe", bytes.NewReader(bytes.Join(segs, nil)))} {
		got, bad := scanned(t, s)
		if len(bad) > 0 {
			t.Fatal(i, bad)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatal(i, d)
		}
		if p, _ := s.Pos(); p != want[len(want)-1].Pos || s.EpochID() != [16]byte{2} || s.Fileset() != [16]byte{1} {
			t.Fatal(i, p, s.EpochID())
		}
	}
	if _, err := OpenScanner(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// damages are ways in which a log goes bad. Each changes segs and says which
// segment, and the first byte in it, that is not what it was.
func damages() map[string]func(segs [][]byte) (out [][]byte, seg, off int) {
	block := func(b []byte, i int) []byte { return b[i*1024 : (i+1)*1024] }
	return map[string]func(segs [][]byte) ([][]byte, int, int){
		"zeroed block": func(s [][]byte) ([][]byte, int, int) { clear(block(s[1], 1)); return s, 1, 1024 },
		"lost block":   func(s [][]byte) ([][]byte, int, int) { s[1] = append(s[1][:1024], s[1][2048:]...); return s, 1, 1024 },
		"swapped": func(s [][]byte) ([][]byte, int, int) {
			c := bytes.Clone(block(s[1], 1))
			copy(block(s[1], 1), block(s[1], 2))
			copy(block(s[1], 2), c)
			return s, 1, 1024
		},
		"doubled block": func(s [][]byte) ([][]byte, int, int) {
			s[1] = append(append(bytes.Clone(s[1][:2048]), block(s[1], 1)...), s[1][2048:]...)
			return s, 1, 2048
		},
		"cut short":     func(s [][]byte) ([][]byte, int, int) { s[1] = s[1][:1000]; return s, 1, 1000 },
		"cut to zero":   func(s [][]byte) ([][]byte, int, int) { s[1] = nil; return s, 1, 0 },
		"header lost":   func(s [][]byte) ([][]byte, int, int) { clear(s[1][:headerLen]); return s, 1, 0 },
		"first header":  func(s [][]byte) ([][]byte, int, int) { s[0][20] ^= 1; return s, 0, 0 },
		"segment twice": func(s [][]byte) ([][]byte, int, int) { return [][]byte{s[0], s[1], s[1], s[2]}, 2, 0 },
		"order":         func(s [][]byte) ([][]byte, int, int) { return [][]byte{s[0], s[2], s[1]}, 1, 0 },
		"missing":       func(s [][]byte) ([][]byte, int, int) { return [][]byte{s[0], s[2]}, 1, 0 },
		"tail bits": func(s [][]byte) ([][]byte, int, int) {
			n := len(s) - 1
			s[n][len(s[n])-20] ^= 4
			return s, n, len(s[n]) - 20
		},
	}
}

// checkDamaged scans damaged segments, as a folder or one stream, and wants the
// damage reported at its place, what precedes it read, and nothing wrong given
// as right.
func checkDamaged(t *testing.T, segs [][]byte, seg, off int, want []*Record, stream bool) {
	t.Helper()
	var s *Scanner
	if stream {
		for _, b := range segs[:seg] {
			off += len(b)
		}
		s = NewScanner("stream", bytes.NewReader(bytes.Join(segs, nil)))
	} else {
		dir := t.TempDir()
		for i, b := range segs {
			if err := os.WriteFile(segmentPath(dir, uint64(i+1)), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		if s, err = OpenScanner(dir); err != nil {
			t.Fatal(err)
		}
		defer s.Close()
	}
	rep, err := Verify(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Damage) == 0 {
		t.Fatal("nothing reported")
	}
	d := rep.Damage[0]
	name := segmentName(uint64(seg + 1))
	if stream {
		name = "stream"
	}
	if filepath.Base(d.Segment) != name || d.Offset > int64(off) || d.Offset < int64(off)-1024 {
		t.Fatalf("reported at %s offset %d, is at %s %d: %v", d.Segment, d.Offset, name, off, d.Err)
	}
	if d.Torn() && d.Mark == 0 && seg < len(segs)-1 {
		t.Fatalf("damage in the middle passes as torn: %+v", d)
	}
	known := map[Position]*Record{}
	for _, r := range want {
		known[r.Pos] = r
	}
	if stream {
		s = NewScanner("stream", bytes.NewReader(bytes.Join(segs, nil)))
	} else if s, err = OpenScanner(filepath.Dir(d.Segment)); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, _ := scanned(t, s)
	for i, r := range got {
		if diff := cmp.Diff(known[r.Pos], r); diff != "" {
			t.Fatal(diff)
		}
		if i > 0 && r.Pos <= got[i-1].Pos {
			t.Fatalf("%s after %s", r.Pos, got[i-1].Pos)
		}
	}
	for i := 0; i < len(want) && want[i].Pos <= d.After; i++ {
		if i >= len(got) || got[i].Pos != want[i].Pos {
			t.Fatalf("%s precedes the damage and was not read", want[i].Pos)
		}
	}
}

func cloneAll(segs [][]byte) (out [][]byte) {
	for _, b := range segs {
		out = append(out, bytes.Clone(b))
	}
	return out
}

func TestVerifyReportsDamage(t *testing.T) {
	_, segs, want := scanFixture(t)
	segs = segs[:3]
	for name, harm := range damages() {
		for _, stream := range []bool{false, true} {
			t.Run(fmt.Sprint(name, stream), func(t *testing.T) {
				bad, seg, off := harm(cloneAll(segs))
				checkDamaged(t, bad, seg, off, want, stream)
			})
		}
	}
}

// TestVerifyFindsEveryFlip turns one bit of a log after the other, at random.
func TestVerifyFindsEveryFlip(t *testing.T) {
	_, segs, want := scanFixture(t)
	rng := testutil.Rand(t)
	for range 100 {
		bad := cloneAll(segs)
		seg := rng.IntN(len(bad))
		off := rng.IntN(len(bad[seg]))
		bad[seg][off] ^= 1 << rng.IntN(8)
		if string(bad[seg][:8]) == headerMagic && off >= 8 && off < 12 {
			continue // a version of the format that is not known yet
		}
		checkDamaged(t, bad, seg, off, want, rng.IntN(2) == 0)
	}
}

func TestVerifyTellsCoveredFromTorn(t *testing.T) {
	_, segs, _ := scanFixture(t)
	verify := func(b []byte) *Report {
		t.Helper()
		rep, err := Verify(t.Context(), NewScanner("log", bytes.NewReader(b)))
		if err != nil {
			t.Fatal(err)
		}
		return rep
	}
	b := bytes.Join(segs, nil)
	if rep := verify(b); len(rep.Damage) > 0 || rep.Records != 110 || rep.Segments != len(segs) || rep.Durable == 0 {
		t.Fatalf("%+v", rep)
	}
	rep := verify(b[:len(b)-9])
	if len(rep.Damage) != 1 || !rep.Damage[0].Torn() || rep.Records != 109 {
		t.Fatalf("%+v", rep)
	}
	b[200] ^= 1
	rep = verify(b)
	if d := rep.Damage[0]; len(rep.Damage) != 1 || d.Torn() || d.Mark == 0 || d.Next == 0 || d.Bytes == 0 {
		t.Fatalf("%+v", d)
	}
}

// TestScanBesideWriter scans a log again and again while it is written.
func TestScanBesideWriter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kml")
	l := openLog(t, dir, Options{SegmentSize: 16 << 10})
	appendN(t, l, 0, 1)
	var done atomic.Bool
	go func() {
		defer done.Store(true)
		for i := range 3000 {
			if err := l.Append(create(i)); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for last := Position(0); ; {
		ended := done.Load()
		s, err := OpenScanner(dir)
		if err != nil {
			t.Fatal(err)
		}
		rep, err := Verify(t.Context(), s)
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		for _, d := range rep.Damage {
			if !d.Torn() {
				t.Fatal(d)
			}
		}
		if rep.End < last {
			t.Fatal(rep.End, last)
		}
		if last = rep.End; ended {
			if last != l.End() {
				t.Fatal(last, l.End())
			}
			return
		}
	}
}

// TestScanOfGrowingLog has the log grow by a few bytes before each look, over the
// ends of segments too.
func TestScanOfGrowingLog(t *testing.T) {
	_, segs, _ := scanFixture(t)
	rng := testutil.Rand(t)
	for range 4 {
		dir := t.TempDir()
		seg, off := 0, 0
		grow := func(n int) {
			for ; n > 0 && seg < len(segs); seg, off = seg+1, 0 {
				end := min(off+n, len(segs[seg]))
				if err := os.WriteFile(filepath.Join(dir, segmentName(uint64(seg+1))), segs[seg][:end], 0o600); err != nil {
					t.Fatal(err)
				}
				n -= end - off
				if off = end; end < len(segs[seg]) {
					return
				}
				// The spare one stands ready, empty.
				if seg+1 < len(segs) {
					if err := os.WriteFile(filepath.Join(dir, segmentName(uint64(seg+2))), nil, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		grow(1 + rng.IntN(8000))
		for seg < len(segs) {
			s, err := OpenScanner(dir)
			if err != nil {
				t.Fatal(err)
			}
			rep, hooked := &Report{}, (*bufio.Reader)(nil)
			for d := (*Damage)(nil); ; {
				grow(rng.IntN(20))
				if s.br != nil && s.br != hooked && !s.ended {
					s.br = bufio.NewReaderSize(&growing{s.br, func() { grow(rng.IntN(100)) }}, scanBuffer)
					hooked = s.br
				}
				_, err := s.Next()
				if err == io.EOF {
					break
				}
				if errors.As(err, &d) {
					rep.Damage = append(rep.Damage, d)
				} else if err != nil {
					t.Fatal(err)
				}
			}
			if len(rep.Damage) > 1 || len(rep.Damage) == 1 && !rep.Damage[0].Torn() {
				t.Fatalf("%d damages, first: %v, next %s", len(rep.Damage), rep.Damage[0], rep.Damage[0].Next)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// growing has its file grow whenever its end was read.
type growing struct {
	io.Reader
	grow func()
}

func (g *growing) Read(b []byte) (int, error) {
	n, err := g.Reader.Read(b)
	if err == io.EOF {
		g.grow()
	}
	return n, err
}

// FuzzScan scans any bytes: it ends, and what it gives is records.
func FuzzScan(f *testing.F) {
	var all []byte
	for i := range 2 {
		b, err := os.ReadFile(filepath.Join("testdata", "log", segmentName(uint64(i+1))))
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, b...)
	}
	f.Add(all)
	f.Add(all[96:])
	f.Add(all[:3000])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			t.Skip()
		}
		rep, err := Verify(t.Context(), NewScanner("fuzz", bytes.NewReader(b)))
		if err != nil && !errors.Is(err, ErrNewer) {
			t.Fatal(err)
		}
		covered := rep.Bytes + int64(rep.Segments)*headerLen
		for _, d := range rep.Damage {
			covered += d.Bytes
			if d.Offset < 0 || d.Offset+d.Bytes > int64(len(b)) {
				t.Fatalf("%+v", d)
			}
		}
		if err == nil && len(rep.Damage) < maxDamage && covered != int64(len(b)) {
			t.Fatalf("%d bytes of %d accounted for", covered, len(b))
		}
	})
}
