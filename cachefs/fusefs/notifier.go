package fusefs

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// notifier writes notifications to the kernel, which may wait for a lock that a
// request in flight has. No signal ends that, only the answer does; and when the
// process is killed, the kernel answers for it once the descriptor closes through
// which it read the request. That would be when the last thread with that
// descriptor has ended: hence the threads that write notifications have a table of
// descriptors of their own, with one of the connection's that reads no requests
// (FUSE_DEV_IOC_CLONE).
type notifier struct {
	dev  int   // the connection
	keep []int // descriptors of a thread's own table, ascending
	jobs chan notification
	stop chan struct{}

	mu      sync.Mutex
	closed  bool
	threads int
	wg      sync.WaitGroup
}

// notification is a message on its way, and where its result goes.
type notification struct {
	msg  []byte
	done chan<- error
}

// Codes of notifications and the size of a message's header (fuse(4), Linux's
// include/uapi/linux/fuse.h).
const (
	notifyInode = 2
	notifyEntry = 3
	notifyEpoch = 8
	notifyHead  = 16
)

func newNotifier(dev int) (*notifier, error) {
	// Go's runtime makes its poller for the first descriptor that wants one: it has
	// to be there for the threads to inherit it.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	r.Close()
	w.Close()
	x := &notifier{dev: dev, jobs: make(chan notification), stop: make(chan struct{})}
	if keep, err := pollers(); err == nil && len(keep) > 0 { // else the table is shared
		x.keep = append(keep, dev)
		slices.Sort(x.keep)
	}
	return x, nil
}

// close ends the threads. The connection is gone by then: none waits in the kernel.
func (x *notifier) close() {
	x.mu.Lock()
	if !x.closed {
		x.closed = true
		close(x.stop)
	}
	x.mu.Unlock()
	x.wg.Wait()
}

// send has a thread write a message, and waits for that. ENOTCONN after close.
func (x *notifier) send(msg []byte) error {
	done := make(chan error, 1)
	n := notification{msg, done}
	select {
	case x.jobs <- n: // one is idle
		return <-done
	default:
	}
	x.mu.Lock()
	if x.closed {
		x.mu.Unlock()
		return unix.ENOTCONN
	}
	if x.threads < maxWorkers {
		x.threads++
		x.wg.Add(1)
		go x.thread()
	}
	x.mu.Unlock()
	select {
	case x.jobs <- n:
		return <-done
	case <-x.stop:
		return unix.ENOTCONN
	}
}

// thread is a thread of the notifier's. It is never unlocked, so that the runtime
// gives the thread up with the goroutine and starts no other from it.
func (x *notifier) thread() {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// /proc/self is this thread's. While this goroutine holds it, another one
		// gets another thread.
		started := make(chan struct{})
		go func() {
			close(started)
			x.thread()
		}()
		<-started
		runtime.UnlockOSThread()
		return
	}
	defer x.wg.Done()
	fd, err := x.ownTable()
	if err == nil {
		defer unix.Close(fd)
	} else {
		// What is shared with the others does the same, but for a kill at the wrong
		// moment.
		fd = x.dev
	}
	for {
		select {
		case n := <-x.jobs:
			_, err := unix.Write(fd, n.msg)
			n.done <- err
		case <-x.stop:
			return
		}
	}
}

// ownTable gives this thread a table of descriptors with nothing in it but another
// descriptor of the connection, which it returns, and what Go's runtime polls with
// from any thread. When it fails, the table is the process's, or of no harm.
func (x *notifier) ownTable() (int, error) {
	if len(x.keep) == 0 {
		return -1, os.ErrNotExist
	}
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return -1, fmt.Errorf("unshare: %w", err)
	}
	// At once: until then what others close stays open here.
	next := 0
	for _, fd := range x.keep {
		if fd > next {
			_ = unix.CloseRange(uint(next), uint(fd-1), 0)
		}
		next = fd + 1
	}
	_ = unix.CloseRange(uint(next), math.MaxUint32, 0)
	fd, err := cloneDev(x.dev)
	if err == nil {
		_ = unix.Close(x.dev)
	}
	return fd, err
}

// cloneDev is a descriptor of the connection dev that has read no request.
func cloneDev(dev int) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/fuse: %w", err)
	}
	const clone = 0x8004e500 // FUSE_DEV_IOC_CLONE
	of := uint32(dev)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), clone, uintptr(unsafe.Pointer(&of))); errno != 0 {
		unix.Close(fd)
		return -1, fmt.Errorf("/dev/fuse: clone: %w", errno)
	}
	return fd, nil
}

// pollers are the descriptors that Go's runtime polls with.
func pollers() ([]int, error) {
	const dir = "/proc/self/fd"
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, e := range list {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		switch what, _ := os.Readlink(dir + "/" + e.Name()); what {
		case "anon_inode:[eventpoll]", "anon_inode:[eventfd]":
			fds = append(fds, fd)
		}
	}
	return fds, nil
}

// message is a notification with a body of n bytes.
func message(code uint32, n int) (msg, body []byte) {
	msg = make([]byte, notifyHead+n)
	binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
	binary.NativeEndian.PutUint32(msg[4:], code) // unique, the next 8 bytes, is 0
	return msg, msg[notifyHead:]
}

// inode has the kernel drop the attributes and ACLs of a node, and its pages
// unless off is negative.
func (x *notifier) inode(id uint64, off int64) error {
	msg, b := message(notifyInode, 24)
	binary.NativeEndian.PutUint64(b, id)
	binary.NativeEndian.PutUint64(b[8:], uint64(off)) // a length of 0 is all that follows
	return x.send(msg)
}

// entry has it drop what it knows of a name in a folder.
func (x *notifier) entry(parent uint64, name string) error {
	msg, b := message(notifyEntry, 16+len(name)+1)
	binary.NativeEndian.PutUint64(b, parent)
	binary.NativeEndian.PutUint32(b[8:], uint32(len(name)))
	copy(b[16:], name)
	return x.send(msg)
}

// expire makes all it knows of names expire (since Linux 6.16). It touches no lock
// of a folder.
func (x *notifier) expire() error {
	msg, _ := message(notifyEpoch, 0)
	return x.send(msg)
}
