package conflict

import (
	"syscall"
	"time"

	"github.com/mezzofs/mezzo/kml"
)

// Name is a name in a folder.
type Name struct {
	Parent kml.OID
	Name   string
}

// Object is what a tree says of one object.
type Object struct {
	Attr        kml.Attr // with the type in Mode; Nlink counts names
	Target      string   // a symbolic link's
	DataVersion kml.Position
	DataOrigin  kml.Origin
	Ctime       int64 // time of the last change, nanoseconds since 1970
	// Local says that the contents are those of a local record that stands.
	Local bool
}

// Grave is what a host last knew of an object that is gone at the master.
type Grave struct {
	Object
	At     Name        // where it was last; a zero Parent: not known
	Xattrs []kml.Xattr // that are journaled
	// Whole says that the contents are here, in whole: a file can be made again
	// from them.
	Whole bool
}

// State is the tree that a record is about to be put on: the master's, with the
// local records that were settled before on top. It is not changed during a call
// of Settle.
type State interface {
	// Object is an object that has a name; ok is false when it has none.
	Object(oid kml.OID) (o Object, ok bool)
	// Child is what a name holds.
	Child(n Name) (oid kml.OID, ok bool)
	// Name is one of the names of an object; a folder has one.
	Name(oid kml.OID) (n Name, ok bool)
	// Empty reports whether a folder has no entries.
	Empty(oid kml.OID) bool
	// Xattr is an extended attribute.
	Xattr(oid kml.OID, name string) (value []byte, ok bool)
	// Grave is what is known of an object that is gone.
	Grave(oid kml.OID) (g Grave, ok bool)
	// SameContents reports whether the contents that this host has for mine, with
	// all that was written here, are those of theirs. False when in doubt.
	SameContents(mine, theirs kml.OID) bool
	// SameBytes is the same of the bytes of one local store. The record is the one
	// that was given to Settle.
	SameBytes(store *kml.Record, theirs kml.OID) bool
	// Later reports whether a local record behind r stores contents of an object.
	// Both are as they are in the local log, before anything was settled.
	Later(r *kml.Record, oid kml.OID) bool
	// Removes reports whether a local record behind r takes a name from an object to
	// which nothing is given for it: an unlink, or a rename over it. Both are as they
	// are in the local log.
	Removes(r *kml.Record, oid kml.OID) bool
	// Err is why an answer since the last call of Err is not to be trusted, such
	// as a folder that is not listed: Settle then fails with it and may be called
	// again.
	Err() error
}

// Host is who settles.
type Host struct {
	Site kml.SiteID
	Name string // in conflict names
	Now  func() time.Time
	// Skew is by how much this host's clock may differ from the master's; it is
	// unknown while SkewKnown is false.
	Skew      time.Duration
	SkewKnown bool
	// Mint gives the oid of a new object.
	Mint func() (kml.OID, error)
	// CopyOf is the conflict copy that this host made of an object and that is
	// still open, or 0. Nil: there is none.
	CopyOf func(oid kml.OID) kml.OID
}

// maxSkew is how far clocks may differ for newest to be believed.
const maxSkew = 5 * time.Second

// clocks reports whether times of two hosts can be compared.
func (h *Host) clocks() bool { return h.SkewKnown && h.Skew.Abs() <= maxSkew }

const (
	modeType = syscall.S_IFMT
	modeDir  = syscall.S_IFDIR
	modeReg  = syscall.S_IFREG
	modeLink = syscall.S_IFLNK
)

func isDir(o Object) bool  { return o.Attr.Mode&modeType == modeDir }
func isFile(o Object) bool { return o.Attr.Mode&modeType == modeReg }
