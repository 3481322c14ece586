package conflicttest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/conflict"
)

// Change is a record with the contents that go with it.
type Change struct {
	Rec  *kml.Record
	Data string
}

// Master is a master in memory.
type Master struct {
	Tree *Tree
	Log  []Change
	at   kml.Position
	time int64
	seen map[kml.Position]string // contents by version
}

// NewMaster is a master of an empty tree.
func NewMaster() *Master {
	return &Master{Tree: NewTree(), seen: make(map[kml.Position]string), time: time.Date(2026, 11, 21, 6, 0, 0, 0, time.UTC).UnixNano()}
}

// now is a clock that all hosts share: it never stands still.
func (m *Master) now() int64 {
	m.time += int64(time.Second)
	return m.time
}

// Take applies a record of a client's, or refuses it: what is there has to be what
// the record was made against.
func (m *Master) Take(r *kml.Record, data string) error {
	n := *r
	if err := m.check(&n); err != nil {
		return err
	}
	n.Pos = m.at + 1
	if err := m.Tree.Apply(&n, data); err != nil {
		return err
	}
	m.at++
	if n.Op == kml.OpStore {
		m.seen[n.Pos] = data
	}
	m.Log = append(m.Log, Change{&n, data})
	return nil
}

func (m *Master) check(r *kml.Record) error {
	holds := func(o *Object, b kml.Base) bool {
		return b.Seq != 0 && o.DataOrigin == (kml.Origin{Site: r.Origin.Site, Seq: b.Seq}) || b.Pos != 0 && b.Pos == o.DataVersion
	}
	o := m.Tree.Objects[r.OID]
	switch r.Op {
	case kml.OpStore:
		if o == nil || !holds(o, r.Base) {
			return stale(r, "the contents changed")
		}
	case kml.OpUnlink, kml.OpRename:
		if r.Victim == nil || r.VictimBase == (kml.Base{}) {
			break
		}
		if v := m.Tree.Objects[r.Victim.OID]; v == nil || !holds(v, r.VictimBase) {
			return stale(r, "the victim changed")
		}
	case kml.OpSetattr:
		if o == nil {
			return stale(r, "gone")
		}
		if r.Mask&kml.MaskMode != 0 && o.Attr.Mode&0o7777 != r.Old.Mode&0o7777 && o.Attr.Mode&0o7777 != r.Attr.Mode&0o7777 ||
			r.Mask&kml.MaskUID != 0 && o.Attr.UID != r.Old.UID && o.Attr.UID != r.Attr.UID {
			return stale(r, "the attribute changed")
		}
	case kml.OpSetxattr, kml.OpRemovexattr:
		if o == nil {
			return stale(r, "gone")
		}
		v, has := o.Xattrs[r.Name]
		if (has != r.HadOld || v != string(r.OldValue)) && (has != (r.Op == kml.OpSetxattr) || v != string(r.Value)) {
			return stale(r, "the attribute changed")
		}
	}
	return nil
}

// Client is a client in memory.
type Client struct {
	m    *Master
	name string
	site kml.SiteID

	base   *Tree // the master's, at the cursor
	View   *Tree // with the local changes on top
	cursor int   // in the master's log
	Local  []Change
	given  uint64 // oid counter
	seq    uint64

	Policy func(conflict.Name) conflict.Policy
	// Merge joins contents, as a merge program would; nil: it fails.
	Merge func(m *conflict.Merge, base, ours, theirs string) (string, bool)
	// Skew is conflict.Host's.
	Skew        time.Duration
	SkewUnknown bool

	Losses []conflict.Loss
	Kept   []string // contents and values in conflicts
	// Rows counts verdicts.
	Rows map[conflict.Row]int
	copy map[kml.OID]kml.OID
}

// NewClient is a client that is as current as the master.
func (m *Master) NewClient(name string, site kml.SiteID) *Client {
	return &Client{m: m, name: name, site: site, base: m.Tree.Clone(), View: m.Tree.Clone(), cursor: len(m.Log),
		Rows: make(map[conflict.Row]int), copy: make(map[kml.OID]kml.OID)}
}

func (c *Client) mint() (kml.OID, error) {
	c.given++
	return kml.MakeOID(c.site, c.given), nil
}

// Do makes an operation here. It is in the local log until Sync.
func (c *Client) Do(op Op) error {
	r, data, err := c.record(op)
	if err != nil || r == nil {
		return err
	}
	if err := c.View.Apply(r, data); err != nil {
		return err
	}
	c.mine(r)
	c.Local = append(c.Local, Change{r, data})
	return nil
}

// mine notes that contents are a local record's.
func (c *Client) mine(r *kml.Record) {
	if r.Op == kml.OpStore || r.Op == kml.OpCreate {
		c.View.Objects[r.OID].Local = true
	}
}

// Record is the record that an operation is in a tree; nil when it changes nothing.
func (c *Client) record(op Op) (r *kml.Record, data string, err error) {
	arg := func(i int) string {
		if i < len(op) {
			return op[i]
		}
		return ""
	}
	v, now := c.View, c.m.now()
	r = &kml.Record{Time: now}
	oid, at, there := v.Find(arg(1))
	o := v.Objects[oid]
	r.Parent, r.Name = at.Parent, at.Name
	makes := func(code kml.Op, mode uint32) error {
		if there {
			return fmt.Errorf("%s: %w", op, syscall.EEXIST)
		}
		r.Op, r.Attr = code, kml.Attr{Mode: mode, Nlink: 1, Mtime: now}
		r.OID, err = c.mint()
		return err
	}
	if !there && !slices.Contains([]string{"create", "mkdir", "symlink"}, arg(0)) {
		return nil, "", fmt.Errorf("%s: %w", op, syscall.ENOENT)
	}
	switch arg(0) {
	case "create":
		if err := makes(kml.OpCreate, typeFile|plainFile); err != nil || arg(2) == "" {
			return r, "", err
		}
		if err := c.View.Apply(r, ""); err != nil {
			return nil, "", err
		}
		c.mine(r)
		c.Local = append(c.Local, Change{r, ""})
		return c.record(Op{"write", arg(1), arg(2)})
	case "mkdir":
		return r, "", makes(kml.OpMkdir, typeDir|plainDir)
	case "symlink":
		err = makes(kml.OpSymlink, typeLink|0o777)
		r.Target, r.Attr.Size = arg(2), uint64(len(arg(2)))
		return r, "", err
	case "write", "append":
		data = arg(2)
		if arg(0) == "append" {
			data = o.Data + data
		}
		return &kml.Record{Op: kml.OpStore, Time: now, OID: oid, Attr: kml.Attr{Size: uint64(len(data)), Mtime: now}, Base: kml.Base{Pos: o.DataVersion}}, data, nil
	case "unlink", "rmdir":
		r.Op, r.OID, r.Victim = kml.OpUnlink, oid, c.victim(oid)
		if arg(0) == "rmdir" {
			r.Op = kml.OpRmdir
		} else if len(v.Of(oid)) == 1 {
			r.VictimBase = kml.Base{Pos: o.DataVersion}
		}
		return r, "", nil
	case "link", "rename", "exchange":
		return c.second(op, r, oid)
	case "chmod":
		m, err := strconv.ParseUint(arg(2), 8, 12)
		return &kml.Record{Op: kml.OpSetattr, Time: now, OID: oid, Mask: kml.MaskMode, Attr: kml.Attr{Mode: o.Attr.Mode&typeMask | uint32(m)},
			Old: kml.Attr{Mode: o.Attr.Mode}}, "", err
	case "setxattr", "removexattr":
		old, had := o.Xattrs[arg(2)]
		x := &kml.Record{Op: kml.OpSetxattr, Time: now, OID: oid, Name: arg(2), Value: []byte(arg(3)), HadOld: had, OldValue: []byte(old)}
		if arg(0) == "removexattr" {
			x.Op, x.Value = kml.OpRemovexattr, nil
		}
		return x, "", nil
	}
	return nil, "", fmt.Errorf("%s: %w", op, syscall.EINVAL)
}

func (c *Client) victim(oid kml.OID) *kml.Victim {
	o := c.View.Objects[oid]
	v := &kml.Victim{OID: oid, DataVersion: o.DataVersion, Attr: o.Attr, Target: o.Target}
	v.Attr.Nlink = uint32(len(c.View.Of(oid)))
	return v
}

// second is the record of an operation with two paths.
func (c *Client) second(op Op, r *kml.Record, oid kml.OID) (*kml.Record, string, error) {
	if len(op) != 3 {
		return nil, "", fmt.Errorf("%s: %w", op, syscall.EINVAL)
	}
	held, to, taken := c.View.Find(op[2])
	if to.Parent == 0 {
		return nil, "", fmt.Errorf("%s: %w", op, syscall.ENOTDIR)
	}
	r.OID = oid
	if op[0] == "link" {
		r.Op, r.Parent, r.Name = kml.OpLink, to.Parent, to.Name
		return r, "", nil
	}
	if taken && held == oid {
		return nil, "", nil
	}
	r.Op, r.NewParent, r.NewName = kml.OpRename, to.Parent, to.Name
	if taken {
		r.Victim = c.victim(held)
	}
	if op[0] == "exchange" {
		r.Flags |= kml.FlagExchange
		return r, "", nil
	}
	if v := c.View.Objects[held]; taken && v.Attr.Mode&typeMask == typeFile && len(c.View.Of(held)) == 1 {
		r.VictimBase = kml.Base{Pos: v.DataVersion}
	}
	return r, "", nil
}

// keptText is what is in conflicts, for the table.
func (c *Client) keptText() string {
	slices.Sort(c.Kept)
	return strings.Join(c.Kept, " ")
}

// IsDir reports whether an object is a folder, as far as is known.
func (c *Client) IsDir(oid kml.OID) bool { return c.View.isDir(oid) || c.base.isDir(oid) }

// Replay is the tree that comes of changes on the one the client has of the
// master.
func (c *Client) Replay(cs []Change) (string, error) {
	t := c.base.Clone()
	for _, k := range cs {
		if err := t.Apply(k.Rec, k.Data); err != nil {
			return "", err
		}
	}
	return t.String(), nil
}
