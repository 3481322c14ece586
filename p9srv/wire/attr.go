package wire

import "github.com/hugelgupf/p9/p9"

// AttrMaskBits is the mask of a Tgetattr or Rgetattr as it is sent
// (P9_GETATTR_* in fs/9p).
func AttrMaskBits(a p9.AttrMask) uint64 {
	return bit(a.Mode, 0) | bit(a.NLink, 1) | bit(a.UID, 2) | bit(a.GID, 3) | bit(a.RDev, 4) |
		bit(a.ATime, 5) | bit(a.MTime, 6) | bit(a.CTime, 7) | bit(a.INo, 8) | bit(a.Size, 9) |
		bit(a.Blocks, 10) | bit(a.BTime, 11) | bit(a.Gen, 12) | bit(a.DataVersion, 13)
}

// AttrMaskOf is the inverse of AttrMaskBits. Bits without a name are dropped.
func AttrMaskOf(m uint64) p9.AttrMask {
	has := func(n uint) bool { return m>>n&1 != 0 }
	return p9.AttrMask{
		Mode: has(0), NLink: has(1), UID: has(2), GID: has(3), RDev: has(4), ATime: has(5), MTime: has(6),
		CTime: has(7), INo: has(8), Size: has(9), Blocks: has(10), BTime: has(11), Gen: has(12), DataVersion: has(13),
	}
}

// SetAttrMaskBits is the mask of a Tsetattr as it is sent (P9_ATTR_*).
func SetAttrMaskBits(s p9.SetAttrMask) uint32 {
	return uint32(bit(s.Permissions, 0) | bit(s.UID, 1) | bit(s.GID, 2) | bit(s.Size, 3) | bit(s.ATime, 4) |
		bit(s.MTime, 5) | bit(s.CTime, 6) | bit(s.ATimeNotSystemTime, 7) | bit(s.MTimeNotSystemTime, 8))
}

// SetAttrMaskOf is the inverse of SetAttrMaskBits. Bits without a name are dropped.
func SetAttrMaskOf(m uint32) p9.SetAttrMask {
	has := func(n uint) bool { return m>>n&1 != 0 }
	return p9.SetAttrMask{
		Permissions: has(0), UID: has(1), GID: has(2), Size: has(3), ATime: has(4), MTime: has(5), CTime: has(6),
		ATimeNotSystemTime: has(7), MTimeNotSystemTime: has(8),
	}
}

func bit(set bool, n uint) uint64 {
	if set {
		return 1 << n
	}
	return 0
}

func putAttr(b []byte, a *p9.Attr) []byte {
	b = put32(b, uint32(a.Mode))
	b = put32(b, uint32(a.UID))
	b = put32(b, uint32(a.GID))
	b = put64(b, uint64(a.NLink))
	b = put64(b, uint64(a.RDev))
	b = put64(b, a.Size)
	b = put64(b, a.BlockSize)
	b = put64(b, a.Blocks)
	b = put64(b, a.ATimeSeconds)
	b = put64(b, a.ATimeNanoSeconds)
	b = put64(b, a.MTimeSeconds)
	b = put64(b, a.MTimeNanoSeconds)
	b = put64(b, a.CTimeSeconds)
	b = put64(b, a.CTimeNanoSeconds)
	b = put64(b, a.BTimeSeconds)
	b = put64(b, a.BTimeNanoSeconds)
	b = put64(b, a.Gen)
	return put64(b, a.DataVersion)
}

func (r *reader) attr(a *p9.Attr) {
	a.Mode = p9.FileMode(r.u32())
	a.UID = p9.UID(r.u32())
	a.GID = p9.GID(r.u32())
	a.NLink = p9.NLink(r.u64())
	a.RDev = p9.Dev(r.u64())
	a.Size = r.u64()
	a.BlockSize = r.u64()
	a.Blocks = r.u64()
	a.ATimeSeconds = r.u64()
	a.ATimeNanoSeconds = r.u64()
	a.MTimeSeconds = r.u64()
	a.MTimeNanoSeconds = r.u64()
	a.CTimeSeconds = r.u64()
	a.CTimeNanoSeconds = r.u64()
	a.BTimeSeconds = r.u64()
	a.BTimeNanoSeconds = r.u64()
	a.Gen = r.u64()
	a.DataVersion = r.u64()
}

func putSetAttr(b []byte, a *p9.SetAttr) []byte {
	b = put32(b, uint32(a.Permissions))
	b = put32(b, uint32(a.UID))
	b = put32(b, uint32(a.GID))
	b = put64(b, a.Size)
	b = put64(b, a.ATimeSeconds)
	b = put64(b, a.ATimeNanoSeconds)
	b = put64(b, a.MTimeSeconds)
	return put64(b, a.MTimeNanoSeconds)
}

func (r *reader) setAttr(a *p9.SetAttr) {
	a.Permissions = p9.FileMode(r.u32())
	a.UID = p9.UID(r.u32())
	a.GID = p9.GID(r.u32())
	a.Size = r.u64()
	a.ATimeSeconds = r.u64()
	a.ATimeNanoSeconds = r.u64()
	a.MTimeSeconds = r.u64()
	a.MTimeNanoSeconds = r.u64()
}

// Rstatfs answers Tstatfs.
type Rstatfs struct{ Stat p9.FSStat }

// MsgType implements Msg.
func (*Rstatfs) MsgType() Type { return TypeRstatfs }

// Append implements Msg.
func (m *Rstatfs) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeRstatfs, tag)
	b = put32(b, m.Stat.Type)
	b = put32(b, m.Stat.BlockSize)
	b = put64(b, m.Stat.Blocks)
	b = put64(b, m.Stat.BlocksFree)
	b = put64(b, m.Stat.BlocksAvailable)
	b = put64(b, m.Stat.Files)
	b = put64(b, m.Stat.FilesFree)
	b = put64(b, m.Stat.FSID)
	b = put32(b, m.Stat.NameLength)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Rstatfs) Decode(body []byte) error {
	r := reader{b: body}
	m.Stat.Type, m.Stat.BlockSize = r.u32(), r.u32()
	m.Stat.Blocks, m.Stat.BlocksFree, m.Stat.BlocksAvailable = r.u64(), r.u64(), r.u64()
	m.Stat.Files, m.Stat.FilesFree, m.Stat.FSID = r.u64(), r.u64(), r.u64()
	m.Stat.NameLength = r.u32()
	return r.end()
}
