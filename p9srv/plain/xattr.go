package plain

import (
	"errors"
	"strings"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"
)

// grow calls get with room enough for what it returns.
func grow(get func(b []byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		b := make([]byte, size)
		n, err := get(b)
		switch {
		case errors.Is(err, syscall.ERANGE) && size < 1<<20:
		case err != nil:
			return nil, err
		default:
			return b[:n], nil
		}
	}
}

// GetXattr reads an extended attribute; ENODATA when there is none.
func (f *File) GetXattr(name string) (v []byte, err error) {
	err = f.a.do(func() (err error) {
		v, err = grow(func(b []byte) (int, error) { return unix.Getxattr(f.n.procPath(), name, b) })
		return err
	})
	return v, err
}

// ListXattrs names the extended attributes the user may see.
func (f *File) ListXattrs() (names []string, err error) {
	var b []byte
	err = f.a.do(func() (err error) {
		b, err = grow(func(b []byte) (int, error) { return unix.Listxattr(f.n.procPath(), b) })
		return err
	})
	if err != nil || len(b) == 0 {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"), nil
}

// SetXattr sets one; flags are setxattr(2)'s.
func (f *File) SetXattr(name string, value []byte, flags p9.XattrFlags) error {
	if err := f.a.writable(); err != nil {
		return err
	}
	defer f.n.count.Add(1)
	return f.a.do(func() error { return unix.Setxattr(f.n.procPath(), name, value, int(flags)) })
}

// RemoveXattr removes one; ENODATA when there is none.
func (f *File) RemoveXattr(name string) error {
	if err := f.a.writable(); err != nil {
		return err
	}
	defer f.n.count.Add(1)
	return f.a.do(func() error { return unix.Removexattr(f.n.procPath(), name) })
}
