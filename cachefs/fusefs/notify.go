package fusefs

import (
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// ring remembers the last objects that changed, so that a handler can see
// whether one changed under it.
type ring struct {
	mu   sync.Mutex
	seq  uint64
	last [1024]kml.OID
}

func (g *ring) add(oid kml.OID) {
	g.mu.Lock()
	g.last[g.seq%uint64(len(g.last))] = oid
	g.seq++
	g.mu.Unlock()
}

func (g *ring) now() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.seq
}

// changed reports whether oid may have changed since.
func (g *ring) changed(since uint64, oid kml.OID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.seq-since > uint64(len(g.last)) {
		return true
	}
	for i := since; i < g.seq; i++ {
		if g.last[i%uint64(len(g.last))] == oid {
			return true
		}
	}
	return false
}

// maxPending is how many names of one mount may wait for their notification
// before all entries are made to expire instead.
const maxPending = 1 << 16

// maxWorkers is how many workers may be in the kernel at once. Each may wait
// there for a lookup in flight.
const maxWorkers = 128

// work is what waits for one node: names in it (a folder), its attributes,
// its pages.
type work struct {
	names   map[string]struct{}
	attr    bool
	data    int32 // changes of contents
	node    *node // whose stale counts data
	all     bool  // it has lost track of names: expire every entry
	running bool
	naming  bool // notifications of names are under way
	tries   int  // notifications that found no inode
	// told are closed when what waits now has been told.
	told []chan struct{}
}

// queue takes changes to the kernel. add never blocks.
type queue struct {
	r *raw

	mu      sync.Mutex
	closed  bool
	work    map[uint64]*work // by node id
	pending int              // names in all of work
	max     int              // of pending
	epoch   atomic.Bool      // the kernel knows FUSE_NOTIFY_INC_EPOCH, as far as we know

	slots chan struct{} // limits the workers that talk to the kernel at once
	stop  chan struct{}
	wg    sync.WaitGroup // workers
}

func newQueue(r *raw) *queue {
	q := &queue{r: r, work: map[uint64]*work{}, max: maxPending, slots: make(chan struct{}, maxWorkers), stop: make(chan struct{})}
	q.epoch.Store(true)
	return q
}

// watch is called for every change of the tree. It takes locks only for
// moments and calls nothing.
func (q *queue) watch(c tree.Change) {
	r := q.r
	own := c.Door != 0 && c.Door == r.o.Door
	if !own {
		// Link counts and the folder's own attributes change with names.
		r.ring.add(c.OID)
		if c.Kind&tree.ChangeEntry != 0 {
			r.ring.add(c.Parent)
		}
	}
	n := r.nodes.current(c.OID)
	if c.Kind&tree.ChangeEntry != 0 {
		if p := r.nodes.current(c.Parent); p != nil && !own {
			q.addName(p.id, c.Name)
		} else if p != nil && n != nil && !c.Gone {
			r.nodes.name(n, p.id, c.Name)
		}
	}
	if n == nil {
		return
	}
	if c.Kind&tree.ChangeAttr != 0 {
		n.changes.Add(1)
		n.clean.Store(false)
		n.dir.Store(nil)
	}
	if !own {
		q.addInode(n, c.Kind&tree.ChangeData != 0)
	}
}

// addName queues a name whose entry in the kernel is to go; parent is a node id.
func (q *queue) addName(parent uint64, name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	w := q.get(parent)
	if w == nil {
		return
	}
	if _, ok := w.names[name]; !ok && !w.all {
		if q.pending >= q.max && q.epoch.Load() {
			q.pending -= len(w.names)
			w.names, w.all = nil, true
		} else {
			if w.names == nil {
				w.names = map[string]struct{}{}
			}
			w.names[name] = struct{}{}
			q.pending++
		}
	}
	q.run(parent, w)
}

// addAll makes every entry of the mount expire, on the account of a node.
func (q *queue) addAll(id uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w := q.get(id); w != nil {
		w.all = true
		q.run(id, w)
	}
}

// addInode queues the attributes of a node, and its pages.
func (q *queue) addInode(n *node, data bool) {
	if data {
		n.stale.Add(1)
	}
	q.addCounted(n, data)
}

// addMoved queues attributes and pages of a node whose stale counts that
// already.
func (q *queue) addMoved(n *node) { q.addCounted(n, true) }

func (q *queue) addCounted(n *node, data bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	w := q.get(n.id)
	if w == nil {
		return
	}
	w.attr = true
	if data && w.node != n { // a node that was forgotten has no pages
		w.node, w.data = n, 0
	}
	if data {
		w.data++
	}
	q.run(n.id, w)
}

func (q *queue) get(id uint64) *work {
	if q.closed {
		return nil
	}
	w := q.work[id]
	if w == nil {
		w = &work{}
		q.work[id] = w
	}
	return w
}

func (q *queue) run(id uint64, w *work) {
	if w.running {
		return
	}
	w.running = true
	q.wg.Add(1)
	go q.worker(id, w)
}

// close ends the workers. The connection is gone by then, so none waits in
// the kernel.
func (q *queue) close() {
	q.mu.Lock()
	if !q.closed {
		q.closed = true
		close(q.stop)
	}
	q.mu.Unlock()
	q.wg.Wait()
}

// worker does what waits for one node until nothing does.
func (q *queue) worker(id uint64, w *work) {
	defer q.wg.Done()
	for {
		q.mu.Lock()
		do := *w
		q.pending -= len(w.names)
		w.names, w.attr, w.data, w.node, w.all, w.told = nil, false, 0, nil, false, nil
		w.naming = len(do.names) > 0 || do.all
		if q.closed || len(do.names) == 0 && !do.attr && do.data == 0 && !do.all {
			w.running = false
			delete(q.work, id)
			q.mu.Unlock()
			do.tell()
			return
		}
		q.mu.Unlock()
		select {
		case q.slots <- struct{}{}:
		case <-q.stop:
			do.tell()
			continue
		}
		q.do(id, w, &do)
		do.tell()
		<-q.slots
	}
}

// tell tells those who wait for what was done.
func (w *work) tell() {
	for _, c := range w.told {
		close(c)
	}
	w.told = nil
}

// barrier comes back when the kernel has nothing older than what was queued when it
// was called. With all it waits for names too; else, since they could wait for the
// caller, their entries expire. A kernel that cannot do that still has them for a
// moment.
func (q *queue) barrier(c *call, all bool) {
	names := false
	// A node whose contents were replaced has its names queued only then.
	const rounds = 3
	for range rounds {
		wait, named := q.ask(all)
		names = names || named
		if len(wait) == 0 {
			break
		}
		for _, ch := range wait {
			select {
			case <-ch:
			case <-c.Done():
				return
			case <-q.stop:
				return
			}
		}
	}
	if names && q.epoch.Load() {
		q.expire()
	}
}

// ask has it told when what waits for objects, or with all, has been done. names:
// there are names that wait and were left out.
func (q *queue) ask(all bool) (wait []chan struct{}, names bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range q.work {
		if !all && (len(w.names) > 0 || w.naming || w.all) {
			names = true
			continue
		}
		ch := make(chan struct{})
		w.told = append(w.told, ch)
		wait = append(wait, ch)
	}
	return wait, names
}

// do sends the notifications for one node.
func (q *queue) do(id uint64, w, do *work) {
	if do.all {
		q.expire()
	}
	for name := range do.names {
		q.tell("entry", q.r.kernel.entry(id, name))
	}
	n := q.r.nodes.get(id)
	if n == nil {
		return // forgotten: nothing is cached
	}
	// After the entries: see the package comment on listings. A retired node's
	// pages are of the contents that it was left with.
	q.inode(n, w, do, len(do.names) > 0 || do.all || do.data > 0 && !q.r.settle(n))
	if do.node == n {
		n.stale.Add(-do.data)
	}
}

// drop takes from the kernel what it has of older contents of a node that is
// being opened, when that has not been done yet. It waits only for reads in
// flight.
func (q *queue) drop(n *node) {
	if n.stale.Load() != 0 && !q.r.nodes.isRetired(n) {
		q.tell("inode", q.r.kernel.inode(n.id, 0))
	}
}

// inode invalidates a node's attributes and ACLs, with data its pages too.
func (q *queue) inode(n *node, w, do *work, data bool) {
	off := int64(-1) // attributes only
	if data {
		off = 0
	}
	err := q.r.kernel.inode(n.id, off)
	if !errors.Is(err, unix.ENOENT) {
		w.tries = 0
		q.tell("inode", err)
		return
	}
	// The kernel has not read the reply that tells it of this node, or has
	// dropped the node and we have not read that. Either ends soon.
	if n.id == uint64(kml.RootOID) || q.r.nodes.get(n.id) == nil {
		return
	}
	do.tell() // the kernel has nothing
	wait := time.NewTimer(time.Millisecond << min(w.tries, 10))
	defer wait.Stop()
	w.tries++
	select {
	case <-wait.C:
	case <-q.stop:
		return
	}
	q.addInode(n, data)
}

// expire makes every entry of the mount expire.
func (q *queue) expire() {
	if err := q.r.kernel.expire(); err != nil {
		q.r.log.Warn("entries could not be made to expire at once", slog.Any("err", err))
	}
}

// probe finds out whether the kernel knows how to expire every entry.
func (q *queue) probe() {
	q.epoch.Store(q.r.kernel.expire() == nil)
}

// tell logs a notification the kernel refused for a reason of its own.
func (q *queue) tell(what string, err error) {
	if err == nil {
		return
	}
	for _, known := range []error{unix.ENOENT, unix.ENODEV, unix.ENOTDIR, unix.ENOTCONN, unix.EBADF} {
		if errors.Is(err, known) {
			return
		}
	}
	q.r.log.Debug("kernel refused a notification", slog.String("op", what), slog.Any("err", err))
}
