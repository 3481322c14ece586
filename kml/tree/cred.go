package tree

import (
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// asProcess reports whether a call for c runs with the process's own ids.
func (c *Cred) asProcess() bool {
	return c == nil || c.Checked || c.UID == 0 || os.Geteuid() != 0
}

// owner is who owns what c makes. ok is false where the system call has set
// the owner already.
func (c *Cred) owner() (uid, gid uint32, ok bool) {
	if c == nil || !c.asProcess() || os.Geteuid() != 0 {
		return 0, 0, false
	}
	return c.UID, c.GID, true
}

// processCred is the process as an author.
func processCred() Cred {
	var c *Cred
	uid, gid := c.author()
	return Cred{UID: uid, GID: gid}
}

// author is who a record of c's names. The process asks the kernel for its own
// ids once: every change names its author.
func (t *Tree) author(c *Cred) (uid, gid uint32) {
	if c == nil {
		c = &t.self
	}
	return c.author()
}

// author is who a record names.
func (c *Cred) author() (uid, gid uint32) {
	if c == nil {
		return uint32(os.Geteuid()), uint32(os.Getegid())
	}
	return c.UID, c.GID
}

// as runs f with the file-system ids and groups of c and without capabilities,
// so that the kernel's own rules decide. Setting the file-system uid away from 0
// takes those that override file permissions (capabilities(7), "Effect of user ID
// changes") and leaves others, which would let anybody give a program
// capabilities (CAP_SETFCAP) and set trusted attributes (CAP_SYS_ADMIN).
//
// The calling goroutine keeps its thread meanwhile, which wears the ids: that
// costs a few system calls and no hand-over. The runtime starts no thread from
// one that is locked, so nothing inherits them. f must not start goroutines that
// count on them. Taking the ids off cannot fail for who could put them on; if it
// did, the goroutine would go on with less than it had, on a thread of its own
// that dies with it.
func (c *Cred) as(f func() error) error {
	if c.asProcess() {
		return f()
	}
	runtime.LockOSThread()
	had, err := takeCaps(nil)
	if err == nil {
		err = wear(c.UID, c.GID, c.Groups)
	}
	if err == nil {
		_, err = takeCaps(&caps{})
	}
	defer func() {
		_, e := takeCaps(&had)
		if e == nil {
			e = wear(0, uint32(os.Getegid()), nil)
		}
		if e == nil {
			runtime.UnlockOSThread()
		}
	}()
	if err != nil {
		return err
	}
	return f()
}

// caps are the capabilities that count for a thread.
type caps [2]uint32

// takeCaps makes want the calling thread's effective capabilities, of those it
// is permitted (capset(2)), and answers what they were; nil changes nothing.
func takeCaps(want *caps) (had caps, err error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if _, _, e := unix.RawSyscall(unix.SYS_CAPGET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0); e != 0 {
		return had, e
	}
	for i := range data {
		had[i] = data[i].Effective
		if want != nil {
			data[i].Effective = want[i]
		}
	}
	if want == nil {
		return had, nil
	}
	if _, _, e := unix.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0); e != 0 {
		return had, e
	}
	return had, nil
}

// wear gives the calling thread, and only it, the ids a file access counts.
func wear(uid, gid uint32, groups []uint32) error {
	var p unsafe.Pointer
	if len(groups) > 0 {
		p = unsafe.Pointer(&groups[0])
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(p), 0); e != 0 {
		return e
	}
	// setfsgid and setfsuid return the old id and no error; a second call tells.
	unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
	if g, _, _ := unix.RawSyscall(unix.SYS_SETFSGID, ^uintptr(0), 0, 0); uint32(g) != gid {
		return syscall.EPERM
	}
	unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
	if u, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, ^uintptr(0), 0, 0); uint32(u) != uid {
		return syscall.EPERM
	}
	return nil
}

// Author is whom a record of c's names.
func (c *Cred) Author() (uid, gid uint32) { return c.author() }

// May checks by owner, group and mode whether c has the rights (unix.R_OK, W_OK,
// X_OK) on o, where no kernel has checked. Access lists are not looked at.
func (c *Cred) May(o *Object, rights uint32) error { return c.may(o, rights) }
