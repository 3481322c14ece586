package kml

import "time"

// Options tune a Log. The zero value works.
type Options struct {
	// Fileset is the identity written into every segment. A log of another
	// fileset is refused with ErrFileset; zero takes what is there.
	Fileset [16]byte
	// SegmentSize is where a segment ends and the next begins, in bytes; 0 is
	// 64 MiB. Replicas of one log must use the same size to have the same bytes.
	SegmentSize int64
	// Prealloc is how many bytes are allocated ahead of the tail at a time; 0
	// is 1 MiB.
	Prealloc int64
	// After and AfterCRC are where a new log takes up a history that began
	// elsewhere; they count only when Open creates the log.
	After    Position
	AfterCRC uint32
	// Head is the header of a segment of another log, with which a new copy of
	// that log begins: then the copy's segments are the same, byte for byte. It
	// goes before After, and counts only when Open creates the log.
	Head []byte
	// ReadOnly opens without creating, cutting or locking anything; a torn tail
	// is left out of sight.
	ReadOnly bool
	// Now is the clock for records without a time; nil is time.Now.
	Now func() time.Time

	fs fileSystem // nil: the real one
}

const (
	defaultSegmentSize = 64 << 20
	minSegmentSize     = 4 << 10
	defaultPrealloc    = 1 << 20
	indexEvery         = 64 << 10
)

func (o *Options) fill() {
	if o.SegmentSize <= 0 {
		o.SegmentSize = defaultSegmentSize
	}
	o.SegmentSize = max(o.SegmentSize, minSegmentSize)
	if o.Prealloc <= 0 {
		o.Prealloc = defaultPrealloc
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.fs == nil {
		o.fs = osFS{}
	}
}
