package p9srv

import (
	"strings"
	"sync"

	"github.com/hugelgupf/p9/p9"
)

// A place is what the engine keeps of a File that is not Concurrent: where it
// stands in its tree. Every place holds its parent's, so that Renamed can be
// told the new folder, and shares a node with all places of the same name.
//
// The guarantees of p9.File come from two locks: names of the tree (held for
// reading by every operation but a rename) and the node's (held for writing by
// what changes the folder, for reading by everything else). Order: tree.names,
// node.mu of a folder, node.mu of its child, tree.mu.
type place struct {
	file   p9.File
	tree   *tree
	node   *node
	parent *place // holds a reference; nil at the root of an attach
	refs   int    // guarded by tree.mu
	blocks bool   // a FIFO, socket or device: I/O on it takes no locks, it may wait for ever
}

// node is a name in a tree while some place stands there.
type node struct {
	mu sync.RWMutex

	// Guarded by tree.mu; parent, name and gone are only changed under
	// tree.names or the folder's mu held for writing, too.
	parent *node
	name   string
	kids   map[string]*node
	places map[*place]struct{}
	gone   bool
}

// tree is everything reached from Attach, or from one aname of AttachAs.
type tree struct {
	names sync.RWMutex
	mu    sync.Mutex
	root  *node
	all   *places
	name  string // in all
}

// places has a tree for each name that is attached. Its mu comes before tree.mu.
type places struct {
	mu    sync.Mutex
	trees map[string]*tree
}

// attach makes the root place of an attached File.
func (p *places) attach(name string, f p9.File) *place {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.trees == nil {
		p.trees = map[string]*tree{}
	}
	t := p.trees[name]
	if t == nil {
		t = &tree{root: &node{}, all: p, name: name}
		p.trees[name] = t
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.add(t.root, nil, f)
}

// forget drops a tree without places.
func (p *places) forget(t *tree) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.root.places) == 0 && p.trees[t.name] == t {
		delete(p.trees, t.name)
	}
}

// add makes a place in n. t.mu is held.
func (t *tree) add(n *node, parent *place, f p9.File) *place {
	pl := &place{file: f, tree: t, node: n, parent: parent, refs: 1}
	if parent != nil {
		parent.refs++
	}
	if n.places == nil {
		n.places = map[*place]struct{}{}
	}
	n.places[pl] = struct{}{}
	return pl
}

// child makes a place for a File that was walked to or created under pl.
func (pl *place) child(name string, f p9.File) *place {
	t := pl.tree
	t.mu.Lock()
	defer t.mu.Unlock()
	n := pl.node.kids[name]
	if n == nil {
		n = &node{parent: pl.node, name: name}
		if pl.node.kids == nil {
			pl.node.kids = map[string]*node{}
		}
		pl.node.kids[name] = n
	}
	return t.add(n, pl, f)
}

// clone makes a further place where pl stands.
func (pl *place) clone(f p9.File) *place {
	pl.tree.mu.Lock()
	defer pl.tree.mu.Unlock()
	c := pl.tree.add(pl.node, pl.parent, f)
	c.blocks = pl.blocks
	return c
}

// release gives up a reference and closes Files nobody refers to any more:
// pl's with closeFile, its parents' with Close.
func (pl *place) release(closeFile func(p9.File) error) error {
	var err error
	for pl != nil {
		t := pl.tree
		t.mu.Lock()
		pl.refs--
		if pl.refs > 0 {
			t.mu.Unlock()
			return err
		}
		delete(pl.node.places, pl)
		pl.node.drop()
		empty := len(t.root.places) == 0
		t.mu.Unlock()
		if empty {
			t.all.forget(t)
		}
		if closeFile != nil {
			err = closeFile(pl.file)
			closeFile = nil
		} else {
			// Its fid was clunked before, and answered.
			_ = pl.file.Close()
		}
		pl = pl.parent
	}
	return err
}

// drop takes nodes that hold nothing out of the tree. tree.mu is held.
func (n *node) drop() {
	for n != nil && n.parent != nil && len(n.places) == 0 && len(n.kids) == 0 {
		if n.parent.kids[n.name] == n {
			delete(n.parent.kids, n.name)
		}
		n = n.parent
	}
}

func (pl *place) rlock() {
	pl.tree.names.RLock()
	pl.node.mu.RLock()
}

func (pl *place) runlock() {
	pl.node.mu.RUnlock()
	pl.tree.names.RUnlock()
}

func (pl *place) lock() {
	pl.tree.names.RLock()
	pl.node.mu.Lock()
}

func (pl *place) unlock() {
	pl.node.mu.Unlock()
	pl.tree.names.RUnlock()
}

// gone says that the name pl stands for was removed, or one above it.
func (pl *place) gone() bool {
	pl.tree.mu.Lock()
	defer pl.tree.mu.Unlock()
	return pl.node.gone
}

// lockChild locks the node of a name in pl for writing, if there is one, and
// returns how to unlock it. pl is locked for writing.
func (pl *place) lockChild(name string) func() {
	pl.tree.mu.Lock()
	n := pl.node.kids[name]
	pl.tree.mu.Unlock()
	if n == nil {
		return func() {}
	}
	n.mu.Lock()
	return n.mu.Unlock
}

// removed notes that a name in pl is gone. pl and the child are locked.
func (pl *place) removed(name string) {
	pl.tree.mu.Lock()
	defer pl.tree.mu.Unlock()
	pl.node.cut(name)
}

// cut takes the node of a name out and marks all below it. tree.mu is held.
func (n *node) cut(name string) {
	k := n.kids[name]
	if k == nil {
		return
	}
	delete(n.kids, name)
	k.markGone()
}

func (n *node) markGone() {
	n.gone = true
	for _, k := range n.kids {
		k.markGone()
	}
}

// into says that a name in pl stands for to or a folder above it: it cannot be
// moved there. tree.names is held.
func (pl *place) into(name string, to *place) bool {
	pl.tree.mu.Lock()
	defer pl.tree.mu.Unlock()
	k := pl.node.kids[name]
	for n := to.node; n != nil && k != nil; n = n.parent {
		if n == k {
			return true
		}
	}
	return false
}

// renamed moves the node of a name and tells the Files in it and below.
// tree.names is held for writing.
func (pl *place) renamed(oldName string, to *place, newName string) {
	t := pl.tree
	t.mu.Lock()
	if pl.node == to.node && oldName == newName {
		t.mu.Unlock()
		return
	}
	to.node.cut(newName)
	k := pl.node.kids[oldName]
	var moved, old []*place
	if k != nil {
		delete(pl.node.kids, oldName)
		if to.node.kids == nil {
			to.node.kids = map[string]*node{}
		}
		to.node.kids[newName] = k
		k.parent, k.name = to.node, newName
		for p := range k.places {
			old = append(old, p.parent)
			p.parent = to
			to.refs++
		}
		moved = k.below(nil)
	}
	t.mu.Unlock()
	for _, p := range moved {
		p.file.Renamed(p.parent.file, p.node.name)
	}
	for _, p := range old {
		_ = p.release(nil)
	}
}

// below is every place in n and under it, folders first. tree.mu is held.
func (n *node) below(all []*place) []*place {
	for p := range n.places {
		all = append(all, p)
	}
	for _, k := range n.kids {
		all = k.below(all)
	}
	return all
}

// attachNames splits the aname of a tree that does not take it itself.
func attachNames(aname string) []string {
	aname = strings.Trim(aname, "/")
	if aname == "" {
		return nil
	}
	return strings.Split(aname, "/")
}
