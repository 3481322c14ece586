package p9srv

import (
	"context"
	"errors"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// This file is the contract between the engine and a tree that wants more than
// p9.File offers. Every interface is optional and found by assertion; the
// assertions are made once for each fid. A tree built for speed has Files that
// are Concurrent, InPlacer, Binder, Walker and DirReader.

// User is who attached, as far as the transport can tell.
type User struct {
	UID    uint32   // n_uname, or looked up from Name; NoID when only Name says
	GID    uint32   // primary group, when known; NoID otherwise
	Groups []uint32 // supplementary groups
	Name   string   // uname, as sent
	Proven bool     // the transport proved it (unix peer credentials, TLS); else it is only claimed
	Peer   string   // address of the other end, for messages
	Conn   uint64   // the connection: counts from 1, never used twice in a process
}

// NoID is a user or group that is not known.
const NoID = ^uint32(0)

// AttacherAs is an Attacher that wants to know who attaches and to what.
// The engine prefers it over Attach and passes aname as it was sent; an
// Attacher without it is attached to, and walked to aname. ctx is the
// request's: it ends with it.
type AttacherAs interface {
	AttachAs(ctx context.Context, u User, aname string) (p9.File, error)
}

// Concurrent is a File any of whose methods may be called at any time, together
// with any other of its own and of other Files. The engine takes no locks for
// it, keeps no record of names and never calls Renamed. Files that come from a
// Concurrent File have to be Concurrent too.
//
// The checks that the engine makes with its record of names are then the
// File's: operations on objects that were removed, and what Trename (p9.File's
// Rename is called, with ENOSYS and EOPNOTSUPP as an answer) and Tremove (see
// Remover) act on. UnlinkAt has to look at AT_REMOVEDIR in flags.
type Concurrent interface{ Concurrent() }

// Remover is a Concurrent File that can be removed without naming its parent,
// for Tremove. Without it Tremove fails with EOPNOTSUPP; Linux sends Tunlinkat.
type Remover interface {
	Remove(ctx context.Context) error
}

// Renamer is a Concurrent File that can be renamed in its folder without naming
// that, for Twstat. Without it Twstat of a name fails with EOPNOTSUPP.
type Renamer interface {
	RenameTo(ctx context.Context, name string) error
}

// InPlacer is a File that can promise that an operation will not block on
// anything but the page cache, so that the engine may run it on the
// connection's own goroutine. It is asked before each operation and must not
// block itself. A File without it is always run on another goroutine.
//
// Asked for OpOpen, OpRead and OpWrite it speaks of this very File, for OpName
// of what it does to names in this folder and to attributes of this object. A
// promise that cannot be kept after all (a lock is taken, a block is not here)
// is taken back with ErrWouldBlock.
type InPlacer interface {
	InPlace(op InPlaceOp) bool
}

// ErrWouldBlock is what a File returns from an operation that the engine runs
// in place and that would have to wait. The operation must have done nothing;
// the engine runs it again on another goroutine. There it counts as EAGAIN. A
// File tells the two apart by having been bound: see Binder. Close, and
// CloseContext, cannot be taken back.
var ErrWouldBlock = errors.New("operation would block")

// InPlaceOp is a kind of operation an InPlacer is asked about.
type InPlaceOp uint8

// The kinds of operation.
const (
	OpMeta  InPlaceOp = iota // walk, getattr, clunk of a fid that is not open, readlink, statfs
	OpOpen                   // open, create
	OpRead                   // read, readdir
	OpWrite                  // write
	OpName                   // mkdir, unlink, rename, link, symlink, mknod, setattr, xattrs
	OpClose                  // clunk of an open fid
)

// Binder is a File whose operations may wait. Before an operation that runs on
// another goroutine than the connection's, the engine calls Bind and then the
// operation on what Bind returns; ctx ends when the request is flushed, the
// session restarts or the connection goes. What Bind returns is used for this
// one operation, by one goroutine, and not closed. Bind must be cheap.
//
// Files that are arguments of an operation (Link's target, RenameAt's new
// folder) are passed as they are, not bound.
//
// The interfaces below whose methods take a context are for Files without Bind,
// or with a better way: they are looked for first on the File itself.
type Binder interface {
	Bind(ctx context.Context) p9.File
}

// Walker walks several names at once. It appends a QID to qids for each name
// that it got through. It returns a File only when it got through all of them;
// no names make a copy of the File, and no QID. err says why it stopped, and is
// used when it got through none. Names are not empty, ".", or with '/' or NUL
// in them; ".." at the root stays there.
//
// Without it the engine calls WalkGetAttr or Walk and GetAttr, name by name.
type Walker interface {
	WalkNames(qids []p9.QID, names []string) ([]p9.QID, p9.File, error)
}

// DirReader is an open folder that hands out its entries one by one. It calls
// add for each entry from offset on (0: from the start) until the folder ends
// or add says that there is no more room; an entry's Offset is what to pass to
// go on behind it. "." and ".." are among the entries if the tree wants clients
// to see them, which Linux programs expect.
//
// Without it the engine calls Readdir and takes its entries' types for QID
// types.
type DirReader interface {
	ReadDirContext(ctx context.Context, offset uint64, add func(Dirent) bool) error
}

// DirFiller is an open folder that packs its entries into the answer itself: all
// from offset on that p takes, as DirReader does with add. The engine prefers it
// in 9P2000.L. Run in place it may take a long listing back with ErrWouldBlock:
// what it has packed by then does not count.
type DirFiller interface {
	FillDir(offset uint64, p *wire.DirPacker) error
}

// Dirent is an entry of a folder. Its QID's type and version may be zero where
// finding them out would cost a stat: Linux looks at Path and Type only.
type Dirent struct {
	QID    p9.QID
	Offset uint64
	Type   uint8 // d_type of readdir(3): the file type bits of st_mode, shifted right by 12
	Name   string
}

// ContextReader is a File whose reads may wait. ctx ends when the request is
// flushed or the connection goes.
type ContextReader interface {
	ReadAtContext(ctx context.Context, p []byte, off int64) (int, error)
}

// PipeReader (see PipeSize and SpliceFile) is an open File whose contents can go from the page cache to a
// connection without being copied. PipeSize says how many bytes from off on a
// read of n bytes would get that way now, 0 for none. ReadToPipe then puts up to
// n bytes into a pipe(7), with splice(2), as many as fit; it never waits for room.
// Run in place both leave alone what would have to be waited for. What a client
// gets is what the pages hold when the client takes it: a File whose contents
// have to be those of the moment of the read must not be one.
type PipeReader interface {
	PipeSize(off int64, n int) int
	ReadToPipe(pipe int, off int64, n int) (int, error)
}

// PartWriter is an open File that a large write may come to in parts, in their
// order, so that it need not be received as a whole before: when WritesInParts
// says so and InPlace allows writes. What follows a part that fails is dropped,
// and the client told how much was written; so it is when it does not send the
// rest. Others' writes may come in between: not for files opened to append.
type PartWriter interface{ WritesInParts() bool }

// StreamReader is an open File that answers each read with what there is, as a
// pipe does: the engine sends a short answer on instead of reading on until
// the count is reached.
type StreamReader interface{ StreamReads() bool }

// ContextWriter is a File whose writes may wait.
type ContextWriter interface {
	WriteAtContext(ctx context.Context, p []byte, off int64) (int, error)
}

// LockTester answers Tgetlock: the first lock in the way of l, or l with Type
// p9.Unlock. Without it Tgetlock fails with EOPNOTSUPP.
type LockTester interface {
	GetLock(ctx context.Context, l Lock) (Lock, error)
}

// ContextLocker takes and releases byte-range locks; a request with
// p9.LockFlagsBlock waits until ctx ends, any other answers
// p9.LockStatusBlocked where it would wait. The engine prefers it over
// File.Lock.
type ContextLocker interface {
	LockContext(ctx context.Context, l Lock) (p9.LockStatus, error)
}

// Lock is a Tlock or Tgetlock. Length 0 means to the end of the file.
type Lock struct {
	Type          p9.LockType
	Flags         p9.LockFlags
	Start, Length uint64
	PID           uint32
	Client        string // client_id as sent; unique only together with Conn
	Conn          uint64 // User.Conn of the connection
}

// Closer is a File that wants to know whether the session ended without a
// clunk: then ctx has ended when CloseContext is called (locks go, dirty data
// stays), else it has not. It is called instead of Close. Its error answers a
// Tclunk; the fid is gone anyway.
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
