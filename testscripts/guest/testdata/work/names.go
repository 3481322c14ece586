package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// nameCases are about names and folders.
var nameCases = []testCase{
	{"tree", caseTree}, {"rename", caseRename}, {"renameopen", caseRenameOpen}, {"unlinkopen", caseUnlinkOpen},
	{"links", caseLinks}, {"symlinks", caseSymlinks}, {"mknod", caseMknod}, {"fifo", caseFIFO},
	{"folder", caseFolder}, {"empty", caseEmpty}, {"longname", caseLongName}, {"deep", caseDeep},
	{"excl", caseExcl}, {"refusals", caseRefusals},
}

func names(dir string) (string, error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return "", err
	}
	var all []string
	for _, d := range entries {
		n := d.Name()
		if d.IsDir() {
			n += "/"
		}
		all = append(all, n)
	}
	return strings.Join(all, " "), nil
}

func lists(dir, expected string) error {
	got, err := names(dir)
	if err != nil {
		return err
	}
	return want("listing", got, expected)
}

func caseTree(e *env) error {
	for i := range 4 {
		d := e.path(fmt.Sprintf("d%d/sub/leaf", i))
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
		for j := range 3 {
			if err := put(fmt.Sprintf("%s/f%d", d, j), fmt.Sprint(i, j)); err != nil {
				return err
			}
		}
	}
	if err := first(lists(e.dir, "d0/ d1/ d2/ d3/"), lists(e.path("d3/sub/leaf"), "f0 f1 f2"),
		holds(e.path("d3/sub/leaf/f2"), "3 2")); err != nil {
		return err
	}
	fi, err := os.Stat(e.path("d1"))
	if err != nil {
		return err
	}
	if n := fi.Sys().(*syscall.Stat_t).Nlink; n != 3 && n != 1 {
		return fmt.Errorf("a folder with one folder in it has %d links", n)
	}
	return first(os.RemoveAll(e.path("d1")), lists(e.dir, "d0/ d2/ d3/"))
}

func caseRename(e *env) error {
	if err := first(put(e.path("a"), "A"), put(e.path("b"), "B"), os.Mkdir(e.path("d"), 0o755),
		os.Mkdir(e.path("d/in"), 0o755), put(e.path("d/in/f"), "F"), os.Mkdir(e.path("none"), 0o755)); err != nil {
		return err
	}
	return first(
		unix.Rename(e.path("a"), e.path("c")), lists(e.dir, "b c d/ none/"), holds(e.path("c"), "A"),
		unix.Rename(e.path("c"), e.path("b")), lists(e.dir, "b d/ none/"), holds(e.path("b"), "A"),
		unix.Rename(e.path("b"), e.path("d/in/b")), lists(e.path("d/in"), "b f"),
		unix.Rename(e.path("d"), e.path("none")), lists(e.dir, "none/"), holds(e.path("none/in/f"), "F"),
		unix.Rename(e.path("none/in"), e.path("up")), lists(e.dir, "none/ up/"), holds(e.path("up/b"), "A"),
		refused("into itself", unix.Rename(e.path("up"), e.path("up/x")), unix.EINVAL),
		refused("over a full folder", unix.Rename(e.path("none"), e.path("up")), unix.ENOTEMPTY),
	)
}

func caseRenameOpen(e *env) error {
	if err := first(put(e.path("f"), "first"), os.Mkdir(e.path("d"), 0o755)); err != nil {
		return err
	}
	f, err := os.OpenFile(e.path("f"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Rename(e.path("f"), e.path("d/g")); err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("F"), 0)
	if err := first(err, f.Chmod(0o640), f.Close(), holds(e.path("d/g"), "First")); err != nil {
		return err
	}
	fi, err := os.Stat(e.path("d/g"))
	if err != nil {
		return err
	}
	return want("mode", fi.Mode(), 0o640)
}

func caseUnlinkOpen(e *env) error {
	f, err := os.OpenFile(e.path("f"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("before "); err != nil {
		return err
	}
	if err := os.Remove(e.path("f")); err != nil {
		return err
	}
	if _, err := f.WriteString("after"); err != nil {
		return err
	}
	b := make([]byte, 12)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "before after" {
		return fmt.Errorf("reads %q, %v", b, err)
	}
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	// A new file of that name is another one.
	if err := first(want("size", fi.Size(), 12), put(e.path("f"), "new"), holds(e.path("f"), "new")); err != nil {
		return err
	}
	now, err := os.Stat(e.path("f"))
	if err != nil {
		return err
	}
	if os.SameFile(fi, now) {
		return errors.New("a new file has the inode number of one that is open")
	}
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "before after" {
		return fmt.Errorf("reads %q then, %v", b, err)
	}
	return f.Close()
}

func caseLinks(e *env) error {
	if err := first(put(e.path("a"), "one"), os.Link(e.path("a"), e.path("b")), os.Mkdir(e.path("d"), 0o755),
		os.Link(e.path("b"), e.path("d/c"))); err != nil {
		return err
	}
	nlink := func(name string, n uint64) error {
		fi, err := os.Stat(e.path(name))
		if err != nil {
			return err
		}
		return want("links of "+name, fi.Sys().(*syscall.Stat_t).Nlink, n)
	}
	same := func(x, y string) error {
		p, err := os.Stat(e.path(x))
		if err != nil {
			return err
		}
		q, err := os.Stat(e.path(y))
		if err != nil {
			return err
		}
		return want("sameness of "+x+" and "+y, os.SameFile(p, q), true)
	}
	return first(nlink("a", 3), nlink("d/c", 3), same("a", "d/c"),
		put(e.path("b"), "two"), holds(e.path("d/c"), "two"),
		unix.Rename(e.path("b"), e.path("e")), os.Remove(e.path("a")), nlink("e", 2), nlink("d/c", 2),
		refused("to a folder", unix.Link(e.path("d"), e.path("dd")), unix.EPERM),
		refused("over a name", unix.Link(e.path("e"), e.path("d/c")), unix.EEXIST),
	)
}

func caseSymlinks(e *env) error {
	long := strings.Repeat("x/", 1500) + "end"
	for name, target := range map[string]string{"rel": "f", "dangling": "nowhere", "up": "../symlinks/f", "long": long, "odd": "a \xff\nb"} {
		if err := os.Symlink(target, e.path(name)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		got, err := os.Readlink(e.path(name))
		if err := first(err, want(name, got, target)); err != nil {
			return err
		}
	}
	fi, err := os.Lstat(e.path("long"))
	if err != nil {
		return err
	}
	_, missing := os.Stat(e.path("dangling"))
	return first(want("size of a link", fi.Size(), int64(len(long))), refused("a dangling link", missing, unix.ENOENT),
		put(e.path("f"), "target"), holds(e.path("rel"), "target"), holds(e.path("up"), "target"),
		os.Remove(e.path("rel")), holds(e.path("f"), "target"))
}

func caseMknod(e *env) error {
	for _, n := range []struct {
		name string
		mode uint32
		dev  uint64
	}{
		{"null", unix.S_IFCHR | 0o620, unix.Mkdev(1, 3)}, {"block", unix.S_IFBLK | 0o600, unix.Mkdev(259, 70000)},
		{"fifo", unix.S_IFIFO | 0o640, 0}, {"socket", unix.S_IFSOCK | 0o600, 0}, {"plain", unix.S_IFREG | 0o604, 0},
	} {
		if err := unix.Mknod(e.path(n.name), n.mode, int(n.dev)); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(e.path(n.name), &st); err != nil {
			return err
		}
		if st.Mode != n.mode || st.Rdev != n.dev {
			return fmt.Errorf("%s: mode %o, device %x", n.name, st.Mode, st.Rdev)
		}
	}
	return lists(e.dir, "block fifo null plain socket")
}

// caseFIFO is two processes that talk through a FIFO, both ways in turn.
func caseFIFO(e *env) error {
	if err := unix.Mkfifo(e.path("p"), 0o600); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "do", "say", e.path("p"), "through the pipe")
	var complaint strings.Builder
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		return err
	}
	// Opening waits for the other; a stalled connection would stall this too.
	err := first(holds(e.path("p"), "through the pipe"), put(e.path("f"), "meanwhile"))
	if werr := cmd.Wait(); werr != nil {
		return fmt.Errorf("the writer: %w: %s", werr, complaint.String())
	}
	return err
}

// caseFolder reads a large folder in all the ways telldir and seekdir allow.
func caseFolder(e *env) error {
	if e.full == "" {
		return errSkip
	}
	fd, err := unix.Open(e.full, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	all, err := readAll(fd)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, d := range all {
		seen[d.name] = true
	}
	if len(all) != 10002 || len(seen) != 10002 || !seen["e0"] || !seen["e9999"] || !seen["."] || !seen[".."] {
		return fmt.Errorf("%d entries, %d names", len(all), len(seen))
	}
	for _, i := range []int{5000, 9990, 17, 10000} {
		rest, err := readFrom(e.full, all[i].off)
		if err != nil {
			return err
		}
		if len(rest) == 0 || rest[0].name != all[i+1].name {
			return fmt.Errorf("after a seek behind entry %d (%s): %v, not %s", i, all[i].name, rest, all[i+1].name)
		}
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return err
	}
	again, err := readAll(fd)
	if err != nil {
		return err
	}
	if !slices.Equal(all, again) {
		return errors.New("a second reading differs")
	}
	return nil
}

// readFrom reads a little of a folder from an offset on. It opens the folder
// anew: Linux's client keeps what it has read ahead over a seek
// (v9fs_dir_readdir_dotl).
func readFrom(dir string, off int64) ([]dirent, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if _, err := unix.Seek(fd, off, unix.SEEK_SET); err != nil {
		return nil, err
	}
	return readSome(fd, 64)
}

type dirent struct {
	name string
	off  int64
}

func readAll(fd int) ([]dirent, error) {
	var all []dirent
	for {
		some, err := readSome(fd, 32<<10)
		if err != nil || len(some) == 0 {
			return all, err
		}
		all = append(all, some...)
	}
}

func readSome(fd, size int) ([]dirent, error) {
	b := make([]byte, size)
	n, err := unix.Getdents(fd, b)
	if err != nil {
		return nil, err
	}
	var all []dirent
	for b = b[:n]; len(b) > 19; {
		reclen := int(b[16]) | int(b[17])<<8
		off := int64(0)
		for i := range 8 {
			off |= int64(b[8+i]) << (8 * i)
		}
		name, _, _ := strings.Cut(string(b[19:reclen]), "\x00")
		all = append(all, dirent{name, off})
		b = b[reclen:]
	}
	return all, nil
}

// caseEmpty removes names while it reads them.
func caseEmpty(e *env) error {
	for i := range 50 {
		if err := unix.Mknod(e.path(fmt.Sprintf("f%d", i)), unix.S_IFREG|0o600, 0); err != nil {
			return err
		}
	}
	fd, err := unix.Open(e.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	gone := 0
	for {
		some, err := readSome(fd, 400)
		if err != nil {
			return err
		}
		if len(some) == 0 {
			break
		}
		for _, d := range some {
			if d.name == "." || d.name == ".." {
				continue
			}
			if err := unix.Unlinkat(fd, d.name, 0); err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
			gone++
		}
	}
	return first(want("names removed", gone, 50), lists(e.dir, ""))
}

func caseLongName(e *env) error {
	long := strings.Repeat("n", 255)
	odd := "sp ace \xff\xfe\n\t\"'\\ \u00fc"
	err := put(e.path(long+"n"), "")
	if err := refused("256 bytes", err, unix.ENAMETOOLONG); err != nil {
		return err
	}
	return first(put(e.path(long), "long"), holds(e.path(long), "long"), lists(e.dir, long),
		unix.Rename(e.path(long), e.path(strings.Repeat("m", 255))), os.Remove(e.path(strings.Repeat("m", 255))),
		put(e.path(odd), "odd"), lists(e.dir, odd), holds(e.path(odd), "odd"),
		os.Mkdir(e.path(long), 0o700), put(e.path(long+"/"+long), "both"), holds(e.path(long+"/"+long), "both"))
}

// caseDeep makes a path longer than PATH_MAX, step by step.
func caseDeep(e *env) error {
	fd, err := unix.Open(e.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	const levels = 24
	name := strings.Repeat("d", 180)
	for i := range levels {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			return fmt.Errorf("level %d: %w", i, err)
		}
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("level %d: %w", i, err)
		}
		fd = next
	}
	defer func() { unix.Close(fd) }()
	f, err := unix.Openat(fd, "f", unix.O_RDWR|unix.O_CREAT, 0o644)
	if err != nil {
		return err
	}
	_, err = unix.Write(f, []byte("deep"))
	if err := first(err, unix.Close(f)); err != nil {
		return err
	}
	// By one path, as far as paths go.
	var st unix.Stat_t
	if err := unix.Stat(e.path(strings.Repeat(name+"/", 20)), &st); err != nil {
		return fmt.Errorf("20 levels: %w", err)
	}
	// And up again.
	for i := range levels {
		up, err := unix.Openat(fd, "..", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return fmt.Errorf("up %d: %w", i, err)
		}
		unix.Close(fd)
		fd = up
	}
	var here unix.Stat_t
	if err := first(unix.Fstat(fd, &here), unix.Stat(e.dir, &st)); err != nil {
		return err
	}
	return want("where .. led", here.Ino, st.Ino)
}

func caseExcl(e *env) error {
	f, err := os.OpenFile(e.path("f"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return err
	}
	// The mode binds later opens, not this handle.
	_, err = f.WriteString("made")
	if err := first(err, f.Close()); err != nil {
		return err
	}
	_, again := os.OpenFile(e.path("f"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err := first(refused("again", again, unix.EEXIST), holds(e.path("f"), "made")); err != nil {
		return err
	}
	if e.second != "" {
		_, there := os.OpenFile(e.other("f"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		return first(refused("by the other mount", there, unix.EEXIST),
			refused("mkdir by the other mount", unix.Mkdir(e.other("f"), 0o755), unix.EEXIST))
	}
	return nil
}

func caseRefusals(e *env) error {
	if err := first(put(e.path("f"), ""), os.Mkdir(e.path("d"), 0o755), put(e.path("d/x"), "")); err != nil {
		return err
	}
	var st unix.Stat_t
	open := func(path string, flags int) error {
		fd, err := unix.Open(path, flags, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	return first(
		refused("stat of nothing", unix.Stat(e.path("no"), &st), unix.ENOENT),
		refused("stat below a file", unix.Stat(e.path("f/x"), &st), unix.ENOTDIR),
		refused("write to a folder", open(e.path("d"), unix.O_WRONLY), unix.EISDIR),
		refused("unlink of a folder", unix.Unlinkat(unix.AT_FDCWD, e.path("d"), 0), unix.EISDIR),
		refused("rmdir of a file", unix.Rmdir(e.path("f")), unix.ENOTDIR),
		refused("rmdir of a full folder", unix.Rmdir(e.path("d")), unix.ENOTEMPTY),
		refused("mkdir over a file", unix.Mkdir(e.path("f"), 0o755), unix.EEXIST),
		refused("rename of a file over a folder", unix.Rename(e.path("f"), e.path("d")), unix.EISDIR),
		refused("rename of a folder over a file", unix.Rename(e.path("d"), e.path("f")), unix.ENOTDIR),
		refused("open as folder", open(e.path("f"), unix.O_DIRECTORY), unix.ENOTDIR),
		refused("rename of nothing", unix.Rename(e.path("no"), e.path("n")), unix.ENOENT),
	)
}
