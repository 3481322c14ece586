package p9srv

import (
	"log/slog"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// Options of a Server. The zero value works.
type Options struct {
	// MaxMessageSize is the largest msize granted, in bytes. Default 1 MiB; from
	// MinMessageSize to MaxMessageSize.
	MaxMessageSize int
	// MaxFIDs bounds the fids of a connection; a walk or attach beyond it is
	// answered with EMFILE. Default 1 << 20.
	MaxFIDs int
	// MaxRequests bounds the requests of a connection that wait or run on
	// other goroutines; one beyond it is answered with EAGAIN. Default 16384.
	MaxRequests int
	// MaxBytes bounds the memory of a connection for requests in progress and
	// answers the client has not taken: beyond it nothing more is read from
	// the client until some is done; when requests that wait hold all of it,
	// further ones are answered with EAGAIN. Default 64 MiB.
	MaxBytes int
	// NoDevices refuses to make device nodes, with EPERM.
	NoDevices bool
	// NoSetID refuses setuid and setgid bits on what is no folder, and file
	// capabilities, with EPERM.
	NoSetID bool
	// Users looks a user up; see User for what to fill in. Default: the
	// system's user database. It may block. An error, or a User with UID NoID,
	// leaves what the client said.
	Users func(uid uint32, name string) (User, error)
	// Log gets connections that end badly, panics, and errors without an
	// errno. Default: nothing.
	Log *slog.Logger
	// Trace, when not nil, is called for each message of each connection, with
	// the message in one line (see wire.Text). It must not block and may be
	// called by several goroutines at a time.
	Trace func(conn uint64, line string)
}

// Defaults and limits of Options.
const (
	DefaultMessageSize = 1 << 20
	MinMessageSize     = wire.MinMsize
	MaxMessageSize     = 1 << 28
	DefaultMaxFIDs     = 1 << 20
	DefaultMaxRequests = 1 << 14
	DefaultMaxBytes    = 64 << 20
)

func (o Options) withDefaults() Options {
	if o.MaxMessageSize <= 0 {
		o.MaxMessageSize = DefaultMessageSize
	}
	o.MaxMessageSize = min(max(o.MaxMessageSize, MinMessageSize), MaxMessageSize)
	if o.MaxFIDs <= 0 {
		o.MaxFIDs = DefaultMaxFIDs
	}
	if o.MaxRequests <= 0 {
		o.MaxRequests = DefaultMaxRequests
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	// One request and one answer of full size have to fit.
	o.MaxBytes = max(o.MaxBytes, 2*o.MaxMessageSize)
	if o.Users == nil {
		o.Users = systemUser
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}
