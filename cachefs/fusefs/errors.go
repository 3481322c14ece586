package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Why a mount cannot be made. They come wrapped, with the mount point first.
var (
	ErrNoDevice = errors.New("no /dev/fuse: load the kernel module (modprobe fuse), or give the container the device")
	ErrNoHelper = errors.New("fusermount3 is not installed: install the package fuse3, or mount as root")
	ErrMounted  = errors.New("something is mounted there already: unmount it first (fusermount3 -u -z, if its server is gone), or mount elsewhere")
	ErrNotEmpty = errors.New("the folder is not empty: mount on an empty one")
	ErrNotDir   = errors.New("not a folder")
	ErrHelper   = errors.New("fusermount3 refused")
)

// BusyError is what Close returns when the mount was in use: it is detached
// (nobody can enter it any more) and its connection ended, so that what was
// still open answers ENOTCONN. The Server is closed all the same.
type BusyError struct {
	Path string
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("%s: was in use: detached lazily, programs in it lost their open files", e.Path)
}

// status is the one map from an error to what the kernel is told. Errors that
// are no errno are EIO and one line in the log.
func (r *raw) status(op string, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var no syscall.Errno
	switch {
	case errors.As(err, &no):
		if no == syscall.ENOSYS {
			// To the kernel ENOSYS means "never ask again".
			return fuse.Status(syscall.EOPNOTSUPP)
		}
		return fuse.Status(no)
	case errors.Is(err, context.Canceled):
		return fuse.EINTR
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return fuse.Status(syscall.ETIMEDOUT)
	case errors.Is(err, fs.ErrNotExist):
		return fuse.ENOENT
	case errors.Is(err, fs.ErrPermission):
		return fuse.EACCES
	}
	r.log.Error("operation ended with an error that is no errno", slog.String("op", op), slog.Any("err", err))
	return fuse.EIO
}
