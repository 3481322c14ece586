package cachefs

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/local"
	"github.com/mezzofs/mezzo/kml/tree"
)

// maxTries is how often a change is made anew because the tree had moved on.
const maxTries = 16

// change makes a change here. Where the tree is not what build saw, build is
// asked again. A nil record means that there is nothing to do.
//
// With exclusive, and while there is a link, the change is made only if the
// master agrees: programs exclude each other by it. A master that says that its
// tree is another one is caught up with, and build is asked again.
func (c *Client) change(ctx context.Context, exclusive bool, build func() (*kml.Record, error)) error {
	for range maxTries {
		r, err := build()
		if r == nil || err != nil {
			return err
		}
		switch up := c.current(); {
		case !up.sends() || !exclusive && !c.o.Sync:
			_, err = c.cache.Change(ctx, r, nil)
		case c.o.Sync:
			err = c.submit(ctx, r)
		default:
			err = c.claim(ctx, up, r)
		}
		if !errors.Is(err, tree.ErrMoved) {
			return err
		}
	}
	return syscall.EBUSY
}

// refusedError is the errno that the master answered with, and its reason.
type refusedError struct {
	errno  syscall.Errno
	reason string
}

func (e *refusedError) Error() string { return e.reason }
func (e *refusedError) Unwrap() error { return e.errno }

func refusal(o feed.Outcome) error {
	e := &refusedError{syscall.Errno(o.Errno), o.Reason}
	if e.errno == 0 {
		e.errno = syscall.EBUSY
	}
	return e
}

// submit makes a change and waits for the master's word. What the master does
// not take is undone. Without a link, from the beginning or from now on, the
// change is one like any other.
func (c *Client) submit(ctx context.Context, r *kml.Record) error {
	p := &c.push
	var s *sending
	e, err := c.cache.Change(ctx, r, func(id uint64) {
		p.mu.Lock()
		s = &sending{waited: 1}
		p.st[id] = s
		p.upTo = max(p.upTo, id)
		p.mu.Unlock()
	})
	if err != nil {
		if s != nil {
			p.drop(s)
		}
		return err
	}
	err = c.outcome(ctx, e, s)
	p.mu.Lock()
	s.waited--
	no := s.decided && !applied(s.out)
	out := s.out
	p.mu.Unlock()
	defer p.wake() // conflicts may have waited for it
	if !no {
		if err == nil && out.Pos != 0 {
			tree.CaughtUp(ctx)
			err = c.reached(ctx, out.Pos)
		}
		return err
	}
	return c.takeBack(ctx, e, out)
}

// reached waits until the client is where the master was when it decided. Without a
// link there is nothing to wait for.
func (c *Client) reached(ctx context.Context, pos kml.Position) error {
	err := c.reach(ctx, pos)
	if errors.Is(err, syscall.EHOSTDOWN) {
		return nil
	}
	return err
}

// drop forgets a change that was not made.
func (p *pusher) drop(s *sending) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, x := range p.st {
		if x == s {
			delete(p.st, id)
		}
	}
}

// outcome waits until a change is decided, or the link is lost.
func (c *Client) outcome(ctx context.Context, e *local.Entry, s *sending) error {
	p := &c.push
	for {
		p.mu.Lock()
		over, moved := s.decided, p.moved
		p.mu.Unlock()
		if over || e.Back() != 0 {
			return nil
		}
		_, up, changed := c.watchState()
		if !up.sends() {
			return nil
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

// takeBack undoes a change that the master did not take. ErrMoved when its tree
// is another one than this client saw, which has been caught up with.
func (c *Client) takeBack(ctx context.Context, e *local.Entry, o feed.Outcome) error {
	if o.Status == feed.Conflict {
		// Shown until the reason is, so that nobody sees the name free in between.
		if err := c.reach(ctx, o.Pos); err != nil {
			return errors.Join(err, c.undo(e))
		}
	}
	if err := c.undo(e); err != nil {
		return err
	}
	if o.Status == feed.Conflict {
		return fmt.Errorf("%w: %w", tree.ErrMoved, refusal(o))
	}
	return refusal(o)
}

// undo takes changes back.
func (c *Client) undo(es ...*local.Entry) error {
	err := c.cache.Undo(kml.Base{}, es...)
	c.forget(kml.Base{}, es...)
	return err
}

// Settle is tree.Upstream's.
func (c *Client) Settle(ctx context.Context, e *local.Entry) error {
	p := &c.push
	if err := c.cache.Local().Sync(); err != nil {
		return err
	}
	p.mu.Lock()
	p.upTo = max(p.upTo, e.ID)
	if e.Back() == 0 && !e.Gone() {
		p.of(e) // it does not become a part of a later one
	}
	p.mu.Unlock()
	p.wake()
	for {
		p.mu.Lock()
		moved := p.moved
		s := p.st[e.ID]
		over := s != nil && s.decided && applied(s.out)
		var l later
		if s != nil {
			l = s.later
		}
		p.mu.Unlock()
		if over || e.Back() != 0 || e.Gone() {
			return nil
		}
		if l.errno != 0 {
			return l.errno // kept here until the master takes it
		}
		_, up, changed := c.watchState()
		if !up.sends() {
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

// drain waits until the master has decided on everything and what it took has
// come back. The errno of what it refuses, when nothing else is left.
func (c *Client) drain(ctx context.Context) error {
	p := &c.push
	c.hurry()
	for at := uint64(0); ; {
		cursor := c.cache.Moved()
		p.mu.Lock()
		moved := p.moved
		p.mu.Unlock()
		next, refused := c.unsettled(at)
		if next == nil {
			return refused
		}
		at = next.ID - 1
		if refused != nil {
			at = 0
		}
		_, up, changed := c.watchState()
		if !up.sends() {
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

// unsettled is the first change behind an ID that is on its way to the master.
// Those that it refuses are not; refused says why the first of them was.
func (c *Client) unsettled(id uint64) (first *local.Entry, refused error) {
	p := &c.push
	for {
		es := c.cache.Local().From(id, 1024)
		if len(es) == 0 {
			return nil, refused
		}
		p.mu.Lock()
		for _, e := range es {
			id = e.ID
			if e.Back() != 0 || e.Gone() {
				continue
			}
			if s := p.st[e.ID]; s != nil && s.later.errno != 0 {
				if refused == nil {
					refused = &refusedError{s.later.errno, s.later.reason}
				}
				continue
			}
			if refused != nil && p.again[e.ID] {
				continue // it depends on what is refused
			}
			p.mu.Unlock()
			return e, refused
		}
		p.mu.Unlock()
	}
}
