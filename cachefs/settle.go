package cachefs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/local"
	"github.com/mezzofs/mezzo/kml/tree"
)

// settled is what became of objects when conflicts were settled. It is kept for
// changes that were on their way by then, and refer to what is no longer.
type settled struct {
	alias  map[kml.OID]kml.OID // two became one, or it was made again
	copies map[kml.OID]kml.OID // conflict copies of objects
}

// maxSettle is how often one change is settled before it is given up.
const maxSettle = 8

// settleConflicts decides what becomes of the changes that the master did not
// take because its tree is another one than they were made for. It waits until
// nothing is on its way, and until the master's tree is here as it was decided
// on. The caller has the turn.
func (c *Client) settleConflicts(up *upstream) error {
	p := &c.push
	p.mu.Lock()
	if len(p.stuck) == 0 || up.inFlight > 0 {
		p.mu.Unlock()
		return nil
	}
	list := p.stuck
	p.stuck = nil
	p.mu.Unlock()
	slices.SortFunc(list, func(a, b *sending) int { return int(int64(a.e.ID - b.e.ID)) })
	for i, s := range list {
		err := c.cache.Reach(up.ctx, s.out.Pos)
		if err == nil {
			err = c.settleOne(up.ctx, s)
		}
		if err != nil {
			p.mu.Lock()
			p.stuck = append(p.stuck, list[i:]...)
			p.mu.Unlock()
			return fmt.Errorf("%s: %w", c.describe(s.e), err)
		}
	}
	return nil
}

// settleOne deals with one change, unless that was done with another.
func (c *Client) settleOne(ctx context.Context, s *sending) error {
	p := &c.push
	p.mu.Lock()
	open := s.decided && !applied(s.out) && !s.e.Gone()
	out := s.out
	s.settles++
	last := s.settles > maxSettle
	p.mu.Unlock()
	if !open || s.e.Back() != 0 {
		return nil
	}
	if err := c.cache.Local().Thaw(s.e); err != nil {
		return err
	}
	r := s.e.Rec()
	var err error
	switch {
	case last:
		err = c.abandon(s.e, "it cannot be settled: "+out.Reason)
	case !isMaking(r.Op) && c.madeHere(r.OID, s.e.ID):
		// Its object was in the way of another and is sent again before it.
	case r.Op == kml.OpStore:
		err = c.settleStore(ctx, s.e, out)
	case r.Op == kml.OpRename:
		err = c.settleRename(ctx, s.e, out)
	case isMaking(r.Op) || r.Op == kml.OpLink:
		err = c.settleMaking(ctx, s.e, out)
	case r.Op == kml.OpUnlink || r.Op == kml.OpRmdir:
		err = c.settleRemoval(s.e, out)
	default:
		err = c.settleAttr(s.e, out)
	}
	if err != nil {
		return err
	}
	p.sendAgain(s)
	return nil
}

// sendAgain has a change that was settled, if it is still there, sent anew.
func (p *pusher) sendAgain(s *sending) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.decided, s.on, s.staged = false, nil, nil
	if s.e.Gone() {
		delete(p.st, s.e.ID)
	} else {
		p.again[s.e.ID] = true
	}
	p.stepped()
}

func isMaking(op kml.Op) bool {
	return op == kml.OpCreate || op == kml.OpMkdir || op == kml.OpSymlink || op == kml.OpMknod
}

// abandon gives a change up, says so, and keeps its bytes.
func (c *Client) abandon(e *local.Entry, why string) error {
	kept, err := c.setAside(e)
	if err != nil {
		return err
	}
	c.note("%s: refused by the master: %s%s", c.describe(e), why, kept)
	return c.undo(e)
}

// now is what an object is called by now.
func (c *Client) now(oid kml.OID) kml.OID {
	for range 64 {
		to, ok := c.settled.alias[oid]
		if !ok {
			break
		}
		oid = to
	}
	return oid
}

// renamed makes a change refer to what objects are called by now; ok is false
// when it does already.
func (c *Client) renamed(r *kml.Record) (n *kml.Record, ok bool) {
	k := *r
	if !isMaking(r.Op) {
		k.OID = c.now(r.OID)
	}
	k.Parent, k.NewParent = c.now(r.Parent), c.now(r.NewParent)
	if r.Victim != nil && c.now(r.Victim.OID) != r.Victim.OID {
		v := *r.Victim
		v.OID = c.now(v.OID)
		k.Victim = &v
	}
	return &k, k.OID != r.OID || k.Parent != r.Parent || k.NewParent != r.NewParent || k.Victim != r.Victim
}

// amendLater changes the changes behind one that are not on their way.
func (c *Client) amendLater(id uint64, f func(r *kml.Record) (*kml.Record, bool)) error {
	for _, e := range c.cache.Local().From(id, -1) {
		if e.Back() != 0 {
			continue
		}
		r, ok := f(e.Rec())
		if !ok {
			continue
		}
		if free, err := c.thawed(e); err != nil || !free {
			if err != nil {
				return err
			}
			continue // it will conflict, and is settled then
		}
		r.Origin = kml.Origin{}
		if err := c.cache.Amend(e, r); err != nil {
			return err
		}
	}
	return nil
}

// thawed makes a change one that is not frozen; false when it may have been sent
// and the master has not said no.
func (c *Client) thawed(e *local.Entry) (bool, error) {
	if e.Seq() == 0 {
		return true, nil
	}
	p := &c.push
	p.mu.Lock()
	s := p.st[e.ID]
	no := s != nil && s.decided && !applied(s.out)
	p.mu.Unlock()
	if !no {
		return false, nil
	}
	if err := c.cache.Local().Thaw(e); err != nil {
		return false, err
	}
	p.sendAgain(s)
	return true, nil
}

// becomes notes that an object is another one by now, and says so to what was
// changed later.
func (c *Client) becomes(id uint64, oid, to kml.OID) error {
	if c.settled.alias == nil {
		c.settled.alias = make(map[kml.OID]kml.OID)
	}
	c.settled.alias[oid] = to
	return c.amendLater(id, c.renamed)
}

// masterChild is what a name holds at the master, which is asked when it is not
// known here.
func (c *Client) masterChild(ctx context.Context, parent kml.OID, name string) (*tree.Object, error) {
	dir, err := c.masterObject(ctx, parent)
	if err != nil || dir == nil {
		return nil, err
	}
	if !dir.Listed {
		if err := c.List(ctx, parent); err != nil {
			return nil, ignoreStale(err)
		}
	}
	oid, ok := c.cache.MasterChild(parent, name)
	if !ok {
		return nil, nil
	}
	return c.masterObject(ctx, oid)
}

// masterObject is an object as the master has it; nil when it has none.
func (c *Client) masterObject(ctx context.Context, oid kml.OID) (*tree.Object, error) {
	obj, err := c.cache.MasterObject(oid)
	if !errors.Is(err, tree.ErrNotFound) {
		return obj, err
	}
	if err := c.Find(ctx, oid); err != nil {
		return nil, ignoreStale(err)
	}
	obj, err = c.cache.MasterObject(oid)
	if errors.Is(err, tree.ErrNotFound) {
		return nil, nil
	}
	return obj, err
}

func ignoreStale(err error) error {
	if errors.Is(err, syscall.ESTALE) {
		return nil
	}
	return err
}

// settleMaking deals with a new object or link whose name is taken, whose folder
// is gone, or whose object is.
func (c *Client) settleMaking(ctx context.Context, e *local.Entry, out feed.Outcome) error {
	if moved, err := c.settleParents(ctx, e); moved || err != nil {
		return err
	}
	r := e.Rec()
	other, err := c.masterChild(ctx, r.Parent, r.Name)
	if err != nil {
		return err
	}
	if r.Op == kml.OpLink {
		obj, err := c.masterObject(ctx, r.OID)
		switch {
		case err != nil:
			return err
		case obj == nil:
			return c.abandon(e, out.Reason)
		case other != nil && other.OID == r.OID:
			return c.undo(e)
		}
	}
	if other == nil {
		return nil // free by now: it is sent again
	}
	if r.Op == kml.OpMkdir && other.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := c.becomes(e.ID, r.OID, other.OID); err != nil {
			return err
		}
		return c.undo(e)
	}
	if same, err := c.sameObject(ctx, e, other); err != nil {
		return err
	} else if same {
		return c.merge(e, other.OID)
	}
	return c.otherName(e, nameOf(r.Parent, r.Name), r.OID, out)
}

func nameOf(parent kml.OID, name string) tree.Name { return tree.Name{Parent: parent, Name: name} }

// otherName gives what was put under a name the name of a conflict copy.
func (c *Client) otherName(e *local.Entry, at tree.Name, oid kml.OID, out feed.Outcome) error {
	name := c.freeName(at)
	k := *e.Rec()
	if k.Op == kml.OpRename {
		k.NewName, k.Victim, k.VictimBase = name, nil, kml.Base{}
		k.Flags &^= kml.FlagExchange
	} else {
		k.Name = name
	}
	k.Flags |= kml.FlagConflict
	if err := c.cache.Amend(e, &k); err != nil {
		return err
	}
	c.note("%q: changed on both sides; what was made here is in %q (%s)", at.Name, name, out.Reason)
	return c.amendLater(e.ID, func(r *kml.Record) (*kml.Record, bool) {
		k := *r
		switch {
		case !isMaking(r.Op) && r.Op != kml.OpLink && r.OID == oid && at == nameOf(r.Parent, r.Name):
			k.Name = name
		case r.Op == kml.OpRename && r.Victim != nil && r.Victim.OID == oid && at == nameOf(r.NewParent, r.NewName):
			k.NewName = name
		default:
			return nil, false
		}
		return &k, true
	})
}

// freeName is the name of a conflict copy that nothing has.
func (c *Client) freeName(at tree.Name) string {
	now := c.o.Now()
	for n := 1; ; n++ {
		name := conflictName(at.Name, c.o.Host, now, n)
		_, here := c.cache.Child(at.Parent, name)
		_, there := c.cache.MasterChild(at.Parent, name)
		if !here && !there {
			return name
		}
	}
}

// settleParents makes the folders of a change again that are gone at the master;
// moved is true when the change was amended.
func (c *Client) settleParents(ctx context.Context, e *local.Entry) (moved bool, err error) {
	r := e.Rec()
	for _, oid := range []kml.OID{r.Parent, r.NewParent} {
		if oid == 0 || c.now(oid) != oid {
			continue
		}
		if c.madeHere(oid, e.ID) {
			continue // it is on its way
		}
		dir, err := c.masterObject(ctx, oid)
		if err != nil {
			return false, err
		}
		if dir != nil || r.Op == kml.OpRename && oid == r.Parent && oid != r.NewParent {
			continue
		}
		to, err := c.remake(ctx, e, oid, 0)
		if err != nil {
			return false, err
		}
		if err := c.becomes(e.ID, oid, to); err != nil {
			return false, err
		}
	}
	k, ok := c.renamed(e.Rec())
	if !ok {
		return false, nil
	}
	return true, c.cache.Amend(e, k)
}

// madeHere reports whether an object is made by a change that has not come back.
func (c *Client) madeHere(oid kml.OID, before uint64) bool {
	return c.cache.MadeBy(oid) != 0 && c.cache.MadeBy(oid) < before
}

// remake makes a folder again that the master has removed, and those it was in,
// in front of a change. What is no longer known of it is made up.
func (c *Client) remake(ctx context.Context, e *local.Entry, oid kml.OID, depth int) (kml.OID, error) {
	was := c.cache.Lost(oid)
	parent, name := kml.RootOID, fmt.Sprintf("folder %v", oid)
	attr := kml.Attr{Mode: unix.S_IFDIR | 0o755, UID: e.Rec().UID, GID: e.Rec().GID, Nlink: 2}
	if was != nil && depth < 64 {
		attr.Mode, attr.UID, attr.GID = was.Attr.Mode, was.Attr.UID, was.Attr.GID
		parent, name = c.now(was.Parent), was.Name
		dir, err := c.masterObject(ctx, parent)
		if err != nil {
			return 0, err
		}
		if dir == nil && !c.madeHere(parent, e.ID) {
			if parent, err = c.remake(ctx, e, parent, depth+1); err != nil {
				return 0, err
			}
		}
	}
	if held, ok := c.cache.Child(parent, name); ok {
		if obj, err := c.cache.Object(held); err == nil && obj.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
			return held, nil
		}
		name = c.freeName(nameOf(parent, name))
	}
	made, err := c.cache.State().MintOID()
	if err != nil {
		return 0, err
	}
	now := c.o.Now().UnixNano()
	attr.Mtime = now
	m := local.New(&kml.Record{Op: kml.OpMkdir, Flags: kml.FlagConflict, Time: now, UID: e.Rec().UID, GID: e.Rec().GID, OID: made,
		Parent: parent, Name: name, Attr: attr})
	m.ID = c.cache.Local().IDBefore(e.ID)
	if err := c.cache.Insert(m); err != nil {
		return 0, err
	}
	c.queueAgain(m)
	return made, nil
}

// queueAgain has changes sent that were put in the middle of the log.
func (c *Client) queueAgain(es ...*local.Entry) {
	p := &c.push
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range es {
		p.again[e.ID] = true
	}
}

// settleRename deals with a rename whose source has moved or gone, or whose
// target is not what it was.
func (c *Client) settleRename(ctx context.Context, e *local.Entry, out feed.Outcome) error {
	if moved, err := c.settleParents(ctx, e); moved || err != nil {
		return err
	}
	r := e.Rec()
	from, to := nameOf(r.Parent, r.Name), nameOf(r.NewParent, r.NewName)
	src, err := c.masterChild(ctx, r.Parent, r.Name)
	if err != nil {
		return err
	}
	if src == nil || src.OID != r.OID {
		return c.dropRename(ctx, e, to)
	}
	dst, err := c.masterChild(ctx, r.NewParent, r.NewName)
	if err != nil {
		return err
	}
	switch {
	case out.Errno == uint32(syscall.EINVAL) || out.Errno == uint32(syscall.ELOOP):
		return c.dropRename(ctx, e, to) // the new folder is inside it by now
	case r.Flags&kml.FlagExchange != 0:
		return c.dropRename(ctx, e, to)
	case dst == nil && r.Victim != nil:
		k := *r
		k.Victim, k.VictimBase = nil, kml.Base{}
		return c.cache.Amend(e, &k)
	case dst == nil || dst.OID == r.OID || from == to:
		return nil
	}
	return c.otherName(e, to, r.OID, out)
}

// dropRename gives a rename up: the object is where the master has it.
func (c *Client) dropRename(ctx context.Context, e *local.Entry, to tree.Name) error {
	r := e.Rec()
	if err := c.undo(e); err != nil {
		return err
	}
	obj, err := c.masterObject(ctx, r.OID)
	if err != nil || obj == nil || obj.Parent == 0 {
		return err
	}
	return c.amendLater(e.ID, func(x *kml.Record) (*kml.Record, bool) {
		if isMaking(x.Op) || x.Op == kml.OpLink || x.OID != r.OID || to != (nameOf(x.Parent, x.Name)) {
			return nil, false
		}
		k := *x
		k.Parent, k.Name = obj.Parent, obj.Name
		return &k, true
	})
}

// settleRemoval lets what was removed here stand: it was changed, or replaced.
func (c *Client) settleRemoval(e *local.Entry, out feed.Outcome) error {
	if k, ok := c.renamed(e.Rec()); ok {
		return c.cache.Amend(e, k)
	}
	switch syscall.Errno(out.Errno) {
	case syscall.ENOENT, syscall.ESTALE:
	default:
		c.note("%s: not removed, it was changed on the other side (%s)", c.describe(e), out.Reason)
	}
	return c.undo(e)
}

// settleAttr lets attributes go with their object.
func (c *Client) settleAttr(e *local.Entry, out feed.Outcome) error {
	if k, ok := c.renamed(e.Rec()); ok {
		return c.cache.Amend(e, k)
	}
	return c.undo(e)
}

// compareTime is how long the comparison of contents may take, while nothing
// else is sent.
const compareTime = 10 * time.Second
