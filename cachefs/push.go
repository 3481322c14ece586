package cachefs

import (
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/zeebo/blake3"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// pusher sends this host's changes, in order: queued, then frozen, then sent,
// then decided by the master, then back in the feed and durable, and forgotten.
type pusher struct {
	kick chan struct{}
	// turn is held by who freezes, sends or settles entries: pushLoop, and run
	// between two links.
	turn sync.Mutex

	mu    sync.Mutex
	queue []*entry // not frozen
	sent  []*entry // frozen, by number
	first int      // of sent: those before it are decided
	seqs  map[uint64]*entry
	moved chan struct{} // closed when an entry goes a step on
	batch uint64
}

// entry is one change on its way.
type entry struct {
	rec   *kml.Record
	store *tree.Store // a store's
	path  string      // its bytes, until it is frozen
	after *entry      // the record that its base is, when that has no number yet
	door  tree.Door
	names []tree.Name // where a store's object is

	raw  []byte
	done chan struct{} // closed when decided

	// Guarded by pusher.mu.
	seq      uint64
	waited   bool // somebody waits for the outcome
	keep     bool // to be sent though nobody waits
	on       *upstream
	later    later // the master had no room for it
	decided  bool
	returned bool // it has come back in the feed
	out      feed.Outcome
}

func (p *pusher) init() {
	p.kick = make(chan struct{}, 1)
	p.seqs = make(map[uint64]*entry)
	p.moved = make(chan struct{})
}

func (p *pusher) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// stepped wakes who waits for an entry. The caller holds mu.
func (p *pusher) stepped() {
	close(p.moved)
	p.moved = make(chan struct{})
}

func (p *pusher) add(e *entry) {
	e.done = make(chan struct{})
	p.mu.Lock()
	p.queue = append(p.queue, e)
	p.mu.Unlock()
	p.wake()
}

// Queue is tree.Upstream's.
func (c *Client) Queue(s *tree.Store) {
	c.push.add(&entry{rec: s.Record, store: s, path: s.Path, door: s.Door, names: s.Names, keep: true})
}

// restore takes up what the last run left in the outbox.
func (c *Client) restore() {
	p := &c.push
	for _, f := range c.out.pending() {
		e := &entry{rec: f.rec, raw: f.raw, seq: f.rec.Origin.Seq, keep: f.rec.Op == kml.OpStore || f.rec.Flags&kml.FlagConflict != 0,
			done: make(chan struct{})}
		if pos, ok := c.cache.Origin(f.rec.Origin); ok {
			e.decided, e.returned, e.out = true, true, feed.Outcome{Seq: e.seq, Status: feed.Applied, Pos: pos}
			close(e.done)
		} else if f.rec.Op == kml.OpStore {
			e.store = c.cache.Taken(f.rec)
			e.names = e.store.Names
		}
		p.sent = append(p.sent, e)
		p.seqs[e.seq] = e
	}
}

// mine is the entry of an own record that comes back; nil when it is not known
// here.
func (p *pusher) mine(o kml.Origin, site kml.SiteID) *entry {
	if o.Site != site || site == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seqs[o.Seq]
}

// returned notes that a record has come back: whatever became of its answer,
// it was applied.
func (p *pusher) returned(e *entry, pos kml.Position) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.returned = true
	if !e.decided {
		e.decided, e.out = true, feed.Outcome{Seq: e.seq, Status: feed.Applied, Pos: pos}
		close(e.done)
	}
	e.out.Pos = pos
	p.stepped()
}

// pushLoop freezes what is queued and sends it while there is a link.
func (c *Client) pushLoop() {
	for {
		select {
		case <-c.push.kick:
		case <-c.ctx.Done():
			return
		}
		c.pushOnce()
	}
}

func (c *Client) pushOnce() {
	c.push.turn.Lock()
	defer c.push.turn.Unlock()
	if err := c.freezeAll(); err != nil {
		c.log.Error("changes cannot be kept in the outbox; they are tried again", "path", c.out.dir, "err", err)
		time.AfterFunc(time.Second, c.push.wake)
		return
	}
	if up := c.current(); up != nil {
		c.sendAll(up)
	}
}

// freezeAll gives what is queued its numbers and keeps it, in order.
func (c *Client) freezeAll() error {
	p := &c.push
	for {
		p.mu.Lock()
		q := slices.Clone(p.queue[:min(len(p.queue), maxBatch)])
		p.mu.Unlock()
		if len(q) == 0 {
			return nil
		}
		if err := c.freeze(q); err != nil {
			return err
		}
	}
}

// freeze numbers and keeps entries. A store's bytes are in the outbox before
// its record, and leave the dirty table after it.
func (c *Client) freeze(es []*entry) error {
	site := c.cache.State().Fileset().Site
	if site == 0 {
		return fmt.Errorf("not enrolled at a master: %w", syscall.EHOSTDOWN)
	}
	first := c.out.number(len(es))
	recs := make([]*kml.Record, len(es))
	for i, e := range es {
		seq := first + uint64(i)
		e.rec.Origin = kml.Origin{Site: site, Seq: seq}
		switch {
		case e.after != nil:
			e.rec.Base = kml.Base{Seq: e.after.seq}
		case e.store != nil && e.store.Prev != nil && e.store.Prev.Seq() != 0:
			e.rec.Base = kml.Base{Seq: e.store.Prev.Seq()}
		}
		if e.path != "" {
			sum, err := digest(e.path)
			if err != nil {
				return err
			}
			e.rec.Digest = sum
			if err := os.Rename(e.path, c.out.data(seq)); err != nil {
				return err
			}
			e.path = c.out.data(seq)
		}
		c.push.mu.Lock()
		e.seq = seq
		c.push.mu.Unlock()
		recs[i] = e.rec
	}
	fault.Point("push.staged")
	fs, err := c.out.freeze(recs)
	if err != nil {
		return err
	}
	for i, e := range es {
		e.raw = fs[i].raw
		if e.store != nil {
			c.cache.Frozen(e.store, e.seq)
		}
	}
	p := &c.push
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = slices.DeleteFunc(p.queue, func(e *entry) bool { return slices.Contains(es, e) })
	for _, e := range es {
		p.sent = append(p.sent, e)
		p.seqs[e.seq] = e
	}
	p.stepped()
	return nil
}

func digest(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := blake3.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, 1<<20)); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

// Bounds of a batch, in records and bytes.
const (
	maxBatch      = 64
	maxBatchBytes = 512 << 10
)

// next is the next batch for a link: what it has not been sent yet. Changes
// that nobody waits for any more are not sent: the one who asked was told that
// they did not happen.
func (p *pusher) next(up *upstream) (batch, dropped []*entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	size := 0
	for p.first < len(p.sent) && p.sent[p.first].decided {
		p.first++
	}
	held, now := map[kml.OID]bool{}, time.Now()
	for _, e := range p.sent[p.first:] {
		if e.decided || e.on == up {
			continue
		}
		if e.keep && (held[e.rec.OID] || now.Before(e.later.at)) {
			held[e.rec.OID] = true // later stores of it are made against this one
			continue
		}
		if !e.waited && !e.keep {
			dropped = append(dropped, e)
			continue
		}
		if size += len(e.raw); len(batch) == maxBatch || size > maxBatchBytes && len(batch) > 0 {
			break
		}
		batch = append(batch, e)
	}
	for _, e := range dropped {
		p.decideLocked(e, feed.Outcome{Seq: e.seq, Status: feed.Refused, Errno: uint32(syscall.EHOSTDOWN), Reason: "given up"})
	}
	return batch, dropped
}

func (p *pusher) decideLocked(e *entry, o feed.Outcome) {
	if e.decided {
		return
	}
	e.decided, e.out = true, o
	close(e.done)
	p.stepped()
}

func applied(o feed.Outcome) bool { return o.Status == feed.Applied || o.Status == feed.Duplicate }

// forget takes entries off the outbox.
func (c *Client) forget(es ...*entry) {
	if len(es) == 0 {
		return
	}
	seqs := make([]uint64, len(es))
	gone := make(map[*entry]bool, len(es))
	for i, e := range es {
		seqs[i], gone[e] = e.seq, true
	}
	if err := c.out.done(seqs...); err != nil {
		c.log.Warn("outbox not cleared; its records are sent again and found to be done", "path", c.out.dir, "err", err)
	}
	p := &c.push
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range es {
		delete(p.seqs, e.seq)
	}
	p.sent = slices.DeleteFunc(p.sent, func(e *entry) bool { return gone[e] })
	p.first = 0
	p.stepped()
}

// prune forgets what has come back and is durable at the master.
func (c *Client) prune(durable kml.Position) {
	at, _ := c.cache.Cursor()
	p := &c.push
	p.mu.Lock()
	var es []*entry
	for _, e := range p.sent {
		if e.decided && applied(e.out) && (e.returned || e.out.Pos <= at) && e.out.Pos <= durable {
			es = append(es, e)
		}
	}
	p.mu.Unlock()
	c.forget(es...)
}

// sendAll sends what a link has not been sent yet, a batch at a time.
func (c *Client) sendAll(up *upstream) {
	for up.ctx.Err() == nil {
		if err := c.freezeAll(); err != nil {
			time.AfterFunc(time.Second, c.push.wake)
		}
		batch, dropped := c.push.next(up)
		c.forget(dropped...)
		if len(batch) == 0 {
			return
		}
		again, err := c.send(up, batch)
		if err != nil {
			if up.ctx.Err() == nil {
				c.log.Warn("changes not sent; the link is given up", "addr", c.o.Addr, "err", err)
			}
			up.close()
			return
		}
		if again {
			time.AfterFunc(200*time.Millisecond, c.push.wake)
			return
		}
	}
}

// send sends one batch and takes in its outcomes. again is true when something
// has to be sent again a little later.
func (c *Client) send(up *upstream, batch []*entry) (again bool, err error) {
	p := &c.push
	p.mu.Lock()
	p.batch++
	id := p.batch
	for _, e := range batch {
		e.on = up
	}
	p.mu.Unlock()
	batch, err = c.uploads(up, batch)
	if err != nil || len(batch) == 0 {
		return false, err
	}
	raws := make([][]byte, len(batch))
	for i, e := range batch {
		raws[i] = e.raw
	}
	b, err := feed.AppendBatch(nil, id, raws...)
	if err != nil {
		return false, err
	}
	fault.Point("push.send")
	if err := up.reint.write(up.ctx, b); err != nil {
		return false, err
	}
	fault.Point("push.sent")
	m, err := up.reint.next(up.ctx)
	if err != nil {
		return false, err
	}
	res, ok := m.(*feed.Result)
	if !ok || res.ID != id || len(res.Outcomes) != len(batch) {
		return false, unexpected(m, "a result")
	}
	for i, e := range batch {
		if res.Outcomes[i].Seq != e.seq {
			return false, unexpected(m, "a result in order")
		}
		more, err := c.decided(e, res.Outcomes[i])
		if err != nil {
			return false, err
		}
		again = again || more
	}
	return again, nil
}

// decided takes in the master's word on an entry.
func (c *Client) decided(e *entry, o feed.Outcome) (again bool, err error) {
	p := &c.push
	p.mu.Lock()
	if e.store != nil && o.Status == feed.Refused && o.Errno == uint32(syscall.EBUSY) {
		e.on = nil // a lost link's upload is still open at the master
		p.mu.Unlock()
		return true, nil
	}
	if errno := syscall.Errno(o.Errno); e.store != nil && o.Status == feed.Refused && noRoom(errno) {
		p.mu.Unlock()
		c.noRoom(e, errno)
		return false, nil
	}
	was, waited := e.decided, e.waited
	p.decideLocked(e, o)
	p.mu.Unlock()
	if was || applied(o) {
		return false, nil
	}
	if e.keep {
		return false, c.refused(e, o)
	}
	if !waited {
		c.log.Info("a change that nobody waits for any more was refused", "op", e.rec.Op, "oid", e.rec.OID, "err", o.Reason)
	}
	c.forget(e)
	return false, nil
}
