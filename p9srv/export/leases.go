package export

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv"
)

// leases is who has promises of the master, and the gate that all other changes
// of the tree pass, so that the promises hold. A lease on the names of a folder
// is one client's right to make and move names there without asking; a lease to
// write is the right to change anything in a subtree.
//
// A change begins with enter: it is let through when no other client's lease is
// in its way; else that is recalled and waited for. A lease that is taken is
// entered first and then given, when the changes that began before have ended.
//
// A client that is silent for longer than length has lost its leases, and so has
// one that was asked so long ago to give one up.
type leases struct {
	t      *tree.Tree
	length time.Duration
	now    func() time.Duration // CLOCK_BOOTTIME: it goes on while the machine sleeps

	n     atomic.Int64 // leases; while there are none a change costs two additions
	epoch atomic.Int64
	going [2]gate       // changes that are going on: of names, and all others
	drain chan struct{} // holds a token when one of going may have become 0
	grace sync.Mutex    // one at a time waits for changes to end

	mu      sync.Mutex
	m       map[leaseKey]*lease
	writes  int                         // of m that are to write
	changed chan struct{}               // closed when a lease goes
	blocked map[kml.SiteID]*blockedSite // whose records wait for a lease
	holders map[*holder]struct{}
}

// gate counts changes by the epoch in which they began.
type gate [2]atomic.Int64

// gate is the one that a change passes.
func (l *leases) gate(what touch) *gate {
	if len(what.names) > 0 {
		return &l.going[0]
	}
	return &l.going[1]
}

type leaseKey struct {
	kind feed.Lease
	oid  kml.OID
}

type lease struct {
	key      leaseKey
	h        *holder
	recalled time.Duration // when it was asked for; 0: it was not
}

// blockedSite is a site whose records wait for another's lease.
type blockedSite struct{ by kml.SiteID }

// holder is a client to the leases: one open permit. Its fields are guarded by
// leases.mu.
type holder struct {
	site  kml.SiteID       // of the client's session of reint; 0: it has none
	say   func(feed.Reply) // nil when the client is gone
	end   func()           // ends the client's permit
	heard time.Duration    // when it last said something
	held  map[leaseKey]*lease
}

// maxLeases is how many leases one client may hold.
const maxLeases = 1 << 13

// leaseLength is Options.Lease by default.
const leaseLength = 5 * time.Second

func newLeases(t *tree.Tree, length time.Duration) *leases {
	return &leases{t: t, length: length, now: boottime, drain: make(chan struct{}, 1), m: make(map[leaseKey]*lease),
		changed: make(chan struct{}), blocked: make(map[kml.SiteID]*blockedSite), holders: make(map[*holder]struct{})}
}

// boottime is CLOCK_BOOTTIME (clock_gettime(2)), which cannot fail on Linux.
func boottime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return time.Duration(ts.Nano())
}

// touch is what a change touches: folders whose names it changes, and objects it
// changes otherwise.
type touch struct {
	names []kml.OID
	objs  []kml.OID
}

// touchOf is what a client's record touches.
func touchOf(r *kml.Record) touch {
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod, kml.OpLink, kml.OpUnlink, kml.OpRmdir:
		return touch{names: []kml.OID{r.Parent}, objs: []kml.OID{r.OID}}
	case kml.OpRename:
		return touch{names: []kml.OID{r.Parent, r.NewParent}, objs: []kml.OID{r.OID}}
	}
	return touch{objs: []kml.OID{r.OID}}
}

// enter lets a change of site (0: of nobody who could hold a lease) through, when
// no lease of another is in its way any more. leave ends the change. In place,
// which is where ctx never ends, it does not wait: ErrWouldBlock.
//
// Two sites whose records wait for each other are let through: their changes are
// held against the tree like any.
func (l *leases) enter(ctx context.Context, site kml.SiteID, what touch) (leave func(), err error) {
	for {
		n := &l.gate(what)[l.epoch.Load()&1]
		n.Add(1)
		leave := func() {
			if n.Add(-1) == 0 {
				token(l.drain)
			}
		}
		if l.n.Load() == 0 {
			return leave, nil
		}
		l.mu.Lock()
		in := l.inWay(what, func(h *holder) bool { return site != 0 && h.site == site })
		if in == nil || l.circle(site, in.h.site) {
			l.mu.Unlock()
			return leave, nil
		}
		leave()
		if ctx.Done() == nil && site == 0 {
			l.mu.Unlock()
			return nil, p9srv.ErrWouldBlock
		}
		me := &blockedSite{by: in.h.site}
		if site != 0 {
			l.blocked[site] = me
		}
		wake, until := l.recall(in), in.until(l)
		l.mu.Unlock()
		err := l.sleep(ctx, wake, until)
		l.mu.Lock()
		if l.blocked[site] == me {
			delete(l.blocked, site)
		}
		l.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
}

// circle reports whether who holds what site waits for waits, through others,
// for site. mu is held.
func (l *leases) circle(site, holder kml.SiteID) bool {
	for range len(l.blocked) + 1 {
		if site == 0 || holder == 0 {
			return false
		}
		if holder == site {
			return true
		}
		b := l.blocked[holder]
		if b == nil {
			return false
		}
		holder = b.by
	}
	return false
}

// inWay is a lease of another that a change may not ignore. Leases that have
// ended go on the way. mu is held.
func (l *leases) inWay(what touch, mine func(*holder) bool) *lease {
	for _, oid := range what.names {
		if x := l.m[leaseKey{feed.LeaseNames, oid}]; x != nil && !mine(x.h) && !l.over(x) {
			return x
		}
	}
	if l.writes == 0 {
		return nil
	}
	for k, x := range l.m {
		if k.kind != feed.LeaseWrite || mine(x.h) {
			continue
		}
		for _, oids := range [][]kml.OID{what.names, what.objs} {
			for _, oid := range oids {
				if l.t.Within(oid, k.oid) && !l.over(x) {
					return x
				}
			}
		}
	}
	return nil
}

// over takes a lease away whose time is over. mu is held.
func (l *leases) over(x *lease) bool {
	if l.now() < x.until(l) {
		return false
	}
	l.drop(x)
	if x.h.say != nil {
		x.h.say(feed.Reply{Say: feed.SayGone, Lease: x.key.kind, OID: x.key.oid})
	}
	return true
}

// until is when a lease is over at the latest, as far as is known now. mu is held.
func (x *lease) until(l *leases) time.Duration {
	end := x.h.heard + l.length
	if x.recalled != 0 {
		end = min(end, x.recalled+l.length)
	}
	return end
}

// recall asks for a lease. It returns what is closed when a lease goes. mu is
// held.
func (l *leases) recall(x *lease) <-chan struct{} {
	if x.recalled == 0 {
		x.recalled = l.now()
		if x.h.say != nil {
			x.h.say(feed.Reply{Say: feed.SayRecall, Lease: x.key.kind, OID: x.key.oid})
		}
	}
	return l.changed
}

// sleep waits for wake or until a time.
func (l *leases) sleep(ctx context.Context, wake <-chan struct{}, until time.Duration) error {
	t := time.NewTimer(max(until-l.now(), 0) + time.Millisecond)
	defer t.Stop()
	select {
	case <-wake:
	case <-t.C:
	case <-ctx.Done():
		return errnoOf(ctx)
	}
	return nil
}

func errnoOf(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return syscall.EINTR
}

// drop takes a lease away. mu is held.
func (l *leases) drop(x *lease) {
	if l.m[x.key] != x {
		return
	}
	delete(l.m, x.key)
	delete(x.h.held, x.key)
	if x.key.kind == feed.LeaseWrite {
		l.writes--
	}
	l.n.Add(-1)
	close(l.changed)
	l.changed = make(chan struct{})
}

// put enters a lease. mu is held.
func (l *leases) put(h *holder, key leaseKey) *lease {
	x := &lease{key: key, h: h}
	l.m[key], h.held[key] = x, x
	if key.kind == feed.LeaseWrite {
		l.writes++
	}
	l.n.Add(1)
	return x
}

// take gives a holder a lease, when nobody else has one that it excludes; it
// recalls those. It waits until ctx ends.
func (l *leases) take(ctx context.Context, h *holder, key leaseKey) error {
	switch {
	case key.kind == feed.LeaseNames && !l.t.IsFolder(key.oid):
		return syscall.ENOENT
	case key.kind == feed.LeaseWrite && !l.t.IsFolder(key.oid):
		return syscall.ENOTDIR
	}
	for {
		l.mu.Lock()
		if _, ok := l.holders[h]; !ok {
			l.mu.Unlock()
			return syscall.ESHUTDOWN
		}
		if x := h.held[key]; x != nil && x.recalled == 0 {
			l.mu.Unlock()
			return nil
		}
		in := l.excluded(h, key)
		if in == nil {
			if x := h.held[key]; x != nil {
				l.drop(x) // the holder is about to give it up: it has not asked for that one
			}
			if len(h.held) >= maxLeases {
				l.mu.Unlock()
				return syscall.ENOLCK
			}
			l.put(h, key)
			l.mu.Unlock()
			return l.ended(ctx, key.kind)
		}
		wake, until := l.recall(in), in.until(l)
		l.mu.Unlock()
		if err := l.sleep(ctx, wake, until); err != nil {
			return err
		}
	}
}

// excluded is a lease of another that key excludes. mu is held.
func (l *leases) excluded(h *holder, key leaseKey) *lease {
	mine := func(o *holder) bool { return o == h }
	if x := l.inWay(touch{names: []kml.OID{key.oid}}, mine); x != nil || key.kind == feed.LeaseNames {
		return x
	}
	for k, x := range l.m {
		if !mine(x.h) && l.t.Within(k.oid, key.oid) && !l.over(x) {
			return x
		}
	}
	return nil
}

// ended waits until all changes that have begun by now, and that a new lease
// excludes, have ended.
func (l *leases) ended(ctx context.Context, kind feed.Lease) error {
	l.grace.Lock()
	defer l.grace.Unlock()
	was := (l.epoch.Add(1) - 1) & 1
	for l.going[0][was].Load() != 0 || kind == feed.LeaseWrite && l.going[1][was].Load() != 0 {
		select {
		case <-l.drain:
		case <-ctx.Done():
			return errnoOf(ctx)
		}
	}
	return nil
}

// free gives a lease up.
func (l *leases) free(h *holder, key leaseKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := h.held[key]; x != nil {
		l.drop(x)
	}
}

// inherit gives who has the names of the folder of a new folder those of the new
// one too; undo takes them back.
func (l *leases) inherit(site kml.SiteID, r *kml.Record) (undo func()) {
	if r.Op != kml.OpMkdir || l.n.Load() == 0 {
		return func() {}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.m[leaseKey{feed.LeaseNames, r.Parent}]
	key := leaseKey{feed.LeaseNames, r.OID}
	if x == nil || x.h.site != site || l.m[key] != nil || len(x.h.held) >= maxLeases {
		return func() {}
	}
	y := l.put(x.h, key)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.drop(y)
	}
}

// join makes a client a holder.
func (l *leases) join(say func(feed.Reply), end func()) *holder {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweep()
	h := &holder{say: say, end: end, heard: l.now(), held: make(map[leaseKey]*lease)}
	l.holders[h] = struct{}{}
	return h
}

// identify notes of which site a client is. What an older holder of that site has
// is gone: the client has forgotten it.
func (l *leases) identify(h *holder, site kml.SiteID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for o := range l.holders {
		if o != h && o.site == site {
			l.forget(o)
			o.end()
		}
	}
	h.site = site
}

// forget takes all that a holder has. mu is held.
func (l *leases) forget(h *holder) {
	for _, x := range h.held {
		l.drop(x)
	}
	delete(l.holders, h)
}

// hear notes that a holder lives; false when it has been silent for too long or
// was replaced.
func (l *leases) hear(h *holder) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.holders[h]; !ok {
		return false
	}
	h.heard = l.now()
	return true
}

// silent reports that a holder has said nothing for too long.
func (l *leases) silent(h *holder) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now() > h.heard+l.length
}

// leave ends a holder. A connection that ends takes the names with it: the client
// is gone, or its end of the connection has ended too. The right to write ends at
// once when the client has said so, else with its time: whatever stands between the
// two may have cut one end before the other.
func (l *leases) leave(h *holder, now bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h.say = nil
	for key, x := range h.held {
		if now || key.kind == feed.LeaseNames {
			l.drop(x)
		}
	}
	if len(h.held) == 0 {
		l.forget(h)
	}
	l.sweep()
}

// sweep forgets clients that are gone and whose time is over. mu is held.
func (l *leases) sweep() {
	for o := range l.holders {
		if o.say == nil && l.now() > o.heard+l.length {
			l.forget(o)
		}
	}
}
