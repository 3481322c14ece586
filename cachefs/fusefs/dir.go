package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// dots is how many entries of a listing are ours: "." and "..". They have the
// offsets 1 and 2, and the FS's come behind them.
const dots = 2

// OpenDir is opendir(3).
func (r *raw) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	n, st := r.node(in.NodeId)
	if st != fuse.OK {
		return st
	}
	f := &file{n: n}
	if n.ext.Load() != nil {
		list, err := r.extList(c, &in.InHeader, n.ext.Load())
		if err != nil {
			return r.status("opendir", err)
		}
		f.list = list
		out.Fh = r.files.put(f)
		return fuse.OK
	}
	d, err := r.fs.OpenDir(c, cred(&in.InHeader), n.oid)
	if err != nil {
		return r.status("opendir", err)
	}
	f.d = d
	out.Fh = r.files.put(f)
	out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// ReadDir is getdents(2).
func (r *raw) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return r.readDir(cancel, in, func(_ *call, e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus is getdents(2) with the entries looked up on the way. The
// listing may be older than a notification, so each name is asked for now.
func (r *raw) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return r.readDir(cancel, in, func(c *call, e fuse.DirEntry) bool {
		slot := out.AddDirLookupEntry(e)
		if slot == nil {
			return false
		}
		f := r.files.get(in.Fh)
		if f == nil || f.d == nil || e.Name == "." || e.Name == ".." {
			return true
		}
		since := r.ring.now()
		a, err := r.fs.Lookup(c, cred(&in.InHeader), f.n.oid, e.Name)
		if err != nil {
			return true // no node: the kernel asks when it wants to know
		}
		slot.Ino = uint64(a.OID)
		out.FixMode(a.Mode)
		r.entry(slot, &a, f.n.id, e.Name, since, false)
		return true
	})
}

// readDir gives entries to add until it takes no more.
func (r *raw) readDir(cancel <-chan struct{}, in *fuse.ReadIn, add func(*call, fuse.DirEntry) bool) fuse.Status {
	c := r.begin(cancel, &in.InHeader)
	defer c.end()
	f, st := r.open(in.Fh)
	if st != fuse.OK {
		return st
	}
	if f.list != nil {
		for _, e := range f.list[min(in.Offset, uint64(len(f.list))):] {
			if !add(c, e) {
				break
			}
		}
		return fuse.OK
	}
	if f.d == nil {
		return fuse.ENOTDIR
	}
	off := in.Offset
	if off < 1 && !add(c, fuse.DirEntry{Name: ".", Ino: uint64(f.n.oid), Mode: unix.S_IFDIR, Off: 1}) {
		return fuse.OK
	}
	if off < dots {
		up := f.n.oid
		if f.n.oid != kml.RootOID {
			// A folder that lost its name shows itself.
			if p, err := r.fs.Parent(c, f.n.oid); err == nil {
				up = p
			}
		}
		if !add(c, fuse.DirEntry{Name: "..", Ino: uint64(up), Mode: unix.S_IFDIR, Off: dots}) {
			return fuse.OK
		}
		off = dots
	}
	batch := max(16, int(in.Size)/64)
	for {
		list, err := f.d.ReadDir(c, off-dots, batch)
		if err != nil {
			return r.status("readdir", err)
		}
		for _, e := range list {
			if !add(c, fuse.DirEntry{Name: e.Name, Ino: uint64(e.OID), Mode: e.Type, Off: e.Off + dots}) {
				return fuse.OK
			}
			off = e.Off + dots
		}
		if len(list) == 0 {
			return fuse.OK
		}
	}
}
