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
	oid, err := d.find(ctx, c, "oid/", name)
	if err != nil {
		return tree.ExtNode{}, err
	}
	return tree.ExtNode{
		Name: name, ID: idVersions | hashID(uint64(oid)), Mode: unix.S_IFREG | 0o444,
		Size: func(ctx context.Context) (uint64, error) {
			a, err := d.j.t.Getattr(ctx, nil, oid)
			return a.Size, err
		},
		Open: func(ctx context.Context, c *tree.Cred, flags int) (tree.ExtHandle, error) {
			v, err := d.open(ctx, c, "oid/"+name, oid, flags)
			if err != nil {
				return nil, err
			}
			return &versionHandle{v: v}, nil
		},
	}, nil
}

// find is the regular file whose oid a name is.
func (d versionDir) find(ctx context.Context, c *tree.Cred, dir, name string) (kml.OID, error) {
	// The size says something already.
	if _, err := d.j.may(ctx, c, RightFollow, dir+cut(name)); err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(name, 16, 64)
	if err != nil || fmt.Sprintf("%016x", n) != name {
		return 0, syscall.ENOENT
	}
	a, err := d.j.t.Getattr(ctx, nil, kml.OID(n))
	if errors.Is(err, syscall.ESTALE) || err == nil && a.Mode&unix.S_IFMT != unix.S_IFREG {
		err = syscall.ENOENT
	}
	return kml.OID(n), err
}

// open opens a file's present version to be read.
func (d versionDir) open(ctx context.Context, c *tree.Cred, path string, oid kml.OID, flags int) (*tree.VersionHandle, error) {
	if err := only(flags); err != nil {
		return nil, err
	}
	if _, err := d.j.may(ctx, c, RightFollow, path); err != nil {
		return nil, err
	}
	return d.j.t.OpenVersion(ctx, oid)
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
