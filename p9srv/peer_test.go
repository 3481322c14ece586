package p9srv_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/hugelgupf/p9/fsimpl/composefs"
	"github.com/hugelgupf/p9/fsimpl/localfs"
	"github.com/hugelgupf/p9/fsimpl/staticfs"
	"github.com/hugelgupf/p9/fsimpl/test"
	"github.com/hugelgupf/p9/p9"
	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
)

// serveSocket serves a over a unix socket pair and returns the client's end.
func serveSocket(t testing.TB, a p9.Attacher, o p9srv.Options) (*p9srv.Server, net.Conn) {
	t.Helper()
	srv := p9srv.New(a, o)
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	c, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return srv, c
}

// attachPeer attaches with hugelgupf's client.
func attachPeer(t testing.TB, c net.Conn) p9.File {
	t.Helper()
	cl, err := p9.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	root, err := cl.Attach("/")
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// remote makes a tree as seen through hugelgupf's client an Attacher.
type remote struct{ cl *p9.Client }

func (r remote) Attach() (p9.File, error) {
	f, err := r.cl.Attach("/")
	return counted{f}, err
}

// counted makes Readdir's count one of entries and leaves a folder one in which
// something was created, as a local File does. On the wire it counts bytes, and
// the folder's fid becomes the new file's.
type counted struct{ p9.File }

func (c counted) Create(name string, flags p9.OpenFlags, perm p9.FileMode, uid p9.UID, gid p9.GID) (p9.File, p9.QID, uint32, error) {
	_, f, err := c.File.Walk(nil)
	if err != nil {
		return nil, p9.QID{}, 0, err
	}
	return f.Create(name, flags, perm, uid, gid)
}

func (c counted) Walk(names []string) ([]p9.QID, p9.File, error) {
	q, f, err := c.File.Walk(names)
	return q, counted{f}, err
}

func (c counted) Readdir(off uint64, n uint32) (p9.Dirents, error) {
	return c.File.Readdir(off, n*(24+255))
}

func newRemote(t *testing.T, a p9.Attacher) remote {
	_, c := serveSocket(t, a, p9srv.Options{})
	cl, err := p9.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	return remote{cl}
}

// TestPeerConformance runs hugelgupf's acceptance tests of its localfs through
// our server.
func TestPeerConformance(t *testing.T) {
	testutil.CheckLeaks(t)
	r := newRemote(t, localfs.Attacher(t.TempDir()))
	test.TestFile(t, r)
	test.TestReadOnlyFS(t, r)
	test.TestReadWriteFS(t, r)
}

// TestPeerComposefs serves trees of several kinds put together, and wants of them
// what that package's own test wants.
func TestPeerComposefs(t *testing.T) {
	testutil.CheckLeaks(t)
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "somefile"), []byte("hahaha"), 0o666), os.Chmod(filepath.Join(dir, "somefile"), 0o666)); err != nil {
		t.Fatal(err)
	}
	a, err := composefs.New(
		composefs.WithFile("foo.txt", staticfs.ReadOnlyFile("barbarbar")),
		composefs.WithFile("baz.txt", staticfs.ReadOnlyFile("barbarbarbar")),
		composefs.WithMount("localfs", localfs.Attacher(dir)),
	)
	if err != nil {
		t.Fatal(err)
	}
	test.TestReadOnlyFS(t, newRemote(t, a),
		test.WithDir("", "foo.txt", "baz.txt", "localfs"),
		test.WithDir("localfs", "somefile"),
		test.WithFile("foo.txt", "barbarbar", p9.Attr{Mode: p9.ModeRegular | 0o666, Size: 9, BlockSize: 4096}, p9.AttrMaskAll),
		test.WithFile("baz.txt", "barbarbarbar", p9.Attr{Mode: p9.ModeRegular | 0o666, Size: 12, BlockSize: 4096}, p9.AttrMaskAll),
		test.WithFile("localfs/somefile", "hahaha", p9.Attr{Mode: p9.ModeRegular | 0o666, Size: 6}, p9.AttrMask{Mode: true, Size: true}),
	)
}

func TestPeerStaticfs(t *testing.T) {
	testutil.CheckLeaks(t)
	a, err := staticfs.New(staticfs.WithFile("hello", "world"), staticfs.WithFile("other", "content"))
	if err != nil {
		t.Fatal(err)
	}
	test.TestReadOnlyFS(t, newRemote(t, a), test.WithFile("hello", "world", p9.Attr{}, p9.AttrMask{}))
}

// TestPeerLocalfs does with hugelgupf's client what it can do.
func TestPeerLocalfs(t *testing.T) {
	testutil.CheckLeaks(t)
	dir := t.TempDir()
	_, c := serveSocket(t, localfs.Attacher(dir), p9srv.Options{})
	root := attachPeer(t, c)
	if _, err := root.Mkdir("d", 0o755, p9.NoUID, p9.NoGID); err != nil {
		t.Fatal(err)
	}
	_, d, err := root.Walk([]string{"d"})
	if err != nil {
		t.Fatal(err)
	}
	f, _, _, err := d.Create("f", p9.ReadWrite, 0o644, p9.NoUID, p9.NoGID)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 3<<20)
	for i := range data {
		data[i] = byte(i >> 8)
	}
	for n := 0; n < len(data); {
		k, err := f.WriteAt(data[n:], int64(n))
		if err != nil {
			t.Fatal(err)
		}
		n += k
	}
	got := make([]byte, len(data))
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, int64(len(data))), got); err != nil {
		t.Fatal(err)
	}
	if string(got) != string(data) {
		t.Fatal("read back other bytes than were written")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	_, d, err = root.Walk([]string{"d"})
	if err != nil {
		t.Fatal(err)
	}
	_, f, err = d.Walk([]string{"f"})
	if err != nil {
		t.Fatal(err)
	}
	if err := root.RenameAt("d", root, "e"); err != nil {
		t.Fatal(err)
	}
	// The fid follows its file.
	if _, _, attr, err := f.GetAttr(p9.AttrMaskAll); err != nil || attr.Size != uint64(len(data)) {
		t.Fatalf("getattr after the folder was renamed: %v, %v", attr.Size, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "e", "f")); err != nil {
		t.Fatal(err)
	}
	if err := d.UnlinkAt("f", 0); err != nil {
		t.Fatal(err)
	}
	if err := root.UnlinkAt("e", 0); err == nil {
		t.Error("a folder was unlinked without AT_REMOVEDIR")
	}
	if err := root.UnlinkAt("e", 0x200); err != nil {
		t.Fatal(err)
	}
}
