package cachefs

import (
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/local"
)

// sentBatch is a batch whose result has not come.
type sentBatch struct {
	id uint64
	of []*sending
}

// receive takes in the results of batches, in the order in which they were sent,
// until the link ends.
func (c *Client) receive(up *upstream) {
	if !up.sends() && !c.beginSending(up) {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(up.permits.serve)
	for {
		var b sentBatch
		select {
		case b = <-up.sent:
		case <-up.ctx.Done():
			return
		}
		if err := c.result(up, b); err != nil {
			c.giveUp(up, err)
			return
		}
		c.push.mu.Lock()
		up.inFlight--
		c.push.mu.Unlock()
		c.push.wake()
	}
}

func (c *Client) result(up *upstream, b sentBatch) error {
	m, err := up.reint.next(up.ctx)
	if err != nil {
		return err
	}
	res, ok := m.(*feed.Result)
	if !ok || res.ID != b.id || len(res.Outcomes) != len(b.of) {
		return unexpected(m, "a result")
	}
	for i, s := range b.of {
		if res.Outcomes[i].Seq != s.e.Seq() {
			return unexpected(m, "a result in order")
		}
		if err := c.decided(s, res.Outcomes[i]); err != nil {
			return err
		}
	}
	return c.silent()
}

func applied(o feed.Outcome) bool { return o.Status == feed.Applied || o.Status == feed.Duplicate }

// decided takes in the master's word on a change.
func (c *Client) decided(s *sending, o feed.Outcome) error {
	p := &c.push
	p.mu.Lock()
	defer p.mu.Unlock()
	s.on = nil
	if s.decided || s.e.Gone() {
		return nil
	}
	if applied(o) || s.waited > 0 {
		s.decided, s.out = true, o
		p.stepped()
		return nil
	}
	errno := syscall.Errno(o.Errno)
	if s.e.Data && o.Status == feed.Refused && errno == syscall.EBUSY {
		p.postpone(s, 200*time.Millisecond, 0) // a lost link's upload is still open there
		return nil
	}
	s.out = o
	inside := s.e.Rec().Op == kml.OpRename && (errno == syscall.EINVAL || errno == syscall.ELOOP) // a folder into itself, by now
	if o.Status == feed.Conflict || inside {
		s.decided = true // until it is settled
		p.stuck = append(p.stuck, s)
		p.stepped()
		return nil
	}
	if err := c.cache.Local().Thaw(s.e); err != nil {
		return err
	}
	c.refused(s, errno, o.Reason)
	return nil
}

// postpone has a change tried again after d. The caller holds mu.
func (p *pusher) postpone(s *sending, d time.Duration, errno syscall.Errno) {
	s.later = later{at: time.Now().Add(d), wait: d, errno: errno, reason: s.later.reason}
	s.on, s.staged = nil, nil
	p.again[s.e.ID] = true
	p.stepped()
	time.AfterFunc(d+time.Millisecond, p.wake)
}

// later is when a change that was refused is tried again.
type later struct {
	at     time.Time
	wait   time.Duration // before the last try
	errno  syscall.Errno
	reason string
}

// Waits between tries.
const (
	firstLater = 500 * time.Millisecond
	lastLater  = 30 * time.Second
)

// retry has what the master refused tried again now.
func (p *pusher) retry() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.st {
		s.later.at, s.later.errno = time.Time{}, 0
	}
	p.wake()
}

// refused puts a change off that the master refused for another reason than a
// conflict: it stays here, and others that do not depend on it overtake. The
// caller holds push.mu.
func (c *Client) refused(s *sending, errno syscall.Errno, reason string) {
	if s.later.errno != errno {
		c.log.Warn("a change was refused by the master; it is kept here and tried again", "addr", c.o.Addr, "op", s.e.Rec().Op, "oid", s.e.Rec().OID, "err", errno, "reason", reason)
	}
	s.later.reason = reason
	c.push.postpone(s, min(max(2*s.later.wait, firstLater), lastLater), errno)
}

// silent takes changes off the tree that the master found to change nothing:
// they do not come back.
func (c *Client) silent() error {
	at, _ := c.cache.Cursor()
	p := &c.push
	p.mu.Lock()
	var es []*sending
	for _, s := range p.st {
		if s.decided && applied(s.out) && s.e.Back() == 0 && s.out.Pos <= at {
			es = append(es, s)
		}
	}
	p.mu.Unlock()
	var errs []error
	for _, s := range es {
		errs = append(errs, c.cache.CameBack(s.e, s.out.Pos))
	}
	return errors.Join(errs...)
}

// returned notes that a change has come back: whatever became of its answer, it
// was applied.
func (c *Client) returned(e *local.Entry, pos kml.Position) {
	p := &c.push
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.of(e)
	s.decided, s.out = true, feed.Outcome{Seq: e.Seq(), Status: feed.Applied, Pos: pos}
	p.stepped()
}

// prune forgets what has come back and is durable, here and at the master.
func (c *Client) prune(durable kml.Position) {
	if err := c.silent(); err != nil {
		c.log.Warn("changes that changed nothing at the master are still shown", "err", err)
	}
	upTo := min(durable, c.cache.Flushed())
	var es []*local.Entry
	for _, e := range c.cache.Local().Entries() {
		if pos := e.Back(); pos != 0 && pos <= upTo {
			es = append(es, e)
		}
	}
	c.forget(kml.Base{}, es...)
	none := c.cache.Local().Len() == 0
	if none || len(es) > 0 {
		c.cache.TidyAttic()
	}
	if none {
		if err := c.made.forget(); err != nil {
			c.log.Warn("what was made here is shown longer than it has to be", "err", err)
		}
	}
}

// forget takes changes off the local log.
func (c *Client) forget(rebase kml.Base, es ...*local.Entry) {
	if len(es) == 0 {
		return
	}
	if err := c.cache.Local().Done(rebase, es...); err != nil {
		c.log.Warn("local log not cleared; its records are sent again and found to be done", "err", err)
	}
	p := &c.push
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range es {
		delete(p.st, e.ID)
		delete(p.again, e.ID)
	}
	p.stepped()
}
