package tree

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// maxNote is how long a note may be, in bytes.
const maxNote = 1024

// Note puts an administrator's note into the log, a name for the moment, and is
// durable when it returns. It may be used by many goroutines.
func (t *Tree) Note(ctx context.Context, c *Cred, text string) (kml.Position, error) {
	if text == "" || len(text) > maxNote || strings.ContainsAny(text, "\n\x00") {
		return 0, fmt.Errorf("a note is one line of 1 to %d bytes: %w", maxNote, syscall.EINVAL)
	}
	if err := t.broken(); err != nil {
		return 0, err
	}
	r := t.record(c, kml.OpMark)
	r.Mark, r.Name = kml.MarkNote, text
	res, err := t.reserve(r)
	if err != nil {
		return 0, err
	}
	defer res.Release()
	if err := t.journal(mutation{rec: r, res: &res}); err != nil {
		return 0, err
	}
	return r.Pos, t.commit(ctx)
}

// Truncate drops segments of the log that need not be kept to have the last size
// bytes and the records of the last age, and says how many. It does so once;
// Options say what the tree drops by itself. Zero keeps nothing for that reason.
func (t *Tree) Truncate(ctx context.Context, size int64, age time.Duration) (segments int, err error) {
	if err := t.commit(ctx); err != nil { // what is not durable does not go
		return 0, err
	}
	return t.retainTo(max(size, 1), max(age, 1))
}

// PathOf is where an object is, from the root: one of its paths. An object that has
// none is ErrNotFound.
func (t *Tree) PathOf(oid kml.OID) (string, error) {
	p := ""
	for depth := 0; oid != kml.RootOID; depth++ {
		o, err := t.index.Get(oid)
		if err != nil {
			return "", err
		}
		if o.Parent == 0 || depth > maxDepth {
			return "", ErrNotFound
		}
		p, oid = path.Join(o.Name, p), o.Parent
	}
	return "/" + p, nil
}

// DamagedText is the damaged files as text, a line each: the oid, the version whose
// contents are missing, a path, quoted as in Go, and what happened.
func (t *Tree) DamagedText() []byte {
	var b []byte
	for _, d := range t.Damaged() {
		p, err := t.PathOf(d.OID)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		b = fmt.Appendf(b, "%v %v %q %s\n", d.OID, d.Version, p, d.Reason)
	}
	return b
}

// Control obeys a line of an administrator's: "mark TEXT", "truncate BYTES
// DURATION", "accept OID" (see AcceptDamaged), "scan" or "sync"; of a replica's also
// "mend data|attr PARENT NAME" (see Replica.Mend). A line that says
// nothing of the kind is EINVAL.
func (t *Tree) Control(ctx context.Context, c *Cred, line string) error {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "mark":
		_, err := t.Note(ctx, c, rest)
		return err
	case "accept":
		var oid kml.OID
		if err := oid.UnmarshalText([]byte(rest)); err != nil {
			return fmt.Errorf("accept %q: %w: %w", rest, err, syscall.EINVAL)
		}
		return t.AcceptDamaged(ctx, oid)
	case "truncate":
		var size int64
		var age string
		if n, err := fmt.Sscanf(rest, "%d %s", &size, &age); n != 2 || err != nil || size < 0 {
			return fmt.Errorf("truncate %q: want bytes and a duration: %w", rest, syscall.EINVAL)
		}
		d, err := time.ParseDuration(age)
		if err != nil || d < 0 {
			return fmt.Errorf("truncate %q: %q is no duration: %w", rest, age, syscall.EINVAL)
		}
		_, err = t.Truncate(ctx, size, d)
		return err
	case "mend":
		if t.replica == nil {
			return fmt.Errorf("mend: is no replica: %w", syscall.EINVAL)
		}
		return t.replica.mendLine(rest)
	case "scan":
		return t.Scan(ctx)
	case "sync":
		return t.commit(ctx)
	}
	return fmt.Errorf("%q is no command: %w", word, unix.EINVAL)
}
