package tree

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// atHandleFID asks for a handle that identifies and need not be opened again
// (AT_HANDLE_FID, linux/fcntl.h).
const atHandleFID = 0x200

// HandleAt is the kernel's file handle of a name in a folder, or with an empty
// name of dirfd itself: four bytes of type, then the file system's own bytes
// (name_to_handle_at(2)). It has the inode's generation, so it tells a file from
// another that got the same inode number later. Links are not followed.
func HandleAt(dirfd int, name string) ([]byte, error) {
	var h rawHandle
	err := h.at(dirfd, name)
	if err == unix.ENAMETOOLONG { // a path
		return handleAtPath(dirfd, name)
	}
	if err != nil {
		return nil, fmt.Errorf("file handle: %w", err)
	}
	return h.bytes(), nil
}

func handleAtPath(dirfd int, path string) ([]byte, error) {
	h, _, err := unix.NameToHandleAt(dirfd, path, 0)
	if err == unix.EOPNOTSUPP {
		h, _, err = unix.NameToHandleAt(dirfd, path, atHandleFID)
	}
	if err != nil {
		return nil, fmt.Errorf("file handle: %w", err)
	}
	return handleOf(uint32(h.Type()), h.Bytes()), nil
}

func handleOf(typ uint32, raw []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(raw)), typ), raw...)
}

func splitHandle(h []byte) (typ uint32, raw []byte) {
	if len(h) < 4 {
		return 0, nil
	}
	return binary.LittleEndian.Uint32(h), h[4:]
}

// contentIs sets a's Content to that of the inode with a handle: 64 bits of it,
// never 0 (FNV-1a).
func (a *Attr) contentIs(handle []byte) {
	if a.Mode&unix.S_IFMT != unix.S_IFREG || len(handle) == 0 {
		return
	}
	h := uint64(14695981039346656037)
	for _, b := range handle {
		h = (h ^ uint64(b)) * 1099511628211
	}
	a.Content = max(h, 1)
}
