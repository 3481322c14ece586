package p9srv

import (
	"context"
	"errors"

	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// A slot is a fid number in use: a file, or a number that a request in
// progress is about to fill or has just emptied. Requests take slots in the
// order they arrive, some for themselves alone (what opens, makes or ends a
// fid), most together, and one that has to wait stands in the slot's queue. So
// a client may send a walk, an open, a read and a clunk without waiting in
// between, and none of them sees a fid in the middle of a change.
//
// shared, excl, queue, syncs and inSync are guarded by session.mu. The rest belongs to the
// requests that hold the slot: read by all, written by one that holds it alone.
type slot struct {
	num    wire.FID
	shared int  // requests that hold it together
	excl   bool // one holds it alone
	queue  []*request
	syncs  []*request // Tfsync messages that hold it and wait for the next sync
	inSync bool       // a worker has been told, or is at it

	fidState
}

// fidState is what a fid stands for.
type fidState struct {
	live   bool
	opened bool
	flags  p9.OpenFlags
	qid    p9.QID
	file   p9.File
	place  *place  // nil for a Concurrent File
	top    *node   // with place: where ".." stays
	above  *p9.QID // without: where it stays, when the engine walked there to attach
	user   *User
	xattr  *xattr
	dir    *dirState
	old    oldState
}

// free says that a request may hold the slot now. session.mu is held.
func (sl *slot) free(alone bool) bool {
	if len(sl.queue) > 0 || sl.excl {
		return false
	}
	return !alone || sl.shared == 0
}

func (sl *fidState) isDir() bool { return sl.qid.Type&p9.TypeDir != 0 }

// rlock and lock give a File that is not Concurrent p9.File's read and write
// guarantee.
func (sl *fidState) rlock() {
	if sl.place != nil {
		sl.place.rlock()
	}
}

func (sl *fidState) runlock() {
	if sl.place != nil {
		sl.place.runlock()
	}
}

func (sl *fidState) lock() {
	if sl.place != nil {
		sl.place.lock()
	}
}

func (sl *fidState) unlock() {
	if sl.place != nil {
		sl.place.unlock()
	}
}

// rlockIO is rlock for I/O on an open file, which on a FIFO or device may wait
// for ever and must not keep others from the folder's names meanwhile.
func (sl *fidState) rlockIO() bool {
	if sl.place == nil || sl.place.blocks {
		return false
	}
	sl.place.rlock()
	return true
}

// gone says that a File that is not Concurrent lost its name.
func (sl *fidState) gone() bool { return sl.place != nil && sl.place.gone() }

// set fills the slot with a file, for the user of from.
func (sl *slot) set(f p9.File, pl *place, from *fidState, q p9.QID) {
	sl.fidState = fidState{
		live: true, file: f, place: pl, qid: q, user: from.user, top: from.top, above: from.above,
	}
}

// clear empties the slot and closes its file. ctx has ended when the session
// has.
func (sl *slot) clear(ctx context.Context) error {
	f, pl, dir := sl.file, sl.place, sl.dir
	sl.fidState = fidState{}
	return errors.Join(dir.close(), closeFile(ctx, f, pl))
}

// closeFile closes a file and gives up its place.
func closeFile(ctx context.Context, f p9.File, pl *place) error {
	last := func(f p9.File) error {
		if c, ok := f.(Closer); ok {
			return c.CloseContext(ctx)
		}
		return f.Close()
	}
	switch {
	case pl != nil:
		return pl.release(last)
	case f != nil:
		return last(f)
	}
	return nil
}
