package fusefs

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// slowFS waits in the lookup of some names until its context ends or the gate
// opens.
type slowFS struct {
	tree.FS
	waits atomic.Int32
	ended atomic.Int32
	gate  chan struct{}
}

func (f *slowFS) Lookup(ctx context.Context, c *tree.Cred, p kml.OID, name string) (tree.Attr, error) {
	if name == "slow" {
		f.waits.Add(1)
		defer f.ended.Add(1)
		select {
		case <-f.gate:
		case <-ctx.Done():
			return tree.Attr{}, ctx.Err()
		}
	}
	if name == "panic" {
		panic("at the disco")
	}
	if name == "odd" {
		return tree.Attr{}, context.DeadlineExceeded
	}
	return f.FS.Lookup(ctx, c, p, name)
}

// TestCallEndsWithItsCaller has a lookup that waits for ever.
func TestCallEndsWithItsCaller(t *testing.T) {
	needFuse(t)
	testutil.CheckLeaks(t)
	tr := newTree(t, t.TempDir())
	slow := &slowFS{FS: tr, gate: make(chan struct{})}
	mnt, _ := mountAt(t, slow, Options{Door: 1})
	must(t, os.Mkdir(filepath.Join(mnt, "dir"), 0o700))
	p := filepath.Join(mnt, "dir", "slow")

	// A signal that the program handles does not end it; one that kills does.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "trap : USR1; exec 3<"+p)
	must(t, cmd.Start())
	eventually(t, "the lookup waits", func() bool { return slow.waits.Load() == 1 })
	must(t, cmd.Process.Signal(unix.SIGUSR1))
	// Other folders, and changes in this one, go on meanwhile.
	_, err := tr.Mkdir(t.Context(), nil, kml.RootOID, "other", 0o700)
	must(t, err)
	eventually(t, "a foreign folder is seen", func() bool { return exists(filepath.Join(mnt, "other")) })
	a, err := tr.Lookup(t.Context(), nil, kml.RootOID, "dir")
	must(t, err)
	_, err = tr.Mkdir(t.Context(), nil, a.OID, "sub", 0o700)
	must(t, err)
	if slow.ended.Load() != 0 {
		t.Error("a handled signal ended the call")
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	eventually(t, "the call ended", func() bool { return slow.ended.Load() == 1 })
	eventually(t, "the folder is seen to have changed", func() bool { return exists(filepath.Join(mnt, "dir", "sub")) })

	// A call that waits when the mount is closed ends too.
	cmd = exec.CommandContext(t.Context(), "cat", p)
	must(t, cmd.Start())
	eventually(t, "the lookup waits", func() bool { return slow.waits.Load() == 2 })
	close(slow.gate)
	if err := cmd.Wait(); err == nil {
		t.Error("cat read what is not there")
	}
}

// TestErrorsOfTheFS checks that what an FS may do wrong stays an error.
func TestErrorsOfTheFS(t *testing.T) {
	needFuse(t)
	testutil.CheckLeaks(t)
	slow := &slowFS{FS: newTree(t, t.TempDir())}
	mnt, _ := mountAt(t, slow, Options{Door: 1})
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(mnt, "panic"), &st); err != unix.EIO {
		t.Errorf("a panic: %v", err)
	}
	if err := unix.Stat(filepath.Join(mnt, "odd"), &st); err != unix.ETIMEDOUT {
		t.Errorf("a deadline: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(mnt, "fine"), nil, 0o600))
}
