package client

import (
	"io"
	"time"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// Options of a connection. The zero value is useful.
type Options struct {
	// Msize is the largest message to ask for, in bytes; the server may agree
	// on less. Zero means 1 MiB; what is below 4 KiB or above 16 MiB is taken
	// as that. One buffer may grow to it for reading, and one for writing.
	Msize uint32

	// Versions are the dialects to ask for, the best first. Nil is 9P2000.L
	// alone. In 9P2000.u and 9P2000 what they have no message for is
	// EOPNOTSUPP: links, devices, locks, extended attributes and statfs in one
	// or both, and EXDEV a rename to another folder.
	Versions []string

	// Requests is how many requests may be in flight; a further one waits.
	// Zero means 256. The most is 16,384.
	Requests int

	// Timeout is how long a server that owes an answer may be silent before
	// the connection fails. See "Silence" in the package documentation. It
	// also bounds the handshake of Dial and NewConn. Zero means 30 s; negative
	// means for ever.
	Timeout time.Duration

	// Grace is how long a call whose context ended waits for the server to
	// say whether the request was done. Zero means 1 s.
	Grace time.Duration

	// Wrap, when set, is laid around the connection before the first byte, to
	// watch or to hold back what goes over it. Close of what it returns must end
	// reads and writes under way and close what it was given.
	Wrap func(io.ReadWriteCloser) io.ReadWriteCloser

	// Trace, when set, is called with every message sent and received, in
	// order for each direction, by one goroutine at a time for each direction. The frame is valid
	// during the call only.
	Trace func(sent bool, frame []byte)
}

// MaxMsize is the largest message size asked for, in bytes.
const MaxMsize = 16 << 20

const (
	defaultMsize    = 1 << 20
	defaultRequests = 256
	maxRequests     = 1 << 14
	defaultTimeout  = 30 * time.Second
	defaultGrace    = time.Second
)

func (o Options) withDefaults() Options {
	if o.Msize == 0 {
		o.Msize = defaultMsize
	}
	if len(o.Versions) == 0 {
		o.Versions = []string{wire.Version9P2000L}
	}
	o.Msize = min(max(o.Msize, wire.MinMsize), MaxMsize)
	if o.Requests <= 0 {
		o.Requests = defaultRequests
	}
	o.Requests = min(o.Requests, maxRequests)
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Grace <= 0 {
		o.Grace = defaultGrace
	}
	return o
}
