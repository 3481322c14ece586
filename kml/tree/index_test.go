package tree

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
)

func newIndex(t testing.TB, o IndexOptions) (*Index, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "index.db")
	x, err := OpenIndex(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x, path
}

// TestIndexAgainstMaps makes random changes, with flushes and restarts in
// between, and compares every answer with plain maps.
func TestIndexAgainstMaps(t *testing.T) {
	rnd := testutil.Rand(t)
	o := IndexOptions{FlushSize: 50}
	x, path := newIndex(t, o)
	objs := map[kml.OID]uint64{}
	names := map[Name]kml.OID{}
	views := 0
	for i := range 2000 {
		oid := kml.OID(rnd.IntN(100) + 2)
		n := Name{kml.OID(rnd.IntN(5) + 1), fmt.Sprint(rnd.IntN(60))}
		err := x.Update(func(b *Batch) error {
			b.SetCursor(kml.Position(i))
			switch rnd.IntN(6) {
			case 0, 1:
				objs[oid] = uint64(i)
				return b.Put(&Object{OID: oid, Attr: kml.Attr{Size: uint64(i)}, Ino: uint64(oid) + 1000})
			case 2:
				delete(objs, oid)
				b.Delete(oid)
			case 3, 4:
				names[n] = oid
				b.SetName(n, oid, kml.Position(i))
			case 5:
				delete(names, n)
				b.DelName(n, kml.Position(i))
			}
			return nil
		})
		ok(t, err)
		switch rnd.IntN(60) {
		case 0:
			ok(t, x.Flush())
		case 1:
			ok(t, x.Close())
			x, err = OpenIndex(path, o)
			ok(t, err)
			if x.Cursor() != kml.Position(i) {
				t.Fatalf("cursor is %d after a restart, want %d", x.Cursor(), i)
			}
		case 2:
			v, err := x.View()
			ok(t, err)
			views++
			ok(t, x.Update(func(b *Batch) error {
				b.SetName(Name{1, "later"}, 99, kml.Position(i))
				return nil
			}))
			compareNames(t, names, 1, func(after string, max int) ([]NameEntry, error) { return v.Children(1, after, max) })
			ok(t, v.Close())
			ok(t, x.Update(func(b *Batch) error { b.DelName(Name{1, "later"}, kml.Position(i)); return nil }))
		}
	}
	t.Cleanup(func() { x.Close() })
	for oid := kml.OID(2); oid < 102; oid++ {
		o, err := x.Get(oid)
		size, want := objs[oid]
		if want != (err == nil) || want && o.Attr.Size != size {
			t.Errorf("object %d: %v, %v; want %v %v", oid, o, err, size, want)
		}
		if got, found := x.ByIno(uint64(oid) + 1000); found != want || want && got != oid {
			t.Errorf("inode of %d gives %v %v", oid, got, found)
		}
	}
	for p := kml.OID(1); p < 6; p++ {
		compareNames(t, names, p, func(after string, max int) ([]NameEntry, error) { return x.Children(p, after, max) })
	}
	if views == 0 {
		t.Error("no view was taken")
	}
}

func compareNames(t *testing.T, names map[Name]kml.OID, parent kml.OID, children func(after string, max int) ([]NameEntry, error)) {
	t.Helper()
	got := map[Name]kml.OID{}
	last := ""
	for {
		es, err := children(last, 7)
		ok(t, err)
		if len(es) == 0 {
			break
		}
		for _, e := range es {
			if e.Name <= last {
				t.Fatalf("%q after %q", e.Name, last)
			}
			last = e.Name
			got[Name{parent, e.Name}] = e.OID
		}
	}
	want := map[Name]kml.OID{}
	for n, oid := range names {
		if n.Parent == parent {
			want[n] = oid
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("folder %d: %v, want %v", parent, got, want)
	}
}

func TestUpdateIsAllOrNothing(t *testing.T) {
	x, _ := newIndex(t, IndexOptions{})
	no := errors.New("no")
	err := x.Update(func(b *Batch) error {
		b.SetName(Name{1, "a"}, 2, 1)
		if err := b.Put(&Object{OID: 2}); err != nil {
			return err
		}
		if _, err := b.Get(2); err != nil {
			t.Errorf("a batch does not read its own writes: %v", err)
		}
		return no
	})
	wantErr(t, err, no)
	if _, _, found := x.Child(1, "a"); found {
		t.Error("a failed update left a name")
	}
	_, err = x.Get(2)
	wantErr(t, err, ErrNotFound)
}

func TestOriginsAreKeptUntilForgotten(t *testing.T) {
	x, path := newIndex(t, IndexOptions{})
	for seq := uint64(1); seq <= 10; seq++ {
		ok(t, x.Update(func(b *Batch) error {
			b.SetApplied(kml.Origin{Site: 5, Seq: seq}, kml.Position(100+seq), kml.MakeOID(5, seq*3))
			return nil
		}))
	}
	ok(t, x.Flush())
	ok(t, x.Update(func(b *Batch) error { return b.Forget(5, 4) }))
	ok(t, x.Close())
	x, err := OpenIndex(path, IndexOptions{})
	ok(t, err)
	defer x.Close()
	ok(t, x.Update(func(b *Batch) error {
		if n := b.LastSeq(5); n != 10 {
			t.Errorf("last number %d", n)
		}
		if n := b.MaxCounter(5); n != 30 {
			t.Errorf("highest counter %d", n)
		}
		if p, found := b.Applied(kml.Origin{Site: 5, Seq: 7}); !found || p != 107 {
			t.Errorf("record 7: %v %v", p, found)
		}
		if _, found := b.Applied(kml.Origin{Site: 5, Seq: 3}); !found {
			t.Error("a forgotten record may be applied again")
		}
		if _, found := b.Applied(kml.Origin{Site: 5, Seq: 11}); found {
			t.Error("a new record counts as applied")
		}
		return nil
	}))
}

func TestDamagedIndexIsMadeAgain(t *testing.T) {
	tr := newTree(t)
	before(t, tr)
	ok(t, tr.Close())
	path := filepath.Join(tr.dir, ExtDirName, "index.db")
	for _, damage := range []func() error{
		func() error { return os.Remove(path) },
		func() error { return os.WriteFile(path, []byte("this is no index"), 0o600) },
		func() error { return os.Truncate(path, 5000) },
	} {
		ok(t, damage())
		tr = openTree(t, tr.dir)
		checkAgrees(t, tr)
		checkReplay(t, tr)
		put(t, tr, kml.RootOID, "after", "x")
		ok(t, tr.Close())
	}
}

func TestApplyIsIdempotent(t *testing.T) {
	tr := newTree(t)
	rnd := testutil.Rand(t)
	w := &worker{tr: tr, rnd: rand.New(rand.NewPCG(rnd.Uint64(), 1)), dirs: []kml.OID{kml.RootOID}, quiet: true}
	w.site = must[Site](t)(tr.Enrol("h", 0, []byte("k")))
	for i := range 300 {
		ok(t, w.step(i))
	}
	x, _ := newIndex(t, IndexOptions{})
	root := must[*Object](t)(tr.index.Get(kml.RootOID))
	first := *root
	first.Known, first.Version = 0, 0
	ok(t, x.Update(func(b *Batch) error { return b.Put(&first) }))
	all := records(t, tr)
	for i, r := range all {
		ok(t, x.Update(func(b *Batch) error { _, err := applyRecord(b, r, true); return err }))
		if rnd.IntN(3) > 0 {
			continue
		}
		// Records from before come again, as after a restart in a cache.
		for j := rnd.IntN(i + 1); j <= i; j++ {
			var again []Change
			ok(t, x.Update(func(b *Batch) (err error) { again, err = applyRecord(b, all[j], true); return err }))
			for _, c := range again {
				if c.Kind&ChangeEntry != 0 {
					t.Fatalf("record %v changed %q when it came again behind %v", all[j].Pos, c.Name, r.Pos)
				}
			}
		}
	}
}

func FuzzDecodeObject(f *testing.F) {
	o := &Object{OID: 7, Attr: kml.Attr{Mode: unix.S_IFREG | 0o644, Size: 9, Mtime: -1}, Parent: 1, Name: "n", Handle: []byte("h"),
		Present: []kml.Extent{{Off: 1, Len: 2}}, Xattrs: []kml.Xattr{{Name: "user.a", Value: []byte("b")}}, Listed: true}
	f.Add(o.encode())
	f.Add((&Object{}).encode())
	f.Add([]byte{objectVersion, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := decodeObject(7, b)
		if err != nil {
			return
		}
		again, err := decodeObject(7, o.encode())
		if err != nil || !reflect.DeepEqual(o, again) {
			t.Errorf("%+v became %+v, %v", o, again, err)
		}
	})
}

func TestSlotsOutliveTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slots")
	s, err := OpenSlots(path, 4, 64)
	ok(t, err)
	a := must[int](t)(s.Put(ctx, []byte("a")))
	must[int](t)(s.Put(ctx, []byte("b")))
	s.Clear(a)
	if _, err := s.Put(ctx, make([]byte, 60)); err == nil {
		t.Error("too long a value was taken")
	}
	ok(t, s.Close())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	ok(t, err)
	must[int](t)(f.WriteAt([]byte{9, 0, 0, 0, 1, 2, 3, 4}, 3*64)) // half-written
	ok(t, f.Close())
	s, err = OpenSlots(path, 4, 64)
	ok(t, err)
	defer s.Close()
	all := s.All()
	if len(all) != 1 || string(all[1]) != "b" {
		t.Errorf("a restart finds %v", all)
	}
	for range 3 {
		must[int](t)(s.Put(ctx, []byte("x")))
	}
	done, cancel := contextWithCancel()
	cancel()
	if _, err := s.Put(done, []byte("y")); err == nil {
		t.Error("a fifth value fits four slots")
	}
}

func BenchmarkIndex(b *testing.B) {
	x, err := OpenIndex(filepath.Join(b.TempDir(), "index.db"), IndexOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer x.Close()
	const n = 100000
	for i := 2; i < n; i += 1000 {
		if err := x.Update(func(ba *Batch) error {
			for j := i; j < i+1000; j++ {
				if err := ba.Put(&Object{OID: kml.OID(j), Parent: 1, Name: fmt.Sprint(j), Ino: uint64(j), Handle: make([]byte, 12)}); err != nil {
					return err
				}
				ba.SetName(Name{1, fmt.Sprint(j)}, kml.OID(j), 1)
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	if err := x.Flush(); err != nil {
		b.Fatal(err)
	}
	b.Run("Get", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := x.Get(kml.OID(2 + i*7919%(n-10))); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Child", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			x.Child(1, fmt.Sprint(2+i*7919%(n-10)))
		}
	})
	b.Run("Update", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			oid := kml.OID(2 + i*7919%(n-10))
			if err := x.Update(func(ba *Batch) error { return ba.Put(&Object{OID: oid, Ino: uint64(oid)}) }); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestIndexBoundedWhileFlushesFail: a file that cannot be written stops changes
// before memory is gone, and is caught up with once it can.
func TestIndexBoundedWhileFlushesFail(t *testing.T) {
	var full atomic.Bool
	full.Store(true)
	x, err := OpenIndex(filepath.Join(t.TempDir(), "index.db"), IndexOptions{FlushSize: 16, FlushEvery: time.Hour, failFlush: func() error {
		if full.Load() {
			return syscall.ENOSPC
		}
		return nil
	}})
	ok(t, err)
	defer func() { ok(t, x.Close()) }()
	n := 0
	put := func() error {
		return x.Update(func(b *Batch) error {
			n++
			return b.Put(&Object{OID: kml.MakeOID(1, uint64(n+1))})
		})
	}
	for x.Room() == nil && n < 10000 {
		ok(t, put())
		wantErr(t, x.Flush(), syscall.ENOSPC)
	}
	wantErr(t, x.Room(), syscall.ENOSPC)
	for err = put(); err == nil && n < 10000; err = put() {
	}
	wantErr(t, err, syscall.ENOSPC)
	if n > 16*2*maxBehind+2 {
		t.Errorf("%d changes were taken", n)
	}
	full.Store(false)
	ok(t, x.Flush())
	ok(t, x.Room())
	ok(t, put())
	_, err = x.Get(kml.MakeOID(1, 2))
	ok(t, err)
}

// TestIndexStaysBehindTheMark changes a tree faster than it commits: the index's
// file is never ahead of what is durable, nor does memory hold more than it may,
// and a crash of the machine leaves an index that is gone on with.
func TestIndexStaysBehindTheMark(t *testing.T) {
	dir := t.TempDir()
	ok(t, Init(dir, Options{NoWatch: true, Boot: bootOf(0)}))
	for _, sync := range []SyncMode{SyncNever, SyncInterval, SyncAlways} {
		o := Options{NoWatch: true, Boot: bootOf(1 + int(sync)), Sync: sync, SyncEvery: time.Hour, maxDirty: 8}
		tr, err := Open(dir, o)
		ok(t, err)
		start := tr.Durable()
		for i := range 200 {
			must[Attr](t)(tr.Mkdir(ctx, nil, kml.RootOID, fmt.Sprintf("d%d-%d", sync, i), 0o755))
			ok(t, tr.index.Flush())
			if c, d := tr.index.Flushed(), tr.Durable(); c > d {
				t.Fatalf("after %d changes the index is at %s, durable is %s", i, c, d)
			}
		}
		if tr.Durable() == start {
			t.Error("no commit was made for the index")
		}
		tr.index.mu.RLock()
		if n := tr.index.pendingSize(); n > maxUnfirm*8 {
			t.Errorf("%d changes stand in memory", n)
		}
		tr.index.mu.RUnlock()
		ok(t, tr.closeParts()) // as the disk is when the machine goes down now

		o.Boot = bootOf(2 + int(sync))
		var said logLines
		o.Logger = slog.New(&said)
		tr, err = Open(dir, o)
		ok(t, err)
		if said.has("index is made again") || !said.has("history was cut") {
			t.Errorf("the opener said %q", said.lines)
		}
		checkAgrees(t, tr)
		checkReplay(t, tr)
		ok(t, tr.Close())
	}
}

// logLines keeps the messages of a logger.
type logLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *logLines) Enabled(context.Context, slog.Level) bool { return true }
func (l *logLines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logLines) WithGroup(string) slog.Handler            { return l }

func (l *logLines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, r.Message)
	return nil
}

func (l *logLines) has(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.lines, func(s string) bool { return strings.Contains(s, part) })
}

// TestTimesAfterRemake: folders that changed behind the log's back are found to
// have, although an index that was made again took their inodes on as they are.
func TestTimesAfterRemake(t *testing.T) {
	dir := t.TempDir()
	ok(t, Init(dir, Options{NoWatch: true}))
	tr, err := Open(dir, Options{NoWatch: true})
	ok(t, err)
	d := must[Attr](t)(tr.Mkdir(ctx, nil, kml.RootOID, "d", 0o755))
	put(t, tr, d.OID, "f", "f")
	put(t, tr, kml.RootOID, "g", "g")
	ok(t, tr.Close())
	ok(t, os.Remove(filepath.Join(dir, ExtDirName, "index.db")))
	for _, p := range []string{filepath.Join(dir, "d"), dir} {
		ok(t, os.Chtimes(p, time.Time{}, time.Unix(5, 5)))
	}
	tr, err = Open(dir, Options{NoWatch: true})
	ok(t, err)
	defer func() { ok(t, tr.Close()) }()
	ok(t, tr.Scan(ctx))
	checkAgrees(t, tr)
	checkReplay(t, tr)
}

// TestIndexDamagedInside overwrites pages of an index: nothing panics, and the
// fileset is whole again, at once or after the next start.
func TestIndexDamagedInside(t *testing.T) {
	rounds := 20
	if testutil.Long() {
		rounds = 400
	}
	rnd := testutil.Rand(t)
	dir := t.TempDir()
	for i := range 300 {
		ok(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("a-file-with-a-name-%d", i)), nil, 0o644))
	}
	ok(t, Init(dir, Options{NoWatch: true}))
	path := filepath.Join(dir, ExtDirName, "index.db")
	rebuilt := 0
	for range rounds {
		b := must[[]byte](t)(os.ReadFile(path))
		page := b[(2+rnd.IntN(44))*4096:][:4096] // those in use lie at the beginning
		switch rnd.IntN(3) {
		case 0:
			for i := range page {
				page[i] = byte(rnd.Uint32())
			}
		case 1:
			clear(page[rnd.IntN(4096):])
		default:
			page[rnd.IntN(4096)] ^= 1 << rnd.IntN(8)
		}
		ok(t, os.WriteFile(path, b, 0o600))
		tr, err := Open(dir, Options{NoWatch: true})
		ok(t, err)
		if err := tr.Scan(ctx); err != nil || tr.index.bad.Load() {
			_ = tr.Close() // it stopped: its index could not be read
			tr, err = Open(dir, Options{NoWatch: true})
			ok(t, err)
		}
		if _, err := os.Stat(path + damagedSuffix); err == nil {
			rebuilt++
			ok(t, os.Remove(path+damagedSuffix))
		}
		checkReplay(t, tr) // nothing is wrong silently
		if t.Failed() {
			t.FailNow()
		}
		ok(t, tr.Close())
	}
	t.Logf("%d rounds, %d times made again", rounds, rebuilt)
	if rebuilt == 0 {
		t.Error("no damage was ever noticed")
	}
	ok(t, os.Remove(path))
	tr, err := Open(dir, Options{NoWatch: true})
	ok(t, err)
	defer func() { ok(t, tr.Close()) }()
	checkAgrees(t, tr)
}
