package plain

import (
	"context"
	"errors"
	"strconv"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"
)

func itoa(n int) string { return strconv.Itoa(n) }

// make runs f, which makes name in the folder as the user, gives the result to
// its group and returns its qid.
func (f *File) make(name string, gid p9.GID, how func(dirfd int) error) (p9.QID, error) {
	if err := f.a.writable(); err != nil {
		return p9.QID{}, err
	}
	var st unix.Statx_t
	err := f.a.do(func() error {
		if err := how(f.n.fd); err != nil {
			return err
		}
		if err := unix.Statx(f.n.fd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statMask, &st); err != nil {
			return err
		}
		g, ok := f.a.group(gid)
		if !ok || int(st.Gid) == g {
			return nil
		}
		if setgid, err := f.setgid(); setgid || err != nil {
			return err
		}
		return denied(unix.Fchownat(f.n.fd, name, -1, g, unix.AT_SYMLINK_NOFOLLOW))
	})
	if err != nil {
		return p9.QID{}, err
	}
	return f.a.t.nodes.made(&st), nil
}

// setgid says that the folder gives its own group to what is made in it.
func (f *File) setgid() (bool, error) {
	var st unix.Statx_t
	err := statFD(f.n.fd, &st)
	return st.Mode&unix.S_ISGID != 0, err
}

// give gives a new file to a group, unless its folder has given it its own.
func (f *File) give(fd, gid int) error {
	setgid, err := f.setgid()
	if setgid || err != nil {
		return err
	}
	return denied(f.a.do(func() error { return unix.Fchown(fd, -1, gid) }))
}

// denied forgives a group that could not be given: the file is there by now.
func denied(err error) error {
	if errors.Is(err, syscall.EPERM) {
		return nil
	}
	return err
}

// Mkdir makes a folder.
func (f *File) Mkdir(name string, perm p9.FileMode, _ p9.UID, gid p9.GID) (p9.QID, error) {
	return f.make(name, gid, func(dirfd int) error { return unix.Mkdirat(dirfd, name, uint32(perm)&0o7777) })
}

// Symlink makes a symbolic link called newName that says oldName.
func (f *File) Symlink(oldName, newName string, _ p9.UID, gid p9.GID) (p9.QID, error) {
	return f.make(newName, gid, func(dirfd int) error { return unix.Symlinkat(oldName, dirfd, newName) })
}

// Mknod makes a FIFO, socket or device, and an empty regular file too.
func (f *File) Mknod(name string, mode p9.FileMode, major, minor uint32, _ p9.UID, gid p9.GID) (p9.QID, error) {
	m := uint32(mode)
	if t := m & unix.S_IFMT; (t == unix.S_IFCHR || t == unix.S_IFBLK) && !f.a.t.o.Devices {
		return p9.QID{}, syscall.EPERM
	}
	return f.make(name, gid, func(dirfd int) error { return unix.Mknodat(dirfd, name, m, int(unix.Mkdev(major, minor))) })
}

// other is a File of the same tree.
func (f *File) other(g p9.File) (*File, error) {
	if err := f.a.writable(); err != nil {
		return nil, err
	}
	o, ok := g.(*File)
	if !ok || o.a.t != f.a.t {
		return nil, syscall.EXDEV
	}
	return o, nil
}

// Link gives target one more name.
func (f *File) Link(target p9.File, newName string) error {
	t, err := f.other(target)
	if err != nil {
		return err
	}
	return f.a.do(func() error {
		return unix.Linkat(f.a.t.procfd, t.n.proc(), f.n.fd, newName, unix.AT_SYMLINK_FOLLOW)
	})
}

// RenameAt moves a name; what held the new one is replaced.
func (f *File) RenameAt(oldName string, newDir p9.File, newName string) error {
	d, err := f.other(newDir)
	if err != nil {
		return err
	}
	return f.a.do(func() error { return unix.Renameat(f.n.fd, oldName, d.n.fd, newName) })
}

// Rename moves the file itself, by the name it was walked to; ESTALE when that
// name holds something else by now.
func (f *File) Rename(newDir p9.File, newName string) error {
	d, err := f.other(newDir)
	if err != nil {
		return err
	}
	parent, name := f.place()
	if parent == nil {
		return syscall.EBUSY
	}
	err = f.a.do(func() error {
		if err := f.holds(parent, name); err != nil {
			return err
		}
		return unix.Renameat(parent.fd, name, d.n.fd, newName)
	})
	if err == nil {
		d.n.hold()
		f.move(d.n, newName)
	}
	return err
}

// RenameTo renames the file in its folder, as a wstat message wants it.
func (f *File) RenameTo(_ context.Context, name string) error {
	parent, _ := f.place()
	if parent == nil {
		return syscall.EBUSY
	}
	return f.Rename(&File{a: f.a, n: parent, fd: -1}, name)
}

// place is where the file was last known to be; nil at the root of an attach.
func (f *File) place() (*node, string) {
	f.where.Lock()
	defer f.where.Unlock()
	return f.parent, f.name
}

func (f *File) move(to *node, name string) {
	if f.of != nil {
		f.of.move(to, name)
		return
	}
	f.where.Lock()
	defer f.where.Unlock()
	// Whoever read the old place may still use its descriptor: the fid keeps it.
	f.left = append(f.left, f.parent)
	f.parent, f.name = to, name
}

// holds is ESTALE when a name does not hold this object any more.
func (f *File) holds(parent *node, name string) error {
	var st unix.Statx_t
	if err := unix.Statx(parent.fd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_INO, &st); err != nil {
		return err
	}
	if idOf(&st) != f.n.id {
		return syscall.ESTALE
	}
	return nil
}

// Remove unlinks the file by the name it was walked to, as the remove message
// wants it; ESTALE when that name holds something else by now.
func (f *File) Remove(context.Context) error {
	if err := f.a.writable(); err != nil {
		return err
	}
	parent, name := f.place()
	if parent == nil {
		return syscall.EBUSY
	}
	flags := 0
	if f.n.isDir() {
		flags = unix.AT_REMOVEDIR
	}
	return f.a.do(func() error {
		if err := f.holds(parent, name); err != nil {
			return err
		}
		return unix.Unlinkat(parent.fd, name, flags)
	})
}

// UnlinkAt removes a name from the folder; a folder with AT_REMOVEDIR.
func (f *File) UnlinkAt(name string, flags uint32) error {
	if err := f.a.writable(); err != nil {
		return err
	}
	return f.a.do(func() error { return unix.Unlinkat(f.n.fd, name, int(flags)) })
}
