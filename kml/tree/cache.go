package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/local"
)

// Upstream is what a Cache asks of its owner. Its methods may be called at the
// same time; except Changed they are called without a lock of the cache held and
// may wait until ctx ends. EHOSTDOWN says that the master cannot be reached.
type Upstream interface {
	// List brings the entries of a folder into the cache (see Fill), so that
	// it is Listed.
	List(ctx context.Context, oid kml.OID) error
	// Find brings an object the cache does not know; ESTALE when there is none.
	Find(ctx context.Context, oid kml.OID) error
	// OpenVersion opens the present version of a file's contents.
	OpenVersion(ctx context.Context, oid kml.OID) (Source, error)
	// Changed says that the local log has grown. It does not block and does not
	// call the cache.
	Changed()
	// Joins reports whether changes of a file on two sides are to be joined, so that
	// what they were made from is to be kept. It may call what reads of the cache's
	// tree, and does not block.
	Joins(oid kml.OID) bool
	// Settle waits until a store is kept so that a crash of the machine does not
	// lose it, and, while the master can be reached, has been taken by it.
	Settle(ctx context.Context, e *local.Entry) error
}

// Source is one version of a file's contents at the master.
type Source interface {
	// ReadAt fills p unless the file ends. ESTALE: the version is gone.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	Version() kml.Position
	Size() uint64
	Close() error
}

// CacheOptions tune a Cache. Upstream must be set.
type CacheOptions struct {
	Upstream Upstream
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Logger takes changes of state; nil is silence.
	Logger *slog.Logger
	// WholeMax is the size in bytes up to which a file is fetched whole when it
	// is opened; larger ones come as they are read. 0 is 16 MiB.
	WholeMax uint64
	// StoreIdle and StoreBusy are as in Options.
	StoreIdle, StoreBusy time.Duration
	// SyncClose makes a flush, and so close, wait as fsync does.
	SyncClose bool
	// SyncEvery is after how long changes are made durable here unless somebody asks
	// for it before; 0 is 5 s.
	SyncEvery time.Duration
	// Boot is the run of the machine; zero is the kernel's word.
	Boot Boot
}

func (o *CacheOptions) fill() {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.WholeMax == 0 {
		o.WholeMax = 16 << 20
	}
	if o.StoreIdle <= 0 {
		o.StoreIdle = time.Second
	}
	if o.StoreBusy <= 0 {
		o.StoreBusy = 30 * time.Second
	}
	if o.SyncEvery <= 0 {
		o.SyncEvery = 5 * time.Second
	}
}

// Cache is the journaled tree of an on-demand client. What it shows is the
// master's tree at the cursor, which the index has, with the changes of the local
// log on top (see view). Names, attributes and xattrs are there; what is present
// of the bytes is in files named by oid and version:
//
//	objects/xx/OID.VERSION  the bytes of one version of the master's, or some
//	objects/xx/OID.local    bytes that were written here and have not come back
//
// A file of a version never changes its bytes, so an index that is older or
// newer than the files only means that something is fetched again.
//
// A change made here is in the local log before it is visible. It leaves the view
// when it has come back in the master's log, in the same moment in which the
// index takes it up, and the local log when it is durable there.
//
// Lock order: amu, cacheObject.mu, view.mu, the local log's and the index's. A
// handle's mu comes before them.
type Cache struct {
	dir    string
	opt    CacheOptions
	logger *slog.Logger
	up     Upstream

	state     *State
	index     atomic.Pointer[Index]
	log       *local.Log
	view      *view
	dirty     *Slots
	locks     *lockTable
	objects   cacheObjects
	attic     *attic
	watch     watchers
	keep      keeping
	forgotten int         // changes that a crash of the machine took
	noClone   atomic.Bool // blocks cannot be shared on this file system

	amu     sync.Mutex // records, listings and presence go in one at a time
	fills   int        // listings on their way
	recent  []*kml.Record
	retired []*Index // of before a reset: a reader may still be in one

	pmu    sync.Mutex // guards what follows
	cursor kml.Position
	crc    uint32
	moved  chan struct{} // closed when the cursor moves

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	kick   chan struct{} // an object became open-dirty
	toSync chan struct{} // the local log has grown
	wg     sync.WaitGroup
	closed sync.Once
	endErr error
}

const (
	cacheDirtySlots = 4096
	cacheDirtySize  = 64
	localSuffix     = ".local"
)

// OpenCache opens the cache in dir, or makes one there. What is on the disk is
// used again. A second opener gets a *LockedError.
func OpenCache(dir string, o CacheOptions) (*Cache, error) {
	o.fill()
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if o.Boot, err = bootOr(o.Boot); err != nil {
		return nil, err
	}
	st, err := OpenState(dir)
	if errors.Is(err, ErrNotFileset) {
		st, err = CreateState(dir, Fileset{Role: RoleCache})
	}
	if err != nil {
		return nil, err
	}
	if r := st.Fileset().Role; r != RoleCache {
		return nil, errors.Join(fmt.Errorf("%s: is a %s, not a cache; give an empty folder", dir, r), st.Close())
	}
	c := &Cache{dir: dir, opt: o, logger: o.Logger, up: o.Upstream, state: st, view: newView(),
		moved: make(chan struct{}), kick: make(chan struct{}, 1), toSync: make(chan struct{}, 1)}
	// The cache lives until Close, whatever the context of who opened it.
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if err := c.openParts(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", dir, err), c.closeParts())
	}
	c.wg.Go(c.cutLoop)
	c.wg.Go(c.syncLoop)
	return c, nil
}

func (c *Cache) openParts() error {
	for _, d := range []string{"objects", "stage", "local", "conflicts"} {
		if err := os.MkdirAll(c.state.Path(d), 0o700); err != nil {
			return err
		}
	}
	x, err := OpenIndex(c.state.Path("index.db"), c.indexOptions())
	if errors.Is(err, ErrIndexDamaged) {
		c.logger.Warn("index of the cache is damaged; names are fetched again", "path", c.dir, "err", err)
		if err := os.Remove(c.state.Path("index.db")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		x, err = OpenIndex(c.state.Path("index.db"), c.indexOptions())
	}
	if err != nil {
		return err
	}
	c.index.Store(x)
	c.cursor, c.crc = x.Cursor(), x.CursorCRC()
	if c.dirty, err = OpenSlots(c.state.Path("dirty"), cacheDirtySlots, cacheDirtySize); err != nil {
		return err
	}
	c.locks = newLockTable()
	if c.attic, err = openAttic(c.state.Path("attic")); err != nil {
		return err
	}
	if err := emptyDir(c.state.Path("stage")); err != nil {
		return err
	}
	if c.log, err = local.Open(c.state.Path("local")); err != nil {
		return err
	}
	crashed, err := c.crashed()
	if err == nil && crashed {
		err = c.afterCrash()
	}
	if err == nil {
		err = c.beginRun()
	}
	if err != nil {
		return err
	}
	c.keep.m = loadKept(c.state.Path(keptFile))
	if err := c.restoreLocal(); err != nil {
		return err
	}
	return c.restoreDirty()
}

// indexOptions keep outcomes of this site's records only.
func (c *Cache) indexOptions() IndexOptions {
	return IndexOptions{Logger: c.logger, Track: func(id kml.SiteID) bool { return id == c.state.Fileset().Site }}
}

func emptyDir(path string) error {
	es, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range es {
		if err := os.RemoveAll(filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// dropFiles removes the bytes of all versions of the master's; with all also those
// that were written here, whose stores are in the local log.
func (c *Cache) dropFiles(all bool) error {
	if err := os.Remove(c.state.Path(keptFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	root := c.state.Path("objects")
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !all && strings.HasSuffix(p, localSuffix) {
			return err
		}
		return os.Remove(p)
	})
}

// Close cuts the stores of what was written, makes the cache durable and gives
// the folder up. It may be called twice. Handles must be closed before.
func (c *Cache) Close() error {
	c.closed.Do(func() {
		c.cancel()
		c.wg.Wait()
		c.endErr = c.closeParts()
	})
	return c.endErr
}

func (c *Cache) closeParts() error {
	c.cancel()
	var errs []error
	c.objects.closeAll()
	c.wg.Wait()
	if x := c.index.Load(); x != nil {
		errs = append(errs, x.Close())
		for _, x := range c.retired {
			errs = append(errs, x.Close())
		}
		if fd, err := unix.Open(c.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
			errs = append(errs, unix.Syncfs(fd), unix.Close(fd))
		}
		if errors.Join(errs...) == nil {
			errs = append(errs, renameio.WriteFile(c.state.Path(cleanMark), []byte(cleanText), 0o600))
		}
	}
	if c.dirty != nil {
		errs = append(errs, c.dirty.Close())
	}
	if c.log != nil {
		errs = append(errs, c.log.Close())
	}
	return errors.Join(append(errs, c.state.Close())...)
}

// State is the cache's state folder.
func (c *Cache) State() *State { return c.state }

// Dir is the folder the cache lies in, as an absolute path.
func (c *Cache) Dir() string { return c.dir }

// Cursor is the last position applied, and the CRC of the chain there.
func (c *Cache) Cursor() (kml.Position, uint32) {
	c.pmu.Lock()
	defer c.pmu.Unlock()
	return c.cursor, c.crc
}

// Reach waits until the record at pos has been applied, or ctx ends.
func (c *Cache) Reach(ctx context.Context, pos kml.Position) error {
	for {
		c.pmu.Lock()
		at, moved := c.cursor, c.moved
		c.pmu.Unlock()
		if at >= pos {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-c.ctx.Done():
			return syscall.ESHUTDOWN
		}
	}
}

// Moved is closed when the cursor moves on from where Cursor saw it last.
func (c *Cache) Moved() <-chan struct{} {
	c.pmu.Lock()
	defer c.pmu.Unlock()
	return c.moved
}

func (c *Cache) advance(pos kml.Position, crc uint32) {
	c.pmu.Lock()
	defer c.pmu.Unlock()
	c.cursor, c.crc = pos, crc
	close(c.moved)
	c.moved = make(chan struct{})
}

// Object is an object as it is shown here; ErrNotFound when it is not known. It
// must not be changed.
func (c *Cache) Object(oid kml.OID) (*Object, error) { return c.get(oid) }

// Child is what a name in a folder holds, as far as it is known here.
func (c *Cache) Child(parent kml.OID, name string) (kml.OID, bool) {
	return c.child(Name{parent, name})
}

// MasterObject, MasterChild and MasterNames are the same in the master's tree as
// of the cursor, without what was changed here.
func (c *Cache) MasterObject(oid kml.OID) (*Object, error) { return c.index.Load().Get(oid) }

// MasterChild is what a name in a folder holds at the master.
func (c *Cache) MasterChild(parent kml.OID, name string) (kml.OID, bool) {
	oid, _, ok := c.index.Load().Child(parent, name)
	return oid, ok
}

// MasterNames is every name an object has at the master.
func (c *Cache) MasterNames(oid kml.OID) []Name { return c.index.Load().Names(oid) }

// Flush writes what is known of the master's tree to the disk, so that it is
// known after a kill too.
func (c *Cache) Flush() error { return c.index.Load().Flush() }

// Flushed is the position up to which the index would be after a crash.
func (c *Cache) Flushed() kml.Position { return c.index.Load().Flushed() }

// Origin tells whether a record of a site has been applied, and where.
func (c *Cache) Origin(o kml.Origin) (pos kml.Position, ok bool) {
	_ = c.index.Load().Update(func(b *Batch) error {
		pos, ok = b.Applied(o)
		return nil
	})
	return pos, ok
}

// objectPath is where bytes of a version of oid are.
func (c *Cache) objectPath(oid kml.OID, v kml.Position) string {
	return c.state.Path("objects", fmt.Sprintf("%02x", uint8(oid)), fmt.Sprintf("%016x.%016x", uint64(oid), uint64(v)))
}

// localPath is where bytes of oid that were written here are.
func (c *Cache) localPath(oid kml.OID) string {
	return c.state.Path("objects", fmt.Sprintf("%02x", uint8(oid)), fmt.Sprintf("%016x%s", uint64(oid), localSuffix))
}

// openObject opens a file of the objects folder, which makes its parent when
// it is to be created.
func openObjectFile(path string, flags int) (int, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
	if err == unix.ENOENT && flags&unix.O_CREAT != 0 {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return -1, err
		}
		fd, err = unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
	}
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}
