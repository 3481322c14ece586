package tree

import (
	"context"

	"github.com/mezzofs/mezzo/kml"
)

// Ext is the small synthetic folder that front ends show as .mezzo in the
// root: flat, or with folders inside. It can be walked to and is not listed by
// a readdir of the root.
type Ext interface {
	// Lookup finds an entry by its name; ENOENT when there is none.
	Lookup(ctx context.Context, c *Cred, name string) (ExtNode, error)
	// List names the entries this user may see.
	List(ctx context.Context, c *Cred) ([]ExtNode, error)
}

// ExtNode is an entry of an Ext: a folder when Dir is not nil.
type ExtNode struct {
	Name string
	ID   uint64 // unique and lasting within the Ext; becomes part of the inode number
	Mode uint32 // type and permission bits
	Text bool   // lines made at the open; blank lines at its end change nothing
	Dir  Ext
	// Size is the exact number of bytes a read of it now would give. nil: a
	// folder, or a stream, which answers each read with what there is.
	Size func(ctx context.Context) (uint64, error)
	// Open opens a file entry; flags as in open(2). ctx ends with the call.
	Open func(ctx context.Context, c *Cred, flags int) (ExtHandle, error)
}

// ExtHandle is an open file of an Ext.
type ExtHandle interface {
	// ReadAt may wait on a stream; it returns 0, nil at the end.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
	// Attr gives what a plain file behind the entry would say of itself (a
	// fetch of a version answers with its DataVersion); ok is false otherwise.
	Attr() (a Attr, ok bool)
	Close() error
}

// ExtDirName is the name of the Ext in the root of a served tree, and of the
// state folder in the root of the directory below.
const ExtDirName = ".mezzo"

// ExtMaker is an Ext in which a user may make and remove files. A front end
// finds it by assertion; an Ext without it answers EPERM to both.
type ExtMaker interface {
	// Create makes a file and opens it. flags as in open(2): with O_EXCL an
	// existing name is EEXIST, without it the existing file is opened.
	Create(ctx context.Context, c *Cred, name string, flags int) (ExtNode, ExtHandle, error)
	// Remove unlinks a file.
	Remove(ctx context.Context, c *Cred, name string) error
}

// Syncer is what can be made durable: every Handle, the DirHandles of an FS
// that can sync a folder, the ExtHandles that keep what was written to them. A
// front end finds it by assertion; fsync(2) of anything without it is EINVAL.
type Syncer interface {
	Fsync(ctx context.Context, datasync bool) error
}

// Waiter is an FS whose changes may wait until they are durable, each before it
// is answered. A front end finds it by assertion; without it none do.
type Waiter interface {
	Waits() bool
}

// Pinner is a Handle that knows whether it keeps contents its object has left
// behind: Pinned is true from the moment they are replaced, and Attr then gives
// the size and, as far as it is known, the DataVersion of what the handle
// reads. A front end finds it by assertion; a Handle without it follows.
type Pinner interface {
	Pinned() bool
	// Content is Attr.Content of what the handle reads; 0 says nothing.
	Content() uint64
}

// LockLoser is an FS whose locks are another host's to give, and which can lose
// them. LostLock reports that the locks an owner had on an object were lost; with
// told it does so once. A front end finds it by assertion and asks before what is
// done through the descriptor that the locks were taken with, which is EIO then.
type LockLoser interface {
	LostLock(oid kml.OID, o LockOwner, told bool) bool
}
