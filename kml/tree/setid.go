package tree

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
)

// capability is the attribute of a program's capabilities.
const capability = "security.capability"

// strippedMode is a mode without the bits that new contents take from a program;
// setgid without group execution is no program's (file_remove_privs of
// fs/inode.c).
func strippedMode(mode uint32) uint32 {
	mode &^= unix.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		mode &^= unix.S_ISGID
	}
	return mode
}

// mayMake settles what a record that c sends may make: what a user makes is the
// user's own, with no program of somebody else's among it, and no attribute that
// is the system's to give.
func (c *Cred) mayMake(r *kml.Record) error {
	if c.asProcess() {
		return nil
	}
	for _, x := range r.Xattrs {
		if strings.HasPrefix(x.Name, "security.") || strings.HasPrefix(x.Name, "trusted.") {
			return fmt.Errorf("attribute %s: %w", x.Name, syscall.EPERM)
		}
	}
	if r.Attr.UID != c.UID {
		r.Attr.UID, r.Attr.GID = c.UID, c.GID
		r.Attr.Mode &^= unix.S_ISUID
		if r.Op != kml.OpMkdir {
			r.Attr.Mode &^= unix.S_ISGID
		}
	}
	return nil
}

// dropPrivs journals what a write takes from a program: set-id bits where the
// writer is not the process, which the kernel does not know, and capabilities,
// which it takes itself at the first write without a word.
func (h *handle) dropPrivs(ctx context.Context) error {
	var mode uint32
	if !h.cred.asProcess() {
		obj, err := h.t.objectOrGone(h.obj.oid)
		if err != nil {
			return err
		}
		if mode = obj.Attr.Mode; mode == 0 { // it has no name any more
			h.mu.RLock()
			var st unix.Stat_t
			err := unix.Fstat(int(h.fd.Load()), &st)
			h.mu.RUnlock()
			if err != nil {
				return err
			}
			mode = st.Mode
		}
	}
	able := !h.obj.dirty.Load() && h.mayBeAble() // else the first write since a store has seen to it
	if m := strippedMode(mode); m != mode {
		r := h.t.record(h.cred, kml.OpSetattr)
		r.OID = h.obj.oid
		if _, err := h.t.setattr(ctx, nil, r, SetAttr{Mask: SetMode, Mode: m & 07777}, nil); err != nil {
			return err
		}
	}
	if able {
		return ignore(h.t.Removexattr(ctx, nil, h.obj.oid, capability), unix.ENODATA)
	}
	return nil
}

// mayBeAble reports whether the file has capabilities. They are looked for where
// the index knows of some, or knows nothing: what somebody else gives the file at
// this moment is gone with the write and was in no record.
func (h *handle) mayBeAble() bool {
	obj, err := h.t.index.Get(h.obj.oid)
	if err == nil && !slices.ContainsFunc(obj.Xattrs, func(x kml.Xattr) bool { return x.Name == capability }) {
		return false
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	n, err := unix.Fgetxattr(int(h.fd.Load()), capability, nil)
	return err == nil && n > 0
}

// dropPrivsLocked does the same for contents that c puts in p's place; the
// object and its names are locked.
func (t *Tree) dropPrivsLocked(ctx context.Context, c *Cred, oid kml.OID, p place) error {
	if c.asProcess() {
		return nil
	}
	var old, st unix.Statx_t
	if err := unix.Statx(p.fd, "", unix.AT_EMPTY_PATH, statxMask, &old); err != nil {
		return err
	}
	note := func(b *Batch) error { return noteChange(b, oid, &st) }
	stat := func() error { return unix.Statx(p.fd, "", unix.AT_EMPTY_PATH, statxMask, &st) }
	if m := strippedMode(uint32(old.Mode)); m != uint32(old.Mode) {
		r := t.record(c, kml.OpSetattr)
		r.OID, r.HadOld, r.Old, r.Attr, r.Mask = oid, true, kmlAttr(&old), kmlAttr(&old), kml.MaskMode
		r.Attr.Mode = m
		call := func() error { return unix.Chmod(p.path(), m&07777) }
		if err := t.mutate(ctx, mutation{rec: r, call: call, result: stat, index: note}); err != nil {
			return err
		}
	}
	v, err := p.getxattr(capability)
	if err != nil {
		if err == unix.ENODATA || err == unix.EOPNOTSUPP {
			return nil
		}
		return err
	}
	r := t.record(c, kml.OpRemovexattr)
	r.OID, r.Name, r.HadOld, r.OldValue = oid, capability, true, v
	call := func() error { return unix.Removexattr(p.path(), capability) }
	return t.mutate(ctx, mutation{rec: r, call: call, result: stat, index: note})
}
