package tree

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/local"
)

// fakeMaster is the upstream of a cache in these tests: a log of hand-made
// records, and the versions of files.
type fakeMaster struct {
	mu      sync.Mutex
	c       *Cache
	log     []*kml.Record
	files   map[kml.OID][]version // newest last
	old     bool                  // serve versions that are past
	down    bool
	lists   int
	during  func() // called between a listing's making and its arrival
	fetched int
}

type version struct {
	pos  kml.Position
	data []byte
}

const fakeSite = 9

func openFake(t testing.TB, dir string, f *fakeMaster) *Cache {
	t.Helper()
	c, err := OpenCache(dir, CacheOptions{Upstream: f, WholeMax: 1 << 20, StoreIdle: time.Hour, StoreBusy: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	f.c = c
	if err := c.State().Update(func(fs *Fileset) { fs.Site = fakeSite }); err != nil {
		t.Fatal(err)
	}
	return c
}

func newFake(t testing.TB) (*fakeMaster, *Cache) {
	f := &fakeMaster{files: make(map[kml.OID][]version)}
	c := openFake(t, t.TempDir(), f)
	t.Cleanup(func() {
		if err := f.c.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := f.List(context.Background(), kml.RootOID); err != nil {
		t.Fatal(err)
	}
	return f, c
}

// do appends a record to the log; with apply the cache hears of it.
func (f *fakeMaster) do(t testing.TB, r kml.Record, apply bool) *kml.Record {
	t.Helper()
	f.mu.Lock()
	r.Pos = kml.MakePosition(1, uint64(len(f.log)+1))
	r.Time = int64(r.Pos.Recno())
	f.log = append(f.log, &r)
	if r.Op == kml.OpCreate {
		f.files[r.OID] = []version{{r.Pos, nil}}
	}
	f.mu.Unlock()
	if apply {
		f.catchUp(t)
	}
	return &r
}

// store gives a file new contents.
func (f *fakeMaster) store(t testing.TB, oid kml.OID, data []byte, o kml.Origin) *kml.Record {
	t.Helper()
	r := f.do(t, kml.Record{Op: kml.OpStore, OID: oid, Origin: o, Attr: kml.Attr{Size: uint64(len(data))}}, false)
	f.mu.Lock()
	f.files[oid] = append(f.files[oid], version{r.Pos, data})
	f.mu.Unlock()
	return r
}

// catchUp feeds the cache what it does not have.
func (f *fakeMaster) catchUp(t testing.TB) {
	t.Helper()
	for {
		at, _ := f.c.Cursor()
		f.mu.Lock()
		var r *kml.Record
		if n := int(at.Recno()); n < len(f.log) {
			r = f.log[n]
		}
		f.mu.Unlock()
		if r == nil {
			return
		}
		if _, err := f.c.Apply(r, uint32(r.Pos)); err != nil {
			t.Fatal(err)
		}
	}
}

func newFile(oid uint64, parent kml.OID, name string) kml.Record {
	return kml.Record{Op: kml.OpCreate, OID: kml.OID(oid), Parent: parent, Name: name, Attr: kml.Attr{Mode: unix.S_IFREG | 0o644, Nlink: 1}}
}

func newDir(oid uint64, parent kml.OID, name string) kml.Record {
	return kml.Record{Op: kml.OpMkdir, OID: kml.OID(oid), Parent: parent, Name: name, Attr: kml.Attr{Mode: unix.S_IFDIR | 0o755, Nlink: 2}}
}

// replay is the master's whole tree at the end of its log.
func (f *fakeMaster) replay() (*Index, kml.Position, error) {
	dir, err := os.MkdirTemp("", "replay-*")
	if err != nil {
		return nil, 0, err
	}
	defer os.RemoveAll(dir)
	x, err := OpenIndex(filepath.Join(dir, "i"), IndexOptions{})
	if err != nil {
		return nil, 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	err = x.Update(func(b *Batch) error {
		if err := b.Put(&Object{OID: kml.RootOID, Parent: kml.RootOID, Attr: kml.Attr{Mode: unix.S_IFDIR | 0o755, Nlink: 2}}); err != nil {
			return err
		}
		for _, r := range f.log {
			if _, err := applyRecord(b, r, false); err != nil {
				return err
			}
		}
		return nil
	})
	return x, kml.MakePosition(1, uint64(len(f.log))), err
}

func (f *fakeMaster) fill(ctx context.Context, oid kml.OID, whole bool) error {
	f.mu.Lock()
	down, during := f.down, f.during
	f.lists++
	f.mu.Unlock()
	if down {
		return syscall.EHOSTDOWN
	}
	fill := f.c.BeginFill()
	defer fill.End()
	x, pos, err := f.replay()
	if err != nil {
		return err
	}
	defer x.Close()
	entry := func(o *Object, n Name, op kml.Op) SnapshotEntry {
		return SnapshotEntry{Record: &kml.Record{Op: op, OID: o.OID, Parent: n.Parent, Name: n.Name, Attr: o.Attr, Time: o.Ctime, Target: o.Target},
			Version: o.Version, DataVersion: o.DataVersion}
	}
	top, err := x.Get(oid)
	if err != nil {
		return syscall.ESTALE
	}
	es := []SnapshotEntry{entry(top, Name{top.Parent, top.Name}, opFor(top.Attr.Mode))}
	if whole {
		names, err := x.Children(oid, "", 1000)
		if err != nil {
			return err
		}
		for _, n := range names {
			o, err := x.Get(n.OID)
			if err != nil {
				return err
			}
			es = append(es, entry(o, Name{oid, n.Name}, opFor(o.Attr.Mode)))
		}
	}
	if during != nil {
		during()
	}
	if at, _ := f.c.Cursor(); at < pos {
		if at == 0 {
			if err := f.c.Skip(pos, 0); err != nil {
				return err
			}
		} else if err := f.c.Reach(ctx, pos); err != nil {
			return err
		}
	}
	return fill.Apply(pos, es, whole)
}

func (f *fakeMaster) setDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

func (f *fakeMaster) List(ctx context.Context, oid kml.OID) error { return f.fill(ctx, oid, true) }
func (f *fakeMaster) Find(ctx context.Context, oid kml.OID) error { return f.fill(ctx, oid, false) }

func (f *fakeMaster) OpenVersion(_ context.Context, oid kml.OID) (Source, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, syscall.EHOSTDOWN
	}
	vs := f.files[oid]
	if len(vs) == 0 {
		return nil, syscall.ESTALE
	}
	return &fakeSource{f, oid, vs[len(vs)-1]}, nil
}

func (f *fakeMaster) Joins(kml.OID) bool { return false }

func (f *fakeMaster) Changed() {}

func (f *fakeMaster) Settle(context.Context, *local.Entry) error { return nil }

type fakeSource struct {
	f   *fakeMaster
	oid kml.OID
	v   version
}

func (s *fakeSource) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	if s.f.down {
		return 0, syscall.EHOSTDOWN
	}
	vs := s.f.files[s.oid]
	if !s.f.old && (len(vs) == 0 || vs[len(vs)-1].pos != s.v.pos) {
		return 0, syscall.ESTALE
	}
	s.f.fetched++
	return copy(p, s.v.data[off:]), nil
}

func (s *fakeSource) Version() kml.Position { return s.v.pos }
func (s *fakeSource) Size() uint64          { return uint64(len(s.v.data)) }
func (s *fakeSource) Close() error          { return nil }

func contents(t testing.TB, c *Cache, oid kml.OID) ([]byte, error) {
	t.Helper()
	h, err := c.Open(t.Context(), nil, oid, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return readAll(t, h)
}

func readAll(t testing.TB, h Handle) ([]byte, error) {
	b := make([]byte, 16<<20)
	n, err := h.ReadAt(t.Context(), b, 0)
	return b[:n], err
}

// TestCacheListingAndRecords brings a listing that is older than what was
// applied while it was on its way.
func TestCacheListingAndRecords(t *testing.T) {
	f, c := newFake(t)
	f.do(t, newDir(10, kml.RootOID, "d"), true)
	f.do(t, newFile(11, 10, "a"), true)
	f.do(t, newFile(12, 10, "b"), true)
	f.do(t, newFile(13, kml.RootOID, "x"), true)
	// Forget the folder: listed anew it has to be as of the cursor.
	if err := c.Reset(kml.MakePosition(1, 4), 4); err != nil {
		t.Fatal(err)
	}
	if err := f.List(t.Context(), kml.RootOID); err != nil {
		t.Fatal(err)
	}
	f.during = func() {
		f.during = nil
		f.do(t, kml.Record{Op: kml.OpUnlink, OID: 11, Parent: 10, Name: "a", Flags: kml.FlagGone}, true)
		f.do(t, kml.Record{Op: kml.OpRename, OID: 13, Parent: kml.RootOID, Name: "x", NewParent: 10, NewName: "y"}, true)
		f.do(t, newFile(14, 10, "c"), true)
		f.do(t, kml.Record{Op: kml.OpSetattr, OID: 12, Mask: kml.MaskMode, Attr: kml.Attr{Mode: unix.S_IFREG | 0o600}}, true)
	}
	for _, want := range []struct {
		name string
		oid  kml.OID
	}{{"b", 12}, {"c", 14}, {"y", 13}, {"a", 0}} {
		a, err := c.Lookup(t.Context(), nil, 10, want.name)
		if want.oid == 0 && !errors.Is(err, syscall.ENOENT) || want.oid != 0 && (err != nil || a.OID != want.oid) {
			t.Errorf("%s: %v, %v", want.name, a.OID, err)
		}
		if want.name == "b" && a.Mode&0o777 != 0o600 {
			t.Errorf("b: %o", a.Mode)
		}
	}
	if _, err := c.Lookup(t.Context(), nil, kml.RootOID, "x"); !errors.Is(err, syscall.ENOENT) {
		t.Error(err)
	}
}

// TestCacheUnknownArrives renames an object the cache has never heard of into
// a folder it knows.
func TestCacheUnknownArrives(t *testing.T) {
	f, c := newFake(t)
	f.do(t, newDir(10, kml.RootOID, "d"), true)
	f.do(t, newFile(11, 10, "far"), true)
	if err := c.Reset(kml.MakePosition(1, 2), 2); err != nil {
		t.Fatal(err)
	}
	if err := f.List(t.Context(), kml.RootOID); err != nil {
		t.Fatal(err)
	}
	var seen []Change
	defer c.Watch(func(ch Change) { seen = append(seen, ch) })()
	f.do(t, kml.Record{Op: kml.OpRename, OID: 11, Parent: 10, Name: "far", NewParent: kml.RootOID, NewName: "near"}, true)
	if !slices.ContainsFunc(seen, func(ch Change) bool {
		return ch.Kind&ChangeEntry != 0 && ch.Parent == kml.RootOID && ch.Name == "near" && !ch.Gone
	}) {
		t.Errorf("%+v", seen)
	}
	if a, err := c.Lookup(t.Context(), nil, kml.RootOID, "near"); err != nil || a.OID != 11 {
		t.Error(a.OID, err)
	}
}

func TestCacheHandleKeepsVersion(t *testing.T) {
	f, c := newFake(t)
	f.do(t, newFile(10, kml.RootOID, "f"), true)
	f.store(t, 10, []byte("first"), kml.Origin{})
	f.catchUp(t)
	h, err := c.Open(t.Context(), nil, 10, unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	f.store(t, 10, []byte("second"), kml.Origin{})
	f.catchUp(t)
	if b, err := readAll(t, h); string(b) != "first" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	if b, err := contents(t, c, 10); string(b) != "second" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	f.do(t, kml.Record{Op: kml.OpUnlink, OID: 10, Parent: kml.RootOID, Name: "f", Flags: kml.FlagGone}, true)
	if a, err := h.Attr(t.Context()); err != nil || a.Nlink != 0 {
		t.Error(a.Nlink, err)
	}
	if b, err := readAll(t, h); string(b) != "first" || err != nil {
		t.Errorf("%q %v", b, err)
	}
}

// TestCacheLargeGoesStale replaces a large file of which half was read: the
// reader gets ESTALE and never bytes of two versions.
func TestCacheLargeGoesStale(t *testing.T) {
	f, c := newFake(t)
	f.do(t, newFile(10, kml.RootOID, "f"), true)
	f.store(t, 10, bytes.Repeat([]byte{1}, 8<<20), kml.Origin{})
	f.catchUp(t)
	h, err := c.Open(t.Context(), nil, 10, unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	b := make([]byte, 10)
	if _, err := h.ReadAt(t.Context(), b, 0); err != nil || b[0] != 1 {
		t.Fatal(b, err)
	}
	f.store(t, 10, bytes.Repeat([]byte{2}, 8<<20), kml.Origin{})
	if _, err := h.ReadAt(t.Context(), b, 7<<20); !errors.Is(err, syscall.ESTALE) {
		t.Fatal(b, err)
	}
	f.catchUp(t)
	if got, err := contents(t, c, 10); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{2}, 8<<20)) {
		t.Fatal(len(got), err)
	}
}

// TestCacheLocalSurvives kills the cache with a file written and not stored:
// the next one finds it open-dirty with its bytes and its base.
func TestCacheLocalSurvives(t *testing.T) {
	f, c := newFake(t)
	f.do(t, newFile(10, kml.RootOID, "f"), true)
	base := f.store(t, 10, []byte("basisbytes"), kml.Origin{})
	f.catchUp(t)
	h, err := c.Open(t.Context(), nil, 10, unix.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.WriteAt(t.Context(), []byte("LOCAL"), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.index.Load().Flush(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "killed")
	if out, err := exec.Command("cp", "-a", c.Dir(), dir).CombinedOutput(); err != nil {
		t.Fatal(string(out), err)
	}
	h.Close()
	g := &fakeMaster{files: f.files, log: f.log}
	k := openFake(t, dir, g)
	defer k.Close()
	if b, err := contents(t, k, 10); string(b) != "LOCALbytes" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	if err := k.CutAll(); err != nil {
		t.Fatal(err)
	}
	es := k.Local().Entries()
	if len(es) != 1 || es[0].Rec().Base.Pos != base.Pos || es[0].Rec().Attr.Size != 10 {
		t.Fatalf("%+v", es)
	}
	b, err := os.ReadFile(k.Local().Path(es[0].ID))
	if string(b) != "LOCALbytes" || err != nil {
		t.Errorf("%q %v", b, err)
	}
}

// TestCacheOwnStore sends a store and gets it back: attributes come, contents
// stay, and a write in between keeps what is newer.
func TestCacheOwnStore(t *testing.T) {
	f, c := newFake(t)
	f.do(t, newFile(10, kml.RootOID, "f"), true)
	h, err := c.Open(t.Context(), nil, 10, unix.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	write := func(s string) *local.Entry {
		if _, err := h.WriteAt(t.Context(), []byte(s), 0); err != nil {
			t.Fatal(err)
		}
		if err := h.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		es := c.Local().Entries()
		return es[len(es)-1]
	}
	one := write("one")
	two := write("two!")
	if two.After != one.ID || one.After != 0 {
		t.Fatal("bases are not in a row")
	}
	if b, err := os.ReadFile(c.Local().Path(one.ID)); string(b) != "one" || err != nil {
		t.Fatalf("the picture of a store was written to: %q %v", b, err)
	}
	if err := c.Local().Freeze(fakeSite, []*local.Entry{one, two}, nil); err != nil {
		t.Fatal(err)
	}
	f.store(t, 10, []byte("one"), kml.Origin{Site: fakeSite, Seq: 1})
	f.catchUp(t)
	if a, err := c.Getattr(t.Context(), nil, 10); a.Size != 4 || a.DataVersion&DataDirty == 0 || err != nil {
		t.Errorf("%+v %v", a, err)
	}
	last := f.store(t, 10, []byte("two!"), kml.Origin{Site: fakeSite, Seq: 2})
	f.catchUp(t)
	if a, err := c.Getattr(t.Context(), nil, 10); a.Size != 4 || a.DataVersion != uint64(last.Pos) || err != nil {
		t.Errorf("%+v %v", a, err)
	}
	f.setDown(true)
	if b, err := contents(t, c, 10); string(b) != "two!" || err != nil {
		t.Errorf("%q %v", b, err)
	}
}

// TestCacheConflictDrop gives up bytes that the master refused.
func TestCacheConflictDrop(t *testing.T) {
	f, c := newFake(t)
	f.do(t, newFile(10, kml.RootOID, "f"), true)
	h, err := c.Open(t.Context(), nil, 10, unix.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.WriteAt(t.Context(), []byte("mine"), 0); err != nil {
		t.Fatal(err)
	}
	h.Close()
	f.store(t, 10, []byte("theirs"), kml.Origin{})
	f.catchUp(t)
	if b, err := contents(t, c, 10); string(b) != "mine" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	if err := c.Undo(kml.Base{}, c.Local().Entries()...); err != nil {
		t.Fatal(err)
	}
	if b, err := contents(t, c, 10); string(b) != "theirs" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	if n := c.OpenDirty(); n != 0 {
		t.Error(n)
	}
}

// TestCachePresence reads a large file at random places while new versions
// come, the master goes away and the cache is reopened: every byte that is
// answered is of the version that was opened.
func TestCachePresence(t *testing.T) {
	testutil.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "presence-*")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		f := &fakeMaster{files: make(map[kml.OID][]version)}
		openFake(t, dir, f)
		defer func() { f.c.Close() }()
		if err := f.List(t.Context(), kml.RootOID); err != nil {
			rt.Fatal(err)
		}
		f.do(t, newFile(10, kml.RootOID, "f"), true)
		seed := uint64(0)
		fresh := func() {
			seed++
			r := rand.New(rand.NewPCG(seed, 1))
			b := make([]byte, 2<<20+r.IntN(1<<20))
			for i := 0; i < len(b); i += 1 + r.IntN(200<<10) {
				b[i] = byte(r.IntN(256))
			}
			f.store(t, 10, b, kml.Origin{})
			f.catchUp(t)
		}
		fresh()
		newest := func() version { vs := f.files[10]; return vs[len(vs)-1] }
		rt.Repeat(map[string]func(*rapid.T){
			"read": func(rt *rapid.T) {
				h, err := f.c.Open(t.Context(), nil, 10, unix.O_RDONLY)
				if f.down && errors.Is(err, syscall.EHOSTDOWN) {
					return
				}
				if err != nil {
					rt.Fatal(err)
				}
				defer h.Close()
				v := newest()
				for range rapid.IntRange(1, 3).Draw(rt, "reads") {
					off := rapid.IntRange(0, len(v.data)).Draw(rt, "off")
					b := make([]byte, rapid.IntRange(1, 1<<20).Draw(rt, "n"))
					n, err := h.ReadAt(t.Context(), b, int64(off))
					if f.down && errors.Is(err, syscall.EHOSTDOWN) {
						continue
					}
					if err != nil {
						rt.Fatal(err)
					}
					if want := v.data[off:min(off+len(b), len(v.data))]; !bytes.Equal(b[:n], want) {
						rt.Fatalf("%d bytes at %d are not of version %v", n, off, v.pos)
					}
				}
			},
			"store": func(*rapid.T) { fresh() },
			"down":  func(*rapid.T) { f.setDown(true) }, // a fetch ahead may be on its way
			"up":    func(*rapid.T) { f.setDown(false) },
			"reopen": func(rt *rapid.T) {
				if rapid.IntRange(0, 7).Draw(rt, "rare") != 0 {
					return // it syncs the disk
				}
				if err := f.c.Close(); err != nil {
					rt.Fatal(err)
				}
				openFake(t, dir, f)
			},
		})
	})
}

func TestCacheRefusesOtherRoles(t *testing.T) {
	dir := t.TempDir()
	if err := Init(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	if c, err := OpenCache(dir, CacheOptions{Upstream: &fakeMaster{}}); err == nil {
		c.Close()
		t.Fatal("a master's fileset was taken for a cache")
	}
}
