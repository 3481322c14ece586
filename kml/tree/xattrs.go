package tree

import (
	"strings"

	"github.com/zeebo/blake3"

	"github.com/mezzofs/mezzo/kml"
)

// aclXattr is the attribute whose value a change of mode changes, too.
const aclXattr = "system.posix_acl_access"

// digestXattrs is what a tree's index keeps of an object's attributes: the disk
// has them, and these tell whether it still has the same.
func digestXattrs(xs []kml.Xattr) []kml.Xattr {
	if len(xs) == 0 {
		return nil
	}
	out := make([]kml.Xattr, len(xs))
	for i, x := range xs {
		out[i] = kml.Xattr{Name: x.Name, Value: digestXattr(x.Value)}
	}
	return out
}

func digestXattr(v []byte) []byte {
	sum := blake3.Sum256(v)
	return sum[:8:8]
}

func xattrNamed(xs []kml.Xattr, name string) (value []byte, ok bool) {
	for _, x := range xs {
		if x.Name == name {
			return x.Value, true
		}
	}
	return nil, false
}

// changedXattrs are the records that bring an object from what the index knows of
// its attributes to what p has. Values that were there before are not known.
func (t *Tree) changedXattrs(p place, o *Object) ([]*kml.Record, error) {
	now, err := p.xattrs()
	if err != nil {
		return nil, err
	}
	var out []*kml.Record
	add := func(op kml.Op, name string, value []byte) {
		r := t.record(nil, op)
		r.OID, r.Name, r.Value = o.OID, name, value
		out = append(out, r)
	}
	for _, x := range now {
		if was, ok := xattrNamed(o.Xattrs, x.Name); !ok || string(was) != string(digestXattr(x.Value)) {
			add(kml.OpSetxattr, x.Name, x.Value)
		}
	}
	for _, x := range o.Xattrs {
		if _, ok := xattrNamed(now, x.Name); !ok && t.seesXattr(x.Name) {
			add(kml.OpRemovexattr, x.Name, nil)
		}
	}
	return out, nil
}

// seesXattr is false of attributes that the process would not see if they were
// there (xattr(7)).
func (t *Tree) seesXattr(name string) bool {
	return t.root || !strings.HasPrefix(name, "trusted.")
}

// foreignXattrs journals attributes that were changed behind the tree's back. The
// object is locked.
func (t *Tree) foreignXattrs(p place, o *Object) error {
	rs, err := t.changedXattrs(p, o)
	if err != nil {
		return err
	}
	for _, r := range rs {
		if err := t.foreign(r, nil); err != nil {
			return err
		}
	}
	return nil
}

// followACL journals what a change of mode has made of an access list, which is
// told by its own record only when it is set. The object is locked.
func (t *Tree) followACL(p place, oid kml.OID, as *kml.Record) error {
	o, err := t.index.Get(oid)
	if err != nil {
		return ignore(err, ErrNotFound)
	}
	if _, ok := xattrNamed(o.Xattrs, aclXattr); !ok {
		return nil
	}
	rs, err := t.changedXattrs(p, o)
	if err != nil {
		return err
	}
	for _, r := range rs {
		if r.Name != aclXattr {
			continue
		}
		r.UID, r.GID, r.Time = as.UID, as.GID, as.Time
		if err := t.commitIntent(r, nil); err != nil {
			return err
		}
	}
	return nil
}
