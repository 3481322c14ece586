package p9srv

import (
	"context"

	"github.com/hugelgupf/p9/p9"
)

// User is who attached, as far as the transport can tell.
type User struct {
	UID    uint32   // n_uname, or looked up from Name
	GID    uint32   // primary group, when known; ^0 otherwise
	Groups []uint32 // supplementary groups
	Name   string   // uname, as sent
	Proven bool     // the transport proved it (unix peer credentials, TLS); else it is only claimed
	Peer   string   // address of the other end, for messages
}

// AttacherAs is an Attacher that wants to know who attaches and to what.
// The engine prefers it over Attach.
type AttacherAs interface {
	AttachAs(ctx context.Context, u User, aname string) (p9.File, error)
}

// ContextReader is a File whose reads may wait. ctx ends when the request is
// flushed or the connection goes.
type ContextReader interface {
	ReadAtContext(ctx context.Context, p []byte, off int64) (int, error)
}

// ContextWriter is a File whose writes may wait.
type ContextWriter interface {
	WriteAtContext(ctx context.Context, p []byte, off int64) (int, error)
}

// InPlacer is a File that can promise that an operation will not block on
// anything but the page cache, so that the engine may run it on the
// connection's own goroutine. It is asked before each operation and must not
// block itself. A File without it is always run on another goroutine.
type InPlacer interface {
	InPlace(op InPlaceOp) bool
}

// InPlaceOp is a kind of operation an InPlacer is asked about.
type InPlaceOp uint8

// The kinds of operation.
const (
	OpMeta  InPlaceOp = iota // walk, getattr, clunk, readlink, statfs
	OpOpen                   // open, create
	OpRead                   // read, readdir
	OpWrite                  // write
	OpName                   // mkdir, unlink, rename, link, symlink, mknod, setattr, xattrs
)

// LockTester answers Tgetlock.
type LockTester interface {
	GetLock(ctx context.Context, l Lock) (Lock, error)
}

// ContextLocker takes and releases byte-range locks; a blocking request waits
// until ctx ends. The engine prefers it over File.Lock.
type ContextLocker interface {
	LockContext(ctx context.Context, l Lock) (p9.LockStatus, error)
}

// Lock is a Tlock or Tgetlock. Length 0 means to the end of the file.
type Lock struct {
	Type          p9.LockType
	Flags         p9.LockFlags
	Start, Length uint64
	PID           uint32
	Client        string // client_id as sent; unique only together with the connection
}

// Closer is a File told whether the session ended without a clunk (the
// connection died): locks go, dirty data stays.
type Closer interface {
	CloseContext(ctx context.Context) error
}

// FSyncer is a File that knows fdatasync from fsync.
type FSyncer interface {
	FSyncContext(ctx context.Context, datasync bool) error
}

// SetAttrer, when a File has it, gets setattr with its context.
type SetAttrer interface {
	SetAttrContext(ctx context.Context, valid p9.SetAttrMask, attr p9.SetAttr) error
}
