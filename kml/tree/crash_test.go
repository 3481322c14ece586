package tree

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/internal/testutil/disk"
	"github.com/mezzofs/mezzo/kml"
)

// The test binary runs itself as the process that is killed: with crashDir set
// it opens the fileset there and works until it dies.
const (
	crashDir  = "MEZZO_TEST_CRASH_DIR"
	crashSeed = "MEZZO_TEST_CRASH_SEED"
	crashInit = "MEZZO_TEST_CRASH_INIT" // it makes the fileset instead
	crashSync = "MEZZO_TEST_CRASH_SYNC" // how often it commits; 50 ms
)

func TestMain(m *testing.M) {
	if is, err := disk.Serve(os.Stdin, os.Stdout); is {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if op := os.Getenv(stepOp); op != "" {
		if err := stepMain(os.Getenv(crashDir), op); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(crashDir); dir != "" {
		seed, _ := strconv.ParseUint(os.Getenv(crashSeed), 10, 64)
		if err := work(dir, seed); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(powerDir); dir != "" {
		if err := powerWork(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// work makes random changes and prints one line for each that was answered.
func work(dir string, seed uint64) error {
	if err := fault.Arm(os.Getenv(fault.Env)); err != nil {
		return err
	}
	if os.Getenv(crashInit) != "" {
		return Init(dir, Options{NoWatch: true})
	}
	every, err := time.ParseDuration(os.Getenv(crashSync))
	if err != nil {
		every = 50 * time.Millisecond
	}
	tr, err := Open(dir, Options{StoreIdle: 5 * time.Millisecond, SyncEvery: every})
	if err != nil {
		return err
	}
	w := &worker{tr: tr, rnd: rand.New(rand.NewPCG(seed, 1)), dirs: []kml.OID{kml.RootOID}}
	if w.site, err = tr.Enrol("crash", 0, []byte("k")); err != nil {
		return err
	}
	for i := range 200 {
		if err := w.step(i); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return tr.Close()
}

type worker struct {
	tr   *Tree
	rnd  *rand.Rand
	dirs []kml.OID
	site Site
	seq  uint64
	// quiet: print nothing
	quiet bool
	// single: files have one name each
	single bool
}

func (w *worker) name() string { return "n" + strconv.Itoa(w.rnd.IntN(8)) }

func (w *worker) dir() kml.OID { return w.dirs[w.rnd.IntN(len(w.dirs))] }

// step makes one change; that a random change makes no sense is no error.
func (w *worker) step(i int) error {
	tr, d, n := w.tr, w.dir(), w.name()
	var err error
	switch w.rnd.IntN(12) {
	case 0, 1, 2:
		var a Attr
		var h Handle
		if a, h, err = tr.Create(ctx, nil, d, n, unix.O_RDWR, 0o644); err == nil {
			data := strings.Repeat(strconv.Itoa(i)+"\n", 50)
			if _, err = h.WriteAt(ctx, []byte(data), 0); err == nil {
				err = h.Close()
			}
			if err == nil && !w.quiet {
				fmt.Printf("wrote %d %d %d\n", uint64(a.OID), len(data), i)
			}
		}
	case 3:
		var a Attr
		if a, err = tr.Mkdir(ctx, nil, d, n, 0o755); err == nil && len(w.dirs) < 6 {
			w.dirs = append(w.dirs, a.OID)
		}
	case 4:
		_, err = tr.Symlink(ctx, nil, d, n, "target"+n)
	case 5:
		if w.single {
			return nil
		}
		var a Attr
		if a, err = tr.Lookup(ctx, nil, w.dir(), w.name()); err == nil {
			_, err = tr.Link(ctx, nil, a.OID, d, n)
		}
	case 6:
		err = tr.Unlink(ctx, nil, d, n)
	case 7:
		err = tr.Rmdir(ctx, nil, d, n)
	case 8:
		flags := []uint32{0, 0, unix.RENAME_EXCHANGE, unix.RENAME_NOREPLACE}[w.rnd.IntN(4)]
		err = tr.Rename(ctx, nil, d, n, w.dir(), w.name(), flags)
	case 9:
		var a Attr
		if a, err = tr.Lookup(ctx, nil, d, n); err == nil {
			_, err = tr.Setattr(ctx, nil, a.OID, nil, SetAttr{Mask: SetMode | SetMtime, Mode: 0o600 + uint32(i%8), Mtime: int64(i) * 1e9})
		}
	case 10:
		var a Attr
		if a, err = tr.Lookup(ctx, nil, d, n); err == nil {
			err = tr.Setxattr(ctx, nil, a.OID, "user.x", []byte(n), 0)
		}
	case 11:
		err = w.reintegrate(d, n, i)
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != syscall.EIO && errno != syscall.EROFS {
		return nil
	}
	return err
}

// reintegrate replaces a file's contents as a client would.
func (w *worker) reintegrate(d kml.OID, n string, i int) error {
	a, err := w.tr.Lookup(ctx, nil, d, n)
	if err != nil || a.Mode&unix.S_IFMT != unix.S_IFREG || a.DataVersion&DataDirty != 0 {
		return err
	}
	w.seq++
	staged := filepath.Join(w.tr.Stage(), fmt.Sprintf("%d-%d", w.site.ID, w.seq))
	if err := os.WriteFile(staged, []byte(strings.Repeat("r", i+1)), 0o600); err != nil {
		return err
	}
	r := &kml.Record{Op: kml.OpStore, OID: a.OID, Time: 1, Origin: kml.Origin{Site: w.site.ID, Seq: w.seq},
		Attr: kml.Attr{Size: uint64(i + 1), Mtime: 5e9}, Base: kml.Base{Pos: kml.Position(a.DataVersion)}}
	res := w.tr.Reintegrate(ctx, nil, r, staged)
	if res.Status == ReintRefused {
		return res.Errno
	}
	return nil
}

// TestKilledAnywhere kills a working process at each fault point, early and
// late, opens what it left, and holds directory, index and log against each
// other.
func TestKilledAnywhere(t *testing.T) {
	points := []string{"tree.intent", "tree.call", "tree.append", "tree.record", "tree.dirty", "tree.store", "tree.replace", "tree.flush"}
	rounds := 3
	if testutil.Long() {
		rounds = 60
	}
	seeds := testutil.Rand(t)
	for _, p := range points {
		rnd := rand.New(rand.NewPCG(seeds.Uint64(), 1)) // its own: they run side by side
		t.Run(p, func(t *testing.T) {
			t.Parallel()
			for range rounds {
				n := 1 + rnd.IntN(40)
				if p == "tree.replace" || p == "tree.flush" {
					n = 1 + rnd.IntN(2)
				}
				crash(t, fmt.Sprintf("%s:%d", p, n), rnd.Uint64())
			}
		})
	}
}

// TestKilledAtRandom kills a working process at no particular point, again and
// again on the same fileset.
func TestKilledAtRandom(t *testing.T) {
	rounds := 10
	if testutil.Long() {
		rounds = 500
	}
	rnd := testutil.Rand(t)
	dir := t.TempDir()
	ok(t, Init(dir, Options{NoWatch: true}))
	for range rounds {
		crashIn(t, dir, "", rnd.Uint64(), time.Duration(rnd.IntN(60))*time.Millisecond)
	}
}

func crash(t *testing.T, at string, seed uint64) {
	t.Helper()
	dir := t.TempDir()
	ok(t, Init(dir, Options{NoWatch: true}))
	crashIn(t, dir, at, seed, 0)
}

func crashIn(t *testing.T, dir, at string, seed uint64, after time.Duration) {
	t.Helper()
	exe, err := os.Executable()
	ok(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), crashDir+"="+dir, fmt.Sprintf("%s=%d", crashSeed, seed), fault.Env+"="+at)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	if at == "" {
		timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
		defer timer.Stop()
	}
	var lines []string
	for sc := bufio.NewScanner(out); sc.Scan(); {
		lines = append(lines, sc.Text())
	}
	err = cmd.Wait()
	if err != nil && !strings.Contains(err.Error(), "killed") {
		t.Fatalf("seed %d, %q: %v: %s", seed, at, err, stderr.String())
	}
	tr, err := Open(dir, Options{NoWatch: true})
	if err != nil {
		t.Fatalf("seed %d, %q: %v", seed, at, err)
	}
	defer func() { ok(t, tr.Close()) }()
	checkAgrees(t, tr)
	checkReplay(t, tr)
	checkWritten(t, tr, lines)
	if t.Failed() {
		t.Fatalf("seed %d, killed at %q", seed, at)
	}
}

// checkWritten: what was answered is in the log, with its size, unless another
// record came after.
func checkWritten(t *testing.T, tr *Tree, lines []string) {
	t.Helper()
	stores := map[kml.OID]map[uint64]bool{}
	for _, r := range records(t, tr) {
		if r.Op == kml.OpStore {
			if stores[r.OID] == nil {
				stores[r.OID] = map[uint64]bool{}
			}
			stores[r.OID][r.Attr.Size] = true
		}
	}
	for _, l := range lines {
		var oid, size uint64
		var i int
		if _, err := fmt.Sscanf(l, "wrote %d %d %d", &oid, &size, &i); err == nil && len(stores[kml.OID(oid)]) == 0 {
			t.Errorf("answered and not in the log: %s", l)
		}
	}
}

// checkReplay: the log alone, replayed from its beginning, gives the index.
func checkReplay(t *testing.T, tr *Tree) {
	t.Helper()
	x, err := OpenIndex(filepath.Join(t.TempDir(), "replay.db"), IndexOptions{})
	ok(t, err)
	defer x.Close()
	root, err := tr.index.Get(kml.RootOID)
	ok(t, err)
	first := *root
	first.Known, first.Version = 0, 0
	ok(t, x.Update(func(b *Batch) error { return b.Put(&first) }))
	rd, err := tr.log.ReaderAfter(0)
	ok(t, err)
	defer rd.Close()
	for {
		r, err := rd.TryNext()
		if err == io.EOF {
			break
		}
		ok(t, err)
		ok(t, x.Update(func(b *Batch) error {
			_, err := applyRecord(b, r, false)
			return err
		}))
	}
	compareIndex(t, "", tr.index, x, kml.RootOID)
}

func compareIndex(t *testing.T, path string, a, b *Index, oid kml.OID) {
	t.Helper()
	ea, err := a.Children(oid, "", 10000)
	ok(t, err)
	eb, err := b.Children(oid, "", 10000)
	ok(t, err)
	if len(ea) != len(eb) {
		t.Errorf("%s/: %d names in the index, %d in the replay", path, len(ea), len(eb))
		return
	}
	for i, e := range ea {
		if e.Name != eb[i].Name || e.OID != eb[i].OID {
			t.Errorf("%s/%s: %v in the index, %s %v in the replay", path, e.Name, e.OID, eb[i].Name, eb[i].OID)
			continue
		}
		oa, err := a.Get(e.OID)
		ok(t, err)
		ob, err := b.Get(e.OID)
		ok(t, err)
		x, y := oa.Attr, ob.Attr
		x.Atime, y.Atime = 0, 0
		if x.Mode&unix.S_IFMT == unix.S_IFDIR {
			x.Size, y.Size, x.Nlink, y.Nlink = 0, 0, 0, 0
		}
		if x != y || oa.DataVersion != ob.DataVersion || oa.Version != ob.Version {
			t.Errorf("%s/%s: index has\n%+v %v, replay\n%+v %v", path, e.Name, x, oa.Version, y, ob.Version)
		}
		compareIndex(t, path+"/"+e.Name, a, b, e.OID)
	}
}
