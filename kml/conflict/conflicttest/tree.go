package conflicttest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"syscall"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/conflict"
)

// Name is a name in a folder.
type Name = conflict.Name

func name(parent kml.OID, base string) Name { return Name{Parent: parent, Name: base} }

// Object is an object of a Tree.
type Object struct {
	conflict.Object
	Data   string
	Xattrs map[string]string
}

// Tree is a tree in memory.
type Tree struct {
	Objects map[kml.OID]*Object
	Names   map[Name]kml.OID
}

const (
	typeMask = syscall.S_IFMT
	typeDir  = syscall.S_IFDIR
	typeFile = syscall.S_IFREG
	typeLink = syscall.S_IFLNK
)

// NewTree is a root without entries.
func NewTree() *Tree {
	return &Tree{
		Objects: map[kml.OID]*Object{kml.RootOID: {Object: conflict.Object{Attr: kml.Attr{Mode: typeDir | 0o755}}}},
		Names:   make(map[Name]kml.OID),
	}
}

// Clone is a tree of its own.
func (t *Tree) Clone() *Tree {
	n := &Tree{Objects: make(map[kml.OID]*Object, len(t.Objects)), Names: maps.Clone(t.Names)}
	for oid, o := range t.Objects {
		c := *o
		c.Xattrs = maps.Clone(o.Xattrs)
		n.Objects[oid] = &c
	}
	return n
}

// Of is the names of an object, in order.
func (t *Tree) Of(oid kml.OID) []Name {
	var ns []Name
	for n, held := range t.Names {
		if held == oid {
			ns = append(ns, n)
		}
	}
	slices.SortFunc(ns, func(a, b Name) int {
		return cmp.Or(cmp.Compare(a.Parent, b.Parent), cmp.Compare(a.Name, b.Name))
	})
	return ns
}

// Empty reports whether a folder has no entries.
func (t *Tree) Empty(oid kml.OID) bool {
	for n := range t.Names {
		if n.Parent == oid {
			return false
		}
	}
	return true
}

func (t *Tree) isDir(oid kml.OID) bool {
	o := t.Objects[oid]
	return o != nil && o.Attr.Mode&typeMask == typeDir
}

// errStale is a record that does not fit the tree.
var errStale = errors.New("the tree is not what the record says")

func stale(r *kml.Record, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", kml.AppendText(nil, r), fmt.Sprintf(format, args...), errStale)
}

// Apply puts a record on the tree; data is the contents of a store. An error is a
// record that does not fit, and changes nothing.
func (t *Tree) Apply(r *kml.Record, data string) error {
	at, to := name(r.Parent, r.Name), name(r.NewParent, r.NewName)
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod:
		if err := t.free(r, at); err != nil {
			return err
		}
		if t.Objects[r.OID] != nil {
			return stale(r, "the oid is in use")
		}
		o := &Object{Object: conflict.Object{Attr: r.Attr, Target: r.Target, DataVersion: r.Pos, DataOrigin: r.Origin, Ctime: r.Time}}
		for _, x := range r.Xattrs {
			o.setXattr(x.Name, string(x.Value))
		}
		t.Objects[r.OID], t.Names[at] = o, r.OID
	case kml.OpLink:
		if err := t.free(r, at); err != nil {
			return err
		}
		if t.Objects[r.OID] == nil || t.isDir(r.OID) {
			return stale(r, "no object to link")
		}
		t.Names[at] = r.OID
	case kml.OpUnlink, kml.OpRmdir:
		if t.Names[at] != r.OID || t.isDir(r.OID) != (r.Op == kml.OpRmdir) || r.Op == kml.OpRmdir && !t.Empty(r.OID) {
			return stale(r, "the name does not hold that")
		}
		t.lose(at)
	case kml.OpRename:
		return t.rename(r, at, to)
	default:
		return t.change(r, data)
	}
	return nil
}

func (t *Tree) free(r *kml.Record, at Name) error {
	switch {
	case !t.isDir(at.Parent):
		return stale(r, "no folder %v", at.Parent)
	case t.Names[at] != 0:
		return stale(r, "the name holds %v", t.Names[at])
	case at.Name == "" || len(at.Name) > 255 || strings.ContainsAny(at.Name, "/\x00"):
		return stale(r, "not a name")
	}
	return nil
}

func (t *Tree) lose(at Name) {
	oid := t.Names[at]
	delete(t.Names, at)
	if len(t.Of(oid)) == 0 {
		delete(t.Objects, oid)
	}
}

// Inside reports whether a folder is another, or in it.
func (t *Tree) Inside(oid, of kml.OID) bool {
	for oid != of {
		ns := t.Of(oid)
		if len(ns) == 0 {
			return false
		}
		oid = ns[0].Parent
	}
	return true
}

func (t *Tree) rename(r *kml.Record, at, to Name) error {
	held := t.Names[to]
	switch {
	case t.Names[at] != r.OID || r.OID == 0:
		return stale(r, "the name holds %v", t.Names[at])
	case !t.isDir(to.Parent):
		return stale(r, "no folder %v", to.Parent)
	case t.isDir(r.OID) && t.Inside(to.Parent, r.OID):
		return stale(r, "into itself")
	case (r.Victim == nil) != (held == 0) || held != 0 && held != r.Victim.OID:
		return stale(r, "the new name holds %v", held)
	}
	if r.Flags&kml.FlagExchange != 0 {
		if held == 0 || t.isDir(held) && t.Inside(at.Parent, held) {
			return stale(r, "nothing to exchange, or into itself")
		}
		t.Names[at], t.Names[to] = held, r.OID
		return nil
	}
	if held != 0 {
		if t.isDir(held) != t.isDir(r.OID) || !t.Empty(held) || held == r.OID {
			return stale(r, "cannot replace %v", held)
		}
		t.lose(to)
	}
	delete(t.Names, at)
	t.Names[to] = r.OID
	return nil
}

func (t *Tree) change(r *kml.Record, data string) error {
	o := t.Objects[r.OID]
	if o == nil {
		return stale(r, "no such object")
	}
	o.Ctime = r.Time
	switch r.Op {
	case kml.OpStore:
		if t.isDir(r.OID) {
			return stale(r, "a folder")
		}
		o.Data, o.Attr.Size, o.Attr.Mtime = data, r.Attr.Size, r.Attr.Mtime
		o.DataVersion, o.DataOrigin = r.Pos, r.Origin
	case kml.OpSetattr:
		a := &o.Attr
		if r.Mask&kml.MaskMode != 0 {
			a.Mode = r.Attr.Mode
		}
		if r.Mask&kml.MaskUID != 0 {
			a.UID = r.Attr.UID
		}
		if r.Mask&kml.MaskGID != 0 {
			a.GID = r.Attr.GID
		}
		if r.Mask&kml.MaskMtime != 0 {
			a.Mtime = r.Attr.Mtime
		}
	case kml.OpSetxattr:
		o.setXattr(r.Name, string(r.Value))
	case kml.OpRemovexattr:
		delete(o.Xattrs, r.Name)
	default:
		return stale(r, "not a change")
	}
	return nil
}

func (o *Object) setXattr(name, value string) {
	if o.Xattrs == nil {
		o.Xattrs = make(map[string]string)
	}
	o.Xattrs[name] = value
}

// Path is where an object is, from the root, without a slash before it.
func (t *Tree) Path(oid kml.OID) string {
	ns := t.Of(oid)
	if len(ns) == 0 {
		return ""
	}
	if ns[0].Parent == kml.RootOID {
		return ns[0].Name
	}
	return t.Path(ns[0].Parent) + "/" + ns[0].Name
}

// Find is the object at a path, and the name it has there.
func (t *Tree) Find(path string) (oid kml.OID, at Name, ok bool) {
	oid = kml.RootOID
	if path == "" {
		return oid, at, true
	}
	parts := strings.Split(path, "/")
	for i, p := range parts {
		at = name(oid, p)
		if oid, ok = t.Names[at]; !ok {
			return 0, at, false
		}
		if i < len(parts)-1 && !t.isDir(oid) {
			return 0, Name{}, false
		}
	}
	return oid, at, true
}

// String is the tree as the table has it: what each path holds, sorted. Times are
// not in it; of hard links each says which path is the first.
func (t *Tree) String() string {
	var lines []string
	first := make(map[kml.OID]string)
	var walk func(dir kml.OID, prefix string)
	walk = func(dir kml.OID, prefix string) {
		var names []string
		for n := range t.Names {
			if n.Parent == dir {
				names = append(names, n.Name)
			}
		}
		sort.Strings(names)
		for _, base := range names {
			oid := t.Names[Name{Parent: dir, Name: base}]
			path := prefix + base
			if f, ok := first[oid]; ok {
				lines = append(lines, Entry{Path: path, Same: f}.String())
				continue
			}
			first[oid] = path
			o := t.Objects[oid]
			e := Entry{Path: path, Mode: o.Attr.Mode, Data: o.Data, Xattrs: o.Xattrs}
			if o.Attr.Mode&typeMask == typeLink {
				e.Data = o.Target
			}
			lines = append(lines, e.String())
			if t.isDir(oid) {
				walk(oid, path+"/")
			}
		}
	}
	walk(kml.RootOID, "")
	return strings.Join(lines, " ")
}
