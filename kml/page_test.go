package kml_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
)

func asPageAttr(a kml.Attr) pageAttr {
	return pageAttr{Mode: uint64(a.Mode), UID: uint64(a.UID), GID: uint64(a.GID), Size: a.Size, Nlink: uint64(a.Nlink),
		Rdev: a.Rdev, Mtime: a.Mtime, Atime: a.Atime}
}

// asPage is a record of the package as the page's reader would give it.
func asPage(r *kml.Record) *pageRecord {
	p := &pageRecord{
		Op: uint16(r.Op), Flags: uint16(r.Flags), Pos: uint64(r.Pos), Time: r.Time, UID: r.UID, GID: r.GID,
		OriginSite: uint32(r.Origin.Site), OriginSeq: r.Origin.Seq, OID: uint64(r.OID), Parent: uint64(r.Parent),
		Name: r.Name, NewParent: uint64(r.NewParent), NewName: r.NewName, Mask: uint64(r.Mask),
		Attr: asPageAttr(r.Attr), Old: asPageAttr(r.Old), Target: r.Target, Value: string(r.Value), HadOld: r.HadOld,
		OldValue: string(r.OldValue), BasePos: uint64(r.Base.Pos), BaseSeq: r.Base.Seq,
		VictimPos: uint64(r.VictimBase.Pos), VictimSeq: r.VictimBase.Seq, ParentMtime: r.ParentMtime,
		NewParentMtime: r.NewParentMtime, HasExtents: r.Extents != nil, Digest: string(r.Digest),
		Mark: uint64(r.Mark), Site: uint64(r.Site), Unknown: string(r.Unknown),
	}
	for _, x := range r.Xattrs {
		p.Xattrs = append(p.Xattrs, pageXattr{x.Name, string(x.Value)})
	}
	for _, e := range r.Extents {
		p.Extents = append(p.Extents, pageExtent{e.Off, e.Len})
	}
	if v := r.Victim; v != nil {
		p.Victim = &pageVictim{uint64(v.OID), uint64(v.Version), uint64(v.DataVersion), asPageAttr(v.Attr), v.Target}
	}
	return p
}

// readBoth reads the segments of dir with both readers.
func readBoth(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.kml"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	var all []byte
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	second, off, err := readPage(all)
	if err != nil {
		t.Fatalf("offset %d: %v", off, err)
	}
	l, err := kml.Open(dir, kml.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r, err := l.ReaderAfter(l.Start())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	n := 0
	for ; ; n++ {
		rec, err := r.TryNext()
		if err == io.EOF {
			break
		}
		if err != nil || n >= len(second) {
			t.Fatalf("record %d of %d: %v", n, len(second), err)
		}
		if d := cmp.Diff(asPage(rec), second[n]); d != "" {
			t.Fatal(d)
		}
	}
	if n != len(second) {
		t.Fatalf("%d records, the page's reader has %d", n, len(second))
	}
}

func TestPageReaderGoldenLog(t *testing.T) { readBoth(t, filepath.Join("testdata", "log")) }

// TestPageReaderGoldenRecords reads the records of records.hex, which follow
// each other from a CRC of 0 on.
func TestPageReaderGoldenRecords(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "records.hex"))
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^[0-9a-f]{8}  (.{48})`)
	var b []byte
	for _, m := range line.FindAllStringSubmatch(string(text), -1) {
		h, err := hex.DecodeString(strings.ReplaceAll(m[1], " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, h...)
	}
	st := pageState{started: true}
	crc, n := uint32(0), 0
	for ; len(b) > 0; n++ {
		want, size, next, err := kml.ParseRecord(b, crc)
		if err != nil {
			t.Fatal(err)
		}
		st.pos = uint64(want.Pos) - 1
		got, k, err := st.record(b)
		if err != nil || k != size || st.crc != next {
			t.Fatal(want.Pos, k, err)
		}
		if d := cmp.Diff(asPage(want), got); d != "" {
			t.Fatal(d)
		}
		b, crc = b[size:], next
	}
	if n < 17 {
		t.Fatalf("only %d records in records.hex", n)
	}
}

// randomRecord has any opcode and any fields.
func randomRecord(rng *rand.Rand) *kml.Record {
	num := func() uint64 { return rng.Uint64() >> rng.IntN(64) }
	str := func() string {
		b := make([]byte, rng.IntN(40))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return string(b)
	}
	maybe := func(p *uint64) {
		if rng.IntN(3) == 0 {
			*p = num()
		}
	}
	attr := func() (a kml.Attr) {
		if rng.IntN(4) > 0 {
			a = kml.Attr{Mode: uint32(num()), UID: uint32(num()), GID: uint32(num()), Nlink: uint32(num() >> 40), Rdev: num(),
				Size: num(), Mtime: int64(num()), Atime: -int64(num() >> 1)}
		}
		return a
	}
	r := &kml.Record{
		Op: kml.Op(1 + rng.IntN(13)), Flags: kml.Flags(rng.Uint32()) & 0xff03, Time: int64(num()),
		UID: uint32(num()), GID: uint32(num()), OID: kml.OID(num()), Name: str(), NewName: str(), Target: str(),
		Origin: kml.Origin{Site: kml.SiteID(rng.IntN(1 << 20)), Seq: num() >> 20}, Mask: kml.AttrMask(num()),
		Attr: attr(), Old: attr(), Value: []byte(str()), HadOld: rng.IntN(2) == 0, OldValue: []byte(str()),
		ParentMtime: int64(num()), NewParentMtime: -int64(num() >> 1), Digest: []byte(str()),
		Mark: kml.MarkKind(rng.IntN(5)), Site: kml.SiteID(rng.IntN(1 << 20)),
	}
	for _, p := range []*uint64{(*uint64)(&r.Parent), (*uint64)(&r.NewParent), (*uint64)(&r.Base.Pos), &r.Base.Seq,
		(*uint64)(&r.VictimBase.Pos), &r.VictimBase.Seq} {
		maybe(p)
	}
	if r.Op == kml.OpMark && (r.Mark == kml.MarkCommit || r.Mark == kml.MarkEpoch) {
		r.Base.Pos = 0 // or it would speak of what is durable
	}
	if rng.IntN(8) == 0 {
		r.Op |= kml.OpOptional
	}
	for range rng.IntN(3) {
		r.Xattrs = append(r.Xattrs, kml.Xattr{Name: str(), Value: []byte(str())})
		r.Extents = append(r.Extents, kml.Extent{Off: num(), Len: num()})
	}
	if rng.IntN(3) == 0 {
		r.Victim = &kml.Victim{OID: kml.OID(num()), Version: kml.Position(num()), DataVersion: kml.Position(num()),
			Attr: attr(), Target: str()}
	}
	if rng.IntN(4) == 0 {
		v := str()
		r.Unknown = append([]byte{byte(0x80 | rng.IntN(128)), byte(len(v))}, v...)
	}
	return r
}

// TestPageReaderRandomLog lets both readers read a log of random records in
// many segments and epochs, and then again with a byte changed: what precedes
// the damage is the same, and nothing wrong is taken for right.
func TestPageReaderRandomLog(t *testing.T) {
	rng := testutil.Rand(t)
	dir := filepath.Join(t.TempDir(), "kml")
	l, err := kml.Open(dir, kml.Options{SegmentSize: 16 << 10, Fileset: [16]byte{5}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range 800 {
		if i%100 == 0 {
			if _, err := l.StartEpoch(fmt.Sprint("epoch ", i), [16]byte{byte(i)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Append(randomRecord(rng)); err != nil {
			t.Fatal(err)
		}
		if i%50 == 0 {
			if err := l.Commit(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(l.Segments()) < 5 {
		t.Fatal(l.Segments())
	}
	readBoth(t, dir)
	name := l.Segments()[0].Path
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	whole, _, err := readPage(good)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		at := rng.IntN(len(good))
		b := bytes.Clone(good)
		b[at] ^= 1 << rng.IntN(8)
		rs, bad, err := readPage(b)
		if err == nil || bad > at || len(rs) > len(whole) {
			t.Fatalf("byte %d changed: %d records, first bad byte %d, %v", at, len(rs), bad, err)
		}
		if d := cmp.Diff(whole[:len(rs)], rs); len(rs) > 0 && d != "" {
			t.Fatal(d)
		}
	}
}
