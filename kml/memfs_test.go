package kml

import (
	"io"
	"os"
	"path/filepath"
	"sort"
	"sync"

	"golang.org/x/sys/unix"
)

// memFS is a file system in memory that knows what is durable and fails when
// told to. It holds one folder.
type memFS struct {
	mu      sync.Mutex
	files   map[string]*memFile
	durable map[string]*memFile // names that survive a crash
	space   int64               // bytes that can still be allocated; negative: no end
	noAlloc bool                // fallocate is not known
	fail    func(call, name string) error
}

type memFile struct {
	fs    *memFS
	name  string
	data  []byte
	disk  []byte // data as of the last sync
	alloc int64  // bytes taken from space
}

func newMemFS() *memFS {
	return &memFS{files: map[string]*memFile{}, durable: map[string]*memFile{}, space: -1}
}

func (m *memFS) call(call, name string) error {
	if m.fail != nil {
		return m.fail(call, name)
	}
	return nil
}

func (m *memFS) Mkdir(string) error { return nil }

func (m *memFS) List(string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for n := range m.files {
		names = append(names, n)
	}
	sort.Strings(names)
	return names, nil
}

func (m *memFS) Open(path string, write, create bool) (file, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := filepath.Base(path)
	if err := m.call("open", name); err != nil {
		return nil, err
	}
	f := m.files[name]
	switch {
	case f != nil && create:
		return nil, &os.PathError{Op: "open", Path: path, Err: os.ErrExist}
	case f == nil && !create:
		return nil, &os.PathError{Op: "open", Path: path, Err: os.ErrNotExist}
	case f == nil:
		f = &memFile{fs: m, name: name}
		m.files[name] = f
	}
	return f, nil
}

func (m *memFS) Remove(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := filepath.Base(path)
	if err := m.call("remove", name); err != nil {
		return err
	}
	if f := m.files[name]; f != nil {
		m.give(f.alloc)
		f.alloc = 0
	}
	delete(m.files, name)
	return nil
}

func (m *memFS) SyncDir(string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.call("syncdir", ""); err != nil {
		return err
	}
	m.durable = map[string]*memFile{}
	for n, f := range m.files {
		m.durable[n] = f
	}
	return nil
}

func (m *memFS) Free(string) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.space < 0 {
		return 1 << 60, nil
	}
	return m.space, nil
}

// take takes n bytes of space.
func (m *memFS) take(n int64) error {
	if n <= 0 || m.space < 0 {
		return nil
	}
	if n > m.space {
		return unix.ENOSPC
	}
	m.space -= n
	return nil
}

func (m *memFS) give(n int64) {
	if m.space >= 0 {
		m.space += n
	}
}

// crash is the machine going down: what was not synced is gone, except the
// first keep bytes of every file that grew.
func (m *memFS) crash(keep int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files = map[string]*memFile{}
	for n, f := range m.durable {
		data := append([]byte{}, f.disk...)
		if k := min(keep, len(f.data)-len(data)); k > 0 {
			data = append(data, f.data[len(data):len(data)+k]...)
		}
		f := &memFile{fs: m, name: n, data: data, disk: append([]byte{}, data...)}
		m.files[n] = f
	}
	m.durable = map[string]*memFile{}
	for n, f := range m.files {
		m.durable[n] = f
	}
	m.fail = nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.fs.call("write", f.name)
	if err == nil {
		end := off + int64(len(p))
		if err = f.fs.take(end - f.alloc); err == nil {
			f.alloc = max(f.alloc, end)
		}
	}
	if err != nil {
		p = p[:len(p)/2] // the worst kind of failure leaves a part behind
	}
	if grow := int(off) + len(p) - len(f.data); grow > 0 {
		f.data = append(f.data, make([]byte, grow)...)
	}
	return copy(f.data[off:], p), err
}

func (f *memFile) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.call("truncate", f.name); err != nil {
		return err
	}
	f.fs.give(f.alloc - size)
	f.alloc = size
	f.data = f.data[:size]
	f.disk = f.disk[:min(len(f.disk), int(size))]
	return nil
}

func (f *memFile) Datasync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.call("sync", f.name); err != nil {
		return err
	}
	f.disk = append(f.disk[:0], f.data...)
	return nil
}

func (f *memFile) Allocate(off, n int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.call("allocate", f.name); err != nil {
		return err
	}
	if f.fs.noAlloc {
		return unix.EOPNOTSUPP
	}
	if err := f.fs.take(off + n - f.alloc); err != nil {
		return err
	}
	f.alloc = max(f.alloc, off+n)
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return int64(len(f.data)), nil
}

func (f *memFile) Close() error { return nil }
