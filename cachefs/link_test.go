package cachefs

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/export"
)

// TestOtherHistory serves an older copy of the fileset, as a restored backup is:
// the client gives up what is clean and keeps what was not sent.
func TestOtherHistory(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	c := m.client(m.sock)
	must(t, writeFile(ctx, c, "old", "old"))
	must(t, writeFile(ctx, c, "mine", "base"))
	must(t, c.Sync(ctx))
	m.stop()
	backup := filepath.Join(t.TempDir(), "b")
	must(t, exec.Command("cp", "-a", m.dir, backup).Run())
	m.start()
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	for _, name := range []string{"new1", "new2", "new3"} {
		must(t, writeFile(ctx, c, name, name))
	}
	must(t, c.Sync(ctx))
	a, err := c.Lookup(ctx, nil, kml.RootOID, "mine")
	must(t, err)
	h, err := c.Open(ctx, nil, a.OID, os.O_WRONLY)
	must(t, err)
	m.stop()
	must(t, c.WaitState(ctx, func(s State) bool { return s == Disconnected }))
	_, err = h.WriteAt(ctx, []byte("written while away"), 0)
	must(t, err)
	must(t, h.Close())
	m.dir = backup
	m.start()
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, c.Sync(ctx))
	if s, err := readFile(ctx, c, "old"); s != "old" || err != nil {
		t.Error(s, err)
	}
	// The copy's files are other inodes: the master may have found them changed,
	// and then what was written here stands beside them.
	ns, err := names(ctx, c, kml.RootOID)
	must(t, err)
	kept := false
	for _, n := range ns {
		s, err := readFile(ctx, c, n)
		must(t, err)
		kept = kept || strings.HasPrefix(n, "mine") && s == "written while away"
	}
	if !kept {
		t.Errorf("lost: %q", ns)
	}
	must(t, writeFile(ctx, c, "after", "after"))
	must(t, c.Sync(ctx))
	equal(t, m.tree, c, m.client(m.sock))
	once(t, m)
}

func TestOtherFileset(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	dir := t.TempDir()
	c := openClient(t, dir, m.sock)
	must(t, writeFile(ctx, c, "f", "first"))
	must(t, c.Close(ctx))
	m.stop()
	m.dir = t.TempDir()
	must(t, tree.Init(m.dir, tree.Options{}))
	m.start()
	must(t, writeFile(ctx, m.tree, "g", "second"))
	c = openClient(t, dir, m.sock)
	ns, err := names(ctx, c, kml.RootOID)
	if strings.Join(ns, " ") != "g" || err != nil {
		t.Fatal(ns, err)
	}
	must(t, writeFile(ctx, c, "h", "third"))
	must(t, c.Sync(ctx))
	equal(t, m.tree, c)
}

// TestConnectErrors names the address and what to do.
func TestConnectErrors(t *testing.T) {
	ctx := context.Background()
	open := func(addr string) error {
		c, err := Open(ctx, Options{Dir: t.TempDir(), Addr: addr, Dead: 2e9})
		if err == nil {
			c.Close(ctx)
		}
		return err
	}
	dir := t.TempDir()
	nobody := filepath.Join(dir, "nobody")
	err := open(nobody)
	if !errors.Is(err, syscall.ENOENT) || !strings.Contains(err.Error(), nobody) || !strings.Contains(err.Error(), "mezzo serve") {
		t.Error(err)
	}

	web, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := web.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 100))
			_, _ = c.Write([]byte("HTTP/1.0 400 Bad Request\r\n\r\nyou sent nonsense to a web server"))
			c.Close()
		}
	}()
	defer func() { web.Close(); <-done }()
	if err := open(web.Addr().String()); !errors.Is(err, ErrNot9P) || !strings.Contains(err.Error(), web.Addr().String()) {
		t.Error(err)
	}

	m := newMaster(t)
	plain := filepath.Join(dir, "plain")
	l, err := net.Listen("unix", plain)
	must(t, err)
	srv := p9srv.New(export.New(m.tree, export.Options{InPlace: true}), p9srv.Options{})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, l) }()
	defer func() { srv.Close(); <-served }()
	err = open("unix!" + plain)
	if !errors.Is(err, ErrNotMezzo) || !strings.Contains(err.Error(), "mount -t 9p -o trans=unix,version=9p2000.L,cache=none "+plain) {
		t.Error(err)
	}

	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	j, err := export.NewJournal(m.tree, export.JournalOptions{Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	srv2 := p9srv.New(export.New(m.tree, export.Options{Ext: j, InPlace: true}), p9srv.Options{})
	served2 := make(chan error, 1)
	go func() { served2 <- srv2.Serve(ctx, tcp) }()
	defer func() { j.Close(); srv2.Close(); <-served2 }()
	// Over TCP nobody proves who he is.
	if err := open(tcp.Addr().String()); !errors.Is(err, ErrNotAllowed) || !strings.Contains(err.Error(), "mount -t 9p -o trans=tcp,port=") {
		t.Error(err)
	}
}

// TestSilentMaster stops the bytes without ending the connection.
func TestSilentMaster(t *testing.T) {
	m := newMaster(t)
	p := newProxy(t, m.sock)
	o := optionsOf(t.TempDir(), p.addr)
	o.Dead = 2 * time.Second
	c, err := clientWith(t, o)
	must(t, err)
	ctx := ctxOf(t)
	must(t, writeFile(ctx, c, "f", "x"))
	must(t, c.Sync(ctx))
	p.freeze(true)
	defer p.freeze(false)
	_, err = c.Mkdir(ctx, nil, kml.RootOID, "d", 0o700) // returns once the link counts as dead
	must(t, err)
	if s := c.State(); s != Disconnected {
		t.Fatal(s)
	}
	if s, err := readFile(ctx, c, "f"); s != "x" || err != nil {
		t.Fatal(s, err)
	}
	p.freeze(false)
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, c.Sync(ctx))
	equal(t, m.tree, c)
	once(t, m)
}

func TestOneSessionASite(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	dir := t.TempDir()
	c := openClient(t, dir, m.sock)
	_, err := tryClient(t, dir, m.sock)
	var locked *tree.LockedError
	if !errors.As(err, &locked) || locked.PID != os.Getpid() {
		t.Fatal(err)
	}
	must(t, writeFile(ctx, c, "f", "one"))
	must(t, c.Close(ctx))
	// A copy of the cache is another installation.
	clone := filepath.Join(t.TempDir(), "c")
	must(t, exec.Command("cp", "-a", dir, clone).Run())
	a := openClient(t, dir, m.sock)
	must(t, writeFile(ctx, a, "g", "a"))
	must(t, a.Sync(ctx))
	b := openClient(t, clone, m.sock)
	must(t, writeFile(ctx, b, "h", "b"))
	must(t, b.Sync(ctx))
	if x, y := a.Status().Site, b.Status().Site; x == y {
		t.Error("both are site", x)
	}
	must(t, writeFile(ctx, a, "i", "a"))
	must(t, a.Sync(ctx))
	equal(t, m.tree, a, b)
	once(t, m)
}
