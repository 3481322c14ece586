package cachefs

import (
	"fmt"
	"syscall"
	"time"

	"github.com/mezzofs/mezzo/kml/local"
)

// SetAging changes how old a change is before it is sent.
func (c *Client) SetAging(d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("an age of %v: %w", d, syscall.EINVAL)
	}
	p := &c.push
	p.mu.Lock()
	p.aging = d
	p.mu.Unlock()
	p.wake()
	return nil
}

// young reports whether a change is too new to be sent. What comes behind it
// waits too. The caller holds mu.
func (p *pusher) young(e *local.Entry) bool {
	return p.aging > 0 && e.ID > p.upTo && e.Seq() == 0 && e.Rec().Time > p.ripe && p.since(e) >= 0
}

// since is how old a change is; below 0 when the clock was set back since it was
// made: it does not wait for the clock. The caller holds mu.
func (p *pusher) since(e *local.Entry) time.Duration {
	return p.now().Sub(time.Unix(0, e.Rec().Time))
}

// slack is how much older than they have to be changes get, so that what they
// can do without is not looked for with every one of them.
func slack(aging time.Duration) time.Duration { return max(aging/4, 50*time.Millisecond) }

// age lets the changes go that are old enough, without those that cancelled each
// other until now. The caller has the turn.
func (c *Client) age() error {
	p := &c.push
	p.mu.Lock()
	if p.aging == 0 || c.alarm() {
		p.mu.Unlock()
		return nil
	}
	p.ripe = p.now().Add(-p.aging).UnixNano()
	p.mu.Unlock()
	return c.trim()
}

// alarm sees to it that changes which are too young are looked at when they are
// old enough; false when there are some that need not wait, or none. The caller
// holds push.mu.
func (c *Client) alarm() bool {
	p := &c.push
	first := c.firstUnsent()
	if p.aging == 0 || first == nil {
		return false
	}
	is := p.since(first)
	left := p.aging + slack(p.aging) - is
	if is < 0 || left <= 0 || first.ID <= p.upTo {
		return false
	}
	if p.due != nil {
		p.due.Stop()
	}
	p.due = time.AfterFunc(left, p.wake)
	return true
}

// firstUnsent is the first change that the link has not been sent, or nil. The
// caller holds push.mu.
func (c *Client) firstUnsent() *local.Entry {
	for at := c.push.at; ; {
		es := c.cache.Local().From(at, 64)
		if len(es) == 0 {
			return nil
		}
		for _, e := range es {
			if e.Seq() == 0 && e.Back() == 0 {
				return e
			}
			at = e.ID
		}
	}
}

// hurry has all changes so far sent now.
func (c *Client) hurry() {
	p := &c.push
	p.mu.Lock()
	p.upTo = max(p.upTo, c.cache.Local().Last())
	p.mu.Unlock()
	p.wake()
}
