package wire

import (
	"encoding/binary"
	"slices"

	"github.com/hugelgupf/p9/p9"
)

// DirentSize is what an entry of this name takes in an Rreaddir, in bytes.
func DirentSize(name string) int { return direntFixed + len(name) }

// AppendDirent puts a folder's entry behind b. d.Type is sent as it is: Linux
// takes it for readdir(3)'s d_type (the DT constants), not for a QID type.
func AppendDirent(b []byte, d p9.Dirent) []byte {
	b = putQID(b, d.QID)
	b = put64(b, d.Offset)
	return putStr(append(b, byte(d.Type)), d.Name)
}

// NextDirent takes the first entry from the data of an Rreaddir and returns
// what follows it. Call it until the rest is empty.
func NextDirent(data []byte) (d p9.Dirent, rest []byte, err error) {
	r := reader{b: data}
	d.QID = r.qid()
	d.Offset = r.u64()
	d.Type = p9.QIDType(r.u8())
	d.Name = r.str()
	if r.bad {
		return p9.Dirent{}, nil, errShort
	}
	return d, r.b, nil
}

// DirPacker builds an Rreaddir in place, entry by entry, up to a limit.
type DirPacker struct {
	buf   []byte
	start int // of the frame in buf
	limit int // length of buf that the data may reach
	full  bool
}

// Begin starts an answer behind b that holds at most count bytes of entries.
func (p *DirPacker) Begin(b []byte, tag Tag, count int) {
	p.start = len(b)
	p.buf = AppendReadHeader(b, TypeRreaddir, tag, 0)
	p.limit, p.full = len(p.buf)+count, false
}

// Add packs an entry, or says that it does not fit.
func (p *DirPacker) Add(d p9.Dirent) bool {
	if len(d.Name) > maxString || len(p.buf)+DirentSize(d.Name) > p.limit {
		p.full = true
		return false
	}
	p.buf = AppendDirent(p.buf, d)
	return true
}

// AddBytes is Add for a name that is bytes of somebody else's: they are copied.
// typ is readdir(3)'s d_type.
func (p *DirPacker) AddBytes(q p9.QID, offset uint64, typ uint8, name []byte) bool {
	n, size := len(p.buf), direntFixed+len(name)
	if len(name) > maxString || n+size > p.limit {
		p.full = true
		return false
	}
	p.buf = slices.Grow(p.buf, size)[:n+size]
	e := p.buf[n:]
	e[0] = byte(q.Type)
	binary.LittleEndian.PutUint32(e[1:], q.Version)
	binary.LittleEndian.PutUint64(e[5:], q.Path)
	binary.LittleEndian.PutUint64(e[QIDSize:], offset)
	e[QIDSize+8] = typ
	binary.LittleEndian.PutUint16(e[QIDSize+9:], uint16(len(name)))
	copy(e[direntFixed:], name)
	return true
}

// Empty says that no entry was packed.
func (p *DirPacker) Empty() bool { return len(p.buf) == p.start+ReadOverhead }

// Full says that an entry did not fit.
func (p *DirPacker) Full() bool { return p.full }

// Finish returns the buffer with the complete answer. Abort returns it as it
// was before Begin.
func (p *DirPacker) Finish() []byte {
	n := len(p.buf) - p.start - ReadOverhead
	put32(put32(p.buf[:p.start], uint32(ReadOverhead+n))[:p.start+HeaderSize], uint32(n))
	return p.buf
}

// Abort gives the answer up.
func (p *DirPacker) Abort() []byte { return p.buf[:p.start] }
