package kml

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Scanner reads a log from its oldest record to its end as bytes come, without
// opening it as a Log: from a folder of segments, a single file that holds them
// one behind the other, or a pipe. It changes and locks nothing, and a log that
// is being written may be scanned. It is for one goroutine.
//
// Unlike a Reader it can go on behind damage: Next returns it as a *Damage, and
// the call after that continues with what can be read again.
type Scanner struct {
	dir   string   // of parts; empty: one stream
	parts []uint64 // segments that come yet
	last  uint64   // number of the segment that was opened last

	name    string
	f       io.Closer
	br      *bufio.Reader // nil: between two parts
	ended   bool          // br holds the rest of the part, whatever is appended to it
	off     int64         // in the part, of what Next looks at
	held    int           // bytes of the record handed out last
	heldOff int64
	lost    bool      // the chain was lost: the next header is taken as it is
	gap     *Damage   // what was returned last, while nothing good came behind it
	open    []*Damage // those that no mark covers yet

	segments int // headers taken up

	started bool
	first   header
	st      tail
	fileset [16]byte
}

// Damage is a stretch of a log that is not what was written. It is an error.
// Next and Mark are filled in as the scan goes on.
type Damage struct {
	Segment string   // path of the segment or file
	Offset  int64    // of the first bad byte's record, in it
	Bytes   int64    // from there to where reading goes on, or to the end of the segment
	After   Position // the last good record before it
	CRC     uint32   // the chain's there
	Next    Position // the first good record behind it; 0: none
	Mark    Position // a mark behind it that says After's successor was durable; 0: none
	Err     error    // what is wrong there: ErrCorrupt, ErrShort or ErrChain
}

// Error names the place.
func (d *Damage) Error() string {
	return fmt.Sprintf("%s: offset %d, after position %s: %v", d.Segment, d.Offset, d.After, d.Err)
}

// Unwrap gives what is wrong at the place.
func (d *Damage) Unwrap() error { return d.Err }

// Torn says that the damage is the beginning of a record at the end of the log,
// as a writer leaves it that was killed, or is seen in the middle of a write.
// It costs nothing that was acknowledged as durable.
func (d *Damage) Torn() bool { return d.Next == 0 && d.Mark == 0 && errors.Is(d.Err, ErrShort) }

// scanBuffer holds the longest record, and a good read ahead.
const scanBuffer = 4 * MaxRecord

// OpenScanner scans the log at path: a folder of segments, or a file that holds
// them one behind the other, as /.mezzo/kml of a served tree does.
func OpenScanner(path string) (*Scanner, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		s := NewScanner(path, f)
		s.f = f
		return s, nil
	}
	nums, err := listSegments(osFS{}, path)
	if err != nil {
		return nil, err
	}
	if len(nums) == 0 {
		return nil, fmt.Errorf("%s: no log here: %w", path, os.ErrNotExist)
	}
	return &Scanner{dir: path, parts: nums}, nil
}

// NewScanner scans a log in one stream; name stands in errors.
func NewScanner(name string, r io.Reader) *Scanner {
	return &Scanner{name: name, br: bufio.NewReaderSize(r, scanBuffer)}
}

// Close gives back what the scanner holds. It may be called twice.
func (s *Scanner) Close() error {
	s.parts, s.br = nil, nil
	if s.f == nil {
		return nil
	}
	err := s.f.Close()
	s.f = nil
	return err
}

// Fileset is the identity the segments bear, once Next was called.
func (s *Scanner) Fileset() [16]byte { return s.fileset }

// Start is the position before the log's first record, and the chain's CRC
// there, once Next was called.
func (s *Scanner) Start() (Position, uint32) { return s.first.tail.pos, s.first.tail.crc }

// Pos is the last record read, and the chain's CRC after it.
func (s *Scanner) Pos() (Position, uint32) { return s.st.pos, s.st.crc }

// Durable is what the last mark read says is durable, and the mark's position.
func (s *Scanner) Durable() (durable, mark Position) { return s.st.durable, s.st.mark }

// EpochID is the random id of the epoch of Pos.
func (s *Scanner) EpochID() [16]byte { return s.st.epochID }

// Where is the file the last record came from, and its offset there.
func (s *Scanner) Where() (name string, off int64) { return s.name, s.heldOff }

// Next is the next record; its Bytes are good until the next call. io.EOF: the
// end. A *Damage: bytes that are no record of this log; Next may be called
// again and goes on behind them. ErrNewer: a newer mezzo wrote what comes.
// ErrTruncated: retention took a segment while it was waited for.
func (s *Scanner) Next() (Raw, error) {
	if err := s.discard(s.held); err != nil {
		return Raw{}, err
	}
	s.held = 0
	for {
		w, err := s.step()
		switch {
		case err == errAgain:
			continue
		case errors.Is(err, ErrNewer):
			return Raw{}, fmt.Errorf("%s: offset %d: %w", s.name, s.off, err)
		case errors.Is(err, ErrCorrupt), errors.Is(err, ErrShort), errors.Is(err, ErrChain):
			return Raw{}, s.damage(err)
		case err == nil:
			s.settle(w)
		}
		return w, err
	}
}

// NextRecord is Next, decoded. What a writer left unfinished at the end, or is
// writing just now, is not there: io.EOF.
func (s *Scanner) NextRecord() (*Record, error) {
	w, err := s.Next()
	if err == nil {
		return w.Record()
	}
	var d *Damage
	if !errors.As(err, &d) {
		return nil, err
	}
	if _, next := s.Next(); next == io.EOF && d.Torn() {
		return nil, io.EOF
	}
	return nil, err
}

// errAgain is a step that brought no record.
var errAgain = errors.New("no record yet")

// step reads one header or record, or opens the next part.
func (s *Scanner) step() (Raw, error) {
	if s.br == nil {
		return Raw{}, s.nextPart()
	}
	b, err := s.peekAll(8)
	if err != nil {
		return Raw{}, err
	}
	if len(b) == 0 {
		return Raw{}, s.endPart()
	}
	if s.dir != "" && s.off == 0 || s.dir == "" && (!s.started || strings.HasPrefix(headerMagic, string(b))) {
		return Raw{}, s.header()
	}
	n, err := recordLen(b)
	if err != nil {
		return Raw{}, err
	}
	if b, err = s.peekAll(n); err != nil {
		return Raw{}, err
	}
	_, crc, err := checkChained(b, s.st.crc)
	if err == nil {
		err = s.st.advance(b, crc)
	}
	if err != nil {
		return Raw{}, err
	}
	s.held, s.heldOff = n, s.off
	return Raw{rawPos(b), rawOp(b), crc, b}, nil
}

// nextPart begins the next part.
func (s *Scanner) nextPart() error {
	if len(s.parts) == 0 {
		return io.EOF
	}
	num := s.parts[0]
	if s.started && num != s.last+1 {
		s.name, s.off = segmentPath(s.dir, s.last+1), 0
		s.last = num - 1
		return fmt.Errorf("segment is missing: %w", ErrShort)
	}
	s.parts = s.parts[1:]
	s.name, s.last, s.off = segmentPath(s.dir, num), num, 0
	f, err := os.Open(s.name)
	if errors.Is(err, os.ErrNotExist) {
		if !s.started && len(s.parts) > 0 {
			return errAgain // retention took it since the folder was read
		}
		return gone(err)
	}
	if err != nil {
		return err
	}
	s.f, s.br, s.ended = f, bufio.NewReaderSize(f, scanBuffer), false
	return errAgain
}

// endPart ends a part; an empty one is a segment only if others follow.
func (s *Scanner) endPart() error {
	if s.off == 0 && (s.dir == "" || len(s.parts) > 0) {
		s.closePart()
		return fmt.Errorf("no segment header: %w", ErrShort)
	}
	s.closePart()
	return errAgain
}

func (s *Scanner) closePart() {
	if s.f != nil {
		s.f.Close()
	}
	s.f, s.br = nil, nil
}

// header takes up a segment's header.
func (s *Scanner) header() error {
	b, err := s.peekAll(headerLen)
	if err != nil {
		return err
	}
	h, err := parseHeader(b)
	if err != nil {
		return err
	}
	if !s.started {
		s.started, s.first, s.fileset, s.st = true, h, h.fileset, h.tail
	} else if s.lost && h.tail.pos >= s.st.pos {
		s.fileset, s.st, s.lost = h.fileset, h.tail, false
	} else if h.tail != s.st || h.fileset != s.fileset {
		return fmt.Errorf("segment begins after %s, not after %s: %w", h.tail.pos, s.st.pos, ErrChain)
	}
	s.segments++
	s.cover()
	if err := s.discard(headerLen); err != nil {
		return err
	}
	return errAgain
}

// peek is the next n bytes, or fewer at the part's end.
func (s *Scanner) peek(n int) ([]byte, error) {
	b, err := s.br.Peek(n)
	if err == nil || err == io.EOF {
		return b, nil
	}
	return nil, fmt.Errorf("%s: offset %d: %w", s.name, s.off, err)
}

// peekAll is peek where a writer may be at work. What is short when looked at
// once may be whole when looked at again, and would then pass for damage with
// good records behind it. So a part ends where it is found to end, once: if it is
// the last with anything in it, so does the log; if others follow, it was written
// to its end before they were, and is looked at after them.
func (s *Scanner) peekAll(n int) ([]byte, error) {
	b, err := s.peek(n)
	for err == nil && len(b) < n && !s.ended {
		followed := s.followed()
		had := len(b)
		if b, err = s.peek(n); err != nil || len(b) > had {
			continue
		}
		s.ended = true
		if !followed {
			s.parts = nil
		}
		// All that is left is shorter than a record: the buffer holds it.
		s.br = bufio.NewReaderSize(bytes.NewReader(bytes.Clone(b)), scanBuffer)
		b, err = s.peek(n)
	}
	return b, err
}

// followed says that a later part has something in it.
func (s *Scanner) followed() bool {
	for _, num := range s.parts {
		if st, err := os.Stat(segmentPath(s.dir, num)); err == nil && st.Size() > 0 {
			return true
		}
	}
	return false
}

func (s *Scanner) discard(n int) error {
	if n == 0 || s.br == nil {
		return nil
	}
	k, err := s.br.Discard(n)
	s.off += int64(k)
	return err
}

// settle tells the damage before w that w is good, and what a mark covers.
func (s *Scanner) settle(w Raw) {
	if s.gap != nil {
		s.gap.Next, s.gap = w.Pos, nil
	}
	s.lost = false
	s.cover()
}

// cover tells damage of a mark behind it.
func (s *Scanner) cover() {
	kept := s.open[:0]
	for _, d := range s.open {
		if s.st.durable > d.After && s.st.mark > d.After {
			d.Mark = s.st.mark
		} else {
			kept = append(kept, d)
		}
	}
	s.open = kept
}

// damage looks for where reading can go on, in this part; else the next header
// is taken as it is.
func (s *Scanner) damage(bad error) error {
	d := &Damage{Segment: s.name, Offset: s.off, After: s.st.pos, CRC: s.st.crc, Err: bad}
	s.lost, s.gap = true, d
	s.open = append(s.open, d)
	for s.br != nil {
		b, err := s.peek(headerLen)
		if err != nil {
			return err
		}
		if len(b) < MinRecord {
			if err := s.discard(len(b)); err != nil {
				return err
			}
			break
		}
		if s.resumes(b) {
			break
		}
		if err := s.discard(8); err != nil {
			return err
		}
	}
	d.Bytes = s.off - d.Offset
	return d
}

// resumes says whether b begins with a header or a record from which reading
// goes on. A record becomes the chain's new beginning.
func (s *Scanner) resumes(b []byte) bool {
	if string(b[:8]) == headerMagic && (s.dir == "" || s.off == 0) {
		h, err := parseHeader(b)
		return err == nil && h.tail.pos >= s.st.pos
	}
	n, err := recordLen(b)
	if err != nil {
		return false
	}
	if b, err = s.peek(n); err != nil {
		return false
	}
	_, prev, _, err := checkFrame(b)
	p := rawPos(b)
	if err != nil || p <= s.st.pos || p.Recno() <= s.st.pos.Recno() {
		return false
	}
	s.st.pos, s.st.crc = MakePosition(s.st.pos.Epoch(), p.Recno()-1), prev
	s.started = true
	return true
}
