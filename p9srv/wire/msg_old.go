package wire

import "github.com/hugelgupf/p9/p9"

// Rerror answers any request of 9P2000 and 9P2000.u that failed.
type Rerror struct {
	Ename string
	Errno uint32 // Linux errno; 9P2000 does not have it: Plain
	Plain bool   // set by Decode, obeyed by Append
}

// MsgType implements Msg.
func (*Rerror) MsgType() Type { return TypeRerror }

// Append implements Msg.
func (m *Rerror) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = putStr(begin(b, TypeRerror, tag), m.Ename)
	if !m.Plain {
		b = put32(b, m.Errno)
	}
	return finish(b, n)
}

// Decode implements Msg.
func (m *Rerror) Decode(body []byte) error {
	r := reader{b: body}
	m.Ename, m.Errno = r.str(), 0
	if m.Plain = len(r.b) == 0; !m.Plain {
		m.Errno = r.u32()
	}
	return r.end()
}

// Topen opens a fid in 9P2000 and 9P2000.u.
type Topen struct {
	FID  FID
	Mode uint8 // OpenRead...
}

// MsgType implements Msg.
func (*Topen) MsgType() Type { return TypeTopen }

// Append implements Msg.
func (m *Topen) Append(b []byte, tag Tag) []byte {
	n := len(b)
	return finish(append(putFID(begin(b, TypeTopen, tag), m.FID), m.Mode), n)
}

// Decode implements Msg.
func (m *Topen) Decode(body []byte) error {
	r := reader{b: body}
	m.FID, m.Mode = r.fid(), r.u8()
	return r.end()
}

// Ropen answers Topen.
type Ropen struct {
	QID    p9.QID
	IOUnit uint32 // bytes; 0: what msize leaves
}

// MsgType implements Msg.
func (*Ropen) MsgType() Type { return TypeRopen }

// Append implements Msg.
func (m *Ropen) Append(b []byte, tag Tag) []byte {
	n := len(b)
	return finish(put32(putQID(begin(b, TypeRopen, tag), m.QID), m.IOUnit), n)
}

// Decode implements Msg.
func (m *Ropen) Decode(body []byte) error {
	r := reader{b: body}
	m.QID, m.IOUnit = r.qid(), r.u32()
	return r.end()
}

// Tcreate makes a file in the folder FID in 9P2000 and 9P2000.u, and makes FID
// stand for it, open.
type Tcreate struct {
	FID  FID
	Name string
	Perm uint32 // permissions and DM bits
	Mode uint8  // OpenRead...
	// Extension is what a link says, a device's number, or the fid of what
	// DMLink gives a name to. 9P2000 does not have it: Plain.
	Extension string
	Plain     bool // set by Decode, obeyed by Append
}

// MsgType implements Msg.
func (*Tcreate) MsgType() Type { return TypeTcreate }

// Append implements Msg.
func (m *Tcreate) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = putStr(putFID(begin(b, TypeTcreate, tag), m.FID), m.Name)
	b = append(put32(b, m.Perm), m.Mode)
	if !m.Plain {
		b = putStr(b, m.Extension)
	}
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tcreate) Decode(body []byte) error {
	r := reader{b: body}
	m.FID, m.Name, m.Perm, m.Mode, m.Extension = r.fid(), r.str(), r.u32(), r.u8(), ""
	if m.Plain = len(r.b) == 0; !m.Plain {
		m.Extension = r.str()
	}
	return r.end()
}

// Rcreate answers Tcreate.
type Rcreate struct {
	QID    p9.QID
	IOUnit uint32 // bytes; 0: what msize leaves
}

// MsgType implements Msg.
func (*Rcreate) MsgType() Type { return TypeRcreate }

// Append implements Msg.
func (m *Rcreate) Append(b []byte, tag Tag) []byte {
	n := len(b)
	return finish(put32(putQID(begin(b, TypeRcreate, tag), m.QID), m.IOUnit), n)
}

// Decode implements Msg.
func (m *Rcreate) Decode(body []byte) error {
	r := reader{b: body}
	m.QID, m.IOUnit = r.qid(), r.u32()
	return r.end()
}
