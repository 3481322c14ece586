package kml

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// Log is a fileset's log: an append-only row of segments in a folder of its
// own. All methods may be called at the same time. One process has a log open
// for writing; its owner's lock sees to that.
type Log struct {
	dir string
	o   Options

	// mu orders appends. It is held over the write into the page cache, and
	// over a rare fallocate. Readers of the log's state never take it.
	mu       sync.Mutex
	at       tail       // after the last record
	buf      []byte     // encoding buffer
	ways     []wayIn    // waypoints of the batch in hand
	cuts     []cut      // parts of the batch in hand, by segment
	alloc    int64      // the last segment may be written up to here
	spare    *spare     // the segment after it, made ahead
	reserved int64      // bytes promised to operations
	noAlloc  bool       // the file system knows no fallocate
	unsynced []*segment // written since they were last synced
	newDir   bool       // the folder has a segment it was not synced with

	// pub guards what readers see. It is held for a few instructions.
	pub     sync.Mutex
	seen    tail       // what has been published of at
	segs    []*segment // all there are, oldest first
	durable Position   // everything up to here is known to be on disk
	commit  Position   // the last mark known to be on disk
	wake    chan struct{}

	waiting atomic.Int32  // readers that wait on wake
	end     atomic.Uint64 // seen.pos
	cutGen  atomic.Uint32 // two more with every cut; readers of before are void
	closed  atomic.Bool
	fail    atomic.Pointer[error] // what made the log unusable

	repaired Repair
	syncs    group
	commits  group
	stats    counters
}

// cut is the part of a batch that goes to one segment: buf[from:to].
type cut struct {
	from, to int
	hdr      header // of a new segment; the first part has none
}

type wayIn struct {
	part int // index in cuts
	waypoint
}

// Close syncs and closes the log. Readers that wait get ErrClosed.
func (l *Log) Close() error {
	if l.closed.Swap(true) {
		return nil
	}
	var err error
	if !l.o.ReadOnly && l.fail.Load() == nil {
		err = l.syncTo(l.End())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.o.ReadOnly {
		l.dropSpare()
		for _, s := range l.unsynced {
			s.release()
		}
		l.unsynced = nil
	}
	l.pub.Lock()
	segs := l.segs
	l.pub.Unlock()
	if last := segs[len(segs)-1]; !l.o.ReadOnly {
		// Gives back what was allocated ahead; the size stays.
		if l.fail.Load() == nil {
			if e := last.f.Truncate(last.size.Load()); err == nil {
				err = e
			}
		}
		last.release()
	}
	l.wakeAll()
	return err
}

// usable says why the log cannot be changed, or nil.
func (l *Log) usable() error {
	if l.closed.Load() {
		return fmt.Errorf("%s: %w", l.dir, ErrClosed)
	}
	if l.o.ReadOnly {
		return fmt.Errorf("%s: %w", l.dir, ErrReadOnly)
	}
	if p := l.fail.Load(); p != nil {
		return *p
	}
	return nil
}

// spoil makes the log unusable: what is on disk is no longer known.
func (l *Log) spoil(err error) error {
	err = fmt.Errorf("%s: log stopped: %w", l.dir, err)
	l.fail.CompareAndSwap(nil, &err)
	return err
}

// Failed is why the log stopped for good, or nil while it has not.
func (l *Log) Failed() error {
	if p := l.fail.Load(); p != nil {
		return *p
	}
	return nil
}

// last is the segment that is being written.
func (l *Log) last() *segment {
	l.pub.Lock()
	defer l.pub.Unlock()
	return l.segs[len(l.segs)-1]
}

// state is a snapshot of what readers see.
func (l *Log) state() tail {
	l.pub.Lock()
	defer l.pub.Unlock()
	return l.seen
}

// Fileset is the identity the segments carry.
func (l *Log) Fileset() [16]byte { return l.last().hdr.fileset }

// Epoch is the epoch of the last record; 0 before the first StartEpoch.
func (l *Log) Epoch() uint16 { return l.state().pos.Epoch() }

// EpochID is the random id of the epoch.
func (l *Log) EpochID() [16]byte { return l.state().epochID }

// First is the position of the oldest record that is still there; 0 when
// there is none.
func (l *Log) First() Position {
	l.pub.Lock()
	s, empty := l.segs[0], l.seen.pos == l.segs[0].hdr.tail.pos
	l.pub.Unlock()
	if empty {
		return 0
	}
	f, err := s.acquire(l.o.fs)
	if err != nil {
		return 0
	}
	defer s.release()
	w := window{f: f}
	b, err := w.bytes(headerLen, prefixLen, s.size.Load())
	if err != nil || len(b) < prefixLen {
		return 0
	}
	return rawPos(b)
}

// Start is the position before the oldest record that is still there: the
// smallest one ReaderAfter takes, besides 0 in a log that is whole.
func (l *Log) Start() Position {
	l.pub.Lock()
	defer l.pub.Unlock()
	return l.segs[0].hdr.tail.pos
}

// End is the position of the last record, or where the log began.
func (l *Log) End() Position { return Position(l.end.Load()) }

// EndCRC is the chain's CRC after the last record.
func (l *Log) EndCRC() uint32 { return l.state().crc }

// EndAndCRC is End and EndCRC of one moment.
func (l *Log) EndAndCRC() (Position, uint32) {
	t := l.state()
	return t.pos, t.crc
}

// LastCommit is the position of the last commit mark (or epoch mark) that is
// durable itself; 0 when there is none.
func (l *Log) LastCommit() Position {
	l.pub.Lock()
	defer l.pub.Unlock()
	return l.commit
}

// Durable is the last position that is durable, tree and log: what the last
// durable mark says, or the mark itself when it follows directly.
func (l *Log) Durable() Position {
	l.pub.Lock()
	defer l.pub.Unlock()
	return l.durable
}

// Repaired says what Open cut off; the zero Repair when nothing.
func (l *Log) Repaired() Repair { return l.repaired }

// Size is the length of the whole log as one file: its segments, headers
// included, one behind the other.
func (l *Log) Size() int64 {
	l.pub.Lock()
	defer l.pub.Unlock()
	var n int64
	for _, s := range l.segs {
		n += s.size.Load()
	}
	return n
}

// ReadAt reads from that one file, as io.ReaderAt. Offsets move down when
// DropBefore takes segments away.
func (l *Log) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("%s: offset %d: %w", l.dir, off, ErrInvalid)
	}
	l.pub.Lock()
	segs := l.segs
	l.pub.Unlock()
	for _, s := range segs {
		size := s.size.Load()
		if off >= size {
			off -= size
			continue
		}
		if n == len(p) {
			return n, nil
		}
		f, err := s.acquire(l.o.fs)
		if err != nil {
			return n, err
		}
		k := int(min(int64(len(p)-n), size-off))
		m, err := f.ReadAt(p[n:n+k], off)
		s.release()
		n += m
		if m < k {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return n, fmt.Errorf("%s: offset %d: %w", s.path, off, err)
		}
		off = 0
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// wakeAll wakes the readers that wait at the tail.
func (l *Log) wakeAll() {
	if l.waiting.Load() == 0 {
		return
	}
	l.pub.Lock()
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
		l.waiting.Store(0)
	}
	l.pub.Unlock()
}

// waiter is a channel that closes at the next change of the tail.
func (l *Log) waiter() <-chan struct{} {
	l.pub.Lock()
	defer l.pub.Unlock()
	if l.wake == nil {
		l.wake = make(chan struct{})
	}
	l.waiting.Store(1)
	return l.wake
}
