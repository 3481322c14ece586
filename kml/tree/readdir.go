package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// dirHandle is an open folder of a Tree. Its picture of the names is taken at
// offset 0, or when there is none.
type dirHandle struct {
	t   *Tree
	oid kml.OID
	fd  int // opened by the user: the right to list was checked then

	mu  sync.Mutex
	pic picture
}

// OpenDir is FS.OpenDir.
func (t *Tree) OpenDir(ctx context.Context, c *Cred, oid kml.OID) (DirHandle, error) {
	h := &dirHandle{t: t, oid: oid, fd: -1}
	err := t.at(ctx, c, oid, func(p place) (err error) {
		h.fd, err = unix.Open(p.path(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// ReadDir is DirHandle.ReadDir.
func (h *dirHandle) ReadDir(ctx context.Context, off uint64, max int) ([]DirEntry, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if off == 0 || !h.pic.taken {
		pic, err := h.t.picture(ctx, h.oid, h.fd)
		if err != nil {
			return nil, err
		}
		h.pic = pic
	}
	return h.pic.after(off, max), nil
}

// Fsync makes the folder's names durable, with everything else up to now.
func (h *dirHandle) Fsync(ctx context.Context, _ bool) error { return h.t.commit(ctx) }

// Close is DirHandle.Close.
func (h *dirHandle) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pic = picture{}
	return unix.Close(h.fd)
}

// picture is a picture of the folder behind fd: the last one, when the folder
// tells by its change time that nothing came or went since.
func (t *Tree) picture(ctx context.Context, oid kml.OID, fd int) (picture, error) {
	var st unix.Statx_t
	if err := statAt(fd, "", &st); err != nil {
		return picture{}, err
	}
	if pic, ok := t.pictures.get(oid, &st); ok {
		return pic, nil
	}
	list, whole, err := t.list(ctx, oid, fd)
	if err != nil {
		return picture{}, err
	}
	pic := takePicture(list)
	if whole {
		t.pictures.put(oid, &st, pic)
	}
	return pic, nil
}

// list reads the folder behind fd and names each entry's oid. A listing trusts
// the index for names it knows (a walk verifies the handle); what it does not
// know, or knows and does not see, is journaled first. whole is true when disk
// and index agreed on every name.
func (t *Tree) list(ctx context.Context, oid kml.OID, fd int) (list []DirEntry, whole bool, err error) {
	for range maxRetry {
		list, odd, err := t.listOnce(oid, fd)
		if err != nil {
			return nil, false, err
		}
		if len(odd) == 0 {
			return list, true, nil
		}
		left := 0
		for _, name := range odd {
			if t.leaves(ctx) && !t.onDisk(Name{oid, name}) {
				left++
				continue
			}
			if err := t.reconcileName(ctx, oid, name); err != nil && !errors.Is(err, syscall.ENOENT) && !errors.Is(err, errDamaged) {
				return nil, false, err
			}
		}
		if left == len(odd) {
			return list, false, nil
		}
	}
	// Somebody keeps changing the folder: what is known by now will do.
	list, _, err = t.listOnce(oid, fd)
	return list, false, err
}

func (t *Tree) listOnce(oid kml.OID, fd int) (list []DirEntry, odd []string, err error) {
	mu := t.names.of(oid)
	mu.RLock()
	defer mu.RUnlock()
	onDisk, err := readNames(fd)
	if err != nil {
		return nil, nil, err
	}
	known := make(map[string]kml.OID, len(onDisk))
	for after := ""; ; {
		es, err := t.index.Children(oid, after, 1<<16)
		if err != nil {
			return nil, nil, err
		}
		if len(es) == 0 {
			break
		}
		for _, e := range es {
			known[e.Name] = e.OID
		}
		after = es[len(es)-1].Name
	}
	list = make([]DirEntry, 0, len(onDisk))
	for _, e := range onDisk {
		if oid == kml.RootOID && e.Name == ExtDirName {
			continue
		}
		id, ok := known[e.Name]
		if !ok {
			odd = append(odd, e.Name)
			continue
		}
		if e.Type == 0 {
			if obj, err := t.index.Get(id); err == nil {
				e.Type = obj.Attr.Mode & unix.S_IFMT
			}
		}
		delete(known, e.Name)
		list = append(list, DirEntry{Name: e.Name, OID: id, Type: e.Type})
	}
	for name := range known {
		odd = append(odd, name)
	}
	return list, odd, nil
}

// rawEntry is what getdents(2) says.
type rawEntry struct {
	Name string
	Ino  uint64
	Type uint32 // S_IFMT bits; 0 when the file system does not tell
}

// readNames reads a whole folder from its start, less "." and "..".
func readNames(fd int) ([]rawEntry, error) {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return nil, err
	}
	var out []rawEntry
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return out, nil
		}
		for b := buf[:n]; len(b) >= 19; {
			reclen := int(binary.NativeEndian.Uint16(b[16:]))
			if reclen < 19 || reclen > len(b) {
				break
			}
			name := b[19:reclen]
			for i, ch := range name {
				if ch == 0 {
					name = name[:i]
					break
				}
			}
			if s := string(name); s != "." && s != ".." {
				out = append(out, rawEntry{s, binary.NativeEndian.Uint64(b), uint32(b[18]) << 12})
			}
			b = b[reclen:]
		}
	}
}
