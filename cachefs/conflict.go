package cachefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/local"
	"github.com/mezzofs/mezzo/kml/tree"
)

// settleStore deals with contents that were made of others than the master has,
// or whose object is gone.
func (c *Client) settleStore(ctx context.Context, e *local.Entry, out feed.Outcome) error {
	r := e.Rec()
	if k, ok := c.renamed(r); ok {
		return c.copyTo(e, k.OID, false)
	}
	obj, err := c.masterObject(ctx, r.OID)
	if err != nil {
		return err
	}
	if obj != nil && c.sameBytes(ctx, r, c.cache.Local().Path(e.ID)) {
		c.log.Info("the same was written on both sides", "oid", r.OID)
		if err := c.cache.Undo(kml.Base{Pos: obj.DataVersion}, e); err != nil {
			return err
		}
		c.forget(kml.Base{}, e)
		return nil
	}
	name, err := c.conflictCopy(ctx, e, obj)
	if errors.Is(err, errNoPlace) {
		return c.abandon(e, out.Reason)
	}
	if err != nil {
		return err
	}
	if obj == nil {
		c.note("%s: removed on the other side; what was written here is in %q (%s)", c.describe(e), name, out.Reason)
	} else {
		c.note("%s: changed on both sides; what was written here is in %q (%s)", c.describe(e), name, out.Reason)
	}
	return nil
}

// sameBytes is true when the master's file holds what r stores, which is at
// path. When in doubt it is not.
func (c *Client) sameBytes(ctx context.Context, r *kml.Record, path string) bool {
	src, err := c.OpenVersion(ctx, r.OID)
	if err != nil {
		return false
	}
	defer src.Close()
	if src.Size() != r.Attr.Size {
		return false
	}
	if r.Attr.Size == 0 {
		return true
	}
	want, err := digest(path)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, compareTime)
	defer cancel()
	h := blake3.New()
	b := make([]byte, min(1<<20, r.Attr.Size))
	for off := uint64(0); off < r.Attr.Size; {
		n, err := src.ReadAt(ctx, b[:min(uint64(len(b)), r.Attr.Size-off)], int64(off))
		if err != nil || n == 0 {
			return false
		}
		_, _ = h.Write(b[:n]) // a hash takes everything
		off += uint64(n)
	}
	return bytes.Equal(h.Sum(nil), want)
}

// sameObject reports whether what a change makes is, with what was written to it
// since, what the master has under its name.
func (c *Client) sameObject(ctx context.Context, e *local.Entry, other *tree.Object) (bool, error) {
	r := e.Rec()
	if r.Attr.Mode&unix.S_IFMT != other.Attr.Mode&unix.S_IFMT || c.cache.Dirty(r.OID) {
		return false, nil
	}
	switch r.Op {
	case kml.OpSymlink:
		return r.Target == other.Target, nil
	case kml.OpMknod:
		return r.Attr.Rdev == other.Attr.Rdev, nil
	case kml.OpCreate:
	default:
		return false, nil
	}
	var last *local.Entry
	for _, l := range c.cache.Local().From(e.ID, -1) {
		if x := l.Rec(); x.OID == r.OID && x.Op == kml.OpStore && l.Back() == 0 {
			last = l
		}
	}
	if last == nil {
		return other.Attr.Size == 0, nil
	}
	k := *last.Rec()
	k.OID = other.OID
	return c.sameBytes(ctx, &k, c.cache.Local().Path(last.ID)), nil
}

// merge makes an object that was made here the master's, which is the same: its
// stores go, and what was changed later is changed there.
func (c *Client) merge(e *local.Entry, to kml.OID) error {
	oid := e.Rec().OID
	var stores []*local.Entry
	for _, l := range c.cache.Local().From(e.ID, -1) {
		if x := l.Rec(); x.OID != oid || x.Op != kml.OpStore || l.Back() != 0 {
			continue
		}
		if free, err := c.thawed(l); err != nil {
			return err
		} else if free {
			stores = append(stores, l)
		}
	}
	if err := c.becomes(e.ID, oid, to); err != nil {
		return err
	}
	return c.undo(append([]*local.Entry{e}, stores...)...)
}

var errNoPlace = errors.New("no folder to put a conflict copy in")

// conflictCopy makes the bytes of a store, and of those that were made on top of
// it, a new object beside its own; obj is that at the master, or nil. All of it
// is in the local log when it returns, in one step.
func (c *Client) conflictCopy(ctx context.Context, e *local.Entry, obj *tree.Object) (name string, err error) {
	r := e.Rec()
	if to, ok := c.settled.copies[r.OID]; ok {
		// One copy of an object at a time.
		if at := c.cache.Names(to); len(at) > 0 {
			return at[0].Name, c.copyTo(e, to, false)
		}
	}
	at, mode, uid, gid, err := c.copyPlace(ctx, r.OID)
	if err != nil {
		return "", err
	}
	name = at.Name
	_, taken := c.cache.Child(at.Parent, name)
	if obj != nil || taken {
		name = c.freeName(at)
	}
	oid, err := c.cache.State().MintOID()
	if err != nil {
		return "", err
	}
	now := c.o.Now().UnixNano()
	made := local.New(&kml.Record{Op: kml.OpCreate, Flags: kml.FlagConflict, Time: now, UID: r.UID, GID: r.GID, OID: oid, Parent: at.Parent,
		Name: name, Attr: kml.Attr{Mode: mode, UID: uid, GID: gid, Nlink: 1, Mtime: r.Attr.Mtime}})
	if err := c.copyAll(e, oid, made); err != nil {
		return "", err
	}
	if obj == nil {
		return name, c.becomes(e.ID, r.OID, oid)
	}
	if c.settled.copies == nil {
		c.settled.copies = make(map[kml.OID]kml.OID)
	}
	c.settled.copies[r.OID] = oid
	return name, nil
}

// copyPlace is where a copy of an object is put, and what it looks like.
func (c *Client) copyPlace(ctx context.Context, oid kml.OID) (at tree.Name, mode, uid, gid uint32, err error) {
	mode = unix.S_IFREG | 0o600
	obj, err := c.cache.Object(oid)
	if err != nil {
		obj = c.cache.Lost(oid)
	}
	if obj != nil {
		mode, uid, gid = obj.Attr.Mode, obj.Attr.UID, obj.Attr.GID
	}
	names := c.cache.Names(oid)
	if len(names) == 0 && obj != nil && obj.Parent != 0 {
		names = []tree.Name{{Parent: obj.Parent, Name: obj.Name}}
	}
	if len(names) == 0 {
		return at, 0, 0, 0, errNoPlace
	}
	at = names[0]
	at.Parent = c.now(at.Parent)
	if _, err := c.cache.Object(at.Parent); err != nil {
		at.Parent = kml.RootOID
	}
	return at, mode, uid, gid, nil
}

// copyTo makes a store one of another object.
func (c *Client) copyTo(e *local.Entry, oid kml.OID, _ bool) error { return c.copyAll(e, oid, nil) }

// copyAll makes a store, and those behind it that are not on their way, stores of
// another object, which made makes unless it is nil.
func (c *Client) copyAll(e *local.Entry, oid kml.OID, made *local.Entry) error {
	l := c.cache.Local()
	r := e.Rec()
	old := []*local.Entry{e}
	for _, x := range l.From(e.ID, -1) {
		if k := x.Rec(); k.OID != r.OID || k.Op != kml.OpStore || x.Back() != 0 {
			continue
		}
		free, err := c.thawed(x)
		if err != nil {
			return err
		}
		if !free {
			break // it conflicts, and then goes the same way
		}
		old = append(old, x)
	}
	var add []*local.Entry
	ids := l.IDsAfter(e.ID, len(old)+1)
	if len(ids) <= len(old) {
		return fmt.Errorf("no room in the local log behind change %x", e.ID)
	}
	after := uint64(0)
	if made != nil {
		made.ID = ids[0]
		after = made.ID
		add = append(add, made)
	} else {
		after = c.cache.WrittenBy(oid)
	}
	for i, x := range old {
		k := *x.Rec()
		k.OID, k.Origin, k.Digest, k.Flags = oid, kml.Origin{}, nil, k.Flags|kml.FlagConflict
		k.Base = kml.Base{}
		if after == 0 {
			if obj, err := c.cache.MasterObject(oid); err == nil {
				k.Base = kml.Base{Pos: obj.DataVersion}
			}
		}
		n := local.New(&k)
		n.ID, n.At, n.After, n.Data = ids[i+1], x.At, after, x.Data
		if n.Data {
			if err := os.Link(l.Path(x.ID), l.Path(n.ID)); err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
		}
		after = n.ID
		add = append(add, n)
	}
	if err := c.cache.Exchange(old, add); err != nil {
		return err
	}
	c.forget(kml.Base{}, old...)
	c.queueAgain(add...)
	return nil
}

// describe names a change for a person.
func (c *Client) describe(e *local.Entry) string {
	r := e.Rec()
	if names := c.cache.Names(r.OID); len(names) > 0 {
		return fmt.Sprintf("%s of %q", r.Op, names[0].Name)
	}
	if r.Name != "" {
		return fmt.Sprintf("%s of %q", r.Op, r.Name)
	}
	return fmt.Sprintf("%s of object %v", r.Op, r.OID)
}

const (
	maxName      = 255
	conflictMark = " (conflict, "
)

// conflictName is the name of a conflict copy, at most 255 bytes:
//
//	name (conflict, HOST, 2026-11-21 06.42.27).ext
//
// Copies are never nested: a copy of a copy is named like one of the original.
func conflictName(name, host string, t time.Time, n int) string {
	base, ext := name, ""
	if i := strings.LastIndex(name, conflictMark); i > 0 {
		if j := strings.IndexByte(name[i:], ')'); j > 0 {
			name = name[:i] + name[i+j+1:]
			base = name
		}
	}
	if i := strings.LastIndexByte(name, '.'); i > 0 && len(name)-i <= 32 {
		base, ext = name[:i], name[i:]
	}
	host = strings.Map(func(r rune) rune {
		if r == '/' || r == 0 || r == ')' {
			return '-'
		}
		return r
	}, host)
	mark := fmt.Sprintf(conflictMark+"%s, %s)", cutAt(host, 64), t.UTC().Format("2006-01-02 15.04.05"))
	if n > 1 {
		mark = fmt.Sprintf("%s %d)", strings.TrimSuffix(mark, ")"), n)
	}
	return cutAt(base, maxName-len(mark)-len(ext)) + mark + ext
}

// cutAt is s up to n bytes, not within a letter.
func cutAt(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) && n > len(s)-8 {
		n--
	}
	return s[:max(n, 0)]
}

// setAside keeps the bytes of a store that will not be taken, and says where.
func (c *Client) setAside(e *local.Entry) (kept string, err error) {
	if !e.Data {
		return "", nil
	}
	name := "object"
	if names := c.cache.Names(e.Rec().OID); len(names) > 0 {
		name = names[0].Name
	}
	path := c.cache.State().Path("conflicts", cutAt(fmt.Sprintf("%x-%s", e.ID, name), maxName))
	err = os.Link(c.cache.Local().Path(e.ID), path)
	if errors.Is(err, os.ErrExist) {
		err = nil // kept before a crash
	}
	if errors.Is(err, os.ErrNotExist) {
		return "; its bytes are no longer here", nil
	}
	if err != nil {
		return "", err
	}
	return "; its bytes are kept in " + path, nil
}
