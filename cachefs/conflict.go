package cachefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/mezzofs/mezzo/kml"
	"github.com/mezzofs/mezzo/kml/feed"
	"github.com/mezzofs/mezzo/kml/tree"
)

// refused deals with a no to something that nobody waits for. Contents that
// conflict become a file of their own beside the master's; those refused for
// another reason are kept aside. The object goes back to the master's version.
func (c *Client) refused(e *entry, o feed.Outcome) error {
	what := c.describe(e)
	switch {
	case e.store != nil && o.Status == feed.Conflict && c.sameBytes(e.rec):
		c.log.Info("the same was written on both sides", "oid", e.rec.OID)
	case e.store != nil && o.Status == feed.Conflict:
		name, err := c.conflictCopy(e)
		if err == nil {
			c.note("%s: changed on both sides; what was written here is in %q (%s)", what, name, o.Reason)
			break
		}
		if !errors.Is(err, errNoPlace) {
			return err
		}
		fallthrough
	default:
		kept, err := c.setAside(e)
		if err != nil {
			return err
		}
		c.note("%s: refused by the master: %s%s", what, o.Reason, kept)
	}
	if e.store != nil {
		c.cache.Drop(e.store)
	}
	c.forget(e)
	return nil
}

// sameBytes is true when the master's file holds what r stores. When in doubt it
// is not.
func (c *Client) sameBytes(r *kml.Record) bool {
	src, err := c.OpenVersion(c.ctx, r.OID)
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
	ctx, cancel := context.WithTimeout(c.ctx, compareTime)
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
	return bytes.Equal(h.Sum(nil), r.Digest)
}

// compareTime is how long the comparison of contents may take, while nothing
// else is sent.
const compareTime = 10 * time.Second

// describe names an entry for a person.
func (c *Client) describe(e *entry) string {
	if len(e.names) > 0 {
		return fmt.Sprintf("%s of %q", e.rec.Op, e.names[0].Name)
	}
	return fmt.Sprintf("%s of object %v", e.rec.Op, e.rec.OID)
}

var errNoPlace = errors.New("no folder to put a conflict copy in")

// conflictCopy makes the bytes of a store a new object beside its own. The
// records that make it are in the outbox when it returns.
func (c *Client) conflictCopy(e *entry) (name string, err error) {
	places := c.cache.Names(e.rec.OID)
	if len(places) == 0 {
		places = e.names
	}
	if len(places) == 0 {
		return "", errNoPlace
	}
	at := places[0]
	if _, err := c.cache.Object(at.Parent); err != nil {
		return "", errNoPlace
	}
	mode, uid, gid := uint32(unix.S_IFREG|0o600), e.rec.UID, e.rec.GID
	if obj, err := c.cache.Object(e.rec.OID); err == nil {
		mode, uid, gid = obj.Attr.Mode, obj.Attr.UID, obj.Attr.GID
	}
	now := c.o.Now()
	for n := 1; ; n++ {
		name = conflictName(at.Name, c.o.Host, now, n)
		if _, taken := c.cache.Child(at.Parent, name); !taken {
			break
		}
	}
	oid, err := c.cache.State().MintOID()
	if err != nil {
		return "", err
	}
	made := &entry{keep: true, done: make(chan struct{}), rec: &kml.Record{Op: kml.OpCreate, Flags: kml.FlagConflict, Time: now.UnixNano(),
		UID: e.rec.UID, GID: e.rec.GID, OID: oid, Parent: at.Parent, Name: name,
		Attr: kml.Attr{Mode: mode, UID: uid, GID: gid, Nlink: 1}}}
	es := []*entry{made}
	if e.rec.Attr.Size > 0 {
		path := c.cache.State().Path("stage", fmt.Sprintf("conflict-%d", e.seq))
		if err := os.Link(c.out.data(e.seq), path); err != nil {
			return "", err
		}
		es = append(es, &entry{keep: true, done: make(chan struct{}), after: made, path: path, names: []tree.Name{{Parent: at.Parent, Name: name}},
			rec: &kml.Record{Op: kml.OpStore, Flags: kml.FlagConflict, Time: now.UnixNano(), UID: e.rec.UID, GID: e.rec.GID, OID: oid,
				Attr: kml.Attr{Size: e.rec.Attr.Size, Mtime: e.rec.Attr.Mtime}}})
	}
	return name, c.freeze(es)
}

const maxName = 255

// conflictName is the name of a conflict copy, at most 255 bytes:
//
//	name (conflict, HOST, 2026-11-21 06.42.27).ext
//
// Copies are never nested: a copy of a copy is named like one of the original.
func conflictName(name, host string, t time.Time, n int) string {
	base, ext := name, ""
	if i := strings.LastIndexByte(name, '.'); i > 0 && len(name)-i <= 32 {
		base, ext = name[:i], name[i:]
	}
	if i := strings.LastIndex(base, " (conflict, "); i > 0 && strings.HasSuffix(base, ")") {
		base = base[:i]
	}
	host = strings.Map(func(r rune) rune {
		if r == '/' || r == 0 {
			return '-'
		}
		return r
	}, host)
	mark := fmt.Sprintf(" (conflict, %s, %s)", cutAt(host, 64), t.UTC().Format("2006-01-02 15.04.05"))
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
func (c *Client) setAside(e *entry) (kept string, err error) {
	if e.rec.Op != kml.OpStore || e.rec.Attr.Size == 0 {
		return "", nil
	}
	name := "object"
	if len(e.names) > 0 {
		name = e.names[0].Name
	}
	path := c.cache.State().Path("conflicts", cutAt(fmt.Sprintf("%d-%s", e.seq, name), maxName))
	from := e.path
	if from == "" {
		from = c.out.data(e.seq)
	}
	err = os.Link(from, path)
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

// setAsideAll gives up everything that waits to be sent. The caller has the turn.
func (c *Client) setAsideAll(why string) error {
	if err := c.freezeAll(); err != nil && !errors.Is(err, syscall.EHOSTDOWN) {
		return err
	}
	c.push.mu.Lock()
	es := append([]*entry(nil), c.push.sent...)
	c.push.mu.Unlock()
	for _, e := range es {
		c.push.mu.Lock()
		done := e.decided
		c.push.decideLocked(e, feed.Outcome{Seq: e.seq, Status: feed.Refused, Errno: uint32(syscall.EHOSTDOWN), Reason: why})
		c.push.mu.Unlock()
		if done {
			continue
		}
		kept, err := c.setAside(e)
		if err != nil {
			return err
		}
		c.note("%s: %s%s", c.describe(e), why, kept)
		if e.store != nil {
			c.cache.Drop(e.store)
		}
	}
	c.forget(es...)
	return nil
}

// lostByMaster sends records again that the master had taken and no longer has:
// its machine went down before they were durable.
func (c *Client) lostByMaster(lastSeq uint64) {
	p := &c.push
	p.mu.Lock()
	defer p.mu.Unlock()
	p.first = 0
	for _, e := range p.sent {
		if e.decided && applied(e.out) && e.seq > lastSeq {
			e.decided, e.returned, e.keep, e.on = false, false, true, nil
			e.done = make(chan struct{})
		}
	}
}

// keepSent takes the bytes of stores that came back and are not durable at the
// master into the outbox again, before the cache forgets them.
func (c *Client) keepSent() {
	c.push.mu.Lock()
	es := append([]*entry(nil), c.push.sent...)
	c.push.mu.Unlock()
	for _, e := range es {
		if e.rec.Op == kml.OpStore && e.rec.Attr.Size > 0 && e.returned {
			if err := c.cache.LinkVersion(e.rec.OID, e.out.Pos, c.out.data(e.seq)); err != nil && !errors.Is(err, os.ErrExist) {
				c.log.Debug("bytes of a store are no longer here", "oid", e.rec.OID, "err", err)
			}
		}
	}
}

// renumber makes what waits to be sent records of another site: the master took
// this cache for a copy of the site it was. Objects that the old number made
// cannot be sent under the new one and are kept aside.
func (c *Client) renumber(site kml.SiteID) error {
	c.push.mu.Lock()
	old := append([]*entry(nil), c.push.sent...)
	c.push.mu.Unlock()
	for _, e := range old {
		if e.decided {
			c.forget(e)
			continue
		}
		if e.rec.Op != kml.OpStore || e.rec.OID.Site() != site && e.rec.Flags&kml.FlagConflict != 0 {
			if err := c.refused(e, feed.Outcome{Seq: e.seq, Status: feed.Refused, Reason: "made under another site number"}); err != nil {
				return err
			}
			continue
		}
		rec := *e.rec
		n := &entry{rec: &rec, store: e.store, keep: true, names: e.names, done: make(chan struct{})}
		if rec.Attr.Size > 0 {
			n.path = c.cache.State().Path("stage", "renumber-"+filepath.Base(c.out.data(e.seq)))
			if err := os.Link(c.out.data(e.seq), n.path); err != nil {
				return err
			}
		}
		if err := c.freeze([]*entry{n}); err != nil {
			return err
		}
		c.forget(e)
	}
	return nil
}
