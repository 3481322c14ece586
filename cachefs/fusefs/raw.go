package fusefs

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// raw answers the kernel's requests.
type raw struct {
	fuse.RawFileSystem // answers ENOSYS to what is not here

	base   context.Context // of every call: carries the door, ends with the server
	fs     tree.FS
	loser  tree.LockLoser // fs, when it is one
	o      Options
	log    *slog.Logger
	kernel *notifier
	nodes  *nodes
	files  files
	ring   ring
	queue  *queue
	limbo  limbo
	late   late

	entryFor, attrFor uint64 // seconds
	entryNs, attrNs   uint32
	cancelWatch       func()
}

func newRaw(base context.Context, fs tree.FS, o Options, kernel *notifier) *raw {
	r := &raw{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), base: base, fs: fs, o: o, log: o.Logger, kernel: kernel, nodes: newNodes(),
	}
	r.loser, _ = fs.(tree.LockLoser)
	r.files.m = map[uint64]*file{}
	r.entryFor, r.entryNs = timeout(o.EntryTimeout)
	r.attrFor, r.attrNs = timeout(o.AttrTimeout)
	r.queue = newQueue(r)
	return r
}

// timeout is how the kernel is told a time to keep; 0 is for ever.
func timeout(d time.Duration) (sec uint64, ns uint32) {
	if d <= 0 {
		return 1 << 32, 0
	}
	return uint64(d / time.Second), uint32(d % time.Second)
}

// start begins to follow the tree.
func (r *raw) start() {
	r.queue.probe()
	r.cancelWatch = r.fs.Watch(r.queue.watch)
}

// stop ends what start began and closes what is still open.
func (r *raw) stop() {
	r.cancelWatch()
	r.queue.close()
	r.kernel.close()
	r.files.closeAll(r)
	r.limbo.close()
}

// String names the file system.
func (r *raw) String() string { return "mezzo" }

// node finds the node of a request.
func (r *raw) node(id uint64) (*node, fuse.Status) {
	if n := r.nodes.get(id); n != nil {
		return n, fuse.OK
	}
	return nil, fuse.Status(unix.ESTALE)
}

// folder is node for a request that names something in a folder of the tree.
// What is asked of an entry of the extension instead is not allowed.
func (r *raw) folder(id uint64) (*node, fuse.Status) {
	n, st := r.node(id)
	if st == fuse.OK && n.ext.Load() != nil {
		return nil, fuse.EPERM
	}
	return n, st
}

// fill puts an object's attributes in the kernel's form.
func fill(out *fuse.Attr, a *tree.Attr) {
	out.Ino = uint64(a.OID)
	out.Size, out.Blocks, out.Blksize = a.Size, a.Blocks, 4096
	out.Atime, out.Atimensec = split(a.Atime)
	out.Mtime, out.Mtimensec = split(a.Mtime)
	out.Ctime, out.Ctimensec = split(a.Ctime)
	out.Mode, out.Nlink = a.Mode, a.Nlink
	out.Uid, out.Gid = a.UID, a.GID
	out.Rdev = uint32(a.Rdev) // makedev's low half is the kernel's 32-bit form
}

// split cuts nanoseconds since 1970 into seconds, which may be negative, and
// the rest.
func split(ns int64) (uint64, uint32) {
	s, rest := ns/1e9, ns%1e9
	if rest < 0 {
		s, rest = s-1, rest+1e9
	}
	return uint64(s), uint32(rest)
}

// join is split's inverse.
func join(s uint64, ns uint32) int64 { return int64(s)*1e9 + int64(ns) }

// entry hands an object out under a name. since is the ring's count before the
// FS was asked; made says that the kernel will believe the attributes even if
// it knows newer ones.
func (r *raw) entry(out *fuse.EntryOut, a *tree.Attr, parent uint64, name string, since uint64, made bool) *node {
	return r.entryOpen(out, a, parent, name, since, made, nil)
}

// entryOpen is entry of an object together with an open of it.
func (r *raw) entryOpen(out *fuse.EntryOut, a *tree.Attr, parent uint64, name string, since uint64, made bool, f *file) *node {
	n, t := r.nodes.ref(a.OID, wanted{content: a.Content, parent: parent, name: name, file: f})
	r.follow(n, &t)
	out.NodeId, out.Generation = n.id, n.gen
	out.EntryValid, out.EntryValidNsec = r.entryFor, r.entryNs
	fill(&out.Attr, a)
	if !(made && t.known || r.ring.changed(since, a.OID)) {
		out.AttrValid, out.AttrValidNsec = r.attrFor, r.attrNs
	}
	return n
}

// follow does what telling the kernel of n's contents makes necessary.
func (r *raw) follow(n *node, t *told) {
	if t.moved {
		r.queue.addMoved(n)
	}
	if t.left == nil {
		return
	}
	for _, x := range t.names {
		r.queue.addName(x.parent, x.name)
	}
	if t.more {
		r.queue.addAll(t.left.id)
	}
}

// Forget takes back what entry counted.
func (r *raw) Forget(id, count uint64) { r.nodes.forget(id, count) }

// GetAttr is stat(2), and fstat(2) where the kernel names the file.
func (r *raw) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	n, st := r.node(in.NodeId)
	if st != fuse.OK {
		return st
	}
	if n.ext.Load() != nil {
		return r.extAttr(c, n, &out.Attr)
	}
	since := r.ring.now()
	a, keep, err := r.attr(c, &in.InHeader, n, in.Flags()&fuse.FUSE_GETATTR_FH != 0, in.Fh())
	if err != nil {
		return r.status("getattr", err)
	}
	fill(&out.Attr, &a)
	// The kernel orders this reply against notifications by itself, but not
	// against the end of the node's version.
	if keep && !r.ring.changed(since, n.oid) {
		out.AttrValid, out.AttrValidNsec = r.attrFor, r.attrNs
	}
	return fuse.OK
}

// attr is what a node's object says of itself now; for a node that keeps an
// older version, what its readers see. keep is false when the kernel must not.
func (r *raw) attr(c *call, h *fuse.InHeader, n *node, byFile bool, fh uint64) (a tree.Attr, keep bool, err error) {
	if byFile {
		if f := r.files.get(fh); f != nil && f.h != nil {
			a, err = f.h.Attr(c)
			return a, true, err
		}
	}
	if a, ok, err := r.oldAttr(c, n); ok {
		return a, true, err
	}
	if a, err = r.fs.Getattr(c, cred(h), n.oid); err != nil {
		return a, false, err
	}
	t := r.nodes.tell(n, wanted{content: a.Content})
	r.follow(n, &t)
	if !t.refused {
		return a, true, nil
	}
	if a, ok, err := r.oldAttr(c, n); ok {
		return a, true, err
	}
	return a, false, nil
}

// oldAttr is what those who read through a retired node see; ok is false when
// nobody does.
func (r *raw) oldAttr(c *call, n *node) (a tree.Attr, ok bool, err error) {
	f := r.nodes.reader(n)
	if f == nil {
		return a, false, nil
	}
	a, err = f.h.Attr(c)
	return a, true, errors.Join(err, f.letGo())
}

// Statx is asked for a file's time of birth only.
func (r *raw) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	n, st := r.node(in.NodeId)
	if st != fuse.OK {
		return st
	}
	var f fuse.Attr
	btime := int64(0)
	if n.ext.Load() != nil {
		if st := r.extAttr(c, n, &f); st != fuse.OK {
			return st
		}
	} else {
		a, _, err := r.attr(c, &in.InHeader, n, in.GetattrFlags&fuse.FUSE_GETATTR_FH != 0, in.Fh)
		if err != nil {
			return r.status("statx", err)
		}
		fill(&f, &a)
		btime = a.Btime
	}
	s := &out.Statx
	s.Mask = unix.STATX_BASIC_STATS
	s.Blksize, s.Nlink, s.Uid, s.Gid, s.Mode = f.Blksize, f.Nlink, f.Uid, f.Gid, uint16(f.Mode)
	s.Ino, s.Size, s.Blocks = f.Ino, f.Size, f.Blocks
	s.Atime = fuse.SxTime{Sec: f.Atime, Nsec: f.Atimensec}
	s.Mtime = fuse.SxTime{Sec: f.Mtime, Nsec: f.Mtimensec}
	s.Ctime = fuse.SxTime{Sec: f.Ctime, Nsec: f.Ctimensec}
	s.RdevMajor, s.RdevMinor = unix.Major(uint64(f.Rdev)), unix.Minor(uint64(f.Rdev))
	if btime != 0 {
		s.Mask |= unix.STATX_BTIME
		s.Btime.Sec, s.Btime.Nsec = split(btime)
	}
	return fuse.OK
}

// StatFs is statfs(2).
func (r *raw) StatFs(cancel <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	c := r.begin(cancel, in)
	defer c.end()
	oid := kml.RootOID
	if n := r.nodes.get(in.NodeId); n != nil && n.ext.Load() == nil {
		oid = n.oid
	}
	s, err := r.fs.Statfs(c, oid)
	if err != nil {
		return r.status("statfs", err)
	}
	out.Blocks, out.Bfree, out.Bavail = s.Blocks, s.Bfree, s.Bavail
	out.Files, out.Ffree = s.Files, s.Ffree
	out.Bsize, out.NameLen, out.Frsize = s.Bsize, s.Namelen, s.FragmentLen
	if out.Frsize == 0 {
		out.Frsize = s.Bsize
	}
	return fuse.OK
}

// Ioctl knows none. Passing them on would reach the disk below.
func (r *raw) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return fuse.Status(unix.ENOTTY)
}

// settle finds out whether those who read through n keep contents that the
// object has left behind, and retires n if so.
func (r *raw) settle(n *node) bool {
	if n.reading.Load() == 0 {
		return r.nodes.isRetired(n)
	}
	for _, f := range r.nodes.readersOf(n) {
		if p, ok := f.h.(tree.Pinner); ok && p.Pinned() {
			t := r.nodes.retire(n)
			r.follow(n, &t)
			break
		}
	}
	return r.nodes.isRetired(n)
}

// files is the table of open files and folders, by the number the kernel
// knows them by.
type files struct {
	mu   sync.RWMutex
	next uint64
	m    map[uint64]*file
}

func (t *files) get(fh uint64) *file {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.m[fh]
}

func (t *files) put(f *file) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next++
	t.m[t.next] = f
	return t.next
}

func (t *files) take(fh uint64) *file {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.m[fh]
	delete(t.m, fh)
	return f
}

// closeAll closes what the kernel did not: after an abort it sends nothing.
func (t *files) closeAll(r *raw) {
	t.mu.Lock()
	left := t.m
	t.m = map[uint64]*file{}
	t.mu.Unlock()
	for _, f := range left {
		f.close(r)
	}
}
