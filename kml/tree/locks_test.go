package tree

import (
	"context"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
)

func contextWithCancel() (context.Context, context.CancelFunc) { return context.WithCancel(ctx) }

func lk(owner uint64, typ int16, start, end uint64) Lock {
	return Lock{Type: typ, Start: start, End: end, Owner: LockOwner{Owner: owner}}
}

func TestLockRanges(t *testing.T) {
	lt := newLockTable()
	for i, step := range []struct {
		l    Lock
		want error
	}{
		{lk(1, unix.F_WRLCK, 0, 99), nil},
		{lk(2, unix.F_RDLCK, 99, 99), syscall.EAGAIN},
		{lk(2, unix.F_RDLCK, 100, 199), nil},
		{lk(1, unix.F_RDLCK, 100, 150), nil},
		{lk(1, unix.F_WRLCK, 100, 150), syscall.EAGAIN},
		{lk(1, unix.F_UNLCK, 10, 19), nil},
		{lk(2, unix.F_WRLCK, 10, 19), nil},
		{lk(2, unix.F_WRLCK, 9, 9), syscall.EAGAIN},
		{lk(1, unix.F_RDLCK, 0, 9), nil},
		{lk(2, unix.F_RDLCK, 9, 9), nil},
		{lk(3, 77, 0, 1), syscall.EINVAL},
		{lk(3, unix.F_RDLCK, 2, 1), syscall.EINVAL},
	} {
		err := lt.SetLock(ctx, 1, step.l, false)
		if err != step.want {
			t.Fatalf("step %d: %+v: %v, want %v", i, step.l, err, step.want)
		}
	}
	in, _ := lt.TestLock(ctx, 1, lk(3, unix.F_WRLCK, 15, 15))
	if in.Owner.Owner != 2 || in.Start != 10 || in.End != 19 {
		t.Errorf("in the way is %+v", in)
	}
	f := lk(3, unix.F_WRLCK, 0, 0)
	f.Flock = true
	ok(t, lt.SetLock(ctx, 1, f, false)) // another space
	for o := uint64(1); o <= 3; o++ {
		lt.Unlock(0, LockOwner{Owner: o})
	}
	if len(lt.files) != 0 {
		t.Errorf("left behind: %v", lt.files)
	}
}

func TestLocksByteByByteJoin(t *testing.T) {
	lt := newLockTable()
	for i := range uint64(1000) {
		ok(t, lt.SetLock(ctx, 1, lk(1, unix.F_WRLCK, i, i), false))
	}
	if n := len(lt.files[1].held); n != 1 {
		t.Errorf("%d entries", n)
	}
}

func TestLockWaits(t *testing.T) {
	testutil.CheckLeaks(t)
	lt := newLockTable()
	ok(t, lt.SetLock(ctx, 1, lk(1, unix.F_WRLCK, 0, 9), false))
	got := make(chan error)
	go func() { got <- lt.SetLock(ctx, 1, lk(2, unix.F_WRLCK, 5, 5), true) }()
	waiting := func() bool {
		lt.mu.Lock()
		defer lt.mu.Unlock()
		return len(lt.waits) > 0
	}
	for !waiting() {
		select {
		case err := <-got:
			t.Fatalf("did not wait: %v", err)
		default:
		}
	}
	ok(t, lt.SetLock(ctx, 2, lk(2, unix.F_WRLCK, 0, 0), false))
	if err := lt.SetLock(ctx, 2, lk(1, unix.F_WRLCK, 0, 0), true); err != syscall.EDEADLK {
		t.Errorf("a circle: %v", err)
	}
	lt.Unlock(1, LockOwner{Owner: 1})
	ok(t, <-got)
	done, cancel := contextWithCancel()
	go func() { got <- lt.SetLock(done, 1, lk(1, unix.F_RDLCK, 5, 5), true) }()
	for !waiting() {
		select {
		case err := <-got:
			t.Fatalf("did not wait: %v", err)
		default:
		}
	}
	cancel()
	if err := <-got; err != syscall.EINTR {
		t.Errorf("a cancelled wait: %v", err)
	}
}
