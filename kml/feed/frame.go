package feed

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mezzofs/mezzo/kml"
)

// Version is the version of this protocol, in Greeting, Hello and Welcome.
const Version = 1

// Limits, in bytes.
const (
	MaxPayload = 1 << 20   // of one frame
	MaxInline  = 512 << 10 // of contents in a RecordData, EntryData or Contents
	MaxLine    = 256       // of a request line
	headLen    = 5
)

// Errors a caller compares with errors.Is. An unknown kind that must be
// understood is kml.ErrNewer; a bad record inside is kml's error.
var (
	// ErrFrame is bytes that are no frame, or a payload that is not of its kind.
	ErrFrame = errors.New("bad frame")
	// ErrTooLarge is a frame longer than MaxPayload.
	ErrTooLarge = errors.New("frame is too large")
	// ErrRequest is a request line that is not understood.
	ErrRequest = errors.New("bad request")
)

// Kind says what a frame holds.
type Kind uint8

// The kinds of frame.
const (
	KindGreeting   Kind = 1
	KindFailure    Kind = 2
	KindRecord     Kind = 3
	KindRecordData Kind = 4
	KindHeartbeat  Kind = 5
	KindChanging   Kind = 6
	KindSnapBegin  Kind = 7
	KindEntry      Kind = 8
	KindSnapEnd    Kind = 9
	KindHello      Kind = 10
	KindWelcome    Kind = 11
	KindBatch      Kind = 12
	KindResult     Kind = 13
	KindEntryData  Kind = 14
	KindContents   Kind = 15

	KindOptional Kind = 128 // from here on a frame may be skipped
	KindDamaged  Kind = 128
)

// Frame is one frame as it came. Payload is good until the decoder's next
// Write or Next.
type Frame struct {
	Kind    Kind
	Payload []byte
}

// AppendFrame appends a frame to dst. With an error dst comes back as it was.
func AppendFrame(dst []byte, k Kind, payload []byte) ([]byte, error) {
	b := beginFrame(dst, k)
	return endFrame(append(b, payload...), len(dst))
}

// beginFrame appends a frame's head; endFrame fills in its length.
func beginFrame(dst []byte, k Kind) []byte { return append(dst, 0, 0, 0, 0, byte(k)) }

func endFrame(b []byte, start int) ([]byte, error) {
	n := len(b) - start - headLen
	if n > MaxPayload {
		return b[:start], fmt.Errorf("kind %d, %d bytes: %w", b[start+4], n, ErrTooLarge)
	}
	binary.LittleEndian.PutUint32(b[start:], uint32(n+1))
	return b, nil
}

// Decoder takes a stream in pieces and gives its frames. It holds one frame
// and what was written behind it; it is for one goroutine. The zero value is
// ready.
type Decoder struct {
	buf  []byte
	from int // what lies before was handed out
	err  error
}

// Write adds bytes of the stream. It takes all of p, or none after an error
// that Next has given or will give.
func (d *Decoder) Write(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	if d.from > 0 {
		n := copy(d.buf, d.buf[d.from:])
		d.buf, d.from = d.buf[:n], 0
	}
	d.buf = append(d.buf, p...)
	return len(p), nil
}

// Next gives the next frame; ok is false when it is not whole yet. After an
// error the stream cannot be read on.
func (d *Decoder) Next() (f Frame, ok bool, err error) {
	if d.err != nil {
		return Frame{}, false, d.err
	}
	b := d.buf[d.from:]
	if len(b) < 4 {
		return Frame{}, false, nil
	}
	n := binary.LittleEndian.Uint32(b)
	if n == 0 || n > 1+MaxPayload {
		d.err = fmt.Errorf("length %d: %w", n, ErrTooLarge)
		if n == 0 {
			d.err = fmt.Errorf("length 0: %w", ErrFrame)
		}
		return Frame{}, false, d.err
	}
	end := 4 + int(n)
	if len(b) < end {
		return Frame{}, false, nil
	}
	d.from += end
	return Frame{Kind(b[4]), b[headLen:end:end]}, true, nil
}

// Buffered is how many bytes wait for Next.
func (d *Decoder) Buffered() int { return len(d.buf) - d.from }

// Message is what a frame can hold: the pointer types of this package.
type Message interface {
	kind() Kind
	append(b []byte) ([]byte, error)
	parse(b []byte) error
}

// Append appends m as one frame to dst. With an error dst comes back as it
// was.
func Append(dst []byte, m Message) ([]byte, error) {
	b, err := m.append(beginFrame(dst, m.kind()))
	if err != nil {
		return dst, err
	}
	return endFrame(b, len(dst))
}

// newMessage is an empty message of kind k, or nil.
func newMessage(k Kind) Message {
	switch k {
	case KindGreeting:
		return new(Greeting)
	case KindFailure:
		return new(Failure)
	case KindRecord:
		return new(Record)
	case KindRecordData:
		return new(RecordData)
	case KindHeartbeat:
		return new(Heartbeat)
	case KindChanging:
		return new(Changing)
	case KindSnapBegin:
		return new(SnapBegin)
	case KindEntry:
		return new(Entry)
	case KindEntryData:
		return new(EntryData)
	case KindSnapEnd:
		return new(SnapEnd)
	case KindHello:
		return new(Hello)
	case KindWelcome:
		return new(Welcome)
	case KindBatch:
		return new(Batch)
	case KindResult:
		return new(Result)
	case KindContents:
		return new(Contents)
	case KindDamaged:
		return new(Damaged)
	}
	return nil
}

// Message decodes the frame; the result does not alias the payload. It is nil,
// without an error, for an unknown kind that may be skipped.
func (f Frame) Message() (Message, error) {
	m := newMessage(f.Kind)
	if m == nil {
		if f.Kind >= KindOptional {
			return nil, nil
		}
		return nil, fmt.Errorf("frame of kind %d: %w", f.Kind, kml.ErrNewer)
	}
	if err := m.parse(f.Payload); err != nil {
		return nil, fmt.Errorf("frame of kind %d: %w", f.Kind, err)
	}
	return m, nil
}
