package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/hugelgupf/p9/p9"
)

// Msg is any message of this package, as a pointer to its struct.
type Msg interface {
	// MsgType is the message's type byte.
	MsgType() Type
	// Append puts the whole frame behind b and returns the longer slice.
	Append(b []byte, tag Tag) []byte
	// Decode fills the message from a frame's body (what stands behind the
	// header). Payloads alias body.
	Decode(body []byte) error
}

// Header is the first seven bytes of a frame.
type Header struct {
	Size uint32 // of the whole frame, header included
	Type Type
	Tag  Tag
}

// ParseHeader reads the header at the start of b. It fails when b is shorter
// than HeaderSize or the size in it is; it does not look at the type.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, errShort
	}
	h := Header{
		Size: binary.LittleEndian.Uint32(b),
		Type: Type(b[4]),
		Tag:  Tag(binary.LittleEndian.Uint16(b[5:])),
	}
	if h.Size < HeaderSize {
		return h, errSize
	}
	return h, nil
}

// AppendReadHeader puts the header and count of an Rread (or, with t
// TypeRreaddir, of an Rreaddir) behind b; n bytes of data have to follow.
func AppendReadHeader(b []byte, t Type, tag Tag, n int) []byte {
	b = put32(b, uint32(ReadOverhead+n))
	b = append(b, byte(t), byte(tag), byte(tag>>8))
	return put32(b, uint32(n))
}

// PutReadHeader is AppendReadHeader in place, for an answer whose data was read
// to b[ReadOverhead:] first. len(b) must be at least ReadOverhead.
func PutReadHeader(b []byte, t Type, tag Tag, n int) {
	AppendReadHeader(b[:0], t, tag, n)
}

// AppendWriteHeader puts a Twrite up to its data behind b; n bytes of data have
// to follow.
func AppendWriteHeader(b []byte, tag Tag, fid FID, offset uint64, n int) []byte {
	b = put32(b, uint32(HeaderSize+16+n))
	b = append(b, byte(TypeTwrite), byte(tag), byte(tag>>8))
	b = putFID(b, fid)
	b = put64(b, offset)
	return put32(b, uint32(n))
}

// CheckString says whether s fits into a string on the wire.
func CheckString(s string) error {
	if len(s) > maxString {
		return fmt.Errorf("string of %d bytes: %w: the limit is %d", len(s), ErrMessage, maxString)
	}
	return nil
}

// Unmarshal decodes a whole frame, neither more nor less, to a new message. It
// is for tools and tests; servers and clients know what they wait for and call
// Decode.
func Unmarshal(frame []byte) (Tag, Msg, error) {
	h, err := ParseHeader(frame)
	if err != nil {
		return h.Tag, nil, err
	}
	switch {
	case uint64(h.Size) > uint64(len(frame)):
		return h.Tag, nil, errShort
	case uint64(h.Size) < uint64(len(frame)):
		return h.Tag, nil, errTrailing
	}
	m := New(h.Type)
	if m == nil {
		return h.Tag, nil, fmt.Errorf("%v: %w: unknown type", h.Type, ErrMessage)
	}
	if err := m.Decode(frame[HeaderSize:]); err != nil {
		return h.Tag, nil, fmt.Errorf("%v: %w", h.Type, err)
	}
	return h.Tag, m, nil
}

// QIDOf is the QID type that belongs to the type bits of a mode.
func QIDOf(m p9.FileMode) p9.QIDType {
	switch {
	case m.IsDir():
		return p9.TypeDir
	case m.IsSymlink():
		return p9.TypeSymlink
	}
	return p9.TypeRegular
}

// DirentType is the d_type that belongs to the type bits of a mode.
func DirentType(m p9.FileMode) uint8 { return uint8(m & p9.FileModeMask >> 12) }
