package tree

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/local"
)

// ErrMoved says that the tree is not what a change was made for; it is to be
// made anew.
var ErrMoved = errors.New("the tree has moved on")

// notListed says which folder has to be listed before a change can be made.
type notListed struct{ oid kml.OID }

func (e *notListed) Error() string { return fmt.Sprintf("folder %v is not listed", e.oid) }

// Change makes a change of names or attributes here: when it returns the change
// is in the local log, which outlives the process, and visible. What the record
// replaces is filled in. ErrMoved when a name does not hold what the record says.
// first, when given, is called with the change's ID before anybody can see it.
func (c *Cache) Change(ctx context.Context, r *kml.Record, first func(id uint64)) (*local.Entry, error) {
	if err := checkNew(r); err != nil {
		return nil, err
	}
	for range maxCacheRetry {
		e, err := c.changeOnce(r, DoorOf(ctx), first)
		var nl *notListed
		if !errors.As(err, &nl) {
			return e, err
		}
		if err := c.up.List(ctx, nl.oid); err != nil {
			return nil, err
		}
	}
	return nil, syscall.ESTALE
}

// checkNew checks the name that a change gives.
func checkNew(r *kml.Record) error {
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod, kml.OpLink:
		return checkName(r.Parent, r.Name)
	case kml.OpRename:
		return checkName(r.NewParent, r.NewName)
	}
	return nil
}

func (c *Cache) changeOnce(r *kml.Record, door Door, first func(id uint64)) (*local.Entry, error) {
	c.amu.Lock()
	defer c.amu.Unlock()
	e := local.New(r)
	e.At, _ = c.Cursor()
	lost, err := c.fits(r, e)
	if err != nil {
		return nil, err
	}
	if r.Op == kml.OpSetattr && r.Mask&kml.MaskMtime != 0 {
		if err := c.touchLocal(r.OID, r.Attr.Mtime); err != nil {
			return nil, err
		}
	}
	if first != nil {
		e.ID = c.log.Reserve()
		defer c.log.Release(e.ID) // unless it is appended
		first(e.ID)
	}
	return e, c.enter(e, lost, door)
}

// enter appends a change to the local log and lays it over the tree. lost is the
// object that loses a name by it, or nil. The caller holds amu.
func (c *Cache) enter(e *local.Entry, lost *Object, door Door) error {
	r := e.Rec()
	if lost != nil {
		// No store of it is cut between its removal and the record of it.
		if o := c.objects.find(lost.OID); o != nil {
			defer c.objects.release(o)
			o.mu.Lock()
			defer o.mu.Unlock()
			defer c.losing(o, lost, r.Time)
		}
	}
	if err := c.log.Append(e); err != nil {
		return err
	}
	changes, _ := c.review([]*kml.Record{r}, func() error {
		c.view.add(e, r)
		return nil
	})
	for _, ch := range changes {
		ch.Door = door
		c.watch.emit(ch)
	}
	c.kickSync()
	c.up.Changed()
	return nil
}

// losing notes that o has lost its last name here, if it has: who has it open
// goes on. The caller holds o.mu.
func (c *Cache) losing(o *cacheObject, was *Object, now int64) {
	if _, err := c.get(o.oid); !errors.Is(err, ErrNotFound) || o.gone != nil {
		return
	}
	gone := *was
	gone.Attr.Nlink, gone.Ctime = 0, now
	o.gone, o.removed = &gone, true // the bytes written here go when the last handle does
}

// fits checks a change against the tree and fills in what it replaces. lost is
// the object that loses a name by it.
func (c *Cache) fits(r *kml.Record, e *local.Entry) (lost *Object, err error) {
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod, kml.OpLink:
		if _, err := c.openFolder(r.Parent); err != nil {
			return nil, err
		}
		if _, taken := c.child(Name{r.Parent, r.Name}); taken {
			return nil, syscall.EEXIST
		}
		if r.Op == kml.OpLink {
			return nil, c.stands(r.OID)
		}
		return nil, nil
	case kml.OpUnlink, kml.OpRmdir:
		if _, err := c.openFolder(r.Parent); err != nil {
			return nil, err
		}
		if held, ok := c.child(Name{r.Parent, r.Name}); !ok || held != r.OID {
			return nil, ErrMoved
		}
		return c.victim(r, e, r.OID, r.Op == kml.OpRmdir)
	case kml.OpRename:
		return c.fitsRename(r, e)
	}
	return nil, c.stands(r.OID)
}

func (c *Cache) stands(oid kml.OID) error {
	if _, err := c.get(oid); err != nil {
		return ErrMoved
	}
	return nil
}

// openFolder is a folder all names of which are known.
func (c *Cache) openFolder(oid kml.OID) (*Object, error) {
	dir, err := c.get(oid)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, syscall.ENOENT
	case err != nil:
		return nil, err
	case dir.Attr.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil, syscall.ENOTDIR
	case !dir.Listed:
		return nil, &notListed{oid}
	}
	return dir, nil
}

// victim puts what loses a name into a record. A folder has to be empty.
func (c *Cache) victim(r *kml.Record, e *local.Entry, oid kml.OID, folder bool) (*Object, error) {
	obj, err := c.get(oid)
	if err != nil {
		return nil, ErrMoved
	}
	isDir := obj.Attr.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case folder && !isDir:
		return nil, syscall.ENOTDIR
	case !folder && isDir:
		return nil, syscall.EISDIR
	case folder:
		if _, err := c.openFolder(oid); err != nil {
			return nil, err
		}
		es, err := c.children(oid)
		if err != nil {
			return nil, err
		}
		if len(es) > 0 {
			return nil, syscall.ENOTEMPTY
		}
	}
	c.takes(r, e, obj)
	return obj, nil
}

// takes notes in a record what it takes a name from, and which contents that
// has: the master lets nothing go that this host has not seen.
func (c *Cache) takes(r *kml.Record, e *local.Entry, obj *Object) {
	r.Victim = &kml.Victim{OID: obj.OID, Version: obj.Version, DataVersion: obj.DataVersion, Attr: obj.Attr, Target: obj.Target}
	if obj.Attr.Mode&unix.S_IFMT != unix.S_IFREG || obj.Attr.Nlink > 1 {
		return
	}
	c.view.mu.RLock()
	e.Over = c.view.writtenBy(obj.OID)
	c.view.mu.RUnlock()
	if e.Over == 0 {
		r.VictimBase = kml.Base{Pos: obj.DataVersion}
	}
}

func (c *Cache) fitsRename(r *kml.Record, e *local.Entry) (lost *Object, err error) {
	if _, err := c.openFolder(r.Parent); err != nil {
		return nil, err
	}
	if _, err := c.openFolder(r.NewParent); err != nil {
		return nil, err
	}
	if held, ok := c.child(Name{r.Parent, r.Name}); !ok || held != r.OID {
		return nil, ErrMoved
	}
	src, err := c.get(r.OID)
	if err != nil {
		return nil, ErrMoved
	}
	dst, taken := c.child(Name{r.NewParent, r.NewName})
	if !taken {
		dst = 0
	}
	if r.Victim == nil && dst != 0 || r.Victim != nil && r.Victim.OID != dst {
		return nil, ErrMoved
	}
	isDir := func(o *Object) bool { return o.Attr.Mode&unix.S_IFMT == unix.S_IFDIR }
	if isDir(src) {
		if err := c.outside(r.NewParent, r.OID); err != nil {
			return nil, err
		}
	}
	if dst == 0 {
		return nil, nil
	}
	obj, err := c.get(dst)
	if err != nil {
		return nil, ErrMoved
	}
	if r.Flags&kml.FlagExchange != 0 {
		if isDir(obj) {
			if err := c.outside(r.Parent, dst); err != nil {
				return nil, err
			}
		}
		c.takes(r, e, obj)
		r.VictimBase, e.Over = kml.Base{}, 0 // nothing goes
		return nil, nil
	}
	switch {
	case isDir(src) && !isDir(obj):
		return nil, syscall.ENOTDIR
	case !isDir(src) && isDir(obj):
		return nil, syscall.EISDIR
	}
	return c.victim(r, e, dst, isDir(obj))
}

// outside is EINVAL when a folder is another, or in it.
func (c *Cache) outside(oid, of kml.OID) error {
	for range 1 << 12 {
		if oid == of {
			return syscall.EINVAL
		}
		if oid == kml.RootOID {
			return nil
		}
		obj, err := c.get(oid)
		if err != nil || obj.Parent == 0 {
			return nil // its place is not known: the master knows
		}
		oid = obj.Parent
	}
	return syscall.ELOOP
}

// touchLocal gives bytes that were written here their modification time: a store
// of them that is cut later carries it.
func (c *Cache) touchLocal(oid kml.OID, mtime int64) error {
	o := c.objects.find(oid)
	if o == nil {
		return nil
	}
	defer c.objects.release(o)
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.local {
		return nil
	}
	o.writes.Add(1)
	ts := []unix.Timespec{timespec(utimeOmit), timespec(mtime)}
	return unix.UtimesNanoAt(unix.AT_FDCWD, c.localPath(oid), ts, 0)
}

// review runs f, which changes the view or what is below it, as one for every
// reader, and says what of all that the records touch looks different after it.
func (c *Cache) review(rs []*kml.Record, f func() error) ([]Change, error) {
	var oids []kml.OID
	var names []Name
	for _, r := range rs {
		o, n, folders := touched(r)
		oids = append(append(oids, o...), folders...)
		names = append(names, n...)
	}
	slices.Sort(oids)
	oids = slices.Compact(oids)
	v := c.view
	v.mu.Lock()
	defer v.mu.Unlock()
	x := c.index.Load()
	objs := make([]*Object, len(oids))
	held := make([]kml.OID, len(names))
	for i, oid := range oids {
		objs[i], _ = v.object(oid, x)
	}
	for i, n := range names {
		held[i], _ = v.child(n, x)
	}
	if err := f(); err != nil {
		return nil, err
	}
	var changes []Change
	for i, n := range names {
		if now, ok := v.child(n, x); now != held[i] {
			ch := Change{Kind: ChangeEntry, OID: now, Parent: n.Parent, Name: n.Name, Gone: !ok}
			if !ok {
				ch.OID = held[i]
			}
			if !slices.Contains(changes, ch) {
				changes = append(changes, ch)
			}
		}
	}
	for i, oid := range oids {
		now, err := v.object(oid, x)
		if objs[i] == nil && err == nil {
			// It was removed here and is back. Who looked at a name that the master
			// gave it meanwhile was told that there is nothing.
			for _, n := range v.namesOf(oid, x) {
				ch := Change{Kind: ChangeEntry, OID: oid, Parent: n.Parent, Name: n.Name}
				if !slices.Contains(changes, ch) {
					changes = append(changes, ch)
				}
			}
		}
		if err == nil && (objs[i] == nil || !sameLooks(objs[i], now)) {
			changes = append(changes, Change{Kind: ChangeAttr, OID: oid})
		}
	}
	return changes, nil
}

// sameLooks compares what stat(2) and getxattr(2) say, but for the time of the
// change.
func sameLooks(a, b *Object) bool {
	return a.Attr == b.Attr && a.Target == b.Target && slices.EqualFunc(a.Xattrs, b.Xattrs, func(x, y kml.Xattr) bool {
		return x.Name == y.Name && string(x.Value) == string(y.Value)
	})
}

// Local is the local log.
func (c *Cache) Local() *local.Log { return c.log }

// Undo takes changes off the tree and out of the local log: the master will not
// have them. A store's contents are no longer what is shown, unless the object
// was written to again.
func (c *Cache) Undo(rebase kml.Base, es ...*local.Entry) error {
	c.amu.Lock()
	defer c.amu.Unlock()
	for _, e := range slices.Backward(es) {
		if !e.Gone() && e.Back() == 0 {
			c.unlay(e, rebase)
			fault.Point("local.undone")
		}
	}
	return c.log.Done(rebase, es...)
}

// Amend makes a change that is not frozen another one, in its place.
func (c *Cache) Amend(e *local.Entry, r *kml.Record) error {
	c.amu.Lock()
	defer c.amu.Unlock()
	was := e.Rec()
	if err := c.log.Replace(e, r); err != nil {
		return err
	}
	changes, _ := c.review([]*kml.Record{was, r}, func() error {
		c.view.remove(e, was)
		c.view.add(e, r)
		return nil
	})
	for _, ch := range changes {
		c.watch.emit(ch)
	}
	return nil
}

// Insert puts changes into the local log where their IDs say, and on the tree.
func (c *Cache) Insert(es ...*local.Entry) error {
	c.amu.Lock()
	defer c.amu.Unlock()
	if err := c.log.Append(es...); err != nil {
		return err
	}
	for _, e := range es {
		if err := c.layAgain(e); err != nil {
			return err
		}
	}
	return nil
}
