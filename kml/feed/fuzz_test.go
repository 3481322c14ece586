package feed

import (
	"bytes"
	"reflect"
	"testing"
)

// FuzzFrames reads any bytes as a stream, in pieces of any size: the same
// frames must come, and what decodes must encode and decode to the same.
func FuzzFrames(f *testing.F) {
	var stream []byte
	for _, m := range messages() {
		b, err := Append(nil, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint8(3))
		stream = append(stream, b...)
	}
	f.Add(stream, uint8(255))
	f.Fuzz(func(t *testing.T, data []byte, step uint8) {
		if len(data) > 1<<20 {
			t.Skip()
		}
		one := frames(data, len(data)+1)
		if many := frames(data, int(step)+1); !reflect.DeepEqual(one, many) {
			t.Fatal(one, many)
		}
		for _, fr := range one {
			m, err := fr.Message()
			if err != nil || m == nil {
				continue
			}
			b, err := Append(nil, m)
			if err != nil {
				t.Fatal(err)
			}
			var d Decoder
			d.Write(b)
			again, ok, err := d.Next()
			if err != nil || !ok {
				t.Fatal(ok, err)
			}
			m2, err := again.Message()
			if err != nil || !reflect.DeepEqual(m, m2) {
				t.Fatal(m, m2, err)
			}
		}
	})
}

func frames(data []byte, step int) (out []Frame) {
	var d Decoder
	for len(data) > 0 {
		n := min(step, len(data))
		if _, err := d.Write(data[:n]); err != nil {
			return out
		}
		data = data[n:]
		for {
			f, ok, err := d.Next()
			if err != nil {
				return out
			}
			if !ok {
				break
			}
			out = append(out, Frame{f.Kind, bytes.Clone(f.Payload)})
		}
	}
	return out
}

func FuzzRequest(f *testing.F) {
	f.Add("from 2.77 crc 00c0ffee inline 65536\n")
	f.Add("under 3:9 depth -1\n")
	f.Add("from 65535.281474976710655 crc ffffffff inline 0")
	f.Fuzz(func(t *testing.T, line string) {
		if r, err := ParseRequest(line); err == nil {
			if again, err := ParseRequest(r.String()); err != nil || again != r {
				t.Fatal(r, again, err)
			}
		}
		if r, err := ParseSnapshotRequest(line); err == nil {
			if again, err := ParseSnapshotRequest(r.String()); err != nil || again != r {
				t.Fatal(r, again, err)
			}
		}
	})
}
