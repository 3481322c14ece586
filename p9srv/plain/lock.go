package plain

import (
	"context"
	"errors"
	"math"
	"syscall"
	"time"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv"
)

// Lock takes or gives up a lock; see LockContext.
func (f *File) Lock(pid int, t p9.LockType, flags p9.LockFlags, start, length uint64, client string) (p9.LockStatus, error) {
	return f.LockContext(f.ctx, p9srv.Lock{Type: t, Flags: flags, Start: start, Length: length, PID: uint32(pid), Client: client})
}

// LockContext takes, changes or gives up a byte-range lock. It belongs to the
// fid, as locks of open file descriptions do (F_OFD_SETLK of fcntl(2)), and goes
// with it; programs on the server's host respect it and are respected.
func (f *File) LockContext(ctx context.Context, l p9srv.Lock) (p9.LockStatus, error) {
	lk, err := f.flock(l)
	if err != nil {
		return p9.LockStatusError, err
	}
	for wait := time.Millisecond; ; wait = min(2*wait, maxWait) {
		try := lk
		err := unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_SETLK, &try)
		switch {
		case err == nil:
			return p9.LockStatusOK, nil
		case errors.Is(err, syscall.EINTR):
			continue
		case !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EACCES):
			return p9.LockStatusError, err
		case l.Flags&p9.LockFlagsBlock == 0 || ctx == nil:
			return p9.LockStatusBlocked, nil
		}
		if err := pause(ctx, wait); err != nil {
			return p9.LockStatusError, err
		}
	}
}

// GetLock tells the lock that is in l's way, or l as unlocked.
func (f *File) GetLock(_ context.Context, l p9srv.Lock) (p9srv.Lock, error) {
	lk, err := f.flock(l)
	if err != nil {
		return l, err
	}
	if err := unix.FcntlFlock(uintptr(f.fd), unix.F_OFD_GETLK, &lk); err != nil {
		return l, err
	}
	switch lk.Type {
	case unix.F_UNLCK:
		l.Type = p9.Unlock
		return l, nil
	case unix.F_WRLCK:
		return p9srv.Lock{Type: p9.WriteLock, Start: uint64(lk.Start), Length: uint64(lk.Len), PID: uint32(max(lk.Pid, 0))}, nil
	}
	return p9srv.Lock{Type: p9.ReadLock, Start: uint64(lk.Start), Length: uint64(lk.Len), PID: uint32(max(lk.Pid, 0))}, nil
}

func (f *File) flock(l p9srv.Lock) (unix.Flock_t, error) {
	lk := unix.Flock_t{Start: int64(l.Start), Len: int64(l.Length)}
	switch l.Type {
	case p9.ReadLock:
		lk.Type = unix.F_RDLCK
	case p9.WriteLock:
		lk.Type = unix.F_WRLCK
	case p9.Unlock:
		lk.Type = unix.F_UNLCK
	default:
		return lk, syscall.EINVAL
	}
	switch {
	case f.fd < 0:
		return lk, syscall.EBADF
	case l.Start > math.MaxInt64 || l.Length > math.MaxInt64 || l.Start+l.Length > math.MaxInt64:
		return lk, syscall.EINVAL
	}
	return lk, nil
}
