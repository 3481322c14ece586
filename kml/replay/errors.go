package replay

import (
	"errors"
	"fmt"

	"github.com/mezzofs/mezzo/kml"
)

// Errors a caller compares.
var (
	// ErrBusy is a directory another replay works on.
	ErrBusy = errors.New("another replay works on it")
	// ErrCrashed is a directory whose replay a crash of the machine interrupted.
	ErrCrashed = errors.New("a crash of the machine interrupted its replay, and it may be neither here nor there")
	// ErrNotEmpty is a directory that holds something and was no replay's.
	ErrNotEmpty = errors.New("is not empty, and no replay made it")
	// ErrFileset is a directory that holds another fileset's replay.
	ErrFileset = errors.New("holds the replay of another fileset")
	// ErrHistory is a directory made from a history this log does not have.
	ErrHistory = errors.New("was made from another history than this log's")
	// ErrBehind is a directory that is farther than what was asked for.
	ErrBehind = errors.New("is already farther")
	// ErrStart is a log whose beginning is gone.
	ErrStart = errors.New("the log does not reach back to its beginning")
	// ErrChanged is a directory somebody else has changed.
	ErrChanged = errors.New("the directory is not as the log left it")
)

// RecordError is a record that could not be applied.
type RecordError struct {
	Pos  kml.Position
	Op   kml.Op
	Path string // what it was about, from the root
	Err  error
}

// Error names record and path.
func (e *RecordError) Error() string {
	return fmt.Sprintf("%q: %s at %s: %v", e.Path, e.Op, e.Pos, e.Err)
}

// Unwrap gives what went wrong.
func (e *RecordError) Unwrap() error { return e.Err }
