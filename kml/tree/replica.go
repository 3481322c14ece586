package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/internal/node"
	"github.com/mezzofs/mezzo/kml"
)

// ReplicaOptions tune a Replica. Fileset must be set for a new one.
type ReplicaOptions struct {
	// Options are those of the tree below; Sync and the retention of its log
	// count, the times of stores do not.
	Options
	// Fileset is the identity of the master's fileset, and Upstream its address,
	// for a folder that is no replica yet.
	Fileset, Upstream string
	// Lack is told of an object whose contents, or which itself, is missing in
	// the directory and has to be brought by Bring. It must not block. nil: what
	// is missing is found by Lacking.
	Lack func(kml.OID)
	// Choose says what of the fileset is kept here; nil is all of it.
	Choose *Choice
	// Owners says whose files are here; nil: the same numbers as at the master.
	Owners *OwnerMap
	// SameChoice takes the choice and the owners that the replica was opened with
	// last instead.
	SameChoice bool
	// Whole has large files replaced whole that could be patched where they lie.
	Whole bool
}

// Replica is a full copy of a master's fileset in an ordinary directory, which
// any program may use. Its index has every name and attribute of the master's
// tree at one position; the directory follows it, object by object, and lacks
// what could not be made or fetched yet.
//
// Every file is replaced whole: who reads sees one version or the next. A record
// is applied in three steps: the directory, the log, the index. The process may
// be killed between any two of them. What a local program changes in the
// directory is put aside and undone.
//
// Its methods may be called at the same time, except Apply, and those of a copy
// (BeginCopy to EndCopy), which belong to one goroutine.
type Replica struct {
	t     *Tree
	lack  func(kml.OID)
	uid   uint32
	gid   uint32
	stage int // descriptor of the stage

	doubt    atomic.Bool // the directory may be ahead of the log
	doubtful atomic.Bool // by one record at most
	unseen   atomic.Bool // something was not looked at because of the doubt
	copying  atomic.Bool
	dirty    atomic.Bool // contents were placed since the last commit
	marker   *marker
	choice   atomic.Pointer[Choice]
	looked   chan struct{}
	unsure   []kml.OID // objects to be adopted again when the doubt ends; of who applies

	applied   atomic.Uint64 // see Applied
	owners    OwnerMap
	wholeOnly bool         // no file is patched where it lies
	patched   atomic.Int64 // files that were, since the start

	cmu    sync.Mutex // a commit
	synced kml.Position

	pmu     sync.Mutex // guards what follows
	moved   chan struct{}
	redress map[kml.OID]bool // attributes are to be set to the master's

	deltas   deltas
	standIns standIns
	troubles troubles
	reverted atomic.Int64 // local edits that were undone since the start
	asides   atomic.Int64 // what was put aside since the start
	skipped  atomic.Int64 // owners and xattrs this process may not set
	seq      atomic.Uint64
}

// OpenReplica opens the replica in dir, or makes the folder one. A second opener
// gets a *LockedError. When Copying reports true, what is there has to be
// compared with the master's snapshot first.
func OpenReplica(dir string, o ReplicaOptions) (*Replica, error) {
	o.fill()
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	st, err := OpenState(dir)
	if errors.Is(err, ErrNotFileset) && o.Fileset != "" {
		st, err = CreateState(dir, Fileset{Role: RoleReplica, UUID: o.Fileset, Upstream: o.Upstream, Copying: true})
	}
	if err != nil {
		return nil, err
	}
	fs := st.Fileset()
	switch {
	case fs.Role != RoleReplica:
		err = fmt.Errorf("%s: %w: it is a %s", dir, ErrNotReplica, fs.Role)
	case o.Fileset != "" && o.Fileset != fs.UUID:
		err = fmt.Errorf("%s: %w: it follows %s, and %s is served there", dir, ErrOtherFileset, fs.UUID, o.Fileset)
	}
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	t := &Tree{dir: dir, opt: o.Options, logger: o.Logger, state: st, rootfd: -1,
		root: os.Geteuid() == 0, kick: make(chan struct{}, 1)}
	t.chunks.t = t
	// The replica's own goroutines live until Close, whatever opened it.
	t.ctx, t.cancel = context.WithCancel(context.Background())
	r := &Replica{t: t, lack: o.Lack, stage: -1, moved: make(chan struct{}), looked: make(chan struct{})}
	r.uid, r.gid = node.Own()
	if r.lack == nil {
		r.lack = func(kml.OID) {}
	}
	r.wholeOnly = o.Whole
	t.replica = r
	if err = r.choose(o.Choose, o.SameChoice); err == nil {
		err = r.mapOwners(o.Owners, o.SameChoice)
	}
	if err == nil {
		err = r.open()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", dir, err), r.closeFiles(), st.Close())
	}
	return r, nil
}

// Errors of opening a replica.
var (
	ErrNotReplica   = errors.New("is not a replica")
	ErrIsReplica    = errors.New("is a replica, which its master alone changes")
	ErrOtherFileset = errors.New("is a replica of another fileset")
)

func (r *Replica) open() (err error) {
	t := r.t
	unix.Umask(0)
	if t.opt.Boot, err = bootOr(t.opt.Boot); err != nil {
		return err
	}
	if err := t.openRoot(); err != nil {
		return err
	}
	for _, d := range []string{"stage", "conflicts", "limbo"} {
		if err := os.MkdirAll(t.state.Path(d), 0o700); err != nil {
			return err
		}
	}
	if err := r.openLost(); err != nil {
		return err
	}
	if r.stage, err = unix.Open(t.Stage(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	if r.marker, err = openMarker(t.state.Path("synced")); err != nil {
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
	if t.sites, err = openSites(t.state.Path("sites.json")); err != nil {
		return err
	}
	if err := r.openIndex(); err != nil {
		return err
	}
	t.dirs = newDirCache(t.index, t.rootfd, 0)
	t.locks = newLockTable()
	if err := t.adoptRoot(); err != nil {
		return err
	}
	if err := r.adoptLimbo(); err != nil {
		return err
	}
	last, err := t.state.lastRun()
	if err != nil {
		return err
	}
	if !t.state.Fileset().Copying {
		if err := r.recover(last); err != nil {
			return err
		}
	}
	if t.state.Fileset().Copying {
		r.copying.Store(true)
		return r.recoverCopy(last)
	}
	return r.serve()
}

// openIndex opens the index; one that cannot be read is made again by a copy.
func (r *Replica) openIndex() error {
	t := r.t
	path := t.state.Path("index.db")
	// Outcomes of others' records are of no use here.
	o := IndexOptions{Logger: t.logger, Track: func(kml.SiteID) bool { return false }, Before: r.beforeFlush, CheckMax: t.state.checkMax(),
		FlushSize: 32 << 10, FlushEvery: 5 * time.Second}
	x, err := OpenIndex(path, o)
	if errors.Is(err, ErrIndexDamaged) {
		t.logger.Warn("index is damaged; the directory is compared with the master", "fileset", t.dir, "err", err)
		if err := errors.Join(ignore(os.Remove(path), os.ErrNotExist), r.startOver()); err != nil {
			return err
		}
		x, err = OpenIndex(path, o)
	}
	t.index = x
	return err
}

// startOver has the next copy compare everything.
func (r *Replica) startOver() error {
	return r.t.state.Update(func(f *Fileset) { f.Copying = true })
}

// StartOver makes the replica one that has to be compared with its master's
// snapshot when it is opened again: the master's history is another by now, or
// no longer reaches back to where the replica is.
// cut: the history was cut, and what the master lost with it is put aside.
func (r *Replica) StartOver(cut bool) error {
	return r.t.state.Update(func(f *Fileset) { f.Copying, f.Cut = true, f.Cut || cut })
}

// recover brings directory, log and index together after an unclean end.
func (r *Replica) recover(last *run) error {
	t := r.t
	if err := r.openLog(nil); err != nil {
		return err
	}
	r.synced = r.marker.pos
	crashed := last != nil && last.BootID != t.opt.Boot.ID || t.state.Copied
	if crashed || t.index.Cursor() > t.log.End() {
		t.logger.Warn("machine crashed; what may be lost is brought again", "fileset", t.dir, "after", r.synced)
		if err := r.rewind(); err != nil || t.state.Fileset().Copying {
			return err
		}
	}
	r.doubt.Store(last != nil || crashed)
	r.doubtful.Store(last != nil && !crashed)
	moved, err := t.catchUp()
	if err != nil {
		return err
	}
	if err := r.finishIntents(); err != nil {
		return err
	}
	if err := r.finishPatches(); err != nil {
		return err
	}
	if err := r.tidyStage(); err != nil {
		return err
	}
	for oid := range moved {
		if err := r.adopt(oid); err != nil {
			return err
		}
	}
	if t.state.Copied {
		// Every inode is another one.
		if err := r.startOver(); err != nil {
			return err
		}
	}
	return t.state.beginRun(t.opt.Boot, t.now())
}

// rewind takes log and index back to what is known to be on the disk. An index
// that is ahead of that has to be made anew.
func (r *Replica) rewind() error {
	t := r.t
	if t.index.Cursor() > r.synced || r.synced < t.log.Start() || r.synced > t.log.End() {
		return r.startOver()
	}
	if err := emptyDir(t.Stage()); err != nil {
		return err
	}
	return t.log.Rewind(r.synced)
}

// recoverCopy goes on with a copy that did not end. Pieces of large files stay,
// unless the machine crashed and took some of them.
func (r *Replica) recoverCopy(last *run) error {
	t := r.t
	if t.log != nil {
		if err := t.log.Close(); err != nil {
			return err
		}
		t.log = nil
	}
	if err := os.RemoveAll(t.state.Path("kml")); err != nil {
		return err
	}
	if last != nil && last.BootID != t.opt.Boot.ID {
		if err := emptyDir(t.Stage()); err != nil {
			return err
		}
	}
	for slot := range t.intents.All() {
		t.intents.Clear(slot)
	}
	if err := r.finishPatches(); err != nil {
		return err
	}
	if err := r.tidyStage(); err != nil {
		return err
	}
	return t.state.beginRun(t.opt.Boot, t.now())
}

// tidyStage takes from the stage what a kill left there, further names of files
// that are in their places above all. Pieces of large files stay.
func (r *Replica) tidyStage() error {
	es, err := readNames(r.stage)
	if err != nil {
		return err
	}
	for _, e := range es {
		var st unix.Stat_t
		if err := unix.Fstatat(r.stage, e.Name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		switch {
		case dir:
			err = unix.Unlinkat(r.stage, e.Name, unix.AT_REMOVEDIR)
		case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink > 1 || strings.Contains(e.Name, stageNewExt):
			err = unix.Unlinkat(r.stage, e.Name, 0)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r.t.state.Path("stage", e.Name), err)
		}
	}
	return nil
}

func (r *Replica) openLog(head []byte) error {
	id, err := uuidBytes(r.t.state.Fileset().UUID)
	if err != nil {
		return err
	}
	r.t.log, err = kml.Open(r.t.state.Path("kml"), kml.Options{Fileset: id, Now: r.t.opt.Now, Head: head})
	return err
}

// serve begins to watch, to commit, and to look for what is lacking.
func (r *Replica) serve() error {
	t := r.t
	r.applied.Store(uint64(t.log.End()))
	if !t.opt.NoWatch {
		if err := t.watchDir(); err != nil {
			t.logger.Warn("the directory is not watched; local edits are found at the next start", "fileset", t.dir, "err", err)
		}
		t.wg.Go(r.firstScan)
	}
	t.serving.Store(true)
	t.wg.Go(t.retainLoop)
	t.wg.Go(r.commitLoop)
	t.wg.Go(r.findLacking)
	return nil
}

// Looked is closed when what the directory lacks has been told.
func (r *Replica) Looked() <-chan struct{} { return r.looked }

// firstScan finds what was edited here while nobody watched, once it is certain
// what this replica itself did.
func (r *Replica) firstScan() {
	for r.doubt.Load() {
		r.pmu.Lock()
		moved := r.moved
		r.pmu.Unlock()
		if !r.doubt.Load() {
			break
		}
		select {
		case <-moved:
		case <-r.t.ctx.Done():
			return
		}
	}
	if err := r.t.Scan(r.t.ctx); err != nil && r.t.ctx.Err() == nil {
		r.t.logger.Warn("the scan for local edits did not end", "fileset", r.t.dir, "err", err)
	}
}

// Copying reports whether the directory has to be compared with a snapshot of
// the master's before it can follow.
func (r *Replica) Copying() bool { return r.copying.Load() }

// Tree is the replica as a tree that can be served; it takes no changes. It is
// of use while Copying is false.
func (r *Replica) Tree() *Tree { return r.t }

// Dir is the directory, as an absolute path.
func (r *Replica) Dir() string { return r.t.dir }

// State is the replica's state folder.
func (r *Replica) State() *State { return r.t.state }

// Cursor is the last position that was applied, with the CRC of the chain there.
func (r *Replica) Cursor() (kml.Position, uint32) {
	if r.t.log == nil {
		return 0, 0
	}
	return r.t.log.EndAndCRC()
}

// Applied is the last position of which all that the directory lacks has been told
// to Lack; Cursor may be ahead of it.
func (r *Replica) Applied() kml.Position { return kml.Position(r.applied.Load()) }

// Object is what the index has of an object; ErrNotFound when the master has
// none of that number. It must not be changed.
func (r *Replica) Object(oid kml.OID) (*Object, error) { return r.t.index.Get(oid) }

// Path is one path of an object, from the root of the fileset; empty when it
// has none.
func (r *Replica) Path(oid kml.OID) string {
	var path string
	for depth := 0; oid != kml.RootOID && depth < maxDepth; depth++ {
		o, err := r.t.index.Get(oid)
		if err != nil || o.Parent == 0 {
			return ""
		}
		path, oid = filepath.Join(o.Name, path), o.Parent
	}
	return path
}

// Reach waits until the record at pos has been applied.
func (r *Replica) Reach(ctx context.Context, pos kml.Position) error {
	for {
		r.pmu.Lock()
		moved := r.moved
		r.pmu.Unlock()
		if at, _ := r.Cursor(); at >= pos {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-r.t.ctx.Done():
			return syscall.ESHUTDOWN
		}
	}
}

func (r *Replica) advanced() {
	r.pmu.Lock()
	defer r.pmu.Unlock()
	close(r.moved)
	r.moved = make(chan struct{})
}

// Doubtful reports whether it is undecided what was done in the directory just
// before an unclean end; nothing should be brought until it is.
func (r *Replica) Doubtful() bool { return r.doubt.Load() }

// Certain ends the doubt that an unclean end left: all that the directory could
// be ahead of has been applied.
func (r *Replica) Certain() {
	r.sure()
	r.advanced()
}

// sure ends the doubt. What was not looked at meanwhile is looked at.
func (r *Replica) sure() {
	r.adoptUnsure()
	r.doubt.Store(false)
	if r.unseen.Swap(false) && r.t.watcher != nil {
		r.t.watcher.lost()
	}
}

// Close makes all durable and gives the directory up. It may be called twice.
func (r *Replica) Close() error {
	t := r.t
	t.closed.Do(func() {
		t.cancel()
		t.watcher.close()
		t.wg.Wait()
		t.watcher.end()
		var errs []error
		if !r.copying.Load() {
			errs = append(errs, r.commit())
		}
		err := errors.Join(append(errs, r.closeFiles())...)
		if err == nil && !r.copying.Load() {
			err = t.state.endRun()
		}
		t.endErr = errors.Join(err, t.state.Close())
	})
	return t.endErr
}

func (r *Replica) closeFiles() error {
	errs := []error{r.t.closeFiles()}
	if r.stage >= 0 {
		errs = append(errs, unix.Close(r.stage))
	}
	if r.marker != nil {
		errs = append(errs, r.marker.close())
	}
	return errors.Join(errs...)
}

// commit makes the directory durable, then the log, then says so. The index's
// file is never ahead of that.
func (r *Replica) commit() error {
	r.cmu.Lock()
	defer r.cmu.Unlock()
	t := r.t
	end := t.log.End()
	if end == r.synced && !r.dirty.Load() {
		return nil
	}
	r.dirty.Store(false)
	if err := r.syncfs(); err != nil {
		r.dirty.Store(true)
		return err
	}
	fault.Point("replica.synced")
	if err := t.log.Sync(); err != nil {
		return err
	}
	if err := r.marker.set(end); err != nil {
		return err
	}
	fault.Point("replica.marked")
	r.synced = end
	return nil
}

func (r *Replica) syncfs() error {
	fd, err := unix.Openat(r.t.rootfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Syncfs(fd); err != nil {
		return fmt.Errorf("%s: syncfs: %w", r.t.dir, err)
	}
	return nil
}

// Commit makes everything that was applied durable.
func (r *Replica) Commit() error { return r.commit() }

// beforeFlush keeps the index's file behind what is on the disk.
func (r *Replica) beforeFlush(kml.Position) error {
	if !r.t.serving.Load() {
		if r.copying.Load() {
			return r.syncfs()
		}
		return nil
	}
	return r.commit()
}
