package tree

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
)

// lease takes a lease for reading on the file behind p: who opens it for writing
// meanwhile waits until fd is closed. errWritten when somebody has it open for
// writing, or mapped so, which size and times do not tell (F_SETLEASE in
// fcntl(2)). fd is -1 where the kernel gives no leases, or none to us.
func (p place) lease() (fd int, err error) {
	fd, err = unix.Open(p.path(), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, nil
	}
	if _, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK); err == nil {
		return fd, nil
	}
	unix.Close(fd)
	if err == unix.EAGAIN {
		return -1, errWritten
	}
	return -1, nil
}

// awaited reports whether somebody waits for a lease to open the file for writing.
func awaited(fd int) bool {
	if fd < 0 {
		return false
	}
	now, err := unix.FcntlInt(uintptr(fd), unix.F_GETLEASE, 0)
	return err == nil && now != unix.F_RDLCK
}

// errWritten answers for a file that another program has open for writing: what
// it writes would go to contents that are no longer there.
var errWritten = fmt.Errorf("another program is writing to it: %w", syscall.ETXTBSY)

// exchangeIn puts the file at from in the place of one that was seen to have this
// size and time, and removes that. Whoever writes to it is not overtaken: it is
// looked at once more when it is out of everybody's reach, and goes back if it is
// not as it was. ours says that this process itself has it open for writing.
func (k target) exchangeIn(from string, seen *unix.Statx_t, ours bool) error {
	lease := -1
	if !ours {
		var err error
		if lease, err = k.place().lease(); err != nil {
			return err
		}
		if lease >= 0 {
			defer unix.Close(lease)
		}
	}
	if err := k.still(seen); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, k.dir.fd, k.name, unix.RENAME_EXCHANGE)
	if err == unix.EINVAL { // the file system cannot
		return unix.Renameat(unix.AT_FDCWD, from, k.dir.fd, k.name)
	}
	if err != nil {
		return err
	}
	fault.Point("tree.exchanged")
	if err = k.still(seen); err == nil && awaited(lease) {
		err = errWritten
	}
	if err == nil {
		return unix.Unlink(from)
	}
	// It goes back to where it was, with what was written.
	if e := unix.Renameat2(unix.AT_FDCWD, from, k.dir.fd, k.name, unix.RENAME_EXCHANGE); e != nil {
		return e
	}
	return err
}

// still reports errMismatch when what k holds is not as it was seen.
func (k target) still(seen *unix.Statx_t) error {
	var st unix.Statx_t
	if err := statAt(k.fd, "", &st); err != nil {
		return err
	}
	if st.Size != seen.Size || nsOf(st.Mtime) != nsOf(seen.Mtime) {
		return errMismatch
	}
	return nil
}
