package local

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// Entry is one change.
type Entry struct {
	ID    uint64       // place in the log
	At    kml.Position // of the master, where the change was made
	After uint64       // the own change whose contents this one replaces, or 0
	Over  uint64       // the own change whose contents the victim has, or 0
	Data  bool         // its contents are at Log.Path(ID)

	l    *Log
	rec  *kml.Record
	raw  []byte // as it is sent; nil: not frozen
	gone bool
	back atomic.Uint64 // the position it came back at

	at     int64 // where it began in the file when that was read
	synced bool  // it is on the disk, with its contents
}

// Back is the position at which the change came back from the master, or 0.
func (e *Entry) Back() kml.Position { return kml.Position(e.back.Load()) }

// SetBack says that the change came back, or (0) that it has to be sent again.
func (e *Entry) SetBack(pos kml.Position) { e.back.Store(uint64(pos)) }

// New is a change that is not in a log yet.
func New(r *kml.Record) *Entry { return &Entry{rec: r} }

// Rec is the change. It must not be written to.
func (e *Entry) Rec() *kml.Record {
	r, _ := e.Now()
	return r
}

// Now is the change and, when it is frozen, the bytes that are sent.
func (e *Entry) Now() (r *kml.Record, raw []byte) {
	if e.l == nil {
		return e.rec, nil
	}
	e.l.mu.Lock()
	defer e.l.mu.Unlock()
	return e.rec, e.raw
}

// Seq is the number it is frozen under, or 0.
func (e *Entry) Seq() uint64 {
	if r, raw := e.Now(); raw != nil {
		return r.Origin.Seq
	}
	return 0
}

// idStep is the room between the IDs of changes that come one after the other.
const idStep = 1 << 16

// Log is the local log in a folder.
type Log struct {
	dir string

	mu      sync.Mutex
	f       *os.File
	end     int64
	dead    int64  // bytes of the file that say nothing any more
	next    uint64 // the next number
	lastID  uint64
	list    []*Entry // by ID; gone ones are taken out now and then
	gone    int      // of list
	byID    map[uint64]*Entry
	bySeq   map[uint64]*Entry
	pending map[uint64]bool     // IDs that are reserved
	after   map[uint64][]*Entry // by Entry.After and Over

	gen      int      // counts files
	durable  int64    // up to where the file is on the disk, and the contents it speaks of
	unsynced []*Entry // those that may not be, in order of writing
	syncing  bool     // the file stays as it is
	marked   bool     // the file has marks of Sync: one of an older program has none

	smu sync.Mutex // one Sync; before mu
}

// Open opens the log in dir, which must exist, or makes one there.
func Open(dir string) (*Log, error) {
	l := &Log{dir: dir, next: 1, byID: make(map[uint64]*Entry), bySeq: make(map[uint64]*Entry), after: make(map[uint64][]*Entry), pending: make(map[uint64]bool)}
	f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	l.f = f
	if err := l.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", f.Name(), err), f.Close())
	}
	if err := l.dropStray(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

// dropStray removes contents whose change was not written.
func (l *Log) dropStray() error {
	es, err := os.ReadDir(l.dir)
	if err != nil {
		return err
	}
	for _, e := range es {
		if e.Name() == "log" {
			continue
		}
		id, err := strconv.ParseUint(e.Name(), 16, 64)
		if has := l.byID[id]; err == nil && has != nil && has.Data {
			continue
		}
		if err := os.Remove(filepath.Join(l.dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Path is where the contents of the change of an ID are.
func (l *Log) Path(id uint64) string { return filepath.Join(l.dir, fmt.Sprintf("%016x", id)) }

// Reserve gives an ID for a change whose contents are put at its Path before it
// is appended, or released. No change behind it is seen by From meanwhile.
func (l *Log) Reserve() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := l.reserve()
	l.pending[id] = true
	return id
}

// Release gives an ID up that was reserved and not appended, with what there is
// of its contents.
func (l *Log) Release(id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending[id] {
		delete(l.pending, id)
		_ = os.Remove(l.Path(id)) // the next start looks again
	}
}

func (l *Log) reserve() uint64 {
	l.lastID = (l.lastID/idStep + 1) * idStep
	return l.lastID
}

// Append adds changes, in order, all or none. They are in the page cache when it
// returns: they outlive the process. An ID of 0 becomes the next.
func (l *Log) Append(es ...*Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range es {
		if e.ID == 0 {
			e.ID = l.reserve()
		}
	}
	return l.put(es)
}

func compareID(e *Entry, id uint64) int {
	switch {
	case e.ID < id:
		return -1
	case e.ID > id:
		return 1
	}
	return 0
}

// put writes changes and takes them up. The caller holds mu.
func (l *Log) put(es []*Entry) error {
	var buf []byte
	var err error
	for _, e := range es {
		if buf, err = appendChange(buf, e, e.rec); err != nil {
			return err
		}
	}
	if err := l.write(buf); err != nil {
		return err
	}
	fault.Point("local.appended")
	for _, e := range es {
		l.takeNew(e)
	}
	return nil
}

// takeNew is take for what was just written.
func (l *Log) takeNew(e *Entry) {
	l.take(e)
	l.unsynced = append(l.unsynced, e)
}

// take puts an entry where its ID says.
func (l *Log) take(e *Entry) {
	e.l = l
	l.lastID = max(l.lastID, e.ID)
	l.byID[e.ID] = e
	delete(l.pending, e.ID)
	if n := len(l.list); n == 0 || l.list[n-1].ID < e.ID {
		l.list = append(l.list, e)
	} else {
		i, _ := slices.BinarySearchFunc(l.list, e.ID, compareID)
		l.list = slices.Insert(l.list, i, e)
	}
	l.follow(e)
}

// Replace makes a change that is not frozen another one, in its place.
func (l *Log) Replace(e *Entry, r *kml.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case e.gone:
		return fmt.Errorf("change %x is done: %w", e.ID, fs.ErrNotExist)
	case e.raw != nil:
		return fmt.Errorf("change %x is frozen: %w", e.ID, kml.ErrInvalid)
	}
	return l.replace(e, r)
}

func (l *Log) replace(e *Entry, r *kml.Record) error {
	buf, err := appendChange(nil, e, r)
	if err != nil {
		return err
	}
	if err := l.write(buf); err != nil {
		return err
	}
	l.dead += int64(len(buf))
	e.rec = r
	return nil
}

// Number gives the next n numbers out: for ever once a record was frozen under
// one of them or a higher one.
func (l *Log) number(n int) (first uint64) {
	first = l.next
	l.next += uint64(n)
	return first
}

// Above makes the next number higher than seq, for good.
func (l *Log) Above(seq uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next > seq {
		return nil
	}
	if err := l.write(appendEntry(nil, kindNext, word(seq+1))); err != nil {
		return err
	}
	l.next = seq + 1
	return nil
}

// Freeze gives changes their numbers, in order. prepare, when given, may change
// the copy of a record that is frozen (its digest). It is done for all or, when
// it fails, none; numbers may be lost then.
func (l *Log) Freeze(site kml.SiteID, es []*Entry, prepare func(e *Entry, r *kml.Record) error) error {
	type frozen struct {
		rec *kml.Record
		raw []byte
	}
	l.mu.Lock()
	first := l.number(len(es))
	out := make([]frozen, len(es))
	seqs := make(map[uint64]uint64, len(es))
	for i, e := range es {
		r := *e.rec
		r.Origin = kml.Origin{Site: site, Seq: first + uint64(i)}
		seqs[e.ID] = r.Origin.Seq
		base := func(to *kml.Base, id uint64) {
			if s, ok := seqs[id]; ok {
				*to = kml.Base{Seq: s}
			} else if b := l.byID[id]; b != nil && b.raw != nil {
				*to = kml.Base{Seq: b.rec.Origin.Seq}
			}
		}
		base(&r.Base, e.After)
		base(&r.VictimBase, e.Over)
		out[i].rec = &r
	}
	l.mu.Unlock()
	// Contents are read without the lock: only one freezes an entry.
	var buf []byte
	for i, e := range es {
		if prepare != nil {
			if err := prepare(e, out[i].rec); err != nil {
				return err
			}
		}
		raw, _, err := kml.AppendRecord(nil, out[i].rec, 0)
		if err != nil {
			return err
		}
		out[i].raw = raw
		buf = appendEntry(buf, kindFrozen, append(word(e.ID), raw...))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.write(buf); err != nil {
		return err
	}
	fault.Point("outbox.frozen")
	for i, e := range es {
		e.rec, e.raw = out[i].rec, out[i].raw
		l.bySeq[e.rec.Origin.Seq] = e
	}
	return nil
}

// Thaw takes a record's number away: the master refused it, and it will be sent
// again under another.
func (l *Log) Thaw(e *Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.gone || e.raw == nil {
		return nil
	}
	if err := l.write(appendEntry(nil, kindThawed, word(e.ID))); err != nil {
		return err
	}
	l.thaw(e)
	return nil
}

func (l *Log) thaw(e *Entry) {
	if e.raw == nil {
		return
	}
	l.dead += int64(len(e.raw))
	delete(l.bySeq, e.rec.Origin.Seq)
	r := *e.rec
	r.Origin = kml.Origin{}
	e.rec, e.raw = &r, nil
}

// Done forgets changes: they are the master's for good, or given up. Those that
// were made after them are based on their numbers, or on rebase when they have
// none.
func (l *Log) Done(rebase kml.Base, es ...*Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var buf []byte
	for _, e := range es {
		if e.gone {
			continue
		}
		base := rebase
		if e.raw != nil && rebase == (kml.Base{}) {
			base = kml.Base{Seq: e.rec.Origin.Seq}
		}
		for _, d := range l.after[e.ID] {
			if d.gone || d.raw != nil {
				continue
			}
			r := *d.rec
			if d.After == e.ID {
				r.Base = base
			} else {
				r.VictimBase = base
			}
			if err := l.replace(d, &r); err != nil {
				return err
			}
		}
		buf = appendEntry(buf, kindDone, word(e.ID))
	}
	if buf == nil {
		return nil
	}
	if err := l.write(buf); err != nil {
		return err
	}
	if err := l.drop(es); err != nil {
		return err
	}
	if len(l.unsynced) > 64 && len(l.unsynced) > 2*len(l.byID) {
		l.unsynced = slices.DeleteFunc(l.unsynced, func(e *Entry) bool { return e.gone })
	}
	if l.end > rewriteAt && l.dead > l.end/2 && !l.syncing {
		return l.rewrite()
	}
	return nil
}

// recordSize is about what a change takes in the file.
const recordSize = 200

func (l *Log) forget(e *Entry) {
	e.gone = true
	l.gone++
	l.dead += recordSize + int64(len(e.raw))
	delete(l.byID, e.ID)
	delete(l.after, e.ID)
	if e.raw != nil && l.bySeq[e.rec.Origin.Seq] == e {
		delete(l.bySeq, e.rec.Origin.Seq)
	}
	l.unfollow(e)
}

// compact takes gone entries out of the list: those in front at once.
func (l *Log) compact() {
	for len(l.list) > 0 && l.list[0].gone {
		l.list[0] = nil
		l.list = l.list[1:]
		l.gone--
	}
	if l.gone > 64 && l.gone > len(l.list)/2 {
		l.list = slices.DeleteFunc(slices.Clone(l.list), func(e *Entry) bool { return e.gone })
		l.gone = 0
	}
}

// Entries are all changes, in order, as From has them.
func (l *Log) Entries() []*Entry { return l.From(0, -1) }

// From is up to n changes behind that of an ID, in order; all with n < 0.
func (l *Log) From(id uint64, n int) []*Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, found := slices.BinarySearchFunc(l.list, id, compareID)
	if found {
		i++
	}
	limit := uint64(1<<64 - 1)
	for id := range l.pending {
		limit = min(limit, id)
	}
	var out []*Entry
	for ; i < len(l.list) && l.list[i].ID < limit && (n < 0 || len(out) < n); i++ {
		if !l.list[i].gone {
			out = append(out, l.list[i])
		}
	}
	return out
}

// Last is the highest ID that was given out.
func (l *Log) Last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastID
}

// Len is how many changes there are.
func (l *Log) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.byID)
}

// Get is the change of an ID, or nil.
func (l *Log) Get(id uint64) *Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byID[id]
}

// Sent is the change that is frozen under a number, or nil.
func (l *Log) Sent(seq uint64) *Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bySeq[seq]
}

// Gone reports whether a change is done.
func (e *Entry) Gone() bool {
	if e.l == nil {
		return false
	}
	e.l.mu.Lock()
	defer e.l.mu.Unlock()
	return e.gone
}

// Known is a number up to which every record's outcome is known for good.
func (l *Log) Known() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.next - 1
	for seq := range l.bySeq {
		k = min(k, seq-1)
	}
	return k
}

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}

func word(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
