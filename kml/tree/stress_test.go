package tree

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
)

// TestManyAtOnce lets several users change the same few names through the tree
// and a client's records come in between, then compares directory, index and
// log. Watchers must have heard of every name that there is.
func TestManyAtOnce(t *testing.T) {
	testutil.CheckLeaks(t)
	rnd := testutil.Rand(t)
	dir := t.TempDir()
	ok(t, Init(dir, Options{NoWatch: true}))
	tr, err := Open(dir, Options{NoWatch: true, StoreIdle: 2 * time.Millisecond, SyncEvery: 20 * time.Millisecond})
	ok(t, err)
	var mu sync.Mutex
	heard := map[Name]kml.OID{}
	cancel := tr.Watch(func(c Change) {
		mu.Lock()
		defer mu.Unlock()
		if c.Kind&ChangeEntry == 0 {
			return
		}
		if c.Gone {
			delete(heard, Name{c.Parent, c.Name})
		} else {
			heard[Name{c.Parent, c.Name}] = c.OID
		}
	})
	var wg sync.WaitGroup
	dirs := []kml.OID{kml.RootOID}
	for _, n := range []string{"n0", "n1", "x"} {
		dirs = append(dirs, must[Attr](t)(tr.Mkdir(ctx, nil, kml.RootOID, n, 0o755)).OID)
	}
	for range 6 {
		w := &worker{tr: tr, rnd: rand.New(rand.NewPCG(rnd.Uint64(), 2)), dirs: append([]kml.OID(nil), dirs...), quiet: true}
		w.site = must[Site](t)(tr.Enrol("h", 0, []byte("k")))
		wg.Go(func() {
			for i := range 300 {
				if err := w.step(i); err != nil {
					t.Errorf("step %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	cancel()
	checkAgrees(t, tr)
	checkReplay(t, tr)
	names := map[Name]kml.OID{}
	collectNames(t, tr, kml.RootOID, names)
	mu.Lock()
	defer mu.Unlock()
	for n, oid := range names {
		if heard[n] != oid {
			t.Errorf("watchers heard of %v in %v %q, the index has %v", heard[n], n.Parent, n.Name, oid)
		}
	}
	if len(heard) != len(names) {
		t.Errorf("watchers know %d names, the index %d", len(heard), len(names))
	}
	ok(t, tr.Close())
}

func collectNames(t *testing.T, tr *Tree, oid kml.OID, into map[Name]kml.OID) {
	es, err := tr.index.Children(oid, "", 100000)
	ok(t, err)
	for _, e := range es {
		into[Name{oid, e.Name}] = e.OID
		collectNames(t, tr, e.OID, into)
	}
}
