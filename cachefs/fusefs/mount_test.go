package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml/tree"
)

// longest is how long a test waits for what must happen.
const longest = 30 * time.Second

// needFuse skips a test on a machine that cannot mount.
func needFuse(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no /dev/fuse")
	}
}

// logger sends a server's log to the test.
func logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// newTree makes and opens a fileset in a new folder under dir.
func newTree(t testing.TB, dir string) *tree.Tree {
	t.Helper()
	// Replays are slow work for a test; a commit at its end will do.
	o := tree.Options{Logger: logger(t), SyncEvery: time.Hour, NoWatch: true}
	if err := tree.Init(dir, o); err != nil {
		t.Fatal(err)
	}
	tr, err := tree.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	return tr
}

// mountAt mounts f on a new folder; the mount goes with the test, whatever
// happens.
func mountAt(t testing.TB, f tree.FS, o Options) (mnt string, s *Server) {
	t.Helper()
	needFuse(t)
	mnt = t.TempDir()
	if o.Logger == nil {
		o.Logger = logger(t)
	}
	s, err := Mount(t.Context(), mnt, f, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), longest)
		defer cancel()
		end := make(chan error, 1)
		go func() { end <- s.Close(ctx) }()
		select {
		case err := <-end:
			var busy *BusyError
			if err != nil && !(errors.As(err, &busy) && t.Failed()) {
				t.Error(err)
			}
		case <-time.After(2 * longest):
			_ = s.point.abort()
			_ = unix.Unmount(mnt, unix.MNT_DETACH)
			t.Error("the server does not end; aborted")
		}
	})
	// Go's poller asks a file about events when it is opened, which takes a
	// thread the server may need; one poll in a system call of its own, of a file that
	// go-fuse has for that, tells the kernel that there are none here.
	fd, err := unix.Open(filepath.Join(mnt, ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return mnt, s
}

// mountTree mounts a new tree once, on the disk of the temporary folder.
func mountTree(t testing.TB, o Options) (mnt string, tr *tree.Tree) {
	t.Helper()
	needFuse(t)
	testutil.CheckLeaks(t)
	tr = newTree(t, t.TempDir())
	if o.Door == 0 {
		o.Door = 1
	}
	mnt, _ = mountAt(t, tr, o)
	return mnt, tr
}

// eventually waits for cond, which nothing announces.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(longest); !cond(); {
		if time.Now().After(end) {
			t.Fatalf("it never happened: %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

// run runs a program in dir. It goes there by itself: between fork and exec this
// process stands still, and would not answer for its own mount.
func run(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "env", append([]string{"-C", dir, name}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestBasics(t *testing.T) {
	mnt, _ := mountTree(t, Options{})
	p := filepath.Join(mnt, "file")
	must(t, os.WriteFile(p, []byte("hello"), 0o640))
	got, err := os.ReadFile(p)
	must(t, err)
	if string(got) != "hello" {
		t.Fatalf("read %q", got)
	}
	must(t, os.Mkdir(filepath.Join(mnt, "dir"), 0o755))
	must(t, os.Rename(p, filepath.Join(mnt, "dir", "name\nof \xff bytes")))
	list, err := os.ReadDir(filepath.Join(mnt, "dir"))
	must(t, err)
	if len(list) != 1 || list[0].Name() != "name\nof \xff bytes" {
		t.Fatalf("listed %q", list)
	}
	must(t, os.RemoveAll(filepath.Join(mnt, "dir")))
	if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("stat of what is gone: %v", err)
	}
}

func TestMountErrors(t *testing.T) {
	needFuse(t)
	tr := newTree(t, t.TempDir())
	dir := t.TempDir()
	file, full := filepath.Join(dir, "file"), filepath.Join(dir, "full")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.MkdirAll(filepath.Join(full, "x"), 0o700))
	taken, _ := mountAt(t, tr, Options{Door: 1})
	for _, c := range []struct {
		path string
		want error
	}{
		{filepath.Join(dir, "none"), fs.ErrNotExist},
		{filepath.Join(dir, "none", "deeper"), fs.ErrNotExist},
		{file, ErrNotDir},
		{full, ErrNotEmpty},
		{taken, ErrMounted},
	} {
		s, err := Mount(t.Context(), c.path, tr, Options{Door: 2})
		if s != nil {
			_ = s.Close(t.Context())
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.path, err, c.want)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Mount(ended, t.TempDir(), tr, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("mount with an ended context: %v", err)
	}
}

func TestClose(t *testing.T) {
	needFuse(t)
	testutil.CheckLeaks(t)
	tr := newTree(t, t.TempDir())
	t.Run("twice", func(t *testing.T) {
		mnt, s := mountAt(t, tr, Options{Door: 1})
		for range 2 {
			must(t, s.Close(t.Context()))
		}
		s.Wait()
		if _, err := findMount(mnt); err == nil {
			t.Error("still mounted")
		}
	})
	t.Run("busy", func(t *testing.T) {
		mnt := t.TempDir()
		s, err := Mount(t.Context(), mnt, tr, Options{Door: 1, Logger: logger(t)})
		must(t, err)
		fd, err := unix.Open(filepath.Join(mnt, "kept"), unix.O_CREAT|unix.O_RDWR, 0o600)
		must(t, err)
		defer unix.Close(fd)
		_, err = unix.Write(fd, []byte("before"))
		must(t, err)
		var busy *BusyError
		if err := s.Close(t.Context()); !errors.As(err, &busy) {
			t.Fatalf("close of a mount in use: %v", err)
		}
		if _, err := unix.Write(fd, []byte("after")); err == nil {
			t.Error("a file of a closed mount can be written")
		}
		if _, err := findMount(mnt); err == nil {
			t.Error("still mounted")
		}
		a, err := tr.Lookup(t.Context(), nil, 1, "kept")
		must(t, err)
		if a.Size != 6 || a.DataVersion&tree.DataDirty != 0 {
			t.Errorf("what was open is not closed: %+v", a)
		}
	})
	t.Run("by umount", func(t *testing.T) {
		mnt, s := mountAt(t, tr, Options{Door: 1})
		must(t, unix.Unmount(mnt, 0))
		s.Wait()
		must(t, s.Close(t.Context()))
	})
	t.Run("while a lock is waited for", func(t *testing.T) {
		mnt, s := mountAt(t, tr, Options{Door: 1})
		p := filepath.Join(mnt, "lock")
		a, err := unix.Open(p, unix.O_CREAT|unix.O_RDWR, 0o600)
		must(t, err)
		defer unix.Close(a)
		must(t, unix.Flock(a, unix.LOCK_EX))
		b, err := unix.Open(p, unix.O_RDWR, 0)
		must(t, err)
		defer unix.Close(b)
		end := make(chan error, 1)
		go func() { end <- unix.Flock(b, unix.LOCK_EX) }()
		waitForWaiter(t)
		var busy *BusyError
		if err := s.Close(t.Context()); !errors.As(err, &busy) {
			t.Fatalf("close: %v", err)
		}
		if err := <-end; err == nil {
			t.Error("the lock was granted")
		}
		s.closeErr = nil // expected; the cleanup asks again
	})
}

// waitForWaiter waits until some thread of this process sleeps in FUSE on a
// lock: the kernel tells in /proc where threads sleep.
func waitForWaiter(t testing.TB) {
	t.Helper()
	eventually(t, "a thread waits for an answer of FUSE", func() bool {
		tasks, _ := filepath.Glob("/proc/self/task/*/stack")
		for _, p := range tasks {
			if text, err := os.ReadFile(p); err == nil && strings.Contains(string(text), "fuse_setlk") {
				return true
			}
		}
		return false
	})
}

// TestMountAsUser mounts through fusermount3, in a child of another user.
func TestMountAsUser(t *testing.T) {
	if dir := os.Getenv("FUSEFS_CHILD"); dir != "" {
		childMounts(t, dir)
		return
	}
	needFuse(t)
	if _, err := helper(); err != nil {
		t.Skip(err)
	}
	const nobody = 65534
	dir := t.TempDir()
	// Every folder above must let the user through.
	for p := dir; p != "/tmp" && p != "/"; p = filepath.Dir(p) {
		must(t, os.Chmod(p, 0o755))
	}
	for _, name := range []string{"tree", "mnt"} {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o700))
		must(t, os.Chown(filepath.Join(dir, name), nobody, nobody))
	}
	exe, device := filepath.Join(dir, "test"), filepath.Join(dir, "fuse")
	self, err := os.Executable()
	must(t, err)
	run(t, dir, "cp", self, exe)
	must(t, os.Chmod(exe, 0o755))
	// The child sees a /dev/fuse that everybody may open, as on most machines.
	must(t, unix.Mknod(device, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))))
	must(t, os.Chmod(device, 0o666))
	script := fmt.Sprintf("mount --bind %s /dev/fuse && exec setpriv --reuid=%d --regid=%d --clear-groups "+
		"%s -test.run='^TestMountAsUser$' -test.v", device, nobody, nobody, exe)
	cmd := exec.CommandContext(t.Context(), "unshare", "-m", "sh", "-c", script)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "FUSEFS_CHILD="+dir, "TMPDIR="+filepath.Join(dir, "tree"))
	out, err := cmd.CombinedOutput()
	if err != nil { // its mounts went with its mount namespace
		t.Fatalf("%v\n%s", err, out)
	}
}

func childMounts(t *testing.T, dir string) {
	tr := newTree(t, filepath.Join(dir, "tree"))
	mnt := filepath.Join(dir, "mnt")
	s, err := Mount(t.Context(), mnt, tr, Options{Door: 1, Logger: logger(t)})
	must(t, err)
	run(t, dir, "sh", "-c", fmt.Sprintf("echo text >%s/file && grep -q text %s/file", mnt, mnt))
	if fi, err := os.Stat(filepath.Join(mnt, "file")); err != nil || fi.Size() != 5 {
		t.Error(fi, err)
	}
	must(t, s.Close(t.Context()))
	if _, err := findMount(mnt); err == nil {
		t.Error("still mounted")
	}
	s, err = Mount(t.Context(), mnt, tr, Options{Door: 1, Logger: logger(t)})
	must(t, err)
	fd, err := unix.Open(filepath.Join(mnt, "file"), unix.O_RDONLY, 0)
	must(t, err)
	defer unix.Close(fd)
	var busy *BusyError
	if err := s.Close(t.Context()); !errors.As(err, &busy) {
		t.Errorf("close of a mount in use: %v", err)
	}
}

// tempDir is a folder under dir, "" for the test's own.
func tempDir(t testing.TB, dir string) string {
	t.Helper()
	if dir == "" {
		return t.TempDir()
	}
	d, err := os.MkdirTemp(dir, "fusefs")
	must(t, err)
	t.Cleanup(func() {
		if err := os.RemoveAll(d); err != nil {
			t.Error(err)
		}
	})
	return d
}

// A server that was killed leaves a dead mount; the next one takes its place.
func TestDeadMountIsTakenAway(t *testing.T) {
	needFuse(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount without a helper")
	}
	dir := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	fd, err := mountDirect(dir, Options{})
	must(t, err)
	if err := CheckMountPoint(dir); !errors.Is(err, ErrMounted) {
		t.Errorf("a mount with a server: %v", err)
	}
	must(t, unix.Close(fd))
	if err := CheckMountPoint(dir); err != nil {
		t.Errorf("a mount without a server: %v", err)
	}
	if _, err := findMount(dir); err == nil {
		t.Error("the dead mount is still there")
	}
}
