package cachefs

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/local"
	"github.com/mezzofs/mezzo/kml/tree"
)

// leaseTable is the leases that a client has on one link. It is guarded by
// permits.mu.
type leaseTable struct {
	held    map[leaseKey]*heldLease
	changed chan struct{} // closed when a lease is given up, or no longer in use
	wg      sync.WaitGroup
	ended   bool // nothing is given up any more: the link has ended
}

type leaseKey struct {
	kind feed.Lease
	oid  kml.OID
}

// heldLease is a lease, from when the master gave it until the client gives it
// up.
type heldLease struct {
	key  leaseKey
	pos  kml.Position  // what it covers is current as of there
	used time.Duration // when it was used last
	pins int           // changes that are being made under it
	over bool          // it is being given up: no change begins under it

	via  *heldLease // what it was inherited from, while
	made uint64     // the change that makes its folder is not known to be taken
}

// Bounds of a client's leases: how many it asks for, and how long it keeps one
// that it does not use.
const (
	maxHeld   = 4096
	idleLease = time.Second
)

func newLeaseTable() leaseTable {
	return leaseTable{held: make(map[leaseKey]*heldLease), changed: make(chan struct{})}
}

// stirred wakes who waits for a lease. mu is held.
func (t *leaseTable) stirred() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// acquire has a lease for one change, asking for it if need be. The change ends
// with unpin. EHOSTDOWN when the link ends; ENOLCK when there are too many.
func (p *permits) acquire(ctx context.Context, key leaseKey) (l *heldLease, err error) {
	for {
		p.mu.Lock()
		l = p.held[key]
		switch {
		case l != nil && l.over:
			changed := p.changed
			p.mu.Unlock()
			select {
			case <-changed:
			case <-p.up.ctx.Done():
				return nil, syscall.EHOSTDOWN
			case <-ctx.Done():
				return nil, syscall.EINTR
			}
			continue
		case l != nil && p.valid():
			l.pins++
			l.used = boottime()
			p.mu.Unlock()
			return l, p.reached(ctx, l)
		case l == nil && len(p.held) >= maxHeld:
			p.mu.Unlock()
			return nil, syscall.ENOLCK
		}
		p.mu.Unlock()
		if l, err = p.take(ctx, key); err != nil {
			return nil, err
		}
		return l, p.reached(ctx, l)
	}
}

// reached waits until the client is where the master was when it gave a lease.
func (p *permits) reached(ctx context.Context, l *heldLease) error {
	err := p.c.reach(ctx, l.pos)
	if err != nil {
		p.unpin(l)
	}
	return err
}

// take asks for a lease. It comes with a pin.
func (p *permits) take(ctx context.Context, key leaseKey) (*heldLease, error) {
	reply := make(chan feed.Reply, 1)
	_, err := p.await(ctx, feed.Ask{Verb: feed.AskTake, Lease: key.kind, OID: key.oid}, reply)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.held[key]; l != nil {
		return l, nil
	}
	return nil, syscall.EHOSTDOWN
}

// given notes a lease that the master has given, with a pin for who asked. mu is
// held.
func (p *permits) given(key leaseKey, pos kml.Position) {
	l := p.held[key]
	if l == nil || l.over {
		l = &heldLease{key: key}
		p.held[key] = l
	}
	l.pos = max(l.pos, pos)
	l.pins++
	l.used = boottime()
}

func (p *permits) unpin(l *heldLease) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.pins--; l.pins == 0 && l.over {
		p.stirred()
	}
}

// unasked takes in what the master says of itself.
func (p *permits) unasked(r feed.Reply) {
	key := leaseKey{r.Lease, r.OID}
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.held[key]
	switch {
	case r.Say == feed.SayGone && l != nil:
		l.over = true
		delete(p.held, key)
		p.stirred()
		p.c.log.Warn("a lease was not given up in time; what was changed under it is held against the master's tree", "addr", p.c.o.Addr, "oid", r.OID)
	case r.Say == feed.SayRecall && l != nil:
		p.giveUp(l)
	case r.Say == feed.SayRecall && !p.asking(key):
		p.text = append(p.text, p.next(feed.Ask{Verb: feed.AskFree, Lease: key.kind, OID: key.oid}, nil).String()...)
		p.wake()
	}
}

// asking reports whether a lease is asked for. mu is held.
func (p *permits) asking(key leaseKey) bool {
	for _, a := range p.waits {
		if a.key == key {
			return true
		}
	}
	return false
}

// giveUp gives a lease up, when the master has what was changed under it. mu is
// held.
func (p *permits) giveUp(l *heldLease) {
	if l.over || p.ended {
		return
	}
	l.over = true
	p.wg.Go(func() {
		if err := p.flush(l); err != nil {
			return // the link is gone, and all leases with it
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.held[l.key] != l {
			return
		}
		delete(p.held, l.key)
		p.disown(l)
		p.text = append(p.text, p.next(feed.Ask{Verb: feed.AskFree, Lease: l.key.kind, OID: l.key.oid}, nil).String()...)
		p.wake()
		p.stirred()
	})
}

// flush waits until nobody makes a change under a lease, and the master has
// decided on those that were made.
func (p *permits) flush(l *heldLease) error {
	for {
		p.mu.Lock()
		pins, changed := l.pins, p.changed
		p.mu.Unlock()
		if pins == 0 {
			break
		}
		select {
		case <-changed:
		case <-p.up.ctx.Done():
			return syscall.EHOSTDOWN
		}
	}
	c := p.c
	if l.key.kind == feed.LeaseWrite {
		if err := c.cache.CutAll(); err != nil {
			c.log.Warn("stores not cut; who gets the right to write does not see all that was written here", "err", err)
		}
	}
	err := c.takenOf(p.up.ctx, 0, c.cache.Local().Last(), l.covers)
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != syscall.EHOSTDOWN && p.up.ctx.Err() == nil {
		err = nil // refused: it stays here
	}
	return err
}

// covers reports whether a change is one that the lease protects: all that is done
// between making a name and taking it away, but for large contents on their way.
func (l *heldLease) covers(r *kml.Record) bool {
	return l.key.kind == feed.LeaseWrite || r.Op != kml.OpStore || r.Attr.Size <= settleMost
}

// inherit gives the client, with the names of a folder, those of a folder that is
// made in it: the master does the same when it takes the change.
func (p *permits) inherit(from *heldLease, e *local.Entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := leaseKey{feed.LeaseNames, e.Rec().OID}
	if p.held[key] == nil && len(p.held) < maxHeld && p.valid() && p.held[from.key] == from {
		p.held[key] = &heldLease{key: key, pos: from.pos, used: boottime(), via: from, made: e.ID}
	}
}

// disown takes what was inherited from a lease and is not the client's after all:
// the master did not take the change. mu is held.
func (p *permits) disown(from *heldLease) {
	for key, l := range p.held {
		if l.via != from {
			continue
		}
		if l.via = nil; !p.c.isTaken(l.made) {
			l.over = true
			delete(p.held, key)
			p.disown(l)
		}
	}
}

// freeIdle gives up leases that are not used.
func (p *permits) freeIdle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := boottime()
	for _, l := range p.held {
		if l.key.kind == feed.LeaseNames && l.pins == 0 && now-l.used > idleLease && (l.via == nil || p.c.isTaken(l.made)) {
			p.giveUp(l)
		}
	}
}

// isTaken reports whether the master has taken a change.
func (c *Client) isTaken(id uint64) bool {
	e := c.cache.Local().Get(id)
	if e == nil || e.Back() != 0 {
		return true
	}
	c.push.mu.Lock()
	defer c.push.mu.Unlock()
	s := c.push.st[id]
	return s != nil && s.decided && applied(s.out)
}

// claim makes a change that excludes others, under a lease on the names of its
// folder. Where there is none to be had the master decides on the change.
func (c *Client) claim(ctx context.Context, up *upstream, r *kml.Record) error {
	key := leaseKey{feed.LeaseNames, r.Parent}
	if r.Op == kml.OpRename {
		key.oid = r.NewParent
	}
	l, err := up.permits.acquire(ctx, key)
	switch {
	case err == nil:
	case errors.Is(err, syscall.EINTR):
		return err
	default:
		return c.submit(ctx, r)
	}
	defer up.permits.unpin(l)
	tree.CaughtUp(ctx) // who held the name before may have changed what it stands for
	e, err := c.cache.Change(ctx, r, nil)
	if err == nil && r.Op == kml.OpMkdir {
		up.permits.inherit(l, e)
	}
	return err
}
