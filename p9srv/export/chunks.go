package export

import (
	"context"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/chunks"
	"github.com/mezzofs/mezzo/kml/tree"
)

// chunksDir is the folder of hash trees of files by oid, 16 hex digits. It lists
// nothing.
type chunksDir struct{ versionDir }

// Lookup finds a regular file by its oid.
func (d chunksDir) Lookup(ctx context.Context, c *tree.Cred, name string) (tree.ExtNode, error) {
	oid, err := d.find(ctx, c, "chunks/", name)
	if err != nil {
		return tree.ExtNode{}, err
	}
	return tree.ExtNode{
		Name: name, ID: idTrees | hashID(uint64(oid)), Mode: unix.S_IFREG | 0o444,
		Size: func(ctx context.Context) (uint64, error) {
			a, err := d.j.t.Getattr(ctx, nil, oid)
			if a.Size > chunks.MaxFile {
				return 0, err
			}
			return uint64(chunks.EncodedLen(a.Size)), err
		},
		Open: func(ctx context.Context, c *tree.Cred, flags int) (tree.ExtHandle, error) {
			v, err := d.open(ctx, c, "chunks/"+name, oid, flags)
			if err != nil {
				return nil, err
			}
			if v.Attr().Size > chunks.MaxFile {
				v.Close()
				return nil, syscall.EFBIG
			}
			return &chunksHandle{t: d.j.t, v: v}, nil
		},
	}, nil
}

// chunksHandle reads the hash tree of one version of a file. It is made by the
// first read, which may have to read the whole file.
type chunksHandle struct {
	t *tree.Tree
	v *tree.VersionHandle

	mu   sync.Mutex
	tree *chunks.Tree
}

func (h *chunksHandle) get() *chunks.Tree {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tree
}

// ReadAt reads the tree's bytes.
func (h *chunksHandle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	x := h.get()
	if x == nil {
		var err error
		if x, err = h.t.Chunks(ctx, h.v); err != nil {
			return 0, err
		}
		h.mu.Lock()
		h.tree = x
		h.mu.Unlock()
	}
	return x.ReadAt(p, off, kml.Position(h.v.Attr().DataVersion)), nil
}

// WriteAt is refused.
func (h *chunksHandle) WriteAt(context.Context, []byte, int64) (int, error) {
	return 0, syscall.EBADF
}

// Attr is the file's attributes at this version, with the size of its hash tree.
func (h *chunksHandle) Attr() (tree.Attr, bool) {
	a := h.v.Attr()
	a.Size = uint64(chunks.EncodedLen(a.Size))
	return a, true
}

// Close gives the version up.
func (h *chunksHandle) Close() error { return h.v.Close() }
