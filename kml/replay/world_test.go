package replay

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/node"
	"github.com/mezzofs/mezzo/kml"
)

// world is a folder that changes, and a log that tells of it.
type world struct {
	t     testing.TB
	rng   *rand.Rand
	dir   string
	log   *kml.Log
	kml   string
	names Names
	kinds map[kml.OID]uint32
	next  uint64
}

func newWorld(t testing.TB, rng *rand.Rand) *world {
	w := &world{t: t, rng: rng, dir: filepath.Join(t.TempDir(), "world"), kml: filepath.Join(t.TempDir(), "kml"),
		kinds: map[kml.OID]uint32{kml.RootOID: unix.S_IFDIR}, next: 2}
	w.must(os.Mkdir(w.dir, 0o755))
	l, err := kml.Open(w.kml, kml.Options{Fileset: [16]byte{7}, SegmentSize: 8 << 10})
	w.must(err)
	t.Cleanup(func() { l.Close() })
	w.log = l
	_, err = l.StartEpoch("init", [16]byte{1})
	w.must(err)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) path(o kml.OID) string { return filepath.Join(w.dir, w.names.Paths(o)[0]) }

func (w *world) stat(o kml.OID) (st unix.Stat_t) {
	w.must(unix.Lstat(w.path(o), &st))
	return st
}

// log appends r, with the mtimes of its folders as they are now.
func (w *world) record(r kml.Record) {
	w.names.Apply(&r)
	if r.Parent != 0 {
		st := w.stat(r.Parent)
		r.ParentMtime = st.Mtim.Nano()
	}
	if r.NewParent != 0 {
		st := w.stat(r.NewParent)
		r.NewParentMtime = st.Mtim.Nano()
	}
	w.must(w.log.Append(&r))
}

// pick is an object of a kind (0: any but the root), or 0.
func (w *world) pick(kind uint32) kml.OID {
	var all []kml.OID
	for o := kml.OID(1); uint64(o) < w.next; o++ {
		if k, ok := w.kinds[o]; ok && (k == kind || kind == 0 && o != kml.RootOID) {
			all = append(all, o)
		}
	}
	if len(all) == 0 {
		return 0
	}
	return all[w.rng.IntN(len(all))]
}

func (w *world) name() string {
	s := fmt.Sprintf("n%d", w.rng.IntN(12))
	switch w.rng.IntN(20) {
	case 0:
		return s + strings.Repeat("long", 60)
	case 1:
		return s + "\xff\n"
	}
	return s
}

func (w *world) free(parent kml.OID, name string) bool {
	_, err := os.Lstat(filepath.Join(w.path(parent), name))
	return err != nil
}

func attrOf(st *unix.Stat_t) kml.Attr {
	return kml.Attr{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Size: uint64(st.Size), Mtime: st.Mtim.Nano(), Rdev: st.Rdev}
}

func (w *world) make() {
	parent, name := w.pick(unix.S_IFDIR), w.name()
	if !w.free(parent, name) {
		return
	}
	p := filepath.Join(w.path(parent), name)
	r := kml.Record{OID: kml.OID(w.next), Parent: parent, Name: name}
	w.next++
	switch w.rng.IntN(5) {
	case 0:
		r.Op = kml.OpMkdir
		w.must(os.Mkdir(p, 0o750))
	case 1:
		r.Op, r.Target = kml.OpSymlink, w.name()
		w.must(os.Symlink(r.Target, p))
	case 2:
		r.Op = kml.OpMknod
		w.must(unix.Mkfifo(p, 0o640))
	default:
		r.Op = kml.OpCreate
		w.must(os.WriteFile(p, nil, 0o644))
	}
	var st unix.Stat_t
	w.must(unix.Lstat(p, &st))
	w.kinds[r.OID] = st.Mode & unix.S_IFMT
	r.Attr = attrOf(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		r.Attr.Size = 0
	}
	w.record(r)
	if r.Op == kml.OpCreate {
		w.store(r.OID)
	}
}

func (w *world) store(o kml.OID) {
	if o == 0 {
		return
	}
	w.must(os.WriteFile(w.path(o), []byte(strings.Repeat(fmt.Sprint(w.rng.Uint32()), w.rng.IntN(50))), 0))
	st := w.stat(o)
	w.record(kml.Record{Op: kml.OpStore, OID: o, Attr: kml.Attr{Size: uint64(st.Size), Mtime: st.Mtim.Nano()}})
}

func (w *world) attr(o kml.OID) {
	if o == 0 {
		return
	}
	p := w.path(o)
	switch k := w.kinds[o]; {
	case w.rng.IntN(2) == 0 && (k == unix.S_IFREG || k == unix.S_IFDIR):
		v := []byte(w.name())
		w.must(unix.Setxattr(p, "user.k", v, 0))
		w.record(kml.Record{Op: kml.OpSetxattr, OID: o, Name: "user.k", Value: v})
		if w.rng.IntN(3) == 0 {
			w.must(unix.Removexattr(p, "user.k"))
			w.record(kml.Record{Op: kml.OpRemovexattr, OID: o, Name: "user.k"})
		}
	case k != unix.S_IFLNK:
		a := kml.Attr{Mode: k | 0o600 | w.rng.Uint32()&0o4177, Mtime: int64(w.rng.Uint32())*1e9 + 5}
		w.must(unix.Chmod(p, a.Mode&0o7777))
		w.must(node.SetTimes(node.At{FD: unix.AT_FDCWD, Name: p}, kml.Attr{Mtime: a.Mtime}, kml.MaskMtime))
		w.record(kml.Record{Op: kml.OpSetattr, OID: o, Mask: kml.MaskMode | kml.MaskMtime, Attr: a})
	}
}

func (w *world) link(o kml.OID) {
	parent, name := w.pick(unix.S_IFDIR), w.name()
	if o == 0 || !w.free(parent, name) {
		return
	}
	w.must(os.Link(w.path(o), filepath.Join(w.path(parent), name)))
	w.record(kml.Record{Op: kml.OpLink, OID: o, Parent: parent, Name: name})
}

// drop forgets an object without names.
func (w *world) drop(o kml.OID) {
	if len(w.names.Of(o)) == 0 {
		delete(w.kinds, o)
	}
}

func (w *world) remove(o kml.OID) {
	if o == 0 {
		return
	}
	at, op := w.names.Of(o)[0], kml.OpUnlink
	if w.kinds[o] == unix.S_IFDIR {
		op = kml.OpRmdir
	}
	if os.Remove(w.path(o)) != nil {
		return // a folder that is not empty
	}
	w.record(kml.Record{Op: op, OID: o, Parent: at.Parent, Name: at.Name, Victim: &kml.Victim{OID: o}})
	w.drop(o)
}

func (w *world) rename(o kml.OID) {
	if o == 0 {
		return
	}
	from := w.names.Of(o)[0]
	r := kml.Record{Op: kml.OpRename, OID: o, Parent: from.Parent, Name: from.Name, NewParent: w.pick(unix.S_IFDIR), NewName: w.name()}
	flags := uint(unix.RENAME_NOREPLACE)
	if v := w.pick(0); w.rng.IntN(2) == 0 && v != o {
		to := w.names.Of(v)[0]
		r.NewParent, r.NewName, r.Victim = to.Parent, to.Name, &kml.Victim{OID: v}
		if flags = 0; w.rng.IntN(2) == 0 {
			flags, r.Flags = unix.RENAME_EXCHANGE, kml.FlagExchange
		}
	}
	if unix.Renameat2(unix.AT_FDCWD, w.path(o), unix.AT_FDCWD, filepath.Join(w.path(r.NewParent), r.NewName), flags) != nil {
		return // into itself, over a full folder, and so on
	}
	w.record(r)
	if r.Victim != nil {
		w.drop(r.Victim.OID)
	}
}

// live does n things.
func (w *world) live(n int) {
	for range n {
		switch w.rng.IntN(12) {
		case 0, 1, 2, 3:
			w.make()
		case 4, 5:
			w.store(w.pick(unix.S_IFREG))
		case 6:
			w.attr(w.pick(0))
		case 7:
			w.link(w.pick(unix.S_IFREG))
		case 8:
			w.remove(w.pick(0))
		default:
			w.rename(w.pick(0))
		}
	}
}

// picture is what two folders are to agree on.
func picture(t testing.TB, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil || rel == StateDir {
			return filepath.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		s := fmt.Sprintf("%o %d:%d %d", st.Mode, st.Uid, st.Gid, st.Mtim.Nano())
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if first[st.Ino] == "" {
				first[st.Ino] = rel
			}
			s += fmt.Sprintf(" %d %s %q", st.Nlink, first[st.Ino], b)
		case unix.S_IFLNK:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			s += to
		}
		v := make([]byte, 256)
		if n, err := unix.Lgetxattr(p, "user.k", v); err == nil {
			s += fmt.Sprintf(" %q", v[:n])
		}
		all[rel] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func digestOf(s string) []byte {
	h := blake3.Sum256([]byte(s))
	return h[:]
}
