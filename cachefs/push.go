package cachefs

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/zeebo/blake3"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/local"
	"github.com/mezzofs/mezzo/kml/tree"
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
	upping map[uint64]*upload  // large contents that are made ready
	slots  chan struct{}       // one for each of them that is worked on
	moved  chan struct{}       // closed when a change goes a step on
	batch  uint64
	aging  time.Duration
	now    func() time.Time
	ripe   int64             // changes made until then are sent; nanoseconds since 1970
	upTo   uint64            // changes up to this ID are sent however young they are
	due    *time.Timer       // wakes when the next is old enough
	aside  map[*sending]bool // conflicts that wait: true while something is brought for them
	stuck  []*sending        // conflicts that nobody waits for, to be settled
}

// sending is how far a change has got. Its fields are guarded by pusher.mu.
type sending struct {
	e       *local.Entry
	waited  int       // how many wait for the outcome
	on      *upstream // the link it was sent on, and not answered yet
	staged  *upstream // the link its contents were uploaded on
	digest  []byte    // of large contents, before it is frozen
	began   time.Time // when they began to be made ready, on whichever link
	later   later     // refused: when it is tried again
	decided bool
	out     feed.Outcome
	settles int // how often a conflict of it was settled
}

// waiting says which changes the master refuses, by name, and why.
func (c *Client) waiting() []Note {
	type refusal struct {
		r *kml.Record
		l later
	}
	p := &c.push
	p.mu.Lock()
	var list []refusal
	for _, s := range p.st {
		if s.later.errno != 0 && !s.decided && s.e != nil {
			list = append(list, refusal{s.e.Rec(), s.later})
		}
	}
	p.mu.Unlock()
	slices.SortFunc(list, func(a, b refusal) int { return cmp.Compare(a.r.Time, b.r.Time) })
	var ns []Note
	for _, x := range list[:min(len(list), maxNotes)] {
		ns = append(ns, Note{time.Unix(0, x.r.Time), fmt.Sprintf("%v %q: %v: %s", x.r.Op, c.pathOf(x.r), x.l.errno, x.l.reason)})
	}
	return ns
}

// pathOf is where a change was made, as far as that is known: what it makes,
// removes or moves, or one of the names of its object.
func (c *Client) pathOf(r *kml.Record) string {
	at := tree.Name{Parent: r.Parent, Name: r.Name}
	if r.Op == kml.OpSetxattr || r.Op == kml.OpRemovexattr || r.Parent == 0 {
		names := c.cache.Names(r.OID)
		if len(names) == 0 {
			return "object " + r.OID.String()
		}
		at = names[0]
	}
	path := "/" + at.Name
	for range 256 {
		if at.Parent == kml.RootOID {
			break
		}
		obj, err := c.cache.Object(at.Parent)
		if err != nil || obj.Parent == 0 {
			return "..." + path
		}
		at.Parent, path = obj.Parent, "/"+obj.Name+path
	}
	return path
}

func (p *pusher) init() {
	p.kick = make(chan struct{}, 1)
	p.st = make(map[uint64]*sending)
	p.again = make(map[uint64]bool)
	p.upping = make(map[uint64]*upload)
	p.aside = make(map[*sending]bool)
	p.slots = make(chan struct{}, uploadFiles)
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
		if up := c.current(); up.sends() && c.past(up) {
			c.pushOnce(up)
		}
	}
}

// past reports whether the cache has followed to where changes may be sent.
func (c *Client) past(up *upstream) bool {
	at, _ := c.cache.Cursor()
	return at >= kml.Position(up.after.Load())
}

func (c *Client) pushOnce(up *upstream) {
	c.push.turn.Lock()
	defer c.push.turn.Unlock()
	if err := c.optimize(up); err != nil {
		c.giveUp(up, err)
		return
	}
	if err := c.age(); err != nil {
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
			c.push.mu.Lock()
			c.alarm()
			c.push.mu.Unlock()
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

// Bounds of a batch, in records and bytes, and how many may be on their way. On
// a slow link it is what goes in about a second.
const (
	maxBatch      = 128
	maxBatchBytes = 512 << 10
	maxInFlight   = 4
)

// freeze gives changes their numbers. The digest of contents goes with them;
// small ones are read for it once, and kept in small until they are sent.
func (c *Client) freeze(batch []*sending, small map[uint64][]byte) error {
	site := c.cache.State().Fileset().Site
	var es []*local.Entry
	sums := make(map[uint64][]byte)
	for _, s := range batch {
		if s.e.Seq() != 0 {
			continue
		}
		es = append(es, s.e)
		if s.digest != nil {
			sums[s.e.ID] = s.digest
		}
	}
	if len(es) == 0 {
		return nil
	}
	return c.cache.Local().Freeze(site, es, func(e *local.Entry, r *kml.Record) error {
		if !e.Data {
			return nil
		}
		if !inline(r) {
			r.Digest = sums[e.ID]
			return nil
		}
		b, err := os.ReadFile(c.cache.Local().Path(e.ID))
		if err != nil {
			return err
		}
		small[e.ID] = b
		sum := blake3.Sum256(b)
		r.Digest = sum[:]
		return nil
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

// send freezes a batch, and sends its records with their small contents.
// Outcomes come to receive.
func (c *Client) send(up *upstream, batch []*sending) error {
	if batch = c.ahead(up, batch, (*sending).unread); len(batch) == 0 {
		return nil
	}
	small := make(map[uint64][]byte)
	if err := c.freeze(batch, small); err != nil {
		return fmt.Errorf("freezing: %w", err)
	}
	if batch = c.ahead(up, batch, func(s *sending) bool { return s.unsent(up) }); len(batch) == 0 {
		return nil
	}
	fault.Point("push.staged")
	p := &c.push
	p.mu.Lock()
	p.batch++
	id := p.batch
	for _, s := range batch {
		s.on = up
	}
	up.inFlight++
	p.mu.Unlock()
	b, err := c.frames(id, batch, small)
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

// frames is a batch as it is sent.
func (c *Client) frames(id uint64, batch []*sending, small map[uint64][]byte) (b []byte, err error) {
	raws := make([][]byte, len(batch))
	for i, s := range batch {
		r, raw := s.e.Now()
		raws[i] = raw
		if !s.e.Data || !inline(r) {
			continue
		}
		data, ok := small[s.e.ID]
		if !ok { // frozen before
			data, err = os.ReadFile(c.cache.Local().Path(s.e.ID))
			if errors.Is(err, os.ErrNotExist) {
				continue // came back before, and is asked for again: the master knows it
			}
			if err != nil {
				return nil, fmt.Errorf("contents that wait to be sent: %w", err)
			}
		}
		if b, err = feed.AppendContents(b, r.Origin.Seq, data); err != nil {
			return nil, err
		}
	}
	return feed.AppendBatch(b, id, raws...)
}
