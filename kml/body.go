package kml

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// The fields of a body. A field is one tag byte, its length as a uvarint, its
// value. The tag's low seven bits are the number below; tagOptional set says
// that a reader that does not know the field may skip it. Tag 0 ends the body.
const (
	tagEnd            = 0
	tagOID            = 1
	tagParent         = 2
	tagName           = 3
	tagNewParent      = 4
	tagNewName        = 5
	tagMask           = 6
	tagAttr           = 7
	tagTarget         = 8
	tagValue          = 9
	tagXattr          = 10 // repeated
	tagHadOld         = 11
	tagOld            = 12
	tagOldValue       = 13
	tagVictim         = 14
	tagBase           = 15
	tagBaseSeq        = 16
	tagVictimBase     = 17
	tagVictimBaseSeq  = 18
	tagParentMtime    = 19
	tagNewParentMtime = 20
	tagExtents        = 21
	tagDigest         = 22
	tagMark           = 23
	tagSite           = 24
	tagLast           = tagSite

	tagOptional = 0x80
)

// The fields of a victim, in the same form.
const (
	tagVictimOID         = 1
	tagVictimVersion     = 2
	tagVictimDataVersion = 3
	tagVictimAttr        = 4
	tagVictimTarget      = 5
)

// appendUint writes an integer field, little-endian without its upper zero
// bytes; zero is not written.
func appendUint(b []byte, tag byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	n := (bits.Len64(v) + 7) / 8
	b = append(b, tag, byte(n))
	for range n {
		b = append(b, byte(v))
		v >>= 8
	}
	return b
}

// appendString writes a field of bytes; an empty one is not written.
func appendString[T string | []byte](b []byte, tag byte, s T) []byte {
	if len(s) == 0 {
		return b
	}
	b = append(b, tag)
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// appendAttr writes a field of attributes: a byte that says which are not
// zero, then those, in AttrMask's order.
func appendAttr(b []byte, tag byte, a *Attr) []byte {
	if *a == (Attr{}) {
		return b
	}
	b = append(b, tag, 0) // attrMax < 128: the length takes one byte
	at := len(b)
	b = append(b, 0)
	var has AttrMask
	put := func(m AttrMask, v uint64) {
		if v != 0 {
			has |= m
			b = binary.AppendUvarint(b, v)
		}
	}
	put(MaskMode, uint64(a.Mode))
	put(MaskUID, uint64(a.UID))
	put(MaskGID, uint64(a.GID))
	if a.Mtime != 0 {
		has |= MaskMtime
		b = binary.LittleEndian.AppendUint64(b, uint64(a.Mtime))
	}
	put(MaskSize, a.Size)
	put(MaskNlink, uint64(a.Nlink))
	put(MaskRdev, a.Rdev)
	if a.Atime != 0 {
		has |= MaskAtime
		b = binary.LittleEndian.AppendUint64(b, uint64(a.Atime))
	}
	b[at] = byte(has)
	b[at-1] = byte(len(b) - at)
	return b
}

// appendBody writes the fields of r that are not zero, by rising tag.
func appendBody(b []byte, r *Record) []byte {
	b = appendUint(b, tagOID, uint64(r.OID))
	b = appendUint(b, tagParent, uint64(r.Parent))
	b = appendString(b, tagName, r.Name)
	b = appendUint(b, tagNewParent, uint64(r.NewParent))
	b = appendString(b, tagNewName, r.NewName)
	b = appendUint(b, tagMask, uint64(r.Mask))
	b = appendAttr(b, tagAttr, &r.Attr)
	b = appendString(b, tagTarget, r.Target)
	b = appendString(b, tagValue, r.Value)
	for i := range r.Xattrs {
		b = appendXattr(b, &r.Xattrs[i])
	}
	if r.HadOld {
		b = append(b, tagHadOld, 0)
	}
	b = appendAttr(b, tagOld, &r.Old)
	b = appendString(b, tagOldValue, r.OldValue)
	if r.Victim != nil {
		b = appendVictim(b, r.Victim)
	}
	b = appendUint(b, tagBase, uint64(r.Base.Pos))
	b = appendUint(b, tagBaseSeq, r.Base.Seq)
	b = appendUint(b, tagVictimBase, uint64(r.VictimBase.Pos))
	b = appendUint(b, tagVictimBaseSeq, r.VictimBase.Seq)
	b = appendUint(b, tagParentMtime, uint64(r.ParentMtime))
	b = appendUint(b, tagNewParentMtime, uint64(r.NewParentMtime))
	if r.Extents != nil {
		b = appendExtents(b, r.Extents)
	}
	b = appendString(b, tagDigest, r.Digest)
	b = appendUint(b, tagMark, uint64(r.Mark))
	b = appendUint(b, tagSite, uint64(r.Site))
	return append(b, r.Unknown...)
}

func uvarintLen(v uint64) int { return max(1, (bits.Len64(v)+6)/7) }

// appendXattr writes one attribute: the length of its name, name, value.
func appendXattr(b []byte, x *Xattr) []byte {
	n := uint64(len(x.Name))
	b = append(b, tagXattr)
	b = binary.AppendUvarint(b, uint64(uvarintLen(n))+n+uint64(len(x.Value)))
	b = binary.AppendUvarint(b, n)
	b = append(b, x.Name...)
	return append(b, x.Value...)
}

// appendVictim writes a victim: its fields in the body's own form.
func appendVictim(b []byte, v *Victim) []byte {
	// The length is known only at the end; it gets two bytes, enough for any
	// target (PATH_MAX is 4096). A longer one is moved up by what it needs.
	b = append(b, tagVictim, 0, 0)
	at := len(b)
	b = appendUint(b, tagVictimOID, uint64(v.OID))
	b = appendUint(b, tagVictimVersion, uint64(v.Version))
	b = appendUint(b, tagVictimDataVersion, uint64(v.DataVersion))
	b = appendAttr(b, tagVictimAttr, &v.Attr)
	b = appendString(b, tagVictimTarget, v.Target)
	n := len(b) - at
	if n < 1<<14 {
		b[at-2], b[at-1] = byte(n)|0x80, byte(n>>7)
		return b
	}
	extra := uvarintLen(uint64(n)) - 2
	b = append(b, make([]byte, extra)...)
	copy(b[at+extra:], b[at:at+n])
	binary.PutUvarint(b[at-2:], uint64(n))
	return b
}

// appendExtents writes the extents: each offset as the distance from the end
// of the one before (modulo 2^64, so any list can be written), each length.
func appendExtents(b []byte, es []Extent) []byte {
	n, at := 0, uint64(0)
	for _, e := range es {
		n += uvarintLen(e.Off-at) + uvarintLen(e.Len)
		at = e.Off + e.Len
	}
	b = append(b, tagExtents)
	b = binary.AppendUvarint(b, uint64(n))
	at = 0
	for _, e := range es {
		b = binary.AppendUvarint(b, e.Off-at)
		b = binary.AppendUvarint(b, e.Len)
		at = e.Off + e.Len
	}
	return b
}

// nextField takes one field off b. A tagEnd gives tag 0 and must be followed
// by zeros only.
func nextField(b []byte) (tag byte, val, rest []byte, err error) {
	if len(b) == 0 {
		return tagEnd, nil, nil, nil
	}
	if b[0] == tagEnd {
		for _, c := range b {
			if c != 0 {
				return 0, nil, nil, fmt.Errorf("byte %#02x behind the body's end: %w", c, ErrCorrupt)
			}
		}
		return tagEnd, nil, nil, nil
	}
	n, w := binary.Uvarint(b[1:])
	if w <= 0 || n > uint64(len(b)-1-w) {
		return 0, nil, nil, fmt.Errorf("field %d: longer than the record: %w", b[0]&^tagOptional, ErrCorrupt)
	}
	return b[0], b[1+w : 1+w+int(n)], b[1+w+int(n):], nil
}

func badField(tag byte) error {
	return fmt.Errorf("field %d: %w", tag&^tagOptional, ErrCorrupt)
}

// parseUint reads an integer field of at most max bytes.
func parseUint(tag byte, v []byte, max int) (u uint64, err error) {
	if len(v) > max {
		return 0, badField(tag)
	}
	for i := len(v) - 1; i >= 0; i-- {
		u = u<<8 | uint64(v[i])
	}
	return u, nil
}

// parseAttr reads a field of attributes.
func parseAttr(tag byte, v []byte, a *Attr) error {
	if len(v) == 0 {
		return badField(tag)
	}
	has := AttrMask(v[0])
	v = v[1:]
	ok := true
	get := func(m AttrMask, limit uint64) uint64 {
		if has&m == 0 {
			return 0
		}
		u, w := binary.Uvarint(v)
		if w <= 0 || u > limit {
			ok = false
			return 0
		}
		v = v[w:]
		return u
	}
	when := func(m AttrMask) int64 {
		if has&m == 0 {
			return 0
		}
		if len(v) < 8 {
			ok = false
			return 0
		}
		t := int64(binary.LittleEndian.Uint64(v))
		v = v[8:]
		return t
	}
	a.Mode = uint32(get(MaskMode, 1<<32-1))
	a.UID = uint32(get(MaskUID, 1<<32-1))
	a.GID = uint32(get(MaskGID, 1<<32-1))
	a.Mtime = when(MaskMtime)
	a.Size = get(MaskSize, 1<<64-1)
	a.Nlink = uint32(get(MaskNlink, 1<<32-1))
	a.Rdev = get(MaskRdev, 1<<64-1)
	a.Atime = when(MaskAtime)
	if !ok || len(v) != 0 {
		return badField(tag)
	}
	return nil
}

// clone copies v; an empty slice becomes nil.
func clone(v []byte) []byte {
	if len(v) == 0 {
		return nil
	}
	return append([]byte(nil), v...)
}

// parseBody fills r from its body.
func parseBody(b []byte, r *Record) error {
	var seen uint64
	for {
		start := b
		tag, v, rest, err := nextField(b)
		if err != nil {
			return err
		}
		if tag == tagEnd {
			return nil
		}
		b = rest
		if tag > tagLast {
			if tag&tagOptional == 0 {
				return fmt.Errorf("field %d: %w", tag, ErrNewer)
			}
			r.Unknown = append(r.Unknown, start[:len(start)-len(rest)]...)
			continue
		}
		if seen&(1<<tag) != 0 && tag != tagXattr {
			return fmt.Errorf("field %d twice: %w", tag, ErrCorrupt)
		}
		seen |= 1 << tag
		if err := parseField(tag, v, r); err != nil {
			return err
		}
	}
}

// parseField puts one known field into r.
func parseField(tag byte, v []byte, r *Record) (err error) {
	var u uint64
	switch tag {
	case tagOID, tagParent, tagNewParent, tagBase, tagBaseSeq, tagVictimBase, tagVictimBaseSeq,
		tagParentMtime, tagNewParentMtime:
		u, err = parseUint(tag, v, 8)
	case tagMask:
		u, err = parseUint(tag, v, 2)
	case tagMark:
		u, err = parseUint(tag, v, 1)
	case tagSite:
		if u, err = parseUint(tag, v, 3); err == nil && SiteID(u) > MaxSite {
			err = badField(tag)
		}
	}
	if err != nil {
		return err
	}
	switch tag {
	case tagOID:
		r.OID = OID(u)
	case tagParent:
		r.Parent = OID(u)
	case tagName:
		r.Name = string(v)
	case tagNewParent:
		r.NewParent = OID(u)
	case tagNewName:
		r.NewName = string(v)
	case tagMask:
		r.Mask = AttrMask(u)
	case tagAttr:
		return parseAttr(tag, v, &r.Attr)
	case tagTarget:
		r.Target = string(v)
	case tagValue:
		r.Value = clone(v)
	case tagXattr:
		n, w := binary.Uvarint(v)
		if w <= 0 || n > uint64(len(v)-w) {
			return badField(tag)
		}
		r.Xattrs = append(r.Xattrs, Xattr{string(v[w : w+int(n)]), clone(v[w+int(n):])})
	case tagHadOld:
		if len(v) != 0 {
			return badField(tag)
		}
		r.HadOld = true
	case tagOld:
		return parseAttr(tag, v, &r.Old)
	case tagOldValue:
		r.OldValue = clone(v)
	case tagVictim:
		r.Victim = new(Victim)
		return parseVictim(v, r.Victim)
	case tagBase:
		r.Base.Pos = Position(u)
	case tagBaseSeq:
		r.Base.Seq = u
	case tagVictimBase:
		r.VictimBase.Pos = Position(u)
	case tagVictimBaseSeq:
		r.VictimBase.Seq = u
	case tagParentMtime:
		r.ParentMtime = int64(u)
	case tagNewParentMtime:
		r.NewParentMtime = int64(u)
	case tagExtents:
		r.Extents, err = parseExtents(v)
	case tagDigest:
		r.Digest = clone(v)
	case tagMark:
		r.Mark = MarkKind(u)
	case tagSite:
		r.Site = SiteID(u)
	}
	return err
}

// parseVictim fills vi. Its fields all must be understood: a change to what a
// victim is gets a new field of the body.
func parseVictim(b []byte, vi *Victim) error {
	var seen uint8
	for {
		tag, v, rest, err := nextField(b)
		if err != nil {
			return fmt.Errorf("victim: %w", err)
		}
		if tag == tagEnd {
			return nil
		}
		if tag > tagVictimTarget {
			return fmt.Errorf("victim: field %d: %w", tag, ErrNewer)
		}
		if seen&(1<<tag) != 0 {
			return fmt.Errorf("victim: field %d twice: %w", tag, ErrCorrupt)
		}
		seen |= 1 << tag
		b = rest
		var u uint64
		if tag <= tagVictimDataVersion {
			if u, err = parseUint(tag, v, 8); err != nil {
				return fmt.Errorf("victim: %w", err)
			}
		}
		switch tag {
		case tagVictimOID:
			vi.OID = OID(u)
		case tagVictimVersion:
			vi.Version = Position(u)
		case tagVictimDataVersion:
			vi.DataVersion = Position(u)
		case tagVictimAttr:
			if err := parseAttr(tag, v, &vi.Attr); err != nil {
				return fmt.Errorf("victim: %w", err)
			}
		case tagVictimTarget:
			vi.Target = string(v)
		}
	}
}

// parseExtents reads a list of extents. An empty list is not nil.
func parseExtents(v []byte) ([]Extent, error) {
	// Every extent takes two bytes at least, so v bounds the list.
	es := make([]Extent, 0, min(len(v)/2, 64))
	at := uint64(0)
	for len(v) > 0 {
		d, w := binary.Uvarint(v)
		if w <= 0 {
			return nil, badField(tagExtents)
		}
		l, w2 := binary.Uvarint(v[w:])
		if w2 <= 0 {
			return nil, badField(tagExtents)
		}
		v = v[w+w2:]
		es = append(es, Extent{at + d, l})
		at += d + l
	}
	return es, nil
}
