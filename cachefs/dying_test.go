package cachefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mezzofs/mezzo/kml"
)

// within is what an operation may take while a link dies: until it counts as
// dead, and a little.
const within = 10 * time.Second

func timely(t *testing.T, what string, f func() error) {
	t.Helper()
	before := time.Now()
	if err := f(); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if d := time.Since(before); d > within {
		t.Errorf("%s took %v", what, d)
	}
}

// TestHalfOpen: bytes stop without an end of the connection. What is here works
// on, what is absent fails, and the state is found, all within seconds; what was
// changed gets there when bytes flow again.
func TestHalfOpen(t *testing.T) {
	m := newMaster(t)
	p := newProxy(t, m.sock)
	ctx := ctxOf(t)
	c, err := Open(ctx, Options{Dir: t.TempDir(), Addr: p.addr, Host: "h", Dead: 2 * time.Second, Retry: 50 * time.Millisecond})
	must(t, err)
	defer func() { must(t, c.Close(ctx)) }()
	must(t, writeFile(ctx, c, "f", "x"))
	must(t, writeFile(ctx, m.tree, "absent", "x"))
	same(t, "absent f", func() (string, error) { ns, err := names(ctx, c, kml.RootOID); return strings.Join(ns, " "), err })
	must(t, c.Sync(ctx))
	p.freeze(true)
	defer p.freeze(false)
	timely(t, "create", func() error { return writeFile(ctx, c, "made", "meanwhile") })
	timely(t, "read", func() error { _, err := readFile(ctx, c, "f"); return err })
	timely(t, "mkdir", func() error { _, err := c.Mkdir(ctx, nil, kml.RootOID, "d", 0o755); return err })
	timely(t, "state", func() error { return c.WaitState(ctx, func(s State) bool { return s == Disconnected }) })
	timely(t, "absent", func() error {
		if _, err := readFile(ctx, c, "absent"); !errors.Is(err, syscall.EHOSTDOWN) {
			return fmt.Errorf("not EHOSTDOWN: %w", err)
		}
		return nil
	})
	timely(t, "fsync", func() error {
		_, h, err := c.Create(ctx, nil, kml.RootOID, "synced", os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_, err = h.WriteAt(ctx, []byte("synced"), 0)
		return errors.Join(err, h.Fsync(ctx, false), h.Close())
	})
	p.freeze(false)
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, c.Sync(ctx))
	equal(t, m.tree, c)
	once(t, m)
}

// TestFlapping cuts the link again and again while changes are made: none waits
// for it, and each is made once.
func TestFlapping(t *testing.T) {
	m := newMaster(t)
	p := newProxy(t, m.sock)
	c := m.client(p.addr)
	ctx := ctxOf(t)
	_, err := names(ctx, c, kml.RootOID)
	must(t, err)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(30 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				p.cut(false)
			}
		}
	}()
	for i := range 60 {
		timely(t, "write", func() error { return writeFile(ctx, c, fmt.Sprintf("f%d", i%20), fmt.Sprint("contents ", i)) })
		timely(t, "mkdir", func() error {
			_, err := c.Mkdir(ctx, nil, kml.RootOID, fmt.Sprintf("d%d", i), 0o755)
			return err
		})
		timely(t, "rename", func() error {
			return c.Rename(ctx, nil, kml.RootOID, fmt.Sprintf("d%d", i), kml.RootOID, fmt.Sprintf("e%d", i), 0)
		})
	}
	close(stop)
	<-done
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, c.Sync(ctx))
	for i := range 20 {
		b, err := os.ReadFile(filepath.Join(m.dir, fmt.Sprintf("f%d", i)))
		if want := fmt.Sprint("contents ", 40+i); err != nil || string(b) != want {
			t.Errorf("f%d: %q, %v, want %q", i, b, err, want)
		}
	}
	once(t, m)
	equal(t, m.tree, c)
	if s := c.Status(); len(s.Notes) > 0 {
		t.Errorf("conflicts with nobody: %v", s.Notes)
	}
}

// TestSlowLink: with a link of some ten kilobytes a second a large upload is
// on its way while other changes, also those that wait for the master, go on.
func TestSlowLink(t *testing.T) {
	m := newMaster(t)
	p := newProxy(t, m.sock)
	c := m.client(p.addr)
	ctx := ctxOf(t)
	_, err := c.Mkdir(ctx, nil, kml.RootOID, "d", 0o755)
	must(t, err)
	must(t, c.Sync(ctx))
	p.slow(50 * time.Millisecond) // a buffer of 4 KiB each: the upload takes longer than all of this
	must(t, writeFile(ctx, c, "large", strings.Repeat("0123456789abcdef", 3<<17)))
	same(t, "true", func() (string, error) {
		c.push.mu.Lock()
		defer c.push.mu.Unlock()
		return fmt.Sprint(len(c.push.upping) == 1), nil
	})
	for i := range 5 {
		timely(t, "mkdir", func() error {
			_, err := c.Mkdir(ctx, nil, kml.RootOID, fmt.Sprint("d", i), 0o755)
			return err
		})
	}
	c.push.mu.Lock()
	if len(c.push.upping) != 1 {
		t.Error("the upload was over before: nothing was tested")
	}
	c.push.mu.Unlock()
	p.slow(0)
	must(t, c.Sync(ctx))
	equal(t, m.tree, c)
	once(t, m)
}

// TestHard: what is absent waits for the master, and the caller can leave.
func TestHard(t *testing.T) {
	m := newMaster(t)
	p := newProxy(t, m.sock)
	ctx := ctxOf(t)
	c, err := Open(ctx, Options{Dir: t.TempDir(), Addr: p.addr, Host: "h", Hard: true, Retry: 50 * time.Millisecond})
	must(t, err)
	defer func() { must(t, c.Close(ctx)) }()
	must(t, writeFile(ctx, m.tree, "absent", "x"))
	same(t, "absent", func() (string, error) { ns, err := names(ctx, c, kml.RootOID); return strings.Join(ns, " "), err })
	must(t, c.Sync(ctx)) // it has heard of the contents
	p.cut(true)
	must(t, c.WaitState(ctx, func(s State) bool { return s == Disconnected }))
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := readFile(short, c, "absent"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() {
		s, err := readFile(ctx, c, "absent")
		got <- fmt.Sprint(s, err)
	}()
	p.open()
	if s := <-got; s != "x<nil>" {
		t.Error(s)
	}
}

// TestForcedOffline goes offline and online, also over a restart.
func TestForcedOffline(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	dir := t.TempDir()
	c := openClient(t, dir, m.sock)
	must(t, writeFile(ctx, c, "f", "one"))
	must(t, c.Sync(ctx))
	must(t, c.SetOffline(true))
	if s := c.State(); s != Offline {
		t.Fatal(s)
	}
	must(t, writeFile(ctx, c, "f", "two"))
	if err := c.Sync(ctx); !errors.Is(err, syscall.EHOSTDOWN) {
		t.Fatal(err)
	}
	must(t, c.Close(ctx))
	c = openClient(t, dir, m.sock)
	if s := c.State(); s != Offline {
		t.Fatal(s)
	}
	if s, err := readFile(ctx, c, "f"); s != "two" || err != nil {
		t.Fatal(s, err)
	}
	if s, err := readFile(ctx, m.tree, "f"); s != "one" || err != nil {
		t.Fatal(s, err)
	}
	must(t, c.SetOffline(false))
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, c.Sync(ctx))
	equal(t, m.tree, c)
}

// TestOptimized: what was written over, and what came and went, while the master
// was away is not sent; the tree is the same.
func TestOptimized(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	dir := t.TempDir()
	c := openClient(t, dir, m.sock)
	must(t, writeFile(ctx, c, "f", "before"))
	must(t, c.Sync(ctx))
	must(t, c.SetOffline(true))
	end := m.tree.Log().End().Recno()
	for i := range 50 {
		must(t, writeFile(ctx, c, "f", fmt.Sprint("contents ", i)))
		must(t, writeFile(ctx, c, "tmp", fmt.Sprint("save ", i)))
		must(t, c.Rename(ctx, nil, kml.RootOID, "tmp", kml.RootOID, "saved", 0))
		d, err := c.Mkdir(ctx, nil, kml.RootOID, "d", 0o755)
		must(t, err)
		_, h, err := c.Create(ctx, nil, d.OID, "in it", os.O_WRONLY, 0o644)
		must(t, err)
		must(t, h.Close())
		must(t, c.Unlink(ctx, nil, d.OID, "in it"))
		must(t, c.Rmdir(ctx, nil, kml.RootOID, "d"))
	}
	last, err := c.Lookup(ctx, nil, kml.RootOID, "saved")
	must(t, err)
	before, err := picture(ctx, c)
	must(t, err)
	must(t, c.Close(ctx))
	c = openClient(t, dir, m.sock)
	must(t, c.SetOffline(false))
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, c.Sync(ctx))
	if n := m.tree.Log().End().Recno() - end; n > 20 {
		t.Errorf("%d records were made of it", n)
	}
	if a, err := c.Lookup(ctx, nil, kml.RootOID, "saved"); err != nil || a.OID != last.OID {
		t.Errorf("%v, was %v, %v", a.OID, last.OID, err)
	}
	same(t, before, func() (string, error) { return picture(ctx, c) })
	equal(t, m.tree, c)
	if n := c.Cache().Local().Len(); n > 20 {
		t.Errorf("%d changes are left", n)
	}
}
