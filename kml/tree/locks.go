package tree

import (
	"context"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// lockTable holds the advisory locks of every user of a tree: byte ranges
// (fcntl(2)) and whole files (flock(2)), in spaces of their own. It may be used
// by many goroutines.
type lockTable struct {
	mu    sync.Mutex
	files map[kml.OID]*fileLocks
	// waits is who waits for whom, to find circles.
	waits map[LockOwner]LockOwner
}

type fileLocks struct {
	held    []Lock // no two of one owner and space overlap
	changed chan struct{}
	waiters int
}

func newLockTable() *lockTable {
	return &lockTable{files: make(map[kml.OID]*fileLocks), waits: make(map[LockOwner]LockOwner)}
}

// SetLock is FS.SetLock. A wait that would close a circle of waiting owners is
// EDEADLK.
func (t *lockTable) SetLock(ctx context.Context, oid kml.OID, l Lock, wait bool) error {
	if l.Type != unix.F_RDLCK && l.Type != unix.F_WRLCK && l.Type != unix.F_UNLCK || l.End < l.Start {
		return syscall.EINVAL
	}
	if l.Flock {
		l.Start, l.End = 0, ^uint64(0)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[oid]
	if f == nil {
		f = &fileLocks{changed: make(chan struct{})}
		t.files[oid] = f
	}
	defer t.drop(oid, f)
	for {
		in, ok := f.conflict(l)
		if !ok {
			f.set(l)
			return nil
		}
		if !wait {
			return syscall.EAGAIN
		}
		if !l.Flock && t.circle(l.Owner, in.Owner) {
			return syscall.EDEADLK
		}
		if err := t.sleep(ctx, f, l.Owner, in.Owner); err != nil {
			return err
		}
	}
}

// sleep waits until f changes. The caller holds mu, and holds it again after.
func (t *lockTable) sleep(ctx context.Context, f *fileLocks, me, other LockOwner) error {
	ch := f.changed
	f.waiters++
	t.waits[me] = other
	t.mu.Unlock()
	var err error
	select {
	case <-ch:
	case <-ctx.Done():
		err = syscall.EINTR
	}
	t.mu.Lock()
	delete(t.waits, me)
	f.waiters--
	return err
}

// circle reports whether holder waits, through others, for me.
func (t *lockTable) circle(me, holder LockOwner) bool {
	for range len(t.waits) + 1 {
		if holder == me {
			return true
		}
		next, ok := t.waits[holder]
		if !ok {
			return false
		}
		holder = next
	}
	return false
}

func (t *lockTable) drop(oid kml.OID, f *fileLocks) {
	if len(f.held) == 0 && f.waiters == 0 {
		delete(t.files, oid)
	}
}

// conflict is the first lock of another owner that l cannot share.
func (f *fileLocks) conflict(l Lock) (Lock, bool) {
	if l.Type == unix.F_UNLCK {
		return Lock{}, false
	}
	for _, h := range f.held {
		if h.Flock == l.Flock && h.Owner != l.Owner && h.Start <= l.End && l.Start <= h.End &&
			(h.Type == unix.F_WRLCK || l.Type == unix.F_WRLCK) {
			return h, true
		}
	}
	return Lock{}, false
}

// set replaces what the owner has in l's range by l.
func (f *fileLocks) set(l Lock) {
	var out []Lock
	for _, h := range f.held {
		if h.Flock != l.Flock || h.Owner != l.Owner || h.End < l.Start || l.End < h.Start {
			out = append(out, h)
			continue
		}
		if h.Start < l.Start {
			left := h
			left.End = l.Start - 1
			out = append(out, left)
		}
		if h.End > l.End {
			right := h
			right.Start = l.End + 1
			out = append(out, right)
		}
	}
	if l.Type != unix.F_UNLCK {
		out = append(out, l)
	}
	f.held = join(out, l)
	f.signal()
}

// join makes touching ranges of l's owner and kind one, so that a file locked
// byte by byte costs one entry.
func join(ls []Lock, l Lock) []Lock {
	slices.SortFunc(ls, func(a, b Lock) int {
		switch {
		case a.Start < b.Start:
			return -1
		case a.Start > b.Start:
			return 1
		}
		return 0
	})
	var out []Lock
	last := -1 // index in out of the last lock of l's owner and space
	for _, h := range ls {
		mine := h.Owner == l.Owner && h.Flock == l.Flock
		if mine && last >= 0 && out[last].Type == h.Type && out[last].End != ^uint64(0) && out[last].End+1 == h.Start {
			out[last].End = h.End
			continue
		}
		out = append(out, h)
		if mine {
			last = len(out) - 1
		}
	}
	return out
}

func (f *fileLocks) signal() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// TestLock is FS.TestLock.
func (t *lockTable) TestLock(_ context.Context, oid kml.OID, l Lock) (Lock, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.files[oid]; f != nil {
		if in, ok := f.conflict(l); ok {
			return in, nil
		}
	}
	l.Type = unix.F_UNLCK
	return l, nil
}

// Unlock is FS.Unlock.
func (t *lockTable) Unlock(oid kml.OID, o LockOwner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, f := range t.files {
		if oid != 0 && id != oid {
			continue
		}
		n := len(f.held)
		f.held = slices.DeleteFunc(f.held, func(l Lock) bool { return l.Owner == o })
		if len(f.held) != n {
			f.signal()
		}
		t.drop(id, f)
	}
}
