package cachefs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	must(t, exec.Command("cp", "-a", from, to).Run())
	return to
}

// contains checks that a file of the master's folder holds a text, be it in a
// conflict copy.
func contains(t *testing.T, m *testMaster, name, want string) {
	t.Helper()
	ext := filepath.Ext(name)
	all, err := filepath.Glob(filepath.Join(m.dir, strings.TrimSuffix(name, ext)+"*"))
	must(t, err)
	for _, p := range all {
		if b, err := os.ReadFile(p); err == nil && string(b) == want {
			return
		}
	}
	t.Errorf("%q is in none of %q", want, all)
}

// TestRestoredFromBackup: a client's cache is put back to how it was before, with
// changes that were not sent then and were sent since. They are not made twice,
// what was made since stands, and what is made now gets new numbers.
func TestRestoredFromBackup(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	dir := t.TempDir()
	c := openClient(t, dir, m.sock)
	must(t, writeFile(ctx, c, "before", "before"))
	must(t, c.Sync(ctx))
	must(t, c.SetOffline(true))
	must(t, writeFile(ctx, c, "pending", "pending"))
	must(t, writeFile(ctx, c, "large", strings.Repeat("large", 100<<10)))
	must(t, c.Close(ctx))
	backup := copyDir(t, dir)

	c = openClient(t, dir, m.sock)
	must(t, c.SetOffline(false))
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, c.Sync(ctx))
	must(t, writeFile(ctx, c, "since", "since"))
	must(t, writeFile(ctx, c, "pending", "changed since"))
	must(t, c.Sync(ctx))
	must(t, c.Close(ctx))

	c = openClient(t, backup, m.sock)
	must(t, writeFile(ctx, c, "now", "now"))
	must(t, c.SetOffline(false))
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, writeFile(ctx, c, "later", "later"))
	must(t, c.Sync(ctx))
	for name, want := range map[string]string{"before": "before", "since": "since", "pending": "changed since",
		"now": "now", "later": "later", "large": strings.Repeat("large", 100<<10)} {
		contains(t, m, name, want)
	}
	once(t, m)
	equal(t, m.tree, c)
}

// TestCloned: two clients with one identity, as a virtual machine that was copied
// with changes that wait. Both send them and what they made since; nothing is
// lost, and the second is another site.
func TestCloned(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	dir := t.TempDir()
	c := openClient(t, dir, m.sock)
	must(t, writeFile(ctx, c, "shared", "before"))
	must(t, c.Sync(ctx))
	must(t, c.SetOffline(true))
	must(t, writeFile(ctx, c, "pending", "pending"))
	d, err := c.Mkdir(ctx, nil, kml.RootOID, "dir", 0o755)
	must(t, err)
	_, h, err := c.Create(ctx, nil, d.OID, "in it", os.O_WRONLY, 0o644)
	must(t, err)
	must(t, h.Close())
	must(t, c.Close(ctx))
	clone := copyDir(t, dir)

	a, b := openClient(t, dir, m.sock), openClient(t, clone, m.sock)
	must(t, writeFile(ctx, a, "shared", "from the first"))
	must(t, writeFile(ctx, b, "shared", "from the second"))
	must(t, writeFile(ctx, b, "large", strings.Repeat("large", 100<<10)))
	for _, c := range []*Client{a, b} {
		must(t, c.SetOffline(false))
		must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
		must(t, c.Sync(ctx))
	}
	must(t, a.Sync(ctx))
	if x, y := a.Status().Site, b.Status().Site; x == y {
		t.Error("both are site", x)
	}
	for name, want := range map[string]string{"pending": "pending", "large": strings.Repeat("large", 100<<10)} {
		contains(t, m, name, want)
	}
	contains(t, m, "shared", "from the first")
	contains(t, m, "shared", "from the second")
	if es, err := os.ReadDir(filepath.Join(m.dir, "dir")); err != nil || len(es) == 0 {
		t.Error(es, err)
	}
	once(t, m)
	equal(t, m.tree, a, b)
}

// TestHalfOpenOldConnection: bytes of the old connection, among them a batch and a
// part of an upload, come to the master after the client has begun a new session.
func TestHalfOpenOldConnection(t *testing.T) {
	m := newMaster(t)
	slow, fresh := newProxy(t, m.sock), newProxy(t, m.sock)
	ctx := ctxOf(t)
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "l")
	must(t, os.Symlink(slow.addr, link))
	o := optionsOf(dir, link)
	o.Dead = 2 * time.Second
	c, err := clientWith(t, o)
	must(t, err)
	must(t, writeFile(ctx, c, "f", "before"))
	must(t, c.Sync(ctx))
	slow.slow(time.Millisecond)
	body := noise(6 << 20)
	must(t, writeBytes(ctx, c, "large", body))
	until(t, "the upload", func() bool { return m.uploaded() > 1<<20 })
	slow.freeze(true) // what is on its way stays on its way
	must(t, writeFile(ctx, c, "f", "in the old connection"))
	must(t, c.Unlink(ctx, nil, kml.RootOID, "f"))
	must(t, os.Remove(link))
	must(t, os.Symlink(fresh.addr, link))
	must(t, c.WaitState(ctx, func(s State) bool { return s == Disconnected }))
	must(t, c.WaitState(ctx, func(s State) bool { return s == Connected }))
	must(t, writeFile(ctx, c, "f", "in the new one"))
	slow.freeze(false)
	slow.slow(0)
	must(t, c.Sync(ctx))
	if b, err := os.ReadFile(filepath.Join(m.dir, "f")); string(b) != "in the new one" || err != nil {
		t.Error(string(b), err)
	}
	if b, err := os.ReadFile(filepath.Join(m.dir, "large")); string(b) != string(body) || err != nil {
		t.Error(len(b), err)
	}
	once(t, m)
	equal(t, m.tree, c)
}

// TestRefusedByName: what the master refuses stays, with its path and reason in
// status, holds up nothing but what depends on it, and goes when it can.
func TestRefusedByName(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	c := m.client(m.sock)
	d, err := c.Mkdir(ctx, nil, kml.RootOID, "locked", 0o755)
	must(t, err)
	must(t, c.Sync(ctx))
	immutable := func(on uint32) {
		t.Helper()
		fd, err := unix.Open(filepath.Join(m.dir, "locked"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		defer unix.Close(fd)
		if err := unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(on)); err != nil {
			t.Skip("no immutable folders here:", err)
		}
	}
	immutable(0x10) // FS_IMMUTABLE_FL
	defer immutable(0)
	_, h, err := c.Create(ctx, nil, d.OID, "file", os.O_WRONLY, 0o644)
	must(t, err)
	_, err = h.WriteAt(ctx, []byte("text"), 0)
	must(t, err)
	must(t, h.Close())
	must(t, writeFile(ctx, c, "free", "free"))
	until(t, "free", func() bool {
		b, err := os.ReadFile(filepath.Join(m.dir, "free"))
		return err == nil && string(b) == "free"
	})
	until(t, "the refusal", func() bool { return len(c.Status().Waiting) > 0 })
	if s := c.Status().String(); !strings.Contains(s, `create "/locked/file": operation not permitted`) {
		t.Error(s)
	}
	if err := c.Sync(ctx); !errors.Is(err, syscall.EPERM) {
		t.Error(err)
	}
	immutable(0)
	must(t, c.Sync(ctx))
	if b, err := os.ReadFile(filepath.Join(m.dir, "locked", "file")); string(b) != "text" || err != nil {
		t.Error(string(b), err)
	}
	if s := c.Status(); len(s.Waiting) > 0 || s.Unsent > 0 {
		t.Error(s)
	}
	equal(t, m.tree, c)
}

// TestMade: what cancelled itself is not sent, and shown until all is.
func TestMade(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	o := optionsOf(t.TempDir(), m.sock)
	o.Aging = time.Hour
	c, err := clientWith(t, o)
	must(t, err)
	for i := range 3 {
		must(t, writeFile(ctx, c, "tmp", fmt.Sprint(i)))
		must(t, c.Unlink(ctx, nil, kml.RootOID, "tmp"))
	}
	before := string(c.madeText())
	if n := strings.Count(before, `"tmp"`); n != 6 {
		t.Errorf("%d lines:\n%s", n, before)
	}
	must(t, writeFile(ctx, c, "kept", "x"))
	must(t, writeFile(ctx, c, "kept", "y"))
	c.push.turn.Lock()
	must(t, c.trim())
	c.push.turn.Unlock()
	if s := string(c.localText()); strings.Contains(s, `"tmp"`) || strings.Count(s, "store") != 1 {
		t.Error(s)
	}
	// What it says of what went is of use as long as something behind it waits.
	if s := string(c.madeText()); strings.Count(s, "store") < 1 || !strings.Contains(s, `"kept"`) {
		t.Error(s)
	}
	must(t, c.Sync(ctx))
	until(t, "the end", func() bool { return c.cache.Local().Len() == 0 && len(c.madeText()) == 0 })
	if _, err := os.Stat(c.made.path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestOldOutbox: a cache with changes in the form of an earlier version is
// refused by name; one that has sent all of them is used.
func TestOldOutbox(t *testing.T) {
	m := newMaster(t)
	ctx := ctxOf(t)
	dir := t.TempDir()
	c := openClient(t, dir, m.sock)
	must(t, writeFile(ctx, c, "f", "x"))
	must(t, c.Close(ctx))
	box := filepath.Join(dir, ".mezzo", "outbox")
	must(t, os.Mkdir(box, 0o700))
	entry := func(b []byte, kind byte, body []byte) []byte {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
		sum := crc32.Checksum(append([]byte{kind}, body...), crc32.MakeTable(crc32.Castagnoli))
		b = binary.LittleEndian.AppendUint32(b, sum)
		return append(append(b, kind), body...)
	}
	rec, _, err := kml.AppendRecord(nil, &kml.Record{Op: kml.OpCreate, OID: kml.MakeOID(5, 1), Parent: kml.RootOID, Name: "old", Origin: kml.Origin{Site: 5, Seq: 9}}, 0)
	must(t, err)
	log := entry([]byte("mezzoob1"), 1, rec)
	must(t, os.WriteFile(filepath.Join(box, "log"), log, 0o600))
	_, err = tryClient(t, dir, m.sock)
	var unsent *UnsentError
	if !errors.As(err, &unsent) || unsent.Changes != 1 || unsent.Dir != box {
		t.Fatal(err)
	}
	if !strings.Contains(err.Error(), box+" has 1 changes of an earlier version") {
		t.Error(err)
	}
	must(t, os.WriteFile(filepath.Join(box, "log"), entry(log, 2, binary.LittleEndian.AppendUint64(nil, 9)), 0o600))
	c = openClient(t, dir, m.sock)
	if s, err := readFile(ctx, c, "f"); s != "x" || err != nil {
		t.Error(s, err)
	}
	if _, err := os.Stat(box); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
