package testscripts

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/p9srv/client"
)

// promises are what a 9P server keeps, whatever it serves.
var promises = []struct {
	name string
	root bool // only root can see it
	test func(*served)
}{
	{"names stay inside", false, staysInside},
	{"a swapped folder stays inside", false, swappedStaysInside},
	{"a racing renamer gets nobody out", false, racingRenamer},
	{"no symbolic link is opened", false, opensNoLink},
	{"a fid follows its file", false, fidFollows},
	{"an unlinked open file is whole", false, unlinkedIsWhole},
	{"appending appends", false, appends},
	{"locks conflict by range", false, locksByRange},
	{"folders are removed as folders", false, removesFolders},
	{"a FIFO stalls nobody", false, fifoStallsNobody},
	{"the version moves with every change", false, versionMoves},
	{"attributes are whole", false, attributesAreWhole},
	{"a walk goes as far as it can", false, walksPartly},
	{"a second version drops fids", false, versionDropsFids},
	{"fsync takes both forms", false, fsyncs},
	{"no more is written than was sent", false, writesWhatWasSent},
	{"nobody is asked for a password", false, refusesAuth},
	{"no answer waits for a timer", false, noStalls},
	{"users are themselves", true, usersAreThemselves},
}

// TestPromises holds the promises with the program itself, for a fileset and for
// a folder without a journal.
func TestPromises(t *testing.T) {
	for _, kind := range []string{"plain", "journal"} {
		t.Run(kind, func(t *testing.T) {
			s := serveFolder(t, kind, os.Geteuid())
			for i, p := range promises {
				t.Run(p.name, func(t *testing.T) {
					if p.root && os.Geteuid() != 0 {
						t.Skip("needs root to serve somebody else")
					}
					sub := *s
					sub.T, sub.in = t, fmt.Sprint(i)
					sub.ok(os.Mkdir(sub.host(""), 0o777))
					sub.ok(os.Chmod(sub.host(""), 0o777))
					if kind == "journal" {
						sub.await("the folder is there", func() bool { _, err := sub.try(sub.attach(), ""); return err == nil })
					}
					p.test(&sub)
				})
			}
		})
	}
}

// served is a server in a process of its own, and the folder of one test in what
// it serves.
type served struct {
	*testing.T
	kind string
	dir  string // what is served
	in   string // of it, this test's
	unix string
	tcp  string
	pid  int
	says *regexp.Regexp // what the server may log; nil: nothing
}

// serveFolder serves a new folder as a user, at a unix socket and a TCP port.
func serveFolder(t *testing.T, kind string, uid int, flags ...string) *served {
	t.Helper()
	top, err := os.MkdirTemp("", "promise-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	s := &served{T: t, kind: kind, dir: filepath.Join(top, "dir")}
	s.ok(openUp(top))
	s.ok(os.Mkdir(s.dir, 0o755))
	if os.Geteuid() == 0 {
		s.ok(errors.Join(os.Chown(top, uid, uid), os.Chown(s.dir, uid, uid)))
	}
	port, err := freePort()
	s.ok(err)
	s.unix, s.tcp = filepath.Join(top, "sock"), "127.0.0.1:"+port
	args := []string{"serve"}
	if kind == "plain" {
		args = append(args, "--no-journal")
	} else if code, out := runAs(t, uid, "", "mezzo", "init", s.dir); code != 0 {
		t.Fatal(out)
	}
	args = append(append(args, flags...), "--listen", s.unix, "--listen", s.tcp, s.dir)
	cmd := command(t.Context(), uid, "mezzo", args...)
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	s.ok(err)
	s.ok(cmd.Start())
	s.pid = cmd.Process.Pid
	t.Cleanup(func() {
		s.ok(cmd.Process.Signal(syscall.SIGTERM))
		if err := cmd.Wait(); err != nil {
			t.Errorf("the server: %v", err)
		}
		for line := range strings.Lines(log.String()) {
			if s.says == nil || !s.says.MatchString(line) {
				t.Errorf("the server said: %s", line)
			}
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n') // it listens by then
	if err != nil || !strings.HasPrefix(line, "serving ") {
		t.Fatalf("the server said %q, %v", line, err)
	}
	go io.Copy(io.Discard, out) // ends with the server
	return s
}

// command is a program as a user.
func command(ctx context.Context, uid int, name string, args ...string) *exec.Cmd {
	// The test's own context ends before its clean-up, which ends the program.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), name, args...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR=")
	if uid != os.Geteuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	return cmd
}

// runAs runs a program as a user to its end.
func runAs(t *testing.T, uid int, stdin, name string, args ...string) (code int, out string) {
	t.Helper()
	cmd := command(t.Context(), uid, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(b)
}

func (s *served) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *served) want(err, want error) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Errorf("%v, want %v", err, want)
	}
}

// await waits until something is so.
func (s *served) await(what string, so func() bool) {
	s.Helper()
	if !poll(patience, so) {
		s.Fatalf("%s: not within %v", what, patience)
	}
}

// host is a path of the test's folder on the server's side.
func (s *served) host(path string) string { return filepath.Join(s.dir, s.in, path) }

// dial is one more connection.
func (s *served) dial(addr string, o client.Options) *client.Conn {
	s.Helper()
	c, err := client.Dial(s.Context(), addr, o)
	s.ok(err)
	s.Cleanup(func() { c.Close() })
	return c
}

// attach attaches who runs the test to the test's folder, on a connection of its
// own.
func (s *served) attach() *client.Fid { s.Helper(); return s.attachAs(os.Geteuid()) }

func (s *served) attachAs(uid int) *client.Fid {
	s.Helper()
	f, err := s.dial(s.unix, client.Options{}).Attach(s.Context(), "", p9.UID(uid), "/"+s.in)
	s.ok(err)
	return f
}

// try walks to a path.
func (s *served) try(from *client.Fid, path string) (*client.Fid, error) {
	var names []string
	if path != "" {
		names = strings.Split(path, "/")
	}
	f, _, err := from.Walk(s.Context(), names...)
	return f, err
}

func (s *served) walk(from *client.Fid, path string) *client.Fid {
	s.Helper()
	f, err := s.try(from, path)
	s.ok(err)
	return f
}

func (s *served) open(from *client.Fid, path string, flags p9.OpenFlags) *client.Fid {
	s.Helper()
	f := s.walk(from, path)
	_, err := f.Open(s.Context(), flags)
	s.ok(err)
	return f
}

// create makes a file and leaves it open.
func (s *served) create(in *client.Fid, name, data string) *client.Fid {
	s.Helper()
	f := s.walk(in, "")
	_, err := f.Create(s.Context(), name, p9.ReadWrite, 0o644, p9.NoGID)
	s.ok(err)
	_, err = f.WriteAt(s.Context(), []byte(data), 0)
	s.ok(err)
	return f
}

// mkdir makes a folder and walks to it.
func (s *served) mkdir(in *client.Fid, name string) *client.Fid {
	s.Helper()
	_, err := in.Mkdir(s.Context(), name, 0o777, p9.NoGID)
	s.ok(err)
	return s.walk(in, name)
}

// text is what an open file holds.
func (s *served) text(f *client.Fid) string {
	s.Helper()
	var b bytes.Buffer
	_, err := f.CopyTo(s.Context(), &b, 0, 1)
	s.ok(err)
	return b.String()
}

// attr is a file's attributes.
func (s *served) attr(f *client.Fid) (p9.QID, p9.Attr) {
	s.Helper()
	q, _, a, err := f.GetAttr(s.Context(), p9.AttrMaskAll)
	s.ok(err)
	return q, a
}

// soon is how long something random is tried.
const soon = 300 * time.Millisecond
