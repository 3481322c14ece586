package tree

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mezzofs/mezzo/kml"
)

// TestWatchOverflow: when the kernel's queue of events overflows, what was done
// meanwhile is found by a scan.
func TestWatchOverflow(t *testing.T) {
	b, err := os.ReadFile("/proc/sys/fs/fanotify/max_queued_events")
	if err != nil {
		t.Skip("no fanotify here")
	}
	var limit int
	if _, err := fmt.Sscan(string(b), &limit); err != nil || limit > 1<<17 {
		t.Skipf("the queue has room for %q events", b)
	}
	dir := t.TempDir()
	ok(t, Init(dir, Options{}))
	tr, err := Open(dir, Options{})
	ok(t, err)
	t.Cleanup(func() { ok(t, tr.Close()) })
	if tr.watcher == nil {
		t.Skip("no fanotify here")
	}
	// Who would read the queue waits for this.
	tr.watcher.mu.Lock()
	files := limit/2 + 1000 // each has two events or more that are not merged
	cmd := exec.Command("sh", "-c", fmt.Sprintf(`cd "$1" && i=0; while [ $i -lt %d ]; do : >f$i; i=$((i+1)); done`, files), "sh", dir)
	out, err := cmd.CombinedOutput()
	tr.watcher.mu.Unlock()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	waitFor(t, tr, "the scan", func() bool { return countIndex(t, tr, kml.RootOID) == countDisk(t, dir) })
	// By another process: what this one does is taken for the tree's own.
	if out, err := exec.Command("touch", filepath.Join(dir, "later")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	waitFor(t, tr, "an edit after it", func() bool {
		_, _, there := tr.index.Child(kml.RootOID, "later")
		return there
	})
}

// TestWatchAsNobody runs the test of watched edits as a user without privileges,
// who can have no mark on a file system.
func TestWatchAsNobody(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("is run as another user than root")
	}
	dir, err := os.MkdirTemp("", "nobody-*")
	ok(t, err)
	t.Cleanup(func() { ok(t, os.RemoveAll(dir)) })
	const nobody = 65534
	ok(t, os.Chown(dir, nobody, nobody))
	exe, err := os.Executable()
	ok(t, err)
	bin := filepath.Join(dir, "tree.test")
	ok(t, copyTo(bin, exe))
	cmd := exec.Command(bin, "-test.run", "^TestEditsWhileRunningAreWatched$/^folders$", "-test.v")
	cmd.Dir, cmd.Env = dir, []string{"TMPDIR=" + dir, "HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestEditsWhileRunningAreWatched/folders") {
		t.Errorf("%v: %s", err, out)
	}
}

func copyTo(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		return err
	}
	return dst.Close()
}
