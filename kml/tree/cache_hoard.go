package tree

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// Children is what is known here to be in a folder; whole is true when that is
// all.
func (c *Cache) Children(oid kml.OID) (es []NameEntry, whole bool, err error) {
	dir, err := c.get(oid)
	if err != nil {
		return nil, false, err
	}
	es, err = c.children(oid)
	return es, dir.Listed, err
}

// Missing is how many bytes of a file's present version are not here. It looks,
// and asks nobody.
func (c *Cache) Missing(oid kml.OID) (int64, error) {
	obj, err := c.get(oid)
	if err != nil {
		return 0, err
	}
	if obj.Attr.Mode&unix.S_IFMT != unix.S_IFREG || obj.Attr.Size == 0 {
		return 0, nil
	}
	if o := c.objects.find(oid); o != nil {
		defer c.objects.release(o)
		o.mu.RLock()
		defer o.mu.RUnlock()
		if o.local && (o.vf == nil || o.vf.complete()) {
			return 0, nil
		}
	}
	var st unix.Stat_t
	err = unix.Stat(c.objectPath(oid, obj.DataVersion), &st)
	if errors.Is(err, unix.ENOENT) || err == nil && uint64(st.Size) != obj.Attr.Size {
		return int64(obj.Attr.Size), nil
	}
	if err != nil || obj.Whole {
		return 0, err
	}
	here := uint64(0)
	for _, e := range obj.Present {
		here += e.Len
	}
	return int64(obj.Attr.Size - min(here, obj.Attr.Size)), nil
}

// Bring fetches what is missing of a file's present version.
func (c *Cache) Bring(ctx context.Context, oid kml.OID) error {
	o := c.objects.acquire(oid)
	defer c.objects.release(o)
	_, err := c.bringWhole(ctx, o)
	return err
}
