package fusefs

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// extNode is an entry of the journal extension. Nothing of it is cached: it
// is looked up, and its attributes are asked for, every time.
type extNode struct {
	tree.ExtNode
	up uint64 // inode number of the folder it is in
}

// Inode numbers of the extension have site 0, as its node ids have, which mints
// no objects but the root.
const (
	extRootID = uint64(2)
	extBase   = uint64(1) << 41
)

// extID makes a node id, which is the inode number too, of an entry's ID.
func extID(id uint64) uint64 {
	// Long IDs are folded; two that meet get node ids side by side.
	return extBase | (id^id>>41)&(extBase-1)
}

func (x *extNode) id() uint64 {
	if x.Name == tree.ExtDirName && x.up == uint64(kml.RootOID) {
		return extRootID
	}
	return extID(x.ID)
}

// extRoot hands .mezzo out. Its own entry never changes.
func (r *raw) extRoot(c *call, out *fuse.EntryOut) fuse.Status {
	x := &extNode{up: uint64(kml.RootOID), ExtNode: tree.ExtNode{
		Name: tree.ExtDirName, Mode: unix.S_IFDIR | 0o555, Dir: r.o.Ext,
	}}
	st := r.extEntry(c, x, out)
	out.EntryValid, out.EntryValidNsec = r.entryFor, r.entryNs
	return st
}

func (r *raw) extEntry(c *call, x *extNode, out *fuse.EntryOut) fuse.Status {
	n := r.nodes.refExt(x)
	if st := r.extAttr(c, n, &out.Attr); st != fuse.OK {
		r.nodes.forget(n.id, 1)
		return st
	}
	out.NodeId, out.Generation = n.id, n.gen
	return fuse.OK
}

// extAttr is stat(2) of an entry.
func (r *raw) extAttr(c *call, n *node, out *fuse.Attr) fuse.Status {
	x := n.ext.Load()
	*out = fuse.Attr{Ino: n.id, Mode: x.Mode, Nlink: 1, Blksize: 4096}
	if x.Mode&unix.S_IFMT == 0 {
		if x.Dir != nil {
			out.Mode |= unix.S_IFDIR
		} else {
			out.Mode |= unix.S_IFREG
		}
	}
	if x.Dir != nil {
		out.Nlink = 2
	}
	if x.Size != nil {
		size, err := x.Size(c)
		if err != nil {
			return r.status("getattr", err)
		}
		out.Size, out.Blocks = size, (size+511)/512
	}
	return fuse.OK
}

func (r *raw) extLookup(c *call, h *fuse.InHeader, x *extNode, name string, out *fuse.EntryOut) fuse.Status {
	if x.Dir == nil {
		return fuse.ENOTDIR
	}
	e, err := x.Dir.Lookup(c, cred(h), name)
	if err != nil {
		return r.status("lookup", err)
	}
	return r.extEntry(c, &extNode{ExtNode: e, up: x.id()}, out)
}

// extList is the whole listing of a folder of the extension.
func (r *raw) extList(c *call, h *fuse.InHeader, x *extNode) ([]fuse.DirEntry, error) {
	if x.Dir == nil {
		return nil, unix.ENOTDIR
	}
	nodes, err := x.Dir.List(c, cred(h))
	if err != nil {
		return nil, err
	}
	list := []fuse.DirEntry{
		{Name: ".", Ino: x.id(), Mode: unix.S_IFDIR, Off: 1},
		{Name: "..", Ino: x.up, Mode: unix.S_IFDIR, Off: dots},
	}
	for i, e := range nodes {
		mode := uint32(unix.S_IFREG)
		if e.Dir != nil {
			mode = unix.S_IFDIR
		}
		list = append(list, fuse.DirEntry{Name: e.Name, Ino: extID(e.ID), Mode: mode, Off: uint64(i + dots + 1)})
	}
	return list, nil
}

func (r *raw) extOpen(c *call, in *fuse.OpenIn, n *node, out *fuse.OpenOut) fuse.Status {
	x := n.ext.Load()
	if x.Open == nil {
		return fuse.EACCES
	}
	h, err := x.Open(c, cred(&in.InHeader), int(in.Flags)&openFlags)
	if err != nil {
		return r.status("open", err)
	}
	r.extOpened(n, h, out)
	return fuse.OK
}

func (r *raw) extOpened(n *node, h tree.ExtHandle, out *fuse.OpenOut) {
	out.Fh = r.files.put(&file{n: n, ext: h})
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH
	if n.ext.Load().Size == nil {
		// A stream is read by offset, so the kernel keeps count, but nobody
		// can go elsewhere in it.
		out.OpenFlags |= fuse.FOPEN_NONSEEKABLE
	}
}

// extRead may wait on a stream; any signal ends that.
func (r *raw) extRead(cancel <-chan struct{}, in *fuse.ReadIn, f *file, buf []byte) (fuse.ReadResult, fuse.Status) {
	c := r.beginWait(cancel, &in.InHeader)
	defer c.end()
	n, err := f.ext.ReadAt(c, buf, int64(in.Offset))
	if err != nil && n == 0 {
		return nil, r.status("read", err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (r *raw) extCreate(c *call, in *fuse.CreateIn, x *extNode, name string, out *fuse.CreateOut) fuse.Status {
	m, ok := x.Dir.(tree.ExtMaker)
	if !ok {
		return fuse.EPERM
	}
	e, h, err := m.Create(c, cred(&in.InHeader), name, int(in.Flags)&(openFlags|unix.O_EXCL))
	if err != nil {
		return r.status("create", err)
	}
	if st := r.extEntry(c, &extNode{ExtNode: e, up: x.id()}, &out.EntryOut); st != fuse.OK {
		return r.status("create", errors.Join(unix.Errno(st), h.Close()))
	}
	r.extOpened(r.nodes.get(out.NodeId), h, &out.OpenOut)
	return fuse.OK
}

func (r *raw) extRemove(c *call, h *fuse.InHeader, x *extNode, name string) fuse.Status {
	m, ok := x.Dir.(tree.ExtMaker)
	if !ok {
		return fuse.EPERM
	}
	return r.status("unlink", m.Remove(c, cred(h), name))
}
