package testscripts

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv/client"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// dotlAppend is O_APPEND in 9P2000.L.
const dotlAppend = p9.OpenFlags(0o2000)

func staysInside(s *served) {
	ctx := s.Context()
	c := s.dial(s.unix, client.Options{})
	root, err := c.Attach(ctx, "", p9.UID(os.Geteuid()), "/")
	s.ok(err)
	up, _, err := root.Walk(ctx, "..", "..", "..", "..")
	s.ok(err)
	if up.QID().Path != root.QID().Path {
		s.Errorf("above the root is %v, and the root %v", up.QID(), root.QID())
	}
	// The root of an attach further down is one, too.
	in := s.attach()
	s.mkdir(in, "d")
	up = s.walk(in, "d/../..")
	if up.QID().Path != in.QID().Path {
		s.Errorf("above what was attached is %v, and that is %v", up.QID(), in.QID())
	}
	s.create(in, "f", "inside")
	for _, name := range []string{"../d", "d/../f", "/etc/passwd", "d/..", ".", "", "f\x00", "../../../../../../etc/passwd"} {
		if _, _, err := in.Walk(ctx, name); err == nil {
			s.Errorf("walked to %q", name)
		}
		if _, err := in.Mkdir(ctx, name, 0o777, p9.NoGID); err == nil {
			s.Errorf("made the folder %q", name)
		}
		if err := in.RenameAt(ctx, "f", in, name); err == nil {
			s.Errorf("renamed to %q", name)
		}
		if err := in.UnlinkAt(ctx, name, 0); err == nil {
			s.Errorf("removed %q", name)
		}
		if _, err := in.Symlink(ctx, name, "x", p9.NoGID); err == nil {
			s.Errorf("made the link %q", name)
		}
		if err := in.Link(ctx, s.walk(in, "f"), name); err == nil {
			s.Errorf("linked %q", name)
		}
		if _, err := s.walk(in, "").Create(ctx, name, p9.ReadWrite, 0o644, p9.NoGID); err == nil {
			s.Errorf("created %q", name)
		}
	}
	if _, err := c.Attach(ctx, "", p9.UID(os.Geteuid()), "/../../../etc"); err == nil {
		s.Error("attached outside")
	}
}

// outside is a folder elsewhere with one file, "f".
func (s *served) outside() string {
	dir := s.TempDir()
	s.ok(os.WriteFile(filepath.Join(dir, "f"), []byte("outside"), 0o666))
	return dir
}

func swappedStaysInside(s *served) {
	out, ctx := s.outside(), s.Context()
	root := s.attach()
	d := s.mkdir(root, "d")
	s.create(d, "f", "inside")
	s.ok(os.Rename(s.host("d"), s.host("away")))
	s.ok(os.Symlink(out, s.host("d")))
	// What was walked to is the folder, wherever it is by now, or nothing.
	if f, err := s.try(d, "f"); err == nil {
		if _, err := f.Open(ctx, p9.ReadOnly); err == nil && s.text(f) != "inside" {
			s.Errorf("read %q behind a folder that was swapped", s.text(f))
		}
	}
	if _, err := s.try(root, "d/f"); err == nil {
		s.Error("walked through a link")
	}
	if g, err := s.try(d, ""); err == nil {
		_, _ = g.Create(ctx, "new", p9.ReadWrite, 0o644, p9.NoGID)
		s.ok(g.Clunk(ctx))
	}
	if left, err := os.ReadDir(out); err != nil || len(left) != 1 {
		s.Errorf("outside there is %v, %v", left, err)
	}
}

func racingRenamer(s *served) {
	out, ctx := s.outside(), s.Context()
	root := s.attach()
	d := s.mkdir(root, "d")
	s.ok(s.create(d, "f", "inside").Clunk(ctx))
	s.ok(os.Symlink(out, s.host("link")))
	stop, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, s.host("d"), unix.AT_FDCWD, s.host("link"), unix.RENAME_EXCHANGE)
			}
		}
	}()
	defer func() { close(stop); <-over }()
	for deadline := time.Now().Add(soon); time.Now().Before(deadline); {
		for _, path := range []string{"d/f", "link/f"} {
			f, err := s.try(root, path)
			if err != nil {
				continue
			}
			if _, err := f.Open(ctx, p9.ReadWrite); err == nil {
				b := make([]byte, 100)
				if n, err := f.Read(ctx, b, 0); err == nil && string(b[:n]) != "inside" {
					s.Fatalf("read %q", b[:n])
				}
			}
			s.ok(f.Clunk(ctx))
		}
		for _, dir := range []string{"d", "link"} {
			f, err := s.try(root, dir)
			if err != nil {
				continue
			}
			if _, err := f.Create(ctx, "made", p9.ReadWrite, 0o644, p9.NoGID); err == nil {
				_ = d.UnlinkAt(ctx, "made", 0)
			}
			_ = f.Clunk(ctx)
		}
	}
	if left, err := os.ReadDir(out); err != nil || len(left) != 1 {
		s.Errorf("outside there is %v, %v", left, err)
	}
}

func opensNoLink(s *served) {
	ctx, root := s.Context(), s.attach()
	s.create(root, "f", "x")
	_, err := root.Symlink(ctx, "l", "f", p9.NoGID)
	s.ok(err)
	l := s.walk(root, "l")
	for _, flags := range []p9.OpenFlags{p9.ReadOnly, p9.WriteOnly, p9.ReadWrite} {
		_, err = l.Open(ctx, flags)
		s.want(err, syscall.ELOOP)
	}
	if target, err := l.Readlink(ctx); err != nil || target != "f" {
		s.Errorf("the link says %q, %v", target, err)
	}
}

// fidFollows moves files and folders behind the server's back. A fileset finds
// that out by and by.
func fidFollows(s *served) {
	ctx, root := s.Context(), s.attach()
	d := s.mkdir(root, "d")
	open := s.create(d, "f", "mine")
	fid := s.walk(d, "f")
	holds := func(from *client.Fid, path, want string) func() bool {
		return func() bool {
			f, err := s.try(from, path)
			if err != nil {
				return false
			}
			defer f.Clunk(ctx)
			b := make([]byte, 100)
			if _, err := f.Open(ctx, p9.ReadOnly); err != nil {
				return false
			}
			n, err := f.Read(ctx, b, 0)
			return err == nil && string(b[:n]) == want
		}
	}
	s.ok(os.Rename(s.host("d"), s.host("e")))
	s.await("the folder's fid has what is in it", holds(d, "f", "mine"))
	s.ok(os.Rename(s.host("e/f"), s.host("g")))
	for _, f := range []*client.Fid{open, fid} {
		if _, a := s.attr(f); a.Size != 4 {
			s.Errorf("the fid's file has %d bytes", a.Size)
		}
	}
	s.await("the fid opens its file", holds(fid, "", "mine"))
	s.await("the file has its new name", holds(root, "g", "mine"))
	s.ok(os.WriteFile(s.host("e/f"), []byte("another"), 0o644))
	s.await("the folder has its new file", holds(d, "f", "another"))
	if got := s.text(open); got != "mine" {
		s.Errorf("the open file holds %q", got)
	}
	s.await("the fid has its file still", holds(fid, "", "mine"))
}

func unlinkedIsWhole(s *served) {
	ctx, root := s.Context(), s.attach()
	f := s.create(root, "f", "hello")
	s.ok(f.SetAttr(ctx, p9.SetAttrMask{Permissions: true}, p9.SetAttr{Permissions: 0o644}))
	s.ok(root.UnlinkAt(ctx, "f", 0))
	s.ok(f.SetAttr(ctx, p9.SetAttrMask{Size: true}, p9.SetAttr{Size: 2}))
	s.ok(f.SetAttr(ctx, p9.SetAttrMask{Permissions: true}, p9.SetAttr{Permissions: 0o600}))
	s.ok(f.SetAttr(ctx, p9.SetAttrMask{MTime: true, MTimeNotSystemTime: true}, p9.SetAttr{MTimeSeconds: 77, MTimeNanoSeconds: 7}))
	if _, a := s.attr(f); a.Size != 2 || a.Mode != 0o100600 || a.NLink != 0 || a.MTimeSeconds != 77 || a.MTimeNanoSeconds != 7 {
		s.Errorf("attributes %+v", a)
	}
	s.ok(f.SetXattr(ctx, "user.k", []byte("v"), 0))
	if v, err := f.GetXattr(ctx, "user.k"); err != nil || string(v) != "v" {
		s.Errorf("attribute %q, %v", v, err)
	}
	if names, err := f.ListXattrs(ctx); err != nil || !slices.Contains(names, "user.k") {
		s.Errorf("attributes %q, %v", names, err)
	}
	s.ok(f.RemoveXattr(ctx, "user.k"))
	if os.Geteuid() == 0 {
		s.ok(f.SetAttr(ctx, p9.SetAttrMask{UID: true}, p9.SetAttr{UID: 1234}))
	}
	_, err := f.WriteAt(ctx, []byte("y"), 4)
	s.ok(err)
	s.ok(f.FSync(ctx, false))
	if got := s.text(f); got != "he\x00\x00y" {
		s.Errorf("holds %q", got)
	}
	s.ok(f.Clunk(ctx))
}

func appends(s *served) {
	ctx := s.Context()
	a, b := s.attach(), s.attach()
	s.ok(s.create(a, "log", "").Clunk(ctx))
	files := []*client.Fid{s.open(a, "log", p9.WriteOnly|dotlAppend), s.open(b, "log", p9.WriteOnly|dotlAppend)}
	var wg sync.WaitGroup
	for i, f := range files {
		wg.Go(func() {
			for range 50 {
				if n, err := f.WriteAt(ctx, []byte(strings.Repeat(string(rune('a'+i)), 10)+"\n"), 0); n != 11 || err != nil {
					s.Errorf("append: %d, %v", n, err)
				}
			}
		})
	}
	wg.Wait()
	text, err := os.ReadFile(s.host("log"))
	s.ok(err)
	if len(text) != 2*50*11 || strings.Count(string(text), "aaaaaaaaaa\n") != 50 || strings.Count(string(text), "bbbbbbbbbb\n") != 50 {
		s.Errorf("the log has %d bytes: %q", len(text), text)
	}
}

func locksByRange(s *served) {
	ctx := s.Context()
	f := s.create(s.attach(), "f", "0123456789")
	root := s.attach()
	g := s.open(root, "f", p9.ReadWrite)
	lock := func(f *client.Fid, typ p9.LockType, who string, start, length uint64, want p9.LockStatus) {
		s.Helper()
		st, err := f.Lock(ctx, client.Lock{Type: typ, Start: start, Length: length, PID: 1, Client: who})
		if err != nil || st != want {
			s.Errorf("%s locks %d+%d: %v, %v, want %v", who, start, length, st, err, want)
		}
	}
	lock(f, p9.WriteLock, "a", 0, 5, p9.LockStatusOK)
	lock(g, p9.WriteLock, "b", 5, 5, p9.LockStatusOK)
	lock(g, p9.ReadLock, "b", 4, 1, p9.LockStatusBlocked)
	lock(f, p9.WriteLock, "a", 5, 1, p9.LockStatusBlocked)
	l, err := g.GetLock(ctx, client.Lock{Type: p9.WriteLock, Start: 2, Length: 1, PID: 1, Client: "b"})
	if err != nil || l.Type != p9.WriteLock || l.Start != 0 || l.Length != 5 {
		s.Errorf("in the way is %+v, %v", l, err)
	}
	lock(f, p9.Unlock, "a", 4, 1, p9.LockStatusOK)
	lock(g, p9.ReadLock, "b", 4, 1, p9.LockStatusOK)
	lock(f, p9.ReadLock, "a", 4, 1, p9.LockStatusOK)
	lock(f, p9.WriteLock, "a", 4, 1, p9.LockStatusBlocked)
	// The end of a connection ends its locks.
	s.ok(root.Conn().Close())
	s.await("the locks go with their connection", func() bool {
		st, err := f.Lock(ctx, client.Lock{Type: p9.WriteLock, Start: 0, Length: 0, PID: 1, Client: "a"})
		return err == nil && st == p9.LockStatusOK
	})
}

func removesFolders(s *served) {
	ctx, root := s.Context(), s.attach()
	s.mkdir(root, "d")
	s.create(root, "f", "x")
	s.want(root.UnlinkAt(ctx, "d", 0), syscall.EISDIR)
	s.want(root.UnlinkAt(ctx, "f", wire.UnlinkRemoveDir), syscall.ENOTDIR)
	s.create(s.walk(root, "d"), "in", "x")
	s.want(root.UnlinkAt(ctx, "d", wire.UnlinkRemoveDir), syscall.ENOTEMPTY)
	s.ok(s.walk(root, "d").UnlinkAt(ctx, "in", 0))
	open := s.open(root, "d", p9.ReadOnly)
	s.ok(root.UnlinkAt(ctx, "d", wire.UnlinkRemoveDir))
	_, err := s.try(root, "d")
	s.want(err, syscall.ENOENT)
	// It is empty for who has it open, and nothing comes into it.
	for e, err := range open.Entries(ctx) {
		if err != nil && !errors.Is(err, syscall.ENOENT) {
			s.Errorf("list a folder that was removed: %v", err)
		} else if err == nil {
			s.Errorf("a folder that was removed has %q", e.Name)
		}
	}
	s.ok(open.Clunk(ctx))
}

func fifoStallsNobody(s *served) {
	ctx, root := s.Context(), s.attach()
	_, err := root.Mknod(ctx, client.Node{Name: "p", Mode: unix.S_IFIFO | 0o666, GID: p9.NoGID})
	s.ok(err)
	var wg sync.WaitGroup
	waiting, cancel := context.WithCancel(ctx)
	for _, flags := range []p9.OpenFlags{p9.WriteOnly, p9.ReadOnly} {
		wg.Go(func() {
			f := s.walk(root, "p")
			// It waits for the other end, or opens and then waits for bytes, or a
			// server leaves FIFOs to the client's kernel and refuses.
			if _, err := f.Open(waiting, flags); err == nil && flags == p9.ReadOnly {
				_, _ = f.Read(waiting, make([]byte, 1), 0)
			}
			_ = f.Clunk(ctx)
		})
	}
	for range 100 {
		s.attr(root)
		s.ok(s.walk(root, "p").Clunk(ctx))
	}
	cancel()
	wg.Wait()
}

func versionMoves(s *served) {
	ctx, root := s.Context(), s.attach()
	f := s.create(root, "f", "hello")
	seen := map[uint32]string{}
	step := func(what string) {
		s.Helper()
		q, a := s.attr(f)
		if was, ok := seen[q.Version]; ok {
			s.Errorf("after %s the version is %d, as it was after %s", what, q.Version, was)
		}
		if q.Version == 0 || a.DataVersion == 0 {
			s.Errorf("after %s: version %d, data version %d", what, q.Version, a.DataVersion)
		}
		seen[q.Version] = what
	}
	step("create")
	for range 30 {
		_, err := f.WriteAt(ctx, []byte("x"), 0)
		s.ok(err)
		step("write")
	}
	s.ok(f.SetAttr(ctx, p9.SetAttrMask{Size: true}, p9.SetAttr{Size: 3}))
	step("truncate")
	g := s.open(s.attach(), "f", p9.WriteOnly|0o1000)
	step("open with O_TRUNC")
	_, err := g.WriteAt(ctx, []byte("y"), 0)
	s.ok(err)
	step("another client's write")
}

func attributesAreWhole(s *served) {
	root := s.attach()
	f := s.create(root, "f", "hello")
	q, valid, a, err := f.GetAttr(s.Context(), p9.AttrMaskAll)
	s.ok(err)
	if valid != p9.AttrMaskAll {
		s.Errorf("valid are %+v", valid)
	}
	now := uint64(time.Now().Unix())
	if a.BTimeSeconds+60 < now || a.BTimeSeconds > now+60 || a.Gen == 0 || a.DataVersion == 0 {
		s.Errorf("born %d, now is %d; generation %d, data version %d", a.BTimeSeconds, now, a.Gen, a.DataVersion)
	}
	if q.Path == 0 || a.Size != 5 || a.NLink != 1 || a.BlockSize == 0 || a.Mode != 0o100644 {
		s.Errorf("attributes %v %+v", q, a)
	}
	st, err := root.StatFS(s.Context())
	if err != nil || st.BlockSize == 0 || st.Blocks == 0 || st.NameLength != 255 {
		s.Errorf("file system %+v, %v", st, err)
	}
}

func walksPartly(s *served) {
	ctx, root := s.Context(), s.attach()
	s.create(s.mkdir(s.mkdir(root, "a"), "b"), "f", "x")
	_, qids, err := root.Walk(ctx, "a", "b", "none", "c")
	if len(qids) != 2 || !errors.Is(err, syscall.ENOENT) {
		s.Errorf("walked over %v, %v", qids, err)
	}
	_, qids, err = root.Walk(ctx, "a", "b", "f", "x")
	if len(qids) != 3 || err == nil {
		s.Errorf("walked through a file over %v, %v", qids, err)
	}
	if _, qids, err = root.Walk(ctx, "none"); len(qids) != 0 || !errors.Is(err, syscall.ENOENT) {
		s.Errorf("walked over %v, %v", qids, err)
	}
}
