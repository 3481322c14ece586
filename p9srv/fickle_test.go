package p9srv_test

import (
	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/p9srv"
)

// memfickle promises not to block and does nothing until it is bound, which
// makes it a memconc.
type memfickle struct{ *memconc }

func (memfickle) WalkNames(q []p9.QID, _ []string) ([]p9.QID, p9.File, error) {
	return q, nil, p9srv.ErrWouldBlock
}

func (memfickle) GetAttr(p9.AttrMask) (p9.QID, p9.AttrMask, p9.Attr, error) {
	return p9.QID{}, p9.AttrMask{}, p9.Attr{}, p9srv.ErrWouldBlock
}

func (memfickle) Open(p9.OpenFlags) (p9.QID, uint32, error) {
	return p9.QID{}, 0, p9srv.ErrWouldBlock
}

func (memfickle) Create(string, p9.OpenFlags, p9.FileMode, p9.UID, p9.GID) (p9.File, p9.QID, uint32, error) {
	return nil, p9.QID{}, 0, p9srv.ErrWouldBlock
}

func (memfickle) Mkdir(string, p9.FileMode, p9.UID, p9.GID) (p9.QID, error) {
	return p9.QID{}, p9srv.ErrWouldBlock
}

func (memfickle) Symlink(string, string, p9.UID, p9.GID) (p9.QID, error) {
	return p9.QID{}, p9srv.ErrWouldBlock
}

func (memfickle) Mknod(string, p9.FileMode, uint32, uint32, p9.UID, p9.GID) (p9.QID, error) {
	return p9.QID{}, p9srv.ErrWouldBlock
}

func (memfickle) ReadAt([]byte, int64) (int, error)        { return 0, p9srv.ErrWouldBlock }
func (memfickle) WriteAt([]byte, int64) (int, error)       { return 0, p9srv.ErrWouldBlock }
func (memfickle) SetAttr(p9.SetAttrMask, p9.SetAttr) error { return p9srv.ErrWouldBlock }
func (memfickle) Link(p9.File, string) error               { return p9srv.ErrWouldBlock }
func (memfickle) Rename(p9.File, string) error             { return p9srv.ErrWouldBlock }
func (memfickle) RenameAt(string, p9.File, string) error   { return p9srv.ErrWouldBlock }
func (memfickle) UnlinkAt(string, uint32) error            { return p9srv.ErrWouldBlock }
func (memfickle) Readlink() (string, error)                { return "", p9srv.ErrWouldBlock }
func (memfickle) GetXattr(string) ([]byte, error)          { return nil, p9srv.ErrWouldBlock }
func (memfickle) ListXattrs() ([]string, error)            { return nil, p9srv.ErrWouldBlock }
func (memfickle) StatFS() (p9.FSStat, error)               { return p9.FSStat{}, p9srv.ErrWouldBlock }
