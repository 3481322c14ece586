package asuser

import (
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// User is somebody to be. It may be used by many goroutines at a time.
type User struct {
	uid, gid uint32
	groups   []uint32

	mu      sync.Mutex
	idle    []*thread
	closed  bool
	running sync.WaitGroup
}

// thread is a goroutine pinned to a thread that wears the ids.
type thread struct {
	jobs chan func()
	done chan struct{}
}

// maxIdle is how many threads wait for work; more than that many operations at
// once use threads of their own.
const maxIdle = 4

// New is a user with a primary group and supplementary groups. Close it.
func New(uid, gid uint32, groups []uint32) *User {
	return &User{uid: uid, gid: gid, groups: groups}
}

// Do runs f as the user, and waits for it. f must not change its thread's ids or
// start goroutines that count on them. The error is f's, or why the ids cannot
// be had.
func (u *User) Do(f func() error) error {
	t, err := u.take()
	if err != nil {
		return err
	}
	t.jobs <- func() { err = f() }
	<-t.done
	u.give(t)
	return err
}

func (u *User) take() (*thread, error) {
	u.mu.Lock()
	if n := len(u.idle); n > 0 {
		t := u.idle[n-1]
		u.idle = u.idle[:n-1]
		u.mu.Unlock()
		return t, nil
	}
	u.running.Add(1)
	u.mu.Unlock()
	t := &thread{jobs: make(chan func()), done: make(chan struct{})}
	worn := make(chan error)
	go func() {
		defer u.running.Done()
		// The thread ends with the goroutine: it is never unlocked.
		runtime.LockOSThread()
		err := u.wear()
		worn <- err
		if err != nil {
			return
		}
		for f := range t.jobs {
			f()
			t.done <- struct{}{}
		}
	}()
	if err := <-worn; err != nil {
		return nil, err
	}
	return t, nil
}

func (u *User) give(t *thread) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed || len(u.idle) >= maxIdle {
		close(t.jobs)
		return
	}
	u.idle = append(u.idle, t)
}

// Close ends the threads, those at work as soon as they are done. Do may still
// be called, at a thread's price each time.
func (u *User) Close() {
	u.mu.Lock()
	u.closed = true
	for _, t := range u.idle {
		close(t.jobs)
	}
	u.idle = nil
	u.mu.Unlock()
	u.running.Wait()
}

// wear gives the calling thread, and only it, the ids that a file access counts,
// and takes all its capabilities: changing the file-system uid takes those that
// override file permissions and leaves others, CAP_SYS_ADMIN among them
// (capabilities(7), "Effect of user ID changes").
func (u *User) wear() error {
	var p unsafe.Pointer
	if len(u.groups) > 0 {
		p = unsafe.Pointer(&u.groups[0])
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(u.groups)), uintptr(p), 0); e != 0 {
		return e
	}
	// Both return the old id and no error; a second call tells.
	unix.RawSyscall(unix.SYS_SETFSGID, uintptr(u.gid), 0, 0)
	if g, _, _ := unix.RawSyscall(unix.SYS_SETFSGID, ^uintptr(0), 0, 0); uint32(g) != u.gid {
		return syscall.EPERM
	}
	unix.RawSyscall(unix.SYS_SETFSUID, uintptr(u.uid), 0, 0)
	if n, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, ^uintptr(0), 0, 0); uint32(n) != u.uid {
		return syscall.EPERM
	}
	if u.uid == 0 {
		return nil
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if _, _, e := unix.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&none[0])), 0); e != 0 {
		return e
	}
	return nil
}
