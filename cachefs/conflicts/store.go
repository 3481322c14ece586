package conflicts

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/conflict"
)

// ErrNotFound is a conflict that is not, or no longer, open.
var ErrNotFound = errors.New("no such conflict")

// Conflict is an open conflict.
type Conflict struct {
	ID    uint64       `json:"id"`
	Time  time.Time    `json:"time"`
	What  string       `json:"what"`            // a word: data, name, removed, attribute, ...
	Path  string       `json:"path"`            // where it was when it was found, from the root; for a person
	OID   kml.OID      `json:"oid,omitzero"`    // of the object in the tree
	Other kml.OID      `json:"other,omitzero"`  // of the conflict copy, or of the one with the conflict name
	Field string       `json:"field,omitempty"` // mode, uid, gid, target, or an xattr's name
	Mine  []byte       `json:"mine,omitempty"`  // of a field
	Their []byte       `json:"theirs,omitempty"`
	Side  string       `json:"side,omitempty"` // whose bytes or value are kept: ours, theirs, or none
	Ver   kml.Position `json:"version,omitzero"`
	Size  int64        `json:"size,omitempty"` // of the bytes that are kept
	Bytes bool         `json:"bytes,omitempty"`
	UID   uint32       `json:"uid"` // the owner of the file: the bytes are his
	GID   uint32       `json:"gid"`
	Hold  bool         `json:"manual,omitempty"` // the local change waits for a person
	Copy  string       `json:"copy,omitempty"`   // where Other was when it was found, from the root; for a person
	Why   string       `json:"why,omitempty"`    // of what was given up: for a person
	Key   string       `json:"key,omitempty"`    // what is added again under it takes the place of the one before
}

// String is the conflict in a line, for a person.
func (c Conflict) String() string {
	s := fmt.Sprintf("%d %s %s %q", c.ID, c.Time.UTC().Format(time.RFC3339), c.What, c.Path)
	if c.Field != "" {
		s += fmt.Sprintf(" %s ours=%q theirs=%q", c.Field, c.Mine, c.Their)
	}
	if c.Copy != "" {
		s += fmt.Sprintf(" beside %q", c.Copy)
	}
	if c.Side != "" && (c.Bytes || c.Field != "") {
		s += " kept " + c.Side
	}
	if c.Hold {
		s += " waits"
	}
	if c.Why != "" {
		s += ": " + strings.ReplaceAll(c.Why, "\n", " ")
	}
	return s
}

// Of is a loss as a conflict at a path; the owner and the time are the caller's.
func Of(l conflict.Loss, path string) Conflict {
	c := Conflict{What: l.Row.String(), Path: path, OID: l.OID, Other: l.Other, Field: l.Field, Mine: l.Mine, Their: l.Theirs, Ver: l.Version, Hold: l.Manual}
	switch l.Keep {
	case conflict.KeepMine:
		c.Side = "ours"
	case conflict.KeepTheirs:
		c.Side = "theirs"
	}
	return c
}

// Options tune a Store. The zero value works.
type Options struct {
	MaxAge   time.Duration    // of conflicts with bytes; 0 is 30 days
	MaxBytes int64            // of all that is kept; 0 is 1 GiB
	MaxOpen  int              // how many conflicts there may be; 0 is 10,000
	Now      func() time.Time // nil is time.Now
}

// Store is the list in a folder.
type Store struct {
	dir string
	o   Options

	mu   sync.Mutex
	list []Conflict // by ID
	next uint64
}

const prefix = "kept-"

// Open opens the list in dir, which must exist.
func Open(dir string, o Options) (*Store, error) {
	if o.MaxAge <= 0 {
		o.MaxAge = 30 * 24 * time.Hour
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 1 << 30
	}
	if o.MaxOpen <= 0 {
		o.MaxOpen = 10000
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Store{dir: dir, o: o, next: 1}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("%s: %w", s.path(), err)
	}
	return s, s.dropStray()
}

func (s *Store) path() string { return filepath.Join(s.dir, "list") }

// BytesPath is where the bytes of a conflict are.
func (s *Store) BytesPath(id uint64) string {
	return filepath.Join(s.dir, prefix+strconv.FormatUint(id, 10))
}

func (s *Store) load() error {
	b, err := os.ReadFile(s.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	in := bufio.NewScanner(bytes.NewReader(b))
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var c Conflict
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			return err
		}
		s.list = append(s.list, c)
		s.next = max(s.next, c.ID+1)
	}
	return in.Err()
}

// dropStray removes bytes whose conflict was not written, or is settled.
func (s *Store) dropStray() error {
	es, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range es {
		n, ok := strings.CutPrefix(e.Name(), prefix)
		id, err := strconv.ParseUint(n, 10, 64)
		if !ok || err != nil || s.index(id) >= 0 {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) index(id uint64) int {
	return slices.IndexFunc(s.list, func(c Conflict) bool { return c.ID == id })
}

// save writes the list. The caller holds mu.
func (s *Store) save() error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	for _, c := range s.list {
		if err := e.Encode(c); err != nil {
			return err
		}
	}
	return renameio.WriteFile(s.path(), b.Bytes(), 0o600)
}

// New is a conflict to be kept, with the bytes of the file at Path unless that is "".
type New struct {
	Conflict
	Path string
}

// Add keeps a conflict, and the bytes of the file at path unless that is "": see
// AddAll.
func (s *Store) Add(c Conflict, path string) (uint64, error) {
	ids, err := s.AddAll([]New{{c, path}})
	if len(ids) == 0 {
		return 0, err
	}
	return ids[0], err
}

// AddAll keeps conflicts, all or none, and their bytes: the files are taken, which
// must be on the same file system. A conflict under the key, or about the same field
// of the same object, as one before takes its place. They are durable when AddAll
// returns, but for the bytes, which are as durable as the files were.
func (s *Store) AddAll(add []New) (ids []uint64, err error) {
	if len(add) == 0 {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.list
	s.list = slices.Clone(old)
	var made, again []Conflict
	defer func() {
		if err != nil && ids == nil {
			s.list = old
			err = errors.Join(err, s.unlink(made))
		}
	}()
	for _, n := range add {
		c := n.Conflict
		c.ID = s.next
		if c.Time.IsZero() {
			c.Time = s.o.Now().UTC()
		}
		if n.Path != "" {
			st, err := os.Stat(n.Path)
			if err != nil {
				return nil, err
			}
			c.Bytes, c.Size = true, st.Size()
			// It stays where it was until the list has the conflict: a crash between
			// leaves it to the caller.
			if err := os.Link(n.Path, s.BytesPath(c.ID)); err != nil {
				return nil, err
			}
			made = append(made, c)
		}
		s.next++
		again = append(again, s.replaced(c)...)
		s.list = append(s.list, c)
	}
	gone := append(s.expire(), again...)
	if err := s.save(); err != nil {
		return nil, err
	}
	var errs []error
	for i, n := range add {
		ids = append(ids, s.next-uint64(len(add)-i))
		if n.Path != "" {
			errs = append(errs, os.Remove(n.Path))
		}
	}
	return ids, errors.Join(append(errs, s.unlink(gone))...)
}

// replaced takes what a conflict takes the place of off the list. The caller holds
// mu.
func (s *Store) replaced(c Conflict) (again []Conflict) {
	s.list = slices.DeleteFunc(s.list, func(o Conflict) bool {
		same := c.Key != "" && o.Key == c.Key || c.Field != "" && o.Field == c.Field && o.OID == c.OID && !o.Bytes
		if same {
			again = append(again, o)
		}
		return same
	})
	return again
}

// expire takes what is too old or too much off the list. The caller holds mu.
func (s *Store) expire() (gone []Conflict) {
	var sum int64
	for _, c := range s.list {
		sum += c.Size
	}
	over, last := len(s.list)-s.o.MaxOpen, s.o.Now().Add(-s.o.MaxAge)
	s.list = slices.DeleteFunc(s.list, func(c Conflict) bool {
		drop := over > 0 || c.Bytes && (sum > s.o.MaxBytes || c.Time.Before(last))
		if drop {
			over--
			sum -= c.Size
			gone = append(gone, c)
		}
		return drop
	})
	return gone
}

func (s *Store) unlink(gone []Conflict) error {
	var errs []error
	for _, c := range gone {
		if c.Bytes {
			errs = append(errs, os.Remove(s.BytesPath(c.ID)))
		}
	}
	return errors.Join(errs...)
}

// Expire lets go what is too old, and says what that was.
func (s *Store) Expire() ([]Conflict, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.list
	s.list = slices.Clone(old)
	gone := s.expire()
	if len(gone) == 0 {
		return nil, nil
	}
	if err := s.save(); err != nil {
		s.list = old
		return nil, err
	}
	return gone, s.unlink(gone)
}

// List is the open conflicts, the oldest first.
func (s *Store) List() []Conflict {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.list)
}

// Settled takes a conflict off the list, and its bytes with it.
func (s *Store) Settled(id uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.index(id)
	if i < 0 {
		return fmt.Errorf("%d: %w", id, ErrNotFound)
	}
	old, c := s.list, s.list[i]
	s.list = slices.Delete(slices.Clone(old), i, i+1)
	if err := s.save(); err != nil {
		s.list = old
		return err
	}
	return s.unlink([]Conflict{c})
}

// CopyOf is the conflict copy of an object that is open, or 0: conflict.Host's.
func (s *Store) CopyOf(oid kml.OID) kml.OID {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range slices.Backward(s.list) {
		if c.OID == oid && c.Other != 0 && c.What == conflict.RowData.String() {
			return c.Other
		}
	}
	return 0
}
