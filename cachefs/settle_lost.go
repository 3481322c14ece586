package cachefs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/mezzofs/mezzo/cachefs/conflicts"
	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/conflict"
	"github.com/mezzofs/mezzo/kml/local"
)

// keepLosses puts what a pass loses into the conflicts store, before any of it is
// done. A pass that is made again puts it there once.
func (s *settling) keepLosses() error {
	var all []conflicts.New
	for _, l := range s.losses {
		k := conflicts.Of(l.Loss, s.path(l.Name))
		k.Key = fmt.Sprintf("%x.%d", l.e.ID, l.n)
		k.UID, k.GID = l.rec.UID, l.rec.GID
		if obj := s.object(l.OID); obj != nil {
			k.UID, k.GID = obj.Attr.UID, obj.Attr.GID
		}
		k.Copy = s.path(s.copyName(l.Other))
		path, err := s.lostBytes(l)
		if err != nil {
			return err
		}
		all = append(all, conflicts.New{Conflict: k, Path: path})
	}
	if err := s.Err(); err != nil {
		return err
	}
	return s.c.keep(all...)
}

// copyName is the name of what stands beside an object, if it does.
func (s *settling) copyName(oid kml.OID) conflict.Name {
	if oid == 0 {
		return conflict.Name{}
	}
	n, _ := s.Name(oid)
	return n
}

// lostBytes is a file with what has to be kept of a loss, which stays where it is;
// "" when that is no bytes, or they cannot be had.
func (s *settling) lostBytes(l lost) (string, error) {
	switch {
	case l.Keep == conflict.KeepNothing || l.Field != "":
		return "", nil
	case l.Keep == conflict.KeepTheirs:
		if obj := s.object(l.OID); l.Row == conflict.RowVictim && l.rec.Op == kml.OpRename {
			return s.victimBytes(l)
		} else if obj != nil && obj.Attr.Size == 0 {
			return "", nil
		}
		return s.theirs(l.OID, l.Version)
	case l.rec.Op == kml.OpStore && l.e.Data:
		return s.c.cache.Local().Path(l.e.ID), nil
	case l.rec.Op == kml.OpStore:
		return "", nil
	}
	path, _, err := s.c.cache.OwnBytes(l.Other)
	if err != nil {
		return "", nil
	}
	return path, nil
}

// victimBytes are those of the file that the one that was moved here replaces.
func (s *settling) victimBytes(l lost) (string, error) {
	oid, ok := s.c.cache.MasterChild(l.Name.Parent, l.Name.Name)
	if !ok {
		return "", nil
	}
	obj, err := s.c.cache.MasterObject(oid)
	if err != nil || obj.DataVersion != l.Version || obj.Attr.Size == 0 {
		return "", nil
	}
	return s.theirs(oid, l.Version)
}

// keep puts conflicts into the store, with copies of the bytes at their paths.
func (c *Client) keep(ks ...conflicts.New) error {
	for i := range ks {
		if ks[i].Path == "" {
			continue
		}
		mine := c.needs.temp()
		err := copyTo(ks[i].Path, mine)
		if errors.Is(err, os.ErrNotExist) {
			mine, err = "", nil
		}
		if err != nil {
			return err
		}
		ks[i].Path = mine
	}
	_, err := c.conflicts.AddAll(ks)
	return err
}

// keepRefused keeps a change that will not be sent any more.
func (c *Client) keepRefused(e *local.Entry, why string) error {
	r := e.Rec()
	path, ok := c.pathTo(r.OID)
	if !ok {
		path = r.Name
	}
	k := conflicts.Conflict{What: "refused", Path: path, OID: r.OID, Side: "ours", UID: r.UID, GID: r.GID,
		Key: fmt.Sprintf("%x.refused", e.ID), Why: c.describe(e) + ": " + why}
	from := ""
	if e.Data {
		from = c.cache.Local().Path(e.ID)
	}
	c.log.Warn("a change made here is given up; what was written is kept in conflicts", "path", path, "op", r.Op, "err", why)
	return c.keep(conflicts.New{Conflict: k, Path: from})
}

// conflictsText is the open conflicts, a line each.
func (c *Client) conflictsText() []byte {
	var b bytes.Buffer
	for _, k := range c.conflicts.List() {
		fmt.Fprintln(&b, k)
	}
	return b.Bytes()
}

// conflictsDir is where the open conflicts are.
func (c *Client) conflictsDir() string { return c.cache.State().Path("conflicts") }

// oldKept makes conflicts of the bytes that were kept before there was a list.
func (c *Client) oldKept() error {
	es, err := os.ReadDir(c.conflictsDir())
	if err != nil {
		return err
	}
	for _, e := range es {
		name := e.Name()
		id, path, ok := strings.Cut(name, "-")
		if !ok || id == "kept" || !e.Type().IsRegular() {
			continue
		}
		k := conflicts.Conflict{What: "refused", Path: path, Side: "ours", Key: name, Why: "it was kept"}
		if _, err := c.conflicts.Add(k, filepath.Join(c.conflictsDir(), name)); err != nil {
			return err
		}
	}
	return nil
}
