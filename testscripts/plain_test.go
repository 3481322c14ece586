package testscripts

import (
	"errors"
	"fmt"
	"net"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/hugelgupf/p9/linux"
	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"
)

// plainDoor is somebody else's 9P client: one that knows nothing of Mezzo.
type plainDoor struct {
	conn net.Conn
	c    *p9.Client
	root p9.File
}

func dialPlain(socket string) (*plainDoor, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	c, err := p9.NewClient(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	root, err := c.Attach("/")
	if err != nil {
		c.Close()
		return nil, err
	}
	return &plainDoor{conn, c, root}, nil
}

func (d *plainDoor) Close() error {
	d.root.Close()
	return d.c.Close()
}

// at walks to name, runs f and gives the fid back.
func (d *plainDoor) at(name string, f func(p9.File) error) error {
	var steps []string
	if name != "." {
		steps = strings.Split(name, "/")
	}
	qids, file, err := d.root.Walk(steps)
	if err != nil {
		return plainError(err)
	}
	defer file.Close()
	// A walk that went only part of the way has made no fid (walk(5)), which
	// this client does not look at.
	if len(qids) < len(steps) {
		return syscall.ENOENT
	}
	return plainError(f(file))
}

// plainError is the error as the system's own number.
func plainError(err error) error {
	var e linux.Errno
	if errors.As(err, &e) {
		return fmt.Errorf("%w (%w)", syscall.Errno(e), err)
	}
	return err
}

func (d *plainDoor) write(name string, data []byte, off int64, trunc bool) error {
	err := d.at(name, func(f p9.File) error {
		flags := p9.WriteOnly
		if trunc {
			flags |= p9.OpenFlags(unix.O_TRUNC)
		}
		if _, _, err := f.Open(flags); err != nil {
			return fmt.Errorf("open: %w", err)
		}
		if _, err := f.WriteAt(data, off); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		return nil
	})
	if !errors.Is(err, syscall.ENOENT) {
		return err
	}
	return d.at(path.Dir(name), func(dir p9.File) error {
		// The file it returns is dir itself, which at gives back.
		f, _, _, err := dir.Create(path.Base(name), p9.WriteOnly, 0o644, p9.NoUID, p9.NoGID)
		if err != nil {
			return fmt.Errorf("create: %w", err)
		}
		if _, err := f.WriteAt(data, off); err != nil {
			return fmt.Errorf("write what was created: %w", err)
		}
		return nil
	})
}

func (d *plainDoor) truncate(name string, size int64) error {
	return d.at(name, func(f p9.File) error {
		return f.SetAttr(p9.SetAttrMask{Size: true}, p9.SetAttr{Size: uint64(size)})
	})
}

func (d *plainDoor) read(name string) ([]byte, error) {
	var all []byte
	err := d.at(name, func(f p9.File) error {
		if _, _, err := f.Open(p9.ReadOnly); err != nil {
			return err
		}
		buf := make([]byte, 64<<10)
		for {
			n, err := f.ReadAt(buf, int64(len(all)))
			all = append(all, buf[:n]...)
			if n == 0 || err != nil {
				return nil // the end, whichever way this client says it
			}
		}
	})
	return all, err
}

func (d *plainDoor) mkdir(name string) error {
	return d.at(path.Dir(name), func(dir p9.File) error {
		_, err := dir.Mkdir(path.Base(name), 0o755, p9.NoUID, p9.NoGID)
		return err
	})
}

func (d *plainDoor) remove(name string, isDir bool) error {
	return d.at(path.Dir(name), func(dir p9.File) error {
		var flags uint32
		if isDir {
			flags = unix.AT_REMOVEDIR
		}
		return dir.UnlinkAt(path.Base(name), flags)
	})
}

func (d *plainDoor) rename(from, to string) error {
	return d.at(path.Dir(from), func(a p9.File) error {
		return d.at(path.Dir(to), func(b p9.File) error {
			return a.RenameAt(path.Base(from), b, path.Base(to))
		})
	})
}

func (d *plainDoor) link(name, to string) error {
	return d.at(name, func(f p9.File) error {
		return d.at(path.Dir(to), func(dir p9.File) error { return dir.Link(f, path.Base(to)) })
	})
}

func (d *plainDoor) symlink(target, name string) error {
	return d.at(path.Dir(name), func(dir p9.File) error {
		_, err := dir.Symlink(target, path.Base(name), p9.NoUID, p9.NoGID)
		return err
	})
}

func (d *plainDoor) chmod(name string, mode uint32) error {
	return d.at(name, func(f p9.File) error {
		q, _, _, err := f.GetAttr(p9.AttrMaskAll)
		if err != nil || q.Type == p9.TypeSymlink {
			return err
		}
		return f.SetAttr(p9.SetAttrMask{Permissions: true}, p9.SetAttr{Permissions: p9.FileMode(mode | 0o100)})
	})
}

func (d *plainDoor) utimes(name string, mtime time.Time) error {
	return d.at(name, func(f p9.File) error {
		s, n := uint64(mtime.Unix()), uint64(mtime.Nanosecond())
		return f.SetAttr(p9.SetAttrMask{ATime: true, MTime: true, ATimeNotSystemTime: true, MTimeNotSystemTime: true},
			p9.SetAttr{ATimeSeconds: s, ATimeNanoSeconds: n, MTimeSeconds: s, MTimeNanoSeconds: n})
	})
}
