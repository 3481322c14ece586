package replay

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/internal/node"
	"github.com/mezzofs/mezzo/kml"
)

// place is a name in an open folder.
type place struct {
	fd   int
	name string
}

func (p place) at() node.At { return node.At{FD: p.fd, Name: p.name} }

func (p place) path() string { return p.at().Path() }

func (p place) close() { unix.Close(p.fd) }

func (p place) stat() (unix.Stat_t, error) { return p.at().Stat() }

// at opens the folder of a name. No symbolic link is followed on the way, so
// nothing outside the directory is reached.
func (x *replayer) at(parent kml.OID, name string) (place, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return place{}, fmt.Errorf("name %q: %w", name, unix.EINVAL)
	}
	if parent == kml.RootOID && name == StateDir {
		return place{}, fmt.Errorf("name %q is the replay's own: %w", name, unix.EBUSY)
	}
	fd, err := x.folder(parent)
	return place{fd, name}, err
}

// folder opens a folder.
func (x *replayer) folder(o kml.OID) (int, error) {
	dir, ok := x.names.Dir(o)
	if !ok {
		return -1, fmt.Errorf("folder %s was never made: %w", o, unix.ENOENT)
	}
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd := x.root
	for dir != "" {
		part := dir
		if len(part) >= unix.PathMax {
			part = part[:strings.LastIndexByte(part[:unix.PathMax-1], '/')]
		}
		dir = strings.TrimPrefix(dir[len(part):], "/")
		next, err := unix.Openat2(fd, part, &how)
		if fd != x.root {
			unix.Close(fd)
		}
		if err != nil {
			return -1, changed(fmt.Errorf("folder %s: %w", part, err))
		}
		fd = next
	}
	return fd, nil
}

// object is the first name of an object.
func (x *replayer) object(o kml.OID) (place, error) {
	at := x.names.Of(o)
	if len(at) == 0 {
		return place{}, fmt.Errorf("object %s has no name: %w", o, unix.ENOENT)
	}
	return x.at(at[0].Parent, at[0].Name)
}

// changed marks errors that only come of changes made by others.
func changed(err error) error {
	for _, e := range []error{unix.ENOENT, unix.EEXIST, unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ENOTEMPTY} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrChanged, err)
		}
	}
	return err
}

// start says in the state file that a record begins, and about which inode.
func (x *replayer) start(ino uint64) error {
	x.st.phase, x.st.ino = doing, ino
	err := x.st.save()
	fault.Point("replay.record.begun")
	return err
}

// touch does to the directory what r says.
func (x *replayer) touch(r *kml.Record, doubt bool) error {
	var err error
	switch r.Op {
	case kml.OpCreate, kml.OpMkdir, kml.OpSymlink, kml.OpMknod:
		err = x.make(r, doubt)
	case kml.OpLink:
		err = x.link(r, doubt)
	case kml.OpUnlink, kml.OpRmdir:
		err = x.remove(r, doubt)
	case kml.OpRename:
		err = x.rename(r, doubt)
	case kml.OpSetattr, kml.OpSetxattr, kml.OpRemovexattr:
		err = x.attribute(r)
	default: // contents are for settle
		return x.start(0)
	}
	if err != nil {
		return err
	}
	fault.Point("replay.record.called")
	if r.Parent != 0 {
		err = x.setDirTime(r.Parent, r.ParentMtime)
	}
	if err == nil && r.NewParent != 0 && r.NewParent != r.Parent {
		err = x.setDirTime(r.NewParent, r.NewParentMtime)
	}
	return err
}

// setDirTime gives a folder its mtime; 0: the one it had.
func (x *replayer) setDirTime(o kml.OID, mtime int64) error {
	if mtime == 0 {
		if mtime = x.mtimes[o]; mtime == 0 {
			return nil // the log never told
		}
	}
	fd, err := x.folder(o)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return node.SetTimes(node.At{FD: fd}, kml.Attr{Mtime: mtime}, kml.MaskMtime)
}

// make makes an object in the stage, where no default ACL reaches it, and moves
// it to its name.
func (x *replayer) make(r *kml.Record, doubt bool) error {
	at, err := x.at(r.Parent, r.Name)
	if err != nil {
		return err
	}
	defer at.close()
	if st, err := at.stat(); doubt && err == nil && st.Ino == x.st.ino {
		return nil // it was moved, and had all before that
	}
	tmp := place{x.stage, r.OID.String()}
	if err := x.makeStaged(tmp, r); err != nil {
		return err
	}
	st, err := tmp.stat()
	if err != nil {
		return err
	}
	if err := x.start(st.Ino); err != nil {
		return err
	}
	return changed(unix.Renameat2(tmp.fd, tmp.name, at.fd, at.name, unix.RENAME_NOREPLACE))
}

func (x *replayer) makeStaged(tmp place, r *kml.Record) error {
	if err := node.Make(tmp.at(), r); err != nil {
		return err
	}
	m := kml.MaskMode | kml.MaskUID | kml.MaskGID | kml.MaskMtime | kml.MaskAtime
	return node.Dress(tmp.at(), r.Attr, m, r.Xattrs, r.Op == kml.OpSymlink, x.skip())
}

// skip counts what this process may not do, or the file system cannot, and
// goes on without it.
func (x *replayer) skip() node.Skip {
	return node.Forgive(func(string, error) { x.res.Skipped++ })
}

// allow is skip for one error.
func (x *replayer) allow(what string, err error) error {
	if err == nil {
		return nil
	}
	return x.skip()(what, err)
}

func (x *replayer) link(r *kml.Record, doubt bool) error {
	src, err := x.object(r.OID)
	if err != nil {
		return err
	}
	defer src.close()
	at, err := x.at(r.Parent, r.Name)
	if err != nil {
		return err
	}
	defer at.close()
	st, err := src.stat()
	if err != nil {
		return changed(err)
	}
	if got, err := at.stat(); doubt && err == nil && got.Ino == st.Ino {
		return nil
	}
	if err := x.start(st.Ino); err != nil {
		return err
	}
	return changed(unix.Linkat(src.fd, src.name, at.fd, at.name, 0))
}

func (x *replayer) remove(r *kml.Record, doubt bool) error {
	at, err := x.at(r.Parent, r.Name)
	if err != nil {
		return err
	}
	defer at.close()
	if err := x.start(0); err != nil {
		return err
	}
	flags := 0
	if r.Op == kml.OpRmdir {
		flags = unix.AT_REMOVEDIR
	}
	err = unix.Unlinkat(at.fd, at.name, flags)
	if doubt && errors.Is(err, unix.ENOENT) {
		return nil
	}
	return changed(err)
}

func (x *replayer) rename(r *kml.Record, doubt bool) error {
	from, err := x.at(r.Parent, r.Name)
	if err != nil {
		return err
	}
	defer from.close()
	to, err := x.at(r.NewParent, r.NewName)
	if err != nil {
		return err
	}
	defer to.close()
	if st, err := to.stat(); doubt && err == nil && x.st.ino != 0 && st.Ino == x.st.ino {
		return nil
	}
	st, err := from.stat()
	if err != nil {
		return changed(err)
	}
	if err := x.start(st.Ino); err != nil {
		return err
	}
	flags := uint(unix.RENAME_NOREPLACE)
	switch {
	case r.Flags&kml.FlagExchange != 0:
		flags = unix.RENAME_EXCHANGE
	case r.Victim != nil:
		flags = 0
	}
	return changed(unix.Renameat2(from.fd, from.name, to.fd, to.name, flags))
}

// attribute sets attributes and xattrs. Values are absolute: twice is once.
func (x *replayer) attribute(r *kml.Record) error {
	if err := x.start(0); err != nil {
		return err
	}
	if r.OID == kml.RootOID {
		return x.attributeOf(place{x.root, "."}, r)
	}
	if len(x.names.Of(r.OID)) == 0 {
		return nil // of a file that was open and had no name left
	}
	p, err := x.object(r.OID)
	if err != nil {
		return err
	}
	defer p.close()
	return x.attributeOf(p, r)
}

func (x *replayer) attributeOf(p place, r *kml.Record) error {
	st, err := p.stat()
	if err != nil {
		return changed(err)
	}
	what := fmt.Sprintf("xattr %q", r.Name)
	switch r.Op {
	case kml.OpSetxattr:
		return x.allow(what, node.SetXattr(p.at(), r.Name, r.Value))
	case kml.OpRemovexattr:
		return x.allow(what, node.RemoveXattr(p.at(), r.Name))
	}
	return node.Dress(p.at(), r.Attr, r.Mask, nil, st.Mode&unix.S_IFMT == unix.S_IFLNK, x.skip())
}
