package kml

import (
	"fmt"
	"strconv"
	"strings"
)

// String is p as EPOCH.RECNO in decimal.
func (p Position) String() string {
	var b [24]byte
	return string(p.appendText(b[:0]))
}

func (p Position) appendText(b []byte) []byte {
	b = strconv.AppendUint(b, uint64(p.Epoch()), 10)
	b = append(b, '.')
	return strconv.AppendUint(b, p.Recno(), 10)
}

// MarshalText is String, for JSON.
func (p Position) MarshalText() ([]byte, error) { return p.appendText(nil), nil }

// UnmarshalText is ParsePosition, for JSON.
func (p *Position) UnmarshalText(b []byte) (err error) {
	*p, err = ParsePosition(string(b))
	return err
}

// ParsePosition reads EPOCH.RECNO, both in decimal.
func ParsePosition(s string) (Position, error) {
	e, r, ok := strings.Cut(s, ".")
	en, err1 := strconv.ParseUint(e, 10, 16)
	rn, err2 := strconv.ParseUint(r, 10, 48)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("%q is not a position (EPOCH.RECNO)", clip(s))
	}
	return MakePosition(uint16(en), rn), nil
}

// String is o as SITE:COUNTER in decimal.
func (o OID) String() string {
	var b [24]byte
	return string(o.appendText(b[:0]))
}

func (o OID) appendText(b []byte) []byte {
	b = strconv.AppendUint(b, uint64(o.Site()), 10)
	b = append(b, ':')
	return strconv.AppendUint(b, o.Counter(), 10)
}

// MarshalText is String, for JSON.
func (o OID) MarshalText() ([]byte, error) { return o.appendText(nil), nil }

// UnmarshalText is ParseOID, for JSON.
func (o *OID) UnmarshalText(b []byte) (err error) {
	*o, err = ParseOID(string(b))
	return err
}

// ParseOID reads SITE:COUNTER, both in decimal.
func ParseOID(s string) (OID, error) {
	a, c, ok := strings.Cut(s, ":")
	an, err1 := strconv.ParseUint(a, 10, 20)
	cn, err2 := strconv.ParseUint(c, 10, 44)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("%q is not an object id (SITE:COUNTER)", clip(s))
	}
	return MakeOID(SiteID(an), cn), nil
}

// clip keeps a quoted bad input short.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64]
	}
	return s
}

// String is the opcode's name, or its number.
func (o Op) String() string {
	switch o {
	case OpCreate:
		return "create"
	case OpMkdir:
		return "mkdir"
	case OpSymlink:
		return "symlink"
	case OpMknod:
		return "mknod"
	case OpLink:
		return "link"
	case OpUnlink:
		return "unlink"
	case OpRmdir:
		return "rmdir"
	case OpRename:
		return "rename"
	case OpSetattr:
		return "setattr"
	case OpSetxattr:
		return "setxattr"
	case OpRemovexattr:
		return "removexattr"
	case OpStore:
		return "store"
	case OpMark:
		return "mark"
	}
	return "op" + strconv.Itoa(int(o))
}

// String is the kind's name, or its number.
func (m MarkKind) String() string {
	switch m {
	case MarkCommit:
		return "commit"
	case MarkEpoch:
		return "epoch"
	case MarkSite:
		return "site"
	case MarkNote:
		return "note"
	case MarkPolicy:
		return "policy"
	}
	return "mark" + strconv.Itoa(int(m))
}

// String is the names of the flags that are set, joined by commas.
func (f Flags) String() string {
	var b []string
	for _, n := range [...]struct {
		f Flags
		s string
	}{
		{FlagNoReplace, "noreplace"},
		{FlagExchange, "exchange"},
		{FlagForeign, "foreign"},
		{FlagRecovered, "recovered"},
		{FlagConflict, "conflict"},
		{FlagGone, "gone"},
	} {
		if f&n.f != 0 {
			b = append(b, n.s)
			f &^= n.f
		}
	}
	if f != 0 {
		b = append(b, "0x"+strconv.FormatUint(uint64(f), 16))
	}
	return strings.Join(b, ",")
}

// names is the fields of an Attr that m holds.
func (m AttrMask) names() (out []string) {
	for i, n := range [...]string{"mode", "uid", "gid", "mtime", "size", "nlink", "rdev", "atime"} {
		if m&(1<<i) != 0 {
			out = append(out, n)
		}
	}
	return out
}
