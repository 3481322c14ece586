package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// Options tune a replay.
type Options struct {
	// Until is asked with each record in order; the first it is true for is not
	// applied any more, and ends the replay. nil: all of the log.
	Until func(*kml.Record) bool
	// Contents is a directory from which contents are copied: of the file of the
	// same path, when its size is that of the last store and so is its digest, or,
	// where the log has none, its mtime. Empty: none.
	Contents string
	// DryRun changes nothing in the directory, which need not exist.
	DryRun bool
	// Each is called before a record is applied; an error ends the replay.
	Each func(*kml.Record) error
}

// Missing is a file whose contents were nowhere to be found.
type Missing struct {
	OID  kml.OID
	Path string // from the root
	Size uint64 // of the hole that stands for it
}

// Result is what a replay did.
type Result struct {
	From, To kml.Position // where the directory was before, and is now
	Records  int64        // applied, marks included
	Placed   int64        // files that got their contents
	Missing  []Missing    // files that have a hole, of earlier replays too; by path
	Skipped  int64        // owners and xattrs this process may not set, or the file system cannot hold
}

// want is what contents a file should have.
type want struct {
	pos    kml.Position // of the record that says so
	size   uint64
	mtime  int64
	digest []byte
}

// replayer is one run.
type replayer struct {
	o      Options
	log    *kml.Scanner
	dir    string
	st     *state
	root   int // descriptors; -1 in a dry run
	stage  int
	names  Names
	wants  map[kml.OID]want
	mtimes map[kml.OID]int64 // of folders
	holes  map[kml.OID]bool  // listed as missing by earlier runs
	res    Result
}

// Run makes the directory dir what the log says, from where its last replay
// ended. dir is made when it is not there; it must be empty the first time. The
// log must reach back to its beginning: the names of objects come from there.
//
// A replay that ended in between, by an error, by ctx or by a kill, is taken up
// by the next Run. Errors: a *RecordError for a record, those of errors.go for the
// directory, *kml.Damage for the log.
func Run(ctx context.Context, log *kml.Scanner, dir string, o Options) (res *Result, err error) {
	x := &replayer{o: o, log: log, dir: dir, root: -1, stage: -1,
		wants: map[kml.OID]want{}, mtimes: map[kml.OID]int64{}, holes: map[kml.OID]bool{}}
	defer func() { err = errors.Join(err, x.close()) }()
	if err := x.open(); err != nil {
		return nil, err
	}
	x.res.From = x.st.pos
	if err := x.apply(ctx); err != nil {
		return nil, err
	}
	x.res.To = x.st.pos
	if err := x.settle(ctx); err != nil {
		return nil, err
	}
	return &x.res, nil
}

// open takes the directory up.
func (x *replayer) open() error {
	meta := filepath.Join(x.dir, StateDir)
	if x.o.DryRun {
		return x.peek(meta)
	}
	if err := os.Mkdir(x.dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := checkEmpty(x.dir); err != nil {
		return err
	}
	if err := os.Mkdir(meta, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	var err error
	if x.st, err = openState(filepath.Join(meta, "state")); err != nil {
		return err
	}
	if err := x.loadMissing(); err != nil {
		return err
	}
	stage := filepath.Join(meta, "stage")
	if err := errors.Join(os.RemoveAll(stage), os.Mkdir(stage, 0o700)); err != nil {
		return err
	}
	if x.root, err = unix.Open(x.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("%s: %w", x.dir, err)
	}
	if x.stage, err = unix.Open(stage, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("%s: %w", stage, err)
	}
	return nil
}

// peek looks where the directory is, for a dry run.
func (x *replayer) peek(meta string) error {
	x.st = &state{}
	b, err := os.ReadFile(filepath.Join(meta, "state"))
	if errors.Is(err, os.ErrNotExist) || err == nil && len(b) == 0 {
		err = checkEmpty(x.dir)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	if err != nil {
		return err
	}
	if x.st.slot, err = decodeSlot(b); err != nil {
		return fmt.Errorf("%s: %w", meta, err)
	}
	return x.loadMissing()
}

// checkEmpty refuses a directory that holds something no replay made.
func checkEmpty(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err := os.Lstat(filepath.Join(dir, StateDir)); err == nil {
		return nil
	}
	if names, err := d.Readdirnames(1); len(names) > 0 || err != io.EOF {
		if err != nil && err != io.EOF {
			return err
		}
		return fmt.Errorf("%s: %w", dir, ErrNotEmpty)
	}
	return nil
}

func (x *replayer) close() error {
	var errs []error
	for _, fd := range []int{x.root, x.stage} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	if x.st != nil && x.st.f != nil {
		errs = append(errs, x.st.f.Close())
	}
	return errors.Join(errs...)
}

// apply goes through the log: what is done already is only learnt from.
func (x *replayer) apply(ctx context.Context) error {
	begin := x.st.slot
	var last kml.Position
	for n := 0; ; n++ {
		if n%256 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		r, err := x.log.NextRecord()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if n == 0 {
			if err := x.begin(); err != nil {
				return err
			}
		}
		if x.o.Until != nil && x.o.Until(r) {
			break
		}
		last = r.Pos
		_, crc := x.log.Pos()
		if r.Pos <= begin.pos {
			if r.Pos == begin.pos && crc != begin.crc {
				return fmt.Errorf("%s: %w: it parts before %s", x.dir, ErrHistory, r.Pos)
			}
			x.learn(r)
			continue
		}
		if begin.pos != 0 && x.st.pos == begin.pos && r.Pos.Recno() != begin.pos.Recno()+1 {
			return fmt.Errorf("%s: %w: it has no %s", x.dir, ErrHistory, begin.pos)
		}
		if x.st.phase == placing {
			if err := x.rejoin(); err != nil {
				return err
			}
		}
		if err := x.one(r, begin.phase == doing && x.st.pos == begin.pos); err != nil {
			return err
		}
		x.st.pos, x.st.crc = r.Pos, crc
	}
	if last < begin.pos {
		return fmt.Errorf("%s: %w: it is at %s, and this ends at %s", x.dir, ErrBehind, begin.pos, last)
	}
	return nil
}

// begin checks the log with its first record read.
func (x *replayer) begin() error {
	if p, _ := x.log.Start(); p != 0 {
		return fmt.Errorf("%w: it begins after %s", ErrStart, p)
	}
	fs := x.log.Fileset()
	if x.st.pos != 0 && x.st.fileset != fs {
		return fmt.Errorf("%s: %w", x.dir, ErrFileset)
	}
	x.st.fileset = fs
	return nil
}

// one applies a record. In doubt, a run before may have begun or done it.
func (x *replayer) one(r *kml.Record, doubt bool) error {
	if x.o.Each != nil {
		if err := x.o.Each(r); err != nil {
			return err
		}
	}
	if !x.o.DryRun {
		if err := x.touch(r, doubt); err != nil {
			path := ""
			if all := x.names.Touched(r); len(all) > 0 {
				path = all[0]
			}
			return &RecordError{r.Pos, r.Op, path, err}
		}
	}
	x.learn(r)
	x.res.Records++
	return nil
}

// learn takes in what r says of names, contents and the mtimes of folders.
func (x *replayer) learn(r *kml.Record) {
	x.names.Apply(r)
	switch r.Op {
	case kml.OpCreate:
		x.wants[r.OID] = want{pos: r.Pos, size: r.Attr.Size, mtime: r.Attr.Mtime}
	case kml.OpStore:
		x.wants[r.OID] = want{pos: r.Pos, size: r.Attr.Size, mtime: r.Attr.Mtime, digest: r.Digest}
	case kml.OpMkdir:
		x.mtimes[r.OID] = r.Attr.Mtime
	case kml.OpSetattr:
		if r.Mask&kml.MaskMtime != 0 {
			if w, ok := x.wants[r.OID]; ok {
				w.mtime = r.Attr.Mtime
				x.wants[r.OID] = w
			} else if _, ok := x.mtimes[r.OID]; ok || r.OID == kml.RootOID {
				x.mtimes[r.OID] = r.Attr.Mtime
			}
		}
	}
	if r.ParentMtime != 0 {
		x.mtimes[r.Parent] = r.ParentMtime
	}
	if r.NewParentMtime != 0 {
		x.mtimes[r.NewParent] = r.NewParentMtime
	}
	for _, o := range []kml.OID{r.OID, victimOf(r)} {
		if o != 0 && o != kml.RootOID && len(x.names.Of(o)) == 0 {
			delete(x.wants, o)
			delete(x.mtimes, o)
			delete(x.holes, o)
		}
	}
}

func victimOf(r *kml.Record) kml.OID {
	if r.Victim == nil {
		return 0
	}
	return r.Victim.OID
}

// unsettled is the files whose contents are not known to be in place.
func (x *replayer) unsettled() []kml.OID {
	var todo []kml.OID
	for o, w := range x.wants {
		if w.pos > x.st.settled || x.holes[o] {
			todo = append(todo, o)
		}
	}
	sort.Slice(todo, func(i, j int) bool { return todo[i] < todo[j] })
	return todo
}

// settle gives files their contents, and makes all durable.
func (x *replayer) settle(ctx context.Context) error {
	todo := x.unsettled()
	src, err := openContents(x.o.Contents)
	if err != nil {
		return err
	}
	defer src.close()
	var found, lost []kml.OID
	for _, o := range todo {
		switch w := x.wants[o]; {
		case w.size == 0 || src.find(x.names.Paths(o), w, x.o.DryRun) != "":
			found = append(found, o)
		default:
			lost = append(lost, o)
			x.res.Missing = append(x.res.Missing, Missing{o, x.names.Paths(o)[0], w.size})
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if x.o.DryRun {
		x.res.Placed = int64(len(found))
		x.sortMissing()
		return nil
	}
	// Who is killed in between finds them listed: a hole never passes for a file.
	if err := x.saveMissing(append(lost, found...)); err != nil {
		return err
	}
	fault.Point("replay.missing.listed")
	// A file that gets its contents is another inode from then on: by its inode
	// the last record could not be told to be done.
	if x.st.phase == doing {
		x.st.phase, x.st.ino = placing, 0
		if err := x.st.save(); err != nil {
			return err
		}
		fault.Point("replay.settle.begun")
	}
	if err := x.place(ctx, src, found, lost); err != nil {
		return err
	}
	x.sortMissing()
	if err := unix.Syncfs(x.root); err != nil {
		return fmt.Errorf("%s: syncfs: %w", x.dir, err)
	}
	fault.Point("replay.settle.synced")
	x.st.phase, x.st.settled = ended, x.st.pos
	if err := errors.Join(x.st.save(), x.st.f.Sync()); err != nil {
		return err
	}
	fault.Point("replay.settle.saved")
	lost = lost[:0]
	for _, m := range x.res.Missing {
		lost = append(lost, m.OID)
	}
	return x.saveMissing(lost)
}

func (x *replayer) sortMissing() {
	sort.Slice(x.res.Missing, func(i, j int) bool { return x.res.Missing[i].Path < x.res.Missing[j].Path })
}
