package tree

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// lossyFile is a disk's image whose power can be cut, for a loop device: of what
// was written since the last flush any part is lost then, as from a disk's own
// cache. It serves one file over FUSE.
type lossyFile struct {
	fs.Inode
	img    *os.File
	server *fuse.Server
	dir    string

	mu      sync.Mutex
	rnd     *rand.Rand
	pending []lossyWrite // since the last flush, in order
	lost    bool
	dropped int
}

type lossyWrite struct {
	off       int64
	was, data []byte
}

// newLossy serves the image at path until it is closed.
func newLossy(t *testing.T, path string, rnd *rand.Rand) *lossyFile {
	t.Helper()
	img, err := os.OpenFile(path, os.O_RDWR, 0)
	ok(t, err)
	l := &lossyFile{img: img, rnd: rnd, dir: t.TempDir()}
	root := &fs.Inode{}
	l.server, err = fs.Mount(l.dir, root, &fs.Options{
		OnAdd: func(ctx context.Context) {
			root.AddChild("disk", root.NewPersistentInode(ctx, l, fs.StableAttr{Mode: unix.S_IFREG}), true)
		},
		MountOptions: fuse.MountOptions{DirectMount: true, MaxWrite: 1 << 20, Name: "lossy"},
	})
	ok(t, err)
	return l
}

func (l *lossyFile) path() string { return filepath.Join(l.dir, "disk") }

func (l *lossyFile) close(t *testing.T) {
	t.Helper()
	ok(t, l.server.Unmount())
	l.server.Wait()
	ok(t, l.img.Close())
}

// cut is the end of the power. What is on the disk is as of the last flush, with
// any of the writes since, one by one.
func (l *lossyFile) cut(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = true
	for i := len(l.pending) - 1; i >= 0; i-- {
		_, err := l.img.WriteAt(l.pending[i].was, l.pending[i].off)
		ok(t, err)
	}
	keep := l.rnd.IntN(101) // percent: from none to all
	for _, w := range l.pending {
		if l.rnd.IntN(100) >= keep {
			l.dropped++
			continue
		}
		_, err := l.img.WriteAt(w.data, w.off)
		ok(t, err)
	}
	l.pending = nil
}

func (l *lossyFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	st, err := l.img.Stat()
	if err != nil {
		return syscall.EIO
	}
	out.Mode, out.Size = unix.S_IFREG|0o600, uint64(st.Size())
	return 0
}

func (l *lossyFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (l *lossyFile) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := preadFull(int(l.img.Fd()), p, off)
	if err != nil {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(p[:n]), 0
}

func (l *lossyFile) Write(_ context.Context, _ fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost {
		return 0, syscall.EIO
	}
	w := lossyWrite{off: off, was: make([]byte, len(p)), data: append([]byte(nil), p...)}
	if _, err := l.img.ReadAt(w.was, off); err != nil {
		return 0, syscall.EIO
	}
	if _, err := l.img.WriteAt(p, off); err != nil {
		return 0, syscall.EIO
	}
	l.pending = append(l.pending, w)
	return uint32(len(p)), 0
}

func (l *lossyFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost {
		return syscall.EIO
	}
	l.pending = nil
	return 0
}

func (l *lossyFile) Flush(context.Context, fs.FileHandle) syscall.Errno { return 0 }
