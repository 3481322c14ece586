package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hugelgupf/p9/fsimpl/localfs"
	"github.com/hugelgupf/p9/p9"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/export"
)

// mode is a way to mount.
type mode struct{ cache, access string }

func (m mode) String() string { return m.cache + "," + m.access }

// options are those of mount -t 9p.
func (m mode) options() string {
	o := "version=9p2000.L,msize=262144,cache=" + m.cache + ",access=" + m.access
	switch m.access {
	case "client":
		o += ",posixacl"
	case "any":
		o += ",uname=root" // who everybody is then
	}
	return o
}

// limits are the cases that Linux 6.1's client cannot do in this mode, whatever
// the server is, with the reason.
func (m mode) limits() map[string]string {
	l := map[string]string{}
	deny := func(reason string, cases ...string) {
		for _, c := range cases {
			l[c] = reason
		}
	}
	cached := m.cache == "loose" || m.cache == "fscache"
	if m.cache == "none" {
		deny("no shared writable mappings without a cache (v9fs_file_operations_dotl)", "mapwrite")
	}
	if cached {
		deny("assumes to be the only client", "append2", "coherent")
		deny("computes blocks from the size", "blocks")
	}
	if m.access != "client" {
		deny("goes by the mode alone", "aclrights")
		deny("applies the umask before it asks", "aclumask")
	}
	if cached && m.access != "client" {
		deny("does not notice that an ACL changes the mode", "acl")
	}
	if cached && m.access == "client" {
		deny("mkdir in a folder with a default ACL ends in a null pointer (v9fs_vfs_mkdir_dotl)", "aclfolder")
	}
	return l
}

// program builds a program of testdata once.
func program(t *testing.T, name string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), name)
	if err := Build(t.Context(), out, "./testdata/"+name); err != nil {
		t.Fatal(err)
	}
	return out
}

// guestUsers knows the users of a guest's /etc/passwd.
func guestUsers(uid uint32, name string) (p9srv.User, error) {
	for _, u := range []p9srv.User{
		{UID: 0, GID: 0, Name: "root"},
		{UID: 1000, GID: 1000, Name: "alice", Groups: []uint32{1000, 2000}},
		{UID: 1001, GID: 1001, Name: "bob", Groups: []uint32{1001, 2000}},
	} {
		if uid == u.UID || uid == p9srv.NoID && name == u.Name {
			return u, nil
		}
	}
	return p9srv.User{}, fmt.Errorf("no user %d %q", uid, name)
}

// serveAttacher serves a tree at a unix socket and returns the address.
func serveAttacher(t *testing.T, a p9.Attacher) string {
	t.Helper()
	addr := "unix!" + filepath.Join(t.TempDir(), "sock")
	ln, err := p9srv.Listen(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	trace := &traceLog{}
	srv := p9srv.New(a, p9srv.Options{Users: guestUsers, Trace: trace.add})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.WithoutCancel(t.Context()), ln) }()
	t.Cleanup(func() {
		if err := errors.Join(srv.Close(), <-served); err != nil {
			t.Error(err)
		}
		trace.save(t)
	})
	return addr
}

// traceLog keeps what was said, for who asks for it by the environment
// variable MEZZO_TRACE, the name of a file.
type traceLog struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *traceLog) add(conn uint64, line string) {
	if os.Getenv("MEZZO_TRACE") == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintln(&l.b, conn, line)
}

func (l *traceLog) save(t *testing.T) {
	if name := os.Getenv("MEZZO_TRACE"); name != "" {
		if err := os.WriteFile(name, []byte(l.b.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// fillFolder makes what the case "folder" reads.
func fillFolder(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 10_000 {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint("e", i)))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}

// journaled serves a new fileset with a large folder in it.
func journaled(t *testing.T) (*tree.Tree, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "v9fs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fillFolder(t, filepath.Join(dir, "full"))
	if err := tree.Init(dir, tree.Options{}); err != nil {
		t.Fatal(err)
	}
	tr, err := tree.Open(dir, tree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	j, err := export.NewJournal(tr, export.JournalOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(j.Close(), tr.Close()); err != nil {
			t.Error(err)
		}
	})
	return tr, serveAttacher(t, export.New(tr, export.Options{Ext: j, Door: 9, InPlace: true}))
}

// workScript mounts the tree twice in each mode and does the work there. The
// mode's output is between lines that begin with "==".
func workScript(modes []mode, skip func(mode) []string) string {
	var b strings.Builder
	b.WriteString("umask 0\nmkdir -p /mnt/a /mnt/b\n")
	for _, m := range modes {
		fmt.Fprintf(&b, `echo "== %[1]s"
mount -t 9p -o trans=tcp,port=5640,%[2]s,cachetag=a $HOST /mnt/a &&
mount -t 9p -o trans=tcp,port=5640,%[2]s,cachetag=b $HOST /mnt/b && {
	mkdir /mnt/a/%[1]s
	work -second /mnt/b/%[1]s -full /mnt/a/full -owner %[3]d -skip '%[4]s' /mnt/a/%[1]s
	echo "code $?"
}
umount /mnt/a
umount /mnt/b
`, m, m.options(), map[bool]int{true: 0, false: 1000}[m.access == "any"], strings.Join(skip(m), ","))
	}
	return b.String()
}

// runWork runs the modes in one guest and fails for what failed.
func runWork(t *testing.T, work, addr string, modes []mode, skip func(mode) []string) {
	t.Helper()
	judge(t, Config{Script: workScript(modes, skip), Forward: map[int]string{5640: addr}}, work, len(modes))
}

// judge runs a script that does the work in so many modes, and fails for what
// failed.
func judge(t *testing.T, c Config, work string, modes int) {
	t.Helper()
	if c.Binaries == nil {
		c.Binaries = map[string]string{}
	}
	c.Binaries["work"], c.Binaries["tiny"] = work, work
	c.Timeout = 3 * time.Minute
	r, err := Run(t.Context(), c)
	t.Logf("%v\n%s", r.Took, r.Stdout)
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, r.Stderr, r.Console)
	}
	if r.Stderr != "" {
		t.Errorf("stderr: %s", r.Stderr)
	}
	done := 0
	for part := range strings.SplitSeq(r.Stdout, "== ") {
		name, lines, _ := strings.Cut(part, "\n")
		if name == "" {
			continue
		}
		for line := range strings.Lines(lines) {
			if strings.HasPrefix(line, "FAIL ") {
				t.Errorf("%s: %s", name, line)
			}
		}
		if strings.Count(lines, "\nok ") < 12 || !strings.Contains(lines, "\ncode 0\n") {
			t.Errorf("%s: did not do all", name)
		}
		done++
	}
	if done != modes {
		t.Errorf("%d modes of %d ran", done, modes)
	}
}

// TestV9FS has Linux's 9P client work on a journaled tree in every mode.
func TestV9FS(t *testing.T) {
	t.Parallel() // with the other guests
	need(t, MissingNet())
	work := program(t, "work")
	tr, addr := journaled(t)
	skip := func(m mode) []string { return slices.Sorted(maps.Keys(m.limits())) }
	// A group to each access mode: their guests share the processors.
	t.Run("modes", func(t *testing.T) {
		for _, access := range []string{"user", "client", "any"} {
			t.Run(access, func(t *testing.T) {
				if access == "any" && testing.Short() {
					t.Skip("does little that the others do not")
				}
				t.Parallel()
				var modes []mode
				for _, cache := range []string{"none", "mmap", "loose", "fscache"} {
					modes = append(modes, mode{cache, access})
				}
				runWork(t, work, addr, modes, skip)
			})
		}
	})
	agrees(t, tr)
}

// agrees wants a look at the whole folder to find nothing that the tree has no
// record of.
func agrees(t *testing.T, tr *tree.Tree) {
	t.Helper()
	if err := tr.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := tr.Log().ReaderAfter(tr.Log().End())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := tr.Scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	for {
		rec, err := r.TryNext()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.Op != kml.OpMark {
			t.Errorf("a scan found a difference: %v", rec)
		}
	}
}

// TestV9FSPlain has it work on a tree of the peer library.
func TestV9FSPlain(t *testing.T) {
	t.Parallel() // with the other guests
	need(t, MissingNet())
	dir, err := os.MkdirTemp("", "v9fs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	fillFolder(t, filepath.Join(dir, "full"))
	runWork(t, program(t, "work"), serveAttacher(t, localfs.Attacher(dir)), []mode{{"none", "user"}}, func(m mode) []string {
		return append(slices.Sorted(maps.Keys(m.limits())), plainLimits...)
	})
}

// plainLimits are what the peer library's localfs (v0.4.1) does not do: setattr
// of anything but a size, or of what has lost its name; mknod; WriteAt with
// O_APPEND; statfs; folders over folders; "." in listings; waiting for locks;
// files that belong to who made them.
var plainLimits = []string{
	"truncate", "append", "append2", "statfs", "rename", "renameopen", "mknod", "fifo", "folder", "empty", "deep",
	"attrs", "unlinkedattrs", "times", "acl", "aclfile", "aclfolder", "flock", "fcntl", "coherent",
	"owner", "rights", "sticky", "groups", "setgid", "setuid",
}
