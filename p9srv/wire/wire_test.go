package wire_test

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

var (
	qid  = p9.QID{Type: p9.TypeDir, Version: 0x01020304, Path: 0x1112131415161718}
	attr = p9.Attr{
		Mode: 0o100644, UID: 1000, GID: 1001, NLink: 2, RDev: 0x0801, Size: 12345, BlockSize: 4096, Blocks: 32,
		ATimeSeconds: 1, ATimeNanoSeconds: 2, MTimeSeconds: 3, MTimeNanoSeconds: 4, CTimeSeconds: 5,
		CTimeNanoSeconds: 6, BTimeSeconds: 7, BTimeNanoSeconds: 8, Gen: 9, DataVersion: 10,
	}
	stat = wire.Stat{
		Type: 1, Dev: 2, QID: qid, Mode: wire.DMDevice | 0o644, Atime: 3, Mtime: 4, Length: 1 << 40, Name: "sda",
		UID: "me", GID: "us", MUID: "you", Extension: "b 8 0", NUID: 1000, NGID: 1001, NMUID: 1002,
	}
	plainStat = wire.Stat{QID: qid, Mode: wire.DMDir | 0o755, Atime: 3, Mtime: 4, Name: "d", UID: "1", GID: "2", MUID: "3", Plain: true}
	dirents   = wire.AppendDirent(wire.AppendDirent(nil,
		p9.Dirent{QID: qid, Offset: 1, Type: p9.QIDType(wire.DTDir), Name: "a"}),
		p9.Dirent{Offset: 1 << 40, Type: p9.QIDType(wire.DTLink), Name: "\xff long"})
)

// samples has every message, and both forms of those that have two.
func samples() []wire.Msg {
	return []wire.Msg{
		&wire.Rlerror{Errno: 2},
		&wire.Tstatfs{FID: 1},
		&wire.Rstatfs{Stat: p9.FSStat{Type: 0x01021997, BlockSize: 4096, Blocks: 1, BlocksFree: 2, BlocksAvailable: 3, Files: 4, FilesFree: 5, FSID: 6, NameLength: 255}},
		&wire.Tlopen{FID: 1, Flags: 0o2001},
		&wire.Rlopen{QID: qid, IOUnit: 8192},
		&wire.Tlcreate{FID: 1, Name: "new", Flags: 0o102, Mode: 0o4755, GID: 100},
		&wire.Rlcreate{QID: qid, IOUnit: 8192},
		&wire.Tsymlink{DFID: 1, Name: "link", Target: "../to", GID: 100},
		&wire.Rsymlink{QID: qid},
		&wire.Tmknod{DFID: 1, Name: "fifo", Mode: 0o10644, Major: 8, Minor: 1, GID: 100},
		&wire.Rmknod{QID: qid},
		&wire.Trename{FID: 1, DFID: 2, Name: "to"},
		&wire.Rrename{},
		&wire.Treadlink{FID: 1},
		&wire.Rreadlink{Target: "../to"},
		&wire.Tgetattr{FID: 1, Mask: p9.AttrMask{Mode: true, Size: true, DataVersion: true}},
		&wire.Rgetattr{Valid: p9.AttrMaskAll, QID: qid, Attr: attr},
		&wire.Tsetattr{FID: 1, Valid: p9.SetAttrMask{Permissions: true, Size: true, MTime: true, MTimeNotSystemTime: true}, Attr: p9.SetAttr{Permissions: 0o6755, UID: 1, GID: 2, Size: 3, ATimeSeconds: 4, ATimeNanoSeconds: 5, MTimeSeconds: 6, MTimeNanoSeconds: 7}},
		&wire.Rsetattr{},
		&wire.Txattrwalk{FID: 1, NewFID: 2, Name: "user.a"},
		&wire.Rxattrwalk{Size: 5},
		&wire.Txattrcreate{FID: 1, Name: "user.a", Size: 5, Flags: 2},
		&wire.Rxattrcreate{},
		&wire.Treaddir{FID: 1, Offset: 1 << 40, Count: 8168},
		&wire.Rreaddir{Data: dirents},
		&wire.Tfsync{FID: 1, Datasync: 1},
		&wire.Tfsync{FID: 1, Short: true},
		&wire.Rfsync{},
		&wire.Tlock{FID: 1, Type: p9.WriteLock, Flags: p9.LockFlagsBlock, Start: 2, Length: 3, PID: 4, Client: "host"},
		&wire.Rlock{Status: p9.LockStatusBlocked},
		&wire.Tgetlock{FID: 1, Type: p9.ReadLock, Start: 2, Length: 3, PID: 4, Client: "host"},
		&wire.Rgetlock{Type: p9.Unlock, Start: 2, Length: 3, PID: 4, Client: "host"},
		&wire.Tlink{DFID: 1, FID: 2, Name: "again"},
		&wire.Rlink{},
		&wire.Tmkdir{DFID: 1, Name: "dir", Mode: 0o2755, GID: 100},
		&wire.Rmkdir{QID: qid},
		&wire.Trenameat{OldDFID: 1, OldName: "from", NewDFID: 2, NewName: "to"},
		&wire.Rrenameat{},
		&wire.Tunlinkat{DFID: 1, Name: "gone", Flags: wire.UnlinkRemoveDir},
		&wire.Runlinkat{},
		&wire.Tversion{Msize: 8192, Version: wire.Version9P2000L},
		&wire.Rversion{Msize: 8192, Version: wire.VersionUnknown},
		&wire.Tauth{AFID: 1, Uname: "me", Aname: "/x", UID: 1000},
		&wire.Tauth{AFID: 1, Uname: "me", Aname: "/x", UID: p9.NoUID, Plain: true},
		&wire.Rauth{QID: qid},
		&wire.Tattach{FID: 1, AFID: wire.NoFID, Uname: "me", Aname: "/x", UID: 1000},
		&wire.Tattach{FID: 1, AFID: wire.NoFID, Uname: "me", Aname: "/x", UID: p9.NoUID, Plain: true},
		&wire.Rattach{QID: qid},
		&wire.Tflush{OldTag: 7},
		&wire.Rflush{},
		&wire.Twalk{FID: 1, NewFID: 2},
		&wire.Twalk{FID: 1, NewFID: 2, Names: []string{"usr", "", "..", "\xff"}},
		&wire.Rwalk{},
		&wire.Rwalk{QIDs: []p9.QID{qid, {Path: 1}}},
		&wire.Tread{FID: 1, Offset: 1 << 40, Count: 4096},
		&wire.Rread{Data: []byte("data")},
		&wire.Twrite{FID: 1, Offset: 1 << 40, Data: []byte("data")},
		&wire.Rwrite{Count: 4},
		&wire.Tclunk{FID: 1},
		&wire.Rclunk{},
		&wire.Tremove{FID: 1},
		&wire.Rremove{},
		&wire.Rerror{Ename: "File exists", Errno: 17},
		&wire.Rerror{Ename: "File exists", Plain: true},
		&wire.Topen{FID: 1, Mode: wire.OpenRdWr | wire.OpenTrunc},
		&wire.Ropen{QID: qid, IOUnit: 8192},
		&wire.Tcreate{FID: 1, Name: "link", Perm: wire.DMSymlink | 0o777, Extension: "../to"},
		&wire.Tcreate{FID: 1, Name: "dir", Perm: wire.DMDir | 0o755, Plain: true},
		&wire.Rcreate{QID: qid, IOUnit: 8192},
		&wire.Tstat{FID: 1},
		&wire.Rstat{Stat: stat},
		&wire.Rstat{Stat: plainStat},
		&wire.Twstat{FID: 1, Stat: stat},
		&wire.Twstat{FID: 1, Stat: plainStat},
		&wire.Rwstat{},
	}
}

// TestGolden holds the bytes of every message still, and their text.
func TestGolden(t *testing.T) {
	var b bytes.Buffer
	for i, m := range samples() {
		fmt.Fprintf(&b, "%s\n\t%x\n", wire.Text(wire.Tag(i), m), m.Append(nil, wire.Tag(i)))
	}
	testutil.Golden(t, "messages.golden", b.Bytes())
}

func TestRoundTrip(t *testing.T) {
	for i, m := range samples() {
		frame := m.Append([]byte("before"), wire.Tag(i))[len("before"):]
		tag, got, err := wire.Unmarshal(frame)
		if err != nil || tag != wire.Tag(i) {
			t.Errorf("%v: tag %d, %v", m.MsgType(), tag, err)
			continue
		}
		// Decode overwrites whatever was in the struct.
		again := wire.New(m.MsgType())
		for range 2 {
			if err := again.Decode(frame[wire.HeaderSize:]); err != nil {
				t.Error(err)
			}
		}
		opt := cmp.FilterPath(func(cmp.Path) bool { return true }, cmp.Comparer(func(a, b []string) bool {
			return len(a) == len(b) && (len(a) == 0 || reflect.DeepEqual(a, b))
		}))
		for _, g := range []wire.Msg{got, again} {
			if d := cmp.Diff(m, g, opt, cmp.Comparer(func(a, b []p9.QID) bool {
				return len(a) == len(b) && (len(a) == 0 || reflect.DeepEqual(a, b))
			})); d != "" {
				t.Errorf("%v differs (-sent +read):\n%s", m.MsgType(), d)
			}
		}
	}
}

// TestCut decodes every message short of each number of bytes and with one too
// many: all are errors, but for the forms that are optional.
func TestCut(t *testing.T) {
	for _, m := range samples() {
		body := m.Append(nil, 1)[wire.HeaderSize:]
		for n := range len(body) {
			err := wire.New(m.MsgType()).Decode(body[:n])
			if err == nil && !optional(m, len(body)-n) {
				t.Errorf("%v without its last %d bytes is taken", m.MsgType(), len(body)-n)
			}
			if err != nil && !errors.Is(err, wire.ErrMessage) {
				t.Errorf("%v cut: %v does not wrap ErrMessage", m.MsgType(), err)
			}
		}
		if err := wire.New(m.MsgType()).Decode(append(body, 0)); !errors.Is(err, wire.ErrMessage) {
			t.Errorf("%v with a byte behind it: %v", m.MsgType(), err)
		}
	}
}

// optional says that a message may end n bytes earlier.
func optional(m wire.Msg, n int) bool {
	switch m := m.(type) {
	case *wire.Rerror:
		return n == 4
	case *wire.Tcreate:
		return n == 2+len(m.Extension)
	case *wire.Tfsync, *wire.Tauth, *wire.Tattach:
		return n == 4
	}
	return false
}

func TestTypesAreComplete(t *testing.T) {
	have := map[wire.Type]bool{}
	for _, m := range samples() {
		have[m.MsgType()] = true
	}
	for n := range 256 {
		typ := wire.Type(n)
		m := wire.New(typ)
		if (m != nil) != have[typ] {
			t.Errorf("%v: New has it: %v, samples have it: %v", typ, m != nil, have[typ])
		}
		if m != nil && m.MsgType() != typ {
			t.Errorf("New(%v) is a %v", typ, m.MsgType())
		}
		if named := !strings.HasPrefix(typ.String(), "type "); m != nil && !named {
			t.Errorf("type %d has no name", n)
		}
	}
}

func TestBadFrames(t *testing.T) {
	twalk := (&wire.Twalk{Names: make([]string, 16)}).Append(nil, 1)
	twalk[15] = 17
	for name, frame := range map[string][]byte{
		"empty":          {},
		"short header":   {7, 0, 0, 0, 120, 1},
		"size too small": {6, 0, 0, 0, 120, 1, 0},
		"size too large": {8, 0, 0, 0, 121, 1, 0},
		"behind its end": {7, 0, 0, 0, 121, 1, 0, 0},
		"unknown type":   {7, 0, 0, 0, 99, 1, 0},
		"17 names":       append(twalk, 0, 0),
		"huge string":    {15, 0, 0, 0, 100, 1, 0, 0, 0, 0, 0, 0xff, 0xff, 'a', 'b'},
		"huge count":     {11, 0, 0, 0, 117, 1, 0, 0xff, 0xff, 0xff, 0xff},
	} {
		if len(frame) >= 4 && name == "17 names" {
			frame[0] = byte(len(frame))
		}
		if _, m, err := wire.Unmarshal(frame); !errors.Is(err, wire.ErrMessage) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
}

func TestHeaders(t *testing.T) {
	data := []byte("some data")
	want := (&wire.Rread{Data: data}).Append(nil, 5)
	if got := append(wire.AppendReadHeader(nil, wire.TypeRread, 5, len(data)), data...); !bytes.Equal(got, want) {
		t.Errorf("AppendReadHeader: % x, want % x", got, want)
	}
	in := append(make([]byte, wire.ReadOverhead), data...)
	if wire.PutReadHeader(in, wire.TypeRread, 5, len(data)); !bytes.Equal(in, want) {
		t.Errorf("PutReadHeader: % x, want % x", in, want)
	}
	want = (&wire.Twrite{FID: 1, Offset: 2, Data: data}).Append(nil, 5)
	if got := append(wire.AppendWriteHeader(nil, 5, 1, 2, len(data)), data...); !bytes.Equal(got, want) {
		t.Errorf("AppendWriteHeader: % x, want % x", got, want)
	}
}

func TestDirPacker(t *testing.T) {
	var p wire.DirPacker
	before := []byte("before")
	p.Begin(before, 5, 2*wire.DirentSize("ab"))
	e := p9.Dirent{QID: qid, Offset: 3, Type: 4, Name: "ab"}
	if !p.Empty() || !p.Add(e) || p.Empty() || !p.Add(e) || p.Add(p9.Dirent{}) {
		t.Fatal("two entries of four bytes' names should have filled it")
	}
	got := p.Finish()
	_, m, err := wire.Unmarshal(got[len(before):])
	if err != nil {
		t.Fatal(err)
	}
	data := m.(*wire.Rreaddir).Data
	for range 2 {
		var d p9.Dirent
		if d, data, err = wire.NextDirent(data); err != nil || d != e {
			t.Fatalf("%v, %v", d, err)
		}
	}
	if len(data) != 0 {
		t.Fatalf("%d bytes left", len(data))
	}
	if _, _, err := wire.NextDirent(make([]byte, 23)); !errors.Is(err, wire.ErrMessage) {
		t.Errorf("an entry of 23 bytes: %v", err)
	}
	p.Begin(before, 5, 100)
	p.Add(e)
	if got := p.Abort(); string(got) != "before" {
		t.Errorf("Abort left %q", got)
	}
}

func TestLongStrings(t *testing.T) {
	long := strings.Repeat("x", 1<<16)
	if err := wire.CheckString(long); !errors.Is(err, wire.ErrMessage) {
		t.Error(err)
	}
	if err := wire.CheckString(long[1:]); err != nil {
		t.Error(err)
	}
	if _, _, err := wire.Unmarshal((&wire.Rreadlink{Target: long}).Append(nil, 1)); err != nil {
		t.Errorf("a string cut to what fits does not read: %v", err)
	}
}

// FuzzUnmarshal checks that whatever is taken is written back the same, byte
// for byte.
func FuzzUnmarshal(f *testing.F) {
	for i, m := range samples() {
		f.Add(m.Append(nil, wire.Tag(i)))
	}
	f.Add([]byte{7, 0, 0, 0, 121, 1})
	f.Fuzz(func(t *testing.T, frame []byte) {
		tag, m, err := wire.Unmarshal(frame)
		if err != nil {
			if !errors.Is(err, wire.ErrMessage) {
				t.Fatalf("%v does not wrap ErrMessage", err)
			}
			return
		}
		_ = wire.Text(tag, m)
		again := m.Append(nil, tag)
		switch m.(type) {
		case *wire.Tgetattr, *wire.Rgetattr, *wire.Tsetattr:
			// Bits of masks that have no name are dropped.
			if len(again) != len(frame) {
				t.Fatalf("%v: %d bytes became %d", m.MsgType(), len(frame), len(again))
			}
			return
		}
		if !bytes.Equal(frame, again) {
			t.Fatalf("%v: % x became % x", m.MsgType(), frame, again)
		}
	})
}

// FuzzDirents checks that entries read end where the data does.
func FuzzDirents(f *testing.F) {
	f.Add(dirents)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		var again []byte
		for rest := data; len(rest) > 0; {
			d, r, err := wire.NextDirent(rest)
			if err != nil {
				return
			}
			again, rest = wire.AppendDirent(again, d), r
		}
		if !bytes.Equal(data, again) {
			t.Fatalf("% x became % x", data, again)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	for _, m := range []wire.Msg{
		&wire.Tgetattr{FID: 1}, &wire.Twalk{Names: []string{"usr", "share", "doc"}}, &wire.Twrite{Data: make([]byte, 4096)},
	} {
		b.Run(m.MsgType().String(), func(b *testing.B) {
			body := m.Append(nil, 1)[wire.HeaderSize:]
			into := wire.New(m.MsgType())
			b.ReportAllocs()
			for b.Loop() {
				if err := into.Decode(body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
