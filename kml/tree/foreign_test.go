package tree

import (
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
)

// edits changes a directory as other programs do.
func edits(t *testing.T, dir string) {
	t.Helper()
	script := `set -e
mkdir -p a/b/c
echo one >a/b/c/one
echo two >two
ln two three
ln -s two link
mkfifo fifo
echo appended >>old
chmod 600 mode
mv moved a/moved
mv movedir a/b/movedir
echo new >save.tmp && mv save.tmp save
rm gone
rm -r gonedir
touch -d 2001-02-03 a/b
`
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// before makes, through the tree, what edits changes.
func before(t *testing.T, tr *Tree) (moved, movedir, save kml.OID) {
	t.Helper()
	for _, n := range []string{"old", "mode", "gone"} {
		put(t, tr, kml.RootOID, n, n)
	}
	moved = put(t, tr, kml.RootOID, "moved", "moved").OID
	save = put(t, tr, kml.RootOID, "save", "old").OID
	for _, n := range []string{"gonedir", "movedir"} {
		d := must[Attr](t)(tr.Mkdir(ctx, nil, kml.RootOID, n, 0o755))
		put(t, tr, d.OID, "in", "in")
		movedir = d.OID
	}
	return moved, movedir, save
}

func checkEdits(t *testing.T, tr *Tree, moved, movedir, save kml.OID) {
	t.Helper()
	checkAgrees(t, tr)
	checkReplay(t, tr)
	a := must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "a"))
	if x := must[Attr](t)(tr.Lookup(ctx, nil, a.OID, "moved")); x.OID != moved {
		t.Errorf("a renamed file is %v, was %v", x.OID, moved)
	}
	b := must[Attr](t)(tr.Lookup(ctx, nil, a.OID, "b"))
	if x := must[Attr](t)(tr.Lookup(ctx, nil, b.OID, "movedir")); x.OID != movedir {
		t.Errorf("a renamed folder is %v, was %v", x.OID, movedir)
	}
	if x := must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "save")); x.OID != save {
		t.Errorf("a saved file is %v, was %v", x.OID, save)
	}
	two := must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "two"))
	if x := must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "three")); x.OID != two.OID || x.Nlink != 2 {
		t.Errorf("a hard link is %v with %d links, the file %v", x.OID, x.Nlink, two.OID)
	}
}

func TestEditsWhileStoppedAreFoundByScan(t *testing.T) {
	tr := newTree(t)
	moved, movedir, save := before(t, tr)
	ok(t, tr.Close())
	edits(t, tr.dir)
	tr = openTree(t, tr.dir)
	ok(t, tr.Scan(ctx))
	checkEdits(t, tr, moved, movedir, save)
	n := len(records(t, tr))
	ok(t, tr.Scan(ctx))
	if m := len(records(t, tr)); m != n {
		t.Errorf("a second scan journaled %d records: %s", m-n, logOps(t, tr))
	}
}

func TestEditsWhileStoppedAreFoundOnUse(t *testing.T) {
	tr := newTree(t)
	moved, movedir, save := before(t, tr)
	ok(t, tr.Close())
	edits(t, tr.dir)
	tr, err := Open(tr.dir, Options{NoWatch: true}) // and so without a scan
	ok(t, err)
	t.Cleanup(func() { ok(t, tr.Close()) })
	var walk func(oid kml.OID)
	walk = func(oid kml.OID) {
		h := must[DirHandle](t)(tr.OpenDir(ctx, nil, oid))
		defer h.Close()
		for _, e := range must[[]DirEntry](t)(h.ReadDir(ctx, 0, 1000)) {
			must[Attr](t)(tr.Lookup(ctx, nil, oid, e.Name))
			if e.Type == unix.S_IFDIR {
				walk(e.OID)
			}
		}
	}
	walk(kml.RootOID)
	checkNames(t, tr, moved, movedir, save)
}

// checkNames is checkEdits without the attributes, which use alone does not
// compare.
func checkNames(t *testing.T, tr *Tree, moved, movedir, save kml.OID) {
	t.Helper()
	if n, m := countIndex(t, tr, kml.RootOID), countDisk(t, tr.dir); n != m {
		t.Errorf("index has %d names, the disk %d", n, m)
	}
	a := must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "a"))
	if x := must[Attr](t)(tr.Lookup(ctx, nil, a.OID, "moved")); x.OID != moved {
		t.Errorf("a renamed file is %v, was %v", x.OID, moved)
	}
	if x := must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "save")); x.OID != save {
		t.Errorf("a saved file is %v, was %v", x.OID, save)
	}
}

func countDisk(t *testing.T, dir string) int {
	n := 0
	ok(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if e.Name() == ExtDirName {
			return filepath.SkipDir
		}
		n++
		return err
	}))
	return n
}

// TestEditsWhileStoppedAreUsedDuringTheScan walks the tree while the scan at
// open goes over it: what moved is seen to have moved all the same.
func TestEditsWhileStoppedAreUsedDuringTheScan(t *testing.T) {
	tr := newTree(t)
	moved, movedir, save := before(t, tr)
	ok(t, tr.Close())
	edits(t, tr.dir)
	tr = openTree(t, tr.dir)
	for range 20 {
		h := must[DirHandle](t)(tr.OpenDir(ctx, nil, kml.RootOID))
		for _, e := range must[[]DirEntry](t)(h.ReadDir(ctx, 0, 1000)) {
			_, err := tr.Lookup(ctx, nil, kml.RootOID, e.Name)
			ok(t, err)
		}
		ok(t, h.Close())
		_, err := tr.Lookup(ctx, nil, kml.RootOID, "moved")
		wantErr(t, err, syscall.ENOENT)
	}
	ok(t, tr.Scan(ctx))
	waitFor(t, tr, "the first scan", func() bool { return tr.scanning.Load() == 0 })
	checkEdits(t, tr, moved, movedir, save)
}

// waitFor waits until the log has caught up with what happened on disk.
func waitFor(t *testing.T, tr *Tree, what string, f func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for !f() {
		select {
		case <-deadline:
			t.Fatalf("waited for %s; log: %s", what, logOps(t, tr))
		case <-tr.log.Changed():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func TestEditsWhileRunningAreWatched(t *testing.T) {
	for _, perDir := range []bool{false, true} {
		name, marks := "file system", -1
		if perDir {
			name, marks = "folders", 0
		}
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			ok(t, Init(dir, Options{}))
			tr, err := Open(dir, Options{maxMarks: marks})
			ok(t, err)
			t.Cleanup(func() { ok(t, tr.Close()) })
			if tr.watcher == nil {
				t.Skip("no fanotify here")
			}
			if perDir != tr.watcher.perDir {
				t.Skip("the file system cannot be watched as a whole")
			}
			moved, movedir, _ := before(t, tr)
			edits(t, tr.dir)
			quiet := func() bool {
				tr.watcher.mu.Lock()
				defer tr.watcher.mu.Unlock()
				return len(tr.watcher.pending) == 0
			}
			waitFor(t, tr, "the edits", func() bool {
				// A watched save may show its temporary file first: then it is a rename.
				id, _, _ := tr.index.Child(kml.RootOID, "save")
				o, err := tr.index.Get(id)
				return err == nil && o.Attr.Size == 4 && quiet() && countIndex(t, tr, kml.RootOID) == countDisk(t, dir) &&
					strings.Contains(logOps(t, tr), "rmdir")
			})
			save := must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "save")).OID
			checkNames(t, tr, moved, movedir, save)
			own := 0
			for _, r := range records(t, tr) {
				if r.Flags&kml.FlagForeign != 0 && r.Op == kml.OpStore && r.OID == moved {
					own++
				}
			}
			if own != 0 {
				t.Errorf("%d of the tree's own changes came back as foreign", own)
			}
		})
	}
}

// A folder that was removed and made again behind the tree's back keeps its oid
// and those of its names, although the tree still holds the old folder open.
// TestNameThatCameAndWentMovesItsFolder: a lock file that is gone before anybody
// looks leaves its folder's time behind.
func TestNameThatCameAndWentMovesItsFolder(t *testing.T) {
	dir := t.TempDir()
	ok(t, Init(dir, Options{}))
	tr, err := Open(dir, Options{NoWatch: true})
	ok(t, err)
	t.Cleanup(func() { ok(t, tr.Close()) })
	d := must[Attr](t)(tr.Mkdir(ctx, nil, kml.RootOID, "d", 0o755))
	shell(t, dir, "touch d/lock; rm d/lock")
	ok(t, tr.reconcileName(ctx, d.OID, "lock"))
	var st unix.Stat_t
	ok(t, unix.Lstat(filepath.Join(dir, "d"), &st))
	o, err := tr.index.Get(d.OID)
	ok(t, err)
	if o.Attr.Mtime != st.Mtim.Nano() {
		t.Errorf("the index says %d, the folder %d", o.Attr.Mtime, st.Mtim.Nano())
	}
	checkAgrees(t, tr)
}

func TestFolderMadeAgainIsTheSame(t *testing.T) {
	dir := t.TempDir()
	ok(t, Init(dir, Options{}))
	tr, err := Open(dir, Options{NoWatch: true})
	ok(t, err)
	t.Cleanup(func() { ok(t, tr.Close()) })
	d := must[Attr](t)(tr.Mkdir(ctx, nil, kml.RootOID, "d", 0o755))
	f := put(t, tr, d.OID, "f", "old")
	shell(t, dir, "rm -r d; mkdir d; echo newer >d/f")
	_, err = tr.Lookup(ctx, nil, d.OID, "f")
	wantErr(t, err, unix.ESTALE)
	if x := must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "d")); x.OID != d.OID {
		t.Errorf("the folder is %v, was %v", x.OID, d.OID)
	}
	x := must[Attr](t)(tr.Lookup(ctx, nil, d.OID, "f"))
	if x.OID != f.OID || x.Size != 6 {
		t.Errorf("the file is %v of %d bytes, was %v: %s", x.OID, x.Size, f.OID, logOps(t, tr))
	}
	checkAgrees(t, tr)
	checkReplay(t, tr)
}

// While the tree is used, a scan that runs all the time finds nothing foreign.
func TestScanFindsNothingInOwnChanges(t *testing.T) {
	dir := t.TempDir()
	ok(t, Init(dir, Options{}))
	tr, err := Open(dir, Options{NoWatch: true, StoreIdle: 5 * time.Millisecond})
	ok(t, err)
	t.Cleanup(func() { ok(t, tr.Close()) })
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
				if err := tr.Scan(ctx); err != nil {
					stopped <- err
					return
				}
			}
		}
	}()
	rnd := testutil.Rand(t)
	w := &worker{tr: tr, rnd: rand.New(rand.NewPCG(rnd.Uint64(), 1)), dirs: []kml.OID{kml.RootOID}, quiet: true}
	w.site = must[Site](t)(tr.Enrol("h", 0, []byte("k")))
	for i := range 1000 {
		ok(t, w.step(i))
	}
	close(stop)
	ok(t, <-stopped)
	for _, r := range records(t, tr) {
		if r.Flags&kml.FlagForeign != 0 {
			t.Errorf("%v of %v %q is said to be foreign: %+v", r.Op, r.OID, r.Name, r)
		}
	}
	checkAgrees(t, tr)
	checkReplay(t, tr)
}

// TestSeenWritingIsAStore: an event that tells of a write cuts a store, even when
// the file has the size and times that it had.
func TestSeenWritingIsAStore(t *testing.T) {
	dir := t.TempDir()
	ok(t, os.WriteFile(filepath.Join(dir, "f"), []byte("f"), 0o644))
	ok(t, Init(dir, Options{NoWatch: true}))
	tr, err := Open(dir, Options{NoWatch: true})
	ok(t, err)
	defer func() { ok(t, tr.Close()) }()
	was := logOps(t, tr)
	ok(t, tr.reconcileName(ctx, kml.RootOID, "f"))
	if got := logOps(t, tr); got != was {
		t.Errorf("a look alone journaled: %s", got)
	}
	ok(t, tr.reconcileSeen(ctx, kml.RootOID, "f", seenWriting))
	if got := logOps(t, tr); got != was+" store" {
		t.Errorf("log is %s, want %s store", got, was)
	}
}

// TestMountsAreLeftOutAndCounted: what is mounted inside a fileset is not its
// own; status says so while it is there.
func TestMountsAreLeftOutAndCounted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	mnt := filepath.Join(dir, "m")
	ok(t, os.Mkdir(mnt, 0o755))
	ok(t, unix.Mount("tmpfs", mnt, "tmpfs", 0, ""))
	defer unix.Unmount(mnt, unix.MNT_DETACH)
	ok(t, os.WriteFile(filepath.Join(mnt, "f"), nil, 0o644))
	ok(t, Init(dir, Options{NoWatch: true}))
	tr, err := Open(dir, Options{NoWatch: true})
	ok(t, err)
	defer func() { ok(t, tr.Close()) }()
	ok(t, tr.Scan(ctx))
	if s := tr.Status(); s.Mounts != 1 {
		t.Errorf("%d mounts", s.Mounts)
	}
	ok(t, unix.Unmount(mnt, 0))
	if s := tr.Status(); s.Mounts != 0 {
		t.Errorf("%d mounts when there is none", s.Mounts)
	}
	ok(t, tr.Scan(ctx))
	checkAgrees(t, tr)
}

// TestFolderExchangedUnderACreate has somebody exchange a folder and a link,
// which the tree notices while it makes a file in the folder.
func TestFolderExchangedUnderACreate(t *testing.T) {
	dir := t.TempDir()
	ok(t, Init(dir, Options{}))
	tr, err := Open(dir, Options{NoWatch: true})
	ok(t, err)
	t.Cleanup(func() { ok(t, tr.Close()) })
	d := must[Attr](t)(tr.Mkdir(ctx, nil, kml.RootOID, "d", 0o755))
	must[Attr](t)(tr.Symlink(ctx, nil, kml.RootOID, "l", "nowhere"))
	put(t, tr, d.OID, "in", "in")
	at := func(name string) string { return filepath.Join(tr.Dir(), name) }
	if err := unix.Renameat2(unix.AT_FDCWD, at("d"), unix.AT_FDCWD, at("l"), unix.RENAME_EXCHANGE); err != nil {
		t.Fatal(err)
	}
	// The record comes when the folder is no object any more.
	r := tr.record(nil, kml.OpMkdir)
	r.Parent, r.Name, r.Attr.Mode = d.OID, "new", unix.S_IFDIR|0o755
	m := tr.makingOf(nil, r)
	make := m.call
	m.call = func(dirfd int) error {
		for _, name := range []string{"d", "l"} {
			o, _, _ := tr.index.Child(kml.RootOID, name)
			if obj, err := tr.index.Get(o); err == nil && obj.OID == d.OID {
				if err := errors.Join(tr.foreignEmpty(d.OID, 0), tr.removeRecord(obj, Name{kml.RootOID, name}, -1)); err != nil {
					t.Error(err)
				}
			}
		}
		return make(dirfd)
	}
	if _, _, err := tr.make(ctx, m); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("make in a folder that is gone: %v", err)
	}
	put(t, tr, kml.RootOID, "f", "changes are taken")
	for _, name := range []string{"d", "l"} {
		if err := tr.reconcileName(ctx, kml.RootOID, name); err != nil {
			t.Error(err)
		}
	}
	l := must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "l"))
	must[Attr](t)(tr.Lookup(ctx, nil, l.OID, "new"))
	checkAgrees(t, tr)
	checkReplay(t, tr)
}
