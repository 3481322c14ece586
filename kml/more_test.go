package kml

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mezzofs/mezzo/internal/testutil"
)

// genRecord draws a record with any fields, whether its opcode uses them or
// not.
func genRecord(t *rapid.T) *Record {
	u64 := rapid.OneOf(rapid.Just[uint64](0), rapid.Uint64())
	str := func(n string) string { return string(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, n)) }
	blob := func(n string) []byte { return clone(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, n)) }
	attr := func(n string) Attr {
		if rapid.Bool().Draw(t, n+"?") {
			return Attr{}
		}
		return Attr{rapid.Uint32().Draw(t, n), rapid.Uint32().Draw(t, n), rapid.Uint32().Draw(t, n), rapid.Uint32().Draw(t, n),
			u64.Draw(t, n), u64.Draw(t, n), rapid.Int64().Draw(t, n), rapid.Int64().Draw(t, n)}
	}
	r := &Record{
		Pos: Position(u64.Draw(t, "pos")), Op: Op(rapid.IntRange(1, 13).Draw(t, "op")),
		Flags: Flags(rapid.Uint16().Draw(t, "flags")) &^ (mustFlags &^ knownMustFlags), Time: rapid.Int64().Draw(t, "time"),
		UID: rapid.Uint32().Draw(t, "uid"), GID: rapid.Uint32().Draw(t, "gid"),
		Origin: Origin{SiteID(rapid.Uint32Range(0, uint32(MaxSite)).Draw(t, "site")), u64.Draw(t, "seq") & MaxCounter},
		OID:    OID(u64.Draw(t, "oid")), Parent: OID(u64.Draw(t, "parent")), Name: str("name"),
		NewParent: OID(u64.Draw(t, "newparent")), NewName: str("newname"),
		Mask: AttrMask(rapid.Uint16().Draw(t, "mask")), Attr: attr("attr"), Target: str("target"), Value: blob("value"),
		HadOld: rapid.Bool().Draw(t, "had"), Old: attr("old"), OldValue: blob("oldvalue"),
		Base: Base{Position(u64.Draw(t, "base")), u64.Draw(t, "base")}, VictimBase: Base{Position(u64.Draw(t, "vb")), u64.Draw(t, "vb")},
		ParentMtime: rapid.Int64().Draw(t, "pm"), NewParentMtime: rapid.Int64().Draw(t, "npm"),
		Digest: blob("digest"), Mark: MarkKind(rapid.Uint8().Draw(t, "mark")), Site: SiteID(rapid.Uint32Range(0, uint32(MaxSite)).Draw(t, "s")),
	}
	for range rapid.IntRange(0, 3).Draw(t, "xattrs") {
		r.Xattrs = append(r.Xattrs, Xattr{str("xn"), blob("xv")})
	}
	if rapid.Bool().Draw(t, "victim") {
		r.Victim = &Victim{OID(u64.Draw(t, "v")), Position(u64.Draw(t, "v")), Position(u64.Draw(t, "v")), attr("va"),
			strings.Repeat(str("vt"), rapid.SampledFrom([]int{1, 1, 400, 1000}).Draw(t, "long"))}
	}
	if rapid.Bool().Draw(t, "extents") {
		r.Extents = []Extent{}
		for range rapid.IntRange(0, 5).Draw(t, "n") {
			r.Extents = append(r.Extents, Extent{u64.Draw(t, "off"), u64.Draw(t, "len")})
		}
	}
	return r
}

func TestRecordRoundTrip(t *testing.T) {
	testutil.Check(t, func(t *rapid.T) {
		want := genRecord(t)
		prev := rapid.Uint32().Draw(t, "prev")
		b, crc, err := AppendRecord([]byte("x"), want, prev)
		if err != nil {
			t.Fatal(err)
		}
		b = b[1:]
		got, n, crc2, err := ParseRecord(b, prev)
		if err != nil || n != len(b) || crc != crc2 {
			t.Fatal(n, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatal(d)
		}
		if _, _, _, err := ParseRecord(b, prev+1); !errors.Is(err, ErrChain) {
			t.Fatal(err)
		}
		cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut")
		if _, _, _, err := ParseRecord(b[:cut], prev); !errors.Is(err, ErrShort) {
			t.Fatal(cut, err)
		}
	})
}

func TestAppendRecordRefuses(t *testing.T) {
	big := bytes.Repeat([]byte{1}, MaxRecord-MinRecord-4)
	for _, c := range []struct {
		name string
		r    Record
		want error
	}{
		{"no opcode", Record{}, ErrInvalid},
		{"origin site", Record{Op: OpCreate, Origin: Origin{MaxSite + 1, 1}}, ErrInvalid},
		{"origin seq", Record{Op: OpCreate, Origin: Origin{1, MaxCounter + 1}}, ErrInvalid},
		{"site", Record{Op: OpMark, Site: MaxSite + 1}, ErrInvalid},
		{"flags", Record{Op: OpCreate, Flags: 1 << 5}, ErrInvalid},
		{"large", Record{Op: OpSetxattr, Value: append(big, 1)}, ErrTooLarge},
		{"largest", Record{Op: OpSetxattr, Value: big}, nil},
	} {
		b, _, err := AppendRecord([]byte("x"), &c.r, 0)
		if !errors.Is(err, c.want) || (err != nil && string(b) != "x") {
			t.Errorf("%s: %v, %d bytes", c.name, err, len(b))
		}
		if err == nil && len(b) != MaxRecord+1 {
			t.Errorf("%s: %d bytes", c.name, len(b))
		}
	}
}

func TestNewerMustBeUnderstood(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(b []byte)
		want error
	}{
		{"opcode", func(b []byte) { b[6] = 14 }, ErrNewer},
		{"optional opcode", func(b []byte) { b[6], b[7] = 14, 0x80 }, nil},
		{"flag", func(b []byte) { b[40] = 0x80 }, ErrNewer},
		{"optional flag", func(b []byte) { b[41] = 0x80 }, nil},
		{"reserved", func(b []byte) { b[42] = 1 }, ErrNewer},
		{"format", func(b []byte) { b[5] = 2 }, ErrNewer},
		{"field", func(b []byte) { b[prefixLen] = 0x7f }, ErrNewer},
		{"optional field", func(b []byte) { b[prefixLen] = 0xff }, nil},
		{"no opcode", func(b []byte) { b[6] = 0 }, ErrCorrupt},
		{"length of a field", func(b []byte) { b[prefixLen+1] = 0x7f }, ErrCorrupt},
	} {
		b, _, err := AppendRecord(nil, create(1), 0)
		if err != nil {
			t.Fatal(err)
		}
		c.edit(b)
		seal(b, 0)
		r, _, _, err := ParseRecord(b, 0)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err == nil { // what is not known is kept
			again, _, err := AppendRecord(nil, r, 0)
			if err != nil || len(again) != len(b) {
				t.Errorf("%s: %d bytes, %d before, %v", c.name, len(again), len(b), err)
			}
		}
	}
}

// TestNewerRecordStopsTheReader has a reader stand before what it must
// understand and does not, while raw readers go on.
func TestNewerRecordStopsTheReader(t *testing.T) {
	l := testLog(t, Options{})
	appendN(t, l, 0, 1)
	if err := l.Append(&Record{Op: 99}); err != nil {
		t.Fatal(err)
	}
	appendN(t, l, 1, 1)
	r, err := l.ReaderAfter(1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 2 {
		if _, err := r.TryNext(); !errors.Is(err, ErrNewer) || r.Pos() != 1 {
			t.Fatal(err, r.Pos())
		}
	}
	w, err := r.TryNextRaw()
	if err != nil || w.Op != 99 || w.Pos != 2 {
		t.Fatal(w, err)
	}
	if rec, err := r.TryNext(); err != nil || rec.Pos != 3 {
		t.Fatal(err)
	}
}

func TestReaderAfter(t *testing.T) {
	l := testLog(t, Options{SegmentSize: minSegmentSize})
	recs := appendN(t, l, 0, 200)
	if _, err := l.StartEpoch("test", [16]byte{1}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []Position{0, 1, 39, 40, 41, 120, 199, 200, MakePosition(1, 201)} {
		rest := readAll(t, l, p)
		if len(rest) != 201-int(p.Recno()) {
			t.Fatal(p, len(rest))
		}
		if p < 200 && rest[0].Pos != p+1 {
			t.Fatal(p, rest[0].Pos)
		}
	}
	for _, p := range []Position{201, MakePosition(1, 5), MakePosition(1, 202), MakePosition(2, 1), math.MaxUint64} {
		if _, err := l.ReaderAfter(p); !errors.Is(err, ErrHistoryCut) {
			t.Fatal(p, err)
		}
		if _, err := l.CRCAt(p); !errors.Is(err, ErrHistoryCut) {
			t.Fatal(p, err)
		}
	}
	crc := uint32(0)
	for _, r := range recs {
		_, next, err := AppendRecord(nil, r, crc)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := l.CRCAt(r.Pos); err != nil || got != next {
			t.Fatal(r.Pos, got, err)
		}
		crc = next
	}
}

func TestDropBefore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kml")
	o := Options{SegmentSize: minSegmentSize}
	l := openLog(t, dir, o)
	if _, err := l.StartEpoch("init", [16]byte{5}); err != nil {
		t.Fatal(err)
	}
	appendN(t, l, 0, 200)
	slow, err := l.ReaderAfter(0)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	segs := l.Segments()
	if n, err := l.DropBefore(segs[2].After + 1); err != nil || n != 2 {
		t.Fatal(n, err)
	}
	if l.Start() != segs[2].After || l.First() != segs[2].After+1 || l.Segments()[0] != segs[2] {
		t.Fatal(l.Start(), l.First())
	}
	for _, p := range []Position{0, segs[2].After - 1} {
		if _, err := l.ReaderAfter(p); !errors.Is(err, ErrTruncated) {
			t.Fatal(err)
		}
	}
	n := 0
	for err = nil; err == nil; n++ {
		_, err = slow.TryNext()
	}
	if !errors.Is(err, ErrTruncated) || slow.Pos() != segs[1].After {
		t.Fatal(err, slow.Pos())
	}
	if got := readAll(t, l, l.Start()); len(got) != 201-int(l.Start().Recno()) {
		t.Fatal(len(got))
	}
	rev, err := l.ReverseFrom(l.End())
	if err != nil {
		t.Fatal(err)
	}
	defer rev.Close()
	for n, err = 0, nil; err == nil; n++ {
		_, err = rev.Prev()
	}
	if err != io.EOF || n != 202-int(l.Start().Recno()) {
		t.Fatal(n, err)
	}
	end, crc := l.EndAndCRC()
	l.Close()
	l = openLog(t, dir, o)
	if e, c := l.EndAndCRC(); e != end || c != crc || l.EpochID() != [16]byte{5} || l.LastCommit() != MakePosition(1, 1) {
		t.Fatal(e, c, l.EpochID(), l.LastCommit())
	}
	if n, err := l.DropBefore(math.MaxUint64); err != nil || len(l.Segments()) != 1 {
		t.Fatal(n, err)
	}
}

func TestRetain(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	l := testLog(t, Options{SegmentSize: minSegmentSize, Now: func() time.Time { return now }})
	for i := range 200 {
		r := create(i)
		r.Time = 0
		if err := l.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	var upTo Position
	ready := func(p Position) error { upTo = p; return nil }
	all := len(l.Segments())
	retain := func(size int64, age time.Duration, want int) {
		t.Helper()
		if n, err := l.Retain(size, age, ready); n != want || err != nil || (want == 0) != (upTo == 0) {
			t.Fatal(n, upTo, err)
		}
		upTo = 0
	}
	now = now.Add(31 * 24 * time.Hour)
	retain(0, 0, 0)
	retain(1, 0, 0) // nothing is durable
	if err := l.Commit(); err != nil {
		t.Fatal(err)
	}
	retain(1, 32*24*time.Hour, 0)
	refusal := errors.New("not yet")
	if n, err := l.Retain(1, 0, func(Position) error { return refusal }); n != 0 || !errors.Is(err, refusal) || len(l.Segments()) != all {
		t.Fatal(n, err)
	}
	retain(l.Size()-minSegmentSize, 1, 1)
	retain(1, 0, all-2)
	if len(l.Segments()) != 1 {
		t.Fatal(l.Segments())
	}
	retain(1, 1, 0)
}

func TestExpired(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	l := testLog(t, Options{SegmentSize: minSegmentSize, Now: func() time.Time { return now }})
	add := func(n int) {
		for i := range n {
			r := create(i)
			r.Time = 0
			if err := l.Append(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(100)
	now = now.Add(time.Hour)
	old := len(l.Segments())
	add(100)
	for _, c := range []struct {
		age  time.Duration
		keep int64
		want Position
	}{
		{2 * time.Hour, 0, 0},
		{30 * time.Minute, 1 << 30, 0},
		{30 * time.Minute, 0, l.Segments()[old-1].After + 1},
		{30 * time.Minute, l.Size() - minSegmentSize, l.Segments()[1].After + 1},
	} {
		if p, err := l.Expired(c.age, c.keep); err != nil || p != c.want {
			t.Errorf("%v, %d: %s, %v; want %s", c.age, c.keep, p, err, c.want)
		}
	}
}

func TestReplicaHasTheSameBytes(t *testing.T) {
	o := Options{SegmentSize: minSegmentSize, Fileset: [16]byte{1}}
	a, b := testLog(t, o), testLog(t, o)
	if _, err := a.StartEpoch("init", [16]byte{7}); err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		appendN(t, a, i*10, 10)
		if i%7 == 0 {
			if err := a.Commit(); err != nil {
				t.Fatal(err)
			}
		}
	}
	recs := readAll(t, a, 0)
	for len(recs) > 0 {
		n := min(17, len(recs))
		if err := b.AppendReplica(recs[:n]...); err != nil {
			t.Fatal(err)
		}
		recs = recs[n:]
	}
	if err := b.AppendReplica(create(1)); !errors.Is(err, ErrHistoryCut) {
		t.Fatal(err)
	}
	if got, want := raw(t, b), raw(t, a); !bytes.Equal(got, want) {
		t.Fatal(len(got), len(want))
	}
	// A copy that begins in the middle goes on with the same chain.
	from := Position(MakePosition(1, 100))
	crc, err := a.CRCAt(from)
	if err != nil {
		t.Fatal(err)
	}
	o.After, o.AfterCRC = from, crc
	c := testLog(t, o)
	if err := c.AppendReplica(readAll(t, a, from)...); err != nil {
		t.Fatal(err)
	}
	if c.EndCRC() != a.EndCRC() || c.Start() != from {
		t.Fatal(c.EndCRC(), a.EndCRC())
	}
}

// raw is the log as one file, read in odd pieces.
func raw(t *testing.T, l *Log) []byte {
	t.Helper()
	var out []byte
	buf := make([]byte, 1000)
	for {
		n, err := l.ReadAt(buf, int64(len(out)))
		out = append(out, buf[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if int64(len(out)) != l.Size() {
		t.Fatal(len(out), l.Size())
	}
	var files []byte
	for _, s := range l.Segments() {
		b, err := os.ReadFile(s.Path)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, b...)
	}
	if !bytes.Equal(out, files) {
		t.Fatal("differs from its segments")
	}
	return out
}

func TestGroupCommit(t *testing.T) {
	l := testLog(t, Options{})
	var wg sync.WaitGroup
	const callers, each = 16, 20
	for range callers {
		wg.Go(func() {
			for range each {
				r := create(1)
				if err := l.Append(r); err != nil {
					t.Error(err)
				}
				if err := l.Commit(); err != nil {
					t.Error(err)
				}
				if l.Durable() < r.Pos {
					t.Errorf("durable %s, committed %s", l.Durable(), r.Pos)
				}
			}
		})
	}
	wg.Wait()
	s := l.Stats()
	if s.CommitCalls != callers*each || s.Commits == 0 || s.Commits > s.CommitCalls {
		t.Fatalf("%+v", s)
	}
	if s.Records != callers*each+s.Commits {
		t.Fatalf("%+v", s)
	}
}

func TestCloseWakesReaders(t *testing.T) {
	testutil.CheckLeaks(t)
	l := testLog(t, Options{})
	r, err := l.ReaderAfter(0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make(chan error)
	go func() {
		_, err := r.Next(t.Context())
		got <- err
	}()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if err := l.Append(create(1)); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReadOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kml")
	if _, err := Open(dir, Options{ReadOnly: true}); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	l := openLog(t, dir, Options{Fileset: [16]byte{1}})
	want := appendN(t, l, 0, 3)
	l.Close()
	path := filepath.Join(dir, segmentName(1))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	torn := append(b, b[headerLen:headerLen+50]...)
	if err := os.WriteFile(path, torn, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{ReadOnly: true, Fileset: [16]byte{2}}); !errors.Is(err, ErrFileset) {
		t.Fatal(err)
	}
	ro := openLog(t, dir, Options{ReadOnly: true})
	if d := cmp.Diff(want, readAll(t, ro, 0)); d != "" || !ro.Repaired().Torn {
		t.Fatal(d)
	}
	for _, f := range []func() error{ro.Sync, ro.Commit, func() error { return ro.Append(create(3)) },
		func() error { _, err := ro.DropBefore(3); return err }} {
		if err := f(); !errors.Is(err, ErrReadOnly) {
			t.Fatal(err)
		}
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, torn) {
		t.Fatal("changed by reading", err)
	}
}

func TestPositionText(t *testing.T) {
	for _, c := range []struct {
		s  string
		p  Position
		ok bool
	}{
		{"0.0", 0, true},
		{"2.77", MakePosition(2, 77), true},
		{"65535.281474976710655", math.MaxUint64, true},
		{"65536.0", 0, false}, {"0.281474976710656", 0, false}, {"1", 0, false}, {"", 0, false},
		{"-1.2", 0, false}, {"1.2.3", 0, false}, {" 1.2", 0, false},
	} {
		p, err := ParsePosition(c.s)
		if (err == nil) != c.ok || p != c.p || c.ok && p.String() != c.s {
			t.Errorf("%q: %s, %v", c.s, p, err)
		}
	}
	o := MakeOID(MaxSite, MaxCounter)
	if got, err := ParseOID(o.String()); got != o || err != nil {
		t.Fatal(got, err)
	}
}
