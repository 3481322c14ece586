package cachefs

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// TestAtticIsEmptied: what a client keeps of files that the master removed, while
// changes of its own may be in conflict with that, goes when they are settled.
func TestAtticIsEmptied(t *testing.T) {
	m := newMaster(t)
	p := newProxy(t, m.sock)
	c := m.client(p.addr)
	ctx := ctxOf(t)
	for _, n := range []string{"f", "g"} {
		must(t, writeFile(ctx, c, n, "old "+n))
	}
	must(t, c.Sync(ctx))
	attic := filepath.Dir(c.cache.GravePath(0))
	kept := func() int {
		es, err := os.ReadDir(attic)
		must(t, err)
		return len(es)
	}
	var used atomic.Bool
	defer c.Watch(func(tree.Change) {
		if kept() > 0 {
			used.Store(true)
		}
	})()
	p.cut(true)
	must(t, c.WaitState(ctx, func(s State) bool { return s == Disconnected }))
	must(t, writeFile(ctx, c, "f", "changed here"))
	must(t, m.tree.Unlink(ctx, nil, kml.RootOID, "f"))
	must(t, m.tree.Unlink(ctx, nil, kml.RootOID, "g"))
	p.open()
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, c.Sync(ctx))
	equal(t, m.tree, c)
	must(t, m.tree.Commit(ctx))
	until(t, "nothing to be kept", func() bool { return kept() == 0 })
	if !used.Load() {
		t.Error("nothing was ever kept: the test shows nothing")
	}
}
