package kml

// Op is the opcode of a record. Opcodes with the bit OpOptional set may be
// skipped by a reader that does not know them; an unknown one without it stops
// the reader with ErrNewer.
type Op uint16

// The opcodes. One record is one mutation.
const (
	OpCreate      Op = 1  // a regular file: OID, Parent, Name, Attr; Xattrs it was born with
	OpMkdir       Op = 2  // a folder: as OpCreate
	OpSymlink     Op = 3  // a symbolic link: as OpCreate, with Target
	OpMknod       Op = 4  // a FIFO, socket or device: as OpCreate, with Attr.Rdev
	OpLink        Op = 5  // one more name for OID: Parent, Name
	OpUnlink      Op = 6  // Parent, Name; OID is what the name held; Victim
	OpRmdir       Op = 7  // Parent, Name; OID is the folder that goes; Victim
	OpRename      Op = 8  // OID from Parent, Name to NewParent, NewName; Victim when one was replaced
	OpSetattr     Op = 9  // OID, Attr and Old under Mask; never a size
	OpSetxattr    Op = 10 // OID, Name is the attribute, Value; OldValue, HadOld
	OpRemovexattr Op = 11 // OID, Name is the attribute; OldValue
	OpStore       Op = 12 // OID; Attr.Size and Attr.Mtime; Extents, Digest
	OpMark        Op = 13 // Mark says which kind; Name or Value hold its text

	OpOptional Op = 1 << 15 // "may be skipped" half of the opcode space
)

// Flags modify a record. The upper half may be ignored by a reader that does
// not know a bit; an unknown bit in the lower half stops the reader.
type Flags uint16

// The flags.
const (
	FlagNoReplace Flags = 1 << 0  // rename: the new name was free (RENAME_NOREPLACE)
	FlagExchange  Flags = 1 << 1  // rename: both names swapped; Victim is the object that came the other way
	FlagForeign   Flags = 1 << 8  // found in the directory, not made through our doors
	FlagRecovered Flags = 1 << 9  // decided at a restart
	FlagConflict  Flags = 1 << 10 // made while settling a conflict
	FlagGone      Flags = 1 << 11 // unlink, rmdir, rename: the victim lost its last name
)

// AttrMask says which fields of an Attr count.
type AttrMask uint16

// The fields of an Attr.
const (
	MaskMode AttrMask = 1 << iota
	MaskUID
	MaskGID
	MaskMtime
	MaskSize // only in Old and in snapshots: a setattr never carries a size
	MaskNlink
	MaskRdev
	MaskAtime // follows no record; present in a setattr made by utimensat
)

// MarkKind is what an OpMark record says.
type MarkKind uint8

// The kinds of mark.
const (
	MarkCommit MarkKind = 1 // everything up to Base.Pos is durable, tree and log
	MarkEpoch  MarkKind = 2 // an epoch starts: Value is its 16 random bytes, Name the reason
	MarkSite   MarkKind = 3 // a site was enrolled: Site is its number, Name the host, Value its key hash
	MarkNote   MarkKind = 4 // an administrator's note in Name
	MarkPolicy MarkKind = 5 // how conflicts are settled from here on: Value is the text
)
