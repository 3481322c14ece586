package wire

import "github.com/hugelgupf/p9/p9"

// Tlock takes or gives up a lock on a range of bytes.
type Tlock struct {
	FID    FID
	Type   p9.LockType
	Flags  p9.LockFlags
	Start  uint64
	Length uint64 // 0: to the end
	PID    uint32 // the client's process
	Client string // names the client
}

// MsgType implements Msg.
func (*Tlock) MsgType() Type { return TypeTlock }

// Append implements Msg.
func (m *Tlock) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTlock, tag)
	b = putFID(b, m.FID)
	b = append(b, uint8(m.Type))
	b = put32(b, uint32(m.Flags))
	b = put64(b, m.Start)
	b = put64(b, m.Length)
	b = put32(b, m.PID)
	b = putStr(b, m.Client)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tlock) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	m.Type = p9.LockType(r.u8())
	m.Flags = p9.LockFlags(r.u32())
	m.Start = r.u64()
	m.Length = r.u64()
	m.PID = r.u32()
	m.Client = r.str()
	return r.end()
}

// Rlock answers Tlock.
type Rlock struct {
	Status p9.LockStatus
}

// MsgType implements Msg.
func (*Rlock) MsgType() Type { return TypeRlock }

// Append implements Msg.
func (m *Rlock) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeRlock, tag)
	b = append(b, uint8(m.Status))
	return finish(b, n)
}

// Decode implements Msg.
func (m *Rlock) Decode(body []byte) error {
	r := reader{b: body}
	m.Status = p9.LockStatus(r.u8())
	return r.end()
}

// Tgetlock asks which lock is in the way.
type Tgetlock struct {
	FID    FID
	Type   p9.LockType
	Start  uint64
	Length uint64 // 0: to the end
	PID    uint32 // the client's process
	Client string // names the client
}

// MsgType implements Msg.
func (*Tgetlock) MsgType() Type { return TypeTgetlock }

// Append implements Msg.
func (m *Tgetlock) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeTgetlock, tag)
	b = putFID(b, m.FID)
	b = append(b, uint8(m.Type))
	b = put64(b, m.Start)
	b = put64(b, m.Length)
	b = put32(b, m.PID)
	b = putStr(b, m.Client)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Tgetlock) Decode(body []byte) error {
	r := reader{b: body}
	m.FID = r.fid()
	m.Type = p9.LockType(r.u8())
	m.Start = r.u64()
	m.Length = r.u64()
	m.PID = r.u32()
	m.Client = r.str()
	return r.end()
}

// Rgetlock answers Tgetlock: the lock in the way, or Type p9.Unlock.
type Rgetlock struct {
	Type   p9.LockType
	Start  uint64
	Length uint64 // 0: to the end
	PID    uint32 // the client's process
	Client string // names the client
}

// MsgType implements Msg.
func (*Rgetlock) MsgType() Type { return TypeRgetlock }

// Append implements Msg.
func (m *Rgetlock) Append(b []byte, tag Tag) []byte {
	n := len(b)
	b = begin(b, TypeRgetlock, tag)
	b = append(b, uint8(m.Type))
	b = put64(b, m.Start)
	b = put64(b, m.Length)
	b = put32(b, m.PID)
	b = putStr(b, m.Client)
	return finish(b, n)
}

// Decode implements Msg.
func (m *Rgetlock) Decode(body []byte) error {
	r := reader{b: body}
	m.Type = p9.LockType(r.u8())
	m.Start = r.u64()
	m.Length = r.u64()
	m.PID = r.u32()
	m.Client = r.str()
	return r.end()
}
