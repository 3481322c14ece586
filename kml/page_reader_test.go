package kml_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
)

// This is a reader of the log written from mezzo-kml(5) and from nothing else:
// it shares no code with the package. Where it could not be written from the
// page, the page was mended.

type pageAttr struct {
	Mode, UID, GID, Size, Nlink, Rdev uint64
	Mtime, Atime                      int64
}

type pageXattr struct{ Name, Value string }

type pageVictim struct {
	OID, Version, DataVersion uint64
	Attr                      pageAttr
	Target                    string
}

type pageExtent struct{ Off, Len uint64 }

// pageRecord has what the page names, as it names it.
type pageRecord struct {
	Op, Flags            uint16
	Pos                  uint64
	Time                 int64
	UID, GID             uint32
	OriginSite           uint32
	OriginSeq            uint64
	OID, Parent          uint64
	Name                 string
	NewParent            uint64
	NewName              string
	Mask                 uint64
	Attr, Old            pageAttr
	Target, Value        string
	Xattrs               []pageXattr
	HadOld               bool
	OldValue             string
	Victim               *pageVictim
	BasePos, BaseSeq     uint64
	VictimPos, VictimSeq uint64
	ParentMtime          int64
	NewParentMtime       int64
	HasExtents           bool
	Extents              []pageExtent
	Digest               string
	Mark, Site           uint64
	Unknown              string
}

var errPage = errors.New("not as mezzo-kml(5) says")

var pageTable = crc32.MakeTable(crc32.Castagnoli)

// pageState is what a reader carries from record to record.
type pageState struct {
	started bool
	pos     uint64
	crc     uint32
	mark    uint64
	durable uint64
	epochID [16]byte
}

// readPage reads segments one behind the other. What precedes bad bytes is
// returned with the offset in b of the first bad one.
func readPage(b []byte) (rs []*pageRecord, bad int, err error) {
	var st pageState
	off := 0
	for off < len(b) {
		rest := b[off:]
		if bytes.HasPrefix(rest, []byte("MEZZOKML")) {
			if err := st.header(rest); err != nil {
				return rs, off, err
			}
			off += 96
			continue
		}
		r, n, err := st.record(rest)
		if err != nil {
			return rs, off, err
		}
		if r != nil {
			rs = append(rs, r)
		}
		off += n
	}
	return rs, off, nil
}

func (st *pageState) header(b []byte) error {
	le := binary.LittleEndian
	if len(b) < 96 {
		return fmt.Errorf("%w: short header", errPage)
	}
	if crc32.Update(0, pageTable, b[:92]) != le.Uint32(b[92:]) {
		return fmt.Errorf("%w: header's CRC", errPage)
	}
	if le.Uint32(b[8:]) != 1 || le.Uint32(b[12:]) != 96 {
		return fmt.Errorf("%w: version or length of a header", errPage)
	}
	h := pageState{true, le.Uint64(b[32:]), le.Uint32(b[72:]), le.Uint64(b[40:]), le.Uint64(b[48:]), [16]byte(b[56:])}
	if st.started && h != *st {
		return fmt.Errorf("%w: the header says %+v, the records %+v", errPage, h, *st)
	}
	*st = h
	return nil
}

func (st *pageState) record(b []byte) (*pageRecord, int, error) {
	le := binary.LittleEndian
	if !st.started {
		return nil, 0, fmt.Errorf("%w: no header", errPage)
	}
	if len(b) < 56 {
		return nil, 0, fmt.Errorf("%w: part of a record", errPage)
	}
	n := int(le.Uint32(b))
	if n < 56 || n > 131072 || n%8 != 0 || n > len(b) {
		return nil, 0, fmt.Errorf("%w: length %d", errPage, n)
	}
	b = b[:n]
	if int(le.Uint32(b[n-4:])) != n || le.Uint32(b[n-12:]) != st.crc ||
		crc32.Update(st.crc, pageTable, b[:n-12]) != le.Uint32(b[n-8:]) {
		return nil, 0, fmt.Errorf("%w: lengths or CRCs", errPage)
	}
	if b[4] != 'K' || b[5] != 1 || b[42] != 0 || b[43] != 0 {
		return nil, 0, fmt.Errorf("%w: prefix", errPage)
	}
	origin := le.Uint64(b[32:])
	r := &pageRecord{
		Op: le.Uint16(b[6:]), Flags: le.Uint16(b[40:]), Pos: le.Uint64(b[8:]), Time: int64(le.Uint64(b[16:])),
		UID: le.Uint32(b[24:]), GID: le.Uint32(b[28:]), OriginSite: uint32(origin >> 44), OriginSeq: origin & (1<<44 - 1),
	}
	const recno = 1<<48 - 1
	if r.Pos&recno != st.pos&recno+1 || r.Pos>>48 < st.pos>>48 {
		return nil, 0, fmt.Errorf("%w: position %x behind %x", errPage, r.Pos, st.pos)
	}
	if r.Op == 0 || r.Op > 13 && r.Op < 32768 || r.Flags&0xff&^3 != 0 {
		return nil, 0, fmt.Errorf("%w: opcode or flags", errPage)
	}
	if err := r.body(b[44 : n-12]); err != nil {
		return nil, 0, err
	}
	st.pos, st.crc = r.Pos, le.Uint32(b[n-8:])
	if r.Op == 13 && (r.Mark == 1 || r.Mark == 2) {
		st.mark, st.durable = r.Pos, r.BasePos
		if r.Mark == 2 {
			st.epochID = [16]byte{}
			copy(st.epochID[:], r.Value)
		}
	}
	return r, n, nil
}

// fields calls do for every field in b, with all of its bytes.
func pageFields(b []byte, do func(tag byte, value, whole []byte) error) error {
	for len(b) > 0 && b[0] != 0 {
		n, k := binary.Uvarint(b[1:])
		if k <= 0 || n > uint64(len(b)-1-k) {
			return fmt.Errorf("%w: field %d", errPage, b[0])
		}
		end := 1 + k + int(n)
		if err := do(b[0], b[1+k:end], b[:end]); err != nil {
			return err
		}
		b = b[end:]
	}
	if len(bytes.Trim(b, "\x00")) != 0 {
		return fmt.Errorf("%w: bytes behind the last field", errPage)
	}
	return nil
}

func (r *pageRecord) body(b []byte) error {
	seen := map[byte]bool{}
	return pageFields(b, func(tag byte, v, whole []byte) error {
		if tag >= 128 {
			r.Unknown += string(whole)
			return nil
		}
		if seen[tag] && tag != 10 {
			return fmt.Errorf("%w: field %d twice", errPage, tag)
		}
		seen[tag] = true
		return r.field(tag, v)
	})
}

func (r *pageRecord) field(tag byte, v []byte) (err error) {
	var num uint64
	ints := map[byte]*uint64{1: &r.OID, 2: &r.Parent, 4: &r.NewParent, 6: &r.Mask, 15: &r.BasePos, 16: &r.BaseSeq,
		17: &r.VictimPos, 18: &r.VictimSeq, 19: &num, 20: &num, 23: &r.Mark, 24: &r.Site}
	texts := map[byte]*string{3: &r.Name, 5: &r.NewName, 8: &r.Target, 9: &r.Value, 13: &r.OldValue, 22: &r.Digest}
	if p := ints[tag]; p != nil {
		*p, err = pageInt(v)
	} else if p := texts[tag]; p != nil {
		*p = string(v)
	}
	switch tag {
	case 7:
		r.Attr, err = pageAttrs(v)
	case 12:
		r.Old, err = pageAttrs(v)
	case 10:
		n, k := binary.Uvarint(v)
		if k <= 0 || n > uint64(len(v)-k) {
			return fmt.Errorf("%w: xattr", errPage)
		}
		r.Xattrs = append(r.Xattrs, pageXattr{string(v[k : k+int(n)]), string(v[k+int(n):])})
	case 11:
		r.HadOld = true
	case 14:
		r.Victim, err = pageVictims(v)
	case 19:
		r.ParentMtime = int64(num)
	case 20:
		r.NewParentMtime = int64(num)
	case 21:
		r.HasExtents = true
		r.Extents, err = pageExtents(v)
	default:
		if ints[tag] == nil && texts[tag] == nil {
			return fmt.Errorf("%w: unknown field %d", errPage, tag)
		}
	}
	return err
}

func pageInt(v []byte) (uint64, error) {
	if len(v) == 0 || len(v) > 8 || v[len(v)-1] == 0 {
		return 0, fmt.Errorf("%w: int % x", errPage, v)
	}
	var n uint64
	for i, c := range v {
		n |= uint64(c) << (8 * i)
	}
	return n, nil
}

func pageAttrs(v []byte) (a pageAttr, err error) {
	if len(v) == 0 {
		return a, fmt.Errorf("%w: empty attributes", errPage)
	}
	has := v[0]
	v = v[1:]
	nums := [8]*uint64{&a.Mode, &a.UID, &a.GID, nil, &a.Size, &a.Nlink, &a.Rdev, nil}
	times := [8]*int64{3: &a.Mtime, 7: &a.Atime}
	for ; has != 0; has &= has - 1 {
		bit := bits.TrailingZeros8(has)
		if p := times[bit]; p != nil {
			if len(v) < 8 {
				return a, fmt.Errorf("%w: time", errPage)
			}
			*p, v = int64(binary.LittleEndian.Uint64(v)), v[8:]
			continue
		}
		n, k := binary.Uvarint(v)
		if k <= 0 {
			return a, fmt.Errorf("%w: attribute %d", errPage, bit)
		}
		*nums[bit], v = n, v[k:]
	}
	if len(v) != 0 {
		return a, fmt.Errorf("%w: bytes behind the attributes", errPage)
	}
	return a, nil
}

func pageVictims(v []byte) (*pageVictim, error) {
	var p pageVictim
	err := pageFields(v, func(tag byte, v, _ []byte) (err error) {
		switch tag {
		case 1:
			p.OID, err = pageInt(v)
		case 2:
			p.Version, err = pageInt(v)
		case 3:
			p.DataVersion, err = pageInt(v)
		case 4:
			p.Attr, err = pageAttrs(v)
		case 5:
			p.Target = string(v)
		default:
			return fmt.Errorf("%w: unknown field %d of a victim", errPage, tag)
		}
		return err
	})
	return &p, err
}

func pageExtents(v []byte) (all []pageExtent, err error) {
	var at uint64
	for len(v) > 0 {
		gap, k := binary.Uvarint(v)
		if k <= 0 {
			return nil, fmt.Errorf("%w: extent", errPage)
		}
		n, m := binary.Uvarint(v[k:])
		if m <= 0 {
			return nil, fmt.Errorf("%w: extent", errPage)
		}
		all = append(all, pageExtent{at + gap, n})
		at += gap + n
		v = v[k+m:]
	}
	return all, nil
}
