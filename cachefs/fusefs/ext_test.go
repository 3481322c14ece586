package fusefs

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml/tree"
)

// testExt is an extension with a text, a stream, a folder and made files.
type testExt struct {
	mu     sync.Mutex
	stream []byte
	more   chan struct{} // closed and renewed when the stream grows
	made   map[string]*madeFile
}

func newTestExt() *testExt {
	return &testExt{more: make(chan struct{}), made: map[string]*madeFile{}}
}

func (e *testExt) grow(s string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stream = append(e.stream, s...)
	close(e.more)
	e.more = make(chan struct{})
}

func (e *testExt) nodes() []tree.ExtNode {
	const text = "key: value\n"
	return []tree.ExtNode{
		{
			Name: "status", ID: 1, Mode: unix.S_IFREG | 0o444, Text: true,
			Size: func(context.Context) (uint64, error) { return uint64(len(text)), nil },
			Open: func(context.Context, *tree.Cred, int) (tree.ExtHandle, error) { return textHandle(text), nil },
		},
		{
			Name: "feed", ID: 2, Mode: unix.S_IFREG | 0o600,
			Open: func(context.Context, *tree.Cred, int) (tree.ExtHandle, error) { return streamHandle{e}, nil },
		},
		{Name: "stage", ID: 3, Mode: unix.S_IFDIR | 0o700, Dir: (*stageExt)(e)},
	}
}

func (e *testExt) Lookup(_ context.Context, _ *tree.Cred, name string) (tree.ExtNode, error) {
	for _, n := range e.nodes() {
		if n.Name == name {
			return n, nil
		}
	}
	return tree.ExtNode{}, unix.ENOENT
}

func (e *testExt) List(context.Context, *tree.Cred) ([]tree.ExtNode, error) { return e.nodes(), nil }

type textHandle string

func (s textHandle) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return copy(p, s[min(off, int64(len(s))):]), nil
}
func (textHandle) WriteAt(context.Context, []byte, int64) (int, error) { return 0, unix.EBADF }
func (textHandle) Attr() (tree.Attr, bool)                             { return tree.Attr{}, false }
func (textHandle) Close() error                                        { return nil }

type streamHandle struct{ e *testExt }

func (h streamHandle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	for {
		h.e.mu.Lock()
		n, more := 0, h.e.more
		if off < int64(len(h.e.stream)) {
			n = copy(p, h.e.stream[off:])
		}
		h.e.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
func (h streamHandle) WriteAt(_ context.Context, p []byte, _ int64) (int, error) {
	h.e.grow(string(p))
	return len(p), nil
}
func (streamHandle) Attr() (tree.Attr, bool) { return tree.Attr{}, false }
func (streamHandle) Close() error            { return nil }

// stageExt is the folder in which files can be made.
type stageExt testExt

type madeFile struct {
	textHandle
	e    *stageExt
	id   uint64
	name string
	data []byte
}

func (f *madeFile) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	f.data = append(f.data[:off], p...)
	return len(p), nil
}

func (f *madeFile) node() tree.ExtNode {
	return tree.ExtNode{
		Name: f.name, ID: f.id, Mode: unix.S_IFREG | 0o600,
		Size: func(context.Context) (uint64, error) {
			f.e.mu.Lock()
			defer f.e.mu.Unlock()
			return uint64(len(f.data)), nil
		},
		Open: func(context.Context, *tree.Cred, int) (tree.ExtHandle, error) { return f, nil },
	}
}

func (e *stageExt) Lookup(_ context.Context, _ *tree.Cred, name string) (tree.ExtNode, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := e.made[name]; f != nil {
		return f.node(), nil
	}
	return tree.ExtNode{}, unix.ENOENT
}

func (e *stageExt) List(context.Context, *tree.Cred) (all []tree.ExtNode, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range e.made {
		all = append(all, f.node())
	}
	return all, nil
}

func (e *stageExt) Create(_ context.Context, _ *tree.Cred, name string, _ int) (tree.ExtNode, tree.ExtHandle, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := &madeFile{e: e, name: name, id: 100 + uint64(len(e.made))}
	e.made[name] = f
	return f.node(), f, nil
}

func (e *stageExt) Remove(_ context.Context, _ *tree.Cred, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.made, name)
	return nil
}

func TestExt(t *testing.T) {
	ext := newTestExt()
	mnt, _ := mountTree(t, Options{Ext: ext})
	dir := filepath.Join(mnt, tree.ExtDirName)
	if got := names(mnt); got != "" {
		t.Errorf("the root lists %q", got)
	}
	if got := names(dir); got != "feed stage status" {
		t.Errorf("the extension lists %q", got)
	}
	if got := content(dir + "/status"); got != "key: value\n" {
		t.Errorf("status is %q", got)
	}
	if st := stat(t, dir+"/status"); st.Size != 11 || st.Mode != unix.S_IFREG|0o444 {
		t.Errorf("status: size %d mode %o", st.Size, st.Mode)
	}
	if exists(dir + "/none") {
		t.Error("a name nobody has")
	}
	must(t, os.WriteFile(dir+"/stage/1-1", []byte("upload"), 0o600))
	if got := names(dir + "/stage"); got != "1-1" {
		t.Errorf("stage lists %q", got)
	}
	if st := stat(t, dir+"/stage/1-1"); st.Size != 6 {
		t.Errorf("upload has size %d", st.Size)
	}
	must(t, os.Remove(dir+"/stage/1-1"))
	if exists(dir + "/stage/1-1") {
		t.Error("a removed upload is there")
	}
	for what, err := range map[string]error{
		"mkdir of .mezzo":  os.Mkdir(dir, 0o700),
		"rmdir of .mezzo":  unix.Rmdir(dir),
		"a file in .mezzo": os.WriteFile(dir+"/x", nil, 0o600),
		"a folder in it":   os.Mkdir(dir+"/x", 0o700),
		"chmod in it":      os.Chmod(dir+"/status", 0o600),
		"rename into it":   os.Rename(dir+"/status", mnt+"/status"),
		"link out of it":   os.Link(dir+"/status", mnt+"/status"),
	} {
		if err == nil {
			t.Errorf("%s went through", what)
		}
	}
}

// TestExtStream reads what comes as it comes, by offset, and can be stopped.
func TestExtStream(t *testing.T) {
	ext := newTestExt()
	mnt, _ := mountTree(t, Options{Ext: ext})
	p := filepath.Join(mnt, tree.ExtDirName, "feed")
	fd, err := unix.Open(p, unix.O_RDWR, 0)
	must(t, err)
	defer unix.Close(fd)
	buf := make([]byte, 100)
	for i := range 3 {
		_, err := unix.Write(fd, fmt.Appendf(nil, "record %d;", i))
		must(t, err)
	}
	// The file position moved with the writes; a stream has one all the same.
	cmd := exec.CommandContext(t.Context(), "cat", p)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	n, err := io.ReadFull(out, buf[:27])
	must(t, err)
	if got := string(buf[:n]); got != "record 0;record 1;record 2;" {
		t.Errorf("read %q", got)
	}
	ext.grow("more")
	n, err = io.ReadFull(out, buf[:4])
	must(t, err)
	if got := string(buf[:n]); got != "more" {
		t.Errorf("read %q", got)
	}
	must(t, cmd.Process.Signal(unix.SIGTERM)) // while it waits
	if err := cmd.Wait(); err == nil {
		t.Error("cat ended by itself")
	}
}
