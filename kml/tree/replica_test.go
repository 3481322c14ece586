package tree

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
)

// follower drives a replica by its master's log without a network between.
type follower struct {
	t      testing.TB
	tr     *Tree
	r      *Replica
	dir    string
	o      ReplicaOptions
	inline uint64 // contents up to here come along

	mu    sync.Mutex // of lacks: the replica looks around by itself, too
	lacks []kml.OID
}

func newFollower(t testing.TB, tr *Tree) *follower {
	f := &follower{t: t, tr: tr, dir: t.TempDir(), inline: 1 << 10}
	f.o = ReplicaOptions{Options: Options{NoWatch: true}, Fileset: tr.State().Fileset().UUID, Upstream: "test"}
	f.open()
	t.Cleanup(func() { f.r.Close() })
	return f
}

func (f *follower) lacking(oid kml.OID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lacks = append(f.lacks, oid)
}

// nextLacking is what was told of first; false when all was brought.
func (f *follower) nextLacking() (oid kml.OID, more bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.lacks) == 0 {
		return 0, false
	}
	oid, f.lacks = f.lacks[0], f.lacks[1:]
	return oid, true
}

func (f *follower) open() {
	f.t.Helper()
	f.mu.Lock()
	f.lacks = nil
	f.mu.Unlock()
	f.o.Lack = f.lacking
	r, err := OpenReplica(f.dir, f.o)
	if err != nil {
		f.t.Fatal(err)
	}
	f.r = r
}

func (f *follower) reopen() {
	f.t.Helper()
	if err := f.r.Close(); err != nil {
		f.t.Fatal(err)
	}
	f.open()
}

// contents are a version's bytes, when they are still to be had.
func (f *follower) contents(oid kml.OID, pos kml.Position, size, limit uint64) []byte {
	if size > limit {
		return nil
	}
	v, err := f.tr.OpenVersion(ctx, oid)
	if err != nil {
		return nil
	}
	defer v.Close()
	if v.Attr().DataVersion != uint64(pos) {
		return nil
	}
	b := make([]byte, size)
	if n, err := v.ReadAt(ctx, b, 0); err != nil || n != len(b) {
		return nil
	}
	return b
}

// copy brings the replica to a snapshot of the master's; stop entries, if not
// negative, are all that it takes.
func (f *follower) copy(stop int) {
	f.t.Helper()
	var c *Copy
	_, err := f.tr.Snapshot(ctx, kml.RootOID, -1, func(p kml.Position) error {
		head := make([]byte, kml.HeadLen)
		if _, err := f.tr.Log().ReadAt(head, 0); err != nil {
			return err
		}
		var err error
		if c, err = f.r.BeginCopy(p, head); err != nil {
			return err
		}
		for _, rec := range f.log(0) {
			if done, err := c.Log([]*kml.Record{rec}); done || err != nil {
				return err
			}
		}
		return nil
	}, func(e SnapshotEntry) error {
		if stop == 0 {
			return io.EOF
		}
		stop--
		ce := CopyEntry{SnapshotEntry: e}
		if e.Record.Op == kml.OpCreate {
			ce.Data = f.contents(e.Record.OID, e.DataVersion, e.Record.Attr.Size, f.inline)
		}
		return c.Take(&ce)
	})
	if stop == 0 && errors.Is(err, io.EOF) {
		return
	}
	if err != nil {
		f.t.Fatal(err)
	}
	if err := c.End(); err != nil {
		f.t.Fatal(err)
	}
}

func (f *follower) log(after kml.Position) (all []*kml.Record) {
	f.t.Helper()
	rd, err := f.tr.Log().ReaderAfter(after)
	if err != nil {
		f.t.Fatal(err)
	}
	defer rd.Close()
	for {
		rec, err := rd.TryNext()
		if err == io.EOF {
			return all
		}
		if err != nil {
			f.t.Fatal(err)
		}
		all = append(all, rec)
	}
}

// follow applies what the master has, and brings what is lacking.
func (f *follower) follow() {
	f.t.Helper()
	at, _ := f.r.Cursor()
	var as []Arrival
	for _, rec := range f.log(at) {
		a := Arrival{Record: rec}
		if rec.Op == kml.OpStore || rec.Op == kml.OpCreate && rec.Attr.Size > 0 {
			a.Data = f.contents(rec.OID, rec.Pos, rec.Attr.Size, f.inline)
		}
		as = append(as, a)
	}
	if err := f.r.Apply(ctx, as); err != nil {
		f.t.Fatal(err)
	}
	f.bring()
}

// bring walks all that the index has and brings what is missing.
func (f *follower) bring() {
	f.t.Helper()
	if err := f.r.lackingBelow(kml.RootOID, 0); err != nil {
		f.t.Fatal(err)
	}
	for oid, more := f.nextLacking(); more; oid, more = f.nextLacking() {
		f.bringOne(oid)
	}
}

func (f *follower) bringOne(oid kml.OID) {
	f.t.Helper()
	w, err := f.r.Want(oid)
	if err != nil || w == nil {
		return
	}
	var b Brought
	if _, err := f.tr.Snapshot(ctx, oid, 0, nil, func(e SnapshotEntry) error {
		b.Xattrs = e.Record.Xattrs
		return nil
	}); err != nil {
		f.t.Fatalf("%+v: %v", w, err)
	}
	if w.Mode&unix.S_IFMT == unix.S_IFREG {
		data := f.contents(oid, w.Version, w.Size, 1<<40)
		if data == nil && w.Size > 0 {
			f.t.Fatalf("contents of %v are not to be had", oid)
		}
		b.Staged, b.Version = fmt.Sprintf("%016x.test", uint64(oid)), w.Version
		if err := os.WriteFile(f.r.State().Path("stage", b.Staged), data, 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
	if err := f.r.Bring(ctx, oid, b); err != nil {
		f.t.Fatalf("bring %+v: %v", w, err)
	}
}

// portrait is what lies in a directory: a line for each name.
func portrait(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	inos := map[uint64]int{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		if rel == ExtDirName {
			return filepath.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%s %o %d:%d %d", rel, st.Mode, st.Uid, st.Gid, st.Mtim.Nano())
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			group := 0
			if st.Nlink > 1 {
				if inos[st.Ino] == 0 {
					inos[st.Ino] = len(inos) + 1
				}
				group = inos[st.Ino]
			}
			line += fmt.Sprintf(" %d/%d %q", st.Nlink, group, b)
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" dev %d", st.Rdev)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			fd, err := unix.Open(p, unix.O_PATH, 0)
			if err != nil {
				return err
			}
			xs, err := place{fd: fd}.xattrs()
			unix.Close(fd)
			if err != nil {
				return err
			}
			slices.SortFunc(xs, func(a, b kml.Xattr) int { return strings.Compare(a.Name, b.Name) })
			for _, x := range xs {
				line += fmt.Sprintf(" %s=%q", x.Name, x.Value)
			}
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (f *follower) equal() {
	f.t.Helper()
	if d := cmp.Diff(portrait(f.t, f.tr.Dir()), portrait(f.t, f.dir)); d != "" {
		list, _ := f.r.Troubles()
		asides, _ := os.ReadFile(f.r.State().Path("conflicts", asideList))
		f.t.Fatalf("master and replica differ (-master +replica):\n%s\n%+v\nput aside:\n%s", d, list, asides)
	}
	at, crc := f.r.Cursor()
	if want, err := f.tr.Log().CRCAt(at); err != nil || want != crc {
		f.t.Fatal(at, err)
	}
	a, b := make([]byte, f.tr.Log().Size()), make([]byte, f.r.t.log.Size())
	if _, err := f.tr.Log().ReadAt(a, 0); err != nil && err != io.EOF {
		f.t.Fatal(err)
	}
	if _, err := f.r.t.log.ReadAt(b, 0); err != nil && err != io.EOF {
		f.t.Fatal(err)
	}
	if len(a) < len(b) || !bytes.Equal(a[:len(b)], b) { // the master may have committed since
		f.t.Fatal("the logs have other bytes")
	}
}

// noAsides checks that nothing was taken for what a local program made.
func (f *follower) noAsides() {
	f.t.Helper()
	b, err := os.ReadFile(f.r.State().Path("conflicts", asideList))
	if !errors.Is(err, fs.ErrNotExist) {
		f.t.Fatalf("%s %v", b, err)
	}
}

func randomWorker(tr *Tree, t testing.TB, rnd *rand.Rand) *worker {
	w := &worker{tr: tr, rnd: rnd, dirs: []kml.OID{kml.RootOID}, quiet: true}
	var err error
	if w.site, err = tr.Enrol("worker", 0, []byte("k")); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *worker) run(t testing.TB, from, n int) {
	t.Helper()
	for i := range n {
		if err := w.step(from + i); err != nil {
			t.Fatal(err)
		}
	}
}

// A replica is its master's equal after any number of changes, taken in pieces
// of any length, whatever of the contents comes along.
func TestReplicaFollows(t *testing.T) {
	rnd := testutil.Rand(t)
	tr := newTree(t)
	w := randomWorker(tr, t, rnd)
	w.run(t, 0, 100)
	f := newFollower(t, tr)
	if !f.r.Copying() {
		t.Fatal("a new replica has to be copied")
	}
	f.copy(-1)
	f.bring()
	f.equal()
	for i := range 30 {
		f.inline = []uint64{0, 300, 1 << 20}[rnd.IntN(3)]
		w.run(t, 100+40*i, 1+rnd.IntN(40))
		f.follow()
		f.equal()
		if rnd.IntN(4) == 0 {
			f.reopen()
		}
	}
	// A file that is found with contents is one record.
	for _, n := range []string{"small", "large"} {
		ok(t, os.WriteFile(filepath.Join(tr.Dir(), n), bytes.Repeat([]byte(n), 100), 0o640))
		f.inline = 300
		must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, n))
	}
	f.follow()
	f.equal()
	if list, _ := f.r.Troubles(); len(list) > 0 {
		t.Fatal(list)
	}
	f.noAsides()
}

// A copy over whatever an earlier one of another state left comes out the same.
func TestReplicaCopiesAgain(t *testing.T) {
	rnd := testutil.Rand(t)
	tr := newTree(t)
	w := randomWorker(tr, t, rnd)
	f := newFollower(t, tr)
	for i := range 20 {
		w.run(t, 60*i, 60)
		f.inline = []uint64{0, 300, 1 << 20}[rnd.IntN(3)]
		f.copy(-1)
		f.noAsides()
		f.bring()
		f.equal()
		f.noAsides()
		ok(t, f.r.StartOver(false))
		f.reopen()
	}
}

// A copy that is cut short is taken up.
func TestReplicaCopyIsTakenUp(t *testing.T) {
	rnd := testutil.Rand(t)
	tr := newTree(t)
	w := randomWorker(tr, t, rnd)
	w.run(t, 0, 200)
	f := newFollower(t, tr)
	for stop := 0; f.r.Copying(); stop += 5 {
		f.copy(stop)
		f.reopen()
		f.noAsides()
	}
	f.bring()
	f.equal()
	f.noAsides()
}

// What lies in the directory already is taken over when it is the master's, and
// put aside when it is not.
func TestReplicaTakesOver(t *testing.T) {
	tr := newTree(t)
	d := must[Attr](t)(tr.Mkdir(ctx, nil, kml.RootOID, "d", 0o755))
	same := put(t, tr, d.OID, "same", strings.Repeat("s", 5000))
	put(t, tr, d.OID, "other", strings.Repeat("o", 5000))
	put(t, tr, kml.RootOID, "touched", strings.Repeat("t", 5000))
	f := &follower{t: t, tr: tr, dir: t.TempDir(), inline: 1 << 10}
	f.o = ReplicaOptions{Options: Options{NoWatch: true}, Fileset: tr.State().Fileset().UUID}
	write := func(name, data string, mtime int64) uint64 {
		p := filepath.Join(f.dir, name)
		ok(t, os.MkdirAll(filepath.Dir(p), 0o700))
		ok(t, os.WriteFile(p, []byte(data), 0o600))
		if mtime != 0 {
			ts := []unix.Timespec{unix.NsecToTimespec(mtime), unix.NsecToTimespec(mtime)}
			ok(t, unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, 0))
		}
		var st unix.Stat_t
		ok(t, unix.Stat(p, &st))
		return st.Ino
	}
	ino := write("d/same", strings.Repeat("s", 5000), must[Attr](t)(tr.Getattr(ctx, nil, same.OID)).Mtime)
	write("d/other", "local", 0)
	write("d/extra", "extra", 0)
	write("touched", strings.Repeat("x", 5000), 1e18)
	f.open()
	t.Cleanup(func() { f.r.Close() })
	f.copy(-1)
	f.bring()
	f.equal()
	var st unix.Stat_t
	ok(t, unix.Stat(filepath.Join(f.dir, "d/same"), &st))
	if st.Ino != ino {
		t.Fatal("a file that was the master's was copied again")
	}
	var kept []string
	es, err := os.ReadDir(f.r.State().Path("conflicts"))
	ok(t, err)
	for _, e := range es {
		if e.Name() != asideList {
			b, err := os.ReadFile(f.r.State().Path("conflicts", e.Name()))
			ok(t, err)
			kept = append(kept, string(b[:5]))
		}
	}
	slices.Sort(kept)
	if d := cmp.Diff([]string{"extra", "local", "xxxxx"}, kept); d != "" {
		t.Fatal(d)
	}
}

// What local programs do in the directory is undone.
func TestReplicaReverts(t *testing.T) {
	tr := newTree(t)
	d := must[Attr](t)(tr.Mkdir(ctx, nil, kml.RootOID, "d", 0o755))
	e := must[Attr](t)(tr.Mkdir(ctx, nil, d.OID, "e", 0o755))
	for _, n := range []string{"gone", "written", "saved", "moved", "chmod"} {
		put(t, tr, d.OID, n, n)
		put(t, tr, e.OID, n, n)
	}
	linked := put(t, tr, kml.RootOID, "one", "link")
	must[Attr](t)(tr.Link(ctx, nil, linked.OID, d.OID, "two"))
	f := newFollower(t, tr)
	f.copy(-1)
	f.bring()
	f.equal()
	p := func(n string) string { return filepath.Join(f.dir, n) }
	ok(t, os.Remove(p("d/gone")))
	ok(t, os.WriteFile(p("d/written"), []byte("local"), 0o644))
	ok(t, os.WriteFile(p("tmp"), []byte("local"), 0o644))
	ok(t, os.Rename(p("tmp"), p("d/saved")))
	ok(t, os.Rename(p("d/moved"), p("elsewhere")))
	ok(t, os.Chmod(p("d/chmod"), 0o777))
	ok(t, os.Remove(p("d/two")))
	ok(t, os.WriteFile(p("new"), []byte("new"), 0o644))
	ok(t, os.Rename(p("d/e"), p("f")))
	ok(t, f.r.t.Scan(ctx))
	f.bring()
	f.equal()
	ok(t, os.RemoveAll(p("d/e")))
	ok(t, f.r.t.Scan(ctx))
	f.bring()
	f.equal()
	// The replica is the master's alone.
	_, _, err := f.r.Tree().Create(ctx, nil, kml.RootOID, "x", unix.O_RDWR, 0o644)
	wantErr(t, err, syscall.EROFS)
}
