package fusefs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// TestKilledWhileTheKernelWaits kills a server while a chmod of a folder has the
// kernel's lock of it and waits for an answer, and a notification about a name in
// that folder waits for the lock: the process ends, and the mount is dead.
func TestKilledWhileTheKernelWaits(t *testing.T) {
	const where = "FUSEFS_KILLED"
	if dir := os.Getenv(where); dir != "" {
		stall(t, dir)
		return
	}
	needFuse(t)
	dir := t.TempDir()
	mnt := filepath.Join(dir, "mnt")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), where+"="+dir)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	end := make(chan error, 1)
	defer func() {
		// Nothing else frees both, if they wait for each other.
		_ = unix.Unmount(mnt, unix.MNT_FORCE|unix.MNT_DETACH)
		_ = cmd.Process.Kill()
		select {
		case <-end:
		case <-time.After(longest):
			t.Error("the server cannot be ended")
		}
	}()
	lines := bufio.NewScanner(out)
	says := func(what string) {
		t.Helper()
		var all []string
		for lines.Scan() {
			if lines.Text() == what {
				return
			}
			all = append(all, lines.Text())
		}
		t.Fatalf("%q is not in\n%s", what, strings.Join(all, "\n"))
	}
	waited := func() { end <- cmd.Wait() }
	says("mounted")
	if out, err := exec.CommandContext(t.Context(), "stat", filepath.Join(mnt, "d/x")).CombinedOutput(); err != nil {
		go waited()
		t.Fatalf("%v\n%s", err, out)
	}
	chmod := exec.CommandContext(t.Context(), "chmod", "700", filepath.Join(mnt, "d"))
	must(t, chmod.Start())
	says("stalled")
	eventually(t, "a thread waits for the folder", func() bool { return uninterruptible(cmd.Process.Pid) })
	must(t, cmd.Process.Kill())
	go waited()
	select {
	case err := <-end:
		end <- err
	case <-time.After(longest):
		t.Fatal("the killed server is still there")
	}
	if err := chmod.Wait(); err == nil {
		t.Error("chmod without a server succeeded")
	}
	if _, err := os.ReadDir(mnt); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("the mount of a killed server: %v", err)
	}
	if err := CheckMountPoint(mnt); err != nil {
		t.Errorf("the place of a killed server's mount: %v", err)
	}
}

// uninterruptible says that a thread of a process is in a system call that a
// signal does not end.
func uninterruptible(pid int) bool {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, p := range stats {
		b, _ := os.ReadFile(p)
		if _, state, ok := bytes.Cut(b, []byte(") ")); ok && state[0] == 'D' {
			return true
		}
	}
	return false
}

// stalling is a tree in which the chmod of a folder takes for ever.
type stalling struct {
	*tree.Tree
	dir kml.OID
	at  func()
}

func (s stalling) Setattr(ctx context.Context, c *tree.Cred, oid kml.OID, h tree.Handle, a tree.SetAttr) (tree.Attr, error) {
	if oid != s.dir {
		return s.Tree.Setattr(ctx, c, oid, h, a)
	}
	s.at()
	select {}
}

// stall is the server that is killed.
func stall(t *testing.T, dir string) {
	ctx := t.Context()
	for _, sub := range []string{"mnt", "tree"} {
		must(t, os.Mkdir(filepath.Join(dir, sub), 0o700))
	}
	tr := newTree(t, filepath.Join(dir, "tree"))
	d, err := tr.Mkdir(ctx, nil, kml.RootOID, "d", 0o755)
	must(t, err)
	_, err = tr.Mkdir(ctx, nil, d.OID, "x", 0o755)
	must(t, err)
	s := stalling{Tree: tr, dir: d.OID}
	s.at = func() {
		// Somebody else removes what the kernel has in its cache.
		if err := tr.Rmdir(ctx, nil, d.OID, "x"); err != nil {
			fmt.Println(err)
		}
		fmt.Println("stalled")
	}
	_, err = Mount(ctx, filepath.Join(dir, "mnt"), s, Options{Door: 1, Logger: logger(t)})
	must(t, err)
	fmt.Println("mounted")
	select {}
}
