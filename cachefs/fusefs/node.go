package fusefs

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// node is what a node id of the kernel stands for.
type node struct {
	id  uint64
	oid kml.OID
	gen uint64 // tells nodes of one inode number apart
	// ext is an entry of the extension, as last looked up; nil for an object.
	ext atomic.Pointer[extNode]

	// changes counts changes of attributes, whoever made them.
	changes atomic.Uint64
	// clean: the object was seen without setuid, setgid and capabilities, and
	// nothing has changed since.
	clean atomic.Bool
	// used: a file was opened through this node.
	used atomic.Bool
	// locked: a POSIX lock was asked for through this node, so closes matter.
	locked atomic.Bool
	// stale counts changes of contents whose invalidation is on its way.
	stale atomic.Int32
	// reading is len(readers), to be looked at without the lock.
	reading atomic.Int32
	// dir is what makes of a folder depend on; nil when not known.
	dir atomic.Pointer[dirInfo]
	// target is a symbolic link's, when it was read with the lookup.
	target atomic.Pointer[string]

	// The rest is guarded by the mu of its shard.

	// content is the tree.Attr.Content that the kernel's size and pages are of; 0
	// while it has none. All who read through n read these contents, unless
	// somebody writes through n.
	content uint64

	lookups uint64 // references the kernel holds
	direct  bool   // retired, and read past the kernel's pages
	retired bool   // keeps an older version for its readers; see the package comment
	readers map[*file]struct{}
	writers int
	names   []nameRef // the last names the kernel got it under; see maxNames
	more    bool      // there were more names
}

// dirInfo is what new objects take from their folder.
type dirInfo struct {
	gid    uint32
	setgid bool
	acl    bool // it has a default ACL, which takes the umask's place
}

// nameRef is a name in a folder, by node id.
type nameRef struct {
	parent uint64
	name   string
}

// maxNames is how many names of a node are remembered.
const maxNames = 8

// firstOwn is the first node id that is no oid. Site 0, whose ids these are,
// mints no objects but the root.
const firstOwn = uint64(1) << 42

// nodes is the table of what the kernel knows, safe for use by many.
type nodes struct {
	shards [64]struct {
		mu sync.Mutex
		m  map[uint64]*node
	}
	next    atomic.Uint64 // node ids that are no oids
	aliases atomic.Int64  // len(alias)
	mu      sync.Mutex
	alias   map[kml.OID]*node // the node in use of objects whose first one is retired
}

func newNodes() *nodes {
	t := &nodes{alias: map[kml.OID]*node{}}
	for i := range t.shards {
		t.shards[i].m = map[uint64]*node{}
	}
	t.next.Store(firstOwn)
	root := uint64(kml.RootOID)
	t.shards[t.slot(root)].m[root] = &node{id: root, oid: kml.RootOID, lookups: 1}
	return t
}

func (t *nodes) slot(id uint64) uint64 { return (id * 0x9e3779b97f4a7c15) >> 58 }

// lock locks the shard of an id and returns its map and the unlock.
func (t *nodes) lock(id uint64) (map[uint64]*node, *sync.Mutex) {
	s := &t.shards[t.slot(id)]
	s.mu.Lock()
	return s.m, &s.mu
}

// get is the node of an id, or nil.
func (t *nodes) get(id uint64) *node {
	m, mu := t.lock(id)
	defer mu.Unlock()
	return m[id]
}

// current is the node new lookups of an object get, or nil when the kernel
// has none.
func (t *nodes) current(oid kml.OID) *node {
	if t.aliases.Load() > 0 {
		t.mu.Lock()
		n := t.alias[oid]
		t.mu.Unlock()
		if n != nil {
			return n
		}
	}
	n := t.get(uint64(oid))
	if n != nil && t.isRetired(n) {
		return nil
	}
	return n
}

func (t *nodes) isRetired(n *node) bool {
	_, mu := t.lock(n.id)
	defer mu.Unlock()
	return n.retired
}

// wanted is what the kernel is about to be told of an object.
type wanted struct {
	content uint64 // tree.Attr.Content of the attributes, or of file's handle
	parent  uint64 // the name it is under, when it is a new reference
	name    string
	file    *file // an open that is to be entered with it
}

// told is what came of it.
type told struct {
	known   bool      // the kernel had a reference before
	moved   bool      // pages that the kernel has are of other contents: n.stale counts one more
	left    *node     // it was retired: names are to be revoked
	names   []nameRef // of left
	more    bool      // left had more names
	refused bool      // the node is retired and takes no part in newer contents
}

// tell makes n of the contents of w, and enters w's file; n's shard is locked. A
// node of other contents is retired instead: the kernel takes the size from a
// reply only when nothing was revoked meanwhile, but that of a new node always.
func (n *node) tell(w *wanted, t *told) (ok bool) {
	switch {
	case n.retired:
		t.refused = true
		return false
	case w.content == 0 || n.content == w.content:
	case n.content != 0 && n.writers == 0:
		n.retire(t)
		return false
	default:
		if n.content != 0 {
			t.moved = true
			n.stale.Add(1)
		}
		n.content = w.content
	}
	if w.file != nil {
		n.enter(w.file)
	}
	return true
}

// enter notes an open regular file; n's shard is locked.
func (n *node) enter(f *file) {
	if f.writes {
		n.writers++
		return
	}
	n.reading.Add(1)
	if n.readers == nil {
		n.readers = map[*file]struct{}{}
	}
	n.readers[f] = struct{}{}
}

// tell makes a node the kernel has of the contents of w.
func (t *nodes) tell(n *node, w wanted) (out told) {
	_, mu := t.lock(n.id)
	defer mu.Unlock()
	n.tell(&w, &out)
	return out
}

// ref counts a reference the kernel is about to get to an object.
func (t *nodes) ref(oid kml.OID, w wanted) (n *node, out told) {
	for {
		id := uint64(oid)
		if t.aliases.Load() > 0 {
			t.mu.Lock()
			if a := t.alias[oid]; a != nil {
				id = a.id
			}
			t.mu.Unlock()
		}
		m, mu := t.lock(id)
		n = m[id]
		if n == nil && id == uint64(oid) {
			n = &node{id: id, oid: oid}
			m[id] = n
		}
		if n != nil && n.tell(&w, &out) {
			out.known, out.refused = n.lookups > 0, false
			n.lookups++
			n.named(w.parent, w.name)
			mu.Unlock()
			return n, out
		}
		mu.Unlock()
		t.renew(oid, id)
	}
}

// renew makes a node for an object whose node id is retired.
func (t *nodes) renew(oid kml.OID, retired uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a := t.alias[oid]; a != nil && a.id != retired {
		return
	}
	id := t.next.Add(1)
	n := &node{id: id, oid: oid, gen: id - firstOwn}
	m, mu := t.lock(id)
	m[id] = n
	mu.Unlock()
	if t.alias[oid] == nil {
		t.aliases.Add(1)
	}
	t.alias[oid] = n
}

// refExt is ref for an entry of the extension: one node for each of its IDs.
func (t *nodes) refExt(x *extNode) *node {
	for id := x.id(); ; id++ {
		if n := t.tryExt(id, x); n != nil {
			return n
		}
	}
}

// tryExt is refExt when the node id is free or the entry's already.
func (t *nodes) tryExt(id uint64, x *extNode) *node {
	m, mu := t.lock(id)
	defer mu.Unlock()
	n := m[id]
	if n == nil {
		n = &node{id: id}
		m[id] = n
	} else if n.ext.Load().ID != x.ID {
		return nil
	}
	n.ext.Store(x)
	n.lookups++
	return n
}

// forget takes references back; a node without any goes.
func (t *nodes) forget(id, count uint64) {
	if id == uint64(kml.RootOID) {
		return
	}
	m, mu := t.lock(id)
	n := m[id]
	gone := false
	if n != nil {
		n.lookups -= min(count, n.lookups)
		if gone = n.lookups == 0; gone {
			delete(m, id)
		}
	}
	mu.Unlock()
	if gone && t.aliases.Load() > 0 {
		t.mu.Lock()
		if t.alias[n.oid] == n {
			delete(t.alias, n.oid)
			t.aliases.Add(-1)
		}
		t.mu.Unlock()
	}
}

// named remembers a name; the shard is locked.
func (n *node) named(parent uint64, name string) {
	for _, x := range n.names {
		if x.parent == parent && x.name == name {
			return
		}
	}
	if len(n.names) >= maxNames {
		n.names = append(n.names[:0], n.names[1:]...)
		n.more = true
	}
	n.names = append(n.names, nameRef{parent, name})
}

// name remembers one more name of a node.
func (t *nodes) name(n *node, parent uint64, name string) {
	_, mu := t.lock(n.id)
	defer mu.Unlock()
	n.named(parent, name)
}

// closed takes it out again.
func (t *nodes) closed(f *file, writes bool) {
	_, mu := t.lock(f.n.id)
	defer mu.Unlock()
	if writes {
		f.n.writers--
		return
	}
	f.n.reading.Add(-1)
	delete(f.n.readers, f)
}

// readersOf are the open files that only read through n; none while somebody
// writes through it.
func (t *nodes) readersOf(n *node) []*file {
	_, mu := t.lock(n.id)
	defer mu.Unlock()
	if n.writers > 0 {
		return nil
	}
	return slices.Collect(maps.Keys(n.readers))
}

// retire leaves n to those who read through it.
func (t *nodes) retire(n *node) (out told) {
	_, mu := t.lock(n.id)
	defer mu.Unlock()
	if !n.retired && n.writers == 0 {
		n.retire(&out)
	}
	return out
}

// retire is nodes.retire; n's shard is locked.
func (n *node) retire(t *told) {
	n.retired, t.refused, t.left = true, true, n
	t.names, t.more, n.names = n.names, n.more, nil
}

// reader is an open file that reads the contents a retired node is left with, or
// nil. Its handle is to be let go of.
func (t *nodes) reader(n *node) *file {
	_, mu := t.lock(n.id)
	defer mu.Unlock()
	if !n.retired {
		return nil
	}
	for f := range n.readers {
		f.shared.Add(1) // it is entered, so it holds one
		return f
	}
	return nil
}

// write enters f as one who writes past the pages of a retired node.
func (t *nodes) write(f *file) {
	_, mu := t.lock(f.n.id)
	defer mu.Unlock()
	f.n.enter(f)
}

// rescue enters f, who reads other contents, as a reader of its retired node:
// with the handle of another reader, and its own comes back to be closed. When
// there is none f reads past the kernel's pages, and so do all who come later.
func (t *nodes) rescue(f *file, content uint64) (unused tree.Handle, direct bool) {
	n := f.n
	_, mu := t.lock(n.id)
	defer mu.Unlock()
	for other := range n.readers {
		other.shared.Add(1) // other is entered, so it holds one
		unused, f.h, f.shared = f.h, other.h, other.shared
		n.enter(f)
		return unused, n.direct
	}
	n.content, n.direct = content, true
	n.enter(f)
	return nil, true
}
