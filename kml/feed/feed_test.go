package feed

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mezzofs/mezzo/kml"
)

func rec(op kml.Op, name string) *kml.Record {
	return &kml.Record{Op: op, Pos: kml.MakePosition(2, 77), OID: kml.MakeOID(3, 9), Parent: kml.RootOID, Name: name,
		Attr: kml.Attr{Mode: 0o100644, UID: 1, Nlink: 1, Size: 5, Mtime: 17}, Origin: kml.Origin{Site: 3, Seq: 4}}
}

func messages() []Message {
	p := kml.MakePosition(2, 78)
	return []Message{
		&Greeting{Version: Version, Fileset: "0b8b0d1c-7d51-4c8a-9f0e-3c5a2c1d0e0f", Epoch: 2, EpochID: "00ff", First: 1, End: p, Durable: p - 1},
		&Failure{Code: CodeHistoryCut, Text: "position 2.78 is not in this history"},
		&Record{rec(kml.OpCreate, "a\xff\n")},
		&RecordData{rec(kml.OpStore, ""), []byte("hello")},
		&RecordData{rec(kml.OpStore, ""), []byte{}},
		&Heartbeat{End: p, Durable: p - 1, Time: 1763700000_000000000},
		&Changing{kml.MakeOID(3, 9)},
		&Damaged{kml.MakeOID(3, 9), p},
		&SnapBegin{p, kml.RootOID, 0xc0ffee},
		&Entry{rec(kml.OpMkdir, "d"), p, p - 1},
		&EntryData{Entry{rec(kml.OpCreate, "f"), p, p - 1}, []byte("inline")},
		&SnapEnd{12},
		&Hello{Version: Version, Host: "laptop", Known: 4},
		&Welcome{Version: Version, Site: 3, Key: "abcd", LastSeq: 4, MaxCounter: 9, Position: p},
		&Batch{7, []*kml.Record{rec(kml.OpCreate, "x"), rec(kml.OpMkdir, "y")}},
		&Contents{8, []byte("small")},
		&Result{7, []Outcome{{4, Applied, p, 0, ""}, {5, Refused, 0, 13, "permission denied"}}},
	}
}

func TestMessagesRoundTrip(t *testing.T) {
	var stream []byte
	for _, m := range messages() {
		var err error
		if stream, err = Append(stream, m); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []int{1, 7, len(stream)} {
		var d Decoder
		var got []Message
		for i := 0; i < len(stream); i += step {
			d.Write(stream[i:min(i+step, len(stream))])
			for {
				f, ok, err := d.Next()
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					break
				}
				m, err := f.Message()
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, m)
			}
		}
		if d := cmp.Diff(messages(), got); d != "" {
			t.Fatal(step, d)
		}
		if d.Buffered() != 0 {
			t.Fatal(d.Buffered())
		}
	}
}

func TestDecoderRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []byte
		want error
	}{
		{"zero length", []byte{0, 0, 0, 0, 1}, ErrFrame},
		{"too long", []byte{2, 0, 16, 0}, ErrTooLarge},
		{"huge", []byte{255, 255, 255, 255}, ErrTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			var d Decoder
			d.Write(c.in)
			if _, _, err := d.Next(); !errors.Is(err, c.want) {
				t.Fatal(err)
			}
			if _, err := d.Write([]byte{1}); !errors.Is(err, c.want) {
				t.Fatal("takes more after an error", err)
			}
		})
	}
}

func TestMessageRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		f    Frame
		want error
	}{
		{"unknown", Frame{Kind: 99}, kml.ErrNewer},
		{"short heartbeat", Frame{KindHeartbeat, make([]byte, 23)}, ErrFrame},
		{"long changing", Frame{KindChanging, make([]byte, 9)}, ErrFrame},
		{"long damaged", Frame{KindDamaged, make([]byte, 17)}, ErrFrame},
		{"no record", Frame{KindRecord, nil}, kml.ErrShort},
		{"bad record", Frame{KindRecord, make([]byte, 64)}, kml.ErrCorrupt},
		{"json", Frame{KindGreeting, []byte("{")}, ErrFrame},
		{"reason", Frame{KindResult, append(make([]byte, 8+21), 9, 0)}, ErrFrame},
	} {
		t.Run(c.name, func(t *testing.T) {
			if m, err := c.f.Message(); !errors.Is(err, c.want) {
				t.Fatal(m, err)
			}
		})
	}
	if m, err := (Frame{Kind: 200}).Message(); m != nil || err != nil {
		t.Fatal(m, err)
	}
}

func TestAppendFrameTooLarge(t *testing.T) {
	b, err := AppendFrame([]byte("x"), KindRecord, make([]byte, MaxPayload+1))
	if !errors.Is(err, ErrTooLarge) || string(b) != "x" {
		t.Fatal(err, len(b))
	}
}

func TestRequest(t *testing.T) {
	for _, c := range []struct {
		line string
		want Request
		ok   bool
	}{
		{"from 2.77 crc 00c0ffee inline 65536\n", Request{kml.MakePosition(2, 77), 0xc0ffee, 65536}, true},
		{"from 0.0 crc 00000000 inline 0", Request{}, true},
		{"from 0.0 crc 00000000 inline 4611686018427387903", Request{Inline: MaxInline}, true},
		{"from 0.0 crc 0 inline 0", Request{}, false},
		{"from 0 crc 00000000 inline 0", Request{}, false},
		{"from 0.0 crc 00000000 inline -1", Request{}, false},
		{"from 0.0 crc 00000000", Request{}, false},
		{"from 0.0  crc 00000000 inline 0", Request{}, false},
		{"from 65536.0 crc 00000000 inline 0", Request{}, false},
		{"", Request{}, false},
	} {
		got, err := ParseRequest(c.line)
		if got != c.want || (err == nil) != c.ok || err != nil && !errors.Is(err, ErrRequest) {
			t.Errorf("%q: %v, %v", c.line, got, err)
		}
		if c.ok {
			if again, err := ParseRequest(got.String()); again != got || err != nil {
				t.Errorf("%q: %v, %v", got, again, err)
			}
		}
	}
}

func TestSnapshotRequest(t *testing.T) {
	for _, c := range []struct {
		line string
		want SnapshotRequest
		ok   bool
	}{
		{"under 0:1 depth -1\n", SnapshotRequest{kml.RootOID, -1, 0}, true},
		{"under 3:9 depth 1", SnapshotRequest{kml.MakeOID(3, 9), 1, 0}, true},
		{"under 3:9 depth 1 inline 65536\n", SnapshotRequest{kml.MakeOID(3, 9), 1, 65536}, true},
		{"under 3:9 depth 1 inline 9999999999", SnapshotRequest{kml.MakeOID(3, 9), 1, MaxInline}, true},
		{"under 3:9 depth 1 inline -1", SnapshotRequest{}, false},
		{"under 3:9 depth 1 inline", SnapshotRequest{}, false},
		{"under 3:9 depth -2", SnapshotRequest{}, false},
		{"under 3.9 depth 1", SnapshotRequest{}, false},
		{"under 1048576:1 depth 1", SnapshotRequest{}, false},
	} {
		got, err := ParseSnapshotRequest(c.line)
		if err != nil {
			got = SnapshotRequest{}
		}
		if got != c.want || (err == nil) != c.ok || err != nil && !errors.Is(err, ErrRequest) {
			t.Errorf("%q: %v, %v", c.line, got, err)
		}
	}
}

func TestMendNames(t *testing.T) {
	m := Mend{kml.MakeOID(3, 9), kml.MakePosition(2, 7), -5, [32]byte{1, 31: 0xff}}
	got, err := ParseMend(m.String())
	if err != nil || got != m {
		t.Fatal(got, err)
	}
	name := m.String()
	for _, bad := range []string{"", name + "0", name[1:], "0" + name, name[:len(name)-1] + "F", name[:len(name)-1] + "/", "+" + name[1:], name + ".", "....", "a.b.c.d"} {
		if m, err := ParseMend(bad); !errors.Is(err, ErrRequest) {
			t.Errorf("%q: %v %v", bad, m, err)
		}
	}
}
