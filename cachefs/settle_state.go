package cachefs

import (
	"errors"
	"os"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/conflict"
	"github.com/mezzofs/mezzo/kml/tree"
)

// A settling is the tree that conflict.Settler sees: conflict.State. What is not
// known here makes the pass fail with what has to be brought first.

// Object is conflict.State's.
func (s *settling) Object(oid kml.OID) (conflict.Object, bool) {
	obj := s.object(oid)
	if obj == nil {
		return conflict.Object{}, false
	}
	return s.described(obj), true
}

func (s *settling) described(obj *tree.Object) conflict.Object {
	return conflict.Object{Attr: obj.Attr, Target: obj.Target, DataVersion: obj.DataVersion, DataOrigin: obj.DataOrigin, Ctime: obj.Ctime,
		Local: s.d.WrittenBy(obj.OID, 0) != 0}
}

// object is an object of the draft, or nil.
func (s *settling) object(oid kml.OID) *tree.Object {
	obj, err := s.d.Object(oid)
	if err == nil {
		return obj
	}
	if !errors.Is(err, tree.ErrNotFound) {
		s.fail(err)
		return nil
	}
	if _, err := s.c.cache.MasterObject(oid); err == nil || oid == 0 || s.made[oid] || s.absent[oid] {
		return nil
	}
	if g, _ := s.c.cache.Grave(oid); g == nil {
		s.fail(&tree.NotListedError{OID: oid})
	}
	return nil
}

func (s *settling) fail(err error) {
	if s.err == nil {
		s.err = err
	}
}

// Err is conflict.State's.
func (s *settling) Err() error {
	err := s.err
	s.err = nil
	return err
}

// Child is conflict.State's.
func (s *settling) Child(n conflict.Name) (kml.OID, bool) {
	oid, ok, err := s.d.Child(tree.Name(n))
	var nl *tree.NotListedError
	if errors.As(err, &nl) && s.absent[nl.OID] {
		return 0, false
	}
	if err != nil {
		s.fail(err)
	}
	return oid, ok
}

// Name is conflict.State's.
func (s *settling) Name(oid kml.OID) (conflict.Name, bool) {
	obj, err := s.d.Object(oid)
	if err == nil && obj.Parent != 0 {
		return conflict.Name{Parent: obj.Parent, Name: obj.Name}, true
	}
	if names := s.d.Names(oid); len(names) > 0 {
		return conflict.Name(names[0]), true
	}
	return conflict.Name{}, false
}

// Empty is conflict.State's.
func (s *settling) Empty(oid kml.OID) bool {
	empty, err := s.d.Empty(oid)
	if err != nil {
		s.fail(err)
	}
	return empty
}

// Xattr is conflict.State's.
func (s *settling) Xattr(oid kml.OID, name string) ([]byte, bool) {
	if obj := s.object(oid); obj != nil {
		for _, x := range obj.Xattrs {
			if x.Name == name {
				return x.Value, true
			}
		}
	}
	return nil, false
}

// Grave is conflict.State's.
func (s *settling) Grave(oid kml.OID) (conflict.Grave, bool) {
	obj, whole := s.c.cache.Grave(oid)
	if obj == nil {
		return conflict.Grave{}, false
	}
	g := conflict.Grave{Object: conflict.Object{Attr: obj.Attr, Target: obj.Target, DataVersion: obj.DataVersion, Ctime: obj.Ctime},
		At: conflict.Name{Parent: obj.Parent, Name: obj.Name}, Xattrs: obj.Xattrs, Whole: whole}
	if path, _, err := s.c.cache.OwnBytes(oid); !whole && err == nil {
		size, err := sizeOf(path)
		g.Whole = err == nil
		g.Attr.Size = uint64(size)
	}
	return g, true
}

// SameContents is conflict.State's.
func (s *settling) SameContents(mine, theirs kml.OID) bool {
	path, dirty, err := s.c.cache.OwnBytes(mine)
	if errors.Is(err, os.ErrNotExist) && s.made[mine] && s.stored[mine] == 0 {
		path, err = "", nil // it is empty
	}
	if dirty || err != nil {
		return false
	}
	version := s.stored[mine]
	if version == 0 {
		if obj, err := s.c.cache.MasterObject(mine); err == nil {
			version = uint64(obj.DataVersion)
		}
	}
	return s.same(sameKey{mine, version, theirs, 0}, path)
}

// SameBytes is conflict.State's.
func (s *settling) SameBytes(store *kml.Record, theirs kml.OID) bool {
	e := s.given[store]
	if e == nil {
		return false
	}
	path := ""
	if e.Data {
		path = s.c.cache.Local().Path(e.ID)
	}
	return s.same(sameKey{0, e.ID, theirs, 0}, path)
}

// same compares a file here, or nothing, with what the master has.
func (s *settling) same(k sameKey, path string) bool {
	obj := s.object(k.theirs)
	if obj == nil || obj.Attr.Mode&modeType != modeReg || s.d.WrittenBy(k.theirs, 0) != 0 {
		return false
	}
	size := int64(0)
	if path != "" {
		var err error
		if size, err = sizeOf(path); err != nil {
			return false
		}
	}
	if uint64(size) != obj.Attr.Size || size == 0 {
		return uint64(size) == obj.Attr.Size
	}
	k.version = obj.DataVersion
	same, known := s.c.needs.compared(k)
	if !known {
		s.fail(&needError{same: &k, path: path})
	}
	return same
}

// Removes is conflict.State's.
func (s *settling) Removes(r *kml.Record, oid kml.OID) bool {
	e := s.given[r]
	return e != nil && s.removed[oid] > e.ID
}

// Later is conflict.State's.
func (s *settling) Later(r *kml.Record, oid kml.OID) bool {
	e := s.given[r]
	return e != nil && s.stored[oid] > e.ID
}
