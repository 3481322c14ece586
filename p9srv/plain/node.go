package plain

import (
	"container/list"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"
)

// node is an object that somebody has a fid on, with its O_PATH descriptor.
type node struct {
	fd    int
	id    id
	typ   uint32        // S_IFMT bits
	dev   uint64        // the number of its file system here
	path  uint64        // of its qids
	count atomic.Uint32 // of changes through here
	blind atomic.Bool   // the file system does not tell what is in the page cache
	all   *nodes

	// Guarded by all.mu.
	refs int
	idle *list.Element // a folder without fids
}

// id is what no two objects have at a time.
type id struct {
	major, minor uint32
	ino          uint64
}

func idOf(st *unix.Statx_t) id { return id{st.Dev_major, st.Dev_minor, st.Ino} }

// nodes are all objects with a descriptor.
type nodes struct {
	mu   sync.Mutex
	m    map[id]*node
	idle list.List // folders without fids, least recent first
	devs map[id]uint64
}

// maxIdleNodes is how many folders stay open without a fid.
const maxIdleNodes = 256

func (ns *nodes) init() { ns.m, ns.devs = map[id]*node{}, map[id]uint64{} }

// get is a known object, held.
func (ns *nodes) get(i id) *node {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	n := ns.m[i]
	if n != nil {
		ns.hold(n)
	}
	return n
}

func (ns *nodes) hold(n *node) {
	if n.idle != nil {
		ns.idle.Remove(n.idle)
		n.idle = nil
	}
	n.refs++
}

// adopt is the object behind fd, held. took says that fd belongs to it now.
func (ns *nodes) adopt(fd int, st *unix.Statx_t) (n *node, took bool) {
	i := idOf(st)
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if n = ns.m[i]; n != nil {
		ns.hold(n)
		return n, false
	}
	dev := ns.dev(i)
	n = &node{fd: fd, id: i, typ: uint32(st.Mode) & unix.S_IFMT, dev: dev, path: qidPath(dev, i.ino), all: ns, refs: 1}
	ns.m[i] = n
	return n, true
}

// made is the qid of something new.
func (ns *nodes) made(st *unix.Statx_t) p9.QID {
	ns.mu.Lock()
	dev := ns.dev(idOf(st))
	ns.mu.Unlock()
	n := node{typ: uint32(st.Mode) & unix.S_IFMT, path: qidPath(dev, st.Ino)}
	return n.qid(st)
}

// dev numbers file systems; the first, which is the root's, is 0. ns.mu is held.
func (ns *nodes) dev(i id) uint64 {
	i.ino = 0
	d, ok := ns.devs[i]
	if !ok {
		d = uint64(len(ns.devs))
		ns.devs[i] = d
	}
	return d
}

// qidPath puts the number of the file system above the inode's, where there is
// room for it.
func qidPath(dev, ino uint64) uint64 {
	const shift = 48
	if dev == 0 || ino>>shift == 0 {
		return ino ^ dev<<shift
	}
	return mix(ino ^ dev*0x9E3779B97F4A7C15)
}

func (n *node) hold() {
	n.all.mu.Lock()
	defer n.all.mu.Unlock()
	n.all.hold(n)
}

// release gives the object up. Files are closed with their last fid, for they
// keep disk space; folders stay for a while.
func (n *node) release() {
	ns := n.all
	ns.mu.Lock()
	n.refs--
	switch {
	case n.refs > 0:
		n = nil
	case n.typ == unix.S_IFDIR:
		n.idle = ns.idle.PushBack(n)
		if n = nil; ns.idle.Len() > maxIdleNodes {
			n = ns.idle.Remove(ns.idle.Front()).(*node)
			n.idle = nil
		}
	}
	if n != nil {
		delete(ns.m, n.id)
	}
	ns.mu.Unlock()
	if n != nil {
		unix.Close(n.fd)
	}
}

// close closes folders that nobody has a fid on.
func (ns *nodes) close() {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	for e := ns.idle.Front(); e != nil; e = ns.idle.Front() {
		n := ns.idle.Remove(e).(*node)
		n.idle = nil
		delete(ns.m, n.id)
		unix.Close(n.fd)
	}
}

// proc is the object's name in /proc/self/fd: what opens there is the object
// itself, whatever its type (proc(5)).
func (n *node) proc() string { return strconv.Itoa(n.fd) }

// procPath is proc as an absolute path, for calls that take no folder.
func (n *node) procPath() string { return "/proc/self/fd/" + n.proc() }

func (n *node) isDir() bool { return n.typ == unix.S_IFDIR }

// mayWait says that I/O on the object may wait for ever.
func (n *node) mayWait() bool {
	return n.typ != unix.S_IFREG && n.typ != unix.S_IFDIR && n.typ != unix.S_IFLNK
}

// qid is the object's: its version moves with every change of contents. The
// count of writes tells changes apart that are closer than the clock ticks.
func (n *node) qid(st *unix.Statx_t) p9.QID {
	return p9.QID{Type: qidType(n.typ), Version: fold(n.version(st)), Path: n.path}
}

func (n *node) version(st *unix.Statx_t) uint64 {
	v := uint64(nanos(st.Mtime)) ^ uint64(nanos(st.Ctime))<<1 ^ st.Size*0x9E3779B97F4A7C15
	return v + uint64(n.count.Load())*0xFF51AFD7ED558CCD
}

func qidType(typ uint32) p9.QIDType {
	switch typ {
	case unix.S_IFDIR:
		return p9.TypeDir
	case unix.S_IFLNK:
		return p9.TypeSymlink
	}
	return p9.TypeRegular
}

func nanos(ts unix.StatxTimestamp) int64 { return ts.Sec*1e9 + int64(ts.Nsec) }

func mix(v uint64) uint64 {
	v = (v ^ v>>33) * 0xFF51AFD7ED558CCD
	v = (v ^ v>>33) * 0xC4CEB9FE1A85EC53
	return v ^ v>>33
}

// fold hashes 64 bits to 32 that are not all zero.
func fold(v uint64) uint32 { return max(uint32(mix(v)), 1) }
