package tree

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// mutation is one operation on its way into tree, log and index. Its caller
// holds the locks of every name and object concerned.
type mutation struct {
	rec *kml.Record
	// call is the system call that makes the change visible.
	call func() error
	// result completes the change (owner, mode) and fills in the record's
	// resulting values.
	result func() error
	// index notes what the record does not say: inode, handle, fingerprint.
	index func(b *Batch) error
	// handle is the inode that a name gets, or loses: it goes into the intent,
	// so that a restart can tell whether call was made.
	handle []byte
	// door made the change.
	door Door
	// res is room in the log for the record.
	res *kml.Reservation
}

// slack is what a record may grow by between intent and result: inherited
// ACLs, times.
const slack = 2 << 10

// reserve makes room in the log for r, whatever it grows to.
func (t *Tree) reserve(r *kml.Record) (kml.Reservation, error) {
	b, err := kml.EncodedLen(nil, r)
	if err != nil {
		return kml.Reservation{}, err
	}
	return t.log.Reserve(min(int64(b)+slack, kml.MaxRecord))
}

// mutate runs m: intent, system call, record, index, intent cleared. The
// intent outlives a killed process and is decided by looking at the next start.
func (t *Tree) mutate(ctx context.Context, m mutation) error {
	if m.door == 0 {
		m.door = DoorOf(ctx)
	}
	if err := t.broken(); err != nil {
		return err
	}
	if err := t.index.Room(); err != nil {
		return err
	}
	room := t.bufs.Get().(*[]byte)
	defer t.bufs.Put(room)
	intent, err := m.intent((*room)[:0])
	if err != nil {
		return err
	}
	*room = intent[:0]
	res, err := t.log.Reserve(min(int64(len(intent))+slack, kml.MaxRecord))
	if err != nil {
		return err
	}
	defer res.Release()
	m.res = &res
	slot, err := t.intents.Put(ctx, intent)
	if err != nil {
		return err
	}
	fault.Point("tree.intent")
	if err := m.call(); err != nil {
		t.intents.Clear(slot)
		return err
	}
	fault.Point("tree.call")
	if m.result != nil {
		if err := m.result(); err != nil {
			// The change is visible, so it must be logged; what could not be
			// read back stays as it was asked for.
			t.logger.Warn("result of an operation not read back", "op", m.rec.Op, "oid", m.rec.OID, "err", err)
		}
	}
	if err := t.journal(m); errors.Is(err, errFolderGone) {
		t.intents.Clear(slot) // a start would decide the same
		return err
	} else if err != nil {
		return err // the intent stays: the next start decides it
	}
	fault.Point("tree.record")
	t.intents.Clear(slot)
	return nil
}

// intent appends the whole record to be to b, with m.handle as its value.
func (m *mutation) intent(b []byte) ([]byte, error) {
	r := m.rec
	if m.handle != nil {
		c := *r
		c.Value = m.handle
		r = &c
	}
	b, _, err := kml.AppendRecord(b, r, 0)
	return b, err
}

// journal appends m's record, brings the index up to it and tells watchers.
// One at a time, so that log, index and watchers see one order.
func (t *Tree) journal(m mutation) error {
	t.jmu.Lock()
	defer t.jmu.Unlock()
	r := m.rec
	if t.index.bad.Load() {
		// What it did not find may be there: nothing that follows from it is true.
		return t.breakDown(ErrIndexDamaged)
	}
	if t.folderGone(r) {
		return errFolderGone
	}
	if needsObject(r.Op) {
		if _, err := t.index.Get(r.OID); errors.Is(err, ErrNotFound) {
			return nil // unlinked meanwhile: nobody can see the change
		}
	}
	if r.Origin == (kml.Origin{}) {
		t.seq++
		r.Origin = kml.Origin{Site: t.site, Seq: t.seq}
	}
	if err := m.res.Append(r); err != nil {
		return t.breakDown(fmt.Errorf("log: %w", err))
	}
	fault.Point("tree.append")
	changes := t.changes[:0]
	err := t.index.Update(func(b *Batch) error {
		var err error
		if changes, err = applyInto(b, r, false, changes); err != nil {
			return err
		}
		if m.index != nil {
			if err := m.index(b); err != nil {
				return err
			}
		}
		b.SetCursor(r.Pos)
		return nil
	})
	if err != nil {
		return t.breakDown(fmt.Errorf("index: record %v: %w", r.Pos, err))
	}
	t.touched(r)
	for _, c := range changes {
		c.Door = m.door
		t.watch.emit(c)
	}
	clear(changes)
	t.changes = changes
	return nil
}

// errFolderGone is a change in a folder that others' changes, found meanwhile,
// took out of the tree.
var errFolderGone = fmt.Errorf("its folder is gone: %w", syscall.ESTALE)

// folderGone reports a record that gives a name in a folder that is not in the
// index any more. jmu is held.
func (t *Tree) folderGone(r *kml.Record) bool {
	into := r.Parent
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod, kml.OpLink:
	case kml.OpRename:
		if r.NewParent != 0 {
			into = r.NewParent
		}
	default:
		return false
	}
	_, err := t.index.Get(into)
	if !errors.Is(err, ErrNotFound) {
		return false
	}
	t.dirs.forget(into)
	return true
}

// needsObject is true of operations on an object that another call may have
// removed since.
func needsObject(op kml.Op) bool {
	switch op {
	case kml.OpSetattr, kml.OpSetxattr, kml.OpRemovexattr, kml.OpStore:
		return true
	}
	return false
}

// record starts a record of c's.
func (t *Tree) record(c *Cred, op kml.Op) *kml.Record {
	r := &kml.Record{Op: op, Time: t.now().UnixNano()}
	r.UID, r.GID = t.author(c)
	return r
}

// mtimeOf is the modification time of what fd holds.
func mtimeOf(fd int) (int64, error) {
	var st unix.Statx_t
	err := statAt(fd, "", &st)
	return nsOf(st.Mtime), err
}
