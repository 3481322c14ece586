package tree

import (
	"fmt"
	"math"
	"time"

	"github.com/google/renameio/v2"

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

// retain drops the segments that are due, once a checkpoint is past them: an
// index that is damaged could not be made again without them.
func (t *Tree) retain() (segments int, err error) {
	return t.retainTo(t.opt.RetainSize, t.opt.RetainAge)
}

// retainTo is retain for other bounds than the tree's own.
func (t *Tree) retainTo(size int64, age time.Duration) (segments int, err error) {
	t.keepMu.Lock()
	defer t.keepMu.Unlock()
	if err := t.checkpointDue(); err != nil {
		return 0, fmt.Errorf("checkpoint: %w", err)
	}
	return t.log.Retain(size, age, func(p kml.Position) error {
		if t.kept.cursor+1 < p {
			if err := t.checkpoint(); err != nil {
				return fmt.Errorf("checkpoint: %w", err)
			}
		}
		if at := t.kept.cursor; at+1 < p {
			return fmt.Errorf("the index is at %s, before what is to go", at)
		}
		fault.Point("tree.retain.flushed")
		return nil
	})
}

const (
	checkpointFile  = "checkpoint"
	checkpointEvery = 64 << 20 // bytes of log
)

// checkpointed is the checkpoint there is; all zero for none.
type checkpointed struct {
	cursor kml.Position
	size   int64
}

// findCheckpoint looks for a checkpoint at the start.
func (t *Tree) findCheckpoint() {
	of, size, err := readCheckpoint(t.state.Path(checkpointFile), false)
	if err == nil && t.reaches(of.cursor) {
		t.kept = checkpointed{of.cursor, size}
	}
}

// checkpointDue makes a checkpoint when the log has grown by more than the last
// one's size since, and by a segment's worth.
func (t *Tree) checkpointDue() error {
	every := t.opt.everyLog
	if every == 0 {
		every = checkpointEvery
	}
	var since int64
	for _, s := range t.log.Segments() {
		if s.After >= t.kept.cursor {
			since += s.Size
		}
	}
	if since < max(every, t.kept.size) || t.index.Flushed() <= t.kept.cursor {
		return nil
	}
	return t.checkpoint()
}

// checkpoint writes one, and reads it again before it counts.
func (t *Tree) checkpoint() error {
	start := time.Now()
	if err := t.index.Flush(); err != nil {
		return err
	}
	path := t.state.Path(checkpointFile)
	f, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o600))
	if err != nil {
		return err
	}
	defer f.Cleanup()
	of, size, err := t.index.dump(f, t.log.Fileset(), t.log.CRCAt)
	if err != nil {
		return err
	}
	if of.cursor > t.log.Durable() {
		return fmt.Errorf("the index is at %s, ahead of what is durable", of.cursor)
	}
	fault.Point("tree.checkpoint.written")
	if err := f.CloseAtomicallyReplace(); err != nil {
		return err
	}
	if err := syncDir(t.state.Path()); err != nil {
		return err
	}
	if _, _, err := readCheckpoint(path, true); err != nil {
		return err
	}
	t.kept = checkpointed{of.cursor, size}
	t.logger.Debug("checkpoint made", "fileset", t.dir, "position", of.cursor.String(), "bytes", size, "dur", time.Since(start))
	return nil
}

// firm is the position up to which changes may go to the index's file. Ahead of
// what is durable, a crash of the machine would leave an index that tells of
// what history lost. An import that is cut short starts over, and so does one
// that finds everything again: until then its index should not look like one.
func (t *Tree) firm() kml.Position {
	if t.lost.Load() {
		return 0
	}
	if t.importing.Load() {
		return math.MaxUint64
	}
	return t.log.Durable()
}
