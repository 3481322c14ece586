package export

import (
	"context"
	"io"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/p9srv"
)

// direntOverhead is what an entry takes in a message besides its name: qid,
// offset, type, length of the name.
const direntOverhead = 13 + 8 + 1 + 2

// dots is how many entries come before those of the tree: "." and "..", which a
// client's kernel does not add. A tree's offset o is o+dots on the wire.
const dots = 2

// dirBatch is how many entries are asked of the tree at a time.
const dirBatch = 256

// ReadDirContext hands out the entries from offset on, "." and ".." first. An
// offset stays good while the folder is open; offset 0 takes a new picture of
// it. The qids have no version: a listing looks at names alone.
func (f *File) ReadDirContext(ctx context.Context, offset uint64, add func(p9srv.Dirent) bool) error {
	n := f.n
	n.mu.RLock()
	defer n.mu.RUnlock()
	switch {
	case n.h != nil:
		return syscall.ENOTDIR
	case n.d == nil:
		return syscall.EBADF
	}
	if offset == 0 {
		if !add(dirent(n.oid, unix.S_IFDIR, 1, ".")) {
			return nil
		}
		offset = 1
	}
	if offset == 1 {
		up, err := n.s.up(ctx, n.oid)
		if err != nil {
			up = n.oid // removed while open: it has no parent
		}
		if !add(dirent(up, unix.S_IFDIR, dots, "..")) {
			return nil
		}
		offset = dots
	}
	for {
		list, err := n.d.ReadDir(ctx, offset-dots, dirBatch)
		if err != nil {
			return errno(err)
		}
		for _, e := range list {
			if !add(dirent(e.OID, e.Type, e.Off+dots, e.Name)) {
				return nil
			}
			offset = e.Off + dots
		}
		if len(list) == 0 {
			return nil
		}
	}
}

// Readdir is ReadDirContext for an engine without it: as many entries as fit in
// count bytes of a message, io.EOF at the end. Types are those of qids.
func (f *File) Readdir(offset uint64, count uint32) (p9.Dirents, error) {
	return collect(f, f.ctx, offset, count)
}

func collect(d p9srv.DirReader, ctx context.Context, offset uint64, count uint32) (p9.Dirents, error) {
	var ents p9.Dirents
	room := int64(count)
	err := d.ReadDirContext(ctx, offset, func(e p9srv.Dirent) bool {
		room -= direntOverhead + int64(len(e.Name))
		if room < 0 {
			return false
		}
		ents = append(ents, p9.Dirent{QID: e.QID, Offset: e.Offset, Type: e.QID.Type, Name: e.Name})
		return true
	})
	switch {
	case err != nil:
		return nil, err
	case len(ents) == 0 && room < 0:
		return nil, syscall.EINVAL
	case len(ents) == 0:
		return nil, io.EOF
	}
	return ents, nil
}

func dirent(oid kml.OID, mode uint32, off uint64, name string) p9srv.Dirent {
	return p9srv.Dirent{
		QID:    p9.QID{Type: qidType(mode), Path: uint64(oid)},
		Offset: off,
		Type:   uint8(mode & unix.S_IFMT >> 12),
		Name:   name,
	}
}
