package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hugelgupf/p9/fsimpl/localfs"
	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// hugelgupf serves dir with the peer library's server; it returns an address.
func hugelgupf(t testing.TB, dir, network string) string {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "sock")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p9.NewServer(localfs.Attacher(dir)).ServeContext(ctx, ln)
	}()
	t.Cleanup(func() { cancel(); ln.Close(); <-done })
	return ln.Addr().String()
}

// ours serves dir with the engine beside this package.
func ours(t testing.TB, dir string) (addr string, srv *p9srv.Server) {
	t.Helper()
	addr = "unix!" + filepath.Join(t.TempDir(), "sock")
	ln, err := p9srv.Listen(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	srv = p9srv.New(localfs.Attacher(dir), p9srv.Options{})
	done := make(chan error, 1)
	go func() { done <- srv.Serve(context.WithoutCancel(t.Context()), ln) }()
	t.Cleanup(func() {
		if err := errors.Join(srv.Close(), <-done); err != nil {
			t.Error(err)
		}
	})
	return addr, srv
}

// diod serves dir with Debian's diod on a unix socket.
func diod(t testing.TB, dir string) string {
	t.Helper()
	path, err := exec.LookPath("diod")
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/diod"); err != nil {
			t.Skip("diod is missing (package diod)")
		}
	}
	sock := filepath.Join(t.TempDir(), "sock")
	cmd := exec.Command(path, "-f", "-n", "-N", "-L", "stderr", "-l", sock, "-e", dir)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("diod: %s", &log)
		}
	})
	for deadline := time.Now().Add(time.Minute); ; {
		conn, err := net.Dial("unix", sock)
		if err == nil {
			conn.Close()
			return sock
		}
		if time.Now().After(deadline) {
			t.Fatalf("diod does not listen: %v\n%s", err, &log)
		}
		<-time.After(5 * time.Millisecond) // it tells nobody when it listens
	}
}

func dial(t testing.TB, addr string, o Options) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), addr, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func attach(t testing.TB, c *Conn, aname string) *Fid {
	t.Helper()
	root, err := c.Attach(t.Context(), "root", 0, aname)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// peer is a server to test against and what it is known not to do.
type peer struct {
	start     func(t testing.TB, dir string) (addr, aname string)
	noXattr   bool // neither xattrs, locks, statfs nor setattr: its localfs has none
	anyUnlink bool // flags of unlinkat do not count
}

func peers() map[string]peer {
	return map[string]peer{
		"hugelgupf/unix": {anyUnlink: true, noXattr: true, start: func(t testing.TB, dir string) (string, string) { return hugelgupf(t, dir, "unix"), "" }},
		"hugelgupf/tcp":  {anyUnlink: true, noXattr: true, start: func(t testing.TB, dir string) (string, string) { return hugelgupf(t, dir, "tcp"), "" }},
		"p9srv":          {noXattr: true, start: func(t testing.TB, dir string) (string, string) { addr, _ := ours(t, dir); return addr, "" }},
		"diod":           {start: func(t testing.TB, dir string) (string, string) { return diod(t, dir), dir }},
	}
}

func TestPeers(t *testing.T) {
	for name, p := range peers() {
		t.Run(name, func(t *testing.T) {
			testutil.CheckLeaks(t)
			dir := t.TempDir()
			addr, aname := p.start(t, dir)
			root := attach(t, dial(t, addr, Options{}), aname)
			t.Run("names", func(t *testing.T) { testNames(t, root, dir, p) })
			t.Run("contents", func(t *testing.T) { testContents(t, root, dir, p) })
			t.Run("folder", func(t *testing.T) { testFolder(t, root, dir) })
			t.Run("errors", func(t *testing.T) { testErrors(t, root) })
			t.Run("file", func(t *testing.T) { testAsFile(t, root) })
			if !p.noXattr {
				t.Run("xattrs", func(t *testing.T) { testXattrs(t, root) })
				t.Run("locks", func(t *testing.T) { testLocks(t, root) })
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testNames(t *testing.T, root *Fid, dir string, p peer) {
	ctx := t.Context()
	_, err := root.Mkdir(ctx, "d", 0o755, 0)
	must(t, err)
	d, qids, err := root.Walk(ctx, "d")
	must(t, err)
	if len(qids) != 1 || qids[0].Type != p9.TypeDir || d.QID() != qids[0] {
		t.Errorf("walk to a folder: %v, %v", qids, d.QID())
	}
	_, err = d.Symlink(ctx, "s", "target", 0)
	must(t, err)
	s, _, err := d.Walk(ctx, "s")
	must(t, err)
	if target, err := s.Readlink(ctx); target != "target" || err != nil {
		t.Errorf("readlink: %q, %v", target, err)
	}
	must(t, s.Clunk(ctx))
	must(t, os.WriteFile(filepath.Join(dir, "d/f"), []byte("x"), 0o644))
	f, _, err := d.Walk(ctx, "f")
	must(t, err)
	must(t, d.Link(ctx, f, "g"))
	must(t, d.RenameAt(ctx, "g", root, "h"))
	must(t, f.Rename(ctx, d, "i"))
	if p.anyUnlink {
		must(t, d.UnlinkAt(ctx, "i", 0))
	} else if err := errors.Join(d.UnlinkAt(ctx, "i", wire.UnlinkRemoveDir), d.UnlinkAt(ctx, "i", 0)); !errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ENOENT) {
		t.Errorf("remove a file as a folder, then as a file: %v", err)
	}
	must(t, f.Clunk(ctx))
	if _, err := os.Stat(filepath.Join(dir, "h")); err != nil {
		t.Error(err)
	}
	must(t, d.UnlinkAt(ctx, "s", 0))
	must(t, root.UnlinkAt(ctx, "d", wire.UnlinkRemoveDir))
	must(t, d.Clunk(ctx))
	if st, err := root.StatFS(ctx); !p.noXattr && (err != nil || st.BlockSize == 0) {
		t.Errorf("statfs: %+v, %v", st, err)
	}
	deep := slices.Repeat([]string{"deep"}, 20) // more than one Twalk carries
	must(t, os.MkdirAll(filepath.Join(dir, filepath.Join(deep...)), 0o755))
	g, qids, err := root.Walk(ctx, deep...)
	must(t, err)
	if len(qids) != len(deep) {
		t.Errorf("%d QIDs for %d names", len(qids), len(deep))
	}
	must(t, g.Clunk(ctx))
	if _, qids, err := root.Walk(ctx, append(deep, "absent")...); !errors.Is(err, fs.ErrNotExist) || len(qids) < wire.MaxWalk {
		t.Errorf("deep walk to an absent name: %d QIDs, %v", len(qids), err)
	}
}

func testContents(t *testing.T, root *Fid, dir string, p peer) {
	ctx := t.Context()
	f, err := root.Clone(ctx)
	must(t, err)
	_, err = f.Create(ctx, "contents", p9.ReadWrite, 0o640, 0)
	must(t, err)
	data := make([]byte, 3<<20+17) // several messages
	for i := range data {
		data[i] = byte(i*7 + i>>13)
	}
	if n, err := f.WriteFull(ctx, data, 0, 4); n != len(data) || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	must(t, f.FSync(ctx, false))
	got := make([]byte, len(data)+100)
	for _, inFlight := range []int{1, 5} {
		clear(got)
		n, err := f.ReadFull(ctx, got, 0, inFlight)
		if n != len(data) || err != io.EOF || !bytes.Equal(got[:n], data) {
			t.Fatalf("read, %d in flight: %d of %d, %v", inFlight, n, len(data), err)
		}
	}
	if n, err := f.ReadAt(ctx, got[:100], 1<<20-50); n != 100 || err != nil || !bytes.Equal(got[:100], data[1<<20-50:1<<20+50]) {
		t.Errorf("read in the middle: %d, %v", n, err)
	}
	size := len(data)
	if !p.noXattr {
		size = 10
		must(t, f.SetAttr(ctx, p9.SetAttrMask{Size: true, Permissions: true}, p9.SetAttr{Size: 10, Permissions: 0o600}))
	}
	_, _, attr, err := f.GetAttr(ctx, p9.AttrMaskAll)
	if err != nil || attr.Size != uint64(size) || !p.noXattr && attr.Mode.Permissions() != 0o600 {
		t.Errorf("getattr: %v, %v", attr, err)
	}
	must(t, f.Clunk(ctx))
	if err := f.Clunk(ctx); !errors.Is(err, ErrClunked) {
		t.Errorf("clunk twice: %v", err)
	}
	if _, err := f.Read(ctx, got, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read after clunk: %v", err)
	}
	if disk, err := os.ReadFile(filepath.Join(dir, "contents")); err != nil || !bytes.Equal(disk, data[:size]) {
		t.Errorf("on disk: %d bytes, %v", len(disk), err)
	}
}

func testFolder(t *testing.T, root *Fid, dir string) {
	ctx := t.Context()
	var want []string
	must(t, os.Mkdir(filepath.Join(dir, "many"), 0o755))
	for i := range 500 {
		name := strings.Repeat("n", 1+i%200) + string(rune('a'+i%26)) + string(rune('a'+i/26))
		want = append(want, name)
		must(t, os.WriteFile(filepath.Join(dir, "many", name), nil, 0o644))
	}
	d, _, err := root.Walk(ctx, "many")
	must(t, err)
	_, err = d.Open(ctx, p9.ReadOnly)
	must(t, err)
	var got []string
	for e, err := range d.Entries(ctx) {
		must(t, err)
		got = append(got, e.Name)
	}
	must(t, d.Clunk(ctx))
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
}

func testErrors(t *testing.T, root *Fid) {
	ctx := t.Context()
	_, _, err := root.Walk(ctx, "absent")
	var refused *Error
	if !errors.Is(err, syscall.ENOENT) || !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &refused) || refused.Name != "absent" {
		t.Errorf("walk to an absent name: %v", err)
	}
	if _, err := root.Mkdir(ctx, strings.Repeat("x", 1<<16), 0o755, 0); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Errorf("name of 64 KiB: %v", err)
	}
	if _, err := root.Mkdir(ctx, strings.Repeat("x", 1000), 0o755, 0); err == nil {
		t.Error("name of 1000 bytes: no error")
	}
	if _, err := root.Read(ctx, make([]byte, 1), -1); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("negative offset: %v", err)
	}
	if err := root.Conn().Err(); err != nil {
		t.Errorf("the connection ended: %v", err)
	}
}

func testAsFile(t *testing.T, root *Fid) {
	clone, err := root.Clone(t.Context())
	must(t, err)
	f, _, _, err := AsFile(t.Context(), clone).Create("file", p9.ReadWrite, 0o644, 0, 0)
	must(t, err)
	if n, err := f.WriteAt([]byte("hello"), 0); n != 5 || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
	got := make([]byte, 10)
	if n, err := f.ReadAt(got, 0); n != 5 || err != io.EOF {
		t.Errorf("read: %d, %v", n, err)
	}
	must(t, f.Close())
	_, g, _, attr, err := AsFile(t.Context(), root).WalkGetAttr([]string{"file"})
	if err != nil || attr.Size != 5 {
		t.Fatalf("walkgetattr: %v, %v", attr, err)
	}
	must(t, g.Close())
}

func testXattrs(t *testing.T, root *Fid) {
	ctx := t.Context()
	f, err := root.Clone(ctx)
	must(t, err)
	_, err = f.Create(ctx, "xattrs", p9.ReadWrite, 0o644, 0)
	must(t, err)
	must(t, f.Clunk(ctx))
	f, _, err = root.Walk(ctx, "xattrs")
	must(t, err)
	defer f.Clunk(ctx)
	value := bytes.Repeat([]byte("v\x00"), 300)
	must(t, f.SetXattr(ctx, "user.one", value, 0))
	must(t, f.SetXattr(ctx, "user.two", []byte("2"), p9.XattrCreate))
	if got, err := f.GetXattr(ctx, "user.one"); err != nil || !bytes.Equal(got, value) {
		t.Errorf("get: %q, %v", got, err)
	}
	must(t, f.RemoveXattr(ctx, "user.two"))
	list, err := f.ListXattrs(ctx)
	if err != nil || !slices.Equal(list, []string{"user.one"}) {
		t.Errorf("list: %q, %v", list, err)
	}
	if _, err := f.GetXattr(ctx, "user.two"); !errors.Is(err, syscall.ENODATA) {
		t.Errorf("get of one removed: %v", err)
	}
}

func testLocks(t *testing.T, root *Fid) {
	ctx := t.Context()
	f, err := root.Clone(ctx)
	must(t, err)
	_, err = f.Create(ctx, "locks", p9.ReadWrite, 0o644, 0)
	must(t, err)
	defer f.Clunk(ctx)
	l := Lock{Type: p9.WriteLock, PID: 1, Client: "here"}
	if status, err := f.Lock(ctx, l); err != nil || status != p9.LockStatusOK {
		t.Errorf("lock: %v, %v", status, err)
	}
	l.Type = p9.Unlock
	if status, err := f.Lock(ctx, l); err != nil || status != p9.LockStatusOK {
		t.Errorf("unlock: %v, %v", status, err)
	}
}
