package tree

import (
	"time"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// retainEvery is how often the log's end is looked at.
const retainEvery = 10 * time.Second

// retainLoop drops what the log need not keep any longer, at once and now and
// then.
func (t *Tree) retainLoop() {
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	for {
		if n, err := t.retain(); err != nil && t.ctx.Err() == nil {
			t.logger.Warn("old segments of the log not dropped; it is tried again", "fileset", t.dir, "err", err)
		} else if n > 0 {
			t.logger.Info("old segments of the log dropped", "fileset", t.dir, "segments", n, "position", t.log.Start().String())
		}
		select {
		case <-t.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// retain drops the segments that are due, once the index's file is past them: it
// could not be brought up to date without them.
func (t *Tree) retain() (segments int, err error) {
	return t.log.Retain(t.opt.RetainSize, t.opt.RetainAge, func(kml.Position) error {
		err := t.index.Flush()
		fault.Point("tree.retain.flushed")
		return err
	})
}

// beforeFlush keeps the index's file from getting ahead of what is durable where
// the log has lost its beginning. Ahead of it, a crash of the machine leaves an
// index that has to be made again from the whole log.
func (t *Tree) beforeFlush(p kml.Position) error {
	if !t.serving.Load() || t.log.Start() == 0 || p <= t.log.Durable() {
		return nil
	}
	return t.commit(t.ctx)
}
