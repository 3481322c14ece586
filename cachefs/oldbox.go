package cachefs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mezzofs/mezzo/kml"
)

// UnsentError is a cache with changes in the form of an earlier version, in which
// they cannot be sent.
type UnsentError struct {
	Dir     string // they are in
	Changes int
}

func (e *UnsentError) Error() string {
	return fmt.Sprintf("%s has %d changes of an earlier version of mezzo that the master has not got; mount the cache with that version until it has sent them, or move the folder away to give them up", e.Dir, e.Changes)
}

// checkOutbox removes the folder in which an earlier version kept what it sent,
// when all of that was done.
func checkOutbox(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "log"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	const magic, head = "mezzoob1", 9
	live := make(map[uint64]bool)
	if len(b) >= len(magic) && string(b[:len(magic)]) != magic {
		return &UnsentError{dir, 1} // in whichever form
	}
	for at := len(magic); at+head <= len(b); {
		n := int(binary.LittleEndian.Uint32(b[at:]))
		kind, body := b[at+8], b[at+head:]
		if n > len(body) {
			break // was being written
		}
		body = body[:n]
		switch {
		case kind == 1:
			r, _, _, err := kml.ParseRecord(body, 0)
			if err != nil {
				return &UnsentError{dir, len(live) + 1}
			}
			live[r.Origin.Seq] = true
		case kind == 2 && n == 8:
			delete(live, binary.LittleEndian.Uint64(body))
		}
		at += head + n
	}
	if len(live) > 0 {
		return &UnsentError{dir, len(live)}
	}
	return os.RemoveAll(dir)
}
