package replay

import (
	"path"
	"slices"
	"strings"

	"github.com/mezzofs/mezzo/kml"
)

// Name is one name of an object: in which folder, and as what.
type Name struct {
	Parent kml.OID
	Name   string
}

// Names knows the names of all objects at one position of a log. The zero value
// is an empty tree.
type Names struct {
	of map[kml.OID][]Name
}

// Apply takes in what r does to names.
func (n *Names) Apply(r *kml.Record) {
	if n.of == nil {
		n.of = make(map[kml.OID][]Name)
	}
	from, to := Name{r.Parent, r.Name}, Name{r.NewParent, r.NewName}
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod, kml.OpLink:
		n.add(r.OID, from)
	case kml.OpUnlink, kml.OpRmdir:
		n.remove(r.OID, from)
	case kml.OpRename:
		n.remove(r.OID, from)
		if v := r.Victim; v != nil {
			n.remove(v.OID, to)
			if r.Flags&kml.FlagExchange != 0 {
				n.add(v.OID, from)
			}
		}
		n.add(r.OID, to)
	}
}

func (n *Names) add(o kml.OID, at Name) {
	if !slices.Contains(n.of[o], at) {
		n.of[o] = append(n.of[o], at)
	}
}

func (n *Names) remove(o kml.OID, at Name) {
	i := slices.Index(n.of[o], at)
	if i < 0 {
		return
	}
	// A new slice: what Of returned stays as it was.
	if left := slices.Delete(slices.Clone(n.of[o]), i, i+1); len(left) > 0 {
		n.of[o] = left
	} else {
		delete(n.of, o)
	}
}

// Of is the names of an object; they are not to be changed. None: it is gone, or
// the log never told of it.
func (n *Names) Of(o kml.OID) []Name { return n.of[o] }

// maxDepth ends the way to the root in a log where it goes round in a circle.
const maxDepth = 4096

// Dir is the path of a folder from the root, without a slash before it; the
// root's is ".". ok is false when the log does not tell where it hangs: then the
// path begins with its topmost folder that is known, as "?SITE:COUNTER".
func (n *Names) Dir(o kml.OID) (dir string, ok bool) {
	var parts []string
	for ; o != kml.RootOID; o = n.of[o][0].Parent {
		if len(n.of[o]) == 0 || len(parts) == maxDepth {
			parts = append(parts, "?"+o.String())
			slices.Reverse(parts)
			return strings.Join(parts, "/"), false
		}
		parts = append(parts, n.of[o][0].Name)
	}
	slices.Reverse(parts)
	return path.Clean(strings.Join(parts, "/")), true
}

// Paths is the paths of an object from the root, as Dir gives them.
func (n *Names) Paths(o kml.OID) []string {
	if o == kml.RootOID {
		return []string{"."}
	}
	var all []string
	for _, at := range n.of[o] {
		all = append(all, n.join(at.Parent, at.Name))
	}
	return all
}

func (n *Names) join(parent kml.OID, name string) string {
	if dir, _ := n.Dir(parent); dir != "." {
		return dir + "/" + name
	}
	return name
}

// Touched is the paths that r is about: those of the name it makes, takes away
// or moves, before and after, or else those of its object. It is asked before r
// is applied.
func (n *Names) Touched(r *kml.Record) []string {
	switch r.Op {
	case kml.OpMark:
		return nil
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod, kml.OpLink, kml.OpUnlink, kml.OpRmdir:
		return []string{n.join(r.Parent, r.Name)}
	case kml.OpRename:
		return []string{n.join(r.Parent, r.Name), n.join(r.NewParent, r.NewName)}
	}
	return n.Paths(r.OID)
}
