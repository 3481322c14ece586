package cli

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hugelgupf/p9/fsimpl/localfs"
	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/testutil"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/client"
)

// pair is two ends of a line.
func pair(t *testing.T) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// TestSettle begins a session on a line where the answers of an older one, cut
// in the middle, still wait.
func TestSettle(t *testing.T) {
	for name, stale := range map[string]string{
		"nothing": "", "half an answer": "\x07\x00\x00\x00\x79", "much": strings.Repeat("old answers\xff\xff", 20000),
	} {
		t.Run(name, func(t *testing.T) {
			line, far := pair(t)
			done := make(chan error, 1)
			go func() {
				head := make([]byte, 21)
				_, err := io.ReadFull(far, head)
				head[4]++ // what was asked for, as an answer
				_, werr := far.WriteString(stale + string(head))
				done <- errors.Join(err, werr)
			}()
			if err := settle(line); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestSettleWithNobody(t *testing.T) {
	line, far := pair(t)
	far.Close()
	if err := settle(line); err == nil {
		t.Error("no error")
	}
}

// TestRelay carries a session of our client to our server, and ends as either
// side does.
func TestRelay(t *testing.T) {
	testutil.CheckLeaks(t)
	for _, hostEnds := range []bool{false, true} {
		line, host := pair(t)
		sock, guest := pair(t)
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		far, err := net.FileConn(host)
		if err != nil {
			t.Fatal(err)
		}
		host.Close()
		srv := p9srv.New(localfs.Attacher(dir), p9srv.Options{})
		served := make(chan error, 1)
		go func() { served <- srv.ServeConn(context.Background(), far) }()
		if err := settle(line); err != nil {
			t.Fatal(err)
		}
		r := startRelay(line, sock)
		near, err := net.FileConn(guest)
		if err != nil {
			t.Fatal(err)
		}
		guest.Close()
		c, err := client.NewConn(t.Context(), near, client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		root, err := c.Attach(t.Context(), "", p9.UID(os.Getuid()), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := root.Walk(t.Context(), "f"); err != nil {
			t.Fatal(err)
		}
		if hostEnds {
			far.Close()
		} else {
			c.Close()
		}
		<-r.over
		if r.hungUp() != hostEnds {
			t.Errorf("hung up: %v", r.hungUp())
		}
		r.close()
		c.Close()
		srv.Close()
		<-served
	}
}

func TestFindPort(t *testing.T) {
	class := t.TempDir()
	for dev, name := range map[string]string{"vport0p1": "guest.agent\n", "vport0p2": "work\n"} {
		if err := os.Mkdir(filepath.Join(class, dev), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(class, dev, "name"), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for port, want := range map[string]string{"work": "/dev/vport0p2", "vport0p1": "/dev/vport0p1", "/dev/x": "/dev/x"} {
		if got, err := findPort(port, class, "/dev"); err != nil || got != want {
			t.Errorf("%s: %s, %v", port, got, err)
		}
	}
	if _, err := findPort("no", class, "/dev"); err == nil || !strings.Contains(err.Error(), "work") {
		t.Errorf("a port that is not there: %v", err)
	}
	if _, err := findPort("no", filepath.Join(class, "absent"), "/dev"); err == nil {
		t.Error("no ports at all: no error")
	}
}

func TestPortOptions(t *testing.T) {
	o, err := parsePortOptions([]string{"ro,cache=mmap", "msize=8192"})
	if err != nil || o.flags != unix.MS_RDONLY || strings.Join(o.data, ",") != "cache=mmap,msize=8192,version=9p2000.L" {
		t.Errorf("%+v, %v", o, err)
	}
	for _, bad := range []string{"trans=tcp", "rfdno=3"} {
		if _, err := parsePortOptions([]string{bad}); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}
