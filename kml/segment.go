package kml

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// The header of a segment, in bytes.
const (
	headerLen      = 96
	headerMagic    = "MEZZOKML"
	segmentVersion = 1
)

// tail is everything the next record depends on: the state of a log after a
// record.
type tail struct {
	pos     Position // of the record
	crc     uint32   // the chain's after it
	epochID [16]byte // the random id of pos's epoch
	mark    Position // of the last mark that says what is durable
	durable Position // what it says
}

// header is a segment's beginning: the log's state before its first record.
type header struct {
	fileset [16]byte
	tail    tail
}

func (h *header) append(b []byte) []byte {
	le := binary.LittleEndian
	start := len(b)
	b = append(b, headerMagic...)
	b = le.AppendUint32(b, segmentVersion)
	b = le.AppendUint32(b, headerLen)
	b = append(b, h.fileset[:]...)
	b = le.AppendUint64(b, uint64(h.tail.pos))
	b = le.AppendUint64(b, uint64(h.tail.mark))
	b = le.AppendUint64(b, uint64(h.tail.durable))
	b = append(b, h.tail.epochID[:]...)
	b = le.AppendUint32(b, h.tail.crc)
	b = append(b, make([]byte, headerLen-4-(len(b)-start))...)
	return le.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func parseHeader(b []byte) (h header, err error) {
	le := binary.LittleEndian
	if len(b) < headerLen {
		return h, fmt.Errorf("segment header: %d of %d bytes: %w", len(b), headerLen, ErrShort)
	}
	b = b[:headerLen]
	if string(b[:8]) != headerMagic {
		return h, fmt.Errorf("segment header: no %q: %w", headerMagic, ErrCorrupt)
	}
	if v := le.Uint32(b[8:]); v > segmentVersion {
		return h, fmt.Errorf("segment version %d: %w", v, ErrNewer)
	}
	if got := crc32.Checksum(b[:headerLen-4], castagnoli); got != le.Uint32(b[headerLen-4:]) {
		return h, fmt.Errorf("segment header: CRC %08x, computed %08x: %w", le.Uint32(b[headerLen-4:]), got, ErrCorrupt)
	}
	if le.Uint32(b[8:]) != segmentVersion || le.Uint32(b[12:]) != headerLen {
		return h, fmt.Errorf("segment header: version %d, length %d: %w", le.Uint32(b[8:]), le.Uint32(b[12:]), ErrCorrupt)
	}
	h.fileset = [16]byte(b[16:32])
	h.tail.pos = Position(le.Uint64(b[32:]))
	h.tail.mark = Position(le.Uint64(b[40:]))
	h.tail.durable = Position(le.Uint64(b[48:]))
	h.tail.epochID = [16]byte(b[56:72])
	h.tail.crc = le.Uint32(b[72:])
	return h, nil
}

// advance is the state after the record in b, whole and checked, that follows.
func (t *tail) advance(b []byte, crc uint32) error {
	p := rawPos(b)
	if p.Recno() != t.pos.Recno()+1 || p.Epoch() < t.pos.Epoch() {
		return fmt.Errorf("position %s after %s: %w", p, t.pos, ErrCorrupt)
	}
	t.pos, t.crc = p, crc
	if rawOp(b) != OpMark {
		return nil
	}
	var r Record
	if err := parseChecked(b, &r); err != nil {
		return err
	}
	t.mind(&r)
	return nil
}

// mind takes from r what a mark says of durability and epochs.
func (t *tail) mind(r *Record) {
	switch {
	case r.Op != OpMark:
	case r.Mark == MarkEpoch:
		t.mark, t.durable = r.Pos, r.Base.Pos
		t.epochID = [16]byte{}
		copy(t.epochID[:], r.Value)
	case r.Mark == MarkCommit:
		t.mark, t.durable = r.Pos, r.Base.Pos
	}
}

// firm is the last position that t knows to be durable once the mark itself
// is: the mark's own when nothing came between.
func (t *tail) firm() Position {
	if t.mark.Recno() == t.durable.Recno()+1 {
		return t.mark
	}
	return t.durable
}

// waypoint is a place between two records of a segment: what came before it.
type waypoint struct {
	after Position
	off   int64
	crc   uint32
}

// segment is one file of a log. Size is published after the bytes below it are
// in place, so a reader may read up to it without a lock.
type segment struct {
	num  uint64
	path string
	hdr  header
	rw   bool  // its file is opened for writing
	bad  error // what is wrong with its header; only while opening
	size atomic.Int64

	mu      sync.Mutex // guards what follows
	f       file
	refs    int
	index   []waypoint // rising; complete when indexed
	indexed bool
}

// acquire gives the segment's file, open until the matching release.
func (s *segment) acquire(fs fileSystem) (file, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f == nil {
		f, err := fs.Open(s.path, s.rw, false)
		if err != nil {
			return nil, err
		}
		s.f = f
	}
	s.refs++
	return s.f, nil
}

// hold is one more acquire of a segment that is open.
func (s *segment) hold() {
	s.mu.Lock()
	s.refs++
	s.mu.Unlock()
}

// release ends one acquire.
func (s *segment) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refs--; s.refs == 0 && s.f != nil {
		s.f.Close()
		s.f = nil
	}
}

// note adds a waypoint when the last one is far enough behind.
func (s *segment) note(w waypoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.index); n == 0 || w.off-s.index[n-1].off >= indexEvery {
		s.index = append(s.index, w)
	}
}

// before is the last waypoint that is not behind p, and whether the index is
// complete.
func (s *segment) before(p Position) (waypoint, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := sort.Search(len(s.index), func(i int) bool { return s.index[i].after > p })
	if i == 0 {
		return s.start(), s.indexed
	}
	return s.index[i-1], s.indexed
}

func (s *segment) start() waypoint {
	return waypoint{s.hdr.tail.pos, headerLen, s.hdr.tail.crc}
}

// segmentName is the file name of segment num.
func segmentName(num uint64) string { return fmt.Sprintf("%08d.kml", num) }

// segmentNum is the number in a file name; ok is false for other files.
func segmentNum(name string) (num uint64, ok bool) {
	base, found := strings.CutSuffix(name, ".kml")
	n, err := strconv.ParseUint(base, 10, 63)
	return n, found && err == nil && segmentName(n) == name
}

// listSegments is the numbers of the segments in dir, rising.
func listSegments(fs fileSystem, dir string) ([]uint64, error) {
	names, err := fs.List(dir)
	if err != nil {
		return nil, err
	}
	var nums []uint64
	for _, n := range names {
		if num, ok := segmentNum(n); ok {
			nums = append(nums, num)
		}
	}
	sort.Slice(nums, func(i, j int) bool { return nums[i] < nums[j] })
	return nums, nil
}

func segmentPath(dir string, num uint64) string { return filepath.Join(dir, segmentName(num)) }
