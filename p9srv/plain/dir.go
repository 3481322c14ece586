package plain

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/p9srv"
	"github.com/mezzofs/mezzo/p9srv/wire"
)

// listing is how far an open folder has been read: buf[at:end] is what
// getdents(2) gave and nobody has taken yet. The next entry is that of offset
// next.
type listing struct {
	buf     *[]byte
	at, end int
	next    uint64
	back    bool // taken back to the first entry of buf, for a request that goes on elsewhere
}

// What getdents(2) is asked for: in place no more than a short folder's entries,
// so that a long one keeps nobody waiting.
const (
	listSize  = 64 << 10
	shortList = 8 << 10
)

// Fields of a linux_dirent64.
const (
	direntOff    = 8
	direntReclen = 16
	direntType   = 18
	direntName   = 19
	direntMax    = direntName + 256 // reclen is a multiple of 8, the name ends with a NUL
)

func (l *listing) close(t *Tree) {
	if l != nil && l.buf != nil {
		t.lists.Put(l.buf)
		l.buf, l.at, l.end = nil, 0, 0
	}
}

// seek makes the entry behind offset the next.
func (l *listing) seek(fd int, offset uint64) error {
	if l.next == offset && (offset != 0 || l.back) {
		l.back = false
		return nil
	}
	if _, err := unix.Seek(fd, int64(offset), 0); err != nil {
		return err
	}
	l.at, l.end, l.next, l.back = 0, 0, offset, false
	return nil
}

// more reads on; false at the end.
func (l *listing) more(t *Tree, fd, size int) (bool, error) {
	if l.buf == nil {
		if l.buf, _ = t.lists.Get().(*[]byte); l.buf == nil {
			b := make([]byte, listSize)
			l.buf = &b
		}
	}
	for {
		n, err := unix.Getdents(fd, (*l.buf)[:size])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return false, err
		case n <= 0:
			l.close(t)
			return false, nil
		}
		l.at, l.end = 0, n
		return true, nil
	}
}

// each calls add for the entries from offset on until there are no more or add
// wants no more. Offsets are the file system's own.
func (f *File) each(offset uint64, add func(e []byte) bool) error {
	switch {
	case f.fd < 0:
		return syscall.EBADF
	case !f.n.isDir():
		return syscall.ENOTDIR
	}
	l := f.listing()
	if err := l.seek(f.fd, offset); err != nil {
		return err
	}
	size := listSize
	if f.ctx == nil {
		size = shortList
	}
	start, left, lots := l.at, l.at < l.end, 0
	for {
		if l.at >= l.end {
			if f.ctx == nil && (left || l.end+direntMax > size) {
				// There is likely more. What was read is not read again.
				l.at, l.next, l.back = start, offset, true
				return p9srv.ErrWouldBlock
			}
			if ok, err := l.more(f.a.t, f.fd, size); !ok || err != nil {
				return err
			}
			start = 0
			if lots++; f.ctx == nil && lots > 1 {
				// The first lot was short (a signal does that) and is not here
				// any more: from the start.
				l.at, l.end, l.next = 0, 0, ^offset
				return p9srv.ErrWouldBlock
			}
		}
		e := (*l.buf)[l.at:l.end]
		n := 0
		if len(e) > direntName {
			n = int(binary.NativeEndian.Uint16(e[direntReclen:]))
		}
		if n <= direntName || n > len(e) {
			return syscall.EIO
		}
		if !add(e[:n:n]) {
			return nil
		}
		l.next = binary.NativeEndian.Uint64(e[direntOff:])
		l.at += n
	}
}

// FillDir packs the entries from offset on. Types come with the names; qids have
// no version. In place it gives up on a folder that is not short.
func (f *File) FillDir(offset uint64, p *wire.DirPacker) error {
	return f.each(offset, func(e []byte) bool {
		name := direntBytes(e)
		q, typ := f.entry(e, name)
		return p.AddBytes(q, binary.NativeEndian.Uint64(e[direntOff:]), typ, name)
	})
}

// ReadDirContext hands out the entries from offset on, like FillDir.
func (f *File) ReadDirContext(_ context.Context, offset uint64, add func(p9srv.Dirent) bool) error {
	return f.each(offset, func(e []byte) bool {
		name := direntBytes(e)
		q, typ := f.entry(e, name)
		return add(p9srv.Dirent{QID: q, Offset: binary.NativeEndian.Uint64(e[direntOff:]), Type: typ, Name: string(name)})
	})
}

// listing is the fid's: the File may be one that was bound for this read.
func (f *File) listing() *listing {
	if f.of != nil {
		f.dir = f.of.listing()
	}
	if f.dir == nil {
		f.dir = &listing{}
	}
	return f.dir
}

// direntBytes is the name in an entry: it ends with a NUL, somewhere in the last
// eight bytes.
func direntBytes(e []byte) []byte {
	name := e[direntName:]
	for i := max(len(name)-8, 0); i < len(name); i++ {
		if name[i] == 0 {
			return name[:i]
		}
	}
	return name
}

// entry is the qid and the d_type of an entry.
func (f *File) entry(e, name []byte) (p9.QID, uint8) {
	typ, path := e[direntType], qidPath(f.n.dev, binary.NativeEndian.Uint64(e))
	if typ == unix.DT_UNKNOWN {
		var st unix.Statx_t
		if unix.Statx(f.n.fd, string(name), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &st) == nil {
			typ = uint8(st.Mode & unix.S_IFMT >> 12)
		}
	}
	if name[0] == '.' && (len(name) == 1 || len(name) == 2 && name[1] == '.' && f.n == f.a.root) {
		path = f.n.path
	}
	return p9.QID{Type: qidType(uint32(typ) << 12), Path: path}, typ
}

// Readdir is ReadDirContext for an engine without it: as many entries as fit in
// count bytes of a message, io.EOF at the end. Types are those of qids.
func (f *File) Readdir(offset uint64, count uint32) (p9.Dirents, error) {
	const overhead = 13 + 8 + 1 + 2
	var all p9.Dirents
	room := int64(count)
	err := f.ReadDirContext(f.ctx, offset, func(d p9srv.Dirent) bool {
		if room -= overhead + int64(len(d.Name)); room < 0 {
			return false
		}
		all = append(all, p9.Dirent{QID: d.QID, Offset: d.Offset, Type: d.QID.Type, Name: d.Name})
		return true
	})
	switch {
	case err == nil && len(all) == 0 && room < 0:
		err = syscall.EINVAL
	case err == nil && len(all) == 0:
		err = io.EOF
	}
	if errors.Is(err, io.EOF) || len(all) == 0 {
		return nil, err
	}
	return all, nil
}
