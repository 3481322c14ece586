package client

import (
	"fmt"
	"time"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// monitor fails the connection when a server that owes an answer is silent.
func (c *Conn) monitor() {
	const quarters = 4
	tick := time.NewTicker(max(c.opts.Timeout/quarters, 1))
	defer tick.Stop()
	var last uint64
	quiet := 0
	for {
		select {
		case <-tick.C:
		case <-c.dead:
			return
		}
		c.mu.Lock()
		if c.heard != last || c.waiting == 0 && !c.probing {
			last, quiet = c.heard, 0
			c.mu.Unlock()
			continue
		}
		quiet++
		probe := quiet == quarters/2 && !c.probing
		if probe && c.err == nil {
			c.probing = true
			flush := wire.Tflush{OldTag: probeOld}
			c.out = flush.Append(c.out, probeTag)
		}
		c.mu.Unlock()
		if probe {
			c.wakeWriter()
		}
		if quiet >= quarters {
			c.fail(fmt.Errorf("%w in %v", ErrTimeout, c.opts.Timeout))
			return
		}
	}
}

// probed handles the answer to a probe; any answer is a sign of life.
func (c *Conn) probed(h wire.Header) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.probing || h.Type != wire.TypeRflush && h.Type != wire.TypeRlerror {
		return protocolError("%v has tag %d, which was not sent", h.Type, h.Tag)
	}
	c.probing = false
	return nil
}
