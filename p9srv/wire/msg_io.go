package wire

import "github.com/hugelgupf/p9/p9"

// Tlopen opens a file for I/O.
type Tlopen struct {
	FID   FID
	Flags p9.OpenFlags // open(2)'s flags, with Linux's generic numbers
}

// MsgType implements Msg.
func (*Tlopen) MsgType() Type { return TypeTlopen }

// Append implements Msg.
func (m *Tlopen) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTlopen, tag)
	b = putFID(b, m.FID)
	b = put32(b, uint32(m.Flags))
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tlopen) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	m.Flags = p9.OpenFlags(r.u32())
	return r.end()
}

// Rlopen answers Tlopen.
type Rlopen struct {
	QID    p9.QID
	IOUnit uint32 // largest read or write; 0: what msize allows
}

// MsgType implements Msg.
func (*Rlopen) MsgType() Type { return TypeRlopen }

// Append implements Msg.
func (m *Rlopen) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeRlopen, tag)
	b = putQID(b, m.QID)
	b = put32(b, m.IOUnit)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Rlopen) Decode(body []byte) error {
	r := reader{b: body}
	m.QID = r.qid()
	m.IOUnit = r.u32()
	return r.end()
}

// Tlcreate makes a regular file in the folder FID and opens it; FID becomes the file.
type Tlcreate struct {
	FID   FID
	Name  string
	Flags p9.OpenFlags // open(2)'s flags, with Linux's generic numbers
	Mode  p9.FileMode
	GID   p9.GID // group of what is made
}

// MsgType implements Msg.
func (*Tlcreate) MsgType() Type { return TypeTlcreate }

// Append implements Msg.
func (m *Tlcreate) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTlcreate, tag)
	b = putFID(b, m.FID)
	b = putStr(b, m.Name)
	b = put32(b, uint32(m.Flags))
	b = put32(b, uint32(m.Mode))
	b = put32(b, uint32(m.GID))
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tlcreate) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	m.Name = r.str()
	m.Flags = p9.OpenFlags(r.u32())
	m.Mode = p9.FileMode(r.u32())
	m.GID = p9.GID(r.u32())
	return r.end()
}

// Rlcreate answers Tlcreate.
type Rlcreate struct {
	QID    p9.QID
	IOUnit uint32 // largest read or write; 0: what msize allows
}

// MsgType implements Msg.
func (*Rlcreate) MsgType() Type { return TypeRlcreate }

// Append implements Msg.
func (m *Rlcreate) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeRlcreate, tag)
	b = putQID(b, m.QID)
	b = put32(b, m.IOUnit)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Rlcreate) Decode(body []byte) error {
	r := reader{b: body}
	m.QID = r.qid()
	m.IOUnit = r.u32()
	return r.end()
}

// Tread reads up to Count bytes at Offset.
type Tread struct {
	FID    FID
	Offset uint64
	Count  uint32
}

// MsgType implements Msg.
func (*Tread) MsgType() Type { return TypeTread }

// Append implements Msg.
func (m *Tread) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTread, tag)
	b = putFID(b, m.FID)
	b = put64(b, m.Offset)
	b = put32(b, m.Count)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tread) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	m.Offset = r.u64()
	m.Count = r.u32()
	return r.end()
}

// Rwrite answers Twrite.
type Rwrite struct {
	Count uint32 // bytes written
}

// MsgType implements Msg.
func (*Rwrite) MsgType() Type { return TypeRwrite }

// Append implements Msg.
func (m *Rwrite) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeRwrite, tag)
	b = put32(b, m.Count)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Rwrite) Decode(body []byte) error {
	r := reader{b: body}
	m.Count = r.u32()
	return r.end()
}

// Treaddir reads entries of an open folder, up to Count bytes of them.
type Treaddir struct {
	FID    FID
	Offset uint64 // 0, or the Offset of the last entry read
	Count  uint32
}

// MsgType implements Msg.
func (*Treaddir) MsgType() Type { return TypeTreaddir }

// Append implements Msg.
func (m *Treaddir) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTreaddir, tag)
	b = putFID(b, m.FID)
	b = put64(b, m.Offset)
	b = put32(b, m.Count)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Treaddir) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	m.Offset = r.u64()
	m.Count = r.u32()
	return r.end()
}

// Rfsync answers Tfsync.
type Rfsync struct{}

// MsgType implements Msg.
func (*Rfsync) MsgType() Type { return TypeRfsync }

// Append implements Msg.
func (*Rfsync) Append(b []byte, tag Tag) []byte { return empty(b, TypeRfsync, tag) }

// Decode implements Msg.
func (*Rfsync) Decode(body []byte) error { return nothing(body) }

// Tclunk gives a fid up.
type Tclunk struct {
	FID FID
}

// MsgType implements Msg.
func (*Tclunk) MsgType() Type { return TypeTclunk }

// Append implements Msg.
func (m *Tclunk) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTclunk, tag)
	b = putFID(b, m.FID)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tclunk) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	return r.end()
}

// Rclunk answers Tclunk.
type Rclunk struct{}

// MsgType implements Msg.
func (*Rclunk) MsgType() Type { return TypeRclunk }

// Append implements Msg.
func (*Rclunk) Append(b []byte, tag Tag) []byte { return empty(b, TypeRclunk, tag) }

// Decode implements Msg.
func (*Rclunk) Decode(body []byte) error { return nothing(body) }

// Rread answers Tread.
type Rread struct{ Data []byte } // aliases the frame after Decode

// MsgType implements Msg.
func (*Rread) MsgType() Type { return TypeRread }

// Append implements Msg.
func (m *Rread) Append(b []byte, tag Tag) []byte {
	return append(AppendReadHeader(b, TypeRread, tag, len(m.Data)), m.Data...)
}

// Decode implements Msg.
func (m *Rread) Decode(body []byte) error {
	r := reader{b: body}
	var err error
	m.Data, err = r.payload()
	return err
}

// Rreaddir answers Treaddir.
type Rreaddir struct{ Data []byte } // whole entries, see NextDirent; aliases the frame after Decode

// MsgType implements Msg.
func (*Rreaddir) MsgType() Type { return TypeRreaddir }

// Append implements Msg.
func (m *Rreaddir) Append(b []byte, tag Tag) []byte {
	return append(AppendReadHeader(b, TypeRreaddir, tag, len(m.Data)), m.Data...)
}

// Decode implements Msg. It does not look into the entries.
func (m *Rreaddir) Decode(body []byte) error {
	r := reader{b: body}
	var err error
	m.Data, err = r.payload()
	return err
}

// Twrite writes Data at Offset.
type Twrite struct {
	FID    FID
	Offset uint64
	Data   []byte // aliases the frame after Decode
}

// MsgType implements Msg.
func (*Twrite) MsgType() Type { return TypeTwrite }

// Append implements Msg.
func (m *Twrite) Append(b []byte, tag Tag) []byte {
	return append(AppendWriteHeader(b, tag, m.FID, m.Offset, len(m.Data)), m.Data...)
}

// Decode implements Msg.
func (m *Twrite) Decode(body []byte) error {
	r := reader{b: body}
	m.FID, m.Offset = r.fid(), r.u64()
	var err error
	m.Data, err = r.payload()
	return err
}

// payload reads a count[4] and the data that is the rest of the body.
func (r *reader) payload() ([]byte, error) {
	n := r.u32()
	if r.bad {
		return nil, errShort
	}
	if uint64(n) != uint64(len(r.b)) {
		return nil, errCount
	}
	return r.b[:n:n], nil
}

// Tfsync flushes a file to its disk. Linux sends the datasync word since 3.12;
// older clients and other libraries leave it out.
type Tfsync struct {
	FID      FID
	Datasync uint32 // not 0: contents only, as fdatasync(2)
	Short    bool   // no datasync word on the wire; set by Decode, obeyed by Append
}

// MsgType implements Msg.
func (*Tfsync) MsgType() Type { return TypeTfsync }

// Append implements Msg.
func (m *Tfsync) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = putFID(begin(b, TypeTfsync, tag), m.FID)
	if !m.Short {
		b = put32(b, m.Datasync)
	}
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tfsync) Decode(body []byte) error {
	r := reader{b: body}
	m.FID, m.Datasync, m.Short = r.fid(), 0, len(r.b) == 0
	if !m.Short {
		m.Datasync = r.u32()
	}
	return r.end()
}
