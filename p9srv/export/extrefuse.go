package export

import (
	"context"
	"syscall"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/p9srv"
)

// Lock is refused: nothing here is anybody's to lock.
func (x *extFile) Lock(int, p9.LockType, p9.LockFlags, uint64, uint64, string) (p9.LockStatus, error) {
	return p9.LockStatusError, syscall.EOPNOTSUPP
}

// GetLock is refused as Lock is.
func (x *extFile) GetLock(context.Context, p9srv.Lock) (p9srv.Lock, error) {
	return p9srv.Lock{}, syscall.EOPNOTSUPP
}

// The rest of p9.File: these files have no attributes of their own, and names
// are not made here.

// GetXattr has none.
func (x *extFile) GetXattr(string) ([]byte, error) { return nil, syscall.ENODATA }

// ListXattrs lists none.
func (x *extFile) ListXattrs() ([]string, error) { return nil, nil }

// SetXattr is refused.
func (x *extFile) SetXattr(string, []byte, p9.XattrFlags) error { return syscall.EPERM }

// RemoveXattr is refused.
func (x *extFile) RemoveXattr(string) error { return syscall.EPERM }

// Mkdir is refused.
func (x *extFile) Mkdir(string, p9.FileMode, p9.UID, p9.GID) (p9.QID, error) {
	return p9.QID{}, syscall.EPERM
}

// Symlink is refused.
func (x *extFile) Symlink(string, string, p9.UID, p9.GID) (p9.QID, error) {
	return p9.QID{}, syscall.EPERM
}

// Link is refused.
func (x *extFile) Link(p9.File, string) error { return syscall.EPERM }

// Mknod is refused.
func (x *extFile) Mknod(string, p9.FileMode, uint32, uint32, p9.UID, p9.GID) (p9.QID, error) {
	return p9.QID{}, syscall.EPERM
}

// Rename is refused.
func (x *extFile) Rename(p9.File, string) error { return syscall.EPERM }

// RenameAt is refused.
func (x *extFile) RenameAt(string, p9.File, string) error { return syscall.EPERM }

// Readlink is refused: there are no links.
func (x *extFile) Readlink() (string, error) { return "", syscall.EINVAL }

// Renamed is never called: nothing here is.
func (x *extFile) Renamed(p9.File, string) {}
