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
)

// listing is how far an open folder has been read. text is what getdents(2) last
// gave and at where in it to go on; the next entry is that of offset next.
type listing struct {
	buf  *[]byte
	text string
	at   int
	next uint64
}

// listSize is how much getdents(2) is asked for.
const listSize = 64 << 10

// Fields of a linux_dirent64.
const (
	direntOff    = 8
	direntReclen = 16
	direntType   = 18
	direntName   = 19
)

func (l *listing) close(t *Tree) {
	if l != nil && l.buf != nil {
		t.lists.Put(l.buf)
		l.buf = nil
	}
}

// more reads on; false at the end.
func (f *File) more() (bool, error) {
	l := f.dir
	if l.buf == nil {
		if l.buf, _ = f.a.t.lists.Get().(*[]byte); l.buf == nil {
			b := make([]byte, listSize)
			l.buf = &b
		}
	}
	for {
		n, err := unix.Getdents(f.fd, *l.buf)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return false, err
		case n <= 0:
			l.close(f.a.t)
			l.text, l.at = "", 0
			return false, nil
		}
		// Names are parts of one string.
		l.text, l.at = string((*l.buf)[:n]), 0
		return true, nil
	}
}

// ReadDirContext hands out the entries from offset on. Offsets are the file
// system's own. Types come with the names; qids have no version.
func (f *File) ReadDirContext(_ context.Context, offset uint64, add func(p9srv.Dirent) bool) error {
	switch {
	case f.fd < 0:
		return syscall.EBADF
	case !f.n.isDir():
		return syscall.ENOTDIR
	}
	l := f.listing()
	if offset == 0 || offset != l.next {
		if _, err := unix.Seek(f.fd, int64(offset), 0); err != nil {
			return err
		}
		l.text, l.at, l.next = "", 0, offset
	}
	for {
		if l.at >= len(l.text) {
			if ok, err := f.more(); !ok || err != nil {
				return err
			}
		}
		rest := l.text[l.at:]
		size := int(le16(rest[direntReclen:]))
		if size < direntName || size > len(rest) {
			return syscall.EIO
		}
		if !add(f.entry(rest[:size])) {
			return nil
		}
		l.next = le64(rest[direntOff:])
		l.at += size
	}
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

func (f *File) entry(b string) p9srv.Dirent {
	name := b[direntName:]
	for i := range len(name) {
		if name[i] == 0 {
			name = name[:i]
			break
		}
	}
	d := p9srv.Dirent{Offset: le64(b[direntOff:]), Type: b[direntType], Name: name}
	ino := le64(b)
	if d.Type == unix.DT_UNKNOWN {
		var st unix.Statx_t
		if unix.Statx(f.n.fd, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &st) == nil {
			d.Type = uint8(st.Mode & unix.S_IFMT >> 12)
		}
	}
	d.QID = p9.QID{Type: qidType(uint32(d.Type) << 12), Path: qidPath(f.n.dev, ino)}
	if name == "." || name == ".." && f.n == f.a.root {
		d.QID.Path = f.n.path
	}
	return d
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

func le16(s string) uint16 { return binary.NativeEndian.Uint16([]byte(s[:2])) }
func le64(s string) uint64 { return binary.NativeEndian.Uint64([]byte(s[:8])) }
