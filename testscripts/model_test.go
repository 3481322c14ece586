package testscripts

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
)

// modelPatience is how long trees have to become equal once all is quiet.
const modelPatience = 2 * time.Minute

// TestModel works on one fileset through three doors at the same time, the
// master's own mount, a caching mount and a plain 9P client, at random, and
// wants all trees to be equal when they are done: the folder, the mounts, the
// index as a snapshot of it tells, and what replaying the log gives; then again
// after the master was killed in the middle of it.
func TestModel(t *testing.T) {
	if ok, _ := condition("fuse"); !ok {
		t.Skip("no /dev/fuse")
	}
	rng := testutil.Rand(t)
	rounds, steps := 2, 150
	if testutil.Long() {
		rounds, steps = 20, 1000
	}
	m := newModel(t)
	for round := range rounds {
		kill := round%2 == 1
		m.work(rng, steps, kill)
		if kill {
			m.restart()
		}
		m.compare(fmt.Sprintf("round %d", round))
		t.Logf("round %d done", round)
		if t.Failed() {
			return
		}
	}
	m.stop()
	if err := compareWithLog(m.dir); err != nil {
		t.Errorf("replay of the log: %v", err)
	}
}

// model is a fileset, its master and its doors.
type model struct {
	t               *testing.T
	root            string // of everything
	dir, up, cached string
	master, client  *exec.Cmd
}

func newModel(t *testing.T) *model {
	root := t.TempDir()
	m := &model{t: t, root: root, dir: filepath.Join(root, "work"), up: filepath.Join(root, "up"), cached: filepath.Join(root, "cached")}
	t.Cleanup(func() { sweep(root) })
	for _, d := range []string{m.dir, m.up, m.cached} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.startMaster()
	m.client = m.start(m.cached, "mount", "-f", "--cache", filepath.Join(root, "cache"), m.dir, m.cached)
	return m
}

// start runs the program until the mount it makes is there.
func (m *model) start(mnt string, args ...string) *exec.Cmd {
	m.t.Helper()
	cmd := exec.Command("mezzo", args...)
	cmd.Env = append(os.Environ(), mark+"="+m.root)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if m.t.Failed() {
			m.t.Logf("mezzo %s:\n%s", args[0], out.String())
		}
	})
	if !poll(patience, func() bool { return mounted(mnt) }) {
		m.t.Fatalf("mezzo %q: no mount: %s", args, out.String())
	}
	return cmd
}

func (m *model) startMaster() { m.master = m.start(m.up, "up", m.dir, m.up) }

// restart brings a master that was killed back; its mount is made anew.
func (m *model) restart() {
	m.t.Helper()
	if err := unix.Unmount(m.up, unix.MNT_DETACH); err != nil {
		m.t.Fatal(err)
	}
	m.startMaster()
}

// stop ends both processes as a user would.
func (m *model) stop() {
	for _, c := range []*exec.Cmd{m.client, m.master} {
		if err := c.Process.Signal(syscall.SIGTERM); err != nil {
			m.t.Error(err)
		}
		if err := c.Wait(); err != nil {
			m.t.Errorf("%v: %v", c.Args, err)
		}
	}
}

// work does steps operations through each door at the same time. With kill the
// master is killed when half of them are done.
func (m *model) work(rng *rand.Rand, steps int, kill bool) {
	m.t.Helper()
	plain, err := dialPlain(filepath.Join(m.dir, ".mezzo", "socket"))
	if err != nil {
		m.t.Fatal(err)
	}
	defer plain.Close()
	doors := []modelDoor{mountDoor{m.up}, mountDoor{m.cached}, plain}
	half := make(chan struct{}, len(doors))
	var wg sync.WaitGroup
	for i, d := range doors {
		w := &worker{door: d, rng: rand.New(rand.NewPCG(rng.Uint64(), uint64(i)))}
		wg.Go(func() {
			for n := range steps {
				if n == steps/2 {
					half <- struct{}{}
				}
				if err := w.step(); err != nil && !tolerable(err, kill) {
					m.t.Errorf("door %d, step %d: %v", i, n, err)
					return
				}
			}
		})
	}
	if kill {
		<-half
		m.killMaster()
	}
	wg.Wait()
}

// killMaster kills the master, its mount with it.
func (m *model) killMaster() {
	m.t.Helper()
	m.master.Process.Kill()
	m.master.Wait()
}

// tolerable are the answers that operations on a tree that others change at the
// same time may get; when the master was killed, its absence too.
func tolerable(err error, killed bool) bool {
	for _, e := range []syscall.Errno{unix.ENOENT, unix.EEXIST, unix.ENOTDIR, unix.EISDIR, unix.ENOTEMPTY, unix.EINVAL,
		unix.ESTALE, unix.EBUSY, unix.EMLINK, unix.ELOOP, unix.EXDEV, unix.ENODATA, unix.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	if !killed {
		return false
	}
	return errors.Is(err, unix.EHOSTDOWN) || errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) ||
		errors.Is(err, unix.EIO) || errors.Is(err, net.ErrClosed) || strings.Contains(err.Error(), "connection") ||
		strings.Contains(err.Error(), "broken pipe") || strings.Contains(err.Error(), "EOF")
}

// compare wants every view of the tree to be the same soon.
func (m *model) compare(when string) {
	m.t.Helper()
	for _, other := range []string{m.up, m.cached} {
		var diffs []string
		var err error
		if !poll(modelPatience, func() bool {
			diffs, err = treeDifferences(m.dir, other)
			return err == nil && len(diffs) == 0
		}) {
			m.t.Errorf("%s: %s differs from the folder: %v\n%s", when, filepath.Base(other), err, strings.Join(diffs[:min(20, len(diffs))], "\n"))
		}
	}
	// The client may still be sending what was kept of a conflict.
	var err error
	if !poll(modelPatience, func() bool { err = compareWithIndex(m.dir); return err == nil }) {
		m.t.Errorf("%s: the index: %v", when, err)
	}
}

// modelDoor is one way to the tree. Names are paths from its root.
type modelDoor interface {
	write(name string, data []byte, off int64, trunc bool) error
	truncate(name string, size int64) error
	read(name string) ([]byte, error)
	mkdir(name string) error
	remove(name string, dir bool) error
	rename(from, to string) error
	link(name, to string) error
	symlink(target, name string) error
	chmod(name string, mode uint32) error
	utimes(name string, mtime time.Time) error
}

// worker does random operations through a door. The names are few, so that
// workers meet.
type worker struct {
	door modelDoor
	rng  *rand.Rand
}

// name is a path of one to three steps.
func (w *worker) name() string {
	steps := []string{"a", "b", "c d", "e\n", "\xff"}
	p := steps[w.rng.IntN(len(steps))]
	for range w.rng.IntN(3) {
		p += "/" + steps[w.rng.IntN(len(steps))]
	}
	return p
}

func (w *worker) data() []byte {
	n := w.rng.IntN(64)
	if w.rng.IntN(8) == 0 {
		n = w.rng.IntN(300 << 10)
	}
	return bytes.Repeat([]byte{byte('a' + w.rng.IntN(26))}, n)
}

// step does one operation; the error names it.
func (w *worker) step() error {
	d, name, other := w.door, w.name(), w.name()
	data, off, mode := w.data(), int64(w.rng.IntN(100_000)), 0o600|uint32(w.rng.IntN(0o100))
	when := time.Unix(int64(w.rng.IntN(2_000_000_000)), int64(w.rng.IntN(1_000_000_000)))
	ops := []struct {
		often int
		what  string
		do    func() error
	}{
		{3, "replace", func() error { return d.write(name, data, 0, true) }},
		{1, "write", func() error { return d.write(name, data, off, false) }},
		{1, "truncate", func() error { return d.truncate(name, off) }},
		{2, "read", func() error { _, err := d.read(name); return err }},
		{2, "mkdir", func() error { return d.mkdir(name) }},
		{1, "unlink", func() error { return d.remove(name, false) }},
		{1, "rmdir", func() error { return d.remove(name, true) }},
		{1, "rename", func() error { return d.rename(name, other) }},
		{1, "link", func() error { return d.link(name, other) }},
		{1, "symlink", func() error { return d.symlink(other, name) }},
		{1, "chmod", func() error { return d.chmod(name, mode) }},
		{1, "utimes", func() error { return d.utimes(name, when) }},
	}
	n := 0
	for _, o := range ops {
		n += o.often
	}
	n = w.rng.IntN(n)
	for _, o := range ops {
		if n -= o.often; n < 0 {
			if err := o.do(); err != nil {
				return fmt.Errorf("%s %q (%q, %d bytes, %d): %w", o.what, name, other, len(data), off, err)
			}
			break
		}
	}
	return nil
}

// mountDoor goes through a mount.
type mountDoor struct{ root string }

func (d mountDoor) path(name string) string { return filepath.Join(d.root, name) }

func (d mountDoor) write(name string, data []byte, off int64, trunc bool) error {
	flags := os.O_WRONLY | os.O_CREATE
	if trunc {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(d.path(name), flags|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, off)
	return errors.Join(err, f.Close())
}

func (d mountDoor) truncate(name string, size int64) error {
	f, err := os.OpenFile(d.path(name), os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func (d mountDoor) read(name string) ([]byte, error) {
	f, err := os.OpenFile(d.path(name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(f)
	return b.Bytes(), err
}

func (d mountDoor) mkdir(name string) error { return os.Mkdir(d.path(name), 0o755) }

func (d mountDoor) remove(name string, dir bool) error {
	if dir {
		return unix.Rmdir(d.path(name))
	}
	return unix.Unlink(d.path(name))
}

func (d mountDoor) rename(from, to string) error { return unix.Rename(d.path(from), d.path(to)) }
func (d mountDoor) link(name, to string) error   { return os.Link(d.path(name), d.path(to)) }

func (d mountDoor) symlink(target, name string) error { return os.Symlink(target, d.path(name)) }

func (d mountDoor) chmod(name string, mode uint32) error {
	st, err := os.Lstat(d.path(name))
	if err != nil || st.Mode()&fs.ModeSymlink != 0 {
		return err
	}
	return unix.Fchmodat(unix.AT_FDCWD, d.path(name), mode|0o100, 0)
}

func (d mountDoor) utimes(name string, mtime time.Time) error {
	ts := unix.NsecToTimespec(mtime.UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, d.path(name), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}
