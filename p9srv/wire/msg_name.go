package wire

import "github.com/hugelgupf/p9/p9"

// Tsymlink makes a symbolic link in the folder DFID.
type Tsymlink struct {
	DFID   FID
	Name   string
	Target string
	GID    p9.GID // group of what is made
}

// MsgType implements Msg.
func (*Tsymlink) MsgType() Type { return TypeTsymlink }

// Append implements Msg.
func (m *Tsymlink) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTsymlink, tag)
	b = putFID(b, m.DFID)
	b = putStr(b, m.Name)
	b = putStr(b, m.Target)
	b = put32(b, uint32(m.GID))
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tsymlink) Decode(body []byte) error {
	r := reader{b: body}
	m.DFID = r.fid()
	m.Name = r.str()
	m.Target = r.str()
	m.GID = p9.GID(r.u32())
	return r.end()
}

// Rsymlink answers Tsymlink.
type Rsymlink struct {
	QID p9.QID
}

// MsgType implements Msg.
func (*Rsymlink) MsgType() Type { return TypeRsymlink }

// Append implements Msg.
func (m *Rsymlink) Append(b []byte, tag Tag) []byte { return qidAnswer(b, TypeRsymlink, tag, m.QID) }

// Decode implements Msg.
func (m *Rsymlink) Decode(body []byte) error { return onlyQID(body, &m.QID) }

// Tmknod makes a FIFO, socket, device or regular file in the folder DFID.
type Tmknod struct {
	DFID  FID
	Name  string
	Mode  p9.FileMode
	Major uint32
	Minor uint32
	GID   p9.GID // group of what is made
}

// MsgType implements Msg.
func (*Tmknod) MsgType() Type { return TypeTmknod }

// Append implements Msg.
func (m *Tmknod) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTmknod, tag)
	b = putFID(b, m.DFID)
	b = putStr(b, m.Name)
	b = put32(b, uint32(m.Mode))
	b = put32(b, m.Major)
	b = put32(b, m.Minor)
	b = put32(b, uint32(m.GID))
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tmknod) Decode(body []byte) error {
	r := reader{b: body}
	m.DFID = r.fid()
	m.Name = r.str()
	m.Mode = p9.FileMode(r.u32())
	m.Major = r.u32()
	m.Minor = r.u32()
	m.GID = p9.GID(r.u32())
	return r.end()
}

// Rmknod answers Tmknod.
type Rmknod struct {
	QID p9.QID
}

// MsgType implements Msg.
func (*Rmknod) MsgType() Type { return TypeRmknod }

// Append implements Msg.
func (m *Rmknod) Append(b []byte, tag Tag) []byte { return qidAnswer(b, TypeRmknod, tag, m.QID) }

// Decode implements Msg.
func (m *Rmknod) Decode(body []byte) error { return onlyQID(body, &m.QID) }

// Tmkdir makes a folder in the folder DFID.
type Tmkdir struct {
	DFID FID
	Name string
	Mode p9.FileMode
	GID  p9.GID // group of what is made
}

// MsgType implements Msg.
func (*Tmkdir) MsgType() Type { return TypeTmkdir }

// Append implements Msg.
func (m *Tmkdir) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTmkdir, tag)
	b = putFID(b, m.DFID)
	b = putStr(b, m.Name)
	b = put32(b, uint32(m.Mode))
	b = put32(b, uint32(m.GID))
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tmkdir) Decode(body []byte) error {
	r := reader{b: body}
	m.DFID = r.fid()
	m.Name = r.str()
	m.Mode = p9.FileMode(r.u32())
	m.GID = p9.GID(r.u32())
	return r.end()
}

// Rmkdir answers Tmkdir.
type Rmkdir struct {
	QID p9.QID
}

// MsgType implements Msg.
func (*Rmkdir) MsgType() Type { return TypeRmkdir }

// Append implements Msg.
func (m *Rmkdir) Append(b []byte, tag Tag) []byte { return qidAnswer(b, TypeRmkdir, tag, m.QID) }

// Decode implements Msg.
func (m *Rmkdir) Decode(body []byte) error { return onlyQID(body, &m.QID) }

// Tlink gives the file FID a further name in the folder DFID.
type Tlink struct {
	DFID FID
	FID  FID
	Name string
}

// MsgType implements Msg.
func (*Tlink) MsgType() Type { return TypeTlink }

// Append implements Msg.
func (m *Tlink) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTlink, tag)
	b = putFID(b, m.DFID)
	b = putFID(b, m.FID)
	b = putStr(b, m.Name)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tlink) Decode(body []byte) error {
	r := reader{b: body}
	m.DFID = r.fid()
	m.FID = r.fid()
	m.Name = r.str()
	return r.end()
}

// Rlink answers Tlink.
type Rlink struct{}

// MsgType implements Msg.
func (*Rlink) MsgType() Type { return TypeRlink }

// Append implements Msg.
func (*Rlink) Append(b []byte, tag Tag) []byte { return empty(b, TypeRlink, tag) }

// Decode implements Msg.
func (*Rlink) Decode(body []byte) error { return nothing(body) }

// Trename moves the file FID into the folder DFID under Name.
type Trename struct {
	FID  FID
	DFID FID
	Name string
}

// MsgType implements Msg.
func (*Trename) MsgType() Type { return TypeTrename }

// Append implements Msg.
func (m *Trename) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTrename, tag)
	b = putFID(b, m.FID)
	b = putFID(b, m.DFID)
	b = putStr(b, m.Name)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Trename) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	m.DFID = r.fid()
	m.Name = r.str()
	return r.end()
}

// Rrename answers Trename.
type Rrename struct{}

// MsgType implements Msg.
func (*Rrename) MsgType() Type { return TypeRrename }

// Append implements Msg.
func (*Rrename) Append(b []byte, tag Tag) []byte { return empty(b, TypeRrename, tag) }

// Decode implements Msg.
func (*Rrename) Decode(body []byte) error { return nothing(body) }

// Trenameat moves a name from one folder to another.
type Trenameat struct {
	OldDFID FID
	OldName string
	NewDFID FID
	NewName string
}

// MsgType implements Msg.
func (*Trenameat) MsgType() Type { return TypeTrenameat }

// Append implements Msg.
func (m *Trenameat) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTrenameat, tag)
	b = putFID(b, m.OldDFID)
	b = putStr(b, m.OldName)
	b = putFID(b, m.NewDFID)
	b = putStr(b, m.NewName)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Trenameat) Decode(body []byte) error {
	r := reader{b: body}
	m.OldDFID = r.fid()
	m.OldName = r.str()
	m.NewDFID = r.fid()
	m.NewName = r.str()
	return r.end()
}

// Rrenameat answers Trenameat.
type Rrenameat struct{}

// MsgType implements Msg.
func (*Rrenameat) MsgType() Type { return TypeRrenameat }

// Append implements Msg.
func (*Rrenameat) Append(b []byte, tag Tag) []byte { return empty(b, TypeRrenameat, tag) }

// Decode implements Msg.
func (*Rrenameat) Decode(body []byte) error { return nothing(body) }

// Tunlinkat removes a name from the folder DFID.
type Tunlinkat struct {
	DFID  FID
	Name  string
	Flags uint32 // UnlinkRemoveDir for a folder
}

// MsgType implements Msg.
func (*Tunlinkat) MsgType() Type { return TypeTunlinkat }

// Append implements Msg.
func (m *Tunlinkat) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTunlinkat, tag)
	b = putFID(b, m.DFID)
	b = putStr(b, m.Name)
	b = put32(b, m.Flags)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tunlinkat) Decode(body []byte) error {
	r := reader{b: body}
	m.DFID = r.fid()
	m.Name = r.str()
	m.Flags = r.u32()
	return r.end()
}

// Runlinkat answers Tunlinkat.
type Runlinkat struct{}

// MsgType implements Msg.
func (*Runlinkat) MsgType() Type { return TypeRunlinkat }

// Append implements Msg.
func (*Runlinkat) Append(b []byte, tag Tag) []byte { return empty(b, TypeRunlinkat, tag) }

// Decode implements Msg.
func (*Runlinkat) Decode(body []byte) error { return nothing(body) }

// Tremove removes the file FID and gives the fid up, even when that fails.
type Tremove struct {
	FID FID
}

// MsgType implements Msg.
func (*Tremove) MsgType() Type { return TypeTremove }

// Append implements Msg.
func (m *Tremove) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTremove, tag)
	b = putFID(b, m.FID)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tremove) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	return r.end()
}

// Rremove answers Tremove.
type Rremove struct{}

// MsgType implements Msg.
func (*Rremove) MsgType() Type { return TypeRremove }

// Append implements Msg.
func (*Rremove) Append(b []byte, tag Tag) []byte { return empty(b, TypeRremove, tag) }

// Decode implements Msg.
func (*Rremove) Decode(body []byte) error { return nothing(body) }

// Treadlink reads a symbolic link's target.
type Treadlink struct {
	FID FID
}

// MsgType implements Msg.
func (*Treadlink) MsgType() Type { return TypeTreadlink }

// Append implements Msg.
func (m *Treadlink) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTreadlink, tag)
	b = putFID(b, m.FID)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Treadlink) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	return r.end()
}

// Rreadlink answers Treadlink.
type Rreadlink struct {
	Target string
}

// MsgType implements Msg.
func (*Rreadlink) MsgType() Type { return TypeRreadlink }

// Append implements Msg.
func (m *Rreadlink) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeRreadlink, tag)
	b = putStr(b, m.Target)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Rreadlink) Decode(body []byte) error {
	r := reader{b: body}
	m.Target = r.str()
	return r.end()
}
