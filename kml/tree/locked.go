package tree

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// SetLock is FS.SetLock. What was written to the object before a lock is given
// up, or taken, has become a store by then: the end of the log that the next
// holder sees covers it.
func (t *Tree) SetLock(ctx context.Context, oid kml.OID, l Lock, wait bool) error {
	if l.Type == unix.F_UNLCK {
		return errors.Join(t.cutOID(oid), t.locks.SetLock(ctx, oid, l, wait))
	}
	if err := t.locks.SetLock(ctx, oid, l, wait); err != nil {
		return err
	}
	if err := t.cutOID(oid); err != nil {
		t.logger.Warn("store not cut for the new holder of a lock; it is tried again", "oid", oid, "err", err)
	}
	return nil
}

// TestLock is FS.TestLock.
func (t *Tree) TestLock(ctx context.Context, oid kml.OID, l Lock) (Lock, error) {
	return t.locks.TestLock(ctx, oid, l)
}

// Unlock is FS.Unlock.
func (t *Tree) Unlock(oid kml.OID, o LockOwner) { t.locks.Unlock(oid, o) }

// cutOID cuts the store of an object that is being written.
func (t *Tree) cutOID(oid kml.OID) error {
	o := t.objects.find(oid)
	if o == nil {
		return nil
	}
	defer t.objects.release(o)
	return t.cut(o)
}

// Within reports whether an object is, by any of its names, in the subtree of a
// folder, or is that folder. What is not known is in none.
func (t *Tree) Within(oid, root kml.OID) bool {
	if oid == root || root == kml.RootOID {
		return true
	}
	obj, err := t.index.Get(oid)
	if err != nil {
		return false
	}
	if obj.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
		for _, n := range t.index.Names(oid) {
			if t.folderWithin(n.Parent, root) {
				return true
			}
		}
		return false
	}
	return t.folderWithin(oid, root)
}

func (t *Tree) folderWithin(oid, root kml.OID) bool {
	for range maxDepth {
		if oid == root {
			return true
		}
		obj, err := t.index.Get(oid)
		if err != nil || obj.Parent == oid || obj.Parent == 0 {
			return false
		}
		oid = obj.Parent
	}
	return false
}

// IsFolder reports whether an oid is a folder's.
func (t *Tree) IsFolder(oid kml.OID) bool {
	obj, err := t.index.Get(oid)
	return err == nil && obj.Attr.Mode&unix.S_IFMT == unix.S_IFDIR
}

// IsKnown reports whether there is an object of an oid.
func (t *Tree) IsKnown(oid kml.OID) bool {
	_, err := t.index.Get(oid)
	return err == nil
}
