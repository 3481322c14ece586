package export

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// versionDir is the folder of objects by oid, 16 hex digits. It lists nothing.
type versionDir struct{ j *Journal }

// Lookup finds a regular file by its oid.
func (d versionDir) Lookup(ctx context.Context, c *tree.Cred, name string) (tree.ExtNode, error) {
	// The size says something already.
	if _, err := d.j.may(ctx, c, RightFollow, "oid/"+cut(name)); err != nil {
		return tree.ExtNode{}, err
	}
	n, err := strconv.ParseUint(name, 16, 64)
	if err != nil || fmt.Sprintf("%016x", n) != name {
		return tree.ExtNode{}, syscall.ENOENT
	}
	oid := kml.OID(n)
	a, err := d.j.t.Getattr(ctx, nil, oid)
	if errors.Is(err, syscall.ESTALE) || err == nil && a.Mode&unix.S_IFMT != unix.S_IFREG {
		err = syscall.ENOENT
	}
	if err != nil {
		return tree.ExtNode{}, err
	}
	return tree.ExtNode{
		Name: name, ID: idVersions | hashID(n), Mode: unix.S_IFREG | 0o444,
		Size: func(ctx context.Context) (uint64, error) {
			a, err := d.j.t.Getattr(ctx, nil, oid)
			return a.Size, err
		},
		Open: func(ctx context.Context, c *tree.Cred, flags int) (tree.ExtHandle, error) {
			if err := only(flags); err != nil {
				return nil, err
			}
			if _, err := d.j.may(ctx, c, RightFollow, "oid/"+name); err != nil {
				return nil, err
			}
			v, err := d.j.t.OpenVersion(ctx, oid)
			if err != nil {
				return nil, err
			}
			return &versionHandle{v: v}, nil
		},
	}, nil
}

// List lists nothing: there are as many names as objects.
func (d versionDir) List(context.Context, *tree.Cred) ([]tree.ExtNode, error) { return nil, nil }

// versionHandle reads one version of a file's contents; ESTALE once it is no
// longer to be had.
type versionHandle struct{ v *tree.VersionHandle }

// ReadAt reads the version's bytes.
func (h *versionHandle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return h.v.ReadAt(ctx, p, off)
}

// WriteAt is refused.
func (h *versionHandle) WriteAt(context.Context, []byte, int64) (int, error) {
	return 0, syscall.EBADF
}

// Attr is the file's attributes at this version; DataVersion is the position of
// its store.
func (h *versionHandle) Attr() (tree.Attr, bool) { return h.v.Attr(), true }

// Close gives the version up.
func (h *versionHandle) Close() error { return h.v.Close() }
