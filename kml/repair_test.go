package kml

import (
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
)

var errTest = errors.New("test fault")

// memLog is a log in m, not closed: tests end it by a crash.
func memLog(t testing.TB, m *memFS, o Options) *Log {
	t.Helper()
	o.fs = m
	l, err := Open("mem", o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// kill is the process dying: files stay as they are. What was allocated ahead
// stays with them.
func kill(m *memFS) *memFS {
	n := newMemFS()
	m.mu.Lock()
	defer m.mu.Unlock()
	n.space, n.noAlloc = m.space, m.noAlloc
	for name, f := range m.files {
		n.files[name] = &memFile{fs: n, name: name, data: append([]byte{}, f.data...), disk: append([]byte{}, f.disk...), alloc: f.alloc}
		if m.durable[name] == f {
			n.durable[name] = n.files[name]
		}
	}
	return n
}

// markedLog is an epoch mark, three records, a commit mark, three records.
func markedLog(t testing.TB, o Options) (*memFS, []*Record, *Log) {
	m := newMemFS()
	l := memLog(t, m, o)
	if _, err := l.StartEpoch("init", [16]byte{1}); err != nil {
		t.Fatal(err)
	}
	appendN(t, l, 0, 3)
	if err := l.Commit(); err != nil {
		t.Fatal(err)
	}
	appendN(t, l, 3, 3)
	return m, readAll(t, l, 0), l
}

func TestTornTailIsCut(t *testing.T) {
	m, want, l := markedLog(t, Options{})
	size := int(l.Size())
	var ends []int // of each record in the file
	off := headerLen
	for _, r := range want {
		n, err := EncodedLen(nil, r)
		if err != nil {
			t.Fatal(err)
		}
		off += n
		ends = append(ends, off)
	}
	if off != size {
		t.Fatal(off, size)
	}
	for cut := ends[4]; cut <= size; cut++ {
		k := kill(m)
		f := k.files[segmentName(1)]
		f.data = f.data[:cut]
		whole := 0
		for whole < len(ends) && ends[whole] <= cut {
			whole++
		}
		l := memLog(t, k, Options{})
		if d := cmp.Diff(want[:whole], readAll(t, l, 0)); d != "" {
			t.Fatal(cut, d)
		}
		rep := l.Repaired()
		if torn := cut != ends[whole-1]; rep.Torn != torn || rep.Bytes != int64(cut-ends[whole-1]) ||
			torn && (rep.After != want[whole-1].Pos || rep.Offset != int64(ends[whole-1])) {
			t.Fatal(cut, rep)
		}
		appendN(t, l, 10, 1)
		if got := readAll(t, l, 0); len(got) != whole+1 {
			t.Fatal(cut, len(got))
		}
	}
}

// TestEveryByteCounts turns every byte of a log over: before the last commit
// mark it must stop the log, behind it it must end the log there.
func TestEveryByteCounts(t *testing.T) {
	m, want, l := markedLog(t, Options{})
	data := m.files[segmentName(1)].data
	mark := headerLen
	for _, r := range want[:4] {
		n, _ := EncodedLen(nil, r)
		mark += n
	}
	if l.LastCommit() != want[4].Pos {
		t.Fatal(l.LastCommit())
	}
	for i := range data {
		k := kill(m)
		k.files[segmentName(1)].data[i] ^= 0x41
		l, err := Open("mem", Options{fs: k})
		if i < mark {
			var d *DamageError
			if errors.As(err, &d) && d.Segment != "" && d.Offset <= int64(i) {
				continue
			}
			if i >= 8 && i < 16 && errors.Is(err, ErrNewer) {
				continue // the version of the segment
			}
			t.Fatalf("byte %d: %v", i, err)
		}
		if err != nil {
			t.Fatalf("byte %d: %v", i, err)
		}
		got := readAll(t, l, 0)
		if len(got) >= len(want) || l.Repaired().Err == nil {
			t.Fatalf("byte %d: %d records, repaired %v", i, len(got), l.Repaired())
		}
		if d := cmp.Diff(want[:len(got)], got); d != "" {
			t.Fatal(i, d)
		}
	}
}

func TestMachineCrashKeepsWhatIsDurable(t *testing.T) {
	m, want, _ := markedLog(t, Options{SegmentSize: minSegmentSize})
	for keep := range 500 {
		k := kill(m)
		k.crash(keep)
		l := memLog(t, k, Options{SegmentSize: minSegmentSize})
		got := readAll(t, l, 0)
		if len(got) < 5 {
			t.Fatal(keep, len(got))
		}
		if d := cmp.Diff(want[:len(got)], got); d != "" {
			t.Fatal(keep, d)
		}
		if l.LastCommit() != want[4].Pos || l.Durable() != want[4].Pos {
			t.Fatal(l.LastCommit(), l.Durable())
		}
		if _, err := l.CutAfter(l.Durable()-1, "crash", [16]byte{2}); err != nil && !errors.Is(err, ErrInvalid) {
			t.Fatal(err)
		}
		mark, err := l.CutAfter(l.LastCommit(), "crash", [16]byte{2})
		if err != nil {
			t.Fatal(err)
		}
		if mark.Pos != MakePosition(2, 6) && mark.Pos != MakePosition(3, 6) {
			t.Fatal(mark.Pos)
		}
		appendN(t, l, 50, 2)
		k.crash(0)
		l = memLog(t, k, Options{SegmentSize: minSegmentSize})
		if l.End() != mark.Pos || l.EpochID() != [16]byte{2} || l.Durable() != mark.Pos {
			t.Fatal(l.End(), l.EpochID(), l.Durable())
		}
	}
}

// TestCutAfterIsCrashSafe stops CutAfter at every call of the file system, as a
// killed process or a crashed machine, and looks whether what was durable and
// was known to be durable still is.
func TestCutAfterIsCrashSafe(t *testing.T) {
	build := func() (*memFS, *Log) {
		m := newMemFS()
		l := memLog(t, m, Options{SegmentSize: minSegmentSize})
		if _, err := l.StartEpoch("init", [16]byte{1}); err != nil {
			t.Fatal(err)
		}
		appendN(t, l, 0, 60)
		up := l.End()
		appendN(t, l, 60, 60)
		if err := l.CommitUpTo(up); err != nil { // the mark lies segments behind what it covers
			t.Fatal(err)
		}
		appendN(t, l, 120, 60)
		if len(l.Segments()) < 4 || l.Durable() != up {
			t.Fatal(len(l.Segments()), l.Durable())
		}
		return m, l
	}
	done := false
	for stop := 0; !done; stop++ {
		for _, machine := range []bool{false, true} {
			m, l := build()
			up := l.Durable()
			want := readAll(t, l, 0)
			calls := 0
			m.fail = func(string, string) error {
				if calls++; calls > stop {
					return errTest
				}
				return nil
			}
			_, err := l.CutAfter(up, "crash", [16]byte{2})
			if done = err == nil; !done && !errors.Is(err, errTest) {
				t.Fatal(err)
			}
			if err := l.Append(create(1)); calls > 1 && !done && !errors.Is(err, errTest) {
				// A cut that failed halfway stops the log.
				t.Fatal(stop, err)
			}
			m.fail = nil
			if machine {
				m.crash(0)
			} else {
				m = kill(m)
			}
			l = memLog(t, m, Options{SegmentSize: minSegmentSize})
			if l.Durable() < up || l.at.durable < up {
				t.Fatalf("stop %d, machine %v: durable %s, was %s", stop, machine, l.Durable(), up)
			}
			got := readAll(t, l, 0)
			if d := cmp.Diff(want[:up.Recno()], got[:up.Recno()]); d != "" {
				t.Fatal(d)
			}
		}
	}
}

// TestCutDoesNotHoldUpReaders: whoever asks for the state of a log that is being
// cut does not wait for the disk, and a reader that begins meanwhile is void.
func TestCutDoesNotHoldUpReaders(t *testing.T) {
	m := newMemFS()
	l := testLog(t, Options{SegmentSize: minSegmentSize, fs: m})
	appendN(t, l, 0, 100)
	var calls []string
	var during *Reader
	m.fail = func(call, _ string) error {
		calls = append(calls, call)
		if !l.pub.TryLock() {
			t.Errorf("%s: done under the lock that readers of the log's state take", call)
			return nil
		}
		l.pub.Unlock()
		if call == "write" && during == nil {
			// The file system's lock is held here: a segment that is open needs none.
			seg, w := l.last(), waypoint{after: l.End(), off: l.last().size.Load(), crc: l.EndCRC()}
			seg.hold()
			during = &Reader{l: l, seg: seg, w: window{f: seg.f}, off: w.off, pos: w.after, crc: w.crc, gen: l.cutGen.Load()}
		}
		return nil
	}
	_, err := l.CutAfter(10, "test", [16]byte{3})
	m.fail = nil
	if err != nil || len(calls) < 5 {
		t.Fatalf("%q: %v", calls, err)
	}
	if during == nil {
		t.Fatal("nothing was written")
	}
	defer during.Close()
	if _, err := during.TryNext(); !errors.Is(err, ErrHistoryCut) {
		t.Errorf("a reader that began meanwhile: %v", err)
	}
}

func TestReadersOfACutLog(t *testing.T) {
	l := testLog(t, Options{SegmentSize: minSegmentSize})
	appendN(t, l, 0, 100)
	if len(l.Segments()) < 2 {
		t.Fatal(len(l.Segments()))
	}
	r, err := l.ReaderAfter(90)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rev, err := l.ReverseFrom(90)
	if err != nil {
		t.Fatal(err)
	}
	defer rev.Close()
	if _, err := l.CutAfter(10, "test", [16]byte{3}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(t.Context()); !errors.Is(err, ErrHistoryCut) {
		t.Fatal(err)
	}
	if _, err := rev.Prev(); !errors.Is(err, ErrHistoryCut) {
		t.Fatal(err)
	}
	appendN(t, l, 200, 100)
	got := readAll(t, l, 0)
	if len(got) != 111 || got[10].Pos != MakePosition(1, 11) || got[10].Mark != MarkEpoch || got[110].Name != "file299" {
		t.Fatal(len(got))
	}
	if _, err := l.ReaderAfter(11); !errors.Is(err, ErrHistoryCut) {
		t.Fatal(err)
	}
	if err := l.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.CutAfter(10, "test", [16]byte{3}); !errors.Is(err, ErrInvalid) {
		t.Fatal(err)
	}
}

// TestFaults runs random appends, commits and faults, and after each crash
// looks whether exactly what was appended, and all that was durable, is there.
func TestFaults(t *testing.T) {
	rnd := testutil.Rand(t)
	rounds := 25 / raceFactor
	if testutil.Long() {
		rounds = 2000
	}
	for round := range rounds {
		m := newMemFS()
		o := Options{SegmentSize: minSegmentSize, Prealloc: 4096}
		m.noAlloc = round%4 == 0
		l := memLog(t, m, o)
		var want []*Record
		var durable Position
		n := 0
		for range 60 {
			fault := rnd.IntN(10) == 0
			left := rnd.IntN(3)
			m.fail = func(call, name string) error {
				if !fault {
					return nil
				}
				if left--; left < 0 {
					return fmt.Errorf("%s %s: %w", call, name, errTest)
				}
				return nil
			}
			var batch []*Record
			for range 1 + rnd.IntN(80) {
				batch = append(batch, create(n))
				n++
			}
			err := l.Append(batch...)
			if err == nil {
				want = append(want, batch...)
			} else if !errors.Is(err, errTest) {
				t.Fatal(err)
			}
			if rnd.IntN(5) == 0 {
				before := l.End()
				err := l.Commit()
				if l.End() != before {
					want = append(want, last(t, l))
				}
				if err == nil {
					durable = l.Durable()
				}
			}
			m.fail = nil
			if d := cmp.Diff(len(want), len(readAll(t, l, 0))); d != "" {
				t.Fatal(round, d)
			}
			spoiled := l.fail.Load() != nil
			if !spoiled && rnd.IntN(10) != 0 {
				continue
			}
			if rnd.IntN(2) == 0 {
				m = kill(m)
			} else {
				m.crash(rnd.IntN(5000))
			}
			l = memLog(t, m, o)
			got := readAll(t, l, 0)
			// A batch that was refused but could not be taken back may be there.
			if len(got) > len(want) && !spoiled {
				t.Fatalf("round %d: %d records, %d appended", round, len(got), len(want))
			}
			both := min(len(got), len(want))
			for i := range both { // cmp alone would take seconds
				if !reflect.DeepEqual(want[i], got[i]) {
					t.Fatal(round, cmp.Diff(want[i], got[i]))
				}
			}
			if l.End() < durable || l.Durable() < durable {
				t.Fatalf("round %d: end %s, durable %s, was %s", round, l.End(), l.Durable(), durable)
			}
			want = got
		}
	}
}

// last is the last record of l.
func last(t testing.TB, l *Log) *Record {
	t.Helper()
	r, err := l.ReverseFrom(l.End())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rec, err := r.Prev()
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func TestFullDisk(t *testing.T) {
	for _, noAlloc := range []bool{false, true} {
		m := newMemFS()
		m.noAlloc = noAlloc
		m.space = 64 << 10
		o := Options{SegmentSize: 16 << 10, Prealloc: 4096}
		l := memLog(t, m, o)
		res, err := l.Reserve(600)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for ; err == nil; n++ {
			err = l.Append(create(n))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		if _, err := l.Reserve(1 << 20); !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		if got := readAll(t, l, 0); len(got) != n-1 {
			t.Fatal(len(got), n)
		}
		if err := res.Append(create(n), create(n+1)); err != nil {
			t.Fatal("a reserved record did not fit", err)
		}
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
		m.space = 1 << 20
		appendN(t, l, n+2, 1)
		l = memLog(t, kill(m), o)
		if got := readAll(t, l, 0); len(got) != n+2 {
			t.Fatal(len(got), n)
		}
	}
}

func TestSyncErrorStopsTheLog(t *testing.T) {
	m := newMemFS()
	l := memLog(t, m, Options{})
	appendN(t, l, 0, 2)
	m.fail = func(call, _ string) error {
		if call == "sync" {
			return unix.EIO
		}
		return nil
	}
	if err := l.Commit(); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	m.fail = nil
	for _, f := range []func() error{l.Sync, l.Commit, func() error { return l.Append(create(3)) }} {
		if err := f(); !errors.Is(err, unix.EIO) {
			t.Fatal(err)
		}
	}
	if len(readAll(t, l, 0)) != 2 || l.Durable() != 0 {
		t.Fatal("reading must go on")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestMissingSegment(t *testing.T) {
	for _, commit := range []bool{false, true} {
		for gap := 1; gap <= 3; gap++ {
			m := newMemFS()
			o := Options{SegmentSize: minSegmentSize}
			l := memLog(t, m, o)
			appendN(t, l, 0, 120)
			if commit {
				if err := l.Commit(); err != nil {
					t.Fatal(err)
				}
			}
			for len(l.Segments()) < 4 {
				appendN(t, l, 0, 10)
			}
			delete(m.files, segmentName(uint64(gap)))
			o.fs = m
			l, err := Open("mem", o)
			var d *DamageError
			switch {
			case commit || gap == 1:
				if !errors.As(err, &d) && gap != 1 {
					t.Fatalf("gap %d: %v", gap, err)
				}
			case err != nil:
				t.Fatalf("gap %d: %v", gap, err)
			case len(l.Segments()) != gap-1 || len(m.files) != gap-1:
				t.Fatalf("gap %d: %d segments", gap, len(l.Segments()))
			}
		}
	}
}
