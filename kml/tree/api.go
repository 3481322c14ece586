package tree

import (
	"context"

	"github.com/mezzofs/mezzo/kml"
)

// FS is what a front end (FUSE, 9P) serves: objects by oid. All methods may be
// called at the same time. Errors are syscall.Errno values, possibly wrapped;
// ESTALE means that the object has no name and no handle any more, EHOSTDOWN
// that it is not here and the master cannot be reached.
//
// Names are checked by the callee: empty, ".", "..", with '/' or NUL is
// EINVAL, longer than 255 bytes ENAMETOOLONG; ".mezzo" in the root is EPERM
// (the front end shows an Ext there).
//
// A context carries the Door the call came through, see WithDoor.
type FS interface {
	Lookup(ctx context.Context, c *Cred, parent kml.OID, name string) (Attr, error)
	// Parent is the folder that holds a folder; the root's is the root.
	Parent(ctx context.Context, oid kml.OID) (kml.OID, error)
	// Getattr answers for unlinked objects too while a Handle on them is open.
	Getattr(ctx context.Context, c *Cred, oid kml.OID) (Attr, error)
	// Setattr changes the fields in s.Mask and returns the result. h may be an
	// open handle of the object, or nil. A size change counts as a write.
	Setattr(ctx context.Context, c *Cred, oid kml.OID, h Handle, s SetAttr) (Attr, error)
	Readlink(ctx context.Context, c *Cred, oid kml.OID) (string, error)

	// Open opens a regular file. flags are open(2)'s: access mode, O_TRUNC,
	// O_APPEND count. FIFOs, sockets and devices are the front end's kernel's
	// business: EOPNOTSUPP.
	Open(ctx context.Context, c *Cred, oid kml.OID, flags int) (Handle, error)
	OpenDir(ctx context.Context, c *Cred, oid kml.OID) (DirHandle, error)

	// Create makes a regular file and opens it; with O_EXCL an existing name
	// is EEXIST, without it an existing regular file is opened.
	Create(ctx context.Context, c *Cred, parent kml.OID, name string, flags int, mode uint32) (Attr, Handle, error)
	Mkdir(ctx context.Context, c *Cred, parent kml.OID, name string, mode uint32) (Attr, error)
	Symlink(ctx context.Context, c *Cred, parent kml.OID, name, target string) (Attr, error)
	Mknod(ctx context.Context, c *Cred, parent kml.OID, name string, mode uint32, rdev uint64) (Attr, error)
	Link(ctx context.Context, c *Cred, oid, parent kml.OID, name string) (Attr, error)
	Unlink(ctx context.Context, c *Cred, parent kml.OID, name string) error
	Rmdir(ctx context.Context, c *Cred, parent kml.OID, name string) error
	// Rename takes renameat2(2)'s RENAME_NOREPLACE and RENAME_EXCHANGE.
	Rename(ctx context.Context, c *Cred, parent kml.OID, name string, newParent kml.OID, newName string, flags uint32) error

	// Getxattr's missing attribute is ENODATA. Setxattr takes XATTR_CREATE, XATTR_REPLACE.
	Getxattr(ctx context.Context, c *Cred, oid kml.OID, name string) ([]byte, error)
	Listxattr(ctx context.Context, c *Cred, oid kml.OID) ([]string, error)
	Setxattr(ctx context.Context, c *Cred, oid kml.OID, name string, value []byte, flags int) error
	Removexattr(ctx context.Context, c *Cred, oid kml.OID, name string) error

	Statfs(ctx context.Context, oid kml.OID) (Statfs, error)

	// SetLock takes, changes or (F_UNLCK) gives up a lock; with wait it blocks
	// until ctx ends, else a conflict is EAGAIN. TestLock returns the first
	// lock in the way, or l with Type F_UNLCK.
	SetLock(ctx context.Context, oid kml.OID, l Lock, wait bool) error
	TestLock(ctx context.Context, oid kml.OID, l Lock) (Lock, error)
	// Unlock drops every lock of an owner on an object (oid 0: on all).
	Unlock(oid kml.OID, o LockOwner)

	// Watch calls f for every visible change, in order, until cancel. f must
	// not block and must not call the FS.
	Watch(f func(Change)) (cancel func())
}

// Handle is an open regular file. A handle open for reading keeps the version
// it was opened on; one open for writing follows the object.
type Handle interface {
	OID() kml.OID
	Attr(ctx context.Context) (Attr, error)
	// ReadAt fills p unless the file ends; at the end it returns 0, nil.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// WriteAt writes all of p or returns an error; with O_APPEND off is ignored.
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
	// Flush is a close(2) of one descriptor: what was written becomes a store.
	Flush(ctx context.Context) error
	Fsync(ctx context.Context, datasync bool) error
	// Allocate is fallocate(2).
	Allocate(ctx context.Context, off, length uint64, mode uint32) error
	// Seek is lseek(2) for SEEK_DATA and SEEK_HOLE.
	Seek(ctx context.Context, off int64, whence int) (int64, error)
	// Fd is a descriptor the caller may read from directly while the handle is
	// open; ok is false when reads must go through ReadAt.
	Fd() (fd int, ok bool)
	// Close releases the handle after a last Flush. It may be called once.
	Close() error
}

// DirHandle is an open folder. Reading at offset 0 takes a new picture of the
// folder; later offsets go on in that picture, so that nothing that stays is
// missed or seen twice. An offset that another handle of the folder gave may be
// gone on from, too: kernels do that when they have dropped part of a listing
// that they kept.
type DirHandle interface {
	// ReadDir returns up to max entries from off on; none at the end. "." and
	// ".." are not among them. An entry's Off is the offset behind it. The
	// entries are shared and must not be changed.
	ReadDir(ctx context.Context, off uint64, max int) ([]DirEntry, error)
	Close() error
}

// DirEntry is a name in a folder.
type DirEntry struct {
	Name string
	OID  kml.OID
	Type uint32 // S_IFMT bits of the mode
	Off  uint64
}

// Cred says who acts. A nil Cred is the process itself.
type Cred struct {
	UID    uint32
	GID    uint32
	Groups []uint32
	// Checked: the kernel has checked permission already (FUSE with
	// default_permissions); the process acts and gives what it makes to
	// UID and GID. Else the call runs with the user's file-system ids.
	Checked bool
}

// Attr is what stat(2) and more would say. Times are nanoseconds since 1970.
type Attr struct {
	OID    kml.OID
	Mode   uint32 // type and permission bits
	Nlink  uint32
	UID    uint32
	GID    uint32
	Rdev   uint64
	Size   uint64 // bytes
	Blocks uint64 // 512-byte units
	Atime  int64
	Mtime  int64
	Ctime  int64
	Btime  int64
	// Version is the position of the last record that changed the object.
	Version kml.Position
	// DataVersion moves with every change of contents: a position while the
	// object is clean, a value with the top bit set while it is open-dirty.
	DataVersion uint64
	// Content tells the contents of a regular file apart over replacements: it
	// moves when they are replaced under those who read them, which keep the
	// older ones, and not when they are written to. It is of no use outside this
	// process; 0 says nothing.
	Content uint64
}

// DataDirty is set in Attr.DataVersion while an object is open-dirty.
const DataDirty = uint64(1) << 63

// SetMask says which fields of a SetAttr count.
type SetMask uint32

// The fields of a SetAttr.
const (
	SetMode SetMask = 1 << iota
	SetUID
	SetGID
	SetSize
	SetAtime
	SetMtime
	SetAtimeNow
	SetMtimeNow
)

// SetAttr is a change of attributes.
type SetAttr struct {
	Mask     SetMask
	Mode     uint32 // permission bits
	UID, GID uint32
	Size     uint64
	Atime    int64
	Mtime    int64
}

// Statfs is statfs(2) of the file system below.
type Statfs struct {
	Type, Bsize, Namelen           uint32
	Blocks, Bfree, Bavail          uint64
	Files, Ffree                   uint64
	FsidLow, FsidHigh, FragmentLen uint32
}

// LockOwner tells lock owners of all doors apart.
type LockOwner struct {
	Door  Door
	Owner uint64 // the door's own number: FUSE lock owner, 9P connection and pid
}

// Lock is a byte range lock, or with Flock a lock of the whole file in its own
// space (flock(2)). Start and End are inclusive; End ^0 is "to the end".
type Lock struct {
	Type       int16 // unix.F_RDLCK, F_WRLCK, F_UNLCK
	Flock      bool
	Start, End uint64
	PID        uint32
	Owner      LockOwner
}

// Change is one visible change.
type Change struct {
	Kind   ChangeKind
	OID    kml.OID // what changed; for ChangeEntry what the name holds now, or held last when Gone
	Parent kml.OID // ChangeEntry
	Name   string
	Gone   bool // ChangeEntry: the name holds nothing now
	Door   Door // who made it; 0 when nobody here did
}

// ChangeKind says what changed; kinds may be joined.
type ChangeKind uint8

// The kinds of change.
const (
	ChangeEntry ChangeKind = 1 << iota // a name
	ChangeAttr                         // attributes or xattrs of OID
	ChangeData                         // contents of OID
)

// Door is a front end's number, so that it can tell its own changes.
type Door uint32

type doorKey struct{}

// WithDoor marks what is done under ctx as done through d.
func WithDoor(ctx context.Context, d Door) context.Context {
	return context.WithValue(ctx, doorKey{}, d)
}

// DoorOf is the door of ctx, or 0.
func DoorOf(ctx context.Context) Door {
	d, _ := ctx.Value(doorKey{}).(Door)
	return d
}

// caughtUpKey is the key of a CatchUpper in a context.
type caughtUpKey struct{}

// CatchUpper is a context of a front end that wants to be told when its operation
// has waited for the master and is answered as of the master's tree then: before
// the answer it takes from its own caches what is older.
type CatchUpper interface{ CaughtUp() }

// CatchUpKey is the key under which a context has its CatchUpper.
func CatchUpKey() any { return caughtUpKey{} }

// CaughtUp tells the front end whose operation ctx is.
func CaughtUp(ctx context.Context) {
	if u, ok := ctx.Value(caughtUpKey{}).(CatchUpper); ok {
		u.CaughtUp()
	}
}
