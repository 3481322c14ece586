package plain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/client"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// serve serves a new folder and returns it with a connection's root.
func serve(t testing.TB, o Options) (dir string, attach func(uid p9.UID) *client.Fid) {
	t.Helper()
	testutil.CheckLeaks(t)
	dir = t.TempDir()
	before := openFDs(t)
	tr, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	srv := p9srv.New(tr, p9srv.Options{})
	t.Cleanup(func() {
		if err := errors.Join(srv.Close(), tr.Close()); err != nil {
			t.Error(err)
		}
		if n := openFDs(t); n > before {
			t.Errorf("%d descriptors are left open", n-before)
		}
	})
	return dir, func(uid p9.UID) *client.Fid {
		t.Helper()
		mine, theirs := net.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); _ = srv.ServeConn(context.Background(), theirs) }()
		c, err := client.NewConn(t.Context(), mine, client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(); <-done })
		root, err := c.Attach(t.Context(), "", uid, "")
		if err != nil {
			t.Fatal(err)
		}
		return root
	}
}

func openFDs(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// tb is a test with a shorthand for its context.
type tb struct {
	*testing.T
	ctx context.Context
}

func (t tb) walk(f *client.Fid, path string) *client.Fid {
	t.Helper()
	var names []string
	if path != "" {
		names = strings.Split(path, "/")
	}
	g, _, err := f.Walk(t.ctx, names...)
	if err != nil {
		t.Fatalf("walk %q: %v", path, err)
	}
	return g
}

func (t tb) open(f *client.Fid, path string, flags p9.OpenFlags) *client.Fid {
	t.Helper()
	g := t.walk(f, path)
	if _, err := g.Open(t.ctx, flags); err != nil {
		t.Fatalf("open %q: %v", path, err)
	}
	return g
}

func (t tb) create(f *client.Fid, name, data string) *client.Fid {
	t.Helper()
	g := t.walk(f, "")
	if _, err := g.Create(t.ctx, name, p9.ReadWrite, 0o644, p9.NoGID); err != nil {
		t.Fatalf("create %q: %v", name, err)
	}
	if _, err := g.WriteAt(t.ctx, []byte(data), 0); err != nil {
		t.Fatalf("write %q: %v", name, err)
	}
	return g
}

func (t tb) read(f *client.Fid) string {
	t.Helper()
	b := make([]byte, 1<<16)
	n, err := f.ReadFull(t.ctx, b, 0, 1)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("read: %v", err)
	}
	return string(b[:n])
}

func (t tb) want(err error, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%v, want %v", err, want)
	}
}

func (t tb) ok(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func me() p9.UID { return p9.UID(os.Getuid()) }

func TestFiles(tt *testing.T) {
	t := tb{tt, tt.Context()}
	dir, attach := serve(t, Options{})
	root := attach(me())

	f := t.create(root, "f", "hello")
	if got := t.read(f); got != "hello" {
		t.Errorf("read %q", got)
	}
	q1, _, a, err := f.GetAttr(t.ctx, p9.AttrMaskAll)
	t.ok(err)
	var st unix.Stat_t
	t.ok(unix.Stat(filepath.Join(dir, "f"), &st))
	if q1.Path != st.Ino || a.Size != 5 || a.Mode != 0o100644 || a.Gen == 0 || a.BTimeSeconds == 0 || a.NLink != 1 {
		t.Errorf("attributes %v %+v, inode %d", q1, a, st.Ino)
	}
	// Every write moves the version, however close to the one before.
	seen := map[uint32]bool{q1.Version: true}
	for range 20 {
		_, err := f.WriteAt(t.ctx, []byte("x"), 0)
		t.ok(err)
		q, _, _, err := f.GetAttr(t.ctx, p9.AttrMaskAll)
		t.ok(err)
		if seen[q.Version] {
			t.Errorf("version %d twice", q.Version)
		}
		seen[q.Version] = true
	}

	// A fid follows its file through renames on the host, and beyond its last name.
	t.ok(os.Rename(filepath.Join(dir, "f"), filepath.Join(dir, "g")))
	w := t.walk(root, "g")
	t.ok(os.Remove(filepath.Join(dir, "g")))
	for _, fid := range []*client.Fid{f, w} {
		t.ok(fid.SetAttr(t.ctx, p9.SetAttrMask{Permissions: true, Size: true}, p9.SetAttr{Permissions: 0o600, Size: 2}))
		t.ok(fid.SetAttr(t.ctx, p9.SetAttrMask{MTime: true, MTimeNotSystemTime: true}, p9.SetAttr{MTimeSeconds: 77}))
	}
	_, _, a, err = w.GetAttr(t.ctx, p9.AttrMaskAll)
	t.ok(err)
	if a.Size != 2 || a.Mode != 0o100600 || a.MTimeSeconds != 77 || a.NLink != 0 {
		t.Errorf("attributes of an unlinked file: %+v", a)
	}
	if got := t.read(f); got != "xe" {
		t.Errorf("unlinked file holds %q", got)
	}

	// Appending appends, whatever the offset.
	t.create(root, "log", "1")
	l := t.open(root, "log", p9.WriteOnly|dotlAppend)
	_, err = l.WriteAt(t.ctx, []byte("2"), 0)
	t.ok(err)
	if b, _ := os.ReadFile(filepath.Join(dir, "log")); string(b) != "12" {
		t.Errorf("appended file holds %q", b)
	}
	// One that is served can be executed: no descriptor that writes is left.
	x := t.create(root, "prog", "#!/bin/sh\n")
	t.ok(x.SetAttr(t.ctx, p9.SetAttrMask{Permissions: true}, p9.SetAttr{Permissions: 0o755}))
	stay := t.walk(root, "prog")
	t.ok(x.Clunk(t.ctx))
	if fd, err := unix.Open(filepath.Join(dir, "prog"), unix.O_RDONLY, 0); err != nil {
		t.Error(err)
	} else {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK) // refused while anybody can write
		unix.Close(fd)
		t.ok(err)
	}
	t.ok(stay.Clunk(t.ctx))
}

func TestNames(tt *testing.T) {
	t := tb{tt, tt.Context()}
	dir, attach := serve(t, Options{})
	root := attach(me())
	_, err := root.Mkdir(t.ctx, "d", 0o777, p9.NoGID)
	t.ok(err)
	if fi, err := os.Stat(filepath.Join(dir, "d")); err != nil || fi.Mode().Perm() != 0o777 {
		t.Errorf("folder: %v, %v", fi.Mode(), err)
	}
	t.ok(t.create(root, "f", "data").Clunk(t.ctx))
	d, f := t.walk(root, "d"), t.walk(root, "f")
	t.ok(d.Link(t.ctx, f, "l"))
	_, err = d.Symlink(t.ctx, "s", "../f", p9.NoGID)
	t.ok(err)
	s := t.walk(d, "s")
	if target, err := s.Readlink(t.ctx); err != nil || target != "../f" {
		t.Errorf("link says %q, %v", target, err)
	}
	_, err = s.Open(t.ctx, p9.ReadOnly)
	t.want(err, syscall.ELOOP)
	t.ok(root.RenameAt(t.ctx, "f", d, "g"))
	// f was walked to as "f", which is gone.
	t.want(f.Rename(t.ctx, root, "h"), syscall.ENOENT)
	g := t.walk(d, "g")
	t.ok(g.Rename(t.ctx, root, "h"))
	t.ok(g.Rename(t.ctx, root, "i"))
	t.ok(g.Remove(t.ctx))
	t.want(d.UnlinkAt(t.ctx, "s", wire.UnlinkRemoveDir), syscall.ENOTDIR)
	t.want(root.UnlinkAt(t.ctx, "d", 0), syscall.EISDIR)
	t.want(root.UnlinkAt(t.ctx, "d", wire.UnlinkRemoveDir), syscall.ENOTEMPTY)
	t.ok(d.UnlinkAt(t.ctx, "s", 0))
	t.ok(d.UnlinkAt(t.ctx, "l", 0))
	t.ok(root.UnlinkAt(t.ctx, "d", wire.UnlinkRemoveDir))
	_, err = root.Mknod(t.ctx, client.Node{Name: "dev", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 3, GID: p9.NoGID})
	t.want(err, syscall.EPERM)
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestListing(tt *testing.T) {
	t := tb{tt, tt.Context()}
	dir, attach := serve(t, Options{})
	var want []string
	for i := range 3000 {
		name := fmt.Sprintf("%d-%s", i, strings.Repeat("n", i%200))
		want = append(want, name)
		t.ok(os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	d := t.open(attach(me()), "", p9.ReadOnly)
	var got []string
	offsets := map[string]uint64{}
	for off := uint64(0); ; {
		es, err := d.Readdir(t.ctx, off, 4096)
		t.ok(err)
		if len(es) == 0 {
			break
		}
		for _, e := range es {
			off = e.Offset
			offsets[e.Name] = off
			if e.Name != "." && e.Name != ".." {
				got = append(got, e.Name)
			}
		}
	}
	order := slices.Clone(got)
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
	// An offset that was given can be gone on from, backwards too.
	for _, i := range []int{2000, 10, 1500} {
		es, err := d.Readdir(t.ctx, offsets[order[i]], 4096)
		t.ok(err)
		if len(es) == 0 || es[0].Name != order[i+1] {
			t.Errorf("behind entry %d stands %v", i, es)
		}
	}
}

func TestRightsAndUsers(tt *testing.T) {
	if os.Geteuid() != 0 {
		tt.Skip("needs root to serve somebody else")
	}
	t := tb{tt, tt.Context()}
	dir, attach := serve(t, Options{})
	t.ok(os.Chmod(dir, 0o777))
	root, user := attach(0), attach(1234)
	t.ok(t.create(root, "secret", "s").SetAttr(t.ctx, p9.SetAttrMask{Permissions: true}, p9.SetAttr{Permissions: 0o600}))
	_, err := t.walk(user, "secret").Open(t.ctx, p9.ReadOnly)
	t.want(err, syscall.EACCES)
	t.want(t.walk(user, "secret").SetAttr(t.ctx, p9.SetAttrMask{Permissions: true}, p9.SetAttr{Permissions: 0o666}), syscall.EPERM)
	_, err = root.Mkdir(t.ctx, "closed", 0o700, p9.NoGID)
	t.ok(err)
	t.ok(os.WriteFile(filepath.Join(dir, "closed", "f"), nil, 0o666))
	_, qids, err := user.Walk(t.ctx, "closed", "f")
	if err == nil || len(qids) != 1 {
		t.Errorf("walk into a closed folder: %v, %v", qids, err)
	}
	t.create(user, "mine", "m")
	var st unix.Stat_t
	t.ok(unix.Stat(filepath.Join(dir, "mine"), &st))
	if st.Uid != 1234 {
		t.Errorf("file of user 1234 belongs to %d", st.Uid)
	}
	// What root's write leaves, another's takes away.
	t.ok(os.Chmod(filepath.Join(dir, "mine"), 0o4777|os.ModeSetuid))
	w := t.open(attach(1235), "mine", p9.WriteOnly)
	_, err = w.WriteAt(t.ctx, []byte("x"), 0)
	t.ok(err)
	t.ok(unix.Stat(filepath.Join(dir, "mine"), &st))
	if st.Mode&unix.S_ISUID != 0 {
		t.Errorf("setuid bit outlives another user's write: %o", st.Mode)
	}
}

func TestReadOnlyAndSquash(tt *testing.T) {
	t := tb{tt, tt.Context()}
	dir, attach := serve(t, Options{ReadOnly: true})
	t.ok(os.WriteFile(filepath.Join(dir, "f"), []byte("data"), 0o666))
	root := attach(me())
	_, err := t.walk(root, "f").Open(t.ctx, p9.ReadWrite)
	t.want(err, syscall.EROFS)
	_, err = t.walk(root, "f").Open(t.ctx, p9.ReadOnly|dotlTrunc)
	t.want(err, syscall.EROFS)
	_, err = root.Mkdir(t.ctx, "d", 0o777, p9.NoGID)
	t.want(err, syscall.EROFS)
	t.want(root.UnlinkAt(t.ctx, "f", 0), syscall.EROFS)
	t.want(root.RenameAt(t.ctx, "f", root, "g"), syscall.EROFS)
	t.want(t.walk(root, "f").SetAttr(t.ctx, p9.SetAttrMask{Size: true}, p9.SetAttr{}), syscall.EROFS)
	t.want(t.walk(root, "f").SetXattr(t.ctx, "user.a", []byte("1"), 0), syscall.EROFS)
	if got := t.read(t.open(root, "f", p9.ReadOnly)); got != "data" {
		t.Errorf("read %q", got)
	}

	if os.Geteuid() != 0 {
		return
	}
	dir, attach = serve(t, Options{Squash: SquashRoot, SquashUID: 4321, SquashGID: 4322})
	t.ok(os.Chmod(dir, 0o777))
	t.create(attach(0), "f", "")
	var st unix.Stat_t
	t.ok(unix.Stat(filepath.Join(dir, "f"), &st))
	if st.Uid != 4321 || st.Gid != 4322 {
		t.Errorf("squashed root's file belongs to %d:%d", st.Uid, st.Gid)
	}
}

func TestXattrsAndLocks(tt *testing.T) {
	t := tb{tt, tt.Context()}
	_, attach := serve(t, Options{})
	a, b := attach(me()), attach(me())
	f := t.create(a, "f", "")
	x := t.walk(a, "f")
	t.ok(x.SetXattr(t.ctx, "user.k", bytes.Repeat([]byte("v"), 1000), 0))
	if v, err := t.walk(b, "f").GetXattr(t.ctx, "user.k"); err != nil || len(v) != 1000 {
		t.Errorf("attribute of %d bytes, %v", len(v), err)
	}
	if names, err := t.walk(b, "f").ListXattrs(t.ctx); err != nil || !slices.Contains(names, "user.k") {
		t.Errorf("attributes %v, %v", names, err)
	}
	t.ok(t.walk(a, "f").RemoveXattr(t.ctx, "user.k"))
	_, err := t.walk(b, "f").GetXattr(t.ctx, "user.k")
	t.want(err, syscall.ENODATA)

	g := t.open(b, "f", p9.ReadWrite)
	lock := func(f *client.Fid, typ p9.LockType, flags p9.LockFlags, start, length uint64) p9.LockStatus {
		t.Helper()
		s, err := f.Lock(t.ctx, client.Lock{Type: typ, Flags: flags, Start: start, Length: length, PID: 1, Client: "c"})
		t.ok(err)
		return s
	}
	if s := lock(f, p9.WriteLock, 0, 0, 10); s != p9.LockStatusOK {
		t.Errorf("first lock: %v", s)
	}
	if s := lock(g, p9.WriteLock, 0, 5, 1); s != p9.LockStatusBlocked {
		t.Errorf("lock in the way: %v", s)
	}
	if s := lock(g, p9.WriteLock, 0, 10, 1); s != p9.LockStatusOK {
		t.Errorf("lock beside it: %v", s)
	}
	if l, err := g.GetLock(t.ctx, client.Lock{Type: p9.WriteLock, Start: 0, Length: 1}); err != nil || l.Type != p9.WriteLock || l.Length != 10 {
		t.Errorf("lock found: %+v, %v", l, err)
	}
	got := make(chan p9.LockStatus)
	go func() { got <- lock(g, p9.WriteLock, p9.LockFlagsBlock, 0, 1) }()
	t.ok(f.Clunk(t.ctx)) // its locks go
	if s := <-got; s != p9.LockStatusOK {
		t.Errorf("lock waited for: %v", s)
	}
}

// TestFIFO opens a FIFO that nobody reads: the connection goes on, and a flush
// ends the wait.
func TestFIFO(tt *testing.T) {
	t := tb{tt, tt.Context()}
	dir, attach := serve(t, Options{})
	t.ok(unix.Mkfifo(filepath.Join(dir, "p"), 0o600))
	root := attach(me())
	ctx, cancel := context.WithCancel(t.ctx)
	w, done := t.walk(root, "p"), make(chan error)
	go func() { _, err := w.Open(ctx, p9.WriteOnly); done <- err }()
	_, _, _, err := root.GetAttr(t.ctx, p9.AttrMaskAll)
	t.ok(err)
	cancel()
	t.want(<-done, context.Canceled)

	r := t.open(root, "p", p9.ReadOnly)
	w = t.open(root, "p", p9.WriteOnly)
	b := make([]byte, 10)
	read := make(chan string)
	go func() { n, _ := r.Read(t.ctx, b, 0); read <- string(b[:n]) }()
	_, err = w.Write(t.ctx, []byte("abc"), 0)
	t.ok(err)
	if got := <-read; got != "abc" {
		t.Errorf("read %q from the FIFO", got)
	}
}

// TestStaysInside swaps a folder for a link to somewhere else again and again
// while clients walk through it, and tries every other way out.
func TestStaysInside(tt *testing.T) {
	t := tb{tt, tt.Context()}
	dir, attach := serve(t, Options{})
	outside := t.TempDir()
	t.ok(os.WriteFile(filepath.Join(outside, "f"), []byte("outside"), 0o666))
	t.ok(os.Mkdir(filepath.Join(dir, "d"), 0o777))
	t.ok(os.WriteFile(filepath.Join(dir, "d", "f"), []byte("inside"), 0o666))
	t.ok(os.Symlink(outside, filepath.Join(dir, "link")))
	root := attach(me())
	_, _, err := root.Walk(t.ctx, "link", "f")
	if err == nil {
		t.Error("walked through a link")
	}
	d := t.walk(root, "d")
	for _, name := range []string{"../" + filepath.Base(outside), "d/f", "/etc/passwd", "."} {
		if _, _, err := root.Walk(t.ctx, name); err == nil {
			t.Errorf("walked %q", name)
		}
	}
	q, _, _, err := t.walk(d, "../../..").GetAttr(t.ctx, p9.AttrMaskAll)
	t.ok(err)
	if q.Path != root.QID().Path {
		t.Errorf("../../.. is %v, the root %v", q, root.QID())
	}
	// A folder moved out of the tree leads no higher.
	t.ok(os.Mkdir(filepath.Join(dir, "gone"), 0o777))
	gone := t.walk(root, "gone")
	t.ok(os.Rename(filepath.Join(dir, "gone"), filepath.Join(outside, "gone")))
	up := t.walk(gone, "..")
	if up.QID().Path != gone.QID().Path {
		t.Errorf("above a folder that left is %v", up.QID())
	}

	var stop atomic.Bool
	swapped := make(chan struct{})
	go func() {
		defer close(swapped)
		for !stop.Load() {
			_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "d"), unix.AT_FDCWD, filepath.Join(dir, "link"), unix.RENAME_EXCHANGE)
		}
	}()
	defer func() { stop.Store(true); <-swapped }()
	inside := 0
	for start := time.Now(); time.Since(start) < 300*time.Millisecond || inside == 0 && time.Since(start) < time.Minute; {
		f, _, err := root.Walk(t.ctx, "d", "f")
		if err != nil {
			continue
		}
		if _, err := f.Open(t.ctx, p9.ReadOnly); err == nil {
			if got := t.read(f); got != "inside" {
				t.Fatalf("read %q", got)
			}
			inside++
		}
		t.ok(f.Clunk(t.ctx))
	}
	if inside == 0 {
		t.Error("never got through to the file inside")
	}
	if got := t.read(t.open(d, "f", p9.ReadOnly)); got != "inside" {
		t.Errorf("read %q through the folder that is swapped", got)
	}
}

// TestDescriptors has many fids on few objects.
func TestDescriptors(tt *testing.T) {
	t := tb{tt, tt.Context()}
	_, attach := serve(t, Options{})
	root := attach(me())
	t.ok(t.create(root, "f", "").Clunk(t.ctx))
	before := openFDs(t)
	fids := make([]*client.Fid, 1000)
	for i := range fids {
		fids[i] = t.walk(root, "f")
	}
	if n := openFDs(t) - before; n > 10 {
		t.Errorf("%d descriptors for %d fids", n, len(fids))
	}
	for _, f := range fids {
		t.ok(f.Clunk(t.ctx))
	}
}
