package kml

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/internal/fault"
)

// fileSystem is what a log asks of the system; tests put one that fails.
type fileSystem interface {
	Mkdir(path string) error
	List(dir string) ([]string, error)
	Open(path string, write, create bool) (file, error)
	Remove(path string) error
	SyncDir(path string) error
	Free(path string) (int64, error) // bytes an unprivileged writer may still use
}

// file is one segment's file. Its methods may be called at the same time.
type file interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Truncate(size int64) error
	Datasync() error
	// Allocate makes sure that [off, off+n) can be written, without changing
	// the size (fallocate(2), FALLOC_FL_KEEP_SIZE).
	Allocate(off, n int64) error
	Size() (int64, error)
	Close() error
}

type osFS struct{}

func (osFS) Mkdir(path string) error {
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

func (osFS) List(dir string) ([]string, error) {
	es, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(es))
	for i, e := range es {
		names[i] = e.Name()
	}
	return names, nil
}

func (osFS) Open(path string, write, create bool) (file, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	if create {
		flag |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) Remove(path string) error { return os.Remove(path) }

func (osFS) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (osFS) Free(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("%s: statfs: %w", path, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

type osFile struct{ *os.File }

func (f osFile) WriteAt(p []byte, off int64) (int, error) {
	if err := fault.Err("kml.write"); err != nil {
		// A disk that fails may have taken a part.
		n, _ := f.File.WriteAt(p[:len(p)/2], off)
		return n, f.wrap("pwrite", err)
	}
	return f.File.WriteAt(p, off)
}

func (f osFile) Datasync() error {
	if err := fault.Err("kml.sync"); err != nil {
		return f.wrap("fdatasync", err)
	}
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err != unix.EINTR {
			return f.wrap("fdatasync", err)
		}
	}
}

func (f osFile) Allocate(off, n int64) error {
	if err := fault.Err("kml.allocate"); err != nil {
		return f.wrap("fallocate", err)
	}
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, n)
		if err != unix.EINTR {
			return f.wrap("fallocate", err)
		}
	}
}

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f osFile) wrap(call string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: call, Path: f.Name(), Err: err}
}
