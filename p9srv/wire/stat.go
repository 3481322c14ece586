package wire

import "github.com/hugelgupf/p9/p9"

// Bits of Stat.Mode and Tcreate.Perm besides the nine of permissions, of
// 9P2000 and, from DMSymlink on, of 9P2000.u (include/net/9p/9p.h).
const (
	DMDir       = 0x80000000
	DMSymlink   = 0x02000000
	DMLink      = 0x01000000
	DMDevice    = 0x00800000
	DMNamedPipe = 0x00200000
	DMSocket    = 0x00100000
	DMSetUID    = 0x00080000
	DMSetGID    = 0x00040000
	DMSetVTX    = 0x00010000
)

// Modes of Topen and Tcreate (open(5) of Plan 9).
const (
	OpenRead   = 0
	OpenWrite  = 1
	OpenRdWr   = 2
	OpenExec   = 3
	OpenTrunc  = 0x10
	OpenRClose = 0x40 // remove when the fid goes
	OpenAppend = 0x80 // 9P2000.u
)

// Stat describes a file in 9P2000 and 9P2000.u (stat(5) of Plan 9). In a Twstat
// a number with all bits set and an empty string mean "as it is".
type Stat struct {
	Type   uint16 // the server's
	Dev    uint32 // the server's
	QID    p9.QID
	Mode   uint32 // permissions and DM bits
	Atime  uint32 // s since 1970
	Mtime  uint32
	Length uint64 // bytes; 0 for a folder
	Name   string
	UID    string
	GID    string
	MUID   string // who changed it last

	// 9P2000.u alone; not on the wire with Plain.
	Extension string // a link's target; "c 1 3" or "b 8 0" for a device
	NUID      p9.UID
	NGID      p9.GID
	NMUID     p9.UID
	Plain     bool // of 9P2000; set by Decode, obeyed by Append
}

// AppendStat puts a Stat behind b, its size first, as a folder's contents have
// it.
func AppendStat(b []byte, s *Stat) []byte {
	n := len(b)
	b = put16(b, 0)
	b = put32(put16(b, s.Type), s.Dev)
	b = putQID(b, s.QID)
	b = put32(put32(put32(b, s.Mode), s.Atime), s.Mtime)
	b = put64(b, s.Length)
	b = putStr(putStr(putStr(putStr(b, s.Name), s.UID), s.GID), s.MUID)
	if !s.Plain {
		b = putStr(b, s.Extension)
		b = put32(put32(put32(b, uint32(s.NUID)), uint32(s.NGID)), uint32(s.NMUID))
	}
	size := len(b) - n - 2
	b[n], b[n+1] = byte(size), byte(size>>8)
	return b
}

// NextStat takes the first Stat from a folder's contents and returns what follows
// it. Call it until the rest is empty.
func NextStat(data []byte) (st Stat, rest []byte, err error) {
	r := reader{b: data}
	st = r.stat()
	if r.bad {
		return Stat{}, nil, errShort
	}
	return st, r.b, nil
}

// stat reads a Stat with its size.
func (r *reader) stat() (s Stat) {
	in := reader{b: r.take(int(r.u16()))}
	s.Type, s.Dev, s.QID = in.u16(), in.u32(), in.qid()
	s.Mode, s.Atime, s.Mtime, s.Length = in.u32(), in.u32(), in.u32(), in.u64()
	s.Name, s.UID, s.GID, s.MUID = in.str(), in.str(), in.str(), in.str()
	if s.Plain = len(in.b) == 0; !s.Plain {
		s.Extension = in.str()
		s.NUID, s.NGID, s.NMUID = p9.UID(in.u32()), p9.GID(in.u32()), p9.UID(in.u32())
	}
	r.bad = r.bad || in.bad || len(in.b) > 0
	return s
}

// Tstat asks for a Stat.
type Tstat struct{ FID FID }

// MsgType implements Msg.
func (*Tstat) MsgType() Type { return TypeTstat }

// Append implements Msg.
func (m *Tstat) Append(b []byte, tag Tag) []byte {
	n := len(b)
	return finish(putFID(begin(b, TypeTstat, tag), m.FID), n)
}

// Decode implements Msg.
func (m *Tstat) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	return r.end()
}

// Rstat answers Tstat.
type Rstat struct{ Stat Stat }

// MsgType implements Msg.
func (*Rstat) MsgType() Type { return TypeRstat }

// Append implements Msg.
func (m *Rstat) Append(b []byte, tag Tag) []byte {
	n := len(b)
	return finish(putCountedStat(begin(b, TypeRstat, tag), &m.Stat), n)
}

// Decode implements Msg.
func (m *Rstat) Decode(body []byte) error {
	r := reader{b: body}
	m.Stat = r.countedStat()
	return r.end()
}

// putCountedStat puts a Stat that has its size a second time before it.
func putCountedStat(b []byte, s *Stat) []byte {
	n := len(b)
	b = AppendStat(put16(b, 0), s)
	size := len(b) - n - 2
	b[n], b[n+1] = byte(size), byte(size>>8)
	return b
}

func (r *reader) countedStat() Stat {
	in := reader{b: r.take(int(r.u16()))}
	s := in.stat()
	r.bad = r.bad || in.bad || len(in.b) > 0
	return s
}

// Twstat changes what Stat says otherwise; a Stat that says nothing makes the
// file durable.
type Twstat struct {
	FID  FID
	Stat Stat
}

// MsgType implements Msg.
func (*Twstat) MsgType() Type { return TypeTwstat }

// Append implements Msg.
func (m *Twstat) Append(b []byte, tag Tag) []byte {
	n := len(b)
	return finish(putCountedStat(putFID(begin(b, TypeTwstat, tag), m.FID), &m.Stat), n)
}

// Decode implements Msg.
func (m *Twstat) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	m.Stat = r.countedStat()
	return r.end()
}

// Rwstat answers Twstat.
type Rwstat struct{}

// MsgType implements Msg.
func (*Rwstat) MsgType() Type { return TypeRwstat }

// Append implements Msg.
func (*Rwstat) Append(b []byte, tag Tag) []byte { return empty(b, TypeRwstat, tag) }

// Decode implements Msg.
func (*Rwstat) Decode(body []byte) error {
	r := reader{b: body}
	return r.end()
}
