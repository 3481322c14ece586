package cachefs

import (
	"github.com/mezzofs/mezzo/kml/local"
)

// window is how many changes are looked at in one go for what can be done
// without.
const window = 1 << 14

// optimize takes out of the local log, when a link begins, what the master need
// not hear of: what was made and removed again while it was away, and what was
// written over. The caller has the turn.
func (c *Client) optimize(up *upstream) error {
	p := &c.push
	p.mu.Lock()
	first := p.link != up
	p.mu.Unlock()
	if !first {
		return nil
	}
	return c.trim()
}

// trim takes out of the local log what can be done without.
func (c *Client) trim() error {
	if c.o.asIs {
		return nil
	}
	l := c.cache.Local()
	for id, gone := uint64(0), 0; ; {
		es := l.From(id, window)
		if len(es) == 0 {
			if gone > 0 {
				c.log.Info("changes that cancel each other are not sent", "changes", gone)
			}
			return nil
		}
		id = es[len(es)-1].ID
		n, err := c.cache.Optimize(es, c.push.waitedFor, c.keepMade)
		if err != nil {
			return err
		}
		gone += n
	}
}

// waitedFor reports whether somebody waits for the outcome of a change, or it has
// got further than the local log.
func (p *pusher) waitedFor(e *local.Entry) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.st[e.ID] != nil
}

// keepMade keeps changes as they were made, before they become others or go.
func (c *Client) keepMade(es []*local.Entry) {
	var b []byte
	for _, e := range es {
		b = madeLine(b, e.ID, e.Rec())
	}
	if err := c.made.keep(b); err != nil {
		c.log.Warn("changes that cancel each other are not shown any more", "err", err)
	}
}
