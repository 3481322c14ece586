package cachefs

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/conflict"
	"github.com/mezzofs/mezzo/kml/local"
	"github.com/mezzofs/mezzo/kml/tree"
)

const (
	// maxSettle is how often one change, and what stands in its place, is settled
	// before it is given up.
	maxSettle = 8
	// maxPasses is how often one pass is begun again because something was missing
	// or moved.
	maxPasses = 64
)

// errUndecided is a change that depends on one that is stuck, and that may be the
// master's already.
var errUndecided = errors.New("the master has not decided on all of it")

// settleConflicts decides what becomes of the changes that the master did not
// take because its tree is another one than they were made for, and of those that
// depend on them. It waits until the master has decided on everything that has a
// number, and until its tree is here as it was decided on. The caller has the turn.
func (c *Client) settleConflicts(up *upstream) error {
	p := &c.push
	p.mu.Lock()
	if up.inFlight > 0 || len(p.stuck)+len(p.aside) == 0 {
		p.mu.Unlock()
		return nil
	}
	for s, brings := range p.aside {
		if !brings {
			delete(p.aside, s)
			p.stuck = append(p.stuck, s)
		}
	}
	list := slices.Clone(p.stuck)
	var at kml.Position
	for _, s := range p.st {
		if s.decided {
			at = max(at, s.out.Pos)
		}
	}
	p.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	if err := c.cache.Reach(up.ctx, at); err != nil {
		return err
	}
	if err := c.silent(); err != nil {
		return err
	}
	err := c.settleAll(up, list)
	var n *needError
	switch {
	case errors.As(err, &n):
		c.setAsideUntil(up, list, n)
		return nil
	case errors.Is(err, errUndecided):
		p.setAside(list, false)
		return nil
	case err != nil:
		return err
	}
	p.mu.Lock()
	p.stuck = slices.DeleteFunc(p.stuck, func(s *sending) bool { return slices.Contains(list, s) })
	last := len(p.stuck) == 0 && len(p.aside) == 0
	p.mu.Unlock()
	if last {
		c.needs.clear()
	}
	return nil
}

// settleAll settles stuck changes and what depends on them, in one step.
func (c *Client) settleAll(up *upstream, list []*sending) error {
	absent := make(map[kml.OID]bool)
	for range maxPasses {
		seeds := stillOpen(list)
		if len(seeds) == 0 {
			return nil // undone meanwhile, or come back
		}
		if c.tooOften(seeds) {
			continue
		}
		s := &settling{c: c, ctx: up.ctx, seeds: seeds, absent: absent}
		if err := s.cut(); err != nil {
			return err
		}
		err := c.cache.Settle(s.run)
		var nl *tree.NotListedError
		switch {
		case err == nil:
			s.done()
			return nil
		case errors.As(err, &nl):
			if err := c.learn(up, nl, absent); err != nil {
				return err
			}
		case errors.Is(err, tree.ErrMoved):
		case errors.Is(err, tree.ErrNoRoom):
			for _, s := range seeds {
				if err := c.abandon(s.e, "there is no room for what is to stand in its place"); err != nil {
					return err
				}
			}
		default:
			return err
		}
	}
	return fmt.Errorf("the tree moves faster than conflicts can be settled: %w", syscall.EAGAIN)
}

// stillOpen are those of some changes that are not undone or come back, in order.
func stillOpen(list []*sending) (seeds []*sending) {
	for _, s := range list {
		if !s.e.Gone() && s.e.Back() == 0 {
			seeds = append(seeds, s)
		}
	}
	slices.SortFunc(seeds, func(a, b *sending) int { return cmp.Compare(a.e.ID, b.e.ID) })
	return seeds
}

// tooOften gives changes up that come back as conflicts whatever is done.
func (c *Client) tooOften(seeds []*sending) (some bool) {
	for _, s := range seeds {
		c.push.mu.Lock()
		often, why := s.settles > maxSettle, s.out.Reason
		c.push.mu.Unlock()
		if often {
			some = true
			if err := c.abandon(s.e, "it cannot be settled: "+why); err != nil {
				c.log.Warn("a change that cannot be settled is not given up", "oid", s.e.Rec().OID, "err", err)
				return false
			}
		}
	}
	return some
}

// learn brings what a pass has found missing.
func (c *Client) learn(up *upstream, nl *tree.NotListedError, absent map[kml.OID]bool) (err error) {
	if nl.Folder {
		err = c.List(up.ctx, nl.OID)
	} else {
		err = c.Find(up.ctx, nl.OID)
	}
	if errors.Is(err, syscall.ESTALE) {
		absent[nl.OID] = true
		return nil
	}
	return err
}

// setAsideUntil lets everything else go on while something is brought from the
// master, or versions are joined.
func (c *Client) setAsideUntil(up *upstream, list []*sending, n *needError) {
	p := &c.push
	p.setAside(list, true)
	c.later(func() {
		c.needs.bring(up, n)
		p.mu.Lock()
		for _, s := range list {
			if _, ok := p.aside[s]; ok {
				delete(p.aside, s)
				p.stuck = append(p.stuck, s)
			}
		}
		p.mu.Unlock()
		p.wake()
	})
}

// setAside lets everything else go on that does not depend on stuck changes:
// something is brought for them, or else they wait for what the master has not
// decided on.
func (p *pusher) setAside(list []*sending, brings bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range list {
		p.aside[s] = brings
		p.again[s.e.ID] = true
	}
	p.stuck = slices.DeleteFunc(p.stuck, func(s *sending) bool {
		_, ok := p.aside[s]
		return ok
	})
}

func isMaking(op kml.Op) bool {
	return op == kml.OpCreate || op == kml.OpMkdir || op == kml.OpSymlink || op == kml.OpMknod
}

// abandon gives a change up, says so, and keeps its bytes.
func (c *Client) abandon(e *local.Entry, why string) error {
	if err := c.keepRefused(e, why); err != nil {
		return err
	}
	return c.undo(e)
}

// describe names a change for a person.
func (c *Client) describe(e *local.Entry) string {
	r := e.Rec()
	if names := c.cache.Names(r.OID); len(names) > 0 {
		return fmt.Sprintf("%s of %q", r.Op, names[0].Name)
	}
	if r.Name != "" {
		return fmt.Sprintf("%s of %q", r.Op, r.Name)
	}
	return fmt.Sprintf("%s of object %v", r.Op, r.OID)
}

// clockSkew is by how much the master's clock differs from this host's, as far as
// it has been heard.
func (c *Client) clockSkew() (skew time.Duration, known bool) {
	v := c.skew.Load()
	if v == nil {
		return 0, false
	}
	return *v, true
}

// Joins is tree.Upstream's.
func (c *Client) Joins(oid kml.OID) bool {
	p := c.Policies()
	if len(p.Rules()) == 0 {
		return false
	}
	path, ok := c.pathTo(oid)
	k := p.For(path).Kind
	return ok && (k == conflict.Append || k == conflict.Exec)
}

// pathTo is where an object is, from the root.
func (c *Client) pathTo(oid kml.OID) (path string, ok bool) {
	for range 4096 {
		obj, err := c.cache.Object(oid)
		if err != nil || obj.Parent == 0 {
			return "", false
		}
		path = obj.Name + path
		if oid = obj.Parent; oid == kml.RootOID {
			return path, true
		}
		path = "/" + path
	}
	return "", false
}

const (
	modeType = unix.S_IFMT
	modeReg  = unix.S_IFREG
)
