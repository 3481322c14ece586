package cachefs

import (
	"context"
	"slices"
	"syscall"
	"time"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// submit sends a change that the caller waits for, and returns when it is
// visible here too, or with the master's no. With the link lost the outcome may
// never be known: EHOSTDOWN after Answer.
func (c *Client) submit(ctx context.Context, r *kml.Record) (feed.Outcome, error) {
	if _, err := c.online(ctx); err != nil {
		return feed.Outcome{}, err
	}
	e := &entry{rec: r, door: tree.DoorOf(ctx), waited: true}
	c.push.add(e)
	if err := c.await(ctx, func() (bool, <-chan struct{}) {
		select {
		case <-e.done:
			return true, nil
		default:
			return false, e.done
		}
	}); err != nil {
		return feed.Outcome{}, c.abandon(e, err)
	}
	c.push.mu.Lock()
	o := e.out
	c.push.mu.Unlock()
	if !applied(o) {
		return o, nil
	}
	return o, c.await(ctx, func() (bool, <-chan struct{}) {
		moved := c.cache.Moved()
		at, _ := c.cache.Cursor()
		return at >= o.Pos, moved
	})
}

// await waits until f says that it is done, asking again whenever f's channel
// closes. Without a link it waits for Answer at most.
func (c *Client) await(ctx context.Context, f func() (done bool, again <-chan struct{})) error {
	for {
		done, again := f()
		if done {
			return nil
		}
		_, up, changed := c.watchState()
		var late <-chan time.Time
		var t *time.Timer
		if up == nil {
			c.mu.Lock()
			left := c.o.Answer - c.o.Now().Sub(c.lost)
			c.mu.Unlock()
			if left <= 0 {
				return syscall.EHOSTDOWN
			}
			t = time.NewTimer(left)
			late = t.C
		}
		var err error
		select {
		case <-again:
		case <-changed:
		case <-late:
			err = syscall.EHOSTDOWN
		case <-ctx.Done():
			err = ctx.Err()
		case <-c.ctx.Done():
			err = syscall.ESHUTDOWN
		}
		if t != nil {
			t.Stop()
		}
		if err != nil {
			return err
		}
	}
}

// abandon notes that nobody waits for e any more. What has not been sent is not
// sent.
func (c *Client) abandon(e *entry, err error) error {
	p := &c.push
	p.mu.Lock()
	defer p.mu.Unlock()
	e.waited = false
	p.queue = slices.DeleteFunc(p.queue, func(q *entry) bool { return q == e })
	return err
}

// Settle is tree.Upstream's.
func (c *Client) Settle(ctx context.Context, s *tree.Store) error {
	p := &c.push
	synced := false
	for {
		p.mu.Lock()
		e, queued := p.find(s)
		moved := p.moved
		over := e == nil || e.decided && applied(e.out)
		var seq uint64
		var full later
		if e != nil && !queued {
			seq, full = e.seq, e.later
		}
		p.mu.Unlock()
		if over {
			return nil
		}
		if seq != 0 && !synced {
			synced = true
			if err := c.out.sync(seq); err != nil {
				return err
			}
		}
		if full.wait > 0 {
			return full.errno // kept here until the master has room
		}
		_, up, changed := c.watchState()
		if synced && up == nil {
			return nil // kept here until the master is back
		}
		select {
		case <-moved:
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-c.ctx.Done():
			return syscall.ESHUTDOWN
		}
	}
}

// find is a store's entry. The caller holds mu.
func (p *pusher) find(s *tree.Store) (e *entry, queued bool) {
	for _, e := range p.queue {
		if e.store == s {
			return e, true
		}
	}
	for _, e := range p.sent {
		if e.store == s {
			return e, false
		}
	}
	return nil, false
}

// drain waits until the master has decided on everything and what it took has
// come back.
func (c *Client) drain(ctx context.Context) error {
	p := &c.push
	for {
		cursor := c.cache.Moved()
		at, _ := c.cache.Cursor()
		p.mu.Lock()
		left := len(p.queue)
		for _, e := range p.sent {
			// What was refused is here until its bytes are in a safe place. What
			// turned out to change nothing has a position but does not come back.
			if !e.decided || !applied(e.out) || !e.returned && e.out.Pos > at {
				left++
			}
		}
		moved := p.moved
		p.mu.Unlock()
		if left == 0 {
			return nil
		}
		_, up, changed := c.watchState()
		if up == nil {
			return syscall.EHOSTDOWN
		}
		select {
		case <-moved:
		case <-cursor:
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-c.ctx.Done():
			return syscall.ESHUTDOWN
		}
	}
}
