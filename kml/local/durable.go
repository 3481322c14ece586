package local

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// syncFiles is up to how many files of contents are synced one by one; of more
// the file system is synced.
const syncFiles = 32

// Sync makes all changes that were made so far durable, and their contents. What
// others have it do meanwhile counts.
func (l *Log) Sync() error {
	l.mu.Lock()
	want, gen := l.end, l.gen
	l.mu.Unlock()
	l.smu.Lock()
	defer l.smu.Unlock()
	l.mu.Lock()
	if l.gen == gen && l.durable >= want {
		l.mu.Unlock()
		return nil
	}
	f, off, todo := l.f, l.end, l.unsynced
	l.unsynced, l.syncing = nil, true
	l.mu.Unlock()

	err := l.syncContents(todo)
	l.mu.Lock()
	if err == nil {
		// The mark is never on the disk before what it speaks of.
		err = l.write(appendEntry(nil, kindSynced, word(uint64(off))))
	}
	l.mu.Unlock()
	if err == nil {
		err = f.Sync()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.syncing = false
	if err != nil {
		l.unsynced = append(todo, l.unsynced...)
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	for _, e := range todo {
		e.synced = true
	}
	l.durable = off
	return nil
}

// Behind reports whether there is something that Sync would make durable.
func (l *Log) Behind() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable+syncedLen < l.end
}

// syncedLen is the length of the mark that Sync leaves.
const syncedLen = headLen + 8

func (l *Log) syncContents(es []*Entry) error {
	d, err := os.Open(l.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	es = slices.DeleteFunc(slices.Clone(es), func(e *Entry) bool { return !e.Data })
	if len(es) > syncFiles {
		return unix.Syncfs(int(d.Fd()))
	}
	for _, e := range es {
		f, err := os.Open(l.Path(e.ID))
		if errors.Is(err, os.ErrNotExist) {
			continue // done meanwhile
		}
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return d.Sync()
}

// Recover is for a log whose machine crashed while it was open: of what was not
// synced the changes may be on the disk and their contents not. From the first on
// whose contents cannot be told to be whole all that was not synced is forgotten.
func (l *Log) Recover() (forgotten int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.marked {
		return 0, nil // nothing says what was synced
	}
	var out []*Entry
	var buf []byte
	for _, e := range l.list {
		if e.gone || e.synced {
			continue
		}
		if len(out) > 0 || e.Data && !l.whole(e) {
			out = append(out, e)
			buf = appendEntry(buf, kindDone, word(e.ID))
		}
	}
	if len(out) == 0 {
		return 0, nil
	}
	// Their numbers are not given out again.
	if err := l.write(append(appendEntry(nil, kindNext, word(l.next)), buf...)); err != nil {
		return 0, err
	}
	return len(out), l.drop(out)
}

// whole reports whether the contents of a change are what its digest says.
func (l *Log) whole(e *Entry) bool {
	if e.raw == nil || e.rec.Digest == nil {
		return false
	}
	return HasDigest(l.Path(e.ID), e.rec.Digest)
}

// HasDigest reports whether the BLAKE3 of a file is digest.
func HasDigest(path string, digest []byte) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	h := blake3.New()
	_, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, 256<<10))
	return err == nil && bytes.Equal(h.Sum(nil), digest)
}

// readSynced takes up a mark of Sync: what stands in front of an offset is on the
// disk.
func (l *Log) readSynced(body []byte) {
	l.marked = true
	l.durable = max(l.durable, int64(binary.LittleEndian.Uint64(body)))
}

// settleSynced is for the end of reading: which changes are covered by a mark.
func (l *Log) settleSynced() {
	for _, e := range l.list {
		e.synced = e.at < l.durable
		if !e.gone && !e.synced {
			l.unsynced = append(l.unsynced, e)
		}
	}
	l.durable = 0 // the mark itself may be in memory alone
}

// Unknown reports whether a number was used that this log does not know of: it
// was lost with the end of the log, or the log is a copy from before.
func (l *Log) Unknown(seq uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return seq >= l.next
}

// Adopt finds the change that a record of this site is, which came back under a
// number that was lost: the change is frozen under it now. It is nil when there
// is none.
func (l *Log) Adopt(r *kml.Record) (*Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.list {
		if e.gone || e.raw != nil || e.rec.Op != r.Op || e.rec.OID != r.OID || e.rec.Time != r.Time || e.rec.Name != r.Name {
			continue
		}
		rec := *e.rec
		rec.Origin, rec.Digest = r.Origin, r.Digest
		raw, _, err := kml.AppendRecord(nil, &rec, 0)
		if err != nil {
			return nil, err
		}
		if err := l.write(appendEntry(nil, kindFrozen, append(word(e.ID), raw...))); err != nil {
			return nil, err
		}
		e.rec, e.raw = &rec, raw
		l.bySeq[rec.Origin.Seq] = e
		l.next = max(l.next, rec.Origin.Seq+1)
		return e, nil
	}
	return nil, nil
}
