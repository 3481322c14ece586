package wire

import "github.com/hugelgupf/p9/p9"

// Tversion starts or restarts a session.
type Tversion struct {
	Msize   uint32 // largest frame the client takes, in bytes
	Version string
}

// MsgType implements Msg.
func (*Tversion) MsgType() Type { return TypeTversion }

// Append implements Msg.
func (m *Tversion) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTversion, tag)
	return finish(putStr(put32(b, m.Msize), m.Version), n)
}

// Decode implements Msg.
func (m *Tversion) Decode(body []byte) error {
	r := reader{b: body}
	m.Msize, m.Version = r.u32(), r.str()
	return r.end()
}

// Rversion answers Tversion.
type Rversion struct {
	Msize   uint32 // largest frame either side may send from now on
	Version string // VersionUnknown when the server does not speak the client's
}

// MsgType implements Msg.
func (*Rversion) MsgType() Type { return TypeRversion }

// Append implements Msg.
func (m *Rversion) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeRversion, tag)
	return finish(putStr(put32(b, m.Msize), m.Version), n)
}

// Decode implements Msg.
func (m *Rversion) Decode(body []byte) error {
	r := reader{b: body}
	m.Msize, m.Version = r.u32(), r.str()
	return r.end()
}

// Tauth asks for a file to authenticate through.
type Tauth struct {
	AFID  FID
	Uname string
	Aname string
	UID   p9.UID // n_uname; p9.NoUID: go by Uname. 9P2000 does not have it: Plain
	Plain bool   // no n_uname on the wire; set by Decode, obeyed by Append
}

// MsgType implements Msg.
func (*Tauth) MsgType() Type { return TypeTauth }

// Append implements Msg.
func (m *Tauth) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = putFID(begin(b, TypeTauth, tag), m.AFID)
	b = putStr(putStr(b, m.Uname), m.Aname)
	if !m.Plain {
		b = put32(b, uint32(m.UID))
	}
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tauth) Decode(body []byte) error {
	r := reader{b: body}
	m.AFID, m.Uname, m.Aname = r.fid(), r.str(), r.str()
	m.UID, m.Plain = r.optionalUID()
	return r.end()
}

// optionalUID reads an n_uname, which 9P2000 leaves out.
func (r *reader) optionalUID() (p9.UID, bool) {
	if len(r.b) == 0 {
		return p9.NoUID, true
	}
	return p9.UID(r.u32()), false
}

// Rauth answers Tauth.
type Rauth struct{ QID p9.QID }

// MsgType implements Msg.
func (*Rauth) MsgType() Type { return TypeRauth }

// Append implements Msg.
func (m *Rauth) Append(b []byte, tag Tag) []byte { return qidAnswer(b, TypeRauth, tag, m.QID) }

// Decode implements Msg.
func (m *Rauth) Decode(body []byte) error { return onlyQID(body, &m.QID) }

// Tattach makes FID the root of a tree.
type Tattach struct {
	FID   FID
	AFID  FID // NoFID without authentication
	Uname string
	Aname string
	UID   p9.UID // n_uname; p9.NoUID: go by Uname. 9P2000 does not have it: Plain
	Plain bool   // no n_uname on the wire; set by Decode, obeyed by Append
}

// MsgType implements Msg.
func (*Tattach) MsgType() Type { return TypeTattach }

// Append implements Msg.
func (m *Tattach) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = putFID(putFID(begin(b, TypeTattach, tag), m.FID), m.AFID)
	b = putStr(putStr(b, m.Uname), m.Aname)
	if !m.Plain {
		b = put32(b, uint32(m.UID))
	}
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tattach) Decode(body []byte) error {
	r := reader{b: body}
	m.FID, m.AFID, m.Uname, m.Aname = r.fid(), r.fid(), r.str(), r.str()
	m.UID, m.Plain = r.optionalUID()
	return r.end()
}

// Rattach answers Tattach.
type Rattach struct{ QID p9.QID }

// MsgType implements Msg.
func (*Rattach) MsgType() Type { return TypeRattach }

// Append implements Msg.
func (m *Rattach) Append(b []byte, tag Tag) []byte { return qidAnswer(b, TypeRattach, tag, m.QID) }

// Decode implements Msg.
func (m *Rattach) Decode(body []byte) error { return onlyQID(body, &m.QID) }

// qidAnswer and onlyQID serve the answers that are one QID.
func qidAnswer(b []byte, t Type, tag Tag, q p9.QID) []byte {
	n := len(b)
	return finish(putQID(begin(b, t, tag), q), n)
}

func onlyQID(body []byte, q *p9.QID) error {
	r := reader{b: body}
	*q = r.qid()
	return r.end()
}

// Rlerror answers any request that failed.
type Rlerror struct{ Errno uint32 } // Linux errno

// MsgType implements Msg.
func (*Rlerror) MsgType() Type { return TypeRlerror }

// Append implements Msg.
func (m *Rlerror) Append(b []byte, tag Tag) []byte {
	n := len(b)
	return finish(put32(begin(b, TypeRlerror, tag), m.Errno), n)
}

// Decode implements Msg.
func (m *Rlerror) Decode(body []byte) error {
	r := reader{b: body}
	m.Errno = r.u32()
	return r.end()
}

// Tflush asks to give up the request OldTag.
type Tflush struct{ OldTag Tag }

// MsgType implements Msg.
func (*Tflush) MsgType() Type { return TypeTflush }

// Append implements Msg.
func (m *Tflush) Append(b []byte, tag Tag) []byte {
	n := len(b)
	return finish(put16(begin(b, TypeTflush, tag), uint16(m.OldTag)), n)
}

// Decode implements Msg.
func (m *Tflush) Decode(body []byte) error {
	r := reader{b: body}
	m.OldTag = Tag(r.u16())
	return r.end()
}

// Rflush answers Tflush: OldTag is free.
type Rflush struct{}

// MsgType implements Msg.
func (*Rflush) MsgType() Type { return TypeRflush }

// Append implements Msg.
func (*Rflush) Append(b []byte, tag Tag) []byte { return empty(b, TypeRflush, tag) }

// Decode implements Msg.
func (*Rflush) Decode(body []byte) error { return nothing(body) }

func nothing(body []byte) error {
	if len(body) != 0 {
		return errTrailing
	}
	return nil
}
