package tree

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/local"
)

// NotListedError says which folder has to be listed, or which object found, before
// something can be said of it.
type NotListedError struct {
	OID    kml.OID
	Folder bool
}

// Error is error's.
func (e *NotListedError) Error() string { return fmt.Sprintf("object %v is not known here", e.OID) }

// ErrNoRoom says that there is no place in the local log for what is to stand
// between two changes.
var ErrNoRoom = errors.New("no room in the local log")

// Draft is the tree as it will be: the master's, with the changes of the local log
// on top, but for those that are taken off and with what is put in their place. It
// is for one goroutine, during Cache.Settle.
type Draft struct {
	c     *Cache
	v     *view // what was looked at or put, without what is off
	x     *Index
	off   map[*local.Entry]bool
	objs  map[kml.OID]bool // are in v, if the local log has something of them
	names map[Name]bool

	out     []*local.Entry
	in      []*local.Entry
	amend   []local.Placed
	was     map[*local.Entry]*kml.Record
	fresh   map[*local.Entry]bool // stores of in with other bytes than their object has here
	becomes []become
	rebase  map[kml.OID]kml.Base
	still   map[kml.OID]bool
	known   map[*local.Entry]bool // stores
}

// become is an object here whose handles, and bytes, go to another.
type become struct{ from, to kml.OID }

// Settle puts others in the place of changes made here. f works on a draft, while
// nothing else changes names and attributes in the tree; when it returns nil all
// of it is in the local log in one step, and visible. ErrMoved when something that
// matters was written meanwhile: nothing was done then.
func (c *Cache) Settle(f func(d *Draft) error) error {
	c.amu.Lock()
	defer c.amu.Unlock()
	d := &Draft{c: c, v: newView(), x: c.index.Load(), off: make(map[*local.Entry]bool), objs: make(map[kml.OID]bool), names: make(map[Name]bool),
		was: make(map[*local.Entry]*kml.Record), fresh: make(map[*local.Entry]bool), rebase: make(map[kml.OID]kml.Base), still: make(map[kml.OID]bool)}
	err := f(d)
	if err == nil {
		err = d.commit()
	}
	if err != nil {
		d.undone()
	}
	return err
}

// Changes are all changes made here that are not the master's, in order. It is
// called before all else.
func (d *Draft) Changes() (es []*local.Entry) {
	d.known = make(map[*local.Entry]bool)
	for _, e := range d.c.log.All() {
		if e.Back() != 0 {
			continue
		}
		es = append(es, e)
		if e.Rec().Op == kml.OpStore {
			d.known[e] = true
		}
	}
	return es
}

// Off takes changes off the tree; they are to be put again, as they are or others.
func (d *Draft) Off(es ...*local.Entry) {
	for _, e := range es {
		d.off[e] = true
	}
}

// without are the changes of a patch that stay.
func (d *Draft) without(es []laid) []laid {
	var out []laid
	for _, l := range es {
		if !d.off[l.e] {
			out = append(out, l)
		}
	}
	return out
}

func (d *Draft) loadObject(oid kml.OID) {
	if d.objs[oid] {
		return
	}
	d.objs[oid] = true
	d.c.view.mu.RLock()
	defer d.c.view.mu.RUnlock()
	if p := d.c.view.objs[oid]; p != nil {
		if es := d.without(p.es); len(es) > 0 {
			n := &objPatch{es: es}
			n.fold(oid)
			d.v.objs[oid] = n
		}
	}
}

func (d *Draft) loadName(n Name) {
	if d.names[n] {
		return
	}
	d.names[n] = true
	d.c.view.mu.RLock()
	defer d.c.view.mu.RUnlock()
	p := d.c.view.names[n.Parent][n.Name]
	if p == nil {
		return
	}
	es := d.without(p.es)
	if len(es) == 0 {
		return
	}
	if d.v.names[n.Parent] == nil {
		d.v.names[n.Parent] = make(map[string]*namePatch)
	}
	d.v.names[n.Parent][n.Name] = &namePatch{es: es, oid: holdsAfter(es[len(es)-1].r, n)}
}

// Object is an object; ErrNotFound when it has no name, or is not known.
func (d *Draft) Object(oid kml.OID) (*Object, error) {
	d.loadObject(oid)
	return d.v.object(oid, d.x)
}

// WrittenBy is the ID of the last change in front of another that changed an
// object's contents, or 0; behind 0 counts all.
func (d *Draft) WrittenBy(oid kml.OID, before uint64) uint64 {
	d.loadObject(oid)
	p := d.v.objs[oid]
	if p == nil {
		return 0
	}
	for _, c := range slices.Backward(p.es) {
		if (before == 0 || c.e.ID < before) && c.r.OID == oid && (c.r.Op == kml.OpStore || c.r.Op == kml.OpCreate) {
			return c.e.ID
		}
	}
	return 0
}

// Child is what a name holds. *NotListedError when that is not known.
func (d *Draft) Child(n Name) (oid kml.OID, ok bool, err error) {
	d.loadName(n)
	if p := d.v.names[n.Parent][n.Name]; p != nil {
		return p.oid, p.oid != 0, nil
	}
	if oid, _, ok := d.x.Child(n.Parent, n.Name); ok {
		return oid, true, nil
	}
	dir, err := d.Object(n.Parent)
	if err == nil && !dir.Listed && dir.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
		return 0, false, &NotListedError{n.Parent, true}
	}
	return 0, false, nil
}

// Names are all names of an object that are known.
func (d *Draft) Names(oid kml.OID) []Name {
	d.loadObject(oid)
	return d.v.namesOf(oid, d.x)
}

// Empty reports whether a folder has no entries.
func (d *Draft) Empty(oid kml.OID) (bool, error) {
	dir, err := d.Object(oid)
	if err != nil {
		return true, ignore(err, ErrNotFound)
	}
	if !dir.Listed {
		return false, &NotListedError{oid, true}
	}
	d.c.view.mu.RLock()
	var here []string
	for n := range d.c.view.names[oid] {
		here = append(here, n)
	}
	d.c.view.mu.RUnlock()
	for _, n := range here {
		d.loadName(Name{oid, n})
	}
	for _, p := range d.v.names[oid] {
		if p.oid != 0 {
			return false, nil
		}
	}
	for after := ""; ; {
		es, err := d.x.Children(oid, after, 256)
		if err != nil || len(es) == 0 {
			return err == nil, err
		}
		for _, e := range es {
			if d.v.names[oid][e.Name] == nil {
				return false, nil
			}
		}
		after = es[len(es)-1].Name
	}
}

// lay puts a record on the draft.
func (d *Draft) lay(e *local.Entry, r *kml.Record) {
	objs, names, _ := touched(r)
	for _, oid := range objs {
		d.loadObject(oid)
	}
	for _, n := range names {
		d.loadName(n)
	}
	d.v.add(e, r)
}

// Keep puts a change that was taken off on the tree as another record, or the same:
// contents, if it has some, stay.
func (d *Draft) Keep(e *local.Entry, r *kml.Record, after, over uint64) {
	d.was[e] = e.Rec()
	if r != e.Rec() || after != e.After || over != e.Over {
		d.amend = append(d.amend, local.Placed{Entry: e, Rec: r, After: after, Over: over})
	}
	d.lay(e, r)
}

// Drop gives a change up that was taken off.
func (d *Draft) Drop(e *local.Entry) {
	d.was[e] = e.Rec()
	d.out = append(d.out, e)
}

// Item is a change that is put in the place of others.
type Item struct {
	Rec         *kml.Record
	After, Over func(id uint64) uint64 // given its ID; nil: 0
	// Contents puts the bytes of a store that has some at path; nil: it has none.
	Contents func(path string) error
	// Fresh says that they are not what the object has here.
	Fresh bool
}

// Replace puts changes in the place of one, which is given up.
func (d *Draft) Replace(old *local.Entry, items []Item) (in []*local.Entry, err error) {
	ids := d.c.log.Room(old.ID, len(items))
	if len(ids) < len(items) {
		return nil, fmt.Errorf("behind change %x: %w", old.ID, ErrNoRoom)
	}
	for i, it := range items {
		e := local.New(it.Rec)
		e.ID, e.At = ids[i], old.At
		if it.After != nil {
			e.After = it.After(e.ID)
		}
		if it.Over != nil {
			e.Over = it.Over(e.ID)
		}
		if it.Contents != nil {
			if err := it.Contents(d.c.log.Path(e.ID)); err != nil {
				return nil, err
			}
			e.Data = true
		}
		in = append(in, e)
		d.in = append(d.in, e)
		d.fresh[e] = it.Fresh
		d.lay(e, it.Rec)
	}
	d.Drop(old)
	return in, nil
}

// Become has the handles on an object go to another, with the bytes that were
// written here, if there are any left.
func (d *Draft) Become(from, to kml.OID) {
	for i := range d.becomes {
		if d.becomes[i].from == from {
			d.becomes[i].to = to
			return
		}
	}
	d.becomes = append(d.becomes, become{from, to})
}

// Rebase says on which version stands what is written to an object from now on.
func (d *Draft) Rebase(oid kml.OID, b kml.Base) { d.rebase[oid] = b }

// Still fails the draft with ErrMoved if an object is written to before it is done.
func (d *Draft) Still(oid kml.OID) { d.still[oid] = true }

// stores are the stores of an object on the draft, in order.
func (d *Draft) stores(oid kml.OID) (es []*local.Entry) {
	d.loadObject(oid)
	if p := d.v.objs[oid]; p != nil {
		for _, l := range p.es {
			if l.r.OID == oid && l.r.Op == kml.OpStore {
				es = append(es, l.e)
			}
		}
	}
	return es
}

// commit makes the draft the tree. The caller holds amu.
func (d *Draft) commit() error {
	c := d.c
	objs := d.held()
	for _, o := range objs {
		o.mu.Lock()
		defer c.objects.release(o)
	}
	unlock := func() {
		for _, o := range objs {
			o.mu.Unlock()
		}
	}
	if d.moved(objs) {
		unlock()
		return ErrMoved
	}
	if err := c.log.Settle(d.amend, d.out, d.in); err != nil {
		unlock()
		return err
	}
	changed, err := d.bytes(objs)
	touched := d.relay()
	unlock()
	for _, oid := range changed {
		touched = append(touched, Change{Kind: ChangeData | ChangeAttr, OID: oid})
	}
	for _, ch := range touched {
		c.watch.emit(ch)
	}
	fault.Point("cache.settled")
	if err != nil {
		c.logger.Warn("contents of settled changes are not all in their places until the next start", "err", err)
	}
	return nil
}

// held are the objects whose contents the draft has to do with, by oid.
func (d *Draft) held() map[kml.OID]*cacheObject {
	objs := make(map[kml.OID]*cacheObject)
	add := func(oid kml.OID) {
		if objs[oid] == nil {
			objs[oid] = d.c.objects.acquire(oid)
		}
	}
	for _, r := range d.was {
		if r.Op == kml.OpStore || r.Op == kml.OpCreate {
			add(r.OID)
		}
	}
	for _, e := range d.in {
		if r := e.Rec(); r.Op == kml.OpStore || r.Op == kml.OpCreate {
			add(r.OID)
		}
	}
	for _, a := range d.amend {
		if a.Rec.Op == kml.OpStore {
			add(a.Rec.OID)
		}
	}
	for _, b := range d.becomes {
		add(b.from)
		add(b.to)
	}
	for oid := range d.still {
		add(oid)
	}
	return objs
}

// moved reports whether something was written that the draft does not know of. The
// caller holds the objects.
func (d *Draft) moved(objs map[kml.OID]*cacheObject) bool {
	for _, o := range objs {
		for _, e := range o.wait {
			if !d.known[e] {
				return true // cut since
			}
		}
	}
	for oid := range d.still {
		if objs[oid].dirty {
			return true
		}
	}
	for _, b := range d.becomes {
		if from, to := objs[b.from], objs[b.to]; from.dirty && to.local {
			return true
		}
	}
	return false
}

// relay lays the draft over the tree, as one for every reader.
func (d *Draft) relay() []Change {
	var rs []*kml.Record
	for _, r := range d.was {
		rs = append(rs, r)
	}
	for _, a := range d.amend {
		rs = append(rs, a.Rec)
	}
	for _, e := range d.in {
		rs = append(rs, e.Rec())
	}
	changes, _ := d.c.review(rs, func() error {
		v := d.c.view
		for _, a := range d.amend {
			v.remove(a.Entry, d.was[a.Entry])
		}
		for _, e := range d.out {
			v.remove(e, d.was[e])
		}
		for _, a := range d.amend {
			v.add(a.Entry, a.Rec)
		}
		for _, e := range d.in {
			v.add(e, e.Rec())
		}
		return nil
	})
	return changes
}
