package cachefs

import (
	"context"
	"time"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/tree"
)

// What is read comes from the cache, which asks the client for what it misses.

// Lookup is tree.FS's.
func (c *Client) Lookup(ctx context.Context, cred *tree.Cred, parent kml.OID, name string) (tree.Attr, error) {
	return c.cache.Lookup(ctx, cred, c.now(parent), name)
}

// Parent is tree.FS's.
func (c *Client) Parent(ctx context.Context, oid kml.OID) (kml.OID, error) {
	return c.cache.Parent(ctx, c.now(oid))
}

// Getattr is tree.FS's.
func (c *Client) Getattr(ctx context.Context, cred *tree.Cred, oid kml.OID) (tree.Attr, error) {
	return c.cache.Getattr(ctx, cred, c.now(oid))
}

// Readlink is tree.FS's.
func (c *Client) Readlink(ctx context.Context, cred *tree.Cred, oid kml.OID) (string, error) {
	return c.cache.Readlink(ctx, cred, c.now(oid))
}

// Open is tree.FS's.
func (c *Client) Open(ctx context.Context, cred *tree.Cred, oid kml.OID, flags int) (tree.Handle, error) {
	return c.cache.Open(ctx, cred, c.now(oid), flags)
}

// OpenDir is tree.FS's.
func (c *Client) OpenDir(ctx context.Context, cred *tree.Cred, oid kml.OID) (tree.DirHandle, error) {
	return c.cache.OpenDir(ctx, cred, c.now(oid))
}

// Getxattr is tree.FS's.
func (c *Client) Getxattr(ctx context.Context, cred *tree.Cred, oid kml.OID, name string) ([]byte, error) {
	return c.cache.Getxattr(ctx, cred, c.now(oid), name)
}

// Listxattr is tree.FS's.
func (c *Client) Listxattr(ctx context.Context, cred *tree.Cred, oid kml.OID) ([]string, error) {
	return c.cache.Listxattr(ctx, cred, c.now(oid))
}

// Statfs is tree.FS's: the master's file system, or while it is away the one
// the cache lies on.
func (c *Client) Statfs(ctx context.Context, oid kml.OID) (tree.Statfs, error) {
	if up := c.current(); up != nil {
		ctx, stop := up.bind(ctx)
		defer stop()
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if s, err := up.calls.Statfs(ctx); err == nil {
			return s, nil
		}
	}
	return c.cache.Statfs(ctx, oid)
}

// Watch is tree.FS's.
func (c *Client) Watch(f func(tree.Change)) (cancel func()) { return c.cache.Watch(f) }
