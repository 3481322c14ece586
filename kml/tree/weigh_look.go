package tree

import (
	"bytes"
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// visible reports whether the directory shows that r was done.
func (w *weighing) visible(r *kml.Record) bool {
	x := w.objs[r.OID]
	if x == nil {
		return false
	}
	o, err := w.t.index.Get(r.OID)
	if err != nil {
		o = &Object{}
	}
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod:
		return x.found
	case kml.OpLink:
		return w.holds(Name{r.Parent, r.Name}, x)
	case kml.OpRename:
		n := Name{r.NewParent, r.NewName}
		held, _, _ := w.t.index.Child(n.Parent, n.Name)
		return held != r.OID && w.holds(n, x)
	case kml.OpUnlink, kml.OpRmdir:
		n := Name{r.Parent, r.Name}
		if x.made != nil { // and never seen: the folder's time tells
			return !w.holds(n, x) && w.mtime(r.Parent) == r.ParentMtime
		}
		held, _, _ := w.t.index.Child(n.Parent, n.Name)
		return held == r.OID && !w.holds(n, x) && (!x.found || o.Attr.Nlink > 1)
	case kml.OpSetattr:
		now := kmlAttr(&x.st)
		return x.found && r.HadOld && changed(now, r.Attr)&r.Mask == 0 && changed(r.Old, r.Attr)&r.Mask != 0
	case kml.OpSetxattr, kml.OpRemovexattr:
		v, err := w.xattr(x, r.Name)
		if r.Op == kml.OpRemovexattr {
			return r.HadOld && errors.Is(err, syscall.ENODATA)
		}
		return err == nil && bytes.Equal(v, r.Value)
	case kml.OpStore:
		return w.stored(x)
	}
	return false
}

// mtime is a folder's time on the disk; 0 when it is not there.
func (w *weighing) mtime(oid kml.OID) int64 {
	dir, err := w.openDir(oid, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(dir)
	m, err := mtimeOf(dir)
	if err != nil {
		return 0
	}
	return m
}

// xattr is what an object's attribute is on the disk.
func (w *weighing) xattr(x *exhibit, name string) ([]byte, error) {
	if !x.found {
		return nil, syscall.ENOENT
	}
	dir, err := w.openDir(x.at.Parent, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	p, _, _, err := lookAtName(dir, x.at.Name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(p.fd)
	return p.getxattr(name)
}

// stored reports whether a file has, whole, the contents that the tail leaves
// it with. Without a digest, only bytes in newly allocated blocks can be told
// to be there: those come to the disk before the size that covers them.
func (w *weighing) stored(x *exhibit) bool {
	if !x.weighed {
		x.weighed, x.whole = true, w.storedNow(x)
	}
	return x.whole
}

func (w *weighing) storedNow(x *exhibit) bool {
	if !x.found || len(x.stores) == 0 || x.st.Size != x.size || nsOf(x.st.Mtime) != x.mtime {
		return false
	}
	last := x.stores[len(x.stores)-1]
	if x.size == 0 {
		return true
	}
	dir, err := w.openDir(x.at.Parent, 0)
	if err != nil {
		return false
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, x.at.Name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), x.at.Name)
	defer f.Close()
	if last.Digest != nil {
		h := blake3.New()
		_, err := io.Copy(h, f)
		return err == nil && bytes.Equal(h.Sum(nil), last.Digest)
	}
	var base uint64
	if o, err := w.t.index.Get(x.oid); err == nil && x.made == nil {
		base = o.Attr.Size
	}
	for _, r := range x.stores {
		es := r.Extents
		if es == nil {
			es = []kml.Extent{{Len: r.Attr.Size}}
		}
		for _, e := range es {
			end := min(e.Off+e.Len, x.size)
			if e.Off >= end {
				continue
			}
			hole, err := unix.Seek(fd, int64(e.Off), unix.SEEK_HOLE)
			if e.Off < base || err != nil || uint64(hole) < end {
				return false
			}
		}
	}
	return true
}
