package tree

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mezzofs/mezzo/kml"
)

// Object is what the index holds of one object. Objects that the index hands
// out are shared and must not be changed: copy, change, Put.
type Object struct {
	OID         kml.OID
	Attr        kml.Attr // Nlink counts names; Size and Mtime of a file are its last store's
	Ctime       int64
	Btime       int64
	Version     kml.Position // last change of any kind
	DataVersion kml.Position // last change of contents
	DataOrigin  kml.Origin   // of that change
	Target      string       // a symbolic link's
	Xattrs      []kml.Xattr  // in a tree the disk has the values, here are digests

	// Parent and Name are one of its names; a folder has just one. Parent is 0
	// while it has none that is known.
	Parent kml.OID
	Name   string

	// Trees only.
	Ino    uint64
	Handle []byte // see HandleAt; empty while it has not been looked at
	Fp     Fingerprint

	// Caches only.
	Listed  bool         // a folder: every name in it is in the index
	Whole   bool         // a file: all bytes of DataVersion are here
	Present []kml.Extent // a file: these are
	// Content is Attr.Content where that is not DataVersion: what was written
	// here changed the contents that readers had, and came back as a version.
	Content uint64

	Known kml.Position // the object is as of here: records not newer are in it
}

// Fingerprint is what tells, nearly always, that a file was changed.
type Fingerprint struct {
	Size  uint64
	Mtime int64
	Ctime int64
}

// Name is an object's name in a folder.
type Name struct {
	Parent kml.OID
	Name   string
}

// NameEntry is a name with what it holds.
type NameEntry struct {
	Name  string
	OID   kml.OID
	Known kml.Position // the name is as of here
}

const (
	objectVersion = 2
	objectBefore  = 1 // the version before: without Content
)

var errObject = errors.New("damaged object")

// encode is the object as the index stores it: a version, then fields in a
// fixed order.
func (o *Object) encode() []byte {
	b := make([]byte, 0, 160+len(o.Name)+len(o.Target))
	b = append(b, objectVersion)
	u := func(vs ...uint64) {
		for _, v := range vs {
			b = binary.AppendUvarint(b, v)
		}
	}
	s := func(v string) { u(uint64(len(v))); b = append(b, v...) }
	u(uint64(o.Attr.Mode), uint64(o.Attr.UID), uint64(o.Attr.GID), uint64(o.Attr.Nlink), o.Attr.Rdev, o.Attr.Size,
		uint64(o.Attr.Mtime), uint64(o.Attr.Atime), uint64(o.Ctime), uint64(o.Btime),
		uint64(o.Version), uint64(o.DataVersion), uint64(o.DataOrigin.Site), o.DataOrigin.Seq,
		uint64(o.Parent), o.Ino, o.Fp.Size, uint64(o.Fp.Mtime), uint64(o.Fp.Ctime), uint64(o.Known))
	flags := uint64(0)
	if o.Listed {
		flags |= 1
	}
	if o.Whole {
		flags |= 2
	}
	u(flags)
	s(o.Name)
	s(o.Target)
	s(string(o.Handle))
	u(uint64(len(o.Present)))
	for _, e := range o.Present {
		u(e.Off, e.Len)
	}
	u(uint64(len(o.Xattrs)))
	for _, x := range o.Xattrs {
		s(x.Name)
		s(string(x.Value))
	}
	u(o.Content)
	return b
}

// objectReader takes fields off an encoded object; bad is set once they run out.
type objectReader struct {
	b   []byte
	bad bool
}

func (r *objectReader) u() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *objectReader) s() string {
	n := r.u()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return ""
	}
	v := string(r.b[:n])
	r.b = r.b[n:]
	return v
}

// count is the length of a list whose items take at least min bytes each.
func (r *objectReader) count(min int) int {
	n := r.u()
	if n > uint64(len(r.b)/min) {
		r.bad, r.b = true, nil
		return 0
	}
	return int(n)
}

func decodeObject(oid kml.OID, b []byte) (*Object, error) {
	if len(b) == 0 || b[0] != objectVersion && b[0] != objectBefore {
		return nil, fmt.Errorf("object %v: %w", oid, errObject)
	}
	r := objectReader{b: b[1:]}
	o := &Object{OID: oid}
	o.Attr = kml.Attr{Mode: uint32(r.u()), UID: uint32(r.u()), GID: uint32(r.u()), Nlink: uint32(r.u()), Rdev: r.u(), Size: r.u(),
		Mtime: int64(r.u()), Atime: int64(r.u())}
	o.Ctime, o.Btime = int64(r.u()), int64(r.u())
	o.Version, o.DataVersion = kml.Position(r.u()), kml.Position(r.u())
	o.DataOrigin = kml.Origin{Site: kml.SiteID(r.u()), Seq: r.u()}
	o.Parent, o.Ino = kml.OID(r.u()), r.u()
	o.Fp = Fingerprint{Size: r.u(), Mtime: int64(r.u()), Ctime: int64(r.u())}
	o.Known = kml.Position(r.u())
	flags := r.u()
	o.Listed, o.Whole = flags&1 != 0, flags&2 != 0
	o.Name, o.Target, o.Handle = r.s(), r.s(), []byte(r.s())
	for n := r.count(2); n > 0; n-- {
		o.Present = append(o.Present, kml.Extent{Off: r.u(), Len: r.u()})
	}
	for n := r.count(2); n > 0; n-- {
		o.Xattrs = append(o.Xattrs, kml.Xattr{Name: r.s(), Value: []byte(r.s())})
	}
	if b[0] != objectBefore {
		o.Content = r.u()
	}
	if r.bad || len(r.b) != 0 {
		return nil, fmt.Errorf("object %v: %w", oid, errObject)
	}
	return o, nil
}
