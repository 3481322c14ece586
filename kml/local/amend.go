package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// IDsAfter gives up to n IDs behind a change and what was put behind it before,
// and in front of the next one that was appended.
func (l *Log) IDsAfter(id uint64, n int) []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	limit := (id/idStep + 1) * idStep
	i, _ := slices.BinarySearchFunc(l.list, limit, compareID)
	last := id
	if i > 0 {
		last = max(last, l.list[i-1].ID)
	}
	var ids []uint64
	for k := last + 1; k < limit && len(ids) < n; k++ {
		ids = append(ids, k)
	}
	return ids
}

// IDBefore is an ID right in front of a change; 0 when there is no room.
func (l *Log) IDBefore(id uint64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, _ := slices.BinarySearchFunc(l.list, id, compareID)
	last := uint64(0)
	if i > 0 {
		last = l.list[i-1].ID
	}
	if last+1 >= id {
		return 0
	}
	return last + 1
}

// Exchange forgets changes and adds others, which have their IDs, in one step.
func (l *Log) Exchange(out, in []*Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var buf []byte
	var err error
	for _, e := range in {
		if buf, err = appendChange(buf, e, e.rec); err != nil {
			return err
		}
	}
	for _, e := range out {
		if !e.gone {
			buf = appendEntry(buf, kindDone, word(e.ID))
		}
	}
	if err := l.write(appendEntry(nil, kindGroup, buf)); err != nil {
		return err
	}
	fault.Point("local.exchanged")
	for _, e := range in {
		l.takeNew(e)
	}
	return l.drop(out)
}

// Placed is a change as it is to be from now on, in its place.
type Placed struct {
	Entry       *Entry
	Rec         *kml.Record
	After, Over uint64
}

// Settle makes changes that are not frozen others, forgets some and adds some,
// which have their IDs, in one step.
func (l *Log) Settle(as []Placed, out, in []*Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var buf []byte
	var err error
	for _, e := range in {
		if buf, err = appendChange(buf, e, e.rec); err != nil {
			return err
		}
	}
	for _, a := range as {
		if a.Entry.gone || a.Entry.raw != nil {
			return fmt.Errorf("change %x is not to be amended: %w", a.Entry.ID, kml.ErrInvalid)
		}
		n := &Entry{ID: a.Entry.ID, At: a.Entry.At, After: a.After, Over: a.Over, Data: a.Entry.Data}
		if buf, err = appendChange(buf, n, a.Rec); err != nil {
			return err
		}
	}
	for _, e := range out {
		if !e.gone {
			buf = appendEntry(buf, kindDone, word(e.ID))
		}
	}
	if len(buf) == 0 {
		return nil
	}
	if err := l.write(appendEntry(nil, kindGroup, buf)); err != nil {
		return err
	}
	fault.Point("local.settled")
	for _, e := range in {
		l.take(e)
	}
	for _, a := range as {
		l.become(a.Entry, a.Rec, a.After, a.Over)
		l.dead += recordSize
	}
	return l.drop(out)
}

// Room is up to n IDs, spread out between a change and the one behind it; fewer
// when there is no room.
func (l *Log) Room(id uint64, n int) []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	limit := (id/idStep + 1) * idStep
	i, found := slices.BinarySearchFunc(l.list, id, compareID)
	if found {
		i++
	}
	if i < len(l.list) {
		limit = min(limit, l.list[i].ID)
	}
	step := max(1, (limit-id)/uint64(n+1))
	var ids []uint64
	for k := id + step; k < limit && len(ids) < n; k += step {
		ids = append(ids, k)
	}
	return ids
}

// All are all changes, in order, those behind IDs too that are reserved and not
// appended.
func (l *Log) All() []*Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]*Entry, 0, len(l.byID))
	for _, e := range l.list {
		if !e.gone {
			out = append(out, e)
		}
	}
	return out
}

// Amendment is what becomes of a change that is not frozen.
type Amendment struct {
	Entry *Entry
	Rec   *kml.Record // nil: it is dropped
	Like  *Entry      // the change whose After and Over it takes over; itself, or one that is dropped
}

// Amend makes changes others in their places, and drops some, in one step. Who
// was made on contents that are dropped is amended, too, or dropped.
func (l *Log) Amend(as []Amendment) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var buf []byte
	var err error
	var out []*Entry
	for _, a := range as {
		if a.Entry.gone || a.Entry.raw != nil {
			return fmt.Errorf("change %x is not to be amended: %w", a.Entry.ID, kml.ErrInvalid)
		}
		if a.Rec == nil {
			buf = appendEntry(buf, kindDone, word(a.Entry.ID))
			out = append(out, a.Entry)
			continue
		}
		n := &Entry{ID: a.Entry.ID, At: a.Entry.At, After: a.Like.After, Over: a.Like.Over, Data: a.Entry.Data}
		if buf, err = appendChange(buf, n, a.Rec); err != nil {
			return err
		}
	}
	if err := l.write(appendEntry(nil, kindGroup, buf)); err != nil {
		return err
	}
	fault.Point("local.amended")
	for _, a := range as {
		if a.Rec != nil {
			l.become(a.Entry, a.Rec, a.Like.After, a.Like.Over)
			l.dead += recordSize
		}
	}
	return l.drop(out)
}

// become makes a change another one.
func (l *Log) become(e *Entry, r *kml.Record, after, over uint64) {
	l.unfollow(e)
	e.rec, e.After, e.Over = r, after, over
	l.follow(e)
}

// follow notes what a change was made on.
func (l *Log) follow(e *Entry) {
	for _, id := range [...]uint64{e.After, e.Over} {
		if id != 0 {
			l.after[id] = append(l.after[id], e)
		}
	}
}

func (l *Log) unfollow(e *Entry) {
	for _, id := range [...]uint64{e.After, e.Over} {
		ds := slices.DeleteFunc(l.after[id], func(d *Entry) bool { return d == e })
		if len(ds) == 0 {
			delete(l.after, id)
		} else {
			l.after[id] = ds
		}
	}
}

// drop takes changes that are done out of memory, and their contents away.
func (l *Log) drop(es []*Entry) error {
	var errs []error
	for _, e := range es {
		if e.gone {
			continue
		}
		l.forget(e)
		if e.Data {
			if err := os.Remove(l.Path(e.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	l.compact()
	return errors.Join(errs...)
}
