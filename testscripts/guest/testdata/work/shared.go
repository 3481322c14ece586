package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// shareCases are two mounts of one folder.
var shareCases = []testCase{
	{"flock", caseFlock}, {"fcntl", caseFcntl}, {"append2", caseAppend2}, {"coherent", caseCoherent},
}

// both opens a new file by both mounts.
func (e *env) both(name string, flags int) (a, b *os.File, err error) {
	if e.second == "" {
		return nil, nil, errSkip
	}
	if a, err = os.OpenFile(e.path(name), flags|os.O_CREATE, 0o644); err != nil {
		return nil, nil, err
	}
	if b, err = os.OpenFile(e.other(name), flags, 0); err != nil {
		a.Close()
		return nil, nil, err
	}
	return a, b, nil
}

// waits calls lock, which must not come back before release was called.
func waits(lock, release func() error) error {
	done := make(chan error, 1)
	go func() { done <- lock() }()
	select {
	case err := <-done:
		return fmt.Errorf("did not wait: %v", err)
	case <-time.After(70 * time.Millisecond): // it has nothing to show that it waits
	}
	if err := release(); err != nil {
		return err
	}
	return <-done
}

func caseFlock(e *env) error {
	a, b, err := e.both("f", os.O_RDWR)
	if err != nil {
		return err
	}
	defer a.Close()
	defer b.Close()
	fa, fb := int(a.Fd()), int(b.Fd())
	if err := first(
		unix.Flock(fa, unix.LOCK_EX|unix.LOCK_NB),
		refused("exclusive twice", unix.Flock(fb, unix.LOCK_EX|unix.LOCK_NB), unix.EAGAIN),
		refused("shared then", unix.Flock(fb, unix.LOCK_SH|unix.LOCK_NB), unix.EAGAIN),
		unix.Flock(fa, unix.LOCK_UN),
		unix.Flock(fa, unix.LOCK_SH|unix.LOCK_NB), unix.Flock(fb, unix.LOCK_SH|unix.LOCK_NB),
		refused("exclusive over shared", unix.Flock(fa, unix.LOCK_EX|unix.LOCK_NB), unix.EAGAIN),
		unix.Flock(fb, unix.LOCK_UN), unix.Flock(fa, unix.LOCK_EX|unix.LOCK_NB),
	); err != nil {
		return err
	}
	if err := waits(func() error { return unix.Flock(fb, unix.LOCK_EX) }, func() error { return unix.Flock(fa, unix.LOCK_UN) }); err != nil {
		return fmt.Errorf("waiting: %w", err)
	}
	if err := waits(func() error { return unix.Flock(fa, unix.LOCK_EX) }, b.Close); err != nil {
		return fmt.Errorf("waiting for a close: %w", err)
	}
	return nil
}

func caseFcntl(e *env) error {
	a, b, err := e.both("f", os.O_RDWR)
	if err != nil {
		return err
	}
	defer a.Close()
	defer b.Close()
	lock := func(f *os.File, cmd int, typ int16, start, length int64) error {
		l := unix.Flock_t{Type: typ, Whence: io.SeekStart, Start: start, Len: length}
		return unix.FcntlFlock(f.Fd(), cmd, &l)
	}
	const set, wait = unix.F_SETLK, unix.F_SETLKW
	if err := first(
		lock(a, set, unix.F_WRLCK, 0, 100), lock(b, set, unix.F_WRLCK, 100, 50),
		refused("overlap", lock(b, set, unix.F_WRLCK, 50, 10), unix.EAGAIN),
		refused("read overlap", lock(b, set, unix.F_RDLCK, 99, 1), unix.EAGAIN),
		refused("the other way", lock(a, set, unix.F_RDLCK, 140, 1000), unix.EAGAIN),
	); err != nil {
		return err
	}
	l := unix.Flock_t{Type: unix.F_RDLCK, Start: 20, Len: 0}
	if err := unix.FcntlFlock(b.Fd(), unix.F_GETLK, &l); err != nil {
		return err
	}
	if l.Type != unix.F_WRLCK || l.Start != 0 || l.Len != 100 {
		return fmt.Errorf("F_GETLK says type %d, %d+%d", l.Type, l.Start, l.Len)
	}
	l = unix.Flock_t{Type: unix.F_WRLCK, Start: 200, Len: 10}
	if err := unix.FcntlFlock(b.Fd(), unix.F_GETLK, &l); err != nil {
		return err
	}
	if err := first(want("F_GETLK of the free", l.Type, unix.F_UNLCK),
		// A hole in the middle, and the rest stays.
		lock(a, set, unix.F_UNLCK, 40, 20), lock(b, set, unix.F_WRLCK, 40, 20),
		refused("before the hole", lock(b, set, unix.F_WRLCK, 39, 1), unix.EAGAIN),
		refused("behind the hole", lock(b, set, unix.F_WRLCK, 60, 1), unix.EAGAIN),
		lock(a, set, unix.F_RDLCK, 0, 40), lock(b, set, unix.F_RDLCK, 0, 40),
	); err != nil {
		return err
	}
	if err := waits(func() error { return lock(b, wait, unix.F_WRLCK, 60, 5) },
		func() error { return lock(a, set, unix.F_UNLCK, 0, 0) }); err != nil {
		return fmt.Errorf("waiting: %w", err)
	}
	if err := waits(func() error { return lock(a, wait, unix.F_WRLCK, 0, 0) }, b.Close); err != nil {
		return fmt.Errorf("waiting for a close: %w", err)
	}
	return nil
}

func caseAppend2(e *env) error {
	a, b, err := e.both("f", os.O_WRONLY|os.O_APPEND)
	if err != nil {
		return err
	}
	defer a.Close()
	defer b.Close()
	var text strings.Builder
	for i := range 40 {
		f := a
		if i%3 == 1 {
			f = b
		}
		line := fmt.Sprintln("line", i)
		if _, err := f.WriteString(line); err != nil {
			return err
		}
		text.WriteString(line)
	}
	return first(a.Close(), b.Close(), holds(e.path("f"), text.String()), holds(e.other("f"), text.String()))
}

// caseCoherent changes a file by one mount and looks by the other.
func caseCoherent(e *env) error {
	if e.second == "" {
		return errSkip
	}
	gone := func(path string) error {
		_, err := os.Lstat(path)
		return refused(path, err, os.ErrNotExist)
	}
	for i := range 10 {
		text := strings.Repeat(fmt.Sprint(i), i*1000+1)
		if err := first(put(e.path("f"), text), holds(e.other("f"), text)); err != nil {
			return fmt.Errorf("round %d: %w", i, err)
		}
		fi, err := os.Stat(e.other("f"))
		if err := first(err, want("size", fi.Size(), int64(len(text)))); err != nil {
			return err
		}
	}
	if err := first(unix.Rename(e.path("f"), e.path("g")), gone(e.other("f")), os.Chmod(e.other("g"), 0o604)); err != nil {
		return err
	}
	fi, err := os.Stat(e.path("g"))
	if err := first(err, want("mode", fi.Mode(), 0o604)); err != nil {
		return err
	}
	f, err := os.Open(e.other("g"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := first(os.Remove(e.path("g")), put(e.path("g"), "another")); err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, 0); err != nil || b[0] != '9' {
		return fmt.Errorf("an unlinked file reads %q, %v", b, err)
	}
	// While a file is open the client does not ask for its name again.
	if err := first(f.Close(), holds(e.other("g"), "another"), os.Remove(e.path("g")), gone(e.other("g"))); err != nil {
		return err
	}
	if _, err := os.Stat(e.other("made")); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("made: %v", err)
	}
	return first(os.Mkdir(e.path("made"), 0o755), os.Remove(e.other("made")), gone(e.path("made")))
}
