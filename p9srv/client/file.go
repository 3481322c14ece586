package client

import (
	"context"

	"github.com/hugelgupf/p9/linux"
	"github.com/hugelgupf/p9/p9"
)

// AsFile gives a fid the interface of package p9, for code that walks any
// p9.File. Every call runs under ctx; Close gives the fid back. As that
// interface has it, the file that Create returns is the receiver.
func AsFile(ctx context.Context, f *Fid) p9.File { return &file{ctx: ctx, fid: f} }

// file carries its context because the interface has no place for one.
type file struct {
	ctx context.Context
	fid *Fid
}

func (f *file) other(g p9.File) (*Fid, error) {
	if o, ok := g.(*file); ok {
		return o.fid, nil
	}
	return nil, linux.EXDEV
}

func (f *file) Walk(names []string) ([]p9.QID, p9.File, error) {
	g, qids, err := f.fid.Walk(f.ctx, names...)
	if err != nil {
		return nil, nil, err
	}
	return qids, AsFile(f.ctx, g), nil
}

func (f *file) WalkGetAttr(names []string) ([]p9.QID, p9.File, p9.AttrMask, p9.Attr, error) {
	qids, g, err := f.Walk(names)
	if err != nil {
		return nil, nil, p9.AttrMask{}, p9.Attr{}, err
	}
	_, valid, attr, err := g.GetAttr(p9.AttrMaskAll)
	if err != nil {
		g.Close() // the other error says more
		return nil, nil, p9.AttrMask{}, p9.Attr{}, err
	}
	return qids, g, valid, attr, nil
}

func (f *file) StatFS() (p9.FSStat, error) { return f.fid.StatFS(f.ctx) }

func (f *file) GetAttr(req p9.AttrMask) (p9.QID, p9.AttrMask, p9.Attr, error) {
	return f.fid.GetAttr(f.ctx, req)
}

func (f *file) SetAttr(valid p9.SetAttrMask, attr p9.SetAttr) error {
	return f.fid.SetAttr(f.ctx, valid, attr)
}

func (f *file) Close() error { return f.fid.Clunk(f.ctx) }

func (f *file) Open(mode p9.OpenFlags) (p9.QID, uint32, error) {
	qid, err := f.fid.Open(f.ctx, mode)
	return qid, uint32(f.fid.IOSize()), err
}

func (f *file) ReadAt(p []byte, off int64) (int, error)  { return f.fid.ReadAt(f.ctx, p, off) }
func (f *file) WriteAt(p []byte, off int64) (int, error) { return f.fid.WriteAt(f.ctx, p, off) }

func (f *file) SetXattr(attr string, data []byte, flags p9.XattrFlags) error {
	return f.fid.SetXattr(f.ctx, attr, data, flags)
}
func (f *file) GetXattr(attr string) ([]byte, error) { return f.fid.GetXattr(f.ctx, attr) }
func (f *file) ListXattrs() ([]string, error)        { return f.fid.ListXattrs(f.ctx) }
func (f *file) RemoveXattr(attr string) error        { return f.fid.RemoveXattr(f.ctx, attr) }

func (f *file) FSync() error { return f.fid.FSync(f.ctx, false) }

func (f *file) Lock(pid int, locktype p9.LockType, flags p9.LockFlags, start, length uint64, client string) (p9.LockStatus, error) {
	return f.fid.Lock(f.ctx, Lock{Type: locktype, Flags: flags, Start: start, Length: length, PID: uint32(pid), Client: client})
}

func (f *file) Create(name string, flags p9.OpenFlags, mode p9.FileMode, _ p9.UID, gid p9.GID) (p9.File, p9.QID, uint32, error) {
	qid, err := f.fid.Create(f.ctx, name, flags, mode, gid)
	if err != nil {
		return nil, p9.QID{}, 0, err
	}
	return f, qid, uint32(f.fid.IOSize()), nil
}

func (f *file) Mkdir(name string, mode p9.FileMode, _ p9.UID, gid p9.GID) (p9.QID, error) {
	return f.fid.Mkdir(f.ctx, name, mode, gid)
}

func (f *file) Symlink(oldName, newName string, _ p9.UID, gid p9.GID) (p9.QID, error) {
	return f.fid.Symlink(f.ctx, newName, oldName, gid)
}

func (f *file) Link(target p9.File, newName string) error {
	g, err := f.other(target)
	if err != nil {
		return err
	}
	return f.fid.Link(f.ctx, g, newName)
}

func (f *file) Mknod(name string, mode p9.FileMode, major, minor uint32, _ p9.UID, gid p9.GID) (p9.QID, error) {
	return f.fid.Mknod(f.ctx, Node{Name: name, Mode: mode, Major: major, Minor: minor, GID: gid})
}

func (f *file) Rename(newDir p9.File, newName string) error {
	g, err := f.other(newDir)
	if err != nil {
		return err
	}
	return f.fid.Rename(f.ctx, g, newName)
}

func (f *file) RenameAt(oldName string, newDir p9.File, newName string) error {
	g, err := f.other(newDir)
	if err != nil {
		return err
	}
	return f.fid.RenameAt(f.ctx, oldName, g, newName)
}

func (f *file) UnlinkAt(name string, flags uint32) error { return f.fid.UnlinkAt(f.ctx, name, flags) }

func (f *file) Readdir(offset uint64, count uint32) (p9.Dirents, error) {
	return f.fid.Readdir(f.ctx, offset, count)
}

func (f *file) Readlink() (string, error) { return f.fid.Readlink(f.ctx) }

// Renamed has no meaning on a client.
func (f *file) Renamed(p9.File, string) {}
