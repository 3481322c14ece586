package tree

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawName is a name as the kernel takes it: the calls that every operation makes
// allocate nothing.
type rawName [unix.NAME_MAX + 1]byte

// set takes a name of one component; longer ones, and those with a zero, are not for it.
func (r *rawName) set(name string) error {
	if len(name) >= len(r) {
		return syscall.ENAMETOOLONG
	}
	n := copy(r[:], name)
	r[n] = 0
	return nil
}

// statAt is statx(2) of a name in a folder, or with an empty name of dirfd
// itself, for all that the tree wants to know. Links are not followed.
func statAt(dirfd int, name string, st *unix.Statx_t) error {
	var n rawName
	if err := n.set(name); err != nil {
		return err
	}
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	_, _, e := unix.Syscall6(unix.SYS_STATX, uintptr(dirfd), uintptr(unsafe.Pointer(&n)), uintptr(flags), statxMask, uintptr(unsafe.Pointer(st)), 0)
	if e != 0 {
		return e
	}
	return nil
}

// maxHandle is MAX_HANDLE_SZ of linux/exportfs.h.
const maxHandle = 128

// rawHandle is struct file_handle of name_to_handle_at(2), with room for the
// largest.
type rawHandle struct {
	len uint32
	typ uint32
	b   [maxHandle]byte
}

func (h *rawHandle) at(dirfd int, name string) error {
	var n rawName
	if err := n.set(name); err != nil {
		return err
	}
	flags := 0
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	err := h.ask(dirfd, &n, flags)
	if err == unix.EOPNOTSUPP {
		// overlayfs and others give handles that identify and cannot be opened.
		err = h.ask(dirfd, &n, flags|atHandleFID)
	}
	if err != 0 {
		return err
	}
	return nil
}

func (h *rawHandle) ask(dirfd int, n *rawName, flags int) syscall.Errno {
	var mount int32
	h.len = maxHandle
	_, _, e := unix.Syscall6(unix.SYS_NAME_TO_HANDLE_AT, uintptr(dirfd), uintptr(unsafe.Pointer(n)), uintptr(unsafe.Pointer(h)),
		uintptr(unsafe.Pointer(&mount)), uintptr(flags), 0)
	return e
}

// bytes are the handle as the tree keeps it; see HandleAt.
func (h *rawHandle) bytes() []byte { return handleOf(h.typ, h.b[:h.len]) }

// is reports whether h is the handle with these bytes.
func (h *rawHandle) is(b []byte) bool {
	typ, raw := splitHandle(b)
	return typ == h.typ && string(raw) == string(h.b[:h.len])
}

// fchmod is chmod(2) of what an O_PATH descriptor holds: fchmodat2(2) where the
// kernel has it (6.6), else through the descriptor's path.
func fchmod(p place, mode uint32) error {
	var none [1]byte
	_, _, e := unix.Syscall6(unix.SYS_FCHMODAT2, uintptr(p.fd), uintptr(unsafe.Pointer(&none)), uintptr(mode), unix.AT_EMPTY_PATH, 0, 0)
	switch e {
	case 0:
		return nil
	case unix.ENOSYS, unix.EINVAL:
		return unix.Chmod(p.path(), mode)
	}
	return e
}
