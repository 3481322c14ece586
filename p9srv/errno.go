package p9srv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/hugelgupf/p9/linux"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// errno maps an error of a File to what goes on the wire. known is false for
// one that says nothing a client could use: it is EIO then, and for a log.
func errno(err error) (no syscall.Errno, known bool) {
	var sys syscall.Errno
	if errors.As(err, &sys) && sys != 0 {
		return sys, true
	}
	var lin linux.Errno
	if errors.As(err, &lin) && lin != 0 {
		return syscall.Errno(lin), true
	}
	for _, m := range [...]struct {
		err error
		no  syscall.Errno
	}{
		{fs.ErrNotExist, syscall.ENOENT},
		{fs.ErrExist, syscall.EEXIST},
		{fs.ErrPermission, syscall.EACCES},
		{fs.ErrInvalid, syscall.EINVAL},
		{fs.ErrClosed, syscall.EBADF},
		{context.Canceled, syscall.EINTR},
		{context.DeadlineExceeded, syscall.ETIMEDOUT},
		{os.ErrDeadlineExceeded, syscall.ETIMEDOUT},
		{ErrWouldBlock, syscall.EAGAIN},
		{errors.ErrUnsupported, syscall.EOPNOTSUPP},
		{wire.ErrMessage, syscall.EINVAL},
		{io.EOF, syscall.EIO},
		{io.ErrUnexpectedEOF, syscall.EIO},
	} {
		if errors.Is(err, m.err) {
			return m.no, true
		}
	}
	return syscall.EIO, false
}

// panicError is a panic in a File, with the stack it left.
type panicError struct {
	value any
	stack []byte
}

func (p *panicError) Error() string { return fmt.Sprintf("panic: %v", p.value) }
