package kml

// OID names an object for ever: 20 bits of site, 44 bits of counter. It is the
// 9P qid.path and the FUSE inode number. It never changes and is never reused.
type OID uint64

// RootOID is the root folder of every fileset (site 0, counter 1).
const RootOID OID = 1

// SiteID is one installation, numbered by the master: 1 to MaxSite. Site 0
// mints nothing but the root.
type SiteID uint32

// Limits of an OID's two halves.
const (
	MaxSite    SiteID = 1<<20 - 1
	MaxCounter uint64 = 1<<44 - 1
)

// MakeOID joins a site and its counter.
func MakeOID(s SiteID, counter uint64) OID { return OID(uint64(s)<<44 | counter&MaxCounter) }

// Site is the site that minted o.
func (o OID) Site() SiteID { return SiteID(o >> 44) }

// Counter is o's number at its site.
func (o OID) Counter() uint64 { return uint64(o) & MaxCounter }

// Position is a place in the master's total order: 16 bits of epoch, 48 of
// record number. Positions of one fileset compare as integers; the record
// number goes on counting across epochs. Zero is "before everything".
type Position uint64

// MakePosition joins an epoch and a record number.
func MakePosition(epoch uint16, recno uint64) Position {
	return Position(uint64(epoch)<<48 | recno&(1<<48-1))
}

// Epoch is the epoch of p.
func (p Position) Epoch() uint16 { return uint16(p >> 48) }

// Recno is the record number of p.
func (p Position) Recno() uint64 { return uint64(p) & (1<<48 - 1) }

// Origin is who made a record first: a site and its own count of records. The
// master applies each origin once. Seq is at most MaxCounter.
type Origin struct {
	Site SiteID
	Seq  uint64
}

// Attr is what a record says of an object. Times are nanoseconds since 1970.
type Attr struct {
	Mode  uint32 // type and permission bits as in stat(2) st_mode
	UID   uint32
	GID   uint32
	Nlink uint32 // in snapshots and victims; replay counts links itself
	Rdev  uint64 // device number as in makedev(3)
	Size  uint64 // bytes
	Mtime int64
	Atime int64
}

// Extent is a range of bytes, [Off, Off+Len).
type Extent struct{ Off, Len uint64 }

// Xattr is one extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// Victim is what lost a name to an unlink, rmdir or rename: enough to undo it
// and to tell whether it was what the writer had seen.
type Victim struct {
	OID         OID
	Version     Position // last change of any kind
	DataVersion Position // last change of contents
	Attr        Attr
	Target      string // a symbolic link's
}

// Base is the version a record was made against: a position, or, when Seq is
// not zero, the writer's own record of that number.
type Base struct {
	Pos Position
	Seq uint64
}

// Record is one mutation, or a mark. Fields that an opcode does not use are
// zero. Values are resulting values: replay sets exactly those. Empty byte
// slices and nil mean the same, except Extents: nil is "all of it", empty is
// "no bytes, only the times".
type Record struct {
	Pos    Position // the log's place; zero in an outbox, an intent, a snapshot
	Op     Op
	Flags  Flags
	Time   int64  // wall clock, nanoseconds since 1970
	UID    uint32 // author
	GID    uint32
	Origin Origin

	OID       OID
	Parent    OID
	Name      string // bytes as the file system holds them; an xattr's name; a mark's text
	NewParent OID
	NewName   string

	Mask   AttrMask // OpSetattr: which of Attr, Old count
	Attr   Attr
	Target string
	Value  []byte // an xattr's value, a mark's bytes
	Xattrs []Xattr

	HadOld   bool
	Old      Attr
	OldValue []byte
	Victim   *Victim

	Base       Base // of OID: data for a store, anything for the rest; MarkCommit, MarkEpoch: Pos is the last durable position
	VictimBase Base // of what a rename or unlink removes

	ParentMtime    int64 // resulting mtime of Parent; zero: untouched
	NewParentMtime int64

	Extents []Extent // OpStore: changed ranges; nil: all of it
	Digest  []byte   // OpStore: BLAKE3-256 of the whole contents, or nil

	Mark MarkKind
	Site SiteID // MarkSite

	// Unknown holds body fields of the optional half that this reader does not
	// know, encoded; they are kept and written out again.
	Unknown []byte
}
