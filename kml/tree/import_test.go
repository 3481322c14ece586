package tree

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
	"github.com/mezzofs/mezzo/kml"
)

// shell runs a script in a directory, as another program would.
func shell(t *testing.T, dir, script string) {
	t.Helper()
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// special fills a directory with one of everything.
func special(t *testing.T, dir string) {
	t.Helper()
	shell(t, dir, `
mkdir -p deep/er/and/deeper empty
echo one >one; ln one two; ln one deep/three
ln -s nowhere/at/all dangling
mkfifo fifo
chmod 4711 one
chmod 2775 empty
touch -d 1970-01-01T00:00:00.123456789Z deep/old
truncate -s 5G sparse
touch -d 1969-12-01 deep/er
`)
	if os.Geteuid() == 0 {
		shell(t, dir, "mknod null c 1 3; chown 1234:567 deep")
	}
	for _, n := range []string{"\xff\xfe", "new\nline", " ", "-rf", strings.Repeat("n", 255), "back\\slash", "é", "e\u0301"} {
		ok(t, os.WriteFile(filepath.Join(dir, n), []byte(n), 0o600))
	}
	if err := unix.Setxattr(filepath.Join(dir, "one"), "user.a", []byte("\x00v"), 0); err != nil && err != unix.EOPNOTSUPP {
		t.Fatal(err)
	}
}

func TestImportTakesEverything(t *testing.T) {
	dir := t.TempDir()
	special(t, dir)
	var last int64
	ok(t, Init(dir, Options{NoWatch: true, Progress: func(n int64) { last = n }}))
	tr := openTree(t, dir)
	checkAgrees(t, tr)
	checkReplay(t, tr)
	if n := countDisk(t, dir); n != countIndex(t, tr, kml.RootOID) {
		t.Errorf("%d names on disk, %d in the index", n, countIndex(t, tr, kml.RootOID))
	} else if last != int64(n-1) { // less the root
		t.Errorf("progress ends at %d of %d", last, n-1)
	}
	made := make(map[string]*kml.Record)
	links := 0
	for _, r := range records(t, tr) {
		made[r.Name] = r
		if r.Op == kml.OpLink {
			links++
		}
	}
	if links != 2 {
		t.Errorf("a file with three names became %d link records", links)
	}
	if r := made["dangling"]; r.Op != kml.OpSymlink || r.Target != "nowhere/at/all" {
		t.Errorf("link: %+v", r)
	}
	if r := made["old"]; r.Attr.Mtime != 123456789 {
		t.Errorf("old file has mtime %d", r.Attr.Mtime)
	}
	if r := made["er"]; r.Attr.Mtime >= 0 {
		t.Errorf("folder of 1969 has mtime %d", r.Attr.Mtime)
	}
	one := must[Attr](t)(tr.Lookup(ctx, nil, kml.RootOID, "one"))
	if one.Nlink != 3 || one.Mode != unix.S_IFREG|0o4711 {
		t.Errorf("one: %o with %d links", one.Mode, one.Nlink)
	}
	if names := tr.index.Names(one.OID); len(names) != 3 {
		t.Errorf("one has names %v", names)
	}
	n := len(records(t, tr))
	ok(t, tr.Scan(ctx))
	if m := len(records(t, tr)); m != n {
		t.Errorf("a scan after an import finds %d changes: %s", m-n, logOps(t, tr))
	}
}

func TestImportKeepsXattrsOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	ok(t, os.WriteFile(file, nil, 0o644))
	if err := unix.Setxattr(file, "user.kept", []byte("v"), 0); err == unix.EOPNOTSUPP {
		t.Skip("no xattrs here")
	}
	if os.Geteuid() == 0 {
		ok(t, unix.Setxattr(file, "trusted.overlay.opaque", []byte("y"), 0))
		ok(t, unix.Setxattr(file, "trusted.mine", []byte("m"), 0))
	}
	ok(t, Init(dir, Options{NoWatch: true}))
	tr := openTree(t, dir)
	for _, r := range records(t, tr) {
		for _, x := range r.Xattrs {
			if strings.HasPrefix(x.Name, "trusted.overlay") {
				t.Errorf("%s is journaled", x.Name)
			}
		}
		if r.Name == "f" && len(r.Xattrs) == 0 {
			t.Error("no xattrs were recorded")
		}
	}
}

// An import that is killed leaves a folder that is no fileset, and the next
// one starts over.
func TestImportCutShortStartsOver(t *testing.T) {
	dir := t.TempDir()
	const n = 2*importBatch + importBatch/2
	for i := range n {
		ok(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644))
	}
	exe, err := os.Executable()
	ok(t, err)
	for _, at := range []string{"tree.import:1", "tree.import:2", "tree.import:3"} {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), crashDir+"="+dir, crashInit+"=1", fault.Env+"="+at)
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("%s: %v: %s", at, err, out)
		}
		_, err := Open(dir, Options{NoWatch: true})
		wantErr(t, err, ErrNotFileset)
	}
	ok(t, Init(dir, Options{NoWatch: true}))
	tr := openTree(t, dir)
	if got := countIndex(t, tr, kml.RootOID); got != n+1 {
		t.Errorf("index has %d names, the folder %d", got, n+1)
	}
	checkReplay(t, tr)
}

func TestImportStopsWithItsContext(t *testing.T) {
	tr := newTree(t)
	shell(t, tr.dir, "mkdir d; touch d/a d/b")
	c, cancel := context.WithCancel(ctx)
	cancel()
	wantErr(t, tr.importDir(c, nil), context.Canceled)
}

func TestImportRefusesAFilesetInside(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "a", "sub")
	ok(t, os.MkdirAll(sub, 0o755))
	ok(t, Init(sub, Options{NoWatch: true}))
	wantErr(t, Init(dir, Options{NoWatch: true}), ErrHolds)
	if _, err := os.Stat(filepath.Join(dir, ExtDirName)); !os.IsNotExist(err) {
		t.Errorf("a refused import leaves %s behind: %v", ExtDirName, err)
	}
	ok(t, os.RemoveAll(filepath.Join(sub, ExtDirName)))
	ok(t, Init(dir, Options{NoWatch: true}))
	wantErr(t, Init(sub, Options{NoWatch: true}), ErrInside)
	link := filepath.Join(t.TempDir(), "link")
	ok(t, os.Symlink(sub, link))
	wantErr(t, Init(link, Options{NoWatch: true}), ErrInside)
}

func TestImportLeavesMountsOut(t *testing.T) {
	dir := t.TempDir()
	mnt := filepath.Join(dir, "mnt")
	ok(t, os.Mkdir(mnt, 0o755))
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, ""); err != nil {
		t.Skipf("may not mount: %v", err)
	}
	t.Cleanup(func() { ok(t, unix.Unmount(mnt, unix.MNT_DETACH)) })
	ok(t, os.WriteFile(filepath.Join(mnt, "in"), nil, 0o644))
	ok(t, Init(dir, Options{NoWatch: true}))
	tr := openTree(t, dir)
	for _, r := range records(t, tr) {
		if r.Name == "in" {
			t.Errorf("what is on a mounted file system was imported: %+v", r)
		}
	}
}
