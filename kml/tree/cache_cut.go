package tree

import (
	"errors"
	"time"
)

// CutAll cuts the stores of everything that is open-dirty.
func (c *Cache) CutAll() error {
	var errs []error
	for _, o := range c.objects.dirtyList() {
		_, err := c.cut(o)
		errs = append(errs, err)
		c.objects.release(o)
	}
	return errors.Join(errs...)
}

// OpenDirty counts the objects that were written to since their last store.
func (c *Cache) OpenDirty() int {
	list := c.objects.dirtyList()
	for _, o := range list {
		c.objects.release(o)
	}
	return len(list)
}

func (c *Cache) kickCutter() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// cutLoop cuts the stores of files that stay open. It sleeps while nothing is
// open-dirty.
func (c *Cache) cutLoop() {
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.kick:
		}
		for wait := c.cutDue(); wait > 0; wait = c.cutDue() {
			select {
			case <-c.ctx.Done():
				return
			case <-time.After(wait):
			}
		}
	}
}

// cutDue cuts what is due and says when to look again; 0 when nothing is
// open-dirty.
func (c *Cache) cutDue() time.Duration {
	now := c.opt.Now().UnixNano()
	wait := time.Duration(0)
	for _, o := range c.objects.dirtyList() {
		o.mu.RLock()
		last := o.last.Load()
		if last == 0 { // its store was cut since; a write that comes now is no older
			o.mu.RUnlock()
			c.objects.release(o)
			continue
		}
		idle := time.Duration(last + int64(c.opt.StoreIdle) - now)
		busy := time.Duration(o.first + int64(c.opt.StoreBusy) - now)
		o.mu.RUnlock()
		due := min(idle, busy)
		if due <= 0 {
			if _, err := c.cut(o); err != nil {
				c.logger.Warn("store not cut; it is tried again", "oid", o.oid, "err", err)
				due = c.opt.StoreIdle
			}
		}
		if due > 0 && (wait == 0 || due < wait) {
			wait = due
		}
		c.objects.release(o)
	}
	return wait
}
