package cachefs

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/zeebo/blake3"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/local"
)

// pusher sends the local log, in order: a change is frozen, sent, decided by the
// master, comes back in the feed, is durable there, and is forgotten.
type pusher struct {
	kick chan struct{}
	// turn is held by who freezes, sends or settles changes: pushLoop, and run
	// between two links.
	turn sync.Mutex

	mu     sync.Mutex
	st     map[uint64]*sending // by ID; those that have got further than the local log
	again  map[uint64]bool     // to be looked at again, on this link
	at     uint64              // changes up to this ID were looked at, on this link
	link   *upstream           // that link
	upping map[uint64]*upload  // large uploads on their way
	moved  chan struct{}       // closed when a change goes a step on
	batch  uint64
	stuck  []*sending // conflicts that nobody waits for, to be settled
}

// sending is how far a change has got. Its fields are guarded by pusher.mu.
type sending struct {
	e       *local.Entry
	waited  int       // how many wait for the outcome
	on      *upstream // the link it was sent on, and not answered yet
	staged  *upstream // the link its contents were sent on
	later   later     // refused: when it is tried again
	decided bool
	out     feed.Outcome
	settles int // how often a conflict of it was settled
}

// waiting says which changes the master refuses, and why.
func (p *pusher) waiting() []Note {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ns []Note
	for _, s := range p.st {
		if s.later.errno == 0 || s.decided || s.e == nil {
			continue
		}
		r := s.e.Rec()
		ns = append(ns, Note{time.Unix(0, r.Time), fmt.Sprintf("%v %v %q: %v: %s", r.Op, r.OID, r.Name, s.later.errno, s.later.reason)})
		if len(ns) == maxNotes {
			break
		}
	}
	return ns
}

func (p *pusher) init() {
	p.kick = make(chan struct{}, 1)
	p.st = make(map[uint64]*sending)
	p.again = make(map[uint64]bool)
	p.upping = make(map[uint64]*upload)
	p.moved = make(chan struct{})
}

func (p *pusher) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// stepped wakes who waits for a change. The caller holds mu.
func (p *pusher) stepped() {
	close(p.moved)
	p.moved = make(chan struct{})
}

// of is how far a change has got. The caller holds mu.
func (p *pusher) of(e *local.Entry) *sending {
	s := p.st[e.ID]
	if s == nil {
		s = &sending{e: e}
		p.st[e.ID] = s
	}
	if s.e == nil {
		s.e = e
	}
	return s
}

// Changed is tree.Upstream's.
func (c *Client) Changed() { c.push.wake() }

// pushLoop sends what there is while there is a link.
func (c *Client) pushLoop() {
	for {
		select {
		case <-c.push.kick:
		case <-c.ctx.Done():
			return
		}
		if up := c.current(); up != nil {
			c.pushOnce(up)
		}
	}
}

func (c *Client) pushOnce(up *upstream) {
	c.push.turn.Lock()
	defer c.push.turn.Unlock()
	if err := c.optimize(up); err != nil {
		c.giveUp(up, err)
		return
	}
	for up.ctx.Err() == nil {
		if err := c.settleConflicts(up); err != nil {
			c.giveUp(up, fmt.Errorf("conflicts: %w", err))
			return
		}
		batch := c.push.gather(up, c.cache.Local(), c.topOf)
		if len(batch) == 0 {
			return
		}
		if err := c.send(up, batch); err != nil {
			c.giveUp(up, err)
			return
		}
	}
}

// giveUp ends a link on which changes could not be sent.
func (c *Client) giveUp(up *upstream, err error) {
	if up.ctx.Err() == nil {
		c.log.Warn("changes not sent; the link is given up", "addr", c.o.Addr, "err", err)
	}
	up.close()
}

// Bounds of a batch, in records and bytes, and how many may be on their way.
const (
	maxBatch      = 128
	maxBatchBytes = 512 << 10
	maxInFlight   = 4
)

// freeze gives changes their numbers. The digest of contents goes with them.
func (c *Client) freeze(batch []*sending) error {
	site := c.cache.State().Fileset().Site
	var es []*local.Entry
	for _, s := range batch {
		if s.e.Seq() == 0 {
			es = append(es, s.e)
		}
	}
	if len(es) == 0 {
		return nil
	}
	l := c.cache.Local()
	return l.Freeze(site, es, func(e *local.Entry, r *kml.Record) (err error) {
		if e.Data {
			r.Digest, err = digest(l.Path(e.ID))
		}
		return err
	})
}

func digest(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := blake3.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, 256<<10)); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

// send freezes a batch, sends its contents and then its records. Outcomes come
// to receive.
func (c *Client) send(up *upstream, batch []*sending) error {
	if err := c.freeze(batch); err != nil {
		return fmt.Errorf("freezing: %w", err)
	}
	fault.Point("push.staged")
	batch, err := c.uploads(up, batch)
	if err != nil || len(batch) == 0 {
		return err
	}
	p := &c.push
	raws := make([][]byte, len(batch))
	for i, s := range batch {
		_, raws[i] = s.e.Now()
	}
	p.mu.Lock()
	p.batch++
	id := p.batch
	for _, s := range batch {
		s.on = up
	}
	up.inFlight++
	p.mu.Unlock()
	b, err := feed.AppendBatch(nil, id, raws...)
	if err != nil {
		return err
	}
	select {
	case up.sent <- sentBatch{id, batch}:
	case <-up.ctx.Done():
		return up.ctx.Err()
	}
	fault.Point("push.send")
	if err := up.reint.write(up.ctx, b); err != nil {
		return err
	}
	fault.Point("push.sent")
	return nil
}
