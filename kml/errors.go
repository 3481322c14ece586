package kml

import (
	"errors"
	"fmt"
	"path/filepath"
)

// Errors a caller compares with errors.Is.
var (
	// ErrNewer is a record or segment that must be understood and is not: a
	// newer mezzo wrote it.
	ErrNewer = errors.New("needs a newer mezzo")
	// ErrCorrupt is bytes that are no record: a bad length, CRC or field.
	ErrCorrupt = errors.New("damaged record")
	// ErrShort is the beginning of a record whose rest is not there.
	ErrShort = errors.New("record is cut short")
	// ErrChain is a whole record that does not follow the one before it.
	ErrChain = errors.New("record belongs to another history")
	// ErrTooLarge is a record that would be longer than MaxRecord.
	ErrTooLarge = errors.New("record is too large")
	// ErrInvalid is a record with a field that cannot be written.
	ErrInvalid = errors.New("invalid record")
	// ErrTruncated is a position older than what retention left.
	ErrTruncated = errors.New("log no longer reaches back to this position")
	// ErrHistoryCut is a position that this log does not have: it belongs to a
	// history that was cut, or has not been reached.
	ErrHistoryCut = errors.New("position is not in this history")
	// ErrFileset is a log of another fileset.
	ErrFileset = errors.New("log belongs to another fileset")
	// ErrClosed is a log or reader that was closed.
	ErrClosed = errors.New("log is closed")
	// ErrReadOnly is a change asked of a log opened with Options.ReadOnly.
	ErrReadOnly = errors.New("log is open for reading only")
)

// DamageError is damage before the last commit mark: bytes that were durable
// are not what was written. Nothing is changed; a person decides.
type DamageError struct {
	Segment string   // path of the segment
	Offset  int64    // of the first bad byte's record in the segment
	After   Position // the last good record before it
	Mark    Position // the last commit mark found behind it
	Err     error    // what is wrong there
}

// Error names the place and the remedies.
func (e *DamageError) Error() string {
	what := "this was durable"
	if e.Mark != 0 {
		what = fmt.Sprintf("the commit mark at %s says this was durable", e.Mark)
	}
	return fmt.Sprintf("%s: offset %d, after position %s: %v; %s; "+
		"restore %s from a full replica or a backup, or move the log's folder away and make the directory a fileset anew",
		e.Segment, e.Offset, e.After, e.Err, what, filepath.Base(e.Segment))
}

// Unwrap gives what is wrong at the place.
func (e *DamageError) Unwrap() error { return e.Err }
