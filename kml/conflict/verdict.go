package conflict

import "github.com/mezzofs/mezzo/kml"

// Row is a row of the table.
type Row uint8

// The rows. RowNone is no conflict.
const (
	RowNone    Row = iota
	RowName        // the name a local object was to get holds another
	RowFolder      // a folder was made on both sides: they are one
	RowSame        // both sides did the same
	RowParent      // a parent was gone, and was made again
	RowGone        // the object was gone, and was made again
	RowData        // contents changed on both sides
	RowVictim      // a rename was to replace what is not there
	RowMoved       // the object is elsewhere by now
	RowLost        // the object, or the name, is gone, and nothing was lost with it
	RowCycle       // a folder was to move into itself
	RowRemoved     // removed here, changed there
	RowEntries     // a folder to be removed has entries
	RowAttr        // an attribute has another value
	RowXattr       // an extended attribute has
)

// String is a word for a row, for logs and the conflicts file.
func (r Row) String() string {
	names := [...]string{"none", "name", "folder", "same", "parent", "gone", "data", "victim", "moved", "lost", "cycle", "removed", "entries", "attribute", "xattr"}
	if int(r) < len(names) {
		return names[r]
	}
	return "?"
}

// Bytes says where the contents of a store come from.
type Bytes uint8

// The sources of contents.
const (
	BytesNone   Bytes = iota // the item is no store
	BytesOwn                 // of the record that was settled
	BytesGrave               // the contents this host has of the object (Grave.Whole)
	BytesMerged              // the result of the merge
)

// Item is a record that stands in the place of the one that was settled.
type Item struct {
	Rec   *kml.Record
	Bytes Bytes
}

// Alias is two objects that became one: From stands for To until its last handle
// closes.
type Alias struct{ From, To kml.OID }

// Move is a local name that is another one in the tree: what was made or moved
// here got a conflict name.
type Move struct {
	OID      kml.OID
	From, To Name
}

// Copy is contents that went to another object: OID is the conflict copy of Of,
// the master's. Here is the object that they were written to here: Of, or one that
// became Of by an alias. Handles on it go with the bytes.
type Copy struct{ Of, Here, OID kml.OID }

// Side is whose value is kept in conflicts.
type Side uint8

// The sides.
const (
	KeepNothing Side = iota // both are in the tree
	KeepMine                // the bytes or the value of the local record
	KeepTheirs              // the master's, which have to be had before the items are sent
)

// Loss is something a person may want to look at: a conflict, how it was settled
// and what has to be kept.
type Loss struct {
	Row   Row
	OID   kml.OID // the object that stands in the tree
	Other kml.OID // the local one: the conflict copy, or the one that took the conflict name; or 0
	Name  Name    // the place the conflict is about
	// Keep says what goes to the conflicts store. Mine: the bytes of Rec when it is
	// a store; else what this host has of the contents of Other.
	Keep Side
	Rec  *kml.Record // the local record, as it was given to Settle
	// Field is the attribute: mode, uid, gid, or an xattr's name. Mine and Theirs
	// are the values, numbers in decimal, a mode in octal.
	Field        string
	Mine, Theirs []byte
	// Version is the master's version of the contents, when Theirs is kept.
	Version kml.Position
	// Manual says that the local change waits for a person.
	Manual bool
}

// Merge is contents that a program or a rule may join.
type Merge struct {
	Policy Policy  // append or exec
	OID    kml.OID // whose contents at the master are theirs
	Mine   kml.OID // whose contents here are ours; it fails when there are none. 0: the bytes of the record
	Base   kml.Base
	Items  []Item // that stand when it succeeds
}

// Verdict is what becomes of a record.
type Verdict struct {
	Row     Row
	Items   []Item
	Aliases []Alias
	Moves   []Move
	Copy    *Copy
	Merge   *Merge
	Losses  []Loss

	// For the records that follow.
	dropped []kml.OID
	based   []based
	line    []line
	unseen  []kml.OID
	wanted  []Move
	late    []*kml.Record
}

// Dropped reports whether nothing stands in the record's place.
func (v *Verdict) Dropped() bool { return len(v.Items) == 0 }
