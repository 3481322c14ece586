package cachefs

import (
	"fmt"
	"time"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
)

// follow applies the master's records in order until the link ends, and says
// why it did. Silence for longer than Dead is an end.
func (c *Client) follow(up *upstream) error {
	var buf []byte
	quiet := make(chan struct{})
	defer func() { <-quiet }()
	defer up.close()
	silent := false
	go func() { // ends with up
		defer close(quiet)
		silent = up.silence(c.o.Dead)
	}()
	for {
		m, err := up.feed.next(up.ctx)
		if err != nil && up.ctx.Err() != nil {
			<-quiet
			if silent {
				return fmt.Errorf("nothing was heard for %v", c.o.Dead)
			}
		}
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *feed.Record:
			buf, err = c.apply(m.Record, buf)
		case *feed.RecordData:
			buf, err = c.apply(m.Record, buf)
		case *feed.Heartbeat:
			c.heartbeat(m)
		case *feed.Changing:
		case *feed.Damaged:
			up.offers.add(*m)
		case *feed.Failure:
			err = m
		default:
			err = unexpected(m, "a record")
		}
		if err != nil {
			return err
		}
		if up.after.Load() != 0 && c.past(up) {
			up.after.Store(0)
			c.push.wake()
		}
		c.caughtUp(up)
	}
}

// silence closes the link when no byte of the feed has come for d, and returns
// true, or waits until it ends otherwise. The bytes of a large answer on a slow
// link are no silence.
func (u *upstream) silence(d time.Duration) bool {
	const parts = 8
	t := time.NewTicker(max(d/parts, 1))
	defer t.Stop()
	last, quiet := u.streams.Heard(), 0
	for {
		select {
		case <-t.C:
		case <-u.ctx.Done():
			return false
		}
		now := u.streams.Heard()
		if quiet++; now != last {
			last, quiet = now, 0
		}
		if quiet >= parts {
			u.close()
			return true
		}
	}
}

// apply brings the cache over one record. The chain's CRC is this client's
// claim to have followed this very history.
func (c *Client) apply(r *kml.Record, buf []byte) ([]byte, error) {
	_, crc := c.cache.Cursor()
	buf, crc, err := kml.AppendRecord(buf[:0], r, crc)
	if err != nil {
		return buf, fmt.Errorf("record %v: %w", r.Pos, err)
	}
	own, err := c.cache.Apply(r, crc)
	if err != nil {
		return buf, err
	}
	if own != nil {
		c.returned(own, r.Pos)
	}
	if r.Op == kml.OpMark && r.Mark == kml.MarkPolicy {
		c.setPolicies(r.Value)
	}
	c.mu.Lock()
	c.end = max(c.end, r.Pos)
	c.heard = c.o.Now()
	c.mu.Unlock()
	return buf, nil
}

func (c *Client) heartbeat(h *feed.Heartbeat) {
	c.mu.Lock()
	c.end, c.durable, c.heard = max(c.end, h.End), h.Durable, c.o.Now()
	skew := c.heard.Sub(time.Unix(0, h.Time))
	c.skew.Store(&skew)
	c.mu.Unlock()
	c.prune(h.Durable)
}

// caughtUp notes that the client has what the master had when the link began.
func (c *Client) caughtUp(up *upstream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != CatchingUp || c.up != up {
		return
	}
	if at, _ := c.cache.Cursor(); at >= up.greet.End {
		c.set(Connected, up)
		c.log.Info("caught up with the master", "addr", c.o.Addr)
	}
}
