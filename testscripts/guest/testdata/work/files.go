package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// fileCases are about contents.
var fileCases = []testCase{
	{"copy", caseCopy}, {"truncate", caseTruncate}, {"opentrunc", caseOpenTrunc}, {"append", caseAppend},
	{"sparse", caseSparse}, {"blocks", caseBlocks}, {"big", caseBig}, {"sync", caseSync}, {"mapread", caseMapRead},
	{"exec", caseExec}, {"statfs", caseStatfs},
}

// lastCases come last: with cache=mmap and access=any, Linux's client does not
// find the open fid of an unlinked file any more once a shared mapping of
// another was written.
var lastCases = []testCase{{"mapwrite", caseMapWrite}}

func caseCopy(e *env) error {
	data := make([]byte, 3<<20+12345)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(data)
	f, err := os.Create(e.path("f"))
	if err != nil {
		return err
	}
	defer f.Close()
	// Pieces that fit neither pages nor messages.
	for rest := data; len(rest) > 0; {
		n := min(77777, len(rest))
		if _, err := f.Write(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	if _, err := f.WriteAt([]byte("in the middle"), 1<<20-3); err != nil {
		return err
	}
	copy(data[1<<20-3:], "in the middle")
	piece := make([]byte, 5000)
	if _, err := f.ReadAt(piece, 1<<20-2500); err != nil || !bytes.Equal(piece, data[1<<20-2500:][:5000]) {
		return fmt.Errorf("reading back before the close: %v, equal %v", err, bytes.Equal(piece, data[1<<20-2500:][:5000]))
	}
	if err := f.Close(); err != nil {
		return err
	}
	got, err := os.ReadFile(e.path("f"))
	if err != nil || !bytes.Equal(got, data) {
		return fmt.Errorf("%d bytes come back of %d, %v", len(got), len(data), err)
	}
	return nil
}

func caseTruncate(e *env) error {
	f, err := os.Create(e.path("f"))
	if err != nil {
		return err
	}
	defer f.Close()
	size := func(n int64) error {
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		return want("size", fi.Size(), n)
	}
	read := func(text string) error {
		b := make([]byte, 100)
		n, err := f.ReadAt(b, 0)
		if err != nil && err != io.EOF {
			return err
		}
		return want("contents", string(b[:n]), text)
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"write", func() error { _, err := f.WriteString("0123456789"); return err }},
		{"cut while open", func() error { return first(f.Truncate(4), size(4), read("0123")) }},
		{"grow while open", func() error { return first(f.Truncate(6), size(6), read("0123\x00\x00")) }},
		{"cut by name", func() error { return first(os.Truncate(e.path("f"), 2), size(2), read("01")) }},
		{"unlink", func() error { return os.Remove(e.path("f")) }},
		{"grow after unlink", func() error { return first(f.Truncate(5), size(5), read("01\x00\x00\x00")) }},
		{"write after unlink", func() error { _, err := f.WriteAt([]byte("xyz"), 3); return err }},
		{"read after unlink", func() error { return first(size(6), read("01\x00xyz")) }},
		{"cut after unlink", func() error { return first(f.Truncate(0), size(0), read("")) }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return f.Close()
}

func caseOpenTrunc(e *env) error {
	if err := put(e.path("f"), "long old contents"); err != nil {
		return err
	}
	f, err := os.OpenFile(e.path("f"), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := want("size after O_TRUNC", fi.Size(), 0); err != nil {
		return err
	}
	if _, err := f.WriteString("new"); err != nil {
		return err
	}
	return first(f.Close(), holds(e.path("f"), "new"))
}

func caseAppend(e *env) error {
	if err := put(e.path("f"), "begin\n"); err != nil {
		return err
	}
	text := "begin\n"
	for i := range 8 {
		f, err := os.OpenFile(e.path("f"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		line := fmt.Sprintln("line", i)
		_, err = f.WriteString(line)
		if err := first(err, f.Close()); err != nil {
			return err
		}
		text += line
	}
	return holds(e.path("f"), text)
}

func caseSparse(e *env) error {
	f, err := os.Create(e.path("f"))
	if err != nil {
		return err
	}
	defer f.Close()
	const far = 300 << 20
	if _, err := f.WriteAt([]byte("end"), far); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if err := want("size", st.Size, far+3); err != nil {
		return err
	}
	b := make([]byte, 4096)
	if _, err := f.ReadAt(b, far/2); err != nil || !bytes.Equal(b, make([]byte, 4096)) {
		return fmt.Errorf("the hole reads %q..., %v", b[:8], err)
	}
	n, err := f.ReadAt(b, far-1)
	if err != io.EOF || string(b[:n]) != "\x00end" {
		return fmt.Errorf("the end reads %q, %v", b[:n], err)
	}
	return f.Close()
}

// caseBlocks wants a hole to take no room.
func caseBlocks(e *env) error {
	f, err := os.Create(e.path("f"))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 8192), 100<<20); err != nil {
		return err
	}
	if err := first(f.Sync(), f.Close()); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(e.path("f"), &st); err != nil {
		return err
	}
	if st.Blocks < 16 || st.Blocks > 2048 {
		return fmt.Errorf("%d blocks", st.Blocks)
	}
	return nil
}

func caseBig(e *env) error {
	f, err := os.Create(e.path("f"))
	if err != nil {
		return err
	}
	defer f.Close()
	marks := map[int64]string{1<<32 - 2: "over", 5<<30 + 7: "five"}
	for at, s := range marks {
		if _, err := f.WriteAt([]byte(s), at); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	fi, err := os.Stat(e.path("f"))
	if err != nil {
		return err
	}
	if err := want("size", fi.Size(), 5<<30+11); err != nil {
		return err
	}
	g, err := os.Open(e.path("f"))
	if err != nil {
		return err
	}
	defer g.Close()
	for at, s := range marks {
		b := make([]byte, len(s))
		if _, err := g.ReadAt(b, at); err != nil || string(b) != s {
			return fmt.Errorf("at %d: %q, %v", at, b, err)
		}
	}
	if err := os.Truncate(e.path("f"), 1<<32+1); err != nil {
		return err
	}
	if fi, err = os.Stat(e.path("f")); err != nil {
		return err
	}
	return want("size when cut", fi.Size(), 1<<32+1)
}

func caseSync(e *env) error {
	f, err := os.OpenFile(e.path("f"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("synced"); err != nil {
		return err
	}
	d, err := os.Open(e.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := first(f.Sync(), unix.Fdatasync(int(f.Fd())), d.Sync(), f.Close()); err != nil {
		return err
	}
	g, err := os.OpenFile(e.path("g"), os.O_WRONLY|os.O_CREATE|os.O_SYNC, 0o600)
	if err != nil {
		return err
	}
	defer g.Close()
	if _, err := g.WriteString("at once"); err != nil {
		return err
	}
	return first(g.Close(), holds(e.path("f"), "synced"), holds(e.path("g"), "at once"))
}

func caseMapRead(e *env) error {
	if err := put(e.path("f"), "to be mapped"); err != nil {
		return err
	}
	f, err := os.Open(e.path("f"))
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 12, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer unix.Munmap(m)
	if err := want("mapping", string(m), "to be mapped"); err != nil {
		return err
	}
	copy(m, "TO")
	return first(want("mapping", string(m), "TO be mapped"), holds(e.path("f"), "to be mapped"))
}

func caseMapWrite(e *env) error {
	if err := put(e.path("f"), "to be mapped"); err != nil {
		return err
	}
	f, err := os.OpenFile(e.path("f"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 12, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m, "IS")
	if err := first(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m), f.Close()); err != nil {
		return err
	}
	if e.second != "" {
		return holds(e.other("f"), "IS be mapped")
	}
	return holds(e.path("f"), "IS be mapped")
}

func caseExec(e *env) error {
	if err := os.WriteFile(e.path("prog"), nil, 0o755); err != nil {
		return err
	}
	in, err := os.Open("/bin/tiny")
	if errors.Is(err, os.ErrNotExist) {
		return errSkip
	}
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(e.path("prog"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	text, err := exec.Command(e.path("prog"), "do", "echo", "it runs").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, text)
	}
	return want("output", string(text), "it runs\n")
}

func caseStatfs(e *env) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(e.dir, &st); err != nil {
		return err
	}
	if st.Namelen != 255 || st.Bsize <= 0 || st.Blocks == 0 || st.Bfree > st.Blocks || st.Files == 0 {
		return fmt.Errorf("%+v", st)
	}
	return nil
}
