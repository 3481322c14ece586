package tree

import (
	"fmt"
	"os"
	"path"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/glob"
)

// Choice is what part of a fileset a replica keeps. Folders are there, empty or
// not, unless they are excluded themselves.
type Choice struct {
	Only    []glob.Glob // files that match one of them; none: all files
	Exclude []glob.Glob // neither what matches nor what is below it
	MaxSize uint64      // of files, in bytes; 0: any
}

// choiceFile is the choice in the state folder, as words of DigestOptions.
const choiceFile = "choice"

// choose takes a choice, or the one that was taken last, and remembers it.
func (r *Replica) choose(c *Choice, same bool) error {
	path := r.t.state.Path(choiceFile)
	if same {
		b, err := os.ReadFile(path)
		if err != nil {
			return ignore(err, os.ErrNotExist)
		}
		o, err := ParseDigestOptions(string(b))
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		r.choice.Store(o.Choose)
		return nil
	}
	r.choice.Store(c)
	text := DigestOptions{Choose: c}.String()
	if b, err := os.ReadFile(path); err == nil && string(b) == text {
		return nil
	}
	if err := renameio.WriteFile(path, []byte(text), 0o600); err != nil {
		r.t.logger.Warn("what is kept is not remembered for mezzo verify", "fileset", r.t.dir, "err", err)
	}
	return nil
}

func matchesAny(list []glob.Glob, full string) bool {
	for _, g := range list {
		if g.Match(full) {
			return true
		}
	}
	return false
}

// keeps reports whether what is at a path belongs to the choice.
func (c *Choice) keeps(full string, mode uint32, size uint64) bool {
	if c == nil {
		return true
	}
	for at := full; at != "." && at != "" && at != "/"; at = path.Dir(at) {
		if matchesAny(c.Exclude, at) {
			return false
		}
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return true
	case unix.S_IFREG:
		if c.MaxSize > 0 && size > c.MaxSize {
			return false
		}
	}
	return len(c.Only) == 0 || matchesAny(c.Only, full)
}

// kept reports whether an object is to be in the directory, under the name it
// has or would have.
func (r *Replica) kept(n Name, a *kml.Attr) bool {
	c := r.choice.Load()
	if c == nil || n.Parent == 0 {
		return true
	}
	full := n.Name
	if n.Parent != kml.RootOID {
		up := r.Path(n.Parent)
		if up == "" {
			return true // in limbo, or gone
		}
		full = up + "/" + n.Name
	}
	return c.keeps(full, a.Mode, a.Size)
}

// keptNames are those of an object's names under which it is to be in the
// directory.
func (r *Replica) keptNames(names []Name, a *kml.Attr) []Name {
	if r.choice.Load() == nil {
		return names
	}
	var kept []Name
	for _, n := range names {
		if r.kept(n, a) {
			kept = append(kept, n)
		}
	}
	return kept
}

// chooseAgain looks at a folder, and what is below it, that was renamed: other
// patterns may match.
func (r *Replica) chooseAgain(oid kml.OID) {
	if r.choice.Load() == nil {
		return
	}
	o, err := r.t.index.Get(oid)
	if err != nil || o.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
		return
	}
	if err := r.lackingBelow(oid, 0); err != nil {
		r.trouble(oid, r.Path(oid), "list", err)
	}
}
