package cachefs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/kml"
)

// TestFullMaster fills the master's disk: what does not fit stays here, its
// fsync says why, other changes and the link go on, and it gets there once
// there is room.
func TestFullMaster(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	testutil.CheckLeaks(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=192m"); err != nil {
		t.Skip("no tmpfs here:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	m := newMasterIn(t, dir)
	c := m.client(m.sock)
	ctx := ctxOf(t)
	must(t, writeFile(ctx, c, "small", "first"))
	must(t, c.Sync(ctx))

	ballast := filepath.Join(dir, ".mezzo", "ballast")
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	must(t, os.WriteFile(ballast, make([]byte, int(st.Bavail)*int(st.Bsize)-1<<20), 0o600))

	big := bytes.Repeat([]byte("0123456789abcdef"), 3<<16)
	_, h, err := c.Create(ctx, nil, kml.RootOID, "big", unix.O_RDWR, 0o600)
	must(t, err)
	_, err = h.WriteAt(ctx, big, 0)
	must(t, err)
	if err := h.Fsync(ctx, false); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("fsync: %v", err)
	}
	must(t, h.Close())
	if s := c.Status(); s.State != Connected || s.Unsent != 1 {
		t.Errorf("%+v", s)
	}
	a, err := c.Lookup(ctx, nil, kml.RootOID, "small")
	must(t, err)
	h, err = c.Open(ctx, nil, a.OID, unix.O_RDWR)
	must(t, err)
	_, err = h.WriteAt(ctx, []byte("other"), 0)
	must(t, err)
	must(t, h.Fsync(ctx, false))
	must(t, h.Close())
	if b, err := os.ReadFile(filepath.Join(dir, "small")); string(b) != "other" || err != nil {
		t.Error(string(b), err)
	}

	must(t, os.Remove(ballast))
	must(t, c.Sync(ctx))
	if b, err := os.ReadFile(filepath.Join(dir, "big")); !bytes.Equal(b, big) || err != nil {
		t.Error(len(b), err)
	}
	if s := c.Status(); s.State != Connected || s.Unsent != 0 {
		t.Errorf("%+v", s)
	}
	equal(t, m.tree, c)
}
