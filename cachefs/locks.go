package cachefs

import (
	"context"
	"errors"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// locks is who of this host has locks that the master gave, and who has lost
// some.
type locks struct {
	mu   sync.Mutex
	held map[lockedBy]*heldLock
	lost map[lockedBy]bool
}

type lockedBy struct {
	oid   kml.OID
	owner tree.LockOwner
}

// heldLock is what an owner has of one object, and since when.
type heldLock struct {
	up *upstream
	id uint64 // the last change in the local log then
	at int64  // of the client's clock, ns
}

func newLocks() locks {
	return locks{held: make(map[lockedBy]*heldLock), lost: make(map[lockedBy]bool)}
}

// any reports whether there are locks that were given on a link.
func (k *locks) any(up *upstream) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.held {
		if h.up == up {
			return true
		}
	}
	return false
}

func (k *locks) get(by lockedBy) *heldLock {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.held[by]
}

func (k *locks) takeLost(by lockedBy) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	was := k.lost[by]
	delete(k.lost, by)
	return was
}

// LostLock is tree.LockLoser's.
func (c *Client) LostLock(oid kml.OID, o tree.LockOwner, told bool) bool {
	by := lockedBy{oid, o}
	if told {
		return c.locks.takeLost(by)
	}
	c.locks.mu.Lock()
	defer c.locks.mu.Unlock()
	return c.locks.lost[by]
}

// lockAsk is a lock as the master is asked for it.
func lockAsk(verb feed.Verb, oid kml.OID, l tree.Lock) feed.Ask {
	q := feed.Ask{Verb: verb, OID: oid, Owner: l.Owner.Owner ^ uint64(l.Owner.Door)<<56,
		Lock: feed.FileLock{Kind: feed.LockPOSIX, Type: feed.LockNone, Start: l.Start, End: l.End, PID: l.PID}}
	if l.Flock {
		q.Lock.Kind, q.Lock.Start, q.Lock.End = feed.LockFlock, 0, ^uint64(0)
	}
	switch l.Type {
	case unix.F_RDLCK:
		q.Lock.Type = feed.LockRead
	case unix.F_WRLCK:
		q.Lock.Type = feed.LockWrite
	}
	return q
}

// SetLock is tree.FS's. While there is a link the master decides, and what is
// granted is as of the master's tree then: the client has caught up with it. What
// was written under a lock has been taken by the master when it is given up.
// Without a link locks are among the users of this client.
func (c *Client) SetLock(ctx context.Context, oid kml.OID, l tree.Lock, wait bool) error {
	by := lockedBy{oid, l.Owner}
	if c.locks.takeLost(by) {
		return syscall.EIO
	}
	if l.Type == unix.F_UNLCK {
		return c.unlock(ctx, by, l)
	}
	if _, write := c.cache.Locked(oid, l.Owner); write && l.Type == unix.F_RDLCK {
		if err := c.settleLock(ctx, by); err != nil { // others may read from now on
			return err
		}
	}
	for {
		_, up, changed := c.watchState()
		if !up.sends() {
			return c.cache.SetLock(ctx, oid, l, wait)
		}
		err := c.lockAt(ctx, up, by, l, wait)
		if up.ctx.Err() == nil || !errors.Is(err, syscall.EHOSTDOWN) {
			return err
		}
		select { // the link is gone: what is here decides
		case <-changed:
		case <-ctx.Done():
			return syscall.EINTR
		}
		if c.locks.takeLost(by) {
			return syscall.EIO
		}
	}
}

// lockAt asks the master for a lock. EHOSTDOWN when the link ends.
func (c *Client) lockAt(ctx context.Context, up *upstream, by lockedBy, l tree.Lock, wait bool) error {
	if _, err := c.cache.MasterObject(by.oid); errors.Is(err, tree.ErrNotFound) {
		// Made here: the master has to know it first.
		if err := c.taken(ctx, 0, c.cache.Local().Last()); err != nil {
			return err
		}
	}
	h := &heldLock{up: up, id: c.cache.Local().Last(), at: c.o.Now().UnixNano()}
	q := lockAsk(feed.AskLock, by.oid, l)
	q.Wait = wait
	r, err := up.permits.ask(ctx, q)
	if errors.Is(err, syscall.ESTALE) {
		return c.cache.SetLock(ctx, by.oid, l, wait) // without a name, nobody else can have it open
	}
	if err != nil {
		return err
	}
	if err = c.reach(ctx, r.Pos); err == nil {
		err = c.cache.SetLock(ctx, by.oid, l, wait)
	}
	if err != nil {
		l.Type = unix.F_UNLCK
		up.permits.post(lockAsk(feed.AskLock, by.oid, l), nil)
		if up.ctx.Err() != nil {
			return syscall.EHOSTDOWN
		}
		return err
	}
	c.locks.mu.Lock()
	if old := c.locks.held[by]; old == nil || old.up != up {
		c.locks.held[by] = h
	}
	c.locks.mu.Unlock()
	if up.ctx.Err() != nil {
		c.loseLocks(up) // the others were lost before
	}
	return nil
}

// unlock gives up what an owner has in a range, when the master has what was
// written since it was taken.
func (c *Client) unlock(ctx context.Context, by lockedBy, l tree.Lock) error {
	err := c.settleLock(ctx, by)
	h := c.locks.get(by)
	err = errors.Join(err, c.cache.SetLock(ctx, by.oid, l, false))
	if h == nil {
		return err
	}
	h.up.permits.post(lockAsk(feed.AskLock, by.oid, l), nil)
	c.letGo(by, h)
	return err
}

// letGo forgets what an owner had when there is nothing left.
func (c *Client) letGo(by lockedBy, h *heldLock) {
	if any, _ := c.cache.Locked(by.oid, by.owner); any {
		return
	}
	c.locks.mu.Lock()
	defer c.locks.mu.Unlock()
	if c.locks.held[by] == h {
		delete(c.locks.held, by)
	}
}

// Unlock is tree.FS's.
func (c *Client) Unlock(oid kml.OID, o tree.LockOwner) {
	c.locks.mu.Lock()
	var mine []lockedBy
	for by := range c.locks.held {
		if by.owner == o && (oid == 0 || by.oid == oid) {
			mine = append(mine, by)
		}
	}
	for by := range c.locks.lost {
		if by.owner == o && (oid == 0 || by.oid == oid) {
			delete(c.locks.lost, by) // there is nobody left to tell
		}
	}
	c.locks.mu.Unlock()
	for _, by := range mine {
		if err := c.settleLock(c.ctx, by); err != nil {
			c.log.Warn("what was written under a lock has not been taken by the master when it was given up", "oid", by.oid, "err", err)
		}
		h := c.locks.get(by)
		c.cache.Unlock(by.oid, o)
		if h != nil {
			q := lockAsk(feed.AskUnlock, by.oid, tree.Lock{Owner: o})
			h.up.permits.post(q, nil)
			c.letGo(by, h)
		}
	}
	c.cache.Unlock(oid, o)
}

// settleMost is the size in bytes up to which a file that is being written is
// sent because somebody gives up a lock of another file.
const settleMost = 64 << 20

// settleLock waits until the master has what was written here since an owner's
// lock was taken; EIO when it was lost meanwhile.
func (c *Client) settleLock(ctx context.Context, by lockedBy) error {
	h := c.locks.get(by)
	if h == nil {
		return nil
	}
	if err := c.cache.CutSince(h.at, settleMost, by.oid); err != nil {
		return err
	}
	err := c.taken(ctx, h.id, c.cache.Local().Last())
	if c.locks.takeLost(by) || errors.Is(err, syscall.EHOSTDOWN) {
		return syscall.EIO
	}
	return err
}

// taken waits until the master has decided on the changes behind one ID and up to
// another: the errno of the first that it refuses, EHOSTDOWN without a link.
func (c *Client) taken(ctx context.Context, from, to uint64) error {
	return c.takenOf(ctx, from, to, func(*kml.Record) bool { return true })
}

// takenOf is taken of those changes that f picks.
func (c *Client) takenOf(ctx context.Context, from, to uint64, f func(*kml.Record) bool) error {
	p := &c.push
	to |= 1<<16 - 1 // with what was put behind it
	for {
		p.mu.Lock()
		moved := p.moved
		p.mu.Unlock()
		_, up, changed := c.watchState()
		open, refused := c.undecided(from, to, f)
		switch {
		case !open:
			return refused
		case !up.sends():
			return syscall.EHOSTDOWN
		}
		select {
		case <-moved:
		case <-changed:
		case <-ctx.Done():
			return syscall.EINTR
		case <-c.ctx.Done():
			return syscall.ESHUTDOWN
		}
	}
}

// undecided reports whether the master has still to decide on a change between
// two IDs, and the errno of the first that it refuses.
func (c *Client) undecided(from, to uint64, f func(*kml.Record) bool) (open bool, refused error) {
	p := &c.push
	for id := from; ; {
		es := c.cache.Local().From(id, 256)
		if len(es) == 0 {
			return false, refused
		}
		p.mu.Lock()
		for _, e := range es {
			if id = e.ID; id > to {
				break
			}
			s := p.st[e.ID]
			if e.Back() != 0 || e.Gone() || s != nil && s.decided && applied(s.out) || !f(e.Rec()) {
				continue
			}
			if s == nil || s.later.errno == 0 {
				p.mu.Unlock()
				return true, nil
			}
			if refused == nil {
				refused = s.later.errno
			}
		}
		p.mu.Unlock()
		if id > to {
			return false, refused
		}
	}
}

// loseLocks is the end of a link: what was given on it is lost.
func (c *Client) loseLocks(up *upstream) {
	c.locks.mu.Lock()
	var lost []lockedBy
	for by, h := range c.locks.held {
		if h.up == up {
			delete(c.locks.held, by)
			c.locks.lost[by] = true
			lost = append(lost, by)
		}
	}
	c.locks.mu.Unlock()
	for _, by := range lost {
		c.cache.Unlock(by.oid, by.owner)
		c.cache.Revoke(by.oid) // what reads of it comes here, and is told
	}
	if len(lost) > 0 {
		c.log.Warn("locks were lost with the link; who holds them gets an error once", "addr", c.o.Addr, "locks", len(lost))
	}
}

// reclaim asks the master for the locks that were taken here while there was no
// link. What it does not give is lost.
func (c *Client) reclaim(up *upstream) {
	for _, l := range c.cache.Locks() {
		by := lockedBy{l.OID, l.Owner}
		if c.locks.get(by) != nil {
			continue
		}
		h := &heldLock{up: up, id: 0, at: 0}
		if _, err := c.cache.MasterObject(l.OID); errors.Is(err, tree.ErrNotFound) {
			if err := c.taken(up.ctx, 0, c.cache.Local().Last()); err != nil {
				return
			}
		}
		_, err := up.permits.ask(up.ctx, lockAsk(feed.AskLock, l.OID, l.Lock))
		if errors.Is(err, syscall.ESTALE) || errors.Is(err, syscall.EHOSTDOWN) {
			continue
		}
		c.locks.mu.Lock()
		if err == nil {
			c.locks.held[by] = h
		} else {
			c.locks.lost[by] = true
		}
		c.locks.mu.Unlock()
		if err != nil {
			c.cache.Unlock(l.OID, l.Owner)
			c.cache.Revoke(l.OID)
			c.log.Warn("a lock that was taken without the master is another's there", "oid", l.OID, "err", err)
		}
	}
}

// TestLock is tree.FS's.
func (c *Client) TestLock(ctx context.Context, oid kml.OID, l tree.Lock) (tree.Lock, error) {
	up := c.current()
	if !up.sends() || l.Type == unix.F_UNLCK {
		return c.cache.TestLock(ctx, oid, l)
	}
	r, err := up.permits.ask(ctx, lockAsk(feed.AskTest, oid, l))
	switch {
	case errors.Is(err, syscall.EHOSTDOWN):
		return c.cache.TestLock(ctx, oid, l)
	case err != nil:
		return l, err
	case r.Say != feed.SayHeld:
		l.Type = unix.F_UNLCK
		return l, nil
	}
	got := tree.Lock{Type: unix.F_RDLCK, Flock: l.Flock, Start: r.Lock.Start, End: r.Lock.End, PID: r.Lock.PID}
	if r.Lock.Type == feed.LockWrite {
		got.Type = unix.F_WRLCK
	}
	return got, nil
}
