package tree

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/local"
)

// view is what the changes made here make of the master's tree. For each object
// and each name it keeps the changes that touch it, in order, and what they come
// to; the tree that is shown is the index with these patches. A patch depends on
// nothing but its changes: the master's records go into the index below it, and
// so local changes are always on top of the newest ones.
//
// Contents are not in it: see cacheObject.
type view struct {
	// mu is held for writing while a change goes from here into the index, so
	// that a reader sees it in one of the two.
	mu    sync.RWMutex
	objs  map[kml.OID]*objPatch
	names map[kml.OID]map[string]*namePatch
	times map[kml.OID]*timePatch
}

// laid is a change in the view, and the record it is there with.
type laid struct {
	e *local.Entry
	r *kml.Record
}

type objPatch struct {
	es     []laid
	made   *Object // it was made here
	madeBy uint64
	gone   bool // a folder that was removed here
	mask   kml.AttrMask
	attr   kml.Attr
	timeBy uint64 // the change that set its mtime
	links  int    // names gained, less names lost
	names  map[Name]bool
	last   Name // the last name it gained
	xattrs map[string]*kml.Record
	ctime  int64
}

type namePatch struct {
	es  []laid
	oid kml.OID // what it holds; 0: nothing
}

// timePatch is what changes of its names make of a folder.
type timePatch struct {
	n     int
	by    uint64
	mtime int64
}

func newView() *view {
	return &view{objs: make(map[kml.OID]*objPatch), names: make(map[kml.OID]map[string]*namePatch), times: make(map[kml.OID]*timePatch)}
}

// touched is what a record changes: objects, names, and folders by their names.
func touched(r *kml.Record) (objs []kml.OID, names []Name, folders []kml.OID) {
	objs = []kml.OID{r.OID}
	if r.Victim != nil && r.Victim.OID != r.OID {
		objs = append(objs, r.Victim.OID)
	}
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod, kml.OpLink, kml.OpUnlink, kml.OpRmdir:
		return objs, []Name{{r.Parent, r.Name}}, []kml.OID{r.Parent}
	case kml.OpRename:
		return objs, []Name{{r.Parent, r.Name}, {r.NewParent, r.NewName}}, []kml.OID{r.Parent, r.NewParent}
	}
	return objs, nil, nil
}

// holdsAfter is what a record leaves in a name it changes.
func holdsAfter(r *kml.Record, n Name) kml.OID {
	switch r.Op {
	case kml.OpUnlink, kml.OpRmdir:
		return 0
	case kml.OpRename:
		switch {
		case n == Name{r.NewParent, r.NewName}:
			return r.OID
		case r.Flags&kml.FlagExchange != 0 && r.Victim != nil:
			return r.Victim.OID
		}
		return 0
	}
	return r.OID
}

func insertChange(es []laid, c laid) []laid {
	if n := len(es); n == 0 || es[n-1].e.ID < c.e.ID {
		return append(es, c)
	}
	i, _ := slices.BinarySearchFunc(es, c.e.ID, func(x laid, id uint64) int { return cmp.Compare(x.e.ID, id) })
	return slices.Insert(es, i, c)
}

func dropChange(es []laid, e *local.Entry) ([]laid, laid) {
	for i, c := range es {
		if c.e == e {
			if i == 0 {
				return es[1:], c
			}
			return slices.Delete(es, i, i+1), c
		}
	}
	return es, laid{}
}

// add lays a change over the tree. The caller holds mu for writing.
func (v *view) add(e *local.Entry, r *kml.Record) {
	c := laid{e, r}
	objs, names, folders := touched(r)
	for _, oid := range objs {
		p := v.objs[oid]
		if p == nil {
			p = &objPatch{}
			v.objs[oid] = p
		}
		last := len(p.es) == 0 || p.es[len(p.es)-1].e.ID < e.ID
		p.es = insertChange(p.es, c)
		if last {
			p.lay(oid, c)
		} else {
			p.fold(oid)
		}
	}
	for _, n := range names {
		m := v.names[n.Parent]
		if m == nil {
			m = make(map[string]*namePatch)
			v.names[n.Parent] = m
		}
		p := m[n.Name]
		if p == nil {
			p = &namePatch{}
			m[n.Name] = p
		}
		p.es = insertChange(p.es, c)
		p.oid = holdsAfter(p.es[len(p.es)-1].r, n)
	}
	for _, oid := range folders {
		t := v.times[oid]
		if t == nil {
			t = &timePatch{}
			v.times[oid] = t
		}
		t.n++
		if e.ID >= t.by {
			t.by, t.mtime = e.ID, r.Time
		}
	}
}

// remove takes a change off the tree. The caller holds mu for writing.
func (v *view) remove(e *local.Entry, r *kml.Record) {
	objs, names, folders := touched(r)
	for _, oid := range objs {
		p := v.objs[oid]
		if p == nil {
			continue
		}
		if p.es, _ = dropChange(p.es, e); len(p.es) == 0 {
			delete(v.objs, oid)
		} else {
			p.fold(oid)
		}
	}
	for _, n := range names {
		p := v.names[n.Parent][n.Name]
		if p == nil {
			continue
		}
		if p.es, _ = dropChange(p.es, e); len(p.es) > 0 {
			p.oid = holdsAfter(p.es[len(p.es)-1].r, n)
			continue
		}
		if delete(v.names[n.Parent], n.Name); len(v.names[n.Parent]) == 0 {
			delete(v.names, n.Parent)
		}
	}
	for _, oid := range folders {
		if t := v.times[oid]; t != nil {
			if t.n--; t.n <= 0 {
				delete(v.times, oid)
			}
		}
	}
}

// fold makes a patch anew from its changes.
func (p *objPatch) fold(oid kml.OID) {
	*p = objPatch{es: p.es}
	for _, c := range p.es {
		p.lay(oid, c)
	}
}

// lay adds the effect of one change to a patch.
func (p *objPatch) lay(oid kml.OID, c laid) {
	r := c.r
	p.ctime = max(p.ctime, r.Time)
	gain := func(n Name, there bool) {
		if p.names == nil {
			p.names = make(map[Name]bool)
		}
		p.names[n] = there
		if there {
			p.last = n
		}
	}
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod:
		o := &Object{OID: oid, Attr: r.Attr, Ctime: r.Time, Btime: r.Time, Target: r.Target, Xattrs: r.Xattrs, Parent: r.Parent, Name: r.Name,
			Listed: r.Op == kml.OpMkdir, Whole: true, Content: madeContent | c.e.ID}
		if o.Attr.Nlink == 0 {
			o.Attr.Nlink = 1
		}
		p.made, p.madeBy = o, c.e.ID
		gain(Name{r.Parent, r.Name}, true)
	case kml.OpLink:
		p.links++
		gain(Name{r.Parent, r.Name}, true)
	case kml.OpUnlink:
		p.links--
		gain(Name{r.Parent, r.Name}, false)
	case kml.OpRmdir:
		p.gone = true
		gain(Name{r.Parent, r.Name}, false)
	case kml.OpRename:
		from, to := Name{r.Parent, r.Name}, Name{r.NewParent, r.NewName}
		switch {
		case oid == r.OID:
			gain(from, false)
			gain(to, true)
		case r.Flags&kml.FlagExchange != 0:
			gain(to, false)
			gain(from, true)
		default:
			gain(to, false)
			p.links--
			p.gone = p.gone || r.Victim.Attr.Mode&unix.S_IFMT == unix.S_IFDIR
		}
	case kml.OpSetattr:
		setFields(&p.attr, r.Attr, r.Mask)
		p.mask |= r.Mask
		if r.Mask&kml.MaskMtime != 0 {
			p.timeBy = c.e.ID
		}
	case kml.OpSetxattr, kml.OpRemovexattr:
		if p.xattrs == nil {
			p.xattrs = make(map[string]*kml.Record)
		}
		p.xattrs[r.Name] = r
		if mode, ok := aclMode(r); ok {
			p.attr.Mode, p.mask = p.attr.Mode&^0o777|mode, p.mask|maskACL
		}
	}
}

// madeContent marks the Content of what was made here. No position has that bit
// and the rest of an ID below it.
const madeContent = 1 << 62

// maskACL says that of Mode only the permission bits count.
const maskACL = kml.AttrMask(1 << 15)

// object is what the view makes of an object; base is how the index has it.
// The caller holds mu.
func (v *view) object(oid kml.OID, x *Index) (*Object, error) {
	o, err := x.Get(oid)
	p, t := v.objs[oid], v.times[oid]
	if p == nil && t == nil {
		return o, err
	}
	if errors.Is(err, ErrNotFound) && p != nil && p.made != nil {
		o, err = p.made, nil
	}
	if err != nil {
		return nil, err
	}
	n := *o
	if p != nil && !p.patch(&n, x) {
		return nil, ErrNotFound
	}
	if t != nil {
		n.Ctime = max(n.Ctime, t.mtime)
		if p == nil || p.timeBy < t.by {
			n.Attr.Mtime = t.mtime
		}
	}
	return &n, nil
}

// patch makes n what it is here; false when it has been removed.
func (p *objPatch) patch(n *Object, x *Index) bool {
	isDir := n.Attr.Mode&unix.S_IFMT == unix.S_IFDIR
	if p.gone && isDir {
		return false
	}
	if !isDir {
		links := int(n.Attr.Nlink) + p.links
		if links <= 0 {
			return false
		}
		n.Attr.Nlink = uint32(links)
	}
	if p.mask&maskACL != 0 && p.mask&kml.MaskMode == 0 {
		n.Attr.Mode = n.Attr.Mode&^0o777 | p.attr.Mode&0o777
	}
	setFields(&n.Attr, p.attr, p.mask)
	n.Ctime = max(n.Ctime, p.ctime)
	if held, ok := p.names[Name{n.Parent, n.Name}]; ok && !held || n.Parent == 0 {
		n.Parent, n.Name = p.aName(n.OID, x)
	}
	for _, r := range p.xattrs {
		setXattr(n, r.Name, r.Value, r.Op == kml.OpSetxattr)
	}
	return true
}

// aName is one of the object's names.
func (p *objPatch) aName(oid kml.OID, x *Index) (kml.OID, string) {
	if p.names[p.last] {
		return p.last.Parent, p.last.Name
	}
	for n, there := range p.names {
		if there {
			return n.Parent, n.Name
		}
	}
	for _, n := range x.Names(oid) {
		if there, ok := p.names[n]; !ok || there {
			return n.Parent, n.Name
		}
	}
	return 0, ""
}

// get is an object as it is shown here; ErrNotFound when it is not known, or
// removed.
func (c *Cache) get(oid kml.OID) (*Object, error) {
	c.view.mu.RLock()
	defer c.view.mu.RUnlock()
	return c.view.object(oid, c.index.Load())
}

// removed reports whether an object that the index has, or had, was removed
// here.
func (c *Cache) removed(oid kml.OID) bool {
	c.view.mu.RLock()
	defer c.view.mu.RUnlock()
	p := c.view.objs[oid]
	return p != nil && (p.gone || p.links < 0)
}

// child is what a name holds here.
func (c *Cache) child(n Name) (kml.OID, bool) {
	c.view.mu.RLock()
	defer c.view.mu.RUnlock()
	return c.view.child(n, c.index.Load())
}

func (v *view) child(n Name, x *Index) (kml.OID, bool) {
	if p := v.names[n.Parent][n.Name]; p != nil {
		return p.oid, p.oid != 0
	}
	oid, _, ok := x.Child(n.Parent, n.Name)
	return oid, ok
}

// children are all names of a folder, in no order.
func (c *Cache) children(oid kml.OID) ([]NameEntry, error) {
	c.view.mu.RLock()
	defer c.view.mu.RUnlock()
	here := c.view.names[oid]
	var out []NameEntry
	for n, p := range here {
		if p.oid != 0 {
			out = append(out, NameEntry{Name: n, OID: p.oid})
		}
	}
	x := c.index.Load()
	for after := ""; ; {
		es, err := x.Children(oid, after, 1024)
		if err != nil || len(es) == 0 {
			return out, err
		}
		for _, e := range es {
			if here[e.Name] == nil {
				out = append(out, e)
			}
		}
		after = es[len(es)-1].Name
	}
}

// Names is every name an object has here; none when it is not known.
func (c *Cache) Names(oid kml.OID) []Name {
	c.view.mu.RLock()
	defer c.view.mu.RUnlock()
	return c.view.namesOf(oid, c.index.Load())
}

func (v *view) namesOf(oid kml.OID, x *Index) []Name {
	names := x.Names(oid)
	p := v.objs[oid]
	if p == nil {
		return names
	}
	set := make(map[Name]bool, len(names))
	for _, n := range names {
		set[n] = true
	}
	maps.Copy(set, p.names)
	names = names[:0:0]
	for n, there := range set {
		if there {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, func(a, b Name) int {
		return cmp.Or(cmp.Compare(a.Parent, b.Parent), cmp.Compare(a.Name, b.Name))
	})
	return names
}

// writtenBy is the ID of the last change here of an object's contents that has
// not come back, or 0.
func (v *view) writtenBy(oid kml.OID) uint64 {
	p := v.objs[oid]
	if p == nil {
		return 0
	}
	for _, c := range slices.Backward(p.es) {
		if c.r.OID == oid && (c.r.Op == kml.OpStore || c.r.Op == kml.OpCreate) {
			return c.e.ID
		}
	}
	return 0
}
