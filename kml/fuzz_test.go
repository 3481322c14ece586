package kml

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// whole makes a record of fuzzed bytes: what they say from the opcode on, with
// lengths and CRC put right, so that the body is reached.
func whole(data []byte) []byte {
	b := append([]byte{0, 0, 0, 0, recordMagic, recordFormat}, data...)
	for len(b) < prefixLen {
		b = append(b, 0)
	}
	for (len(b)+trailerLen)%8 != 0 {
		b = append(b, 0)
	}
	n := uint32(len(b) + trailerLen)
	b = append(b, make([]byte, trailerLen)...)
	binary.LittleEndian.PutUint32(b, n)
	binary.LittleEndian.PutUint32(b[n-4:], n)
	seal(b, 0)
	return b
}

func FuzzParseRecord(f *testing.F) {
	for _, r := range samples() {
		b, _, err := AppendRecord(nil, r, 0)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[6:len(b)-trailerLen], false)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, data []byte, raw bool) {
		if len(data) > MaxRecord {
			t.Skip()
		}
		if !raw {
			data = whole(data)
		}
		r, n, crc, err := ParseRecord(data, 0)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrShort) && !errors.Is(err, ErrNewer) && !errors.Is(err, ErrChain) {
				t.Fatal(err)
			}
			return
		}
		if n > len(data) || n%8 != 0 {
			t.Fatal(n)
		}
		before := *r
		if got, err := Reseal(data[:n:n], 0); err != nil || got != crc {
			t.Fatal(got, err)
		}
		clear(data) // r must not alias it
		b, _, err := AppendRecord(nil, r, 99)
		if err != nil {
			if errors.Is(err, ErrTooLarge) && n > MaxRecord-16 {
				return
			}
			t.Fatal(err)
		}
		again, _, _, err := ParseRecord(b, 99)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(&before, again) {
			t.Fatalf("%+v\n%+v", &before, again)
		}
		line := AppendText(nil, r)
		if bytes.ContainsAny(line, "\n\r\x00") {
			t.Fatalf("%q", line)
		}
		if j, err := json.Marshal(r); err != nil || !json.Valid(j) {
			t.Fatal(err)
		}
	})
}

// FuzzOpen opens a log of two segments with any bytes. What opens must read
// from end to end, forward and backward, take a record, and open again whole.
func FuzzOpen(f *testing.F) {
	var seg [2][]byte
	for i := range seg {
		b, err := os.ReadFile(filepath.Join("testdata", "log", segmentName(uint64(i+1))))
		if err != nil {
			f.Fatal(err)
		}
		seg[i] = b
	}
	f.Add(seg[0], seg[1], uint16(0), byte(0))
	f.Add(seg[0], []byte{}, uint16(200), byte(1))
	f.Add(seg[0], seg[1][:100], uint16(4000), byte(8))
	f.Add(seg[0][:headerLen], []byte{}, uint16(0), byte(0))
	f.Add(seg[0][:50], []byte{}, uint16(0), byte(0))
	f.Fuzz(func(t *testing.T, a, b []byte, at uint16, turn byte) {
		if len(a)+len(b) > 1<<20 {
			t.Skip()
		}
		m := newMemFS()
		for i, data := range [][]byte{a, b} {
			if i == 1 && len(b) == 0 {
				continue
			}
			data = bytes.Clone(data)
			if int(at) < len(data) {
				data[at] ^= turn
			}
			name := segmentName(uint64(i + 1))
			m.files[name] = &memFile{fs: m, name: name, data: data, disk: bytes.Clone(data)}
		}
		o := Options{fs: m, SegmentSize: minSegmentSize}
		l, err := Open("mem", o)
		if err != nil {
			var d *DamageError
			if !errors.As(err, &d) && !errors.Is(err, ErrNewer) {
				t.Fatal(err)
			}
			return
		}
		count := func(l *Log) int {
			t.Helper()
			r, err := l.ReaderAfter(l.Start())
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			n := 0
			for _, err = r.TryNextRaw(); err == nil; _, err = r.TryNextRaw() {
				n++
			}
			if r.Pos() != l.End() || r.CRC() != l.EndCRC() {
				t.Fatal(n, r.Pos(), l.End(), err)
			}
			return n
		}
		n := count(l)
		if l.End().Recno() == 1<<48-1 {
			return
		}
		if err := l.Append(create(1)); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l, err = Open("mem", o)
		if err != nil {
			t.Fatal(err)
		}
		if got := count(l); got != n+1 || l.Repaired() != (Repair{}) {
			t.Fatal(got, n, l.Repaired())
		}
	})
}
