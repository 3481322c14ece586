package testscripts

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// fact is what two trees have to agree on for one name.
type fact struct {
	kind   string // the words of ls -l that matter: type, mode, owner, size, time
	target string
	xattrs string
	links  string // the first name, in order, of the same object
}

// facts reads a tree. The folders .mezzo and .mezzo-replay in its root are not
// part of it.
func facts(root string) (map[string]fact, error) {
	all := map[string]fact{}
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(p, root), "/")
		if rel == ".mezzo" || rel == ".mezzo-replay" {
			return filepath.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: p, Err: err}
		}
		f := fact{kind: fmt.Sprintf("%o %d:%d mtime %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			f.kind += fmt.Sprintf(" size %d nlink %d", st.Size, st.Nlink)
		case unix.S_IFLNK:
			if f.target, err = os.Readlink(p); err != nil {
				return err
			}
		case unix.S_IFCHR, unix.S_IFBLK:
			f.kind += fmt.Sprintf(" rdev %x", st.Rdev)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			if _, seen := first[st.Ino]; !seen {
				first[st.Ino] = rel
			}
			f.links = first[st.Ino]
		}
		if f.xattrs, err = xattrs(p); err != nil {
			return &fs.PathError{Op: "listxattr", Path: p, Err: err}
		}
		all[rel] = f
		return nil
	})
	return all, err
}

// xattrs are a file's user attributes and ACLs, sorted, as text.
func xattrs(p string) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err == unix.EOPNOTSUPP || err == unix.EPERM {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var out []string
	for _, name := range strings.Split(string(buf[:n]), "\x00") {
		if !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "system.posix_acl") {
			continue
		}
		v := make([]byte, 64<<10)
		m, err := unix.Lgetxattr(p, name, v)
		if err != nil {
			return "", err
		}
		out = append(out, fmt.Sprintf("%s=%q", name, v[:m]))
	}
	sort.Strings(out)
	return strings.Join(out, " "), nil
}

// treeDifferences compares two trees and says, in lines, where they differ.
func treeDifferences(a, b string) ([]string, error) {
	fa, err := facts(a)
	if err != nil {
		return nil, err
	}
	fb, err := facts(b)
	if err != nil {
		return nil, err
	}
	var diffs []string
	for name, x := range fa {
		y, ok := fb[name]
		switch {
		case !ok:
			diffs = append(diffs, fmt.Sprintf("%q: only in the first", name))
		case x != y:
			diffs = append(diffs, fmt.Sprintf("%q:\n\t%+v\n\t%+v", name, x, y))
		case strings.Contains(x.kind, " size "):
			same, err := sameBytes(filepath.Join(a, name), filepath.Join(b, name))
			if err != nil {
				return nil, err
			}
			if !same {
				diffs = append(diffs, fmt.Sprintf("%q: contents differ", name))
			}
		}
	}
	for name := range fb {
		if _, ok := fa[name]; !ok {
			diffs = append(diffs, fmt.Sprintf("%q: only in the second", name))
		}
	}
	sort.Strings(diffs)
	return diffs, nil
}

func sameBytes(a, b string) (bool, error) {
	x, err := os.ReadFile(a)
	if err != nil {
		return false, err
	}
	y, err := os.ReadFile(b)
	return bytes.Equal(x, y), err
}

func sameTree(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] sametree A B")
	}
	diffs, err := treeDifferences(ts.MkAbs(args[0]), ts.MkAbs(args[1]))
	ts.Check(err)
	if neg != (len(diffs) > 0) {
		if n := len(diffs); n > 20 {
			diffs = append(diffs[:20], fmt.Sprintf("and %d more", n-20))
		}
		ts.Fatalf("%s and %s: %d differences\n%s", args[0], args[1], len(diffs), strings.Join(diffs, "\n"))
	}
}

// oddTree makes what a file system may hold and few people try.
func oddTree(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: oddtree DIR")
	}
	ts.Check(makeOddTree(ts.MkAbs(args[0]), os.Getuid() == 0))
}

// oddNames are names that programs trip over.
func oddNames() []string {
	return []string{
		"a b", " leading and trailing ", "two\nlines", "tab\there", "\xff\xfe not utf-8 \x80",
		"-rf", "*", "quote'\"`", "back\\slash", "naïve", "nai\u0308ve", "..dots", ".hidden", "a:b",
		strings.Repeat("n", 255), "\x01\x7f", "💾", "COM1", "con.txt", "%00", "$HOME",
	}
}

func makeOddTree(dir string, root bool) error {
	join := func(elem ...string) string { return filepath.Join(append([]string{dir}, elem...)...) }
	var do firstError
	for _, n := range oddNames() {
		do.err(os.MkdirAll(join("names", "dirs", n, n), 0o755))
		do.err(os.WriteFile(join("names", n), []byte("contents of "+n), 0o644))
		do.err(os.Symlink(n, join("names", "dirs", n, "link")))
	}
	do.err(os.MkdirAll(join("empty"), 0o711))
	deep := join("deep")
	for range 40 {
		deep = filepath.Join(deep, "down")
	}
	do.err(os.MkdirAll(deep, 0o755))
	do.err(os.WriteFile(filepath.Join(deep, "bottom"), []byte("deep"), 0o600))

	do.err(os.MkdirAll(join("kinds"), 0o755))
	do.err(os.WriteFile(join("kinds", "empty"), nil, 0o644))
	do.err(os.WriteFile(join("kinds", "exec"), []byte("#!/bin/sh\necho ran\n"), 0o755))
	do.err(os.WriteFile(join("kinds", "readonly"), []byte("r"), 0o444))
	do.err(os.WriteFile(join("kinds", "big"), bytes.Repeat([]byte("0123456789abcdef"), 20<<10), 0o644))
	do.err(os.WriteFile(join("kinds", "one"), []byte("linked"), 0o644))
	do.err(os.Link(join("kinds", "one"), join("kinds", "two")))
	do.err(os.Link(join("kinds", "one"), join("empty", "three")))
	do.err(os.Remove(join("empty", "three")))
	do.err(os.Link(join("kinds", "one"), join("deep", "three")))
	do.err(os.Symlink("../nowhere/"+strings.Repeat("x", 300), join("kinds", "dangling")))
	do.err(os.Symlink("\xff\n", join("kinds", "oddlink")))
	do.err(unix.Mkfifo(join("kinds", "fifo"), 0o600))
	do.err(unix.Setxattr(join("kinds", "one"), "user.note", []byte("value\x00with zero"), 0))
	do.err(unix.Setxattr(join("kinds"), "user.empty", nil, 0))
	do.err(sparse(join("kinds", "sparse")))
	if root {
		do.err(unix.Mknod(join("kinds", "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		do.err(os.Chown(join("kinds", "exec"), 1234, 2345))
		do.err(os.Lchown(join("kinds", "dangling"), 1234, 2345))
		do.err(unix.Chmod(join("kinds", "exec"), 0o4755))
		do.err(unix.Chmod(join("empty"), 0o3777))
	}
	old := []unix.Timespec{{Sec: 1, Nsec: 1}, {Sec: 981173106, Nsec: 123456789}}
	for _, p := range []string{"kinds/one", "kinds/dangling", "kinds/fifo", "names/a b", "empty", "deep", "kinds"} {
		do.err(unix.UtimesNanoAt(unix.AT_FDCWD, join(p), old, unix.AT_SYMLINK_NOFOLLOW))
	}
	return do.first
}

func sparse(p string) error {
	f, err := os.Create(p)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("far"), 1<<20); err != nil {
		return err
	}
	return f.Truncate(2 << 20)
}

// firstError keeps the first error it is given.
type firstError struct{ first error }

func (f *firstError) err(err error) {
	if f.first == nil {
		f.first = err
	}
}

// goTree copies the Go source tree, or some of its packages, as cp -a does.
func goTree(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: gotree DIR [PACKAGE...]")
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	ts.Check(err)
	src := filepath.Join(strings.TrimSpace(string(goroot)), "src")
	dst := ts.MkAbs(args[0])
	if len(args) == 1 {
		ts.Check(ts.Exec("cp", "-a", src, dst))
		return
	}
	for _, p := range args[1:] {
		ts.Check(os.MkdirAll(filepath.Dir(filepath.Join(dst, p)), 0o755))
		ts.Check(ts.Exec("cp", "-a", filepath.Join(src, p), filepath.Join(dst, p)))
	}
}

// TestSameTreeSees makes sure that the comparison the scripts rely on sees
// each kind of difference.
func TestSameTreeSees(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"contents": func(d string) error {
			p := filepath.Join(d, "kinds/exec")
			var st unix.Stat_t
			if err := unix.Stat(p, &st); err != nil {
				return err
			}
			text := bytes.Repeat([]byte("x"), int(st.Size))
			if err := os.WriteFile(p, text, 0o755); err != nil {
				return err
			}
			return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{st.Atim, st.Mtim}, 0)
		},
		"name":  func(d string) error { return os.Remove(filepath.Join(d, "names/\xff\xfe not utf-8 \x80")) },
		"mode":  func(d string) error { return os.Chmod(filepath.Join(d, "kinds/big"), 0o600) },
		"xattr": func(d string) error { return unix.Removexattr(filepath.Join(d, "kinds"), "user.empty") },
		"more":  func(d string) error { return os.WriteFile(filepath.Join(d, "more"), nil, 0o600) },
		"mtime": func(d string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(d, "kinds/big"), []unix.Timespec{{}, {Sec: 1}}, 0)
		},
	} {
		a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
		if err := makeOddTree(a, false); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("cp", "-a", a, b).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if diffs, err := treeDifferences(a, b); err != nil || len(diffs) > 0 {
			t.Fatalf("a copy differs: %v %v", diffs, err)
		}
		if err := spoil(b); err != nil {
			t.Fatal(err)
		}
		if diffs, err := treeDifferences(a, b); err != nil || len(diffs) == 0 {
			t.Errorf("%s: no difference seen (%v)", name, err)
		}
	}
}
