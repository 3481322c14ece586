package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/mezzofs/mezzo/kml"
)

// Errors of the index.
var (
	ErrNotFound     = errors.New("no such object")
	ErrIndexDamaged = errors.New("index is damaged")
)

// IndexOptions tune an Index. The zero value works.
type IndexOptions struct {
	Logger *slog.Logger
	// Track says of which sites the outcome of each record is kept until it is
	// forgotten; nil is all of them.
	Track func(kml.SiteID) bool
	// FlushSize and FlushEvery are how many changes, and how long, may stand in
	// memory; 0 is 8192 and 1 s.
	FlushSize  int
	FlushEvery time.Duration
	// Firm says up to which position changes may go to the file: what a commit
	// covers, so that a crash of the machine leaves no index that is ahead of
	// history. It may be called from any goroutine and must not use the index. nil
	// is no bound.
	Firm func() kml.Position
	// Before is called before the file gets to a position; its error leaves the
	// file as it is, to be tried again. It must not wait for a lock that is held
	// over an Update. nil: nothing is.
	Before func(kml.Position) error
	// CheckMax is how large a file may be, in bytes, to be read whole before it is
	// used (see Check).
	CheckMax int64

	failFlush func() error // tests: what a flush fails with
}

// Index knows every object of a tree: by oid, by name, by inode number. Changes
// go to memory at once and to a bbolt file later, together with the position of
// the log they belong to (the cursor): the file is behind the log, and behind
// what of it is durable. It may be used by many
// goroutines; one Update runs at a time.
type Index struct {
	db     *bolt.DB
	path   string
	bad    atomic.Bool // damage was found inside the file
	torn   atomic.Bool // an entry was found that is
	whole  bool        // the file was read whole when it was opened
	opt    IndexOptions
	logger *slog.Logger

	wmu   sync.Mutex // one Update
	batch Batch      // of the Update under way; its room is kept

	mu     sync.RWMutex
	layers []*overlay // newest first; never empty; only the newest changes
	// waiting: the newest has what should be written and is not firm.
	waiting bool
	room    sync.Cond // on mu: a flush has made room
	clean   readCache // of the file, below the layers
	readers readers
	flushed kml.Position // cursor of the file
	fmu     sync.Mutex   // one flush
	kick    chan struct{}
	stop    chan struct{}
	done    chan struct{}
	once    sync.Once
	err     error // of the last flush; guarded by mu
}

// The buckets. Keys are big-endian, so that they sort; values are sealed (see
// seal), but for the version.
var buckets = struct{ obj, name, link, ino, origin, site, meta []byte }{
	obj:    []byte("obj"),    // oid -> Object
	name:   []byte("name"),   // parent oid, name -> oid, known
	link:   []byte("link"),   // oid, parent oid, name -> nothing: names of objects with several
	ino:    []byte("ino"),    // inode number -> oid
	origin: []byte("origin"), // site, seq -> position
	site:   []byte("site"),   // site -> lastSeq, maxCounter, forgotten
	meta:   []byte("meta"),   // version, cursor
}

// mmapAhead is address space, not memory: a file that outgrows its mapping has to
// wait for every reader, a snapshot stream among them.
const (
	indexVersion = 2
	mmapAhead    = 8 << 30
)

// OpenIndex opens or makes an index. One that cannot be read is
// ErrIndexDamaged; it can be removed and made again from the log.
func OpenIndex(path string, o IndexOptions) (*Index, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.FlushSize <= 0 {
		o.FlushSize = 8192
	}
	if o.FlushEvery <= 0 {
		o.FlushEvery = time.Second
	}
	db, err := openBolt(path, &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType, InitialMmapSize: mmapAhead})
	if err != nil {
		if _, ok := errors.AsType[*os.PathError](err); ok || errors.Is(err, bolterrors.ErrTimeout) {
			return nil, err
		}
		return nil, fmt.Errorf("%s: %w: %w", path, ErrIndexDamaged, err)
	}
	x := &Index{db: db, path: path, opt: o, logger: o.Logger, kick: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	x.room.L = &x.mu
	cursor, crc, err := x.prepare()
	if err == nil {
		err = x.checkFirst()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), db.Close())
	}
	x.layers = []*overlay{newOverlay(cursor)}
	x.layers[0].crc, x.flushed = crc, cursor
	go x.flusher()
	return x, nil
}

// prepare makes the buckets of a new file and reads the cursor of an old one.
func (x *Index) prepare() (cursor kml.Position, crc uint32, err error) {
	err = x.update(func(tx *bolt.Tx) error {
		meta := tx.Bucket(buckets.meta)
		if meta == nil {
			for _, b := range [][]byte{buckets.obj, buckets.name, buckets.link, buckets.ino, buckets.origin, buckets.site, buckets.meta} {
				if _, err := tx.CreateBucketIfNotExists(b); err != nil {
					return err
				}
			}
			return tx.Bucket(buckets.meta).Put([]byte("version"), []byte{indexVersion})
		}
		if v := meta.Get([]byte("version")); len(v) != 1 || v[0] != indexVersion {
			return fmt.Errorf("version %v: %w", v, ErrIndexDamaged)
		}
		f, err := stateOf(tx)
		cursor, crc = f.cursor, f.crc
		return err
	})
	return cursor, crc, err
}

func key64(vs ...uint64) []byte {
	b := make([]byte, 0, 24)
	for _, v := range vs {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b
}

func nameKey(n Name) []byte { return append(key64(uint64(n.Parent)), n.Name...) }

func linkKey(oid kml.OID, n Name) []byte {
	return append(key64(uint64(oid), uint64(n.Parent)), n.Name...)
}

// source is where a value is looked up: overlays, newest first, then the file.
type source struct {
	x      *Index
	layers []*overlay
	r      *reader
}

// read runs f on the present state. f must not keep s.
func (x *Index) read(f func(s source) error) error {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.look(func(r *reader) error { return f(source{x, x.layers, r}) })
}

func getTop(layers []*overlay, oid kml.OID) (*Object, bool) {
	for _, l := range layers {
		if o, ok := l.objs[oid]; ok {
			return o, true
		}
	}
	return nil, false
}

func nameTop(layers []*overlay, n Name) (nameVal, bool) {
	for _, l := range layers {
		if v, ok := l.names[n.Parent][n.Name]; ok {
			return v, true
		}
	}
	return nameVal{}, false
}

func (s source) get(oid kml.OID) (*Object, error) {
	if o, ok := getTop(s.layers, oid); ok {
		if o == nil {
			return nil, ErrNotFound
		}
		return o, nil
	}
	b := s.x.value(s.r, buckets.obj, key64(uint64(oid)))
	if b == nil {
		return nil, ErrNotFound
	}
	return decodeObject(oid, b)
}

func (s source) child(n Name) (nameVal, bool) {
	if v, ok := nameTop(s.layers, n); ok {
		return v, true
	}
	return decodeName(s.x.value(s.r, buckets.name, nameKey(n)))
}

func decodeName(b []byte) (nameVal, bool) {
	if len(b) != 16 {
		return nameVal{}, false
	}
	return nameVal{kml.OID(binary.BigEndian.Uint64(b)), kml.Position(binary.BigEndian.Uint64(b[8:]))}, true
}

// Get is an object by its oid, or ErrNotFound.
func (x *Index) Get(oid kml.OID) (o *Object, err error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	o, hit := getTop(x.layers, oid)
	if !hit {
		o, hit = x.clean.object(oid)
	}
	if hit {
		if o == nil {
			return nil, ErrNotFound
		}
		return o, nil
	}
	err = x.look(func(r *reader) error {
		o, err = source{x: x, r: r}.get(oid)
		return err
	})
	if err == nil || errors.Is(err, ErrNotFound) { // every new object is asked for first
		x.clean.keep(oid, o)
	}
	return o, err
}

// Child is what a name holds. ok is false when it holds nothing; known then
// still says as of when, if anybody ever said so.
func (x *Index) Child(parent kml.OID, name string) (oid kml.OID, known kml.Position, ok bool) {
	n := Name{parent, name}
	x.mu.RLock()
	defer x.mu.RUnlock()
	v, found := nameTop(x.layers, n)
	if !found {
		v, found = x.clean.name(n)
	}
	if !found {
		_ = x.look(func(r *reader) error {
			v, found = source{x: x, r: r}.child(n)
			return nil
		})
		// What is not there is kept, too: every create asks first.
		x.clean.keepName(n, v)
	}
	return v.oid, v.known, found && v.oid != 0
}

// Children are up to max names of a folder that sort after the given one.
func (x *Index) Children(parent kml.OID, after string, max int) (es []NameEntry, err error) {
	err = x.read(func(s source) error {
		es = s.children(parent, after, max)
		return nil
	})
	return es, err
}

func (s source) children(parent kml.OID, after string, max int) []NameEntry {
	fresh := make(map[string]nameVal)
	for i := len(s.layers) - 1; i >= 0; i-- {
		for n, v := range s.layers[i].names[parent] {
			if n > after {
				fresh[n] = v
			}
		}
	}
	order := make([]string, 0, len(fresh))
	for n := range fresh {
		order = append(order, n)
	}
	slices.Sort(order)
	var out []NameEntry
	prefix := key64(uint64(parent))
	c := s.r.bucket(buckets.name).Cursor()
	k, v := c.Seek(nameKey(Name{parent, after + "\x00"}))
	for len(out) < max {
		inFile := len(k) >= 8 && string(k[:8]) == string(prefix)
		switch {
		case inFile && (len(order) == 0 || string(k[8:]) < order[0]):
			if nv, ok := decodeName(s.x.unseal(k, v)); ok && nv.oid != 0 {
				out = append(out, NameEntry{string(k[8:]), nv.oid, nv.known})
			}
			k, v = c.Next()
		case len(order) > 0:
			n := order[0]
			order = order[1:]
			if nv := fresh[n]; nv.oid != 0 {
				out = append(out, NameEntry{n, nv.oid, nv.known})
			}
			if inFile && string(k[8:]) == n {
				k, v = c.Next()
			}
		default:
			return out
		}
	}
	return out
}

// Names are all names of an object.
func (x *Index) Names(oid kml.OID) (out []Name) {
	_ = x.read(func(s source) error {
		out = s.namesOf(oid)
		return nil
	})
	return out
}

// namesOf lists the names of an object. One with a single name has it in the
// object; names of an object that has, or had, several stand in the link table.
func (s source) namesOf(oid kml.OID) []Name {
	set := make(map[Name]bool)
	prefix := key64(uint64(oid))
	c := s.r.bucket(buckets.link).Cursor()
	for k, v := c.Seek(prefix); len(k) >= 16 && string(k[:8]) == string(prefix); k, v = c.Next() {
		s.x.unseal(k, v)
		set[Name{kml.OID(binary.BigEndian.Uint64(k[8:])), string(k[16:])}] = true
	}
	for i := len(s.layers) - 1; i >= 0; i-- {
		for n, there := range s.layers[i].links[oid] {
			set[n] = there
		}
	}
	var out []Name
	for n, there := range set {
		if there {
			out = append(out, n)
		}
	}
	if len(out) == 0 {
		if o, err := s.get(oid); err == nil && o.Parent != 0 {
			out = append(out, Name{o.Parent, o.Name})
		}
	}
	slices.SortFunc(out, func(a, b Name) int {
		if a.Parent != b.Parent {
			return int(int64(a.Parent) - int64(b.Parent))
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}

// ByIno is the object that has, or last had, an inode number. The caller
// compares handles.
func (x *Index) ByIno(ino uint64) (oid kml.OID, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if oid, ok := inoTop(x.layers, ino); ok {
		return oid, oid != 0
	}
	_ = x.look(func(r *reader) error {
		oid, ok = source{x: x, r: r}.byIno(ino)
		return nil
	})
	return oid, ok
}

func inoTop(layers []*overlay, ino uint64) (kml.OID, bool) {
	for _, l := range layers {
		if oid, ok := l.inos[ino]; ok {
			return oid, true
		}
	}
	return 0, false
}

func (s source) byIno(ino uint64) (kml.OID, bool) {
	if oid, ok := inoTop(s.layers, ino); ok {
		return oid, oid != 0
	}
	b := s.x.value(s.r, buckets.ino, key64(ino))
	if len(b) != 8 {
		return 0, false
	}
	return kml.OID(binary.BigEndian.Uint64(b)), true
}

// Cursor is the position of the log up to which the index is.
func (x *Index) Cursor() kml.Position {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.layers[0].cursor
}

// CursorCRC is what SetCursorCRC was last given.
func (x *Index) CursorCRC() uint32 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.layers[0].crc
}

// View is the index at one moment. It must be closed soon: the file cannot
// reuse space while it is open.
type View struct {
	x      *Index
	s      source
	cursor kml.Position
}

// View freezes the present state.
func (x *Index) View() (*View, error) {
	x.wmu.Lock()
	defer x.wmu.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	tx, err := x.db.Begin(false)
	if err != nil {
		return nil, err
	}
	cursor := x.layers[0].cursor
	if x.layers[0].size > 0 {
		x.freeze()
	}
	return &View{x, source{x, x.layers[1:], &reader{tx: tx}}, cursor}, nil
}

// Get is Index.Get at the view's moment.
func (v *View) Get(oid kml.OID) (o *Object, err error) {
	defer v.x.guard(&err, debug.SetPanicOnFault(true))
	return v.s.get(oid)
}

// Children is Index.Children at the view's moment.
func (v *View) Children(parent kml.OID, after string, max int) (es []NameEntry, err error) {
	defer v.x.guard(&err, debug.SetPanicOnFault(true))
	return v.s.children(parent, after, max), nil
}

// each calls f with every object of the file, whatever stands in memory.
func (v *View) each(f func(o *Object) error) (err error) {
	defer v.x.guard(&err, debug.SetPanicOnFault(true))
	return v.s.r.bucket(buckets.obj).ForEach(func(k, b []byte) error {
		if len(k) != 8 {
			return errObject
		}
		o, err := decodeObject(kml.OID(binary.BigEndian.Uint64(k)), v.x.unseal(k, b))
		if err != nil {
			return err
		}
		return f(o)
	})
}

// Cursor is the position the view is as of.
func (v *View) Cursor() kml.Position { return v.cursor }

// Close ends the view.
func (v *View) Close() error { return v.s.r.tx.Rollback() }
