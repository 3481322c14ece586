package tree

import (
	"bytes"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// fitsAttr lets a client's setattr through where each field has the value that the
// client saw, or the one it asks for. Times are whoever's came last. A record that
// does not say what it replaces is let through.
func fitsAttr(r *kml.Record, now kml.Attr) error {
	if !r.HadOld {
		return nil
	}
	for _, f := range []struct {
		m              kml.AttrMask
		name           string
		now, old, mine uint32
	}{
		{kml.MaskMode, "mode", now.Mode & 07777, r.Old.Mode & 07777, r.Attr.Mode & 07777},
		{kml.MaskUID, "owner", now.UID, r.Old.UID, r.Attr.UID},
		{kml.MaskGID, "group", now.GID, r.Old.GID, r.Attr.GID},
	} {
		if r.Mask&f.m != 0 && f.now != f.old && f.now != f.mine {
			return conflict(syscall.EBUSY, "the %s of object %v was changed meanwhile", f.name, r.OID)
		}
	}
	return nil
}

// fitsXattr does the same with an extended attribute.
func fitsXattr(r *kml.Record, p place) error {
	now, err := p.getxattr(r.Name)
	has := err == nil
	if err != nil && !errors.Is(err, unix.ENODATA) {
		return nil // the call that follows says why
	}
	is := func(value []byte, there bool) bool { return there == has && bytes.Equal(value, now) }
	if is(r.OldValue, r.HadOld) || is(r.Value, r.Op == kml.OpSetxattr) {
		return nil
	}
	return conflict(syscall.EBUSY, "the attribute %s of object %v was changed meanwhile", r.Name, r.OID)
}
