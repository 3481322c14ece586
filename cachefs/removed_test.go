package cachefs

import (
	"sync"
	"testing"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// TestRemovedHereMovedThere removes a file on a client that the master moves, over
// another one, and writes to meanwhile: it stays, where the master has it.
func TestRemovedHereMovedThere(t *testing.T) {
	m := newMaster(t)
	p := newProxy(t, m.sock)
	c := m.client(p.addr)
	ctx := ctxOf(t)
	d, err := c.Mkdir(ctx, nil, kml.RootOID, "d", 0o755)
	must(t, err)
	must(t, writeFile(ctx, c, "f", "file"))
	must(t, writeFile(ctx, c, "g", "victim"))
	must(t, c.Rename(ctx, nil, kml.RootOID, "g", d.OID, "g", 0))
	must(t, c.Sync(ctx))
	if ns, err := names(ctx, c, d.OID); len(ns) != 1 || err != nil {
		t.Fatal(ns, err)
	}
	// What a kernel believes who asks again whenever he is told of a change.
	var mu sync.Mutex
	g, err := c.Lookup(ctx, nil, d.OID, "g")
	must(t, err)
	believed := g.OID
	defer c.Watch(func(ch tree.Change) {
		if mu.Lock(); ch.Kind&tree.ChangeEntry != 0 && ch.Parent == d.OID && ch.Name == "g" {
			believed = 0
			if a, err := c.Lookup(ctx, nil, d.OID, "g"); err == nil {
				believed = a.OID
			}
		}
		mu.Unlock()
	})()
	p.cut(true)
	must(t, c.WaitState(ctx, func(s State) bool { return s == Disconnected }))
	must(t, c.Unlink(ctx, nil, kml.RootOID, "f"))
	_, err = c.Symlink(ctx, nil, kml.RootOID, "f", "target")
	must(t, err)
	must(t, writeFile(ctx, m.tree, "f", "changed"))
	must(t, m.tree.Rename(ctx, nil, kml.RootOID, "f", d.OID, "g", 0))
	p.open()
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, c.Sync(ctx))
	equal(t, m.tree, c)
	g, err = c.Lookup(ctx, nil, d.OID, "g")
	must(t, err)
	mu.Lock()
	defer mu.Unlock()
	if believed != g.OID {
		t.Errorf("d/g is %v, and the last that was told is %v", g.OID, believed)
	}
}
