package wire

import "github.com/hugelgupf/p9/p9"

// Tstatfs asks about the file system.
type Tstatfs struct {
	FID FID
}

// MsgType implements Msg.
func (*Tstatfs) MsgType() Type { return TypeTstatfs }

// Append implements Msg.
func (m *Tstatfs) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTstatfs, tag)
	b = putFID(b, m.FID)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tstatfs) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	return r.end()
}

// Tgetattr asks for attributes.
type Tgetattr struct {
	FID  FID
	Mask p9.AttrMask
}

// MsgType implements Msg.
func (*Tgetattr) MsgType() Type { return TypeTgetattr }

// Append implements Msg.
func (m *Tgetattr) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTgetattr, tag)
	b = putFID(b, m.FID)
	b = put64(b, AttrMaskBits(m.Mask))
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tgetattr) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	m.Mask = AttrMaskOf(r.u64())
	return r.end()
}

// Rgetattr answers Tgetattr.
type Rgetattr struct {
	Valid p9.AttrMask // which fields of Attr count
	QID   p9.QID
	Attr  p9.Attr
}

// MsgType implements Msg.
func (*Rgetattr) MsgType() Type { return TypeRgetattr }

// Append implements Msg.
func (m *Rgetattr) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeRgetattr, tag)
	b = put64(b, AttrMaskBits(m.Valid))
	b = putQID(b, m.QID)
	b = putAttr(b, &m.Attr)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Rgetattr) Decode(body []byte) error {
	r := reader{b: body}
	m.Valid = AttrMaskOf(r.u64())
	m.QID = r.qid()
	r.attr(&m.Attr)
	return r.end()
}

// Tsetattr changes attributes.
type Tsetattr struct {
	FID   FID
	Valid p9.SetAttrMask // which fields of Attr count
	Attr  p9.SetAttr
}

// MsgType implements Msg.
func (*Tsetattr) MsgType() Type { return TypeTsetattr }

// Append implements Msg.
func (m *Tsetattr) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTsetattr, tag)
	b = putFID(b, m.FID)
	b = put32(b, SetAttrMaskBits(m.Valid))
	b = putSetAttr(b, &m.Attr)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tsetattr) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	m.Valid = SetAttrMaskOf(r.u32())
	r.setAttr(&m.Attr)
	return r.end()
}

// Rsetattr answers Tsetattr.
type Rsetattr struct{}

// MsgType implements Msg.
func (*Rsetattr) MsgType() Type { return TypeRsetattr }

// Append implements Msg.
func (*Rsetattr) Append(b []byte, tag Tag) []byte { return empty(b, TypeRsetattr, tag) }

// Decode implements Msg.
func (*Rsetattr) Decode(body []byte) error { return nothing(body) }

// Txattrwalk makes NewFID a file that holds an extended attribute, or the list of them.
type Txattrwalk struct {
	FID    FID
	NewFID FID
	Name   string // empty: the list, each name with a NUL behind it
}

// MsgType implements Msg.
func (*Txattrwalk) MsgType() Type { return TypeTxattrwalk }

// Append implements Msg.
func (m *Txattrwalk) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTxattrwalk, tag)
	b = putFID(b, m.FID)
	b = putFID(b, m.NewFID)
	b = putStr(b, m.Name)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Txattrwalk) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	m.NewFID = r.fid()
	m.Name = r.str()
	return r.end()
}

// Rxattrwalk answers Txattrwalk.
type Rxattrwalk struct {
	Size uint64 // bytes
}

// MsgType implements Msg.
func (*Rxattrwalk) MsgType() Type { return TypeRxattrwalk }

// Append implements Msg.
func (m *Rxattrwalk) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeRxattrwalk, tag)
	b = put64(b, m.Size)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Rxattrwalk) Decode(body []byte) error {
	r := reader{b: body}
	m.Size = r.u64()
	return r.end()
}

// Txattrcreate turns FID into a file that takes an extended attribute's value; Tclunk sets it.
type Txattrcreate struct {
	FID   FID
	Name  string
	Size  uint64 // bytes that will be written; 0 removes the attribute
	Flags uint32 // setxattr(2)'s
}

// MsgType implements Msg.
func (*Txattrcreate) MsgType() Type { return TypeTxattrcreate }

// Append implements Msg.
func (m *Txattrcreate) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTxattrcreate, tag)
	b = putFID(b, m.FID)
	b = putStr(b, m.Name)
	b = put64(b, m.Size)
	b = put32(b, m.Flags)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Txattrcreate) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	m.Name = r.str()
	m.Size = r.u64()
	m.Flags = r.u32()
	return r.end()
}

// Rxattrcreate answers Txattrcreate.
type Rxattrcreate struct{}

// MsgType implements Msg.
func (*Rxattrcreate) MsgType() Type { return TypeRxattrcreate }

// Append implements Msg.
func (*Rxattrcreate) Append(b []byte, tag Tag) []byte { return empty(b, TypeRxattrcreate, tag) }

// Decode implements Msg.
func (*Rxattrcreate) Decode(body []byte) error { return nothing(body) }
