package tree

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// makeLocalFile puts the bytes of o into OID.local. The caller holds o.mu.
func (c *Cache) makeLocalFile(o *cacheObject, v kml.Position, trunc bool) error {
	local := c.localPath(o.oid)
	from := c.objectPath(o.oid, v)
	if o.local {
		from = local
	}
	switch {
	case trunc:
		tmp := c.state.Path("stage", fmt.Sprintf("new-%016x", uint64(o.oid)))
		fd, err := openObjectFile(tmp, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC)
		if err != nil {
			return err
		}
		unix.Close(fd)
		if err := renameInto(tmp, local); err != nil {
			return err
		}
		if !o.local {
			_ = os.Remove(from)
		}
		o.gen++
	default:
		var st unix.Stat_t
		if err := unix.Stat(from, &st); err != nil {
			return err
		}
		if st.Nlink > 1 { // an upload still reads it
			if err := c.copyFile(from, local); err != nil {
				return err
			}
			if !o.local {
				_ = os.Remove(from)
			}
			o.gen++
		} else if !o.local {
			if err := renameInto(from, local); err != nil {
				return err
			}
		}
	}
	if o.vf != nil && !o.local {
		o.vf.release()
		o.vf = nil
	}
	return nil
}

// renameInto renames into the objects folder, whose subfolder may be missing.
func renameInto(from, to string) error {
	err := os.Rename(from, to)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(to[:strings.LastIndexByte(to, '/')], 0o700); err != nil {
			return err
		}
		err = os.Rename(from, to)
	}
	return err
}

// copyFile replaces to by a copy of from, with its times.
func (c *Cache) copyFile(from, to string) error {
	src, err := openObjectFile(from, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	tmp := c.state.Path("stage", "copy-"+to[strings.LastIndexByte(to, '/')+1:])
	dst, err := openObjectFile(tmp, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC)
	if err != nil {
		return err
	}
	err = cloneOrCopy(dst, src)
	if err := errors.Join(err, unix.Close(dst)); err != nil {
		os.Remove(tmp)
		return err
	}
	return renameInto(tmp, to)
}

// cloneOrCopy makes dst, which is empty, what src is: bytes, holes, times.
func cloneOrCopy(dst, src int) error {
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	if unix.IoctlFileClone(dst, src) != nil {
		if err := copySparse(dst, src, st.Size); err != nil {
			return err
		}
	}
	ts := []unix.Timespec{st.Atim, st.Mtim}
	return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", dst), ts, 0)
}

// copySparse copies what is not a hole.
func copySparse(dst, src int, size int64) error {
	buf := make([]byte, min(size+1, 1<<20))
	for off := int64(0); off < size; {
		data, err := unix.Seek(src, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			data = off
		}
		hole, err := unix.Seek(src, data, unix.SEEK_HOLE)
		if err != nil {
			hole = size
		}
		for off = data; off < hole; {
			n, err := preadFull(src, buf[:min(int64(len(buf)), hole-off)], off)
			if err != nil {
				return err
			}
			if n == 0 {
				break
			}
			if _, err := pwriteFull(dst, buf[:n], off); err != nil {
				return err
			}
			off += int64(n)
		}
		off = max(off, hole)
	}
	return unix.Ftruncate(dst, size)
}

// picture makes path another name of what local holds, or a clone where blocks
// can be shared: then the next write needs no copy.
func (c *Cache) picture(local, path string) error {
	if !c.noClone.Load() {
		err := cloneOnly(local, path)
		if err == nil {
			return nil
		}
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
			c.noClone.Store(true)
		}
	}
	return os.Link(local, path)
}

func cloneOnly(from, to string) error {
	src, err := openObjectFile(from, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := openObjectFile(to, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	if err := unix.IoctlFileClone(dst, src); err != nil {
		os.Remove(to)
		return err
	}
	return nil
}
