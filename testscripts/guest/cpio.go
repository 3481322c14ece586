package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// cpioWriter writes an initramfs in the "newc" format (the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst). Everything in it
// belongs to root.
type cpioWriter struct {
	w   *bufio.Writer
	off int64
	ino int
}

// entry is one header; contents of size bytes come from r, which may be nil.
func (c *cpioWriter) entry(name string, mode uint32, major, minor uint32, size int64, r io.Reader) error {
	c.ino++
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.ino, mode, 0, 0, 1, 0, size, 0, 0, major, minor, len(name)+1, 0)
	if err := c.write([]byte(header + name + "\x00")); err != nil {
		return err
	}
	if size == 0 || r == nil {
		return nil
	}
	n, err := io.CopyN(c.w, r, size)
	c.off += n
	return errors.Join(err, c.pad(4))
}

func (c *cpioWriter) write(p []byte) error {
	n, err := c.w.Write(p)
	c.off += int64(n)
	return errors.Join(err, c.pad(4))
}

func (c *cpioWriter) pad(to int64) error {
	for c.off%to != 0 {
		if err := c.w.WriteByte(0); err != nil {
			return err
		}
		c.off++
	}
	return nil
}

// writeInitramfs packs the folder root into the file out, with the console that
// the kernel opens for the first process.
func writeInitramfs(out, root string) (err error) {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	c := &cpioWriter{w: bufio.NewWriterSize(f, 1<<20)}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		return c.add(name, path, d)
	})
	if err != nil {
		return err
	}
	if err := c.entry("dev/console", unix.S_IFCHR|0o600, 5, 1, 0, nil); err != nil {
		return err
	}
	if err := c.entry("TRAILER!!!", 0, 0, 0, 0, nil); err != nil {
		return err
	}
	return c.w.Flush()
}

func (c *cpioWriter) add(name, path string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	perm := uint32(info.Mode().Perm())
	switch {
	case d.IsDir():
		return c.entry(name, unix.S_IFDIR|perm, 0, 0, 0, nil)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if err := c.entry(name, unix.S_IFLNK|0o777, 0, 0, int64(len(target)), nil); err != nil {
			return err
		}
		return c.write([]byte(target))
	case info.Mode().IsRegular():
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return c.entry(name, unix.S_IFREG|perm, 0, 0, info.Size(), f)
	}
	return fmt.Errorf("%s: neither file, folder nor link", path)
}
