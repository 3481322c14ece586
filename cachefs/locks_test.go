package cachefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv/client"
)

func flockOf(owner uint64, typ int16) tree.Lock {
	return tree.Lock{Type: typ, Flock: true, End: ^uint64(0), PID: 1, Owner: tree.LockOwner{Door: 3, Owner: owner}}
}

func rangeOf(owner uint64, typ int16, start, end uint64) tree.Lock {
	return tree.Lock{Type: typ, Start: start, End: end, PID: uint32(owner), Owner: tree.LockOwner{Door: 3, Owner: owner}}
}

// oidOf waits until a name has arrived.
func oidOf(t *testing.T, c tree.FS, name string) kml.OID {
	t.Helper()
	var oid kml.OID
	same(t, "ok", func() (string, error) {
		a, err := c.Lookup(ctxOf(t), nil, kml.RootOID, name)
		oid = a.OID
		return "ok", err
	})
	return oid
}

// TestLocksAreTheMasters has two clients, users of the master and a plain 9P
// client lock ranges of one file.
func TestLocksAreTheMasters(t *testing.T) {
	m := newMaster(t)
	a, b := m.client(m.sock), m.client(m.sock)
	ctx := ctxOf(t)
	must(t, writeFile(ctx, a, "f", "x"))
	must(t, a.Sync(ctx))
	oid := oidOf(t, b, "f")

	must(t, a.SetLock(ctx, oid, rangeOf(1, unix.F_WRLCK, 10, 19), false))
	must(t, b.SetLock(ctx, oid, rangeOf(1, unix.F_WRLCK, 20, 29), false))
	must(t, b.SetLock(ctx, oid, flockOf(1, unix.F_WRLCK), false)) // another space
	if err := b.SetLock(ctx, oid, rangeOf(2, unix.F_RDLCK, 15, 15), false); !errors.Is(err, syscall.EAGAIN) {
		t.Fatal(err)
	}
	got, err := b.TestLock(ctx, oid, rangeOf(2, unix.F_RDLCK, 0, ^uint64(0)))
	must(t, err)
	if got.Type != unix.F_WRLCK || got.Start != 10 || got.End != 19 || got.PID != 1 {
		t.Fatalf("%+v", got)
	}
	got, err = b.TestLock(ctx, oid, rangeOf(2, unix.F_RDLCK, 30, 40))
	must(t, err)
	if got.Type != unix.F_UNLCK {
		t.Fatalf("%+v", got)
	}
	// A user of the master's own mount, and a plain 9P client.
	if err := m.tree.SetLock(ctx, oid, rangeOf(7, unix.F_WRLCK, 0, 12), false); !errors.Is(err, syscall.EAGAIN) {
		t.Fatal(err)
	}
	conn, err := client.Dial(ctx, m.sock, client.Options{})
	must(t, err)
	defer conn.Close()
	root, err := conn.Attach(ctx, strconv.Itoa(os.Geteuid()), p9.UID(os.Geteuid()), "")
	must(t, err)
	f, _, err := root.Walk(ctx, "f")
	must(t, err)
	_, err = f.Open(ctx, p9.ReadWrite)
	must(t, err)
	lock := func(typ p9.LockType, start, n uint64) p9.LockStatus {
		t.Helper()
		s, err := f.Lock(ctx, client.Lock{Type: typ, Start: start, Length: n, PID: 5, Client: "plain"})
		must(t, err)
		return s
	}
	if s := lock(p9.WriteLock, 19, 1); s != p9.LockStatusBlocked {
		t.Fatal(s)
	}
	if s := lock(p9.WriteLock, 50, 10); s != p9.LockStatusOK {
		t.Fatal(s)
	}
	if err := a.SetLock(ctx, oid, rangeOf(1, unix.F_RDLCK, 59, 59), false); !errors.Is(err, syscall.EAGAIN) {
		t.Fatal(err)
	}
	// Waiting ends when the lock goes, or when the caller does.
	short, cancel := context.WithCancel(ctx)
	waits := make(chan error, 2)
	go func() { waits <- a.SetLock(short, oid, rangeOf(1, unix.F_RDLCK, 59, 59), true) }()
	cancel()
	if err := <-waits; !errors.Is(err, syscall.EINTR) {
		t.Fatal(err)
	}
	go func() { waits <- a.SetLock(ctx, oid, rangeOf(1, unix.F_RDLCK, 59, 59), true) }()
	if s := lock(p9.Unlock, 50, 10); s != p9.LockStatusOK {
		t.Fatal(s)
	}
	must(t, <-waits)
	if s := lock(p9.ReadLock, 59, 1); s != p9.LockStatusOK {
		t.Fatal(s)
	}
	// Two clients that wait for each other: one is told.
	go func() { waits <- a.SetLock(ctx, oid, rangeOf(1, unix.F_WRLCK, 20, 20), true) }()
	go func() { waits <- b.SetLock(ctx, oid, rangeOf(1, unix.F_WRLCK, 10, 10), true) }()
	if err := <-waits; !errors.Is(err, syscall.EDEADLK) {
		t.Fatal(err)
	}
	// A close drops what is its owner's.
	a.Unlock(oid, rangeOf(1, 0, 0, 0).Owner)
	b.Unlock(oid, rangeOf(1, 0, 0, 0).Owner)
	<-waits
	a.Unlock(oid, rangeOf(1, 0, 0, 0).Owner) // what the other has got by then
	b.Unlock(oid, rangeOf(1, 0, 0, 0).Owner)
	must(t, m.tree.SetLock(ctx, oid, rangeOf(7, unix.F_WRLCK, 0, 12), true))
	m.tree.Unlock(oid, rangeOf(7, 0, 0, 0).Owner)
}

// TestLockedCounter has users of two clients and of the master count in a file,
// each step under a lock: none is lost.
func TestLockedCounter(t *testing.T) {
	for _, flock := range []bool{true, false} {
		t.Run(fmt.Sprintf("flock=%v", flock), func(t *testing.T) {
			m := newMaster(t)
			a, b := m.client(m.sock), m.client(m.sock)
			ctx := ctxOf(t)
			must(t, writeFile(ctx, a, "n", "0"))
			must(t, a.Sync(ctx))
			oid := oidOf(t, b, "n")
			lockOf := func(owner uint64, typ int16) tree.Lock {
				if flock {
					return flockOf(owner, typ)
				}
				return rangeOf(owner, typ, 0, 99)
			}
			const users, steps = 2, 12
			var wg sync.WaitGroup
			for i, fs := range []tree.FS{m.tree, a, b} {
				for u := range users {
					owner := uint64(100*i + u + 1)
					wg.Go(func() {
						for range steps {
							if err := count(ctx, fs, oid, lockOf(owner, unix.F_WRLCK), lockOf(owner, unix.F_UNLCK)); err != nil {
								t.Error(owner, err)
								return
							}
						}
					})
				}
			}
			wg.Wait()
			must(t, a.Sync(ctx))
			if s, err := readFile(ctx, m.tree, "n"); s != strconv.Itoa(3*users*steps) || err != nil {
				t.Fatal(s, err)
			}
			if n := a.Status().Notes; len(n) > 0 {
				t.Fatal(n)
			}
		})
	}
}

// count adds one to the number in a file.
func count(ctx context.Context, fs tree.FS, oid kml.OID, lock, unlock tree.Lock) error {
	h, err := fs.Open(ctx, nil, oid, os.O_RDWR)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer h.Close()
	if err := fs.SetLock(ctx, oid, lock, true); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	b := make([]byte, 20)
	n, err := h.ReadAt(ctx, b, 0)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	v, err := strconv.Atoi(string(b[:n]))
	if err != nil {
		return err
	}
	if _, err := h.WriteAt(ctx, strconv.AppendInt(nil, int64(v+1), 10), 0); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if err := fs.SetLock(ctx, oid, unlock, false); err != nil {
		return fmt.Errorf("unlock: %w", err)
	}
	return nil
}

// TestLockLostWithLink cuts the link of a client that holds locks: it is told once,
// and another gets the lock.
func TestLockLostWithLink(t *testing.T) {
	m := newMaster(t)
	p := newProxy(t, m.sock)
	a, b := m.client(p.addr), m.client(m.sock)
	ctx := ctxOf(t)
	must(t, writeFile(ctx, a, "f", "x"))
	must(t, a.Sync(ctx))
	oid := oidOf(t, b, "f")
	me := flockOf(1, unix.F_WRLCK)
	must(t, a.SetLock(ctx, oid, me, false))
	p.cut(true)
	must(t, b.SetLock(ctx, oid, flockOf(1, unix.F_WRLCK), true))
	must(t, a.WaitState(ctx, func(s State) bool { return s == Disconnected }))
	if !a.LostLock(oid, me.Owner, true) {
		t.Error("not told")
	}
	if a.LostLock(oid, me.Owner, true) {
		t.Error("told twice")
	}
	// Without a link locks are this client's.
	must(t, a.SetLock(ctx, oid, me, false))
	if err := a.SetLock(ctx, oid, flockOf(2, unix.F_WRLCK), false); !errors.Is(err, syscall.EAGAIN) {
		t.Error(err)
	}
	// With the next link the master decides: another has it.
	p.open()
	same(t, "lost", func() (string, error) {
		if a.LostLock(oid, me.Owner, true) {
			return "lost", nil
		}
		return "", nil
	})
	if err := a.SetLock(ctx, oid, me, false); !errors.Is(err, syscall.EAGAIN) {
		t.Error(err)
	}
	must(t, b.SetLock(ctx, oid, flockOf(1, unix.F_UNLCK), false))
	must(t, a.SetLock(ctx, oid, me, true))
	// What is free is kept.
	p.cut(true)
	must(t, a.WaitState(ctx, func(s State) bool { return s == Disconnected }))
	if err := a.SetLock(ctx, oid, flockOf(1, unix.F_UNLCK), false); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	must(t, a.SetLock(ctx, oid, me, true))
	p.open()
	same(t, "held", func() (string, error) {
		l, err := b.TestLock(ctx, oid, flockOf(1, unix.F_WRLCK))
		if err == nil && l.Type == unix.F_WRLCK {
			return "held", nil
		}
		return "", err
	})
	must(t, a.SetLock(ctx, oid, flockOf(1, unix.F_UNLCK), false))
}

// TestLockOfSilentClient stops the bytes of a client that holds a lock: it ends
// with its time.
func TestLockOfSilentClient(t *testing.T) {
	m := newMaster(t)
	m.stop()
	m.lease = 200 * time.Millisecond
	m.start()
	p := newProxy(t, m.sock)
	o := optionsOf(t.TempDir(), p.addr)
	o.Dead = time.Second
	a, err := clientWith(t, o)
	must(t, err)
	b := m.client(m.sock)
	ctx := ctxOf(t)
	must(t, writeFile(ctx, a, "f", "x"))
	must(t, a.Sync(ctx))
	oid := oidOf(t, b, "f")
	must(t, a.SetLock(ctx, oid, flockOf(1, unix.F_WRLCK), false))
	short, cancel := context.WithTimeout(ctx, 700*time.Millisecond)
	defer cancel()
	if err := b.SetLock(short, oid, flockOf(1, unix.F_WRLCK), true); !errors.Is(err, syscall.EINTR) {
		t.Fatal("a lock of a client that lives was given away:", err)
	}
	p.freeze(true)
	defer p.freeze(false)
	must(t, b.SetLock(ctx, oid, flockOf(1, unix.F_WRLCK), true))
	must(t, a.WaitState(ctx, func(s State) bool { return s == Disconnected }))
	if !a.LostLock(oid, flockOf(1, 0).Owner, true) {
		t.Error("not told")
	}
}

// TestLockedAppend has two clients append lines under flock.
func TestLockedAppend(t *testing.T) {
	m := newMaster(t)
	a, b := m.client(m.sock), m.client(m.sock)
	ctx := ctxOf(t)
	must(t, writeFile(ctx, a, "log", ""))
	must(t, a.Sync(ctx))
	oid := oidOf(t, b, "log")
	const lines = 25
	var wg sync.WaitGroup
	for i, c := range []*Client{a, b} {
		wg.Go(func() {
			for n := range lines {
				err := func() error {
					h, err := c.Open(ctx, nil, oid, os.O_WRONLY|os.O_APPEND)
					if err != nil {
						return err
					}
					if err := c.SetLock(ctx, oid, flockOf(1, unix.F_WRLCK), true); err != nil {
						return err
					}
					if _, err := fmt.Fprintf(writerAt{ctx, h}, "%d %d\n", i, n); err != nil {
						return err
					}
					if err := h.Flush(ctx); err != nil {
						return err
					}
					c.Unlock(oid, flockOf(1, 0).Owner)
					return h.Close()
				}()
				if err != nil {
					t.Error(i, n, err)
				}
			}
		})
	}
	wg.Wait()
	must(t, a.Sync(ctx))
	s, err := readFile(ctx, m.tree, "log")
	must(t, err)
	next := []int{0, 0}
	for _, line := range strings.Split(strings.TrimSuffix(s, "\n"), "\n") {
		var i, n int
		if _, err := fmt.Sscanf(line, "%d %d", &i, &n); err != nil || i > 1 || n != next[i] {
			t.Fatalf("%q: %v in\n%s", line, err, s)
		}
		next[i]++
	}
	if next[0] != lines || next[1] != lines {
		t.Fatal(next)
	}
}

type writerAt struct {
	ctx context.Context
	h   tree.Handle
}

func (w writerAt) Write(p []byte) (int, error) { return w.h.WriteAt(w.ctx, p, 0) }
