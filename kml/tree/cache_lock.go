package tree

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// SetLock is FS.SetLock; locks are among the users of this cache.
func (c *Cache) SetLock(ctx context.Context, oid kml.OID, l Lock, wait bool) error {
	return c.locks.SetLock(ctx, oid, l, wait)
}

// TestLock is FS.TestLock.
func (c *Cache) TestLock(ctx context.Context, oid kml.OID, l Lock) (Lock, error) {
	return c.locks.TestLock(ctx, oid, l)
}

// Unlock is FS.Unlock.
func (c *Cache) Unlock(oid kml.OID, o LockOwner) { c.locks.Unlock(oid, o) }

// Locked reports whether an owner has locks of an object, and whether one of them
// is for writing.
func (c *Cache) Locked(oid kml.OID, o LockOwner) (any, write bool) {
	c.locks.mu.Lock()
	defer c.locks.mu.Unlock()
	if f := c.locks.files[oid]; f != nil {
		for _, l := range f.held {
			if l.Owner == o {
				any, write = true, write || l.Type == unix.F_WRLCK
			}
		}
	}
	return any, write
}

// ObjectLock is a lock and what it is of.
type ObjectLock struct {
	OID kml.OID
	Lock
}

// Locks are all locks there are.
func (c *Cache) Locks() []ObjectLock {
	c.locks.mu.Lock()
	defer c.locks.mu.Unlock()
	var all []ObjectLock
	for oid, f := range c.locks.files {
		for _, l := range f.held {
			all = append(all, ObjectLock{oid, l})
		}
	}
	return all
}

// CutSince cuts the stores of what was written at or after a time, in nanoseconds
// of the cache's clock. A file of more than most bytes is let be while it is being
// written, but for the one of an oid.
func (c *Cache) CutSince(at int64, most uint64, oid kml.OID) error {
	var errs []error
	for _, o := range c.objects.dirtyList() {
		if o.oid == oid || o.last.Load() >= at && c.sizeAtMost(o, most) {
			_, err := c.cut(o)
			errs = append(errs, err)
		}
		c.objects.release(o)
	}
	return errors.Join(errs...)
}

func (c *Cache) sizeAtMost(o *cacheObject, most uint64) bool {
	var st unix.Stat_t
	return unix.Stat(c.localPath(o.oid), &st) != nil || uint64(st.Size) <= most
}

// Revoke tells those who watch that contents of an object may be others by now.
func (c *Cache) Revoke(oid kml.OID) {
	c.watch.emit(Change{Kind: ChangeData | ChangeAttr, OID: oid})
}
