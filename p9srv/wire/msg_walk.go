package wire

import "github.com/hugelgupf/p9/p9"

// Twalk goes from FID through Names to NewFID.
type Twalk struct {
	FID    FID
	NewFID FID
	Names  []string // at most MaxWalk; none: NewFID becomes a copy of FID
}

// MsgType implements Msg.
func (*Twalk) MsgType() Type { return TypeTwalk }

// Append implements Msg. Names past MaxWalk are not sent.
func (m *Twalk) Append(b []byte, tag Tag) []byte {
	n := len(b)
	names := m.Names[:min(len(m.Names), MaxWalk)]
	b = putFID(putFID(begin(b, TypeTwalk, tag), m.FID), m.NewFID)
	b = put16(b, uint16(len(names)))
	for _, s := range names {
		b = putStr(b, s)
	}
	return finish(b, n)
}

// Decode implements Msg. The names share one copy of the body.
func (m *Twalk) Decode(body []byte) error {
	r := reader{b: body}
	m.FID, m.NewFID = r.fid(), r.fid()
	n := int(r.u16())
	m.Names = m.Names[:0]
	if r.bad {
		return errShort
	}
	if n > MaxWalk {
		return errWalk
	}
	if n == 0 {
		return r.end()
	}
	all := string(r.b)
	for range n {
		l := int(r.u16())
		at := len(all) - len(r.b)
		r.take(l)
		if r.bad {
			return errShort
		}
		m.Names = append(m.Names, all[at:at+l])
	}
	return r.end()
}

// Rwalk answers Twalk: a QID for each name that was walked. Fewer than names
// were sent means that the next one failed, and that NewFID is unchanged.
type Rwalk struct{ QIDs []p9.QID }

// MsgType implements Msg.
func (*Rwalk) MsgType() Type { return TypeRwalk }

// Append implements Msg. QIDs past MaxWalk are not sent.
func (m *Rwalk) Append(b []byte, tag Tag) []byte {
	n := len(b)
	qids := m.QIDs[:min(len(m.QIDs), MaxWalk)]
	b = put16(begin(b, TypeRwalk, tag), uint16(len(qids)))
	for _, q := range qids {
		b = putQID(b, q)
	}
	return finish(b, n)
}

// Decode implements Msg.
func (m *Rwalk) Decode(body []byte) error {
	r := reader{b: body}
	n := int(r.u16())
	m.QIDs = m.QIDs[:0]
	if r.bad {
		return errShort
	}
	if n > MaxWalk {
		return errWalk
	}
	for range n {
		m.QIDs = append(m.QIDs, r.qid())
	}
	return r.end()
}
