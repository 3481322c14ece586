package cachefs

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// State is how a client stands to its master.
type State uint8

// The states.
const (
	Disconnected State = iota // no link: what is present works
	CatchingUp                // linked, and behind what the master had when the link began
	Connected                 // follows; everything cached is current
	Offline                   // no link, because somebody said so
)

// String is the state in words.
func (s State) String() string {
	switch s {
	case CatchingUp:
		return "catching up"
	case Connected:
		return "connected"
	case Offline:
		return "offline"
	}
	return "disconnected"
}

// State is the present state.
func (c *Client) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// set changes the state and wakes who waits for a change. The caller holds mu.
func (c *Client) set(s State, up *upstream) {
	c.state, c.up = s, up
	close(c.changed)
	c.changed = make(chan struct{})
}

// connected takes a link up; false when there is to be none.
func (c *Client) connected(up *upstream) bool {
	c.mu.Lock()
	if c.forced {
		c.mu.Unlock()
		return false
	}
	at, _ := c.cache.Cursor()
	s := CatchingUp
	if at >= up.greet.End {
		s = Connected
	}
	c.set(s, up)
	c.why, c.heard = nil, c.o.Now()
	c.end, c.durable = up.greet.End, up.greet.Durable
	c.mu.Unlock()
	c.log.Info("connected to the master", "addr", c.o.Addr, "fileset", up.greet.Fileset, "site", up.welcome.Site, "state", s)
	c.push.wake()
	return true
}

// current is the link, nil while there is none.
func (c *Client) current() *upstream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up
}

func (c *Client) watchState() (State, *upstream, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state, c.up, c.changed
}

// online is the link. Just after a loss it waits for the next one, with
// Options.Hard as long as it takes; EHOSTDOWN when that does not come.
func (c *Client) online(ctx context.Context) (*upstream, error) {
	for {
		c.mu.Lock()
		up, changed, lost, forced := c.up, c.changed, c.lost, c.forced
		c.mu.Unlock()
		if up != nil {
			return up, nil
		}
		left := c.o.Grace - c.o.Now().Sub(lost)
		switch {
		case forced:
			return nil, syscall.EHOSTDOWN
		case c.o.Hard:
			left = time.Hour // and again: what ends it is another
		case lost.IsZero() || left <= 0:
			return nil, syscall.EHOSTDOWN
		}
		t := time.NewTimer(left)
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		case <-c.ctx.Done():
			t.Stop()
			return nil, syscall.ESHUTDOWN
		}
		t.Stop()
	}
}

// run keeps the client connected until it is closed.
func (c *Client) run(up *upstream) {
	pause := time.Duration(0)
	for c.ctx.Err() == nil {
		if up == nil {
			if !c.sleep(pause) || !c.allowed() {
				return
			}
			var err error
			if up, err = c.connect(c.ctx); err != nil {
				c.mu.Lock()
				c.why = err
				c.mu.Unlock()
				c.log.Debug("no link to the master", "addr", c.o.Addr, "err", err)
				pause = min(max(2*pause, 50*time.Millisecond), c.o.Retry)
				continue
			}
			if !c.connected(up) {
				up.close()
				up = nil
				continue
			}
		}
		began := c.o.Now()
		got := make(chan struct{})
		go func() { // ends with up
			defer close(got)
			var wg sync.WaitGroup
			wg.Go(up.offers.run)
			c.receive(up)
			wg.Wait()
		}()
		err := c.follow(up)
		up.close()
		c.loseLocks(up)
		<-got
		c.mu.Lock()
		if c.forced {
			err = nil
		} else {
			c.set(Disconnected, nil)
		}
		c.lost, c.why = c.o.Now(), err
		c.mu.Unlock()
		c.flush() // there may be nobody to ask for a long time
		if c.ctx.Err() == nil && err != nil {
			c.log.Warn("link to the master lost", "addr", c.o.Addr, "err", err)
		}
		up = nil
		if c.o.Now().Sub(began) >= time.Second {
			pause = 0
		} else { // whatever ended it may end the next one
			pause = min(max(2*pause, 50*time.Millisecond), c.o.Retry)
		}
	}
}

// flush keeps what is known of the master's tree over a kill.
func (c *Client) flush() {
	if err := c.cache.Flush(); err != nil {
		c.log.Warn("what is known of the master's tree is not kept over a kill", "path", c.cache.Dir(), "err", err)
	}
}

// sleep waits about d; false when the client is closed.
func (c *Client) sleep(d time.Duration) bool {
	if d == 0 {
		return c.ctx.Err() == nil
	}
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.ctx.Done():
		return false
	}
}

// WaitState waits until f holds of the state.
func (c *Client) WaitState(ctx context.Context, f func(State) bool) error {
	for {
		s, _, changed := c.watchState()
		if f(s) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-c.ctx.Done():
			return syscall.ESHUTDOWN
		}
	}
}

// Sync cuts the stores of everything open-dirty, waits until the master has
// decided on all changes made here, and until this client is as current as the
// master was when that was done.
func (c *Client) Sync(ctx context.Context) error {
	if err := c.cache.CutAll(); err != nil {
		return err
	}
	c.push.retry()
	if err := c.drain(ctx); err != nil {
		return err
	}
	pos, err := c.position(ctx)
	if err != nil {
		return err
	}
	tree.CaughtUp(ctx)
	return c.reach(ctx, pos)
}

// reach waits for the follower, as long as there is a link.
func (c *Client) reach(ctx context.Context, pos kml.Position) error {
	for {
		_, up, _ := c.watchState()
		if up == nil {
			if at, _ := c.cache.Cursor(); at >= pos {
				return nil
			}
			return syscall.EHOSTDOWN
		}
		bound, stop := up.bind(ctx)
		err := c.cache.Reach(bound, pos)
		stop()
		if err == nil || ctx.Err() != nil || errors.Is(err, syscall.ESHUTDOWN) {
			return err
		}
		// The link is gone: the next one may bring the position.
		if _, err := c.online(ctx); err != nil {
			return err
		}
	}
}
