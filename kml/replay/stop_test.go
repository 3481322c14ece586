package replay

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
)

// TestReplayStopsAndGoesOn stops a replay at every point it passes, one replay
// after the other, and lets the next one finish.
func TestReplayStopsAndGoesOn(t *testing.T) {
	w := newWorld(t, testutil.Rand(t))
	w.live(40)
	tmp := t.TempDir()
	for n := 1; ; n++ {
		dir := filepath.Join(tmp, "copy")
		w.must(os.RemoveAll(dir))
		if !w.stopOnce(n, dir, map[string]int{}) {
			return
		}
		w.replay(dir, Options{Contents: w.dir})
		w.same(dir)
	}
}

// TestReplayStopsWhileLifeGoesOn stops one replay after the other somewhere,
// while the log grows, and looks at the end and now and then.
func TestReplayStopsWhileLifeGoesOn(t *testing.T) {
	rng := testutil.Rand(t)
	w := newWorld(t, rng)
	dir := filepath.Join(t.TempDir(), "copy")
	w.live(30)
	stops := 0
	for range 100 {
		w.live(rng.IntN(8))
		if w.stopOnce(1+rng.IntN(60), dir, map[string]int{}) {
			stops++
		} else {
			w.same(dir)
		}
		if t.Failed() {
			return
		}
	}
	w.replay(dir, Options{Contents: w.dir})
	w.same(dir)
	if stops < 10 {
		t.Errorf("only %d stops", stops)
	}
}

// TestReplayStopsWhilePlacing ends with records that look different once files
// have their contents.
func TestReplayStopsWhilePlacing(t *testing.T) {
	file := func(w *world, name, text string) kml.OID {
		o := kml.OID(w.next)
		w.next++
		w.kinds[o] = unix.S_IFREG
		w.must(os.WriteFile(filepath.Join(w.dir, name), nil, 0o644))
		r := kml.Record{Op: kml.OpCreate, OID: o, Parent: kml.RootOID, Name: name, Attr: kml.Attr{Mode: unix.S_IFREG | 0o644}}
		w.record(r)
		w.must(os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0))
		st := w.stat(o)
		w.record(kml.Record{Op: kml.OpStore, OID: o, Attr: kml.Attr{Size: uint64(st.Size), Mtime: st.Mtim.Nano()}})
		return o
	}
	rename := func(w *world, o kml.OID, from, to string, flags kml.Flags, victim *kml.Victim) {
		how := uint(0)
		if flags&kml.FlagExchange != 0 {
			how = unix.RENAME_EXCHANGE
		}
		w.must(unix.Renameat2(unix.AT_FDCWD, filepath.Join(w.dir, from), unix.AT_FDCWD, filepath.Join(w.dir, to), how))
		w.record(kml.Record{Op: kml.OpRename, OID: o, Parent: kml.RootOID, Name: from, NewParent: kml.RootOID, NewName: to, Flags: flags, Victim: victim})
	}
	link := func(w *world, o kml.OID, from, to string) {
		w.must(os.Link(filepath.Join(w.dir, from), filepath.Join(w.dir, to)))
		w.record(kml.Record{Op: kml.OpLink, OID: o, Parent: kml.RootOID, Name: to})
	}
	points := map[string]int{}
	for _, c := range []struct {
		name  string
		live  func(*world)
		later func(*world) // happens while the replay is stopped
	}{
		{name: "create", live: func(w *world) {
			w.must(os.WriteFile(filepath.Join(w.dir, "a"), nil, 0o644))
			var st unix.Stat_t
			w.must(unix.Lstat(filepath.Join(w.dir, "a"), &st))
			w.must(os.Chtimes(filepath.Join(w.dir, "a"), time.Time{}, time.Unix(5, 0)))
			w.record(kml.Record{Op: kml.OpCreate, OID: 9, Parent: kml.RootOID, Name: "a", Attr: attrOf(&st)})
			w.record(kml.Record{Op: kml.OpStore, OID: 9, Attr: kml.Attr{Mtime: 5e9}})
		}},
		{name: "rename", live: func(w *world) {
			rename(w, file(w, "a", "text"), "a", "b", 0, nil)
		}},
		{name: "rename over", live: func(w *world) {
			v := file(w, "b", "victim")
			rename(w, file(w, "a", "text"), "a", "b", 0, &kml.Victim{OID: v})
		}},
		{name: "exchange", live: func(w *world) {
			v := file(w, "b", "victim")
			rename(w, file(w, "a", "text"), "a", "b", kml.FlagExchange, &kml.Victim{OID: v})
		}},
		{name: "link", live: func(w *world) {
			link(w, file(w, "a", "text"), "a", "b")
		}},
		{name: "empty link", live: func(w *world) {
			link(w, file(w, "a", ""), "a", "b")
		}},
		{name: "unlink", live: func(w *world) {
			o := file(w, "a", "text")
			link(w, o, "a", "b")
			w.remove(o)
		}},
		{name: "log grows", live: func(w *world) {
			o := file(w, "a", "text")
			link(w, o, "a", "b")
			link(w, o, "a", "c")
		}, later: func(w *world) {
			o := kml.OID(w.next - 1)
			w.must(os.Chmod(w.path(o), 0o600))
			w.record(kml.Record{Op: kml.OpSetattr, OID: o, Mask: kml.MaskMode, Attr: kml.Attr{Mode: unix.S_IFREG | 0o600}})
			w.remove(o)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for n := 1; ; n++ {
				w := newWorld(t, nil)
				c.live(w)
				dir := filepath.Join(t.TempDir(), "copy")
				if !w.stopOnce(n, dir, points) {
					break
				}
				if c.later != nil {
					c.later(w)
				}
				w.replay(dir, Options{Contents: w.dir})
				w.same(dir)
			}
		})
	}
	for _, p := range []string{"replay.record.begun", "replay.record.called", "replay.missing.listed", "replay.settle.begun",
		"replay.place.replaced", "replay.place.linked", "replay.settle.synced", "replay.settle.saved"} {
		if points[p] == 0 {
			t.Errorf("never stopped at %s", p)
		}
	}
}

// stopOnce replays into dir and stops at the n-th point; false: it has not as
// many.
func (w *world) stopOnce(n int, dir string, points map[string]int) bool {
	return stopAt(n, points, func() {
		if _, err := w.run(w.t.Context(), dir, Options{Contents: w.dir}); err != nil {
			w.t.Error(err)
		}
	})
}

// stopAt runs f and ends it at the n-th point it passes; false: it has not as
// many.
func stopAt(n int, points map[string]int, f func()) (stopped bool) {
	left := n
	remove := fault.Hook(func(name string) {
		if left--; left == 0 {
			points[name]++
			stopped = true
			runtime.Goexit()
		}
	})
	defer remove()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
	return stopped
}
