package disk

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// What makes a test binary the server of a lossy disk: its image, where the file
// is to appear, what is mounted on it, and its seed.
const (
	envImage = "MEZZO_TEST_DISK_IMAGE"
	envDir   = "MEZZO_TEST_DISK_DIR"
	envMnt   = "MEZZO_TEST_DISK_MNT"
	envSeed  = "MEZZO_TEST_DISK_SEED"
)

// lossy is the process that serves a disk's image as a file whose power can be
// cut.
type lossy struct {
	dir string
	cmd *exec.Cmd
	in  io.WriteCloser // lines of commands; its end is the process's
	out *bufio.Scanner // a line of answer each
}

// newLossy serves the image at path until it is closed.
func newLossy(t testing.TB, path, mnt string, seed uint64) *lossy {
	t.Helper()
	exe, err := os.Executable()
	ok(t, err)
	l := &lossy{dir: t.TempDir(), cmd: exec.Command(exe)}
	l.cmd.Env = append(os.Environ(), envImage+"="+path, envDir+"="+l.dir, envMnt+"="+mnt, fmt.Sprintf("%s=%d", envSeed, seed))
	l.cmd.Stderr = os.Stderr
	// What is sent to the tests' group does not end their disk before them.
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	l.in, err = l.cmd.StdinPipe()
	ok(t, err)
	out, err := l.cmd.StdoutPipe()
	ok(t, err)
	ok(t, l.cmd.Start())
	l.out = bufio.NewScanner(out)
	if !l.out.Scan() || l.out.Text() != "ready" {
		l.abandon()
		t.Fatal("the lossy disk is not served")
	}
	return l
}

func (l *lossy) path() string { return filepath.Join(l.dir, "disk") }

// cut is the end of the power, and how many writes were lost.
func (l *lossy) cut(t testing.TB) int {
	t.Helper()
	_, err := fmt.Fprintln(l.in, "cut")
	ok(t, err)
	if !l.out.Scan() {
		t.Fatal("the lossy disk has ended")
	}
	n, err := strconv.Atoi(l.out.Text())
	ok(t, err)
	return n
}

func (l *lossy) close(t testing.TB) {
	t.Helper()
	ok(t, l.in.Close())
	ok(t, l.cmd.Wait())
}

// abandon ends the process whatever still uses its disk.
func (l *lossy) abandon() {
	_ = l.in.Close()
	_ = l.cmd.Wait()
}

// Serve serves a lossy disk when that is what this process was started for, until
// in ends; is says so. A TestMain passes on the process's own in and out.
func Serve(in io.Reader, out io.Writer) (is bool, err error) {
	image := os.Getenv(envImage)
	if image == "" {
		return false, nil
	}
	seed, err := strconv.ParseUint(os.Getenv(envSeed), 10, 64)
	if err == nil {
		err = serve(image, seed, in, out)
	}
	return true, err
}

// serve serves until in ends.
func serve(image string, seed uint64, in io.Reader, out io.Writer) error {
	dir, mnt := os.Getenv(envDir), os.Getenv(envMnt)
	img, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	l := &lossyFile{img: img, rnd: rand.New(rand.NewPCG(seed, 1))}
	root := &fs.Inode{}
	server, err := fs.Mount(dir, root, &fs.Options{
		OnAdd: func(ctx context.Context) {
			root.AddChild("disk", root.NewPersistentInode(ctx, l, fs.StableAttr{Mode: unix.S_IFREG}), true)
		},
		MountOptions: fuse.MountOptions{DirectMount: true, MaxWrite: 1 << 20, Name: "lossy"},
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "ready")
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) == "cut" {
			n, err := l.cut()
			if err != nil {
				return err
			}
			fmt.Fprintln(out, n)
		}
	}
	if err := server.Unmount(); err != nil {
		// Whoever used the disk was killed: what is mounted on it goes by itself once
		// it fails, which it does with the end of this process.
		_ = unix.Unmount(mnt, unix.MNT_DETACH)
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		return nil
	}
	server.Wait()
	return img.Close()
}

// lossyFile is a disk's image. Of what was written since the last flush any part
// is lost when its power is cut, as from a disk's own cache.
type lossyFile struct {
	fs.Inode
	img *os.File

	mu      sync.Mutex
	rnd     *rand.Rand
	pending []lossyWrite // since the last flush, in order
	lost    bool
}

type lossyWrite struct {
	off       int64
	was, data []byte
}

// cut is the end of the power. What is on the disk is as of the last flush, with
// any of the writes since, one by one; it says how many are not.
func (l *lossyFile) cut() (dropped int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = true
	for i := len(l.pending) - 1; i >= 0; i-- {
		if _, err := l.img.WriteAt(l.pending[i].was, l.pending[i].off); err != nil {
			return 0, err
		}
	}
	keep := l.rnd.IntN(101) // percent: from none to all
	for _, w := range l.pending {
		if l.rnd.IntN(100) >= keep {
			dropped++
			continue
		}
		if _, err := l.img.WriteAt(w.data, w.off); err != nil {
			return 0, err
		}
	}
	l.pending = nil
	return dropped, nil
}

// Getattr says how large the disk is.
func (l *lossyFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	st, err := l.img.Stat()
	if err != nil {
		return syscall.EIO
	}
	out.Mode, out.Size = unix.S_IFREG|0o600, uint64(st.Size())
	return 0
}

// Open needs no handle.
func (l *lossyFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

// Read reads what was written, also without its power: the kernel may have it in
// memory as well.
func (l *lossyFile) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := l.img.ReadAt(p, off)
	if err != nil && err != io.EOF {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(p[:n]), 0
}

// Write keeps what was there, to be able to lose the write.
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

// Fsync is a flush: what was written is on the disk.
func (l *lossyFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost {
		return syscall.EIO
	}
	l.pending = nil
	return 0
}

// Flush is a close(2), which says nothing.
func (l *lossyFile) Flush(context.Context, fs.FileHandle) syscall.Errno { return 0 }
