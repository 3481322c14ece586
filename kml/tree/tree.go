package tree

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// Options tune a Tree. The zero value works.
type Options struct {
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Logger takes changes of state and what a person must know; nil is silence.
	Logger *slog.Logger
	// Sync says when changes are made durable (a commit) without being asked by
	// an fsync, and SyncEvery, under SyncInterval, how often; 0 is 1 s.
	Sync      SyncMode
	SyncEvery time.Duration
	// StoreIdle is how long an open file must not have been written to for its
	// store to be cut; 0 is 1 s. StoreBusy is after how long of steady writing
	// it is cut all the same; 0 is 30 s.
	StoreIdle, StoreBusy time.Duration
	// NoWatch turns off the watch for edits behind the tree's back, and the
	// scan for earlier ones; they are then found when they are met.
	NoWatch  bool
	maxMarks int   // tests: another maxMarks; -1 watches the file system
	maxDirty int   // tests: another IndexOptions.FlushSize
	everyLog int64 // tests: another checkpointEvery
	// RetainSize and RetainAge are how much of the log is kept, in bytes and
	// since its records were made: whichever keeps more. 0 are kml's defaults.
	RetainSize int64
	RetainAge  time.Duration
	// Boot is the machine's present run; zero asks the kernel. What a run that
	// did not end cleanly left counts as a crash of the machine when its Boot
	// was another.
	Boot Boot
	// Progress hears of an import, with the number of files so far.
	Progress func(files int64)
}

func (o *Options) fill() {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.SyncEvery <= 0 {
		o.SyncEvery = time.Second
	}
	if o.StoreIdle <= 0 {
		o.StoreIdle = time.Second
	}
	if o.StoreBusy <= 0 {
		o.StoreBusy = 30 * time.Second
	}
}

// Tree is a journaled tree over a directory: what a master serves. It is an
// FS. Every change that goes through it, and every change of the directory that
// it notices, is one record in its log.
//
// Lock order: names (folders' stripes, ascending), objs (objects' stripes,
// ascending), openObject.mu, openObject.dmu, jmu, then the locks of log and
// index, then objects.mu.
type Tree struct {
	dir    string
	opt    Options
	logger *slog.Logger
	rootfd int       // O_PATH descriptor of dir
	dev    [2]uint32 // the file system dir is on
	root   bool      // the process may give files away
	self   Cred      // the process, as records name it

	state   *State
	replica *Replica  // nil: a master's tree
	mounts  sync.Map  // Name of what is left out: another file system is mounted there
	past    *evidence // while history that was cut is being settled
	// While history is settled. stripped: the index was made again for another
	// place and knows no inodes. lost: history was given up, see startOver.
	stripped bool
	lost     atomic.Bool
	damage   *damage
	suspect  atomic.Pointer[Suspect] // nil: no crash left anything to look at
	index    *Index
	log      *kml.Log
	intents  *Slots
	dirty    *Slots
	dirs     *dirCache
	locks    *lockTable
	sites    *sites
	policy   policyText
	objects  objects
	watch    watchers
	watcher  *watcher // nil: foreign edits are found on use
	stamps   stamps
	pictures pictures
	chunks   chunkCache
	bufs     sync.Pool // *[]byte, for intents

	names stripes // a folder's entries, by the folder's oid
	objs  stripes // an object's attributes and inode

	jmu     sync.Mutex // log, index and watchers advance together under it
	site    kml.SiteID
	seq     uint64   // own records
	changes []Change // room for those of a record
	fresh   unsynced // what records since the last commit touched

	serving   atomic.Bool // recovery is through
	importing atomic.Bool // until Init is through
	failed    atomic.Pointer[error]
	unsure    atomic.Bool  // a sync failed: what is on the disk is not known
	scanning  atomic.Int32 // scans under way

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	kick   chan struct{} // an object became open-dirty
	wg     sync.WaitGroup
	cmu    sync.Mutex   // one commit at a time
	keepMu sync.Mutex   // one round of retain at a time; guards kept
	kept   checkpointed // the last checkpoint
	rmu    sync.Mutex   // one relieve at a time; taken before cmu
	closed sync.Once
	endErr error
}

// Sizes of the tables.
const (
	intentSlots = 64
	intentSize  = 132 << 10 // kml.MaxRecord and a header
	dirtySlots  = 1024
	dirtySize   = 32
)

// Init makes dir a fileset and journals what is in it. On a folder that is a
// fileset already it is ErrIsFileset. An Init that was interrupted is taken up
// by the next.
func Init(dir string, o Options) error {
	t, err := create(dir, o)
	if err != nil {
		return err
	}
	return t.Close()
}

// Open opens the fileset in dir and brings it up to date after an unclean end:
// it needs no repair command. The directory is this process's until Close; a
// second opener gets a *LockedError. Open sets the process's umask to 0, since
// modes in a tree are those that were asked for.
func Open(dir string, o Options) (*Tree, error) {
	o.fill()
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for again := false; ; again = true {
		st, err := OpenState(dir)
		if err != nil {
			return nil, err
		}
		if st.Fileset().Role == RoleReplica {
			return nil, errors.Join(fmt.Errorf("%s: %w", dir, ErrIsReplica), st.Close())
		}
		t, err := openState(dir, st, o)
		if again || !errors.Is(err, ErrIndexDamaged) {
			return t, err
		}
		// The damaged index was put aside; now it is made anew.
	}
}

func openState(dir string, st *State, o Options) (*Tree, error) {
	t := &Tree{dir: dir, opt: o, logger: o.Logger, state: st, rootfd: -1,
		root: os.Geteuid() == 0, self: processCred(), kick: make(chan struct{}, 1),
		bufs: sync.Pool{New: func() any { return new([]byte) }}}
	t.chunks.t = t
	// The tree's own goroutines live until Close, whatever opened it.
	t.ctx, t.cancel = context.WithCancel(context.Background())
	unix.Umask(0)
	if err := t.openParts(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", dir, err), t.closeParts())
	}
	if err := t.recoverState(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: after an unclean end: %w", dir, err), t.closeParts())
	}
	if err := t.openPolicy(t.ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: policy: %w", dir, err), t.closeParts())
	}
	if !o.NoWatch {
		if err := t.watchDir(); err != nil {
			t.logger.Warn("the directory is not watched; edits behind the tree's back are found on use", "fileset", dir, "err", err)
		}
		t.wg.Go(t.firstScan)
	}
	t.findCheckpoint()
	t.serving.Store(true)
	t.wg.Go(t.cutLoop)
	t.wg.Go(t.retainLoop)
	if !t.index.whole {
		t.wg.Go(t.checkLoop)
	}
	if o.Sync != SyncNever {
		t.wg.Go(t.commitLoop)
	}
	return t, nil
}

// firstScan finds what was edited while nobody watched. The tree is served
// meanwhile: a folder that is used is compared at that moment.
func (t *Tree) firstScan() {
	start := time.Now()
	if err := t.Scan(t.ctx); err != nil {
		if t.ctx.Err() == nil {
			t.logger.Warn("the scan for earlier edits did not end; they are found on use", "fileset", t.dir, "err", err)
		}
		return
	}
	t.logger.Debug("scanned for earlier edits", "fileset", t.dir, "dur", time.Since(start))
}

func (t *Tree) openParts() (err error) {
	fs := t.state.Fileset()
	t.site = fs.Site
	t.importing.Store(fs.Importing)
	if t.opt.Boot, err = bootOr(t.opt.Boot); err != nil {
		return err
	}
	if err := t.openRoot(); err != nil {
		return err
	}
	id, err := uuidBytes(fs.UUID)
	if err != nil {
		return err
	}
	if t.log, err = kml.Open(t.state.Path("kml"), kml.Options{Fileset: id, Now: t.opt.Now}); err != nil {
		return err
	}
	if t.intents, err = OpenSlots(t.state.Path("intents"), intentSlots, intentSize); err != nil {
		return err
	}
	if t.dirty, err = OpenSlots(t.state.Path("dirty"), dirtySlots, dirtySize); err != nil {
		return err
	}
	if t.damage, err = openDamage(t.state.Path("damaged.json")); err != nil {
		return err
	}
	if t.index, err = t.openIndex(); err != nil {
		return err
	}
	if err := t.adoptRoot(); err != nil {
		return err
	}
	t.dirs = newDirCache(t.index, t.rootfd, 0)
	t.locks = newLockTable()
	return nil
}

// openRoot opens the directory.
func (t *Tree) openRoot() (err error) {
	if t.rootfd, err = unix.Open(t.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	var root unix.Statx_t
	if err := unix.Statx(t.rootfd, "", unix.AT_EMPTY_PATH, statxMask, &root); err != nil {
		return err
	}
	t.dev = [2]uint32{root.Dev_major, root.Dev_minor}
	return nil
}

func uuidBytes(s string) (id [16]byte, err error) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 {
		return id, fmt.Errorf("fileset.json: %q is not a UUID", s)
	}
	copy(id[:], b)
	return id, nil
}

// Close cuts the stores of open files, makes all durable and gives the
// directory up. It may be called twice.
func (t *Tree) Close() error {
	t.closed.Do(func() {
		t.cancel()
		t.watcher.close()
		t.wg.Wait()
		t.watcher.end()
		var errs []error
		for _, o := range t.objects.dirtyList() {
			errs = append(errs, t.cut(o))
			t.objects.release(o)
		}
		if t.broken() == nil {
			// The last commit is made although the tree's own context has ended.
			errs = append(errs, t.commit(context.WithoutCancel(t.ctx)))
		}
		err := errors.Join(append(errs, t.closeFiles())...)
		if err == nil && t.broken() == nil {
			err = t.state.endRun()
		}
		t.endErr = errors.Join(err, t.state.Close())
	})
	return t.endErr
}

func (t *Tree) closeParts() error { return errors.Join(t.closeFiles(), t.state.Close()) }

func (t *Tree) closeFiles() error {
	t.cancel()
	var errs []error
	if t.dirs != nil {
		t.dirs.close()
	}
	if t.index != nil {
		errs = append(errs, t.index.Close())
	}
	if t.log != nil {
		errs = append(errs, t.log.Close())
	}
	if t.intents != nil {
		errs = append(errs, t.intents.Close())
	}
	if t.dirty != nil {
		errs = append(errs, t.dirty.Close())
	}
	if t.rootfd >= 0 {
		errs = append(errs, unix.Close(t.rootfd))
	}
	return errors.Join(errs...)
}

// breakDown stops all further changes: tree and log could no longer be kept
// together. What is served stays readable.
func (t *Tree) breakDown(err error) error {
	if t.failed.CompareAndSwap(nil, &err) {
		t.logger.Error("fileset stopped taking changes; restart it when the cause is mended", "fileset", t.dir, "err", err)
	}
	return fmt.Errorf("%w: %w", syscall.EIO, err)
}

// broken is EROFS once the tree has stopped taking changes, and on a replica,
// which takes those of its master alone.
func (t *Tree) broken() error {
	if t.replica != nil {
		return fmt.Errorf("is a replica; change it at its master: %w", syscall.EROFS)
	}
	if p := t.failed.Load(); p != nil {
		return fmt.Errorf("%w: %w", syscall.EROFS, *p)
	}
	return nil
}

// Log is the tree's log. Only the tree appends to it.
func (t *Tree) Log() *kml.Log { return t.log }

// State is the tree's state folder.
func (t *Tree) State() *State { return t.state }

// Dir is the directory, as an absolute path.
func (t *Tree) Dir() string { return t.dir }

// Durable is the last position that a crash of the machine keeps.
func (t *Tree) Durable() kml.Position { return t.log.Durable() }

// Dirty reports whether oid was written to since its last store.
func (t *Tree) Dirty(oid kml.OID) bool {
	_, dirty := t.objects.dataVersion(oid)
	return dirty
}

// Status is what a person wants to know of a tree.
type Status struct {
	Dir        string       `json:"dir"`
	Fileset    string       `json:"fileset"`
	Role       Role         `json:"role"`
	Site       kml.SiteID   `json:"site"`
	First      kml.Position `json:"first"`
	End        kml.Position `json:"end"`
	Durable    kml.Position `json:"durable"`
	LogBytes   int64        `json:"log_bytes"`
	OpenDirty  int          `json:"open_dirty"`
	Damaged    int          `json:"damaged"` // files; see Tree.Damaged
	Mounts     int          `json:"mounts"`  // names left out, since another file system is mounted there
	Failed     string       `json:"failed,omitempty"`
	IndexState kml.Position `json:"index"`
}

// Status may be called at any time.
func (t *Tree) Status() Status {
	fs := t.state.Fileset()
	s := Status{Dir: t.dir, Fileset: fs.UUID, Role: fs.Role, Site: t.site, First: t.log.First(), End: t.log.End(),
		Durable: t.log.Durable(), LogBytes: t.log.Size(), IndexState: t.index.Cursor()}
	dirty := t.objects.dirtyList()
	s.OpenDirty, s.Damaged = len(dirty), len(t.Damaged())
	for _, o := range dirty {
		t.objects.release(o)
	}
	s.Mounts = t.countMounts()
	if p := t.failed.Load(); p != nil {
		s.Failed = (*p).Error()
	}
	return s
}

// countMounts looks again at the names that were left out.
func (t *Tree) countMounts() (n int) {
	t.mounts.Range(func(k, _ any) bool {
		ref, err := t.dirs.get(k.(Name).Parent)
		if err != nil {
			t.mounts.Delete(k)
			return true
		}
		defer ref.release()
		var st unix.Statx_t
		err = unix.Statx(ref.fd, k.(Name).Name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
		if err != nil || st.Dev_major == t.dev[0] && st.Dev_minor == t.dev[1] {
			t.mounts.Delete(k)
			return true
		}
		n++
		return true
	})
	return n
}
