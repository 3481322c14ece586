package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// keeping is the bytes of versions that a cache has from before a Reset, by
// object. Each is taken up again when the master turns out to have that very
// version. One that is later than the master's stays: a crash may have taken it
// there.
type keeping struct {
	mu sync.Mutex
	m  map[kml.OID]keptVersion
}

// keptVersion is a file in objects.
type keptVersion struct {
	version kml.Position
	size    uint64
	mtime   int64 // the version's
	whole   bool
	present []kml.Extent
	ino     uint64 // which file it is
	btime   int64
}

const (
	keptFile  = "kept"
	keptMagic = "mezzokp1"
)

var keptCRC = crc32.MakeTable(crc32.Castagnoli)

// loadKept reads what was kept. A file that is not whole is nothing: it is
// fetched again.
func loadKept(path string) map[kml.OID]keptVersion {
	m := make(map[kml.OID]keptVersion)
	b, err := os.ReadFile(path)
	if err != nil || len(b) < len(keptMagic)+4 || string(b[:len(keptMagic)]) != keptMagic {
		return m
	}
	body := b[:len(b)-4]
	if crc32.Checksum(body, keptCRC) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return m
	}
	for v := body[len(keptMagic):]; len(v) > 0; {
		next := func() uint64 { x := binary.LittleEndian.Uint64(v); v = v[8:]; return x }
		oid := kml.OID(next())
		k := keptVersion{version: kml.Position(next()), size: next(), mtime: int64(next()), ino: next(), btime: int64(next())}
		n := next()
		k.whole = n == 0
		for range n {
			k.present = append(k.present, kml.Extent{Off: next(), Len: next()})
		}
		m[oid] = k
	}
	return m
}

func saveKept(path string, m map[kml.OID]keptVersion) error {
	b := []byte(keptMagic)
	for oid, k := range m {
		for _, v := range []uint64{uint64(oid), uint64(k.version), k.size, uint64(k.mtime), k.ino, uint64(k.btime)} {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		if k.whole {
			b = binary.LittleEndian.AppendUint64(b, 0)
			continue
		}
		b = binary.LittleEndian.AppendUint64(b, uint64(len(k.present)))
		for _, e := range k.present {
			b = binary.LittleEndian.AppendUint64(b, e.Off)
			b = binary.LittleEndian.AppendUint64(b, e.Len)
		}
	}
	return renameio.WriteFile(path, binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, keptCRC)), 0o600)
}

// parseObjectFile reads the name of a version's file.
func parseObjectFile(name string) (oid kml.OID, v kml.Position, ok bool) {
	a, b, _ := strings.Cut(name, ".")
	n, err1 := strconv.ParseUint(a, 16, 64)
	p, err2 := strconv.ParseUint(b, 16, 64)
	return kml.OID(n), kml.Position(p), err1 == nil && err2 == nil && len(a) == 16 && len(b) == 16
}

// keepFiles notes which bytes are here of the versions that an index knows, and
// removes the files that say nothing. The caller holds amu.
func (c *Cache) keepFiles(x *Index) error {
	k := &c.keep
	k.mu.Lock()
	defer k.mu.Unlock()
	m := make(map[kml.OID]keptVersion)
	err := filepath.WalkDir(c.state.Path("objects"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(p, localSuffix) {
			return err
		}
		oid, v, ok := parseObjectFile(d.Name())
		if !ok {
			return os.Remove(p)
		}
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, p, unix.AT_SYMLINK_NOFOLLOW, statxMask, &st); err != nil {
			return err
		}
		was, ok := k.m[oid]
		ok = ok && was.version == v && was.is(&st)
		if obj, err := x.Get(oid); err == nil && obj.DataVersion == v {
			was = keptVersion{version: v, size: obj.Attr.Size, mtime: obj.Attr.Mtime, whole: obj.Whole, present: obj.Present, ino: st.Ino, btime: nsOf(st.Btime)}
			ok = obj.Whole || len(obj.Present) > 0
		}
		if other := m[oid]; !ok || st.Size != was.size || other.version > v {
			return os.Remove(p)
		} else if other.version != 0 {
			_ = os.Remove(c.objectPath(oid, other.version)) // an older one
		}
		m[oid] = was
		return nil
	})
	if err != nil {
		return err
	}
	if err := saveKept(c.state.Path(keptFile), m); err != nil {
		return err
	}
	k.m = m
	return nil
}

// is reports whether a file is the one that was kept.
func (k keptVersion) is(st *unix.Statx_t) bool {
	return st.Ino == k.ino && nsOf(st.Btime) == k.btime && st.Size == k.size
}

// takeUp gives an object the bytes that were kept of its version.
func (c *Cache) takeUp(o *Object) {
	k := &c.keep
	k.mu.Lock()
	defer k.mu.Unlock()
	was, ok := k.m[o.OID]
	if !ok {
		return
	}
	path := c.objectPath(o.OID, was.version)
	if was.version != o.DataVersion {
		if !lostBefore(was.version, o.DataVersion) {
			delete(k.m, o.OID)
			_ = os.Remove(path) // an older version
		}
		return
	}
	delete(k.m, o.OID)
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, statxMask, &st); err != nil || !was.is(&st) || was.size != o.Attr.Size || was.mtime != o.Attr.Mtime {
		return
	}
	o.Whole, o.Present = was.whole, was.present
}

// lostBefore reports whether a version may be a later one than the master's now:
// it is, or the master's was logged again after the crash that took it.
func lostBefore(v, now kml.Position) bool {
	return v > now || v.Epoch()+1 == now.Epoch()
}

// Held is all the contents of one version of a file. Its methods may be called at
// the same time, but for Close.
type Held struct {
	OID     kml.OID
	Version kml.Position
	Mtime   int64 // ns
	Size    int64
	io.ReaderAt
	close func() error
}

// Close gives the contents up.
func (h *Held) Close() error { return h.close() }

// Hold opens all the contents that are here of a version of a file, or of one
// that came later and that the master has lost. ErrNotExist when there are none.
func (c *Cache) Hold(oid kml.OID, v kml.Position) (*Held, error) {
	h := &Held{OID: oid}
	c.keep.mu.Lock()
	was, ok := c.keep.m[oid]
	c.keep.mu.Unlock()
	obj, err := c.index.Load().Get(oid)
	switch {
	case ok && was.whole && (was.version == v || lostBefore(was.version, v)):
		h.Version, h.Mtime, h.Size = was.version, was.mtime, int64(was.size)
	case err == nil && obj.Whole && (obj.DataVersion == v || lostBefore(obj.DataVersion, v)):
		h.Version, h.Mtime, h.Size = obj.DataVersion, obj.Attr.Mtime, int64(obj.Attr.Size)
	default:
		return nil, fmt.Errorf("contents of %v: %w", oid, os.ErrNotExist)
	}
	// With a second link nobody writes to the file.
	name := c.state.Path("stage", fmt.Sprintf("held-%016x.%016x", uint64(oid), uint64(h.Version)))
	if err := os.Link(c.objectPath(oid, h.Version), name); err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, errors.Join(err, os.Remove(name))
	}
	h.ReaderAt = f
	h.close = func() error { return errors.Join(f.Close(), os.Remove(name)) }
	if st, err := f.Stat(); err != nil || st.Size() != h.Size {
		return nil, errors.Join(fmt.Errorf("contents of %v: %w", oid, os.ErrNotExist), h.Close())
	}
	return h, nil
}
