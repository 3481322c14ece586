package testscripts

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv/client"
)

// openFiles is how many descriptors a process has.
func (s *served) openFiles() int {
	s.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.pid))
	s.ok(err)
	return len(fds)
}

// TestOutOfDescriptors takes all descriptors a server may have: that is an
// error while it lasts.
func TestOutOfDescriptors(t *testing.T) {
	for _, kind := range []string{"plain", "journal"} {
		t.Run(kind, func(t *testing.T) {
			s := serveFolder(t, kind, os.Geteuid())
			s.says = regexp.MustCompile(`too many open files`)
			root := s.attach()
			const files = 200
			for i := range files {
				f := s.create(root, fmt.Sprint(i), "text")
				s.ok(f.Clunk(t.Context()))
			}
			var was unix.Rlimit
			s.ok(unix.Prlimit(s.pid, unix.RLIMIT_NOFILE, nil, &was))
			few := unix.Rlimit{Cur: uint64(s.openFiles() + 30), Max: was.Max}
			s.ok(unix.Prlimit(s.pid, unix.RLIMIT_NOFILE, &few, nil))
			var open []*client.Fid
			refused := 0
			for i := range files {
				f, err := s.try(root, fmt.Sprint(i))
				if err == nil {
					open = append(open, f)
					_, err = f.Open(t.Context(), p9.ReadWrite)
				}
				if err != nil {
					refused++
					if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) {
						t.Fatalf("file %d: %v", i, err)
					}
				}
			}
			if refused == 0 {
				t.Fatal("there were descriptors enough: nothing was tested")
			}
			if _, err := root.Mkdir(t.Context(), "d", 0o755, p9.NoGID); err != nil && !errors.Is(err, syscall.EMFILE) {
				t.Errorf("mkdir: %v", err)
			}
			if _, _, _, err := root.GetAttr(t.Context(), p9.AttrMaskAll); err != nil && !errors.Is(err, syscall.EMFILE) {
				t.Errorf("getattr: %v", err)
			}
			// Who connects now waits until there are some again.
			late := make(chan error, 1)
			go func() {
				c, err := client.Dial(t.Context(), s.unix, client.Options{})
				if err == nil {
					_, err = c.Attach(t.Context(), "", p9.UID(os.Geteuid()), "")
					err = errors.Join(err, c.Close())
				}
				late <- err
			}()
			for _, f := range open {
				s.ok(f.Clunk(t.Context()))
			}
			s.ok(<-late)
			for i := range 20 {
				f := s.open(root, fmt.Sprint(i), p9.ReadWrite)
				if got := s.text(f); got != "text" {
					t.Errorf("file %d holds %q", i, got)
				}
				s.ok(f.Clunk(t.Context()))
			}
			s.ok(s.create(root, "new", "x").Clunk(t.Context()))
			s.ok(unix.Prlimit(s.pid, unix.RLIMIT_NOFILE, &was, nil))
		})
	}
}

// TestNoDescriptorLeaks does much, ends, and counts.
func TestNoDescriptorLeaks(t *testing.T) {
	for _, kind := range []string{"plain", "journal"} {
		t.Run(kind, func(t *testing.T) {
			s := serveFolder(t, kind, os.Geteuid())
			work := func() {
				root := s.attach()
				for i := range 50 {
					d := s.mkdir(root, fmt.Sprint("d", i))
					s.create(d, "f", "x")
					s.open(root, fmt.Sprintf("d%d/f", i), p9.ReadOnly)
					s.open(root, fmt.Sprint("d", i), p9.ReadOnly)
					_, err := s.try(root, "none/x")
					s.want(err, syscall.ENOENT)
					s.ok(d.UnlinkAt(t.Context(), "f", 0))
					s.ok(root.UnlinkAt(t.Context(), fmt.Sprint("d", i), 0x200))
				}
				s.ok(root.Conn().Close()) // with all its fids
			}
			before := s.openFiles()
			for range 14 {
				work()
			}
			// Folders stay open for a while; their number has a bound.
			const folders = 520
			s.await("descriptors go", func() bool { return s.openFiles() <= before+folders })
		})
	}
}

// memory is a server's resident memory, in bytes.
func (s *served) memory() int {
	s.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	s.ok(err)
	_, rest, _ := strings.Cut(string(text), "RssAnon:")
	field, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, err := strconv.Atoi(field)
	s.ok(err)
	return n << 10
}

// TestManyClients has a thousand connections, each with a hundred fids.
func TestManyClients(t *testing.T) {
	const conns, fids = 1000, 100
	var max unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &max); err != nil || max.Cur < 2*conns {
		t.Skipf("needs %d descriptors, has %d", 2*conns, max.Cur)
	}
	s := serveFolder(t, "plain", os.Geteuid())
	for i := range fids {
		s.ok(os.WriteFile(s.host(fmt.Sprint(i)), nil, 0o644))
	}
	s.raw()
	before := s.memory()
	all := make([]*rawConn, conns)
	for i := range all {
		all[i] = s.raw()
	}
	each := (s.memory() - before) / conns
	t.Logf("an idle connection takes %d bytes of the server's memory", each)
	if limit := 64 << 10; each > limit && !testing.Short() { // the race detector takes more
		t.Errorf("an idle connection takes %d bytes", each)
	}
	for _, r := range all {
		r.walkAll(fids)
	}
	t.Logf("with %d fids it takes %d", fids, (s.memory()-before)/conns)
	for i := 0; i < conns; i += 97 {
		r := all[i]
		r.attrOf(fids)
	}
}
