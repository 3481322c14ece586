package kml

import (
	"fmt"
	"sync"

	"github.com/mezzofs/mezzo/internal/fault"
)

// group lets callers that want the same kind of work done up to a position
// share one round of it: whoever comes first works, who comes meanwhile waits,
// and the next round serves all who waited.
type group struct {
	mu   sync.Mutex
	cond sync.Cond
	busy bool
	want Position // the highest asked for
	done Position // the highest reached
}

// do returns when done has reached p, or work failed for this caller.
func (g *group) do(p Position, work func(want Position) (Position, error)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cond.L == nil {
		g.cond.L = &g.mu
	}
	g.want = max(g.want, p)
	for g.done < p {
		if g.busy {
			g.cond.Wait()
			continue
		}
		g.busy = true
		want := g.want
		g.mu.Unlock()
		done, err := work(want)
		g.mu.Lock()
		g.busy = false
		g.done = max(g.done, done)
		g.cond.Broadcast()
		if err != nil {
			return err
		}
	}
	return nil
}

// raise notes that done was reached by other means; lower that history was cut.
func (g *group) reset(p Position) {
	g.mu.Lock()
	g.want, g.done = p, p
	g.mu.Unlock()
}

// Sync makes every record appended so far durable: the segments, and their
// folder when there are new ones. It says nothing about the tree. An error of
// fdatasync(2) stops the log for good, since the kernel forgets what it could
// not write.
func (l *Log) Sync() error {
	if err := l.usable(); err != nil {
		return err
	}
	return l.syncTo(l.End())
}

func (l *Log) syncTo(p Position) error { return l.syncs.do(p, l.syncRound) }

func (l *Log) syncRound(Position) (Position, error) {
	l.mu.Lock()
	if p := l.fail.Load(); p != nil {
		l.mu.Unlock()
		return 0, *p
	}
	segs, newDir, end := l.unsynced, l.newDir, l.at.pos
	l.unsynced, l.newDir = nil, false
	l.mu.Unlock()
	var err error
	for _, s := range segs {
		if err == nil {
			err = s.f.Datasync()
		}
		s.release()
	}
	if newDir && err == nil {
		err = l.o.fs.SyncDir(l.dir)
	}
	if err != nil {
		return 0, l.spoil(err)
	}
	l.stats.syncs.Add(1)
	return end, nil
}

// Commit makes everything up to now durable and says so in the log: it syncs,
// appends a commit mark and syncs that. Concurrent callers share the work;
// nothing is written when nothing new is there. The caller has synced the tree
// before; when others go on appending meanwhile, CommitUpTo is right.
func (l *Log) Commit() error { return l.CommitUpTo(l.End()) }

// CommitUpTo is Commit for records up to p: what they did to the tree is
// durable, and only that. The caller reads End, syncs the tree, and commits up
// to what it read.
func (l *Log) CommitUpTo(p Position) error {
	if err := l.usable(); err != nil {
		return err
	}
	if p > l.End() {
		return fmt.Errorf("%s: commit up to %s, end is %s: %w", l.dir, p, l.End(), ErrHistoryCut)
	}
	l.stats.commitCalls.Add(1)
	return l.commits.do(p, l.commitRound)
}

func (l *Log) commitRound(want Position) (Position, error) {
	if err := l.syncTo(want); err != nil {
		return 0, err
	}
	fault.Point("kml.commit.synced")
	r := &Record{Op: OpMark, Mark: MarkCommit, Base: Base{Pos: want}}
	return l.appendMark(r)
}

// appendMark appends a commit or epoch mark and makes it durable. It gives the
// position that is durable thereby.
func (l *Log) appendMark(r *Record) (Position, error) {
	l.mu.Lock()
	err := l.append([]*Record{r}, appendForce)
	l.mu.Unlock()
	if err != nil {
		return 0, err
	}
	fault.Point("kml.mark.appended")
	if err := l.syncTo(r.Pos); err != nil {
		return 0, err
	}
	t := tail{}
	t.mind(r)
	l.pub.Lock()
	l.commit = max(l.commit, r.Pos)
	l.durable = max(l.durable, t.firm())
	d := l.durable
	l.pub.Unlock()
	l.stats.commits.Add(1)
	l.wakeAll()
	return d, nil
}

// StartEpoch appends the mark of a new epoch, with its random id, and makes it
// durable. The mark is the epoch's first record.
func (l *Log) StartEpoch(reason string, id [16]byte) (*Record, error) {
	if err := l.usable(); err != nil {
		return nil, err
	}
	r := &Record{Op: OpMark, Mark: MarkEpoch, Name: reason, Value: id[:], Base: Base{Pos: l.Durable()}}
	if _, err := l.appendMark(r); err != nil {
		return nil, err
	}
	return r, nil
}
