package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// stat is stat(2) with every mode bit.
func stat(t testing.TB, p string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(p, &st))
	return st
}

// as runs a shell script as another user.
func as(t testing.TB, uid int, script string) error {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "setpriv", "--reuid", strconv.Itoa(uid), "--regid", strconv.Itoa(uid),
		"--clear-groups", "sh", "-c", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// openMount is a mount others may enter.
func openMount(t *testing.T) (string, *tree.Tree) {
	t.Helper()
	needFuse(t)
	mnt, tr := mountTree(t, Options{AllowOther: true})
	for p := filepath.Dir(mnt); p != "/tmp" && p != "/"; p = filepath.Dir(p) {
		must(t, os.Chmod(p, 0o755))
	}
	must(t, os.Chmod(mnt, 0o777))
	return mnt, tr
}

const alice, bob = 12345, 12346

func TestOwnersAndModes(t *testing.T) {
	mnt, _ := openMount(t)
	must(t, as(t, alice, fmt.Sprintf("umask 027; cd %s; touch f; mkdir d; ln -s f l; mkfifo p", mnt)))
	for name, mode := range map[string]uint32{"f": unix.S_IFREG | 0o640, "d": unix.S_IFDIR | 0o750, "l": unix.S_IFLNK | 0o777, "p": unix.S_IFIFO | 0o640} {
		if st := stat(t, filepath.Join(mnt, name)); st.Mode != mode || st.Uid != alice || st.Gid != alice {
			t.Errorf("%s: mode %o, want %o; owner %d:%d", name, st.Mode, mode, st.Uid, st.Gid)
		}
	}
	if err := as(t, bob, "cat "+mnt+"/f"); err == nil {
		t.Error("bob reads what is alice's alone")
	}
	// setgid folders hand their group on, to folders with the bit.
	g := filepath.Join(mnt, "g")
	must(t, os.Mkdir(g, 0o777))
	must(t, os.Chown(g, 0, 777))
	must(t, unix.Chmod(g, 0o2777))
	must(t, as(t, alice, fmt.Sprintf("umask 022; cd %s; touch f; mkdir d", g)))
	if st := stat(t, g+"/f"); st.Gid != 777 || st.Mode != unix.S_IFREG|0o644 {
		t.Errorf("file in a setgid folder: group %d mode %o", st.Gid, st.Mode)
	}
	if st := stat(t, g+"/d"); st.Gid != 777 || st.Mode != unix.S_IFDIR|0o2755 {
		t.Errorf("folder in a setgid folder: group %d mode %o", st.Gid, st.Mode)
	}
	must(t, unix.Chmod(g+"/d", 0o1755))
	if st := stat(t, g+"/d"); st.Mode != unix.S_IFDIR|0o1755 {
		t.Errorf("sticky folder: mode %o", st.Mode)
	}
}

func TestSetidBitsAreCleared(t *testing.T) {
	mnt, _ := openMount(t)
	p := filepath.Join(mnt, "f")
	for _, c := range []struct{ name, script string }{
		{"write", "echo x >>%s"},
		{"truncate", "truncate -s 1 %s"},
		{"open with O_TRUNC", ": >%s"},
	} {
		must(t, os.WriteFile(p, []byte("text"), 0o644))
		must(t, unix.Chmod(p, 0o6777))
		if st := stat(t, p); st.Mode&0o7777 != 0o6777 {
			t.Fatalf("mode %o", st.Mode)
		}
		must(t, as(t, bob, fmt.Sprintf(c.script, p)))
		if st := stat(t, p); st.Mode&0o7777 != 0o777 {
			t.Errorf("%s: mode %o after it", c.name, st.Mode&0o7777)
		}
	}
	must(t, unix.Chmod(p, 0o4755))
	must(t, os.Chown(p, alice, alice))
	if st := stat(t, p); st.Mode&0o7777 != 0o755 || st.Uid != alice {
		t.Errorf("chown: mode %o owner %d", st.Mode&0o7777, st.Uid)
	}
}

func TestACLs(t *testing.T) {
	if _, err := exec.LookPath("setfacl"); err != nil {
		t.Skip("no setfacl")
	}
	mnt, _ := openMount(t)
	p, d := filepath.Join(mnt, "secret"), filepath.Join(mnt, "d")
	must(t, os.WriteFile(p, []byte("text"), 0o600))
	if as(t, alice, "cat "+p) == nil {
		t.Fatal("alice reads it without an ACL")
	}
	run(t, mnt, "setfacl", "-m", fmt.Sprintf("u:%d:r", alice), p)
	must(t, as(t, alice, "cat "+p))
	if as(t, bob, "cat "+p) == nil {
		t.Error("bob reads it")
	}
	run(t, mnt, "setfacl", "-b", p)
	if as(t, alice, "cat "+p) == nil {
		t.Error("alice reads it after the ACL is gone")
	}
	// A default ACL takes the umask's place, and is handed on.
	must(t, os.Mkdir(d, 0o777))
	run(t, mnt, "setfacl", "-d", "-m", fmt.Sprintf("u::rwx,g::rwx,o::r,u:%d:rw", bob), d)
	must(t, unix.Chmod(d, 0o777))
	must(t, as(t, alice, fmt.Sprintf("umask 077; cd %s; touch f; mkdir sub; touch sub/f", d)))
	if st := stat(t, d+"/f"); st.Mode&0o777 != 0o664 {
		t.Errorf("file under a default ACL: mode %o", st.Mode&0o777)
	}
	for _, f := range []string{d + "/f", d + "/sub/f"} {
		if got := run(t, mnt, "getfacl", "-cn", f); !strings.Contains(got, fmt.Sprintf("user:%d:rw-", bob)) {
			t.Errorf("%s: the ACL was not handed on:\n%s", f, got)
		}
	}
}

func TestXattrs(t *testing.T) {
	mnt, _ := mountTree(t, Options{})
	p := filepath.Join(mnt, "f")
	must(t, os.WriteFile(p, nil, 0o644))
	buf := make([]byte, 100)
	if _, err := unix.Getxattr(p, "user.none", buf); err != unix.ENODATA {
		t.Errorf("a missing one: %v", err)
	}
	if err := unix.Setxattr(p, "user.a", []byte("x"), unix.XATTR_REPLACE); err != unix.ENODATA {
		t.Errorf("replace of a missing one: %v", err)
	}
	must(t, unix.Setxattr(p, "user.a", []byte("value"), unix.XATTR_CREATE))
	if err := unix.Setxattr(p, "user.a", nil, unix.XATTR_CREATE); err != unix.EEXIST {
		t.Errorf("create of one that is there: %v", err)
	}
	if _, err := unix.Getxattr(p, "user.a", buf[:2]); err != unix.ERANGE {
		t.Errorf("into too little: %v", err)
	}
	if n, err := unix.Getxattr(p, "user.a", nil); n != 5 || err != nil {
		t.Errorf("size: %d %v", n, err)
	}
	if n, err := unix.Listxattr(p, buf); err != nil || string(buf[:n]) != "user.a\x00" {
		t.Errorf("list: %q %v", buf[:max(n, 0)], err)
	}
	if _, err := unix.Listxattr(p, buf[:3]); err != unix.ERANGE {
		t.Errorf("list into too little: %v", err)
	}
	if err := unix.Setxattr(p, "user.big", make([]byte, 65537), 0); err != unix.E2BIG {
		t.Errorf("a value over the kernel's limit: %v", err)
	}
	must(t, unix.Removexattr(p, "user.a"))
	if err := unix.Removexattr(p, "user.a"); err != unix.ENODATA {
		t.Errorf("remove of a missing one: %v", err)
	}
}

func TestUnlinkedOpenFile(t *testing.T) {
	mnt, _ := mountTree(t, Options{})
	p := filepath.Join(mnt, "f")
	f, err := os.OpenFile(p, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer f.Close()
	_, err = f.WriteString("some text")
	must(t, err)
	must(t, os.Remove(p))
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	if st.Nlink != 0 || st.Size != 9 {
		t.Errorf("fstat: %+v", st)
	}
	must(t, f.Truncate(4))
	must(t, f.Chmod(0o640))
	must(t, unix.Futimes(int(f.Fd()), []unix.Timeval{{Sec: 1}, {Sec: 2}}))
	must(t, unix.Fstat(int(f.Fd()), &st))
	if st.Size != 4 || st.Mode&0o777 != 0o640 || st.Mtim.Sec != 2 {
		t.Errorf("fstat: %+v", st)
	}
	buf := make([]byte, 20)
	if n, _ := f.ReadAt(buf, 0); string(buf[:n]) != "some" {
		t.Errorf("read %q", buf[:n])
	}
}

func TestOpenFlags(t *testing.T) {
	mnt, _ := mountTree(t, Options{})
	p := filepath.Join(mnt, "f")
	must(t, os.WriteFile(p, []byte("0123456789"), 0o644))
	f, err := os.OpenFile(p, os.O_RDWR|os.O_APPEND, 0)
	must(t, err)
	if _, err := unix.Pwrite(int(f.Fd()), []byte("end"), 2); err != nil { // appends all the same
		t.Error(err)
	}
	must(t, f.Close())
	if got := content(p); got != "0123456789end" {
		t.Errorf("after an append: %q", got)
	}
	if _, err := os.OpenFile(p, os.O_CREATE|os.O_EXCL, 0o600); !errors.Is(err, os.ErrExist) {
		t.Errorf("O_EXCL: %v", err)
	}
	f, err = os.OpenFile(p, os.O_WRONLY|os.O_TRUNC, 0)
	must(t, err)
	if st := stat(t, p); st.Size != 0 {
		t.Errorf("O_TRUNC: size %d", st.Size)
	}
	must(t, f.Close())
	if got := content(p); got != "" {
		t.Errorf("after O_TRUNC: %q", got)
	}
	fd, err := unix.Open(p, unix.O_RDWR|unix.O_SYNC, 0)
	must(t, err)
	_, err = unix.Write(fd, []byte("synced"))
	must(t, err)
	must(t, unix.Close(fd))
	// No O_TMPFILE, and an ioctl nobody knows, say so.
	if _, err := unix.Open(mnt, unix.O_TMPFILE|unix.O_RDWR, 0o600); err != unix.EOPNOTSUPP {
		t.Errorf("O_TMPFILE: %v", err)
	}
	fd, err = unix.Open(p, unix.O_RDONLY, 0)
	must(t, err)
	defer unix.Close(fd)
	const shutdown = 0x8004587d // FS_IOC_SHUTDOWN, which must not reach the disk below
	if err := unix.IoctlSetPointerInt(fd, shutdown, 2); err != unix.ENOTTY {
		t.Errorf("ioctl: %v", err)
	}
}

func TestSpace(t *testing.T) {
	mnt, _ := mountTree(t, Options{})
	p := filepath.Join(mnt, "f")
	fd, err := unix.Open(p, unix.O_CREAT|unix.O_RDWR, 0o600)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Fallocate(fd, 0, 0, 1<<20))
	if st := stat(t, p); st.Size != 1<<20 || st.Blocks == 0 {
		t.Errorf("after fallocate: %+v", st)
	}
	must(t, unix.Ftruncate(fd, 0))
	_, err = unix.Pwrite(fd, []byte("data"), 1<<20)
	must(t, err)
	if off, err := unix.Seek(fd, 0, unix.SEEK_DATA); err != nil || off == 0 || off > 1<<20 {
		t.Errorf("SEEK_DATA: %d %v", off, err)
	}
	if off, err := unix.Seek(fd, 0, unix.SEEK_HOLE); err != nil || off != 0 {
		t.Errorf("SEEK_HOLE: %d %v", off, err)
	}
	if _, err := unix.Seek(fd, 2<<20, unix.SEEK_DATA); err != unix.ENXIO {
		t.Errorf("SEEK_DATA behind the end: %v", err)
	}
	out, err := unix.Open(p+"2", unix.O_CREAT|unix.O_RDWR, 0o600)
	must(t, err)
	defer unix.Close(out)
	from, to := int64(1<<20), int64(3)
	if n, err := unix.CopyFileRange(fd, &from, out, &to, 4, 0); n != 4 || err != nil {
		t.Errorf("copy_file_range: %d %v", n, err)
	}
	if got := content(p + "2"); got != "\x00\x00\x00data" {
		t.Errorf("copied %q", got)
	}
	var s unix.Statfs_t
	must(t, unix.Statfs(mnt, &s))
	if s.Blocks == 0 || s.Bsize == 0 || s.Namelen != 255 {
		t.Errorf("statfs: %+v", s)
	}
	var stx unix.Statx_t
	must(t, unix.Statx(unix.AT_FDCWD, p, 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &stx))
	if stx.Mask&unix.STATX_BTIME == 0 || time.Since(time.Unix(stx.Btime.Sec, 0)) > time.Hour {
		t.Errorf("time of birth: mask %x %v", stx.Mask, stx.Btime)
	}
}

func TestKinds(t *testing.T) {
	mnt, _ := mountTree(t, Options{})
	p := func(n string) string { return filepath.Join(mnt, n) }
	must(t, unix.Mknod(p("dev"), unix.S_IFCHR|0o600, int(unix.Mkdev(259, 70000))))
	if st := stat(t, p("dev")); st.Mode != unix.S_IFCHR|0o600 || unix.Major(st.Rdev) != 259 || unix.Minor(st.Rdev) != 70000 {
		t.Errorf("device: %+v", st)
	}
	must(t, unix.Mknod(p("reg"), unix.S_IFREG|0o600, 0))
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(t, err)
	defer unix.Close(sock)
	must(t, unix.Bind(sock, &unix.SockaddrUnix{Name: p("sock")}))
	if st := stat(t, p("sock")); st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		t.Errorf("socket: mode %o", st.Mode)
	}
	must(t, unix.Mkfifo(p("fifo"), 0o600))
	run(t, mnt, "sh", "-c", "echo through >fifo & cat fifo | grep -q through")

	// Rename with its flags.
	must(t, os.WriteFile(p("a"), []byte("a"), 0o600))
	must(t, os.WriteFile(p("b"), []byte("b"), 0o600))
	if err := unix.Renameat2(unix.AT_FDCWD, p("a"), unix.AT_FDCWD, p("b"), unix.RENAME_NOREPLACE); err != unix.EEXIST {
		t.Errorf("NOREPLACE: %v", err)
	}
	must(t, unix.Renameat2(unix.AT_FDCWD, p("a"), unix.AT_FDCWD, p("b"), unix.RENAME_EXCHANGE))
	if content(p("a")) != "b" || content(p("b")) != "a" {
		t.Errorf("EXCHANGE: a holds %q", content(p("a")))
	}
	if err := unix.Renameat2(unix.AT_FDCWD, p("a"), unix.AT_FDCWD, p("b"), unix.RENAME_WHITEOUT); err != unix.EINVAL {
		t.Errorf("WHITEOUT: %v", err)
	}

	// Times before 1970 and to the nanosecond.
	ts := []unix.Timespec{{Sec: -5, Nsec: 7}, {Sec: -100, Nsec: 123456789}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p("a"), ts, 0))
	if st := stat(t, p("a")); st.Mtim != ts[1] {
		t.Errorf("mtime %v", st.Mtim)
	}

	// A path far longer than PATH_MAX, and a long name.
	dir, err := unix.Open(mnt, unix.O_DIRECTORY|unix.O_RDONLY, 0)
	must(t, err)
	name := strings.Repeat("n", 255)
	for range 40 {
		must(t, unix.Mkdirat(dir, name, 0o700))
		next, err := unix.Openat(dir, name, unix.O_DIRECTORY|unix.O_RDONLY, 0)
		must(t, err)
		must(t, unix.Close(dir))
		dir = next
	}
	fd, err := unix.Openat(dir, "deep", unix.O_CREAT|unix.O_WRONLY, 0o600)
	must(t, err)
	must(t, unix.Close(fd))
	must(t, unix.Close(dir))
	if err := os.WriteFile(p(strings.Repeat("n", 256)), nil, 0o600); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("a name of 256 bytes: %v", err)
	}
}

// TestTelldir goes on in a listing at offsets it was given, while names come
// and go.
func TestTelldir(t *testing.T) {
	mnt, _ := mountTree(t, Options{})
	for i := range 2000 {
		must(t, unix.Mknod(filepath.Join(mnt, fmt.Sprintf("f%04d", i)), unix.S_IFREG|0o600, 0))
	}
	fd, err := unix.Open(mnt, unix.O_DIRECTORY|unix.O_RDONLY, 0)
	must(t, err)
	defer unix.Close(fd)
	seen := map[string]int{}
	buf := make([]byte, 4096)
	for i := 0; ; i++ {
		n, err := unix.ReadDirent(fd, buf)
		must(t, err)
		if n == 0 {
			break
		}
		_, _, list := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range list {
			seen[name]++
		}
		if i == 2 {
			must(t, os.WriteFile(filepath.Join(mnt, "late"), nil, 0o600))
			must(t, os.Remove(filepath.Join(mnt, "f1999")))
		}
		pos, err := unix.Seek(fd, 0, io.SeekCurrent)
		must(t, err)
		_, err = unix.Seek(fd, 0, io.SeekStart)
		must(t, err)
		_, err = unix.Seek(fd, pos, io.SeekStart)
		must(t, err)
	}
	for i := range 1999 {
		if n := seen[fmt.Sprintf("f%04d", i)]; n != 1 {
			t.Fatalf("f%04d was listed %d times", i, n)
		}
	}
}

func TestLocks(t *testing.T) {
	mnt, tr := mountTree(t, Options{})
	p := filepath.Join(mnt, "f")
	must(t, os.WriteFile(p, make([]byte, 100), 0o600))
	oid := kml.OID(stat(t, p).Ino)
	free := func(flock bool) bool {
		l, err := tr.TestLock(t.Context(), oid, tree.Lock{Type: unix.F_WRLCK, Flock: flock, End: ^uint64(0), Owner: tree.LockOwner{Door: 99}})
		must(t, err)
		return l.Type == unix.F_UNLCK
	}
	for _, c := range []struct {
		name  string
		flags int
		typ   int16
	}{{"write lock", unix.O_RDWR, unix.F_WRLCK}, {"read lock of a reader", unix.O_RDONLY, unix.F_RDLCK}} {
		fd, err := unix.Open(p, c.flags, 0)
		must(t, err)
		must(t, unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: c.typ, Start: 10, Len: 5}))
		if free(false) {
			t.Errorf("%s: not held", c.name)
		}
		must(t, unix.Close(fd))
		eventually(t, c.name+" goes with the close", func() bool { return free(false) })
	}
	fd, err := unix.Open(p, unix.O_RDONLY, 0)
	must(t, err)
	must(t, unix.Flock(fd, unix.LOCK_EX))
	if free(true) || !free(false) {
		t.Error("flock is not held, or is in the other space")
	}
	// Another process waits for it, and gives up when it is killed.
	cmd := exec.CommandContext(t.Context(), "flock", p, "true")
	must(t, cmd.Start())
	waits := fmt.Sprintf("/proc/%d/stack", cmd.Process.Pid)
	eventually(t, "flock(1) waits", func() bool {
		s, _ := os.ReadFile(waits)
		return bytes.Contains(s, []byte("fuse_setlk"))
	})
	must(t, cmd.Process.Kill())
	if err := cmd.Wait(); err == nil {
		t.Error("flock(1) got the lock")
	}
	must(t, unix.Close(fd))
	eventually(t, "flock goes with the close", func() bool { return free(true) })
	run(t, mnt, "flock", "-n", p, "true")
}

func TestReadOnly(t *testing.T) {
	needFuse(t)
	tr := newTree(t, t.TempDir())
	mnt, _ := mountAt(t, tr, Options{Door: 1, ReadOnly: true})
	if err := os.Mkdir(filepath.Join(mnt, "d"), 0o700); !errors.Is(err, unix.EROFS) {
		t.Errorf("mkdir: %v", err)
	}
}

// TestRealUse is what people do to a file system.
func TestRealUse(t *testing.T) {
	mnt, _ := mountTree(t, Options{})
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("no git")
	}
	run(t, mnt, "cp", "-a", "/usr/include/linux", "src")
	run(t, mnt, "diff", "-r", "--no-dereference", "/usr/include/linux", "src")
	run(t, mnt, "git", "-c", "init.defaultBranch=main", "init", "-q", ".")
	run(t, mnt, "git", "add", ".")
	run(t, mnt, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all")
	run(t, mnt, "git", "fsck", "--strict")
	if out := run(t, mnt, "git", "status", "--porcelain"); out != "" {
		t.Errorf("git status: %s", out)
	}
	run(t, mnt, "sh", "-c", "tar cf - src | (mkdir copy && cd copy && tar xf -) && diff -r src copy/src && rm -rf copy")
}

// TestAppendIsTheWriters has writes that must not go to the end through a file
// that was opened to append, and the other way round. Another process does it: a
// page fault is no system call, and a thread of this one that waits in it for the
// mount can keep the whole program from answering.
func TestAppendIsTheWriters(t *testing.T) {
	const where = "FUSEFS_APPEND"
	if p := os.Getenv(where); p != "" {
		appendIsTheWriters(t, p)
		return
	}
	mnt, _ := mountTree(t, Options{})
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), where+"="+filepath.Join(mnt, "f"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func appendIsTheWriters(t *testing.T, p string) {
	must(t, os.WriteFile(p, []byte("0123456789"), 0o600))
	fd, err := unix.Open(p, unix.O_RDWR|unix.O_APPEND, 0)
	must(t, err)
	m, err := unix.Mmap(fd, 0, 10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	m[0] = 'x'
	must(t, unix.Msync(m, unix.MS_SYNC))
	must(t, unix.Munmap(m))
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0)
	must(t, err)
	_, err = unix.Pwrite(fd, []byte("y"), 1)
	must(t, err)
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_APPEND)
	must(t, err)
	_, err = unix.Write(fd, []byte("z"))
	must(t, err)
	must(t, unix.Close(fd))
	if got := content(p); got != "xy23456789z" {
		t.Errorf("the kernel sees %q", got)
	}
	fd, err = unix.Open(p, unix.O_RDONLY|unix.O_DIRECT, 0)
	must(t, err)
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	must(t, err)
	if got := string(buf[:n]); got != "xy23456789z" {
		t.Errorf("the tree holds %q", got)
	}
}
