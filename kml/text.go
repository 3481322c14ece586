package kml

import (
	"encoding/hex"
	"strconv"
	"time"
)

// AppendText appends r as one line, without a newline:
//
//	POSITION TIME OP [OID] [in PARENT] ["NAME"] [to PARENT "NAME"] [KEY=VALUE ...]
//
// The time is UTC, names are quoted as Go strings (bytes that are no UTF-8 as
// \xNN), so a line stays a line. Keys that an opcode does not use are left out.
func AppendText(b []byte, r *Record) []byte {
	b = r.Pos.appendText(b)
	b = append(b, ' ')
	b = time.Unix(0, r.Time).UTC().AppendFormat(b, "2006-01-02T15:04:05.000000000Z")
	b = append(b, ' ')
	b = append(b, r.Op.String()...)
	if r.Op == OpMark {
		b = append(b, ' ')
		b = append(b, r.Mark.String()...)
	}
	if r.OID != 0 {
		b = append(b, ' ')
		b = r.OID.appendText(b)
	}
	if r.Parent != 0 {
		b = append(b, " in "...)
		b = r.Parent.appendText(b)
	}
	if r.Name != "" {
		b = append(b, ' ')
		b = strconv.AppendQuote(b, r.Name)
	}
	if r.NewParent != 0 || r.NewName != "" {
		b = append(b, " to "...)
		b = r.NewParent.appendText(b)
		b = append(b, ' ')
		b = strconv.AppendQuote(b, r.NewName)
	}
	return r.appendPairs(b)
}

// text builds KEY=VALUE pairs.
type text struct{ b []byte }

func (t *text) key(k string) {
	t.b = append(t.b, ' ')
	t.b = append(t.b, k...)
	t.b = append(t.b, '=')
}

func (t *text) str(k, v string) {
	if v != "" {
		t.key(k)
		t.b = append(t.b, v...)
	}
}

func (t *text) quote(k, v string) {
	if v != "" {
		t.key(k)
		t.b = strconv.AppendQuote(t.b, v)
	}
}

func (t *text) num(k string, v uint64, base int) {
	t.key(k)
	if base == 8 {
		t.b = append(t.b, '0')
	}
	t.b = strconv.AppendUint(t.b, v, base)
}

func (t *text) pos(k string, p Position) {
	if p != 0 {
		t.key(k)
		t.b = p.appendText(t.b)
	}
}

func (t *text) base(k string, v Base) {
	t.pos(k, v.Pos)
	if v.Seq != 0 {
		t.num(k+".seq", v.Seq, 10)
	}
}

// when writes seconds and nanoseconds since 1970.
func (t *text) when(k string, ns int64) {
	t.key(k)
	u := uint64(ns)
	if ns < 0 {
		t.b = append(t.b, '-')
		u = -u
	}
	t.b = strconv.AppendUint(t.b, u/1e9, 10)
	t.b = append(t.b, '.')
	d := strconv.Itoa(int(u%1e9) + 1e9)
	t.b = append(t.b, d[1:]...)
}

// attr writes the fields of a under m; of other fields those that are not 0.
func (t *text) attr(prefix string, a *Attr, m AttrMask) {
	for _, f := range [...]struct {
		m    AttrMask
		k    string
		v    uint64
		base int
	}{
		{MaskMode, "mode", uint64(a.Mode), 8},
		{MaskUID, "uid", uint64(a.UID), 10},
		{MaskGID, "gid", uint64(a.GID), 10},
		{MaskNlink, "nlink", uint64(a.Nlink), 10},
		{MaskRdev, "rdev", a.Rdev, 10},
		{MaskSize, "size", a.Size, 10},
	} {
		if f.v != 0 || m&f.m != 0 {
			t.num(prefix+f.k, f.v, f.base)
		}
	}
	if a.Mtime != 0 || m&MaskMtime != 0 {
		t.when(prefix+"mtime", a.Mtime)
	}
	if a.Atime != 0 || m&MaskAtime != 0 {
		t.when(prefix+"atime", a.Atime)
	}
}

func (t *text) extents(es []Extent) {
	if es == nil {
		return
	}
	t.key("extents")
	if len(es) == 0 {
		t.b = append(t.b, "none"...)
	}
	for i, e := range es {
		if i > 0 {
			t.b = append(t.b, ',')
		}
		t.b = strconv.AppendUint(t.b, e.Off, 10)
		t.b = append(t.b, '+')
		t.b = strconv.AppendUint(t.b, e.Len, 10)
	}
}

func (t *text) victim(v *Victim) {
	if v == nil {
		return
	}
	t.str("victim", v.OID.String())
	t.pos("victim.version", v.Version)
	t.pos("victim.data", v.DataVersion)
	t.attr("victim.", &v.Attr, 0)
	t.quote("victim.target", v.Target)
}

func (r *Record) appendPairs(b []byte) []byte {
	t := text{b}
	var m AttrMask
	switch r.Op {
	case OpCreate, OpMkdir, OpSymlink, OpMknod:
		m = MaskMode | MaskUID | MaskGID
	case OpSetattr:
		m = r.Mask
	case OpStore:
		m = MaskSize
	}
	t.quote("target", r.Target)
	t.attr("", &r.Attr, m)
	if r.Op != OpSetattr {
		m = 0
	}
	t.attr("old.", &r.Old, m)
	t.quote("value", string(r.Value))
	for _, x := range r.Xattrs {
		t.key("xattr." + strconv.Quote(x.Name))
		t.b = strconv.AppendQuote(t.b, string(x.Value))
	}
	if r.HadOld {
		t.key("old.value")
		t.b = strconv.AppendQuote(t.b, string(r.OldValue))
	} else {
		t.quote("old.value", string(r.OldValue))
	}
	t.victim(r.Victim)
	t.base("base", r.Base)
	t.base("victim.base", r.VictimBase)
	if r.ParentMtime != 0 {
		t.when("parent.mtime", r.ParentMtime)
	}
	if r.NewParentMtime != 0 {
		t.when("newparent.mtime", r.NewParentMtime)
	}
	t.extents(r.Extents)
	t.str("digest", hex.EncodeToString(r.Digest))
	if r.Site != 0 {
		t.num("site", uint64(r.Site), 10)
	}
	t.key("by")
	t.b = strconv.AppendUint(t.b, uint64(r.UID), 10)
	t.b = append(t.b, ':')
	t.b = strconv.AppendUint(t.b, uint64(r.GID), 10)
	if r.Origin != (Origin{}) {
		t.key("origin")
		t.b = MakeOID(r.Origin.Site, r.Origin.Seq).appendText(t.b)
	}
	t.str("flags", r.Flags.String())
	if len(r.Unknown) > 0 {
		t.str("unknown", hex.EncodeToString(r.Unknown))
	}
	return t.b
}
