package wire

import (
	"encoding/binary"

	"github.com/hugelgupf/p9/p9"
)

// reader consumes a body. What does not fit sets bad and yields zero values, so
// that a decoder checks once, at its end.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) u8() uint8 {
	if len(r.b) < 1 {
		r.bad, r.b = true, nil
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) u16() uint16 {
	if len(r.b) < 2 {
		r.bad, r.b = true, nil
		return 0
	}
	v := binary.LittleEndian.Uint16(r.b)
	r.b = r.b[2:]
	return v
}

func (r *reader) u32() uint32 {
	if len(r.b) < 4 {
		r.bad, r.b = true, nil
		return 0
	}
	v := binary.LittleEndian.Uint32(r.b)
	r.b = r.b[4:]
	return v
}

func (r *reader) u64() uint64 {
	if len(r.b) < 8 {
		r.bad, r.b = true, nil
		return 0
	}
	v := binary.LittleEndian.Uint64(r.b)
	r.b = r.b[8:]
	return v
}

func (r *reader) fid() FID    { return FID(r.u32()) }
func (r *reader) str() string { return string(r.take(int(r.u16()))) }

func (r *reader) qid() p9.QID {
	b := r.take(QIDSize)
	if b == nil {
		return p9.QID{}
	}
	return p9.QID{
		Type:    p9.QIDType(b[0]),
		Version: binary.LittleEndian.Uint32(b[1:]),
		Path:    binary.LittleEndian.Uint64(b[5:]),
	}
}

// end is the decoder's verdict: everything was there and nothing is left.
func (r *reader) end() error {
	switch {
	case r.bad:
		return errShort
	case len(r.b) != 0:
		return errTrailing
	}
	return nil
}

func put16(b []byte, v uint16) []byte { return binary.LittleEndian.AppendUint16(b, v) }
func put32(b []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(b, v) }
func put64(b []byte, v uint64) []byte { return binary.LittleEndian.AppendUint64(b, v) }
func putFID(b []byte, f FID) []byte   { return put32(b, uint32(f)) }

// putStr writes a string. One that is too long for its length field is cut
// there; CheckString tells a client before.
func putStr(b []byte, s string) []byte {
	if len(s) > maxString {
		s = s[:maxString]
	}
	return append(put16(b, uint16(len(s))), s...)
}

func putQID(b []byte, q p9.QID) []byte {
	b = append(b, byte(q.Type))
	b = put32(b, q.Version)
	return put64(b, q.Path)
}

// begin writes a header whose size finish fills in.
func begin(b []byte, t Type, tag Tag) []byte {
	return append(b, 0, 0, 0, 0, byte(t), byte(tag), byte(tag>>8))
}

// finish sets the size of the frame that starts at b[start].
func finish(b []byte, start int) []byte {
	binary.LittleEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// empty is a whole frame without a body.
func empty(b []byte, t Type, tag Tag) []byte {
	return append(b, HeaderSize, 0, 0, 0, byte(t), byte(tag), byte(tag>>8))
}
