package testscripts

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv/client"
)

const (
	nobody   = 65534 // a user without rights, who is on every system
	somebody = 4321  // a user other than root, nobody and who runs the tests
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to be other users")
	}
}

// kinds are what is served where that makes little difference: in a short run,
// which the race detector makes a long one, one of the two.
func kinds() []string {
	if testing.Short() {
		return []string{"plain"}
	}
	return []string{"plain", "journal"}
}

// addresses are where a server is tried; see kinds.
func (s *served) addresses() []string {
	if testing.Short() {
		return []string{s.tcp}
	}
	return []string{s.unix, s.tcp}
}

// whoGetsIn are attempts to list what is served, and what comes of them.
func whoGetsIn(s *served, addr string, who map[[2]int]bool) {
	s.Helper()
	for w, in := range who {
		runner, claim := w[0], w[1]
		code, out := runAs(s.T, runner, "", "mezzo", "9p", "--user", fmt.Sprint(claim), "ls", addr)
		// He cannot connect, or cannot attach.
		refused := code == 3 && strings.Contains(out, "permission denied") || code == 1 && strings.Contains(out, "does not let user")
		switch {
		case in && code != 0:
			s.Errorf("user %d as %d at %s: %s", runner, claim, addr, out)
		case !in && !refused:
			s.Errorf("user %d as %d at %s ended with %d: %s", runner, claim, addr, code, out)
		}
	}
}

// TestForeignAttach has users claim to be others, at a server that is root.
func TestForeignAttach(t *testing.T) {
	needRoot(t)
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			s := serveFolder(t, kind, 0)
			for _, addr := range s.addresses() {
				whoGetsIn(s, addr, map[[2]int]bool{
					{0, 0}: true, {0, somebody}: true, {nobody, nobody}: true, {somebody, somebody}: true,
					{nobody, 0}: false, {nobody, somebody}: false,
				})
			}
		})
	}
}

// TestServedByNobody has a user without rights serve.
func TestServedByNobody(t *testing.T) {
	needRoot(t)
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			s := serveFolder(t, kind, nobody)
			for _, addr := range s.addresses() {
				whoGetsIn(s, addr, map[[2]int]bool{
					{0, 0}: true, {nobody, nobody}: true,
					{somebody, somebody}: false, {nobody, 0}: false, {somebody, 0}: false,
				})
			}
			// Everything is done as that user, whoever asks.
			s.create(s.attachAs(0), "roots", "x")
			var st unix.Stat_t
			if err := unix.Stat(s.host("roots"), &st); err != nil || st.Uid != nobody {
				t.Errorf("what root makes belongs to %d, %v", st.Uid, err)
			}
			if code, out := runAs(t, nobody, "text\n", "mezzo", "9p", "write", s.unix, "mine"); code != 0 {
				t.Error(out)
			}
			if b, err := os.ReadFile(s.host("mine")); err != nil || string(b) != "text\n" {
				t.Errorf("written: %q, %v", b, err)
			}
			secret := filepath.Join(s.dir, "secret")
			s.ok(os.WriteFile(secret, nil, 0o600))
			s.await("root's file is there", func() bool { _, err := s.try(s.attachAs(0), "secret"); return err == nil })
			_, err := s.walk(s.attachAs(0), "secret").Open(t.Context(), p9.ReadOnly)
			s.want(err, syscall.EACCES)
			s.want(s.walk(s.attachAs(0), "mine").SetAttr(t.Context(), p9.SetAttrMask{UID: true}, p9.SetAttr{UID: 1}), syscall.EPERM)
		})
		t.Run(kind+", for all", func(t *testing.T) {
			s := serveFolder(t, kind, nobody, "--squash", "all")
			for _, addr := range s.addresses() {
				whoGetsIn(s, addr, map[[2]int]bool{{0, 0}: true, {nobody, nobody}: true, {somebody, somebody}: true, {somebody, 0}: false})
			}
			if code, out := runAs(t, somebody, "", "mezzo", "9p", "create", s.unix, "new"); code != 0 {
				t.Error(out)
			}
			var st unix.Stat_t
			if err := unix.Stat(s.host("new"), &st); err != nil || st.Uid != nobody {
				t.Errorf("what somebody makes belongs to %d, %v", st.Uid, err)
			}
		})
	}
}

// TestSquash looks at whose files are that users make.
func TestSquash(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		flags []string
		want  map[int]uint32 // by who attaches
	}{
		{[]string{"--squash", "root"}, map[int]uint32{0: nobody, somebody: somebody}},
		{[]string{"--squash", "root", "--uid", "1234", "--gid", "1235"}, map[int]uint32{0: 1234, somebody: somebody}},
		{[]string{"--squash", "all"}, map[int]uint32{0: nobody, somebody: nobody}},
		{[]string{"--uid", "1234", "--gid", "1234"}, map[int]uint32{0: 1234, somebody: 1234}},
		{[]string{"--squash", "none"}, map[int]uint32{0: 0, somebody: somebody}},
	} {
		for _, kind := range kinds() {
			t.Run(kind+" "+strings.Join(tt.flags, " "), func(t *testing.T) {
				s := serveFolder(t, kind, 0, tt.flags...)
				s.ok(os.Chmod(s.dir, 0o777))
				for uid, want := range tt.want {
					name := fmt.Sprint(uid)
					s.create(s.attachAs(uid), name, "x")
					var st unix.Stat_t
					if err := unix.Stat(s.host(name), &st); err != nil || st.Uid != want {
						t.Errorf("what %d makes belongs to %d, want %d: %v", uid, st.Uid, want, err)
					}
				}
			})
		}
	}
}

// TestDevices has root make a device, which only root may, and only where it was
// allowed.
func TestDevices(t *testing.T) {
	needRoot(t)
	for _, kind := range kinds() {
		for _, flags := range [][]string{nil, {"--devices"}} {
			t.Run(fmt.Sprint(kind, flags), func(t *testing.T) {
				s := serveFolder(t, kind, 0, flags...)
				s.ok(os.Chmod(s.dir, 0o777))
				node := client.Node{Name: "null", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 3, GID: p9.NoGID}
				_, err := s.attachAs(somebody).Mknod(t.Context(), node)
				s.want(err, syscall.EPERM)
				_, err = s.attachAs(0).Mknod(t.Context(), node)
				if flags == nil {
					s.want(err, syscall.EPERM)
					return
				}
				s.ok(err)
				var st unix.Stat_t
				if err := unix.Stat(s.host("null"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
					t.Errorf("made %o %d, %v", st.Mode, st.Rdev, err)
				}
			})
		}
	}
}

// TestInodesOfTwoFileSystems has two files with one inode number.
func TestInodesOfTwoFileSystems(t *testing.T) {
	needRoot(t)
	s := serveFolder(t, "plain", 0)
	paths := map[uint64]string{}
	inodes := map[uint64]bool{}
	for _, name := range []string{"a", "b"} {
		s.ok(os.Mkdir(s.host(name), 0o755))
		s.ok(unix.Mount("tmpfs", s.host(name), "tmpfs", 0, ""))
		t.Cleanup(func() { s.ok(unix.Unmount(s.host(name), unix.MNT_DETACH)) })
		s.ok(os.WriteFile(s.host(name+"/f"), []byte(name), 0o644))
	}
	root := s.attach()
	for _, name := range []string{"a", "b", "a/f", "b/f"} {
		f := s.walk(root, name)
		q, a := s.attr(f)
		if was, ok := paths[q.Path]; ok {
			t.Errorf("%s and %s are %d", was, name, q.Path)
		}
		paths[q.Path] = name
		var st unix.Stat_t
		s.ok(unix.Stat(s.host(name), &st))
		inodes[st.Ino] = true
		if q.Path != f.QID().Path || a.Size != uint64(st.Size) {
			t.Errorf("%s: %v, %+v", name, q, a)
		}
	}
	if len(inodes) != 2 {
		t.Errorf("the files have %d inode numbers: nothing was tested", len(inodes))
	}
	if got := s.text(s.open(root, "b/f", p9.ReadOnly)); got != "b" {
		t.Errorf("b/f holds %q", got)
	}
}

// TestLimitFlags runs into each limit.
func TestLimitFlags(t *testing.T) {
	for _, kind := range []string{"plain", "journal"} {
		t.Run(kind, func(t *testing.T) {
			s := serveFolder(t, kind, os.Geteuid(), "--max-fids", "10", "--msize", "8K", "--max-bytes", "16K", "--max-requests", "4")
			root := s.attach()
			if m := root.Conn().Msize(); m != 8192 {
				t.Errorf("messages of %d bytes", m)
			}
			var all []*client.Fid
			for range 9 {
				all = append(all, s.walk(root, ""))
			}
			_, err := s.try(root, "")
			s.want(err, syscall.EMFILE)
			s.ok(all[0].Clunk(t.Context()))
			s.walk(s.attach(), "") // another connection has fids of its own
			s.create(all[1], "f", strings.Repeat("x", 100_000))
			if got := s.text(s.open(s.attach(), "f", p9.ReadOnly)); len(got) != 100_000 {
				t.Errorf("%d bytes", len(got))
			}
		})
	}
}
