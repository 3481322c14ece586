package export

import (
	"context"
	"strings"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// isExt reports whether name in n is the journal extension.
func (n *node) isExt(name string) bool {
	return n.oid == kml.RootOID && name == tree.ExtDirName && n.s.e.o.Ext != nil
}

// newName checks a name that is about to be made. The tree checks it again; here
// it is told what a user may read.
func (n *node) newName(name string) error {
	switch {
	case !n.isDir():
		return syscall.ENOTDIR
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return syscall.EINVAL
	case n.oid == kml.RootOID && name == tree.ExtDirName:
		return syscall.EPERM
	}
	return nil
}

// making is what every operation that makes a name checks first.
func (f *File) making(name string) error {
	if err := f.n.s.writable(); err != nil {
		return err
	}
	return f.n.newName(name)
}

// Mkdir makes a folder.
func (f *File) Mkdir(name string, perm p9.FileMode, _ p9.UID, gid p9.GID) (p9.QID, error) {
	if err := f.making(name); err != nil {
		return p9.QID{}, err
	}
	n := f.n
	a, err := n.s.e.fs.Mkdir(f.ctx, n.s.withGroup(uint32(gid)), n.oid, name, uint32(perm)&modeBits)
	if err != nil {
		return p9.QID{}, err
	}
	return qidOf(&a), nil
}

// Symlink makes a symbolic link called newName that says oldName.
func (f *File) Symlink(oldName, newName string, _ p9.UID, gid p9.GID) (p9.QID, error) {
	if err := f.making(newName); err != nil {
		return p9.QID{}, err
	}
	n := f.n
	a, err := n.s.e.fs.Symlink(f.ctx, n.s.withGroup(uint32(gid)), n.oid, newName, oldName)
	if err != nil {
		return p9.QID{}, err
	}
	return qidOf(&a), nil
}

// Mknod makes a FIFO, socket or device, and an empty regular file too: that is
// how Linux sends mknod(2) of one.
func (f *File) Mknod(name string, mode p9.FileMode, major, minor uint32, _ p9.UID, gid p9.GID) (p9.QID, error) {
	if err := f.making(name); err != nil {
		return p9.QID{}, err
	}
	n, c := f.n, f.n.s.withGroup(uint32(gid))
	m := uint32(mode)
	if t := m & unix.S_IFMT; t == 0 || t == unix.S_IFREG {
		a, h, err := n.s.e.fs.Create(f.ctx, c, n.oid, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDONLY, m&modeBits)
		if err != nil {
			return p9.QID{}, err
		}
		if err := h.Close(); err != nil {
			return p9.QID{}, err
		}
		return qidOf(&a), nil
	}
	a, err := n.s.e.fs.Mknod(f.ctx, c, n.oid, name, m, unix.Mkdev(major, minor))
	if err != nil {
		return p9.QID{}, err
	}
	return qidOf(&a), nil
}

// Link gives target one more name.
func (f *File) Link(target p9.File, newName string) error {
	if err := f.making(newName); err != nil {
		return err
	}
	t, ok := target.(*File)
	if !ok || t.n.s.e != f.n.s.e {
		return syscall.EXDEV
	}
	if t.n.isDir() {
		return syscall.EPERM
	}
	_, err := f.n.s.e.fs.Link(f.ctx, f.n.s.cred, t.n.oid, f.n.oid, newName)
	return err
}

// RenameAt moves a name; what held the new one is replaced.
func (f *File) RenameAt(oldName string, newDir p9.File, newName string) error {
	if err := f.making(oldName); err != nil {
		return err
	}
	d, ok := newDir.(*File)
	if !ok || d.n.s.e != f.n.s.e {
		return syscall.EXDEV
	}
	if err := d.n.newName(newName); err != nil {
		return err
	}
	return f.n.s.e.fs.Rename(f.ctx, f.n.s.cred, f.n.oid, oldName, d.n.oid, newName, 0)
}

// Rename moves the file itself, by the name it was walked to; ESTALE when that
// name holds something else by now.
func (f *File) Rename(newDir p9.File, newName string) error {
	if err := f.n.s.writable(); err != nil {
		return err
	}
	parent, name := f.place()
	d, ok := newDir.(*File)
	switch {
	case name == "":
		return syscall.EBUSY // what was attached to
	case !ok || d.n.s.e != f.n.s.e:
		return syscall.EXDEV
	}
	if err := d.n.newName(newName); err != nil {
		return err
	}
	if err := f.holds(parent, name); err != nil {
		return err
	}
	if err := f.n.s.e.fs.Rename(f.ctx, f.n.s.cred, parent, name, d.n.oid, newName, 0); err != nil {
		return err
	}
	f.Renamed(d, newName)
	return nil
}

// RenameTo renames the file in its folder, as a wstat message wants it.
func (f *File) RenameTo(ctx context.Context, name string) error {
	f = &File{n: f.n, ctx: f.n.s.request(ctx)}
	parent, _ := f.place()
	return f.Rename(&File{n: f.n.s.file(tree.Attr{OID: parent, Mode: unix.S_IFDIR}, parent, "").n, ctx: f.ctx}, name)
}

// holds is ESTALE when a name does not hold this object any more.
func (f *File) holds(parent kml.OID, name string) error {
	a, err := f.n.s.e.fs.Lookup(f.ctx, f.n.s.cred, parent, name)
	if err != nil {
		return err
	}
	if a.OID != f.n.oid {
		return syscall.ESTALE
	}
	return nil
}

// Remove unlinks the file by the name it was walked to, as the remove message
// wants it; ESTALE when that name holds something else by now.
func (f *File) Remove(ctx context.Context) error {
	f = &File{n: f.n, ctx: f.n.s.request(ctx)}
	if err := f.n.s.writable(); err != nil {
		return err
	}
	parent, name := f.place()
	if name == "" {
		return syscall.EBUSY
	}
	if err := f.holds(parent, name); err != nil {
		return err
	}
	return f.remove(parent, name, f.n.isDir())
}

// UnlinkAt removes a name from the folder; a folder with AT_REMOVEDIR.
func (f *File) UnlinkAt(name string, flags uint32) error {
	if err := f.making(name); err != nil {
		return err
	}
	if flags&^uint32(unix.AT_REMOVEDIR) != 0 {
		return syscall.EINVAL
	}
	return f.remove(f.n.oid, name, flags&unix.AT_REMOVEDIR != 0)
}

func (f *File) remove(parent kml.OID, name string, dir bool) error {
	n := f.n
	if dir {
		return n.s.e.fs.Rmdir(f.ctx, n.s.cred, parent, name)
	}
	return n.s.e.fs.Unlink(f.ctx, n.s.cred, parent, name)
}
