package export

import (
	"io"
	"syscall"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// direntOverhead is what an entry takes in a message besides its name: qid,
// offset, type, length of the name.
const direntOverhead = 13 + 8 + 1 + 2

// dots is how many entries come before those of the tree: "." and "..", which a
// client's kernel does not add. A tree's offset o is o+dots on the wire.
const dots = 2

// Readdir returns entries from offset on, as many as surely fill count bytes of
// a message and not many more; io.EOF at the end. An offset stays good while
// the folder is open, and offset 0 takes a new picture of it. The qids have no
// version: a listing looks at names alone.
func (f *File) Readdir(offset uint64, count uint32) (p9.Dirents, error) {
	n := f.n
	n.mu.RLock()
	defer n.mu.RUnlock()
	switch {
	case n.h != nil:
		return nil, syscall.ENOTDIR
	case n.d == nil:
		return nil, syscall.EBADF
	}
	// Short names are about eight bytes; what does not fit is read again.
	most := int(min(count, 1<<20))/(direntOverhead+8) + 1
	ents := make(p9.Dirents, 0, min(most, 64))
	if offset == 0 {
		ents = append(ents, dirent(n.oid, unix.S_IFDIR, 1, "."))
	}
	if offset <= 1 {
		up, err := n.s.up(f.ctx, n.oid)
		if err != nil {
			up = n.oid // removed while open: what the parent was is nobody's business
		}
		ents = append(ents, dirent(up, unix.S_IFDIR, dots, ".."))
		offset = dots
	}
	list, err := n.d.ReadDir(f.ctx, offset-dots, max(1, most-len(ents)))
	if err != nil {
		return nil, errno(err)
	}
	for _, e := range list {
		ents = append(ents, dirent(e.OID, e.Type, e.Off+dots, e.Name))
	}
	if len(ents) == 0 {
		return nil, io.EOF
	}
	return ents, nil
}

func dirent(oid kml.OID, mode uint32, off uint64, name string) p9.Dirent {
	return p9.Dirent{
		QID:    p9.QID{Type: qidType(mode), Path: uint64(oid)},
		Offset: off,
		// The protocol of Linux puts readdir(3)'s d_type here.
		Type: p9.QIDType(mode & unix.S_IFMT >> 12),
		Name: name,
	}
}
