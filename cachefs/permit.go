package cachefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml/feed"
)

// permits is the client's end of the master's permit on one link: what it asks,
// and what it was promised.
type permits struct {
	c    *Client
	up   *upstream
	f    linkFile
	in   int64 // offsets of the stream
	out  int64
	kick chan struct{} // there is something to write
	told chan struct{} // length is another

	mu    sync.Mutex
	tag   uint64
	waits map[uint64]*asked
	text  []byte        // to be written
	good  time.Duration // what was promised holds until then, on CLOCK_BOOTTIME
	// length is how long a promise holds.
	length time.Duration
	leaseTable
}

// asked is a request that is not answered.
type asked struct {
	sent  time.Duration
	key   leaseKey        // of AskTake
	at    bool            // AskAt
	reply chan feed.Reply // has room for the answer; nil: nobody waits
}

// boottime is CLOCK_BOOTTIME (clock_gettime(2)), which cannot fail on Linux. It
// goes on while the machine sleeps.
func boottime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return time.Duration(ts.Nano())
}

// openPermit opens the file by which locks and leases are asked for.
func (c *Client) openPermit(ctx context.Context, up *upstream) error {
	f, err := up.open(ctx, up.streams, unix.O_RDWR, "permit")
	if err != nil {
		return err
	}
	up.permits = &permits{c: c, up: up, f: f, kick: make(chan struct{}, 1), told: make(chan struct{}, 1), waits: make(map[uint64]*asked), leaseTable: newLeaseTable()}
	fs := c.cache.State().Fileset()
	up.permits.post(feed.Ask{Verb: feed.AskSite, Site: fs.Site, Key: fs.Key}, nil) // with what is asked first
	return nil
}

// serve writes, reads and keeps what was promised until the link ends.
func (p *permits) serve() {
	var wg sync.WaitGroup
	wg.Go(p.write)
	wg.Go(p.keep)
	wg.Go(func() { p.c.reclaim(p.up) })
	if err := p.read(); err != nil {
		p.c.giveUp(p.up, fmt.Errorf("permit: %w", err))
	}
	wg.Wait()
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	p.wg.Wait()
}

func (p *permits) write() {
	for {
		select {
		case <-p.kick:
		case <-p.up.ctx.Done():
			return
		}
		p.mu.Lock()
		b := p.text
		p.text = nil
		p.mu.Unlock()
		for len(b) > 0 {
			n, err := p.f.WriteAt(p.up.ctx, b, p.out)
			if errors.Is(err, syscall.EINTR) && p.up.ctx.Err() == nil {
				continue
			}
			if err == nil && n == 0 {
				err = syscall.EIO
			}
			if err != nil {
				p.c.giveUp(p.up, fmt.Errorf("permit: %w", err))
				return
			}
			p.out += int64(n)
			b = b[n:]
		}
	}
}

// read takes in what the master says until the link ends.
func (p *permits) read() error {
	buf, rest := make([]byte, 4<<10), []byte(nil)
	for {
		n, err := p.f.ReadOnce(p.up.ctx, buf, p.in)
		if errors.Is(err, syscall.EINTR) && p.up.ctx.Err() == nil {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return errStreamEnd
		}
		p.in += int64(n)
		rest = append(rest, buf[:n]...)
		for {
			line, after, whole := bytes.Cut(rest, []byte("\n"))
			if !whole {
				break
			}
			r, err := feed.ParseReply(string(line))
			if err != nil {
				return err
			}
			p.said(r)
			rest = after
		}
		if len(rest) > feed.MaxLine {
			return feed.ErrRequest
		}
	}
}

// said takes in one line.
func (p *permits) said(r feed.Reply) {
	if r.Tag == 0 {
		p.unasked(r)
		return
	}
	p.mu.Lock()
	a := p.waits[r.Tag]
	delete(p.waits, r.Tag)
	if a != nil && r.Say == feed.SayOK {
		p.good = max(p.good, a.sent+r.For)
		if p.length != r.For {
			p.length = r.For
			select {
			case p.told <- struct{}{}:
			default:
			}
		}
		if a.key.kind != "" {
			p.given(a.key, r.Pos)
		}
	}
	p.mu.Unlock()
	if a != nil && a.reply != nil {
		a.reply <- r // it has room for one
	}
}

// post asks without waiting for the answer.
func (p *permits) post(q feed.Ask, reply chan feed.Reply) (tag uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.length == 0 && len(p.waits) == 0 && q.Verb != feed.AskAt && q.Verb != feed.AskSite {
		// How long promises hold is to be known before the first answer.
		p.text = append(p.text, p.next(feed.Ask{Verb: feed.AskAt}, nil).String()...)
	}
	q = p.next(q, reply)
	p.text = append(p.text, q.String()...)
	p.wake()
	return q.Tag
}

// next gives a request its tag. mu is held.
func (p *permits) next(q feed.Ask, reply chan feed.Reply) feed.Ask {
	p.tag++
	q.Tag = p.tag
	a := &asked{sent: boottime(), reply: reply, at: q.Verb == feed.AskAt}
	if q.Verb == feed.AskTake {
		a.key = leaseKey{q.Lease, q.OID}
	}
	p.waits[q.Tag] = a
	return q
}

func (p *permits) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// ask asks and waits for the answer: EHOSTDOWN when the link ends first. When ctx
// ends the master is told to wait no longer; it still answers.
func (p *permits) ask(ctx context.Context, q feed.Ask) (feed.Reply, error) {
	return p.await(ctx, q, make(chan feed.Reply, 1))
}

func (p *permits) await(ctx context.Context, q feed.Ask, reply chan feed.Reply) (feed.Reply, error) {
	tag := p.post(q, reply)
	done := ctx.Done()
	for {
		select {
		case r := <-reply:
			if r.Say == feed.SayNo {
				return r, r.Errno
			}
			return r, nil
		case <-p.up.ctx.Done():
			return feed.Reply{}, syscall.EHOSTDOWN
		case <-done:
			done = nil
			p.post(feed.Ask{Verb: feed.AskCancel, Of: tag}, nil)
		}
	}
}

// goodbye gives up what the client was promised, and comes back when the master has
// answered all that was asked, or ctx or the link ends.
func (u *upstream) goodbye(ctx context.Context) {
	if !u.sends() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	reply := make(chan feed.Reply, 1)
	u.permits.post(feed.Ask{Verb: feed.AskBye}, reply)
	select {
	case <-reply:
	case <-ctx.Done():
	case <-u.ctx.Done():
	}
}

// valid reports whether what was promised still holds. mu is held.
func (p *permits) valid() bool { return p.up.ctx.Err() == nil && boottime() < p.good }

// keep renews what was promised before it ends, and gives up what is not used.
func (p *permits) keep() {
	for {
		p.mu.Lock()
		wait := time.Second
		if p.length > 0 {
			wait = min(wait, p.length/8)
		}
		p.mu.Unlock()
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-p.told:
			t.Stop()
			continue
		case <-p.up.ctx.Done():
			t.Stop()
			return
		}
		p.freeIdle()
		p.mu.Lock()
		need := (len(p.held) > 0 || len(p.waits) > 0 || p.c.locks.any(p.up)) && boottime()+p.length*2/3 > p.good
		for _, a := range p.waits {
			need = need && !a.at // one at a time
		}
		p.mu.Unlock()
		if need {
			p.post(feed.Ask{Verb: feed.AskAt}, nil)
		}
	}
}
