package kml

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mezzofs/mezzo/internal/testutil"
)

// samples is a record of every opcode, with every field in one of them.
func samples() []*Record {
	const t0 = 1795242147_123456789
	file, dir := MakeOID(3, 9), MakeOID(3, 8)
	at := func(i int, r Record) *Record {
		r.Pos = MakePosition(2, uint64(100+i))
		r.Time = t0 + int64(i)*1_000_000
		if r.Op != OpMark {
			r.UID, r.GID = 1000, 100
			r.Origin = Origin{3, uint64(i + 1)}
		}
		return &r
	}
	attr := func(mode uint32) Attr { return Attr{Mode: mode, UID: 1000, GID: 100, Mtime: t0} }
	victim := &Victim{OID: MakeOID(1, 77), Version: MakePosition(1, 55), DataVersion: MakePosition(1, 44),
		Attr: Attr{Mode: 0o120777, UID: 1, GID: 2, Nlink: 1, Size: 6, Mtime: -5, Atime: 3}, Target: "target"}
	digest := bytes.Repeat([]byte{0xd1}, 32)
	rs := []Record{
		{Op: OpMkdir, OID: dir, Parent: RootOID, Name: "dir", Attr: attr(0o42755), ParentMtime: t0},
		{Op: OpCreate, OID: file, Parent: dir, Name: "a\xff\nb", Attr: attr(0o100644), ParentMtime: t0 + 1,
			Xattrs: []Xattr{{"user.a", []byte("1")}, {"user.b", nil}}},
		{Op: OpSymlink, OID: MakeOID(3, 10), Parent: dir, Name: "l", Target: "a b", Attr: attr(0o120777)},
		{Op: OpMknod, OID: MakeOID(3, 11), Parent: dir, Name: "null", Attr: Attr{Mode: 0o20666, Rdev: 0x103, Mtime: t0}},
		{Op: OpLink, OID: file, Parent: RootOID, Name: "b", Base: Base{Pos: MakePosition(2, 101)}, ParentMtime: t0},
		{Op: OpUnlink, OID: victim.OID, Parent: RootOID, Name: "l2", Victim: victim, VictimBase: Base{Pos: MakePosition(1, 55)},
			Flags: FlagGone | FlagForeign, ParentMtime: t0 + 2},
		{Op: OpRmdir, OID: MakeOID(1, 5), Parent: RootOID, Name: "empty",
			Victim: &Victim{OID: MakeOID(1, 5), Attr: Attr{Mode: 0o40755}}, Flags: FlagGone},
		{Op: OpRename, OID: file, Parent: RootOID, Name: "b", NewParent: dir, NewName: "c", Victim: victim, Flags: FlagExchange,
			Base: Base{Seq: 2}, VictimBase: Base{Seq: 3}, ParentMtime: t0 + 3, NewParentMtime: t0 + 4},
		{Op: OpSetattr, OID: file, Mask: MaskMode | MaskUID | MaskMtime | MaskAtime, Attr: Attr{Mode: 0o100600, Mtime: 7, Atime: 8},
			Old: Attr{Mode: 0o100644, UID: 1000, Mtime: t0}, Base: Base{Pos: MakePosition(2, 104)}},
		{Op: OpSetxattr, OID: file, Name: "user.a", Value: []byte("2"), HadOld: true, OldValue: []byte("1")},
		{Op: OpRemovexattr, OID: file, Name: "user.a", HadOld: true, OldValue: []byte("2"), Flags: FlagConflict | FlagRecovered},
		{Op: OpStore, OID: file, Attr: Attr{Size: 1 << 33, Mtime: t0 + 5}, Extents: []Extent{{0, 4096}, {1 << 20, 1}}, Digest: digest},
		{Op: OpStore, OID: file, Attr: Attr{Size: 0, Mtime: t0 + 6}, Extents: []Extent{}},
		{Op: OpMark, Mark: MarkCommit, Base: Base{Pos: MakePosition(2, 112)}},
		{Op: OpMark, Mark: MarkSite, Site: 4, Name: "laptop", Value: digest[:16]},
		{Op: OpMark, Mark: MarkNote, Name: "before the move"},
		{Op: OpOptional | 7, OID: file, Flags: 1 << 14, Unknown: []byte{0xc0, 2, 'h', 'i'}},
	}
	var out []*Record
	for i, r := range rs {
		out = append(out, at(i, r))
	}
	epoch := at(len(rs), Record{Op: OpMark, Mark: MarkEpoch, Name: "restored", Value: bytes.Repeat([]byte{0xe0}, 16),
		Base: Base{Pos: MakePosition(2, 112)}})
	epoch.Pos = MakePosition(3, epoch.Pos.Recno())
	return append(out, epoch)
}

func TestGoldenRecords(t *testing.T) {
	var dump, js, txt bytes.Buffer
	crc, total := uint32(0), 0
	seen := map[Op]bool{}
	for _, r := range samples() {
		seen[r.Op] = true
		b, next, err := AppendRecord(nil, r, crc)
		if err != nil {
			t.Fatal(err)
		}
		got, n, crc2, err := ParseRecord(append(b, "behind it"...), crc)
		if err != nil || n != len(b) || crc2 != next {
			t.Fatal(n, err)
		}
		if d := cmp.Diff(r, got); d != "" {
			t.Fatal(d)
		}
		crc = next
		total += len(b)
		txt.Write(AppendText(nil, r))
		txt.WriteByte('\n')
		j, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		js.Write(append(j, '\n'))
		fmt.Fprintf(&dump, "%s %s, %d bytes\n%s\n", r.Pos, r.Op, len(b), hex.Dump(b))
	}
	for op := OpCreate; op <= OpMark; op++ {
		if !seen[op] {
			t.Errorf("no sample of %s", op)
		}
	}
	if avg := total / len(samples()); avg > 200 {
		t.Errorf("records take %d bytes on average", avg)
	}
	testutil.Golden(t, "records.hex", dump.Bytes())
	testutil.Golden(t, "records.txt", txt.Bytes())
	testutil.Golden(t, "records.json", js.Bytes())
}

// TestGoldenLog holds the bytes of a log in two segments, and reads back those
// that are checked in.
func TestGoldenLog(t *testing.T) {
	fileset := [16]byte{0xf0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	o := Options{Fileset: fileset, SegmentSize: 4096}
	dir := filepath.Join(t.TempDir(), "kml")
	l := openLog(t, dir, o)
	mark := &Record{Op: OpMark, Mark: MarkEpoch, Name: "init", Value: bytes.Repeat([]byte{7}, 16), Time: 1795242000_000000000}
	if err := l.Append(mark); err != nil {
		t.Fatal(err)
	}
	for _, r := range samples() {
		if r.Op != OpMark {
			r.Pos = 0
			if err := l.Append(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	commit := &Record{Op: OpMark, Mark: MarkCommit, Base: Base{Pos: l.End()}, Time: 1795242200_000000000}
	if err := l.Append(commit); err != nil {
		t.Fatal(err)
	}
	appendN(t, l, 0, 40)
	want := readAll(t, l, 0)
	for i := 1; i <= 2; i++ {
		b, err := os.ReadFile(segmentPath(dir, uint64(i)))
		if err != nil {
			t.Fatal(err)
		}
		testutil.Golden(t, filepath.Join("log", segmentName(uint64(i))), b)
	}
	if n := len(l.Segments()); n != 2 {
		t.Fatalf("%d segments", n)
	}
	g, err := Open(filepath.Join("testdata", "log"), Options{Fileset: fileset, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if d := cmp.Diff(want, readAll(t, g, 0)); d != "" {
		t.Fatal(d)
	}
	if g.LastCommit() != commit.Pos || g.EpochID() != [16]byte(bytes.Repeat([]byte{7}, 16)) {
		t.Fatal(g.LastCommit(), g.EpochID())
	}
}
