package client

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/plain"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// TestOldDialects works on a folder in 9P2000.u and 9P2000.
func TestOldDialects(t *testing.T) {
	for _, version := range []string{wire.Version9P2000U, wire.Version9P2000} {
		t.Run(version, func(t *testing.T) {
			testutil.CheckLeaks(t)
			dir := t.TempDir()
			tree, err := plain.Open(dir, plain.Options{})
			must(t, err)
			addr := "unix!" + filepath.Join(t.TempDir(), "sock")
			ln, err := p9srv.Listen(t.Context(), addr)
			must(t, err)
			srv := p9srv.New(tree, p9srv.Options{})
			served := make(chan error, 1)
			go func() { served <- srv.Serve(t.Context(), ln) }()
			t.Cleanup(func() {
				if err := errors.Join(srv.Close(), tree.Close()); err != nil {
					t.Error(err)
				}
				<-served
			})
			c := dial(t, addr, Options{Versions: []string{version}})
			if c.Version() != version {
				t.Errorf("speaks %s", c.Version())
			}
			root, err := c.Attach(t.Context(), fmt.Sprint(os.Geteuid()), p9.UID(os.Geteuid()), "")
			must(t, err)
			t.Run("contents", func(t *testing.T) { testOldContents(t, root, dir) })
			t.Run("folder", func(t *testing.T) { testFolder(t, root, dir) })
			t.Run("errors", func(t *testing.T) { testErrors(t, root) })
			t.Run("names", func(t *testing.T) { testOldNames(t, root, dir) })
			t.Run("unix", func(t *testing.T) { testOldUnix(t, root, dir, version == wire.Version9P2000) })
		})
	}
}

func testOldContents(t *testing.T, root *Fid, dir string) {
	ctx := t.Context()
	f, err := root.Clone(ctx)
	must(t, err)
	_, err = f.Create(ctx, "f", p9.ReadWrite, 0o640, p9.NoGID)
	must(t, err)
	data := bytes.Repeat([]byte("0123456789"), 300_000)
	n, err := f.CopyFrom(ctx, bytes.NewReader(data), 0, 4)
	if n != int64(len(data)) || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	var got bytes.Buffer
	if n, err := f.CopyTo(ctx, &got, 0, 4); n != int64(len(data)) || err != nil || !bytes.Equal(got.Bytes(), data) {
		t.Fatalf("read: %d, %v", n, err)
	}
	must(t, f.FSync(ctx, false))
	must(t, f.SetAttr(ctx, p9.SetAttrMask{Size: true, Permissions: true, MTime: true, MTimeNotSystemTime: true},
		p9.SetAttr{Size: 5, Permissions: 0o600, MTimeSeconds: 77}))
	q, valid, a, err := f.GetAttr(ctx, p9.AttrMaskAll)
	must(t, err)
	if a.Size != 5 || a.Mode != 0o100600 || a.MTimeSeconds != 77 || !valid.UID || int(a.UID) != os.Geteuid() || q.Path != f.QID().Path {
		t.Errorf("attributes %v %+v %+v", q, valid, a)
	}
	must(t, f.Clunk(ctx))
	f, _, err = root.Walk(ctx, "f")
	must(t, err)
	_, err = f.Open(ctx, p9.WriteOnly|unix.O_TRUNC)
	must(t, err)
	must(t, f.Clunk(ctx))
	if st, err := os.Stat(filepath.Join(dir, "f")); err != nil || st.Size() != 0 {
		t.Errorf("opened to be emptied: %v, %v", st, err)
	}
}

func testOldNames(t *testing.T, root *Fid, dir string) {
	ctx := t.Context()
	_, err := root.Mkdir(ctx, "d", 0o750, p9.NoGID)
	must(t, err)
	d, _, err := root.Walk(ctx, "d")
	must(t, err)
	if st, err := os.Stat(filepath.Join(dir, "d")); err != nil || !st.IsDir() || st.Mode().Perm() != 0o750 {
		t.Errorf("folder %v, %v", st, err)
	}
	must(t, d.SetAttr(ctx, p9.SetAttrMask{Permissions: true}, p9.SetAttr{Permissions: 0o700}))
	must(t, os.WriteFile(filepath.Join(dir, "d/a"), nil, 0o644))
	must(t, d.RenameAt(ctx, "a", d, "b"))
	if err := d.RenameAt(ctx, "b", root, "b"); !errors.Is(err, syscall.EXDEV) {
		t.Errorf("rename to another folder: %v", err)
	}
	b, _, err := d.Walk(ctx, "b")
	must(t, err)
	if err := b.Rename(ctx, d, "c"); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("rename by fid: %v", err)
	}
	must(t, b.Clunk(ctx))
	for err, want := range map[error]error{
		d.UnlinkAt(ctx, "b", wire.UnlinkRemoveDir): syscall.ENOTDIR,
		root.UnlinkAt(ctx, "d", 0):                 syscall.EISDIR,
	} {
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	must(t, d.UnlinkAt(ctx, "b", 0))
	must(t, root.UnlinkAt(ctx, "d", wire.UnlinkRemoveDir))
	must(t, d.Clunk(ctx))
}

// testOldUnix tries what only 9P2000.u has, and what neither has.
func testOldUnix(t *testing.T, root *Fid, dir string, poor bool) {
	ctx := t.Context()
	check := func(what string, err error) bool {
		t.Helper()
		if poor != errors.Is(err, syscall.EOPNOTSUPP) || !poor && err != nil {
			t.Errorf("%s: %v", what, err)
		}
		return !poor && err == nil
	}
	_, err := root.Symlink(ctx, "l", "f", p9.NoGID)
	if check("symlink", err) {
		l, _, err := root.Walk(ctx, "l")
		must(t, err)
		if target, err := l.Readlink(ctx); target != "f" || err != nil {
			t.Errorf("readlink: %q, %v", target, err)
		}
		if _, _, a, err := l.GetAttr(ctx, p9.AttrMaskAll); err != nil || !a.Mode.IsSymlink() {
			t.Errorf("link: %v, %v", a, err)
		}
		must(t, l.Clunk(ctx))
	}
	_, err = root.Mknod(ctx, Node{Name: "p", Mode: unix.S_IFIFO | 0o600})
	if check("mknod", err) {
		if st, err := os.Lstat(filepath.Join(dir, "p")); err != nil || st.Mode()&os.ModeNamedPipe == 0 {
			t.Errorf("FIFO: %v, %v", st, err)
		}
	}
	f, _, err := root.Walk(ctx, "f")
	must(t, err)
	if check("link", root.Link(ctx, f, "hard")) {
		if _, _, a, err := f.GetAttr(ctx, p9.AttrMaskAll); err != nil || a.NLink != 2 {
			t.Errorf("links: %v, %v", a, err)
		}
		must(t, f.SetAttr(ctx, p9.SetAttrMask{Permissions: true}, p9.SetAttr{Permissions: 0o4755}))
		if _, _, a, err := f.GetAttr(ctx, p9.AttrMaskAll); err != nil || a.Mode != 0o104755 {
			t.Errorf("setuid file: %v, %v", a, err)
		}
	}
	var names []string
	all, err := root.Clone(ctx)
	must(t, err)
	_, err = all.Open(ctx, p9.ReadOnly)
	must(t, err)
	for d, err := range all.Entries(ctx) {
		must(t, err)
		names = append(names, fmt.Sprint(d.Name, " ", uint8(d.Type)))
	}
	want := []string{"f 8", "many 4"}
	if !poor {
		want = append(want, "l 10", "p 1", "hard 8")
	}
	for _, n := range want {
		if !slices.Contains(names, n) {
			t.Errorf("%q is not among %q", n, names)
		}
	}
	must(t, all.Clunk(ctx))
	_, err = f.GetXattr(ctx, "user.x")
	_, err2 := f.ListXattrs(ctx)
	_, err3 := root.StatFS(ctx)
	_, err4 := f.Lock(ctx, Lock{})
	_, err5 := f.GetLock(ctx, Lock{})
	for i, err := range []error{err, err2, err3, err4, err5, f.SetXattr(ctx, "user.x", nil, 0), f.RemoveXattr(ctx, "user.x")} {
		if !errors.Is(err, syscall.EOPNOTSUPP) {
			t.Errorf("%d: %v, want EOPNOTSUPP", i, err)
		}
	}
	must(t, f.Clunk(ctx))
}

// readFrame reads one frame past.
func readFrame(r io.Reader) (int64, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return 0, err
	}
	return io.CopyN(io.Discard, r, int64(binary.LittleEndian.Uint32(size[:]))-4)
}

// TestVersions negotiates with servers that have this or that.
func TestVersions(t *testing.T) {
	all := []string{wire.Version9P2000L, wire.Version9P2000U, wire.Version9P2000}
	for _, tt := range []struct {
		has    []string // the server's answers, in turn
		wants  []string
		speaks string // empty: none
	}{
		{[]string{"9P2000.L"}, nil, "9P2000.L"},
		{[]string{"9P2000"}, nil, ""},
		{[]string{"9P2000"}, all, "9P2000"},
		{[]string{"unknown", "9P2000.u"}, all, "9P2000.u"},
		{[]string{"unknown", "unknown", "9P2000"}, all, "9P2000"},
		{[]string{"unknown", "unknown", "unknown"}, all, ""},
		{[]string{"9P2000.e", "unknown", "unknown"}, all, ""},
	} {
		mine, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			for _, v := range tt.has {
				if _, err := readFrame(theirs); err != nil {
					return
				}
				if _, err := theirs.Write((&wire.Rversion{Msize: 8192, Version: v}).Append(nil, wire.NoTag)); err != nil {
					return
				}
			}
			_, _ = readFrame(theirs) // until the other end closes
		}()
		c, err := NewConn(t.Context(), mine, Options{Versions: tt.wants})
		var refused *VersionError
		switch {
		case tt.speaks == "" && !errors.As(err, &refused):
			t.Errorf("%v offered, %v wanted: %v", tt.has, tt.wants, err)
		case tt.speaks != "" && (err != nil || c.Version() != tt.speaks):
			t.Errorf("%v offered, %v wanted: %v", tt.has, tt.wants, err)
		}
		if err == nil {
			c.Close()
		}
	}
}

// TestOldReasons has reasons without a number.
func TestOldReasons(t *testing.T) {
	for _, tt := range []struct {
		m     wire.Rerror
		errno syscall.Errno
		text  string
	}{
		{wire.Rerror{Ename: "whatever", Errno: 13}, syscall.EACCES, ""},
		{wire.Rerror{Ename: "No such file or directory", Plain: true}, syscall.ENOENT, ""},
		{wire.Rerror{Ename: "file does not exist", Plain: true}, syscall.EIO, "file does not exist"},
		{wire.Rerror{Ename: "phase of the moon", Errno: 99999}, syscall.EIO, "phase of the moon"},
	} {
		errno, text := oldReason(&tt.m)
		if errno != tt.errno || text != tt.text {
			t.Errorf("%+v is %v, %q", tt.m, errno, text)
		}
	}
}
