package tree

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/internal/testutil/disk"
	"github.com/mezzofs/mezzo/kml"
)

// powerDir makes the test binary a master under load that a power cut ends.
const (
	powerDir  = "MEZZO_TEST_POWER_DIR"
	powerBoot = "MEZZO_TEST_POWER_BOOT"
)

// bootOf is the machine's n-th run, as tests count them.
func bootOf(n int) Boot { return Boot{ID: "boot-" + strconv.Itoa(n), Since: time.Now()} }

// pattern is the contents of one writing of a file: every line says which.
func pattern(name string, seq, lines int) []byte {
	return []byte(strings.Repeat(fmt.Sprintf("%-12s %8d %6d\n", name, seq, lines), lines))
}

// parsePattern is the writing that contents are of, and whether they are all
// of it.
func parsePattern(b []byte) (name string, seq int, whole bool) {
	var lines int
	line, _, _ := bytes.Cut(b, []byte("\n"))
	if _, err := fmt.Sscanf(string(line), "%s %d %d", &name, &seq, &lines); err != nil {
		return "", 0, false
	}
	return name, seq, bytes.Equal(b, pattern(name, seq, lines))
}

// powerWork changes files until the file system fails. It says of each writing
// when it begins, and when it is durable.
func powerWork(dir string) error {
	n, _ := strconv.Atoi(os.Getenv(powerBoot))
	tr, err := Open(dir, Options{NoWatch: true, SyncEvery: 40 * time.Millisecond, StoreIdle: 5 * time.Millisecond, Boot: bootOf(n)})
	if err != nil {
		return err
	}
	var out sync.Mutex
	say := func(format string, args ...any) {
		out.Lock()
		defer out.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	say("ready")
	var wg sync.WaitGroup
	for g := range 3 {
		p := &powerWorker{tr: tr, say: say, id: g, boot: n, rnd: rand.New(rand.NewPCG(uint64(n), uint64(g))), last: map[string]int{}}
		wg.Go(func() {
			for p.step() == nil {
			}
		})
	}
	wg.Wait()
	select {} // until it is killed
}

type powerWorker struct {
	tr   *Tree
	say  func(format string, args ...any)
	id   int
	boot int
	seq  int
	rnd  *rand.Rand
	last map[string]int // writings whose close was answered, since the last commit
}

func (p *powerWorker) step() error {
	name := fmt.Sprintf("w%d-%d", p.id, p.rnd.IntN(12))
	p.seq++
	seq := p.boot*100000 + p.seq
	switch p.rnd.IntN(10) {
	case 0:
		if err := p.tr.Commit(context.Background()); err != nil {
			return err
		}
		for n, s := range p.last {
			p.say("synced %s %d %d", n, s, uint64(p.tr.Durable()))
		}
		clear(p.last)
		return nil
	case 1:
		p.say("began %s %d", name, seq)
		delete(p.last, name)
		err := p.tr.Unlink(ctx, nil, kml.RootOID, name)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil
	case 2, 3: // an editor's save
		tmp := fmt.Sprintf("tmp%d", p.id)
		p.say("began %s %d", name, seq)
		if err := p.write(tmp, name, seq, false); err != nil {
			return err
		}
		if err := p.tr.Rename(ctx, nil, kml.RootOID, tmp, kml.RootOID, name, 0); err != nil {
			return err
		}
		p.last[name] = seq
		return nil
	default:
		p.say("began %s %d", name, seq)
		sync := p.rnd.IntN(4) == 0
		if err := p.write(name, name, seq, sync); err != nil {
			return err
		}
		p.last[name] = seq
		if sync {
			p.say("synced %s %d %d", name, seq, uint64(p.tr.Durable()))
			delete(p.last, name)
		}
		return nil
	}
}

func (p *powerWorker) write(file, name string, seq int, sync bool) error {
	_, h, err := p.tr.Create(ctx, nil, kml.RootOID, file, unix.O_RDWR|unix.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if _, err = h.WriteAt(ctx, pattern(name, seq, 1+p.rnd.IntN(600)), 0); err == nil && sync {
		err = h.Fsync(ctx, false)
	}
	if e := h.Close(); err == nil {
		err = e
	}
	return err
}

// TestPowerCut cuts a master under load off its disk, again and again, and holds
// what comes back against what was promised.
func TestPowerCut(t *testing.T) {
	for _, where := range []struct {
		kind         string
		lossy        bool
		rounds, long int
	}{{"ext4", false, 10, 150}, {"xfs", false, 10, 150}, {"ext4", true, 2, 100}, {"xfs", true, 2, 100}, {"btrfs", true, 2, 100}} {
		name, rounds := where.kind, where.rounds
		if where.lossy {
			name += " on a lossy disk"
		}
		if testutil.Long() {
			rounds = where.long
		}
		t.Run(name, func(t *testing.T) {
			rnd := testutil.Rand(t)
			var losing *rand.Rand
			if where.lossy {
				losing = rand.New(rand.NewPCG(rnd.Uint64(), 1))
			}
			d := disk.NewOf(t, where.kind, 400<<20, losing)
			c := &powerCheck{}
			for n := range rounds {
				if n%perFileset == 0 { // a log that is checked whole should not get too long
					c.begin(t, filepath.Join(d.Mnt, fmt.Sprintf("fs%d", n)))
				}
				c.lines(t, powerRound(t, d, c.dir, n, time.Duration(20+rnd.IntN(250))*time.Millisecond))
				c.check(t, n+1)
				if t.Failed() {
					t.Fatalf("round %d", n)
				}
			}
			t.Logf("%d rounds: %d writings, %d promises kept, %d made after the cut and %d of them not kept; "+
				"%d files damaged; %d records behind the last mark, %d logged again; %d writes lost by the disk",
				rounds, c.writings, c.promises, c.late, c.lies, c.damaged, c.tail, c.again, d.Lost)
		})
	}
}

// perFileset is how many power cuts one fileset goes through.
const perFileset = 25

// saying is a line of the worker's.
type saying struct {
	line string
	// late: it came when the power was being cut. A promise is void then: an
	// fsync that is under way while ext4 is shut down may find its transaction
	// neither running nor committing any more, and takes that for done
	// (jbd2_complete_transaction, fs/jbd2/journal.c). Whose power is cut tells
	// nobody.
	late bool
}

// powerRound runs a worker for a while and cuts the power; it gives what the
// worker said.
func powerRound(t *testing.T, d *disk.Disk, dir string, n int, after time.Duration) []saying {
	t.Helper()
	exe, err := os.Executable()
	ok(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), powerDir+"="+dir, fmt.Sprintf("%s=%d", powerBoot, n))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	pipe, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	sc := bufio.NewScanner(pipe)
	if !sc.Scan() {
		_ = cmd.Wait()
		t.Fatalf("the worker did not start: %s", stderr.String())
	}
	var cutting atomic.Bool
	timer := time.AfterFunc(after, func() {
		cutting.Store(true)
		d.CutPower(t)
		_ = cmd.Process.Kill()
	})
	defer timer.Stop()
	var lines []saying
	for sc.Scan() {
		lines = append(lines, saying{sc.Text(), cutting.Load()})
	}
	err = cmd.Wait()
	if s := stderr.String(); strings.Contains(s, "panic") || !cutting.Load() {
		t.Fatalf("the worker ended by itself: %v: %s", err, s)
	}
	d.Unmount(t)
	d.Mount(t)
	return lines
}

// cutLog keeps the line that says what was behind the last mark.
type cutLog struct {
	slog.Handler
	line *slog.Record
}

func (l cutLog) Enabled(context.Context, slog.Level) bool { return true }

func (l cutLog) Handle(_ context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "history was cut") {
		*l.line = r
	}
	return nil
}

type powerCheck struct {
	dir      string
	synced   map[string]int // the last writing of a name that was promised
	began    map[string]int // the last that may have touched it
	durable  kml.Position   // the last that was promised
	lie      kml.Position   // the last that was promised while the power went
	epoch    uint16
	writings int
	promises int
	late     int
	lies     int
	damaged  int
	tail     int
	again    int
}

// begin goes on with a new fileset.
func (c *powerCheck) begin(t *testing.T, dir string) {
	t.Helper()
	ok(t, os.Mkdir(dir, 0o755))
	ok(t, Init(dir, Options{NoWatch: true, Boot: bootOf(0)}))
	c.dir, c.epoch, c.durable = dir, 0, 0
	c.synced, c.began = map[string]int{}, map[string]int{}
}

func (c *powerCheck) lines(t *testing.T, said []saying) {
	t.Helper()
	c.lie = 0
	for _, l := range said {
		var what, name string
		var seq int
		var durable kml.Position
		if _, err := fmt.Sscanf(l.line, "began %s %d", &name, &seq); err == nil {
			c.began[name] = seq
			c.writings++
			continue
		}
		if _, err := fmt.Sscanf(l.line, "%s %s %d %d", &what, &name, &seq, &durable); err != nil {
			t.Fatalf("the worker said %q", l.line)
		}
		if l.late {
			c.lie = max(c.lie, durable)
			c.late++
			continue
		}
		c.synced[name], c.durable = seq, max(c.durable, durable)
		c.promises++
	}
}

// log looks at the log before anybody mends it.
func (c *powerCheck) log(t *testing.T) {
	t.Helper()
	l, err := kml.Open(filepath.Join(c.dir, ".mezzo", "kml"), kml.Options{ReadOnly: true})
	ok(t, err)
	defer l.Close()
	if l.Durable() < c.durable {
		t.Errorf("%v was promised, the log is durable up to %v", c.durable, l.Durable())
	}
	if l.Durable() < c.lie {
		c.lies++
	}
}

func (c *powerCheck) check(t *testing.T, boot int) {
	t.Helper()
	c.log(t)
	var cut slog.Record
	tr, err := Open(c.dir, Options{NoWatch: true, Boot: bootOf(boot), Logger: slog.New(cutLog{slog.DiscardHandler, &cut})})
	ok(t, err)
	cut.Attrs(func(a slog.Attr) bool {
		if a.Key == "records_behind" {
			c.tail += int(a.Value.Int64())
		}
		return true
	})
	if e := tr.log.Epoch(); e <= c.epoch {
		t.Errorf("the epoch is %d, it was %d before the crash", e, c.epoch)
	}
	c.epoch = tr.log.Epoch()
	for _, r := range records(t, tr) {
		if r.Pos.Epoch() == c.epoch && r.Flags&kml.FlagRecovered != 0 && r.Flags&kml.FlagForeign == 0 {
			c.again++
		}
	}
	ok(t, tr.Scan(ctx))
	checkReplay(t, tr)
	for name, seq := range c.synced {
		c.checkName(t, tr, name, seq)
	}
	// Mended, all of it can be read again.
	for _, d := range tr.Damaged() {
		c.damaged++
		staged := filepath.Join(tr.Stage(), "mend")
		ok(t, os.WriteFile(staged, pattern("mended", 1, 3), 0o600))
		// A version that the crash took: none in this history.
		ok(t, tr.Mend(ctx, nil, Offer{OID: d.OID, Version: kml.MakePosition(tr.log.Epoch()-1, 1<<40), Mtime: 1}, staged))
	}
	if n := len(tr.Damaged()); n > 0 {
		t.Errorf("%d files are still damaged", n)
	}
	checkAgrees(t, tr)
	es, err := tr.index.Children(kml.RootOID, "", 1000)
	ok(t, err)
	for _, e := range es {
		if _, err := readObject(t, tr, e.OID); err != nil {
			t.Errorf("%s: %v", e.Name, err)
		}
		ok(t, tr.Unlink(ctx, nil, kml.RootOID, e.Name))
	}
	clear(c.synced)
	clear(c.began)
	ok(t, tr.Close())
}

// checkName: a promised writing is there, whole, unless another began later.
func (c *powerCheck) checkName(t *testing.T, tr *Tree, name string, seq int) {
	t.Helper()
	later := c.began[name] > seq
	oid, _, there := tr.index.Child(kml.RootOID, name)
	if !there {
		if !later {
			t.Errorf("%s: promised as of %d, and gone", name, seq)
		}
		return
	}
	o, err := tr.index.Get(oid)
	ok(t, err)
	b, err := readObject(t, tr, oid)
	if err != nil {
		if !later || !errors.Is(err, unix.EIO) {
			t.Errorf("%s: promised as of %d, last begun %d: %v", name, seq, c.began[name], err)
		}
		return
	}
	_, got, whole := parsePattern(b)
	switch {
	case !later && (got != seq || !whole):
		t.Errorf("%s: promised as of %d, has %d (whole: %v, %d bytes)", name, seq, got, whole, len(b))
	case later && !whole && o.Version.Epoch() < c.epoch && (len(b) > 0 || o.Attr.Size > 0):
		// A file just made, or cut to nothing for an idle moment, has an empty version.
		t.Errorf("%s: torn contents, %d bytes, go for version %v", name, len(b), o.DataVersion)
	case later && whole && got < seq:
		t.Errorf("%s: promised as of %d, has the older %d", name, seq, got)
	}
}

func readObject(t *testing.T, tr *Tree, oid kml.OID) ([]byte, error) {
	t.Helper()
	h, err := tr.Open(ctx, nil, oid, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	a := must[Attr](t)(h.Attr(ctx))
	b := make([]byte, a.Size)
	n, err := h.ReadAt(ctx, b, 0)
	if err == io.EOF {
		err = nil
	}
	return b[:n], err
}

// TestPowerCutEmptiesFiles: files that were rewritten or extended and not yet
// on disk when the power went are damaged, keep their version and are no edit.
func TestPowerCutEmptiesFiles(t *testing.T) {
	d := disk.New(t, "ext4")
	dir := filepath.Join(d.Mnt, "fs")
	ok(t, os.Mkdir(dir, 0o755))
	ok(t, Init(dir, Options{NoWatch: true, Boot: bootOf(0)}))
	tr, err := Open(dir, Options{NoWatch: true, Boot: bootOf(1), SyncEvery: time.Hour})
	ok(t, err)
	f := put(t, tr, kml.RootOID, "f", strings.Repeat("old\n", 5000))
	g := put(t, tr, kml.RootOID, "g", "same")
	ok(t, tr.Commit(ctx))
	was := must[Attr](t)(tr.Getattr(ctx, nil, f.OID))
	put(t, tr, kml.RootOID, "f", strings.Repeat("new\n", 5000))
	put(t, tr, kml.RootOID, "fresh", "fresh")
	// Another program's fsync takes the names along, not the bytes.
	other, err := os.Create(filepath.Join(d.Mnt, "other"))
	ok(t, err)
	ok(t, other.Sync())
	ok(t, other.Close())
	epoch := tr.log.Epoch()
	d.CutPower(t)
	_ = tr.Close() // its disk is gone
	d.Unmount(t)
	d.Mount(t)
	if st, err := os.Stat(filepath.Join(dir, "f")); err != nil || st.Size() != 0 {
		t.Fatalf("the crash did not empty the file: %v %v", st, err)
	}
	tr, err = Open(dir, Options{NoWatch: true, Boot: bootOf(2)})
	ok(t, err)
	if tr.log.Epoch() != epoch+1 {
		t.Errorf("epoch %d, was %d", tr.log.Epoch(), epoch)
	}
	_, err = readObject(t, tr, f.OID)
	wantErr(t, err, unix.EIO)
	_, err = tr.OpenVersion(ctx, f.OID)
	wantErr(t, err, unix.EIO)
	ok(t, tr.Scan(ctx))
	if a := must[Attr](t)(tr.Getattr(ctx, nil, f.OID)); a.DataVersion != was.DataVersion || a.Size != was.Size {
		t.Errorf("it is version %x of %d bytes, was %x of %d", a.DataVersion, a.Size, was.DataVersion, was.Size)
	}
	for _, r := range records(t, tr) {
		if r.Op == kml.OpStore && r.OID == f.OID && r.Pos.Epoch() > epoch {
			t.Errorf("the damage was logged as an edit: %+v", r)
		}
	}
	if b, err := readObject(t, tr, g.OID); err != nil || string(b) != "same" {
		t.Errorf("a file that was not touched: %q %v", b, err)
	}
	if n := tr.Status().Damaged; n != 1 {
		t.Errorf("status says %d damaged", n)
	}
	// It is remembered.
	ok(t, tr.Close())
	tr, err = Open(dir, Options{NoWatch: true, Boot: bootOf(2)})
	ok(t, err)
	defer func() { ok(t, tr.Close()) }()
	if tr.log.Epoch() != epoch+1 {
		t.Errorf("a clean restart made epoch %d", tr.log.Epoch())
	}
	_, err = readObject(t, tr, f.OID)
	wantErr(t, err, unix.EIO)
	staged := filepath.Join(tr.Stage(), "mend")
	ok(t, os.WriteFile(staged, []byte("mended"), 0o600))
	lost := kml.MakePosition(epoch, 1<<40) // a version that the crash took
	o := must[*Object](t)(tr.index.Get(f.OID))
	of := Offer{OID: f.OID, Version: o.DataVersion, Mtime: o.Attr.Mtime}
	wantErr(t, tr.Mend(ctx, nil, of, staged), unix.EINVAL) // of another size
	for _, v := range []kml.Position{o.DataVersion - 1, o.DataVersion + 1, kml.MakePosition(epoch+1, 1<<40)} {
		wantErr(t, tr.Mend(ctx, nil, Offer{OID: f.OID, Version: v}, staged), unix.EBUSY)
	}
	of.Mtime++
	wantErr(t, tr.Wanted(of), unix.EBUSY)
	wantErr(t, tr.Mend(ctx, nil, Offer{OID: f.OID, Version: lost, Digest: make([]byte, 32)}, staged), unix.EINVAL)
	wantErr(t, tr.Mend(ctx, &Cred{UID: 12345, GID: 12345}, Offer{OID: f.OID, Version: lost}, staged), unix.EACCES)
	ok(t, tr.Mend(ctx, nil, Offer{OID: f.OID, Version: lost, Mtime: 17e9}, staged))
	if a := must[Attr](t)(tr.Getattr(ctx, nil, f.OID)); a.Mtime != 17e9 {
		t.Errorf("its time is %d", a.Mtime)
	}
	if b, err := readObject(t, tr, f.OID); err != nil || string(b) != "mended" {
		t.Errorf("a mended file: %q %v", b, err)
	}
	wantErr(t, tr.Mend(ctx, nil, Offer{OID: f.OID, Version: lost}, staged), fs.ErrNotExist)
	checkAgrees(t, tr)
	checkReplay(t, tr)
}
