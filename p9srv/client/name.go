package client

import (
	"context"
	"errors"
	"strconv"
	"syscall"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/p9srv/wire"
)

// Mkdir makes a folder in the folder f.
func (f *Fid) Mkdir(ctx context.Context, name string, mode p9.FileMode, gid p9.GID) (p9.QID, error) {
	if err := checkStrings(name); err != nil {
		return p9.QID{}, err
	}
	if f.c.old() {
		return f.oldMake(ctx, name, f.c.oldPerm(mode&0o7777|p9.ModeDirectory), "")
	}
	var answer wire.Rmkdir
	err := f.do(ctx, &wire.Tmkdir{DFID: f.fid, Name: name, Mode: mode, GID: gid}, &answer, name)
	return answer.QID, err
}

// Symlink makes a symbolic link in the folder f.
func (f *Fid) Symlink(ctx context.Context, name, target string, gid p9.GID) (p9.QID, error) {
	if err := checkStrings(name, target); err != nil {
		return p9.QID{}, err
	}
	if f.c.old() {
		return f.oldMake(ctx, name, wire.DMSymlink|0o777, target)
	}
	var answer wire.Rsymlink
	err := f.do(ctx, &wire.Tsymlink{DFID: f.fid, Name: name, Target: target, GID: gid}, &answer, name)
	return answer.QID, err
}

// Node is what Mknod makes.
type Node struct {
	Name         string
	Mode         p9.FileMode // type and permissions
	Major, Minor uint32      // of a device
	GID          p9.GID
}

// Mknod makes a device, FIFO, socket or regular file in the folder f.
func (f *Fid) Mknod(ctx context.Context, n Node) (p9.QID, error) {
	if err := checkStrings(n.Name); err != nil {
		return p9.QID{}, err
	}
	if f.c.old() {
		return f.oldMknod(ctx, n)
	}
	var answer wire.Rmknod
	req := wire.Tmknod{DFID: f.fid, Name: n.Name, Mode: n.Mode, Major: n.Major, Minor: n.Minor, GID: n.GID}
	err := f.do(ctx, &req, &answer, n.Name)
	return answer.QID, err
}

// Link makes another name, in the folder f, for the file target.
func (f *Fid) Link(ctx context.Context, target *Fid, name string) error {
	if err := f.mate("link", target, name); err != nil {
		return err
	}
	if f.c.old() {
		_, err := f.oldMake(ctx, name, wire.DMLink, strconv.FormatUint(uint64(target.fid), 10))
		return err
	}
	return f.do(ctx, &wire.Tlink{DFID: f.fid, FID: target.fid, Name: name}, &wire.Rlink{}, name)
}

// Rename moves the file f to a new name in a folder. RenameAt is better: it
// says which of the file's names.
func (f *Fid) Rename(ctx context.Context, dir *Fid, name string) error {
	if err := f.mate("rename", dir, name); err != nil {
		return err
	}
	if f.c.old() {
		return f.c.cannot("rename", name) // it would have to be in dir by now, which nobody knows
	}
	return f.do(ctx, &wire.Trename{FID: f.fid, DFID: dir.fid, Name: name}, &wire.Rrename{}, name)
}

// RenameAt moves what has the name in the folder f to a new name in a folder.
// With a server that does not know the request (diod) it walks to the file and
// renames that, as Linux does.
func (f *Fid) RenameAt(ctx context.Context, oldName string, dir *Fid, newName string) error {
	if err := f.mate("renameat", dir, oldName, newName); err != nil {
		return err
	}
	if f.c.old() {
		return f.oldRenameAt(ctx, oldName, dir, newName)
	}
	req := wire.Trenameat{OldDFID: f.fid, OldName: oldName, NewDFID: dir.fid, NewName: newName}
	err := f.do(ctx, &req, &wire.Rrenameat{}, oldName)
	if !errors.Is(err, syscall.EOPNOTSUPP) {
		return err
	}
	g, _, err := f.Walk(ctx, oldName)
	if err != nil {
		return err
	}
	err = g.Rename(ctx, dir, newName)
	g.Clunk(ctx) // a plain fid: its error means nothing here
	return err
}

// UnlinkAt removes a name from the folder f; a folder's with
// wire.UnlinkRemoveDir. With a server that does not know the request (diod) it
// walks to the file and removes that, as Linux does.
func (f *Fid) UnlinkAt(ctx context.Context, name string, flags uint32) error {
	if err := checkStrings(name); err != nil {
		return err
	}
	if !f.c.old() {
		err := f.do(ctx, &wire.Tunlinkat{DFID: f.fid, Name: name, Flags: flags}, &wire.Runlinkat{}, name)
		if !errors.Is(err, syscall.EOPNOTSUPP) {
			return err
		}
	}
	g, _, err := f.Walk(ctx, name)
	if err != nil {
		return err
	}
	folder, wanted := g.QID().Type&p9.TypeDir != 0, flags&wire.UnlinkRemoveDir != 0
	if folder == wanted {
		return g.Remove(ctx)
	}
	g.Clunk(ctx) // a plain fid: its error means nothing here
	if folder {
		return &Error{Op: "unlinkat", Name: name, Errno: syscall.EISDIR}
	}
	return &Error{Op: "unlinkat", Name: name, Errno: syscall.ENOTDIR}
}

// mate checks the other fid and the names of a request on two.
func (f *Fid) mate(op string, other *Fid, names ...string) error {
	if other.c != f.c {
		return &Error{Op: op, Name: names[0], Errno: syscall.EXDEV}
	}
	if other.closed.Load() {
		return ErrClunked
	}
	return checkStrings(names...)
}
