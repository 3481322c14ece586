package kml

import (
	"encoding/hex"
	"encoding/json"
	"time"
	"unicode/utf8"
)

// jsonText is bytes in JSON: a string when they are UTF-8, else {"hex": ...}.
type jsonText string

func (s jsonText) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(s)) {
		return json.Marshal(string(s))
	}
	return json.Marshal(map[string]string{"hex": hex.EncodeToString([]byte(s))})
}

type jsonAttr struct {
	Mode  uint32 `json:"mode,omitzero"`
	UID   uint32 `json:"uid"`
	GID   uint32 `json:"gid"`
	Nlink uint32 `json:"nlink,omitzero"`
	Rdev  uint64 `json:"rdev,omitzero"`
	Size  uint64 `json:"size"`
	Mtime int64  `json:"mtime"`
	Atime int64  `json:"atime,omitzero"`
}

func toJSONAttr(a Attr) *jsonAttr {
	if a == (Attr{}) {
		return nil
	}
	j := jsonAttr(a)
	return &j
}

type jsonXattr struct {
	Name  jsonText `json:"name"`
	Value jsonText `json:"value"`
}

type jsonBase struct {
	Pos Position `json:"pos,omitzero"`
	Seq uint64   `json:"seq,omitzero"`
}

type jsonVictim struct {
	OID         OID       `json:"oid"`
	Version     Position  `json:"version,omitzero"`
	DataVersion Position  `json:"data_version,omitzero"`
	Attr        *jsonAttr `json:"attr,omitempty"`
	Target      jsonText  `json:"target,omitzero"`
}

type jsonExtent struct {
	Off uint64 `json:"off"`
	Len uint64 `json:"len"`
}

type jsonOrigin struct {
	Site SiteID `json:"site"`
	Seq  uint64 `json:"seq"`
}

type jsonRecord struct {
	Pos            Position      `json:"pos"`
	Time           string        `json:"time"`
	Op             string        `json:"op"`
	Mark           string        `json:"mark,omitzero"`
	Flags          string        `json:"flags,omitzero"`
	UID            uint32        `json:"uid"`
	GID            uint32        `json:"gid"`
	Origin         jsonOrigin    `json:"origin,omitzero"`
	OID            OID           `json:"oid,omitzero"`
	Parent         OID           `json:"parent,omitzero"`
	Name           jsonText      `json:"name,omitzero"`
	NewParent      OID           `json:"new_parent,omitzero"`
	NewName        jsonText      `json:"new_name,omitzero"`
	Fields         []string      `json:"fields,omitempty"`
	Attr           *jsonAttr     `json:"attr,omitempty"`
	Target         jsonText      `json:"target,omitzero"`
	Value          jsonText      `json:"value,omitzero"`
	Xattrs         []jsonXattr   `json:"xattrs,omitempty"`
	HadOld         bool          `json:"had_old,omitzero"`
	Old            *jsonAttr     `json:"old,omitempty"`
	OldValue       jsonText      `json:"old_value,omitzero"`
	Victim         *jsonVictim   `json:"victim,omitempty"`
	Base           jsonBase      `json:"base,omitzero"`
	VictimBase     jsonBase      `json:"victim_base,omitzero"`
	ParentMtime    int64         `json:"parent_mtime,omitzero"`
	NewParentMtime int64         `json:"new_parent_mtime,omitzero"`
	Extents        *[]jsonExtent `json:"extents,omitempty"`
	Digest         string        `json:"digest,omitzero"`
	Site           SiteID        `json:"site,omitzero"`
	Unknown        string        `json:"unknown,omitzero"`
}

// MarshalJSON is r as one JSON object. Bytes that are not UTF-8 become an
// object {"hex": ...}; times are nanoseconds since 1970, except the record's
// own, which is RFC 3339.
func (r Record) MarshalJSON() ([]byte, error) {
	j := jsonRecord{
		Pos: r.Pos, Time: time.Unix(0, r.Time).UTC().Format(time.RFC3339Nano), Op: r.Op.String(),
		Flags: r.Flags.String(), UID: r.UID, GID: r.GID, Origin: jsonOrigin(r.Origin),
		OID: r.OID, Parent: r.Parent, Name: jsonText(r.Name), NewParent: r.NewParent, NewName: jsonText(r.NewName),
		Fields: r.Mask.names(), Attr: toJSONAttr(r.Attr), Target: jsonText(r.Target), Value: jsonText(r.Value),
		HadOld: r.HadOld, Old: toJSONAttr(r.Old), OldValue: jsonText(r.OldValue),
		Base: jsonBase(r.Base), VictimBase: jsonBase(r.VictimBase),
		ParentMtime: r.ParentMtime, NewParentMtime: r.NewParentMtime,
		Digest: hex.EncodeToString(r.Digest), Site: r.Site, Unknown: hex.EncodeToString(r.Unknown),
	}
	if r.Op == OpMark {
		j.Mark = r.Mark.String()
	}
	for _, x := range r.Xattrs {
		j.Xattrs = append(j.Xattrs, jsonXattr{jsonText(x.Name), jsonText(x.Value)})
	}
	if v := r.Victim; v != nil {
		j.Victim = &jsonVictim{v.OID, v.Version, v.DataVersion, toJSONAttr(v.Attr), jsonText(v.Target)}
	}
	if r.Extents != nil {
		es := make([]jsonExtent, len(r.Extents))
		for i, e := range r.Extents {
			es[i] = jsonExtent(e)
		}
		j.Extents = &es
	}
	return json.Marshal(j)
}
