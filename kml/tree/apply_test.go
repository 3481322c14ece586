package tree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
)

// history is a plain model of a tree that writes the records a master would.
type history struct {
	objs  map[kml.OID]*modelObject
	names map[Name]kml.OID
	recs  []*kml.Record
	next  uint64
}

type modelObject struct {
	attr    kml.Attr
	version kml.Position
	data    kml.Position
}

func newHistory() *history {
	h := &history{objs: make(map[kml.OID]*modelObject), names: make(map[Name]kml.OID), next: 2}
	h.objs[kml.RootOID] = &modelObject{attr: kml.Attr{Mode: unix.S_IFDIR | 0o755}}
	return h
}

func (h *history) isDir(o kml.OID) bool { return h.objs[o].attr.Mode&unix.S_IFMT == unix.S_IFDIR }

func (h *history) namesOf(o kml.OID) (out []Name) {
	for n, id := range h.names {
		if id == o {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, byName)
	return out
}

func byName(a, b Name) int {
	if a.Parent != b.Parent {
		return int(a.Parent) - int(b.Parent)
	}
	return strings.Compare(a.Name, b.Name)
}

// log numbers a record and touches what every record touches.
func (h *history) log(r *kml.Record) *kml.Record {
	n := uint64(len(h.recs) + 1)
	r.Pos, r.Time = kml.MakePosition(1, n), int64(1000*n)
	r.Origin = kml.Origin{Site: 1, Seq: n}
	touch := func(dir kml.OID, mtime *int64) {
		if dir != 0 {
			*mtime = r.Time
			h.objs[dir].attr.Mtime, h.objs[dir].version = r.Time, r.Pos
		}
	}
	touch(r.Parent, &r.ParentMtime)
	if r.NewParent != r.Parent {
		touch(r.NewParent, &r.NewParentMtime)
	}
	if o := h.objs[r.OID]; o != nil {
		o.version = r.Pos
	}
	h.recs = append(h.recs, r)
	return r
}

func (h *history) make(op kml.Op, n Name) kml.OID {
	oid := kml.MakeOID(1, h.next)
	h.next++
	mode := map[kml.Op]uint32{kml.OpCreate: unix.S_IFREG | 0o644, kml.OpMkdir: unix.S_IFDIR | 0o755, kml.OpSymlink: unix.S_IFLNK | 0o777, kml.OpMknod: unix.S_IFIFO | 0o600}[op]
	r := &kml.Record{Op: op, OID: oid, Parent: n.Parent, Name: n.Name, Attr: kml.Attr{Mode: mode, UID: 7, Nlink: 1}}
	if op == kml.OpSymlink {
		r.Target = "to/" + n.Name
	}
	h.objs[oid] = &modelObject{attr: r.Attr}
	h.log(r)
	h.objs[oid].data = r.Pos
	h.names[n] = oid
	return oid
}

func (h *history) link(oid kml.OID, n Name) {
	h.names[n] = oid
	h.objs[oid].attr.Nlink++
	h.log(&kml.Record{Op: kml.OpLink, OID: oid, Parent: n.Parent, Name: n.Name})
}

// lose takes a name away and says what a record says of the victim.
func (h *history) lose(n Name) (v *kml.Victim, flags kml.Flags) {
	oid := h.names[n]
	o := h.objs[oid]
	v = &kml.Victim{OID: oid, Version: o.version, DataVersion: o.data, Attr: o.attr}
	delete(h.names, n)
	if o.attr.Nlink--; h.isDir(oid) || o.attr.Nlink == 0 {
		delete(h.objs, oid)
		flags = kml.FlagGone
	}
	return v, flags
}

func (h *history) remove(n Name) {
	oid := h.names[n]
	op := kml.OpUnlink
	if h.isDir(oid) {
		op = kml.OpRmdir
	}
	v, flags := h.lose(n)
	h.log(&kml.Record{Op: op, OID: oid, Parent: n.Parent, Name: n.Name, Victim: v, Flags: flags})
}

func (h *history) rename(from, to Name, exchange bool) {
	oid := h.names[from]
	r := &kml.Record{Op: kml.OpRename, OID: oid, Parent: from.Parent, Name: from.Name, NewParent: to.Parent, NewName: to.Name}
	other, held := h.names[to]
	switch {
	case exchange:
		o := h.objs[other]
		r.Flags, r.Victim = kml.FlagExchange, &kml.Victim{OID: other, Version: o.version, DataVersion: o.data, Attr: o.attr}
		h.names[from], h.names[to] = other, oid
	case held:
		r.Victim, r.Flags = h.lose(to)
		fallthrough
	default:
		delete(h.names, from)
		h.names[to] = oid
	}
	h.log(r)
	if r.Victim != nil && h.objs[other] != nil {
		h.objs[other].version = r.Pos
	}
}

func (h *history) store(oid kml.OID, size uint64) {
	r := h.log(&kml.Record{Op: kml.OpStore, OID: oid, Attr: kml.Attr{Size: size, Mtime: int64(size)}})
	o := h.objs[oid]
	o.data, o.attr.Size, o.attr.Mtime = r.Pos, size, int64(size)
}

func (h *history) chmod(oid kml.OID, mode uint32) {
	o := h.objs[oid]
	old := o.attr
	o.attr.Mode = o.attr.Mode&unix.S_IFMT | mode
	h.log(&kml.Record{Op: kml.OpSetattr, OID: oid, Mask: kml.MaskMode, Attr: o.attr, Old: old, HadOld: true})
}

// empty reports whether a folder can go.
func (h *history) empty(dir kml.OID) bool {
	for n := range h.names {
		if n.Parent == dir {
			return false
		}
	}
	return true
}

// under reports whether dir is top or below it.
func (h *history) under(dir, top kml.OID) bool {
	for dir != kml.RootOID && dir != top {
		dir = h.namesOf(dir)[0].Parent
	}
	return dir == top
}

// step makes one random change; the draw may come to nothing.
func (h *history) step(t *rapid.T) {
	var dirs, others []kml.OID
	for o := range h.objs {
		if h.isDir(o) {
			dirs = append(dirs, o)
		} else {
			others = append(others, o)
		}
	}
	slices.Sort(dirs)
	slices.Sort(others)
	var names []Name
	for n := range h.names {
		names = append(names, n)
	}
	slices.SortFunc(names, byName)
	fresh := Name{rapid.SampledFrom(dirs).Draw(t, "dir"), rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")}
	_, taken := h.names[fresh]
	kind := rapid.IntRange(0, 9).Draw(t, "op")
	if kind < 3 || len(names) == 0 {
		if !taken {
			h.make(rapid.SampledFrom([]kml.Op{kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod}).Draw(t, "make"), fresh)
		}
		return
	}
	n := rapid.SampledFrom(names).Draw(t, "old")
	oid := h.names[n]
	switch kind {
	case 3:
		if len(others) > 0 && !taken {
			h.link(rapid.SampledFrom(others).Draw(t, "link"), fresh)
		}
	case 4:
		if !h.isDir(oid) || h.empty(oid) {
			h.remove(n)
		}
	case 5:
		if !h.isDir(oid) {
			h.store(oid, uint64(len(h.recs)+1))
		}
	case 6:
		h.chmod(oid, rapid.Uint32Range(0, 0o777).Draw(t, "mode"))
	default:
		h.tryRename(n, fresh, kind == 9)
	}
}

func (h *history) tryRename(from, to Name, exchange bool) {
	oid, other := h.names[from], h.names[to]
	switch {
	case oid == other, exchange && other == 0:
	case h.isDir(oid) && h.under(to.Parent, oid):
	case exchange && h.isDir(other) && h.under(from.Parent, other):
	case other != 0 && !exchange && (h.isDir(oid) != h.isDir(other) || h.isDir(other) && !h.empty(other)):
	default:
		h.rename(from, to, exchange)
	}
}

// tester is what both *testing.T and *rapid.T are.
type tester interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

func openTestIndex(t tester, dir string, o IndexOptions) *Index {
	t.Helper()
	x, err := OpenIndex(filepath.Join(dir, "index.db"), o)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return x
}

func withRoot(t tester, x *Index, listed bool) {
	t.Helper()
	err := x.Update(func(b *Batch) error {
		return b.Put(&Object{OID: kml.RootOID, Attr: kml.Attr{Mode: unix.S_IFDIR | 0o755}, Parent: kml.RootOID, Listed: listed})
	})
	if err != nil {
		t.Fatalf("%v", err)
	}
}

func apply(t tester, x *Index, partial bool, recs ...*kml.Record) (changes []Change) {
	t.Helper()
	for _, r := range recs {
		err := x.Update(func(b *Batch) error {
			cs, err := applyRecord(b, r, partial)
			changes = append(changes, cs...)
			b.SetCursor(r.Pos)
			return err
		})
		if err != nil {
			t.Fatalf("record %d, %v: %v", r.Pos.Recno(), r.Op, err)
		}
	}
	return changes
}

// check compares an index with the model, exactly.
func (h *history) check(t tester, x *Index) {
	t.Helper()
	for oid, m := range h.objs {
		o, err := x.Get(oid)
		if err != nil {
			t.Fatalf("%v: %v", oid, err)
		}
		h.checkObject(t, o, m)
		if oid == kml.RootOID {
			continue
		}
		want := h.namesOf(oid)
		if got := x.Names(oid); !slices.Equal(got, want) {
			t.Errorf("%v has names %v, want %v", oid, got, want)
		}
		if !slices.Contains(want, Name{o.Parent, o.Name}) {
			t.Errorf("%v says it is %v, is %v", oid, Name{o.Parent, o.Name}, want)
		}
	}
	for oid := kml.MakeOID(1, 2); oid < kml.MakeOID(1, h.next); oid++ {
		if _, err := x.Get(oid); h.objs[oid] == nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("%v is gone, and the index says %v", oid, err)
		}
	}
	for oid := range h.objs {
		h.checkFolder(t, x, oid)
	}
}

func (h *history) checkObject(t tester, o *Object, m *modelObject) {
	t.Helper()
	got, want := o.Attr, m.attr
	if m.attr.Mode&unix.S_IFMT == unix.S_IFDIR {
		got.Nlink, want.Nlink = 0, 0
	}
	if got != want || o.Version != m.version || o.DataVersion != m.data {
		t.Errorf("%v: got %+v version %d data %d, want %+v %d %d", o.OID, got, o.Version.Recno(), o.DataVersion.Recno(), want, m.version.Recno(), m.data.Recno())
	}
}

func (h *history) checkFolder(t tester, x *Index, dir kml.OID) {
	t.Helper()
	es, err := x.Children(dir, "", 100)
	if err != nil {
		t.Fatalf("%v", err)
	}
	got := make(map[string]kml.OID)
	for _, e := range es {
		got[e.Name] = e.OID
		if oid, _, ok := x.Child(dir, e.Name); !ok || oid != e.OID {
			t.Errorf("%v/%s lists %v and holds %v", dir, e.Name, e.OID, oid)
		}
	}
	want := make(map[string]kml.OID)
	for n, oid := range h.names {
		if n.Parent == dir {
			want[n.Name] = oid
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("folder %v holds %v, want %v", dir, got, want)
	}
}

// checkPart compares what a partial index claims to know: every object it has,
// every folder it calls listed, every name it holds.
func (h *history) checkPart(t tester, x *Index) {
	t.Helper()
	for oid := kml.OID(1); oid < kml.MakeOID(1, h.next); oid++ {
		if oid == 2 {
			oid = kml.MakeOID(1, 2)
		}
		o, err := x.Get(oid)
		if err != nil {
			continue
		}
		m := h.objs[oid]
		if m == nil {
			t.Errorf("%v is gone and still known", oid)
			continue
		}
		h.checkObject(t, o, m)
		if o.Listed {
			h.checkFolder(t, x, oid)
		}
		for _, n := range x.Names(oid) {
			if oid != kml.RootOID && h.names[n] != oid {
				t.Errorf("%v is said to be %v, which holds %v", oid, n, h.names[n])
			}
		}
		es, _ := x.Children(oid, "", 100)
		for _, e := range es {
			if got := h.names[Name{oid, e.Name}]; got != e.OID {
				t.Errorf("%v/%s is known to hold %v, holds %v", oid, e.Name, e.OID, got)
			}
		}
	}
}

// rapidIndex is a fresh index with a root folder in it, for one draw of rapid.
func rapidIndex(t *rapid.T, dir string, listed bool) *Index {
	t.Helper()
	sub, err := os.MkdirTemp(dir, "")
	if err != nil {
		t.Fatalf("%v", err)
	}
	x := openTestIndex(t, sub, IndexOptions{FlushEvery: time.Hour})
	withRoot(t, x, listed)
	t.Cleanup(func() { x.Close() })
	return x
}

func TestApplyAgreesWithModel(t *testing.T) {
	dir := t.TempDir()
	testutil.Check(t, func(t *rapid.T) {
		h := newHistory()
		x := rapidIndex(t, dir, true)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			before := len(h.recs)
			h.step(t)
			apply(t, x, false, h.recs[before:]...)
			if len(h.recs) > before && h.recs[before].Flags&kml.FlagGone == 0 && rapid.Bool().Draw(t, "twice") {
				apply(t, x, false, h.recs[before])
			}
			if rapid.IntRange(0, 19).Draw(t, "flush") == 0 {
				if err := x.Flush(); err != nil {
					t.Fatalf("%v", err)
				}
			}
			h.check(t, x)
		}
	})
}

// A partial index starts knowing an arbitrary part of the tree as of some
// position, and then sees all records, from before or behind it, some of them
// again. Whatever it claims to know must be so.
func TestApplyPartialNeverClaimsWhatIsNotSo(t *testing.T) {
	dir := t.TempDir()
	testutil.Check(t, func(t *rapid.T) {
		h := newHistory()
		full, part := rapidIndex(t, dir, true), rapidIndex(t, dir, false)
		for range rapid.IntRange(0, 30).Draw(t, "before") {
			h.step(t)
		}
		apply(t, full, false, h.recs...)
		known := len(h.recs)
		h.list(t, full, part)
		if rapid.Bool().Draw(t, "flush") {
			if err := part.Flush(); err != nil {
				t.Fatalf("%v", err)
			}
		}
		h.checkPart(t, part)
		for range rapid.IntRange(0, 30).Draw(t, "after") {
			before := len(h.recs)
			h.step(t)
			apply(t, part, true, h.recs[before:]...)
			if rapid.Bool().Draw(t, "twice") {
				apply(t, part, true, h.recs[before:]...)
			}
			h.checkPart(t, part)
		}
		from := rapid.IntRange(0, known).Draw(t, "again from")
		apply(t, part, true, h.recs[from:]...)
		h.checkPart(t, part)
	})
}

// list lets part know some folders of full, as a cache does: the folder, its
// names, what they hold.
func (h *history) list(t *rapid.T, full, part *Index) {
	pos := full.Cursor()
	know := func(b *Batch, oid kml.OID, listed bool) error {
		o, err := full.Get(oid)
		if err != nil {
			return err
		}
		n := *o
		if old, err := b.Get(oid); err == nil {
			listed = listed || old.Listed
		}
		n.Listed, n.Known = listed, max(pos, o.Known)
		return b.Put(&n)
	}
	dirs := []kml.OID{kml.RootOID}
	if err := part.Update(func(b *Batch) error { return know(b, kml.RootOID, false) }); err != nil {
		t.Fatalf("%v", err)
	}
	for len(dirs) > 0 {
		dir := dirs[0]
		dirs = dirs[1:]
		if !rapid.Bool().Draw(t, "list") {
			continue
		}
		err := part.Update(func(b *Batch) error {
			if err := know(b, dir, true); err != nil {
				return err
			}
			es, err := full.Children(dir, "", 100)
			for _, e := range es {
				if err := know(b, e.OID, false); err != nil {
					return err
				}
				b.SetName(Name{dir, e.Name}, e.OID, pos)
				if h.isDir(e.OID) {
					dirs = append(dirs, e.OID)
				} else if h.objs[e.OID].attr.Nlink > 1 {
					b.SetLink(e.OID, Name{dir, e.Name}, true)
				}
			}
			return err
		})
		if err != nil {
			t.Fatalf("%v", err)
		}
	}
}
